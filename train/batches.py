"""Batches: of few shapes, for what is compiled for one serves others; one ahead of who looks."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def chunks(rows: Iterable, size: int) -> Iterator[list]:
  some = []
  for row in rows:
    some.append(row)
    if len(some) == size:
      yield some
      some = []
  if some:
    yield some


def one_ahead(items: Iterable) -> Iterator:
  """The same items, each made before the one ahead of it is given: so a device computes the next
  batch while the host looks at this one."""
  before = []
  for item in items:
    yield from before
    before = [item]
  yield from before


def at_once(count: int, compiled: set[int], most: int) -> int:
  """In how many rows `count` are computed: in as many as are `compiled`, or a power of two, which
  then is.  One photograph should not wait for a whole batch, nor every number be compiled.
  """
  power = 1 << (count - 1).bit_length()
  rows = min((rows for rows in compiled if rows >= count), default=min(power, most))
  compiled.add(rows)
  return rows


def filled(rows: Sequence, count: int) -> list:
  """`rows`, the last one repeated until there are `count`."""
  return [*rows, *[rows[-1]] * (count - len(rows))]


def padded(rows: np.ndarray, count: int) -> np.ndarray:
  """[count ...]: `rows` [n ...], and zeros behind them."""
  return np.pad(rows, [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1))
