"""FCN-32s, 16s and 8s on VGG-16.  Long et al. 2015, arXiv:1411.4038; Shelhamer et al. 2016.

The authors' Caffe nets: the picture is padded by 100 pixels before the first convolution, pools
keep their last window, fc6 and fc7 are convolutions, maps are enlarged by transposed convolutions
that begin as bilinear ones, and offsets found from the geometry cut the maps to each other and
the logits to the picture.  Submodules carry the authors' names.
"""

from collections.abc import Mapping
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers import Numerics

# Pixels that the authors' prototxt files cut off, top and left.
CUTS = {"upscore": 19, "score_pool4": 5, "upscore16": 27, "score_pool3": 9, "upscore8": 31}


class FCN(nn.Module):
  """[b h w c] -> "stage1".."stage5", "features" (fc7) and "logits" [b h w classes]."""

  stride: int = 8  # of the finest scores: 32, 16 or 8
  num_classes: int | None = 21
  depths: tuple[int, ...] = (2, 2, 3, 3, 3)
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  hidden: int = 4096
  dropout: float = 0.5
  # What pool4 and pool3 are multiplied by: in the nets trained all at once 0.01 and 0.0001.
  scales: tuple[float, float] = (1.0, 1.0)
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, x = self.numerics, {}, image
    for s, (depth, width) in enumerate(zip(self.depths, self.widths), start=1):
      for i in range(1, depth + 1):
        padding = 100 if (s, i) == (1, 1) else 1
        x = n.act(n.conv(width, 3, padding=padding, bias=True, name=f"conv{s}_{i}")(x))
      x = ends[f"stage{s}"] = n.max_pool(x, 2, 2, padding=0, ceil=True)
    for name, kernel in (("fc6", 7), ("fc7", 1)):
      x = n.act(n.conv(self.hidden, kernel, padding=0, bias=True, name=name)(x))
      x = nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(x)
    ends["features"] = x
    if self.num_classes is not None:
      ends["logits"] = self._scores(ends, image.shape[1:3])
    return ends

  def _scores(self, ends, size):
    """[b *size classes]: scores of fc7, joined by those of the pools on the way up."""
    n, classes = self.numerics, self.num_classes

    def enlarge(x, stride, name):
      return n.deconv(classes, 2 * stride, stride, bias=False, init=_bilinear, name=name)(x)

    x = n.conv(classes, bias=True, name="score_fr")(ends["features"])
    if self.stride == 32:
      return _cut(enlarge(x, 32, "upscore"), CUTS["upscore"], size)
    x = enlarge(x, 2, "upscore2")
    for place, (pool, scale) in enumerate(zip(("pool4", "pool3"), self.scales)):
      y = ends[f"stage{pool[-1]}"] * scale
      y = n.conv(classes, bias=True, name=f"score_{pool}")(y)
      x = x + _cut(y, CUTS[f"score_{pool}"], x.shape[1:3])
      if self.stride == (16, 8)[place]:
        name = f"upscore{self.stride}"
        return _cut(enlarge(x, self.stride, name), CUTS[name], size)
      x = enlarge(x, 2, f"upscore_{pool}")
    raise ValueError(f"an FCN has a stride of 32, 16 or 8, not {self.stride}")


def _bilinear(key, shape, dtype=jnp.float32):
  """[k k c c]: each channel by itself, a tent over 2 * stride pixels."""
  del key
  ramp = 1 - abs((np.arange(shape[0]) + 0.5) / (shape[0] / 2) - 1)
  tent = np.outer(ramp, ramp)[:, :, None, None] * np.eye(*shape[2:])
  return jnp.asarray(tent, dtype)


def _cut(x, offset: int, size):
  return x[:, offset : offset + size[0], offset : offset + size[1]]


def transplant(vgg: Mapping, fresh: Mapping) -> dict:
  """The authors' surgery: `fresh` variables of an FCN with those of a VGG-16 where both have them.

  fc6 and fc7 are the same arrays in other shapes; the scores and what enlarges them stay fresh.
  """
  params = dict(fresh["params"])
  for name in params.keys() & vgg["params"].keys():
    params[name] = jax.tree.map(lambda new, old: jnp.reshape(old, new.shape), params[name],
                                vgg["params"][name])  # fmt: skip
  return {**fresh, "params": params}


VARIANTS = {f"fcn{stride}s_vgg16": partial(FCN, stride) for stride in (32, 16, 8)}
STAGES = (*(f"conv{s}_.*" for s in range(1, 6)), "fc6|fc7", "score.*|upscore.*")
WEIGHTS = {}
