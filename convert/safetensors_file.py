"""safetensors: eight bytes of length, a JSON header, then the arrays without a gap.

Read here by a page of code, because the format's library hands out no memory-mapped numpy arrays.
As strict as the library: every byte of the file belongs to the header or to exactly one array.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.files import UnsafeFile, json_object, mapped, reading, short, view

HEADER_LIMIT = 100_000_000  # bytes; the format's library has the same
RANK_LIMIT = 32
SIZE_LIMIT = 1 << 48  # elements, also of empty arrays, whose other axes numpy multiplies too
DTYPES = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
  "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8",
}  # fmt: skip
METADATA = "__metadata__"


def safetensors(path: Path) -> dict[str, np.ndarray]:
  """Every array of the file, memory-mapped and read-only. Raises UnsafeFile."""
  with reading(path):
    return arrays(mapped(path))


def safetensors_metadata(path: Path) -> dict[str, str]:
  """What the file says of itself, beside its arrays. Raises UnsafeFile."""
  with reading(path):
    text = _header(mapped(path))[0].get(METADATA, {})
    if not isinstance(text, dict) or not all(isinstance(v, str) for v in text.values()):
      raise UnsafeFile(f"{METADATA} of its header must be texts by name, found {short(text)}")
    return text


def arrays(data: np.ndarray, _=None) -> dict[str, np.ndarray]:
  """The same of mapped bytes."""
  header, start = _header(data)
  header.pop(METADATA, None)
  spans = {name: _span(name, row) for name, row in header.items()}
  _check_cover(spans, len(data) - start)
  return {
    name: view(data, start + begin, shape, dtype)
    for name, (begin, _, shape, dtype) in spans.items()
  }


def matches(data: np.ndarray, _=None) -> bool:
  return len(data) >= 10 and data[8] == ord("{") and _header_size(data) <= len(data) - 8


def _header_size(data: np.ndarray) -> int:
  return int.from_bytes(data[:8].tobytes(), "little")


def _header(data: np.ndarray) -> tuple[dict, int]:
  """(the JSON header, where the arrays begin)."""
  if len(data) < 10:
    raise UnsafeFile(f"a safetensors file has at least 10 bytes, this one {len(data)}")
  size = _header_size(data)
  if size > min(HEADER_LIMIT, len(data) - 8):
    raise UnsafeFile(
      f"its header claims {size} bytes, the file has {len(data)}: "
      "it was cut off or is no safetensors file; download it again"
    )
  header = json_object(data[8 : 8 + size].tobytes(), "its header")
  return header, 8 + size


def _span(name: str, row) -> tuple[int, int, tuple[int, ...], np.dtype]:
  """(begin, end, shape, dtype) of one row of the header."""
  try:
    (begin, end), shape, dtype = row["data_offsets"], list(row["shape"]), row["dtype"]
  except (TypeError, KeyError, ValueError):
    raise UnsafeFile(
      f"{name!r} needs dtype, shape and two data_offsets, found {short(row)}"
    ) from None
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise UnsafeFile(f"{name!r} is of type {short(dtype)}; known are {', '.join(DTYPES)}")
  whole = all(type(n) is int and n >= 0 for n in (begin, end, *shape))
  if not whole or len(shape) > RANK_LIMIT or math.prod(n or 1 for n in shape) >= SIZE_LIMIT:
    raise UnsafeFile(f"{name!r} has an impossible shape or place: {short(row)}")
  dtype = np.dtype(DTYPES[dtype])
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise UnsafeFile(
      f"{name!r} of shape {short(shape)} needs {math.prod(shape) * dtype.itemsize} bytes, "
      f"its header gives it {end - begin}"
    )
  return begin, end, tuple(shape), dtype


def _check_cover(spans: dict, size: int) -> None:
  """Raises unless the arrays fill the file without a gap or an overlap."""
  at = 0
  for name, (begin, end, _, _) in sorted(spans.items(), key=lambda s: s[1][:2]):
    if begin != at:
      raise UnsafeFile(f"{name!r} begins at byte {begin} of the arrays, wanted {at}")
    at = end
  if at != size:
    raise UnsafeFile(
      f"its arrays take {at} bytes, the file holds {size}: it was cut off or something was "
      "appended; download it again"
    )
