"""Aligned Xception 41, 65 and 71.  Chen et al. 2018, arXiv:1802.02611 (DeepLabv3+).

Chollet's Xception (arXiv:1610.02357) with more blocks, strided convolutions where it pools, and a
batch norm behind every depthwise convolution. Submodules carry timm's names.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import ConvNorm, DropPath, Numerics, dilate
from zoo.weights import Preprocess, Weights


class Separable(nn.Module):
  """A 3x3 for each channel, then a 1x1, a norm behind each: [b h w c] -> [b h/stride w/stride f].

  With `activate`, an activation behind each norm.
  """

  features: int
  stride: int = 1
  dilation: int = 1
  activate: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, norm = self.numerics, partial(self.numerics.norm, train)
    act = n.act if self.activate else lambda x: x
    x = n.conv(
      x.shape[-1], 3, self.stride, dilation=self.dilation, groups=x.shape[-1], name="conv_dw"
    )(x)
    x = n.conv(self.features, name="conv_pw")(act(norm(name="bn_dw")(x)))
    return act(norm(name="bn_pw")(x))


class Block(nn.Module):
  """shortcut(x) + three separable convolutions: [b h w c] -> [b h/stride w/stride widths[-1]].

  They act before each convolution; the last block acts behind each norm and has no shortcut.
  """

  widths: tuple[int, int, int]
  stride: int = 1
  dilation: int = 1
  last: bool = False
  drop_path: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, y = self.numerics, x
    for i, (width, stride) in enumerate(zip(self.widths, (1, 1, self.stride)), start=1):
      y = y if self.last else n.act(y)
      y = Separable(width, stride, self.dilation, self.last, n, name=f"conv{i}")(y, train=train)
    if self.last:
      return y
    if self.stride > 1 or x.shape[-1] != y.shape[-1]:
      x = n.conv(y.shape[-1], 1, self.stride, name="shortcut_conv")(x)
      x = n.norm(train, name="shortcut_bn")(x)
    return x + DropPath(self.drop_path)(y, train=train)


class XceptionAligned(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  entry: tuple[tuple[int, int], ...] = ((128, 2), (256, 2), (728, 2))  # width, stride of blocks
  depth: int = 8  # blocks of the middle flow
  num_classes: int | None = 1000
  output_stride: int = 32  # 8 or 16: later stages dilate instead of striding
  dropout: float = 0.0
  drop_path: float = 0.0  # of the last block; the first has none
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = ConvNorm(32, 3, 2, numerics=n, name="stem_0")(image, train=train)
    x = ends["stem"] = ConvNorm(64, 3, numerics=n, name="stem_1")(x, train=train)
    blocks = [((width,) * 3, stride) for width, stride in self.entry]
    blocks += [((728,) * 3, 1)] * self.depth + [((728, 1024, 1024), 2), ((1536, 1536, 2048), 1)]
    plan = dilate([stride for _, stride in blocks], self.output_stride, 2)
    stage = 0
    for i, ((widths, asked), (stride, dilation, _)) in enumerate(zip(blocks, plan)):
      rate = self.drop_path * i / (len(blocks) - 1)
      block = Block(widths, stride, dilation, i == len(blocks) - 1, rate, n, name=f"blocks_{i}")
      x = block(x, train=train)
      stage += asked > 1
      ends[f"stage{stage}"] = x  # of the stage's last block
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


DEEP_ENTRY = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
net = partial(XceptionAligned, numerics=Numerics(eps=1e-3))
VARIANTS = {
  "xception41": partial(net),
  "xception65": partial(net, depth=16),
  "xception71": partial(net, DEEP_ENTRY, depth=16),
}


def _stages(entry: int, depth: int) -> tuple[str, ...]:
  """By the number of blocks before the middle flow, of which the first and the last are wider."""
  middle = "|".join(f"blocks_{i}" for i in range(entry - 1, entry + depth))
  second = "|".join(f"blocks_{i}" for i in range(1, entry - 1))
  exit = "|".join(f"blocks_{entry + depth + i}" for i in range(2))
  return ("stem_[01]", "blocks_0", second, middle, exit, "fc")


STAGES = {
  "xception41": _stages(3, 8), "xception65": _stages(3, 16), "xception71": _stages(5, 16),
}  # fmt: skip
PIXELS = Preprocess(299, 331, (0.5,) * 3, (0.5,) * 3, "bicubic")
RA3_PIXELS = Preprocess(299, 318, (0.5,) * 3, (0.5,) * 3, "bicubic")
WEIGHTS = {
  f"{variant}.{tag}": Weights(
    variant, "timm", f"hf:timm/{variant}.{tag}/model.safetensors", "", "Apache-2.0", pixels, *tops
  )
  for variant, tag, pixels, *tops in (
    ("xception41", "tf_in1k", PIXELS, 78.550, 94.282),
    ("xception65", "tf_in1k", PIXELS, 79.558, 94.656),
    ("xception65", "ra3_in1k", RA3_PIXELS, 83.186, 96.596),
    ("xception71", "tf_in1k", PIXELS, 79.920, 94.908),
  )
}
