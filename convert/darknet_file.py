"""darknet's `.weights`: a short header, then float32 without names or shapes, layer after layer.

The `.cfg` gives both (`convert.darknet_cfg`); it stands beside the file under the same name. Arrays
are named by the number of their layer in the cfg, in torch's words and layouts:

  0.conv.weight [out in/groups h w]   0.conv.bias, or where batch-normed
  0.bn.weight, 0.bn.bias, 0.bn.running_mean, 0.bn.running_var
  24.fc.weight [out in]   24.fc.bias or 24.bn.*     connected; `in` counts channels first
  24.local.weight [h w out in kh kw]   24.local.bias [out h w]     local
  3.bn.*                                            batchnorm alone, which has no bias

In darknet a norm is (x - mean) / (sqrt(var) + 1e-6): the constant stands outside the root. A file
that ends after a whole layer, such as those of backbones, gives the layers it has.
"""

from collections.abc import Iterator
import math
from pathlib import Path

import numpy as np

from convert import darknet_cfg
from convert.darknet_cfg import Layer
from convert.files import UnsafeFile, view

HEADER = 3  # int32: major, minor, revision; then how many images were seen
SMALLEST = 20  # bytes: the header of either kind and one number
LATER = (0, 2)  # from this version on `seen` takes 8 bytes, before it 4
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def matches(data: np.ndarray, path: Path) -> bool:
  """A version that was ever written, and whole floats behind it."""
  if len(data) < SMALLEST or len(data) % 4:
    return False
  major, minor, revision = view(data, 0, (HEADER,), np.dtype("<i4"))
  return 0 <= major <= 1 and 0 <= minor <= 9 and (major, minor) > (0, 0) and 0 <= revision <= 99


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every array of a `.weights`, as views; its cfg stands beside it. Raises UnsafeFile."""
  cfg = path.with_suffix(".cfg")
  if not cfg.is_file():  # tiny-yolov1.weights belongs to yolov1-tiny.cfg
    others = list(path.parent.glob("*.cfg"))
    cfg = others[0] if len(others) == 1 else cfg
  if not cfg.is_file():
    raise UnsafeFile(f"darknet's weights have neither names nor shapes; put their cfg at {cfg}")
  with open(cfg, encoding="latin-1") as file:
    return named(data, file.read(darknet_cfg.LENGTH_LIMIT + 1))


def named(data: np.ndarray, text: str) -> dict[str, np.ndarray]:
  """Every array of a `.weights`, as views; `text` is its cfg. Raises UnsafeFile."""
  if len(data) < SMALLEST:
    raise UnsafeFile(f"a file of darknet's has at least {SMALLEST} bytes, this one {len(data)}")
  major, minor, _ = view(data, 0, (HEADER,), np.dtype("<i4"))
  at = 4 * HEADER + (8 if (major, minor) >= LATER else 4)
  layers = darknet_cfg.layers(darknet_cfg.parse(text))
  out: dict[str, np.ndarray] = {}
  for layer in darknet_cfg.with_weights(layers):
    shapes = list(_shapes(layer))
    end = at + 4 * sum(math.prod(shape) for _, shape in shapes)
    if at == len(data) and out:  # of a backbone
      break
    if end > len(data):
      raise UnsafeFile(
        f"layer {layer.index} of its cfg ends at byte {end}, the file at {len(data)}: it was cut "
        "off, or belongs to another cfg"
      )
    for name, shape in shapes:
      out[f"{layer.index}.{name}"] = view(data, at, shape, np.dtype("<f4"))
      at += 4 * math.prod(shape)
  if not out:
    raise UnsafeFile("its cfg has no layer with weights")
  if at != len(data):
    raise UnsafeFile(f"its cfg needs {at} bytes, the file has {len(data)}: they do not belong")
  return out


def _shapes(layer: Layer) -> Shapes:
  """Names and shapes of a layer's arrays in the order of the file."""
  section, (c, h, w), (out, *sides) = layer.section, layer.before, layer.after
  size, normed = section.integer("size", 1), section.integer("batch_normalize", 0)
  if size < 1:
    raise UnsafeFile(f"layer {layer.index} of its cfg has size={size}")
  if section.kind == "batchnorm":
    yield from _norm(c)
  elif section.kind == "connected":
    yield "bn.bias" if normed else "fc.bias", (out,)
    yield "fc.weight", (out, c * h * w)
    yield from _norm(out) if normed else ()
  elif section.kind == "local":
    yield "local.bias", (out, *sides)
    yield "local.weight", (*sides, out, c, size, size)
  else:
    groups = section.integer("groups", 1)
    if groups < 1 or c % groups or out % groups:
      raise UnsafeFile(f"layer {layer.index} of its cfg has {groups} groups of {c} channels")
    yield "bn.bias" if normed else "conv.bias", (out,)
    yield from _norm(out) if normed else ()
    yield "conv.weight", (out, c // groups, size, size)


def _norm(channels: int) -> Shapes:
  for name in ("weight", "running_mean", "running_var"):
    yield f"bn.{name}", (channels,)
