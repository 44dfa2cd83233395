"""TensorFlow.js: `model.json` with a manifest of weights, whose bytes lie in shards beside it.

Names and layouts are Keras's or the graph's, whichever the model was made of. Weights stored as
uint8 or uint16 come as float32, scale * q + min; float16 as it is.
"""

from collections.abc import Iterator
import math
from pathlib import Path

import numpy as np

from convert.files import (
  UnsafeFile,
  beside,
  checked_shape,
  gathered,
  json_object,
  mapped,
  shaped,
  short,
)

JSON_LIMIT = 16 << 20  # bytes; the graph stands in it too
SHARD_LIMIT = 1000
SIGN = b'"weightsManifest"'
DTYPES = {
  "float32": "<f4", "int32": "<i4", "bool": "?", "complex64": "<c8", "uint8": "u1",
  "uint16": "<u2", "float16": "<f2",
}  # fmt: skip
QUANTIZED = ("uint8", "uint16")
INDEXES = ("model.json",)


def matches(data: np.ndarray, path: Path) -> bool:
  return data[0] == ord("{") and SIGN in data[:JSON_LIMIT].tobytes()


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every weight of the manifest; views of a shard where it lies in one. Raises UnsafeFile."""
  if len(data) > JSON_LIMIT:
    raise UnsafeFile(f"a model.json of {len(data)} bytes is far longer than any; refused")
  manifest = json_object(data.tobytes(), "its model.json").get("weightsManifest")
  groups = []
  for group in _list(manifest, "its weightsManifest"):
    if not isinstance(group, dict):
      raise UnsafeFile(f"a group of its weightsManifest is {short(group)}")
    places = _list(group.get("paths"), "the paths of a group")
    groups.append((places, _list(group.get("weights"), "the weights of a group")))
  if sum(len(places) for places, _ in groups) > SHARD_LIMIT:
    raise UnsafeFile(f"its manifest names more than {SHARD_LIMIT} shards; refused")
  groups = [([beside(path, p, "a shard") for p in places], rows) for places, rows in groups]
  shards = {place: mapped(place) for places, _ in groups for place in places}
  return gathered(_weights(groups, shards), len(data) + sum(map(len, shards.values())))


def _list(value, what: str) -> list:
  if not isinstance(value, list):
    raise UnsafeFile(f"{what} must be a list, found {short(value)}")
  return value


def _weights(groups: list, shards: dict[Path, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  for places, rows in groups:
    parts = [shards[place] for place in places]
    at, total = 0, sum(map(len, parts))
    for row in rows:
      name, shape, dtype, quantization = _row(row)
      size = math.prod(shape) * np.dtype(dtype).itemsize
      if at + size > total:
        raise UnsafeFile(
          f"{short(name)} ends at byte {at + size} of shards of {total}; download them again"
        )
      array = shaped(_span(parts, at, at + size), shape, dtype, short(name))
      yield name, _dequantized(array, quantization, name)
      at += size
    if at != total:
      raise UnsafeFile(f"its weights take {at} bytes, their shards have {total}; damaged, refused")


def _row(row) -> tuple[str, tuple[int, ...], str, dict]:
  """(name, shape, type as stored, how it was quantised) of a weight."""
  row = row if isinstance(row, dict) else {}
  name, shape, quantization = row.get("name"), row.get("shape"), row.get("quantization", {})
  kind = quantization.get("dtype") if isinstance(quantization, dict) else None
  kind = kind if quantization else row.get("dtype")
  if not isinstance(name, str) or not isinstance(shape, list) or not isinstance(kind, str):
    raise UnsafeFile(f"a weight of its manifest needs name, shape and dtype, found {short(row)}")
  if kind not in DTYPES:
    raise UnsafeFile(f"{short(name)} is of type {short(kind)}; known are {', '.join(DTYPES)}")
  return name, checked_shape(shape, short(name)), DTYPES[kind], quantization


def _span(parts: list[np.ndarray], begin: int, end: int) -> np.ndarray:
  """Bytes of the shards one after the other; a copy only across a border."""
  found = []
  for part in parts:
    if begin < len(part) and end > 0:
      found.append(part[max(begin, 0) : end])
    begin, end = begin - len(part), end - len(part)
  if len(found) == 1:
    return found[0]
  return np.concatenate(found) if found else np.zeros(0, np.uint8)


def _dequantized(array: np.ndarray, quantization: dict, name: str) -> np.ndarray:
  if quantization.get("dtype") not in QUANTIZED:
    return array
  scale, low = quantization.get("scale"), quantization.get("min")
  if not all(type(v) in (int, float) and abs(v) < 1e30 for v in (scale, low)):
    raise UnsafeFile(f"{short(name)} is quantised by {short(quantization)}, wanted scale and min")
  return array.astype(np.float32) * np.float32(scale) + np.float32(low)
