"""Kernels laid out once, as a CPU multiplies them fastest, instead of in every call.

Of a network whose kernels stay as they are. A packed kernel is a dictionary with one entry, whose
name says the layout: {"tiles": 16 x [c f]}, Winograd's of a 3x3 kernel, 36 of one of 5x5, or
{"turned": [f c]}, of 1x1 kernels and dense layers with many weights and few pixels. bench/speed.md,
"Packed kernels", has the measurements behind the limits below.
"""

from collections.abc import Iterable, Mapping
import math
from typing import Any

import jax
from jax import lax

from zoo.ops import conv as ops
from zoo.ops import forms, winograd
from zoo.ops.materialized import materialized

# Weights from which on tiles are the faster, and pixels of a map up to which.
TILED, LARGE = 9 * 2048, 112 * 112
# Pixels up to which, and multiplications from which on, the products of a 3x3 kernel are at once.
TOGETHER, WORK = 784, 3 * 2**19
# Weights from which on a kernel is turned, and pixels of all maps up to which.
MANY, FEW = 2**18, 400


def layout(calls: Iterable[forms.Layer], batch: int) -> str | None:
  """The one that makes each call of a layer faster on a CPU, "tiles" or "turned", or None.

  `calls` are of one image, `batch` so many are computed at once.
  """
  [found, *others] = {_layout(layer, batch) for layer in calls}
  return None if others else found


def _layout(layer, batch):
  b, h, w, _ = layer.y
  weights = math.prod(layer.kernel)
  if layer.tileable:
    return "tiles" if weights >= TILED and h * w <= LARGE else None
  few = weights >= MANY and batch * b * h * w <= FEW
  one = layer.kernel[:2] == (1, 1) and layer.groups == 1
  return "turned" if one and few and layer.dtype.itemsize >= 4 else None


def pack(kernel: Any, layout: str) -> dict[str, Any]:
  """Of a kernel [3 3 c f] or [5 5 c f] for "tiles", of [1 1 c f] or [c f] for "turned"."""
  if layout == "tiles":
    return {"tiles": tuple(winograd.kernel(forms.rows_of_taps(kernel)))}
  return {"turned": kernel.reshape(kernel.shape[-2:]).T}


def is_packed(kernel: Any) -> bool:
  return isinstance(kernel, Mapping)


def conv(x: jax.Array, kernel: Mapping[str, Any], layer: forms.Layer) -> jax.Array:
  """`zoo.ops.conv.conv` of that layer, with its packed kernel."""
  if "tiles" in kernel:
    return forms.of_tiles(materialized(x), kernel["tiles"], _by_eigen, layer, _at_once(layer))
  x = forms.every(forms.pad(x, layer.pads, 0), layer.stride)
  return dense(x, kernel)


def _at_once(layer):
  pixels = math.prod(layer.tiling)
  small = pixels <= TOGETHER and layer.kernel[0] == 3
  return small and pixels * math.prod(layer.kernel[2:]) >= WORK


def dense(x: jax.Array, kernel: Mapping[str, Any]) -> jax.Array:
  """[... c] times a turned kernel: [... f]."""
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel["turned"], (((1,), (1,)), ((), ())))
  return y.reshape(*x.shape[:-1], -1)


def _by_eigen(x, kernel):
  """[pixels c] times [c f]: XLA makes a product of a convolution after YNNPACK took its own."""
  return ops.conv(x[None, None], kernel[None, None], plain=True)[0, 0]
