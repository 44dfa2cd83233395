"""NumPy's own files: `.npy`, one array behind a short header, and `.npz`, a zip of those.

Arrays stay memory-mapped unless the zip compresses them. Arrays of objects are pickles and are
refused.
"""

import math
from pathlib import Path
import re

import numpy as np

from convert import zip_file
from convert.files import UnsafeFile, short, view
from convert.plain_objects import NUMERIC, shape_of

MAGIC = b"\x93NUMPY"
HEADER = re.compile(  # as numpy writes it; types in brackets are structures
  r"\{'descr': (?:'(?P<descr>[^']*)'|\[.*\]), 'fortran_order': (?P<order>True|False), "
  r"'shape': \((?P<shape>[\dL, ]*)\),? *\} *\n"
)
HEADER_LIMIT = 10_000  # bytes; numpy's own
SIZES = {1: 2, 2: 4, 3: 4}  # version -> bytes of the header's length
END = ".npy"


def matches(data: np.ndarray, _=None) -> bool:
  return data[: len(MAGIC)].tobytes() == MAGIC or is_npz(data)


def is_npz(data: np.ndarray) -> bool:
  names = zip_file.names(data) if zip_file.looks_like_zip(data) else []
  return bool(names) and all(name.endswith(END) for name in names)


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every array by its name in the archive; a lone one by the file's. Raises UnsafeFile."""
  if not zip_file.looks_like_zip(data):
    return {path.stem: array(data, path.stem)}
  members = zip_file.unpacked(data)
  return {name.removesuffix(END): array(part, name) for name, part in members.items()}


def array(data: np.ndarray, name: str) -> np.ndarray:
  """The array of a `.npy`, as a view on its bytes."""
  shape, fortran, descr, begin = _header(data, name)
  if not NUMERIC.fullmatch(descr):
    raise UnsafeFile(f"{short(name)} is of type {short(descr)}, no number; save numbers alone")
  dtype = np.dtype(descr)
  if math.prod(shape) * dtype.itemsize != len(data) - begin:
    raise UnsafeFile(
      f"{short(name)} of shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes, the file "
      f"has {len(data) - begin}; it was cut off or damaged, download it again"
    )
  made = view(data, begin, shape[::-1] if fortran else shape, dtype)
  made = made.transpose() if fortran else made
  return made.astype(dtype.newbyteorder("="), copy=False)


def _header(data: np.ndarray, name: str) -> tuple[tuple[int, ...], bool, str, int]:
  """(shape, Fortran's order, type, where the numbers begin)."""
  at = len(MAGIC) + 2
  width = SIZES.get(int(data[at - 2]), 0) if len(data) > at else 0
  begin = at + width + int.from_bytes(data[at : at + width].tobytes(), "little")
  text = data[at + width : begin].tobytes().decode("latin-1") if begin - at < HEADER_LIMIT else ""
  found = HEADER.fullmatch(text)
  if data[: len(MAGIC)].tobytes() != MAGIC or not found or begin > len(data):
    raise UnsafeFile(f"the header of {short(name)} is none of NumPy; download it again")
  numbers = [n.strip().rstrip("L") for n in found["shape"].split(",") if n.strip()]
  if not all(n.isdecimal() and len(n) < 20 for n in numbers):
    raise UnsafeFile(f"{short(name)} has the shape {short(found['shape'])}; refused")
  shape = shape_of([int(n) for n in numbers])
  return shape, found["order"] == "True", found["descr"] or "a structure", begin
