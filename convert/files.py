"""Files from strangers: mapped, never trusted, refused with a sentence."""

import collections
from collections.abc import Iterable, Iterator
import contextlib
from functools import partial
import importlib
import json
import math
import mmap
from pathlib import Path, PurePosixPath
import reprlib

import numpy as np

EXPANSION = 8  # times the file that its arrays may hold together
ALLOWANCE = 64 << 20  # bytes that they may hold whatever the file
NAME_LIMIT = 512  # characters
LARGE = 1 << 20  # bytes of an array whose pages are worth a call
RANK_LIMIT = 32
SIZE_LIMIT = 1 << 48  # elements, also of empty arrays, whose other axes numpy multiplies too


class UnsafeFile(ValueError):
  """A file that is damaged, of another kind, or asks for what a reader of weights never does."""


def mapped(path: Path) -> np.ndarray:
  """The bytes of a file as a read-only [n] uint8 array, mapped and not read."""
  path = Path(path)
  if path.is_dir():
    raise UnsafeFile("it is a folder; name one of the files in it")
  if not path.exists():
    raise FileNotFoundError(f"no weight file at {path}")
  if not path.stat().st_size:
    raise UnsafeFile("the file is empty; download it again")
  return np.asarray(np.memmap(path, np.uint8, mode="r"))


def forget(array: np.ndarray) -> None:
  """Gives the memory of a large mapped array back; its file has it when it is read again."""
  base = array
  while base is not None and not isinstance(base, mmap.mmap):
    base = getattr(base, "base", None)
  if base is not None and array.nbytes >= LARGE and hasattr(mmap, "MADV_DONTNEED"):
    base.madvise(mmap.MADV_DONTNEED)


def beside(path: Path, place, what: str) -> Path:
  """The other file that a file names, which must lie in its folder or below. Raises UnsafeFile."""
  place = place if isinstance(place, str) else ""
  parts, folder = PurePosixPath(place), path.parent.resolve()
  inside = parts.name and not parts.is_absolute() and not {"..", "~"} & set(parts.parts)
  if not inside or len(place) > NAME_LIMIT or {*place} & {*"\\:"} or not place.isprintable():
    raise UnsafeFile(f"{what} is said to be in {short(place)}, outside its folder; refused")
  other = (folder / parts).resolve()
  if not other.is_relative_to(folder):
    raise UnsafeFile(f"{what} is said to be in {short(place)}, a link out of it; refused")
  if not other.is_file():
    raise UnsafeFile(f"{what} is in {short(place)}, which is not beside {path.name}")
  return other


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
  """Puts the file's name before every refusal."""
  try:
    yield
  except UnsafeFile as error:
    raise UnsafeFile(f"cannot read {path}: {error}") from None


def library(name: str, extra: str):
  """The module of a library that only some formats need. Raises ValueError if it is missing."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f"a file of this format is read by {name}: pip install 'flaxzoo[{extra}]' ({error})"
    ) from None


def json_object(raw: bytes, what: str) -> dict:
  """The JSON object that a file holds as `what`, every key once. Raises UnsafeFile."""
  try:
    table = json.loads(raw.decode(), object_pairs_hook=partial(_unique, what))
  except UnsafeFile:  # a ValueError too, and said already
    raise
  except (ValueError, RecursionError) as error:
    raise UnsafeFile(f"{what} is no JSON ({error}); download it again") from None
  if not isinstance(table, dict):
    raise UnsafeFile(f"{what} must be a JSON object, found {short(table)}")
  return table


def _unique(what: str, pairs: list[tuple]) -> dict:
  table = dict(pairs)
  if len(table) < len(pairs):
    [(name, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
    raise UnsafeFile(f"{what} repeats {short(name)}")
  return table


def view(data: np.ndarray, begin: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """The array that stands at `begin` in mapped bytes; a view, the caller has checked the bounds."""
  return np.ndarray(shape, dtype, buffer=data, offset=begin)


def shaped(raw: np.ndarray, shape: Iterable[int], dtype, what: str) -> np.ndarray:
  """Bytes as the array that a file says they are; a view. Raises UnsafeFile."""
  shape, dtype = checked_shape(shape, what), np.dtype(dtype)
  if math.prod(shape) * dtype.itemsize != raw.nbytes:
    raise UnsafeFile(
      f"{what} of shape {short(shape)} needs {math.prod(shape) * dtype.itemsize} bytes, the file "
      f"has {raw.nbytes}: it was cut off or damaged, download it again"
    )
  return np.ndarray(shape, dtype, buffer=raw) if raw.nbytes else np.zeros(shape, dtype)


def checked_shape(shape: Iterable[int], what: str) -> tuple[int, ...]:
  shape = tuple(shape)
  whole = all(type(n) is int and n >= 0 for n in shape)
  if not whole or len(shape) > RANK_LIMIT or math.prod(n or 1 for n in shape) >= SIZE_LIMIT:
    raise UnsafeFile(f"{what} has the impossible shape {short(shape)}")
  return shape


def gathered(pairs: Iterable[tuple[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
  """{name: array} of a file of `size` bytes; `pairs` may make their arrays one by one.

  Raises:
    UnsafeFile: a name twice, names that are none, arrays that take far more room than the file.
  """
  found, total = {}, 0
  for name, array in pairs:
    if not name or len(name) > NAME_LIMIT or not name.isprintable():
      raise UnsafeFile(f"it holds an array by the name {short(name)}; refused")
    if name in found:
      raise UnsafeFile(f"it holds two arrays by the name {short(name)}; refused")
    total += array.nbytes
    if total > EXPANSION * size + ALLOWANCE:
      raise UnsafeFile(f"its arrays claim {total} bytes and more in a file of {size}; refused")
    found[name] = array
  if not found:
    raise UnsafeFile("it holds no arrays")
  return found


def short(value) -> str:
  """What a file says, fit for a sentence: printable, and not long however it is nested."""
  try:
    text = _SHORT.repr(value)
  except ValueError:  # an integer of thousands of digits
    text = f"a huge {type(value).__name__}"
  text = " ".join(text.split())
  return text if len(text) <= 80 else text[:77] + "..."


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
