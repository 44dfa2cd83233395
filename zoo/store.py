"""The project's own weight files: one `.safetensors`, with what made it in its header."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import numpy as np

from convert import readers, writers
from zoo.weights import Line, Preprocess

HEADER = "flaxzoo"


@dataclasses.dataclass(frozen=True)
class Record:
  """What a weight file holds, beside its arrays."""

  variant: str
  weights: str | None = None  # the "variant.tag" it descends from
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the module, plain values
  in_channels: int = 3
  preprocess: Preprocess | Line = Preprocess()
  classes: tuple[str, ...] = ()  # in order of the logits; () where nobody named them
  # What outputs mean where they are not one class, such as {"task": "regress", "mean": ...}.
  outputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # source, hash, licence
  # Name and shape of every array of the file that it was converted from, for the way back.
  foreign: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)


def save(path: Path, variables, record: Record) -> None:
  """Writes `path` in one piece: it is either whole or absent."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  arrays = {name: np.asarray(array) for name, array in flat.items()}
  writers.safetensors(path, arrays, {HEADER: json.dumps(dataclasses.asdict(record))})


def read_record(path: Path) -> Record:
  """The header alone. Raises ValueError if the file is not one of ours."""
  text = readers.safetensors_metadata(path).get(HEADER)
  if text is None:
    raise ValueError(
      f"{path} was not written by flaxzoo (its header does not say which model it is); "
      "python -m convert VARIANT.TAG --file=FILE converts a foreign file"
    )
  raw = json.loads(text)
  pixels = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.pop("preprocess").items()}
  raw["classes"] = tuple(raw["classes"])
  kind = Line if "height" in pixels else Preprocess
  return Record(preprocess=kind(**pixels), **raw)


def read_variables(path: Path) -> dict:
  """The arrays as a pytree of `{"params": ..., "batch_stats": ...}`, memory-mapped."""
  return traverse_util.unflatten_dict(readers.safetensors(path), sep="/")
