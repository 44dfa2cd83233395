"""Caffe's `.caffemodel`: the blobs of each layer, named layer/0, layer/1 in its order.

Weights are [out in h w] and [out in], as torch's. Both forms of the model are read (`layers` before
2014-09, `layer` since), and blobs with a shape or with the four legacy axes. The mean and variance
of a BatchNorm layer are sums; they come divided by their scale factor, the third blob, which is
left out. The scale and bias of such a norm are those of the Scale layer behind it, scale/0 and
scale/1.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import protobuf
from convert.files import UnsafeFile, gathered, shaped, short
from convert.protobuf import BYTES, VARINT, Message

BLOB = {
  1: ("num", "int"), 2: ("channels", "int"), 3: ("height", "int"), 4: ("width", "int"),
  5: ("data", "floats"), 7: ("shape", {1: ("dim", "ints")}), 8: ("double_data", "doubles"),
}  # fmt: skip
LEGACY = ("num", "channels", "height", "width")
LAYER = {1: ("name", "text"), 2: ("type", "text"), 7: ("blobs", BLOB)}
V1_LAYER = {4: ("name", "text"), 5: ("type", "int"), 6: ("blobs", BLOB)}
NET = {2: ("layers", V1_LAYER), 100: ("layer", LAYER)}
INNER_PRODUCT = ("InnerProduct", 14)  # in both forms; `layers` counts its types
SPATIAL = ("Convolution", 4, "Deconvolution", 39)
BATCH_NORM = "BatchNorm"  # only in the later form


def matches(data: np.ndarray, path: Path) -> bool:
  """Field 100 is Caffe's alone; a layer of the older form has its type as a number in field 5."""
  for number, wire, part in protobuf.outline(data):
    if (number, wire) == (100, BYTES):
      return True
    if (number, wire) == (2, BYTES):
      return {(4, BYTES), (5, VARINT)} <= {field[:2] for field in protobuf.outline(part)}
  return False


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every blob of the model, as views. Raises UnsafeFile."""
  net = protobuf.parse(data, NET)
  return gathered(_blobs([*net.all("layers"), *net.all("layer")]), len(data))


def _blobs(layers: list[Message]) -> Iterator[tuple[str, np.ndarray]]:
  for layer in layers:
    name, kind = layer.one("name", ""), layer.one("type")
    blobs = [_blob(f"{name}/{i}", blob, kind, i) for i, blob in enumerate(layer.all("blobs"))]
    if kind == BATCH_NORM and len(blobs) == 3:
      blobs = _averages(name, *blobs)
    for i, blob in enumerate(blobs):
      yield f"{name}/{i}", blob


def _blob(name: str, blob: Message, kind: str | int, index: int) -> np.ndarray:
  field, dtype = ("double_data", "<f8") if blob.all("double_data") else ("data", "<f4")
  numbers = blob.numbers(field, dtype)
  if blob.all("shape"):
    shape = [int(n) for n in blob.one("shape").numbers("dim", np.int64)]
  else:
    shape = [blob.one(axis, 0) for axis in LEGACY]
    if index == 0 and kind in INNER_PRODUCT:
      shape = shape[2:]
    elif index or kind not in SPATIAL:  # one number a channel, in whichever axis
      shape = [len(numbers)]
  return shaped(numbers.view(np.uint8), shape, dtype, f"its blob {short(name)}")


def _averages(name: str, mean: np.ndarray, var: np.ndarray, factor: np.ndarray) -> list[np.ndarray]:
  if factor.size != 1:
    raise UnsafeFile(f"the norm {short(name)} has {factor.size} scale factors, wanted 1")
  factor = factor.reshape(())
  with np.errstate(all="ignore"):
    return [sums / factor if factor else np.zeros_like(sums) for sums in (mean, var)]
