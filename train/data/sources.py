"""Sources: random access to encoded pictures and their labels. Nothing is decoded here."""

from collections.abc import Sequence
import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np


class Row(TypedDict):
  image: bytes  # an encoded file, as `transforms.decode` takes it
  label: int  # index into the data set's classes


class Source(Protocol):
  """Rows by number, in an order that never changes. Read from several threads at once."""

  @property
  def keys(self) -> Sequence[str]:
    """A name for each row, such as its path below the data set's folder; for people to read."""

  @property
  def labels(self) -> np.ndarray:
    """[n] int32, of each row."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
  """Files below one folder."""

  root: Path
  keys: tuple[str, ...]  # paths below `root`, with forward slashes
  labels: np.ndarray  # [n] int32

  def __len__(self) -> int:
    return len(self.keys)

  def __getitem__(self, index: int) -> Row:
    with open(f"{self.root}/{self.keys[index]}", "rb", buffering=0) as file:
      return {"image": file.read(), "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class Numbered(Sequence):
  """`train[0]`, `train[1]` ...: names for rows that have none, without a string for each."""

  name: str
  length: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> str:
    if not -self.length <= index < self.length:
      raise IndexError(f"{self.name} has {self.length} rows; there is no row {index}")
    return f"{self.name}[{index % self.length}]"


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of `tensorflow_datasets.data_source`, whose image is left encoded."""

  rows: Any  # len and [index] -> {feature: value}
  split: str  # as TFDS writes it, such as "train[:90%]"
  image: str  # names of the two features
  label: str

  @property
  def keys(self) -> Numbered:
    return Numbered(self.split, len(self.rows))

  @cached_property
  def labels(self) -> np.ndarray:  # [n] int32; for which all must be read once
    return np.array([row[self.label] for row in self.rows], np.int32)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Row:
    row = self.rows[int(index)]
    return {"image": row[self.image], "label": int(row[self.label])}
