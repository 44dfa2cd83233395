"""HDF5: the structure by the library made for it (in a process of its own), the arrays by numpy.

What is stored plainly stays memory-mapped. Compressed arrays are unpacked here, piece by piece and
never beyond their declared size, because the library unpacks a piece to whatever size it has.
"""

import base64
import json
import math
from pathlib import Path
import subprocess
import sys
import tempfile
import zlib

import numpy as np

from convert import hdf5_index, state_dict
from convert.files import UnsafeFile, library, short, view
from convert.plain_objects import NUMERIC, shape_of

SIGN = b"\x89HDF\r\n\x1a\n"
SECONDS = 60
DEFLATE, SHUFFLE, FLETCHER = 1, 2, 3  # filters
CHECKSUM = 4  # bytes that FLETCHER appends
AGAIN = "it was cut off or damaged; download it again"

Index = tuple[dict[str, dict[str, list[str]]], dict[str, np.ndarray]]


def looks_like_hdf5(data: np.ndarray) -> bool:
  """The sign stands at the beginning or, behind a user block, at 512, 1024 ..."""
  places = [0, *(512 << i for i in range(8))]
  return any(data[at : at + 8].tobytes() == SIGN for at in places)


def contents(data: np.ndarray, path: Path, begin: int = 0) -> Index:
  """({group: {attribute: names}}, {path in the file: array}) in the file's own order.

  Args:
    data: the bytes of the HDF5 file.
    path: where they stand on disk, from byte `begin` on; with `begin` -1 they stand nowhere.
  """
  library("h5py", "keras")
  if begin >= 0:
    table = _index(path, begin, len(data))
  else:
    with tempfile.NamedTemporaryFile(suffix=".h5") as copy:
      copy.write(data)
      copy.flush()
      table = _index(Path(copy.name), 0, len(data))
  if "refused" in table:
    raise UnsafeFile(f"{short(table['refused'])}; refused or {AGAIN}")
  rows = [row for row in table["datasets"] if row["kind"] != "other"]
  _check_total(rows, len(data))
  return table["groups"], {row["path"]: _array(data, row) for row in rows}


def _index(path: Path, begin: int, size: int) -> dict:
  command = [sys.executable, "-P", hdf5_index.__file__, str(path.absolute()), str(begin), str(size)]
  try:
    ran = subprocess.run(command, capture_output=True, timeout=SECONDS)
  except subprocess.TimeoutExpired:
    raise UnsafeFile(f"the HDF5 library does not come to an end with it; {AGAIN}") from None
  try:
    return json.loads(ran.stdout)
  except ValueError:
    raise UnsafeFile(f"the HDF5 library fails on it (status {ran.returncode}); {AGAIN}") from None


def _check_total(rows: list[dict], size: int) -> None:
  """Refuses arrays that grow by more than weights can when they are unpacked."""
  total = 0
  for row in rows:
    if not NUMERIC.fullmatch(row["dtype"]):
      raise UnsafeFile(f"{short(row['path'])} is of type {short(row['dtype'])}; refused")
    total += math.prod(shape_of(row["shape"])) * np.dtype(row["dtype"]).itemsize
  if total > state_dict.EXPANSION * size + state_dict.ALLOWANCE:
    raise UnsafeFile(f"its arrays claim {total} bytes in a file of {size}; refused")


def _array(data: np.ndarray, row: dict) -> np.ndarray:
  shape, dtype = shape_of(row["shape"]), np.dtype(row["dtype"])
  size = math.prod(shape) * dtype.itemsize
  if not size:
    made = np.zeros(shape, dtype)
  elif row["kind"] == "inline":
    made = np.frombuffer(base64.b64decode(row["data"]), dtype).reshape(shape)
  elif row["kind"] == "plain":
    if row["offset"] + size > len(data):
      raise UnsafeFile(f"{short(row['path'])} is longer than its file; {AGAIN}")
    made = view(data, row["offset"], shape, dtype)
  elif row["kind"] == "chunks":
    made = _joined(data, row, shape, dtype)
  else:
    raise UnsafeFile(f"the values of {short(row['path'])} were never written")
  return made.astype(dtype.newbyteorder("="), copy=False)


def _joined(data: np.ndarray, row: dict, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array that is stored in pieces of one shape, the last of each axis partly outside."""
  piece = shape_of(row["chunk"])
  wanted = math.prod(-(-n // p) for n, p in zip(shape, piece, strict=True))
  places = {tuple(at) for at, *_ in row["chunks"]}
  if len(places) != wanted or any(n % p for at in places for n, p in zip(at, piece)):
    raise UnsafeFile(f"{short(row['path'])} has {len(places)} of {wanted} pieces; {AGAIN}")
  made = np.empty(shape, dtype)
  # A piece may be larger than the array; an allowance keeps that within reason.
  if math.prod(piece) * dtype.itemsize > 4 * made.nbytes + (1 << 20):
    raise UnsafeFile(f"{short(row['path'])} is cut into pieces far larger than itself; refused")
  for at, begin, size, mask in row["chunks"]:
    if begin + size > len(data):
      raise UnsafeFile(f"a piece of {short(row['path'])} is not in the file; {AGAIN}")
    values = _unfiltered(data[begin : begin + size], row, mask, math.prod(piece), dtype)
    window = tuple(slice(b, b + p) for b, p in zip(at, piece))
    inside = made[window]
    inside[...] = values.reshape(piece)[tuple(map(slice, inside.shape))]
  return made


def _unfiltered(raw, row: dict, mask: int, count: int, dtype: np.dtype) -> np.ndarray:
  """The numbers of a piece; bit i of `mask` says that filter i was left out."""
  size, name = count * dtype.itemsize, short(row["path"])
  for i, (kind, _) in reversed(list(enumerate(row["filters"]))):
    if mask >> i & 1:
      continue
    if kind == FLETCHER:
      raw = raw[:-CHECKSUM]  # not compared: what is damaged fails or shows elsewhere
    elif kind == DEFLATE:
      machine = zlib.decompressobj()
      try:
        raw = np.frombuffer(machine.decompress(raw, size + CHECKSUM), np.uint8)
      except zlib.error as error:
        raise UnsafeFile(f"a piece of {name} cannot be unpacked ({error}); {AGAIN}") from None
      if machine.unconsumed_tail:
        raise UnsafeFile(f"a piece of {name} unpacks to more than its {size} bytes; refused")
    elif kind == SHUFFLE and len(raw) == size:
      raw = np.ascontiguousarray(np.asarray(raw).reshape(dtype.itemsize, -1).transpose()).reshape(
        -1
      )
    elif kind != SHUFFLE:
      raise UnsafeFile(f"{name} is packed by HDF5's filter {kind}; save it without or with gzip")
  if len(raw) != size:
    raise UnsafeFile(f"a piece of {name} has {len(raw)} bytes, wanted {size}; {AGAIN}")
  return np.frombuffer(np.ascontiguousarray(raw), dtype)
