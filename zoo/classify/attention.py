"""Residual Attention Network: Attention-56 and Attention-92.

Wang et al. 2017, arXiv:1704.06904.  Names, blocks and counts follow the authors' prototxt as
pytorchcv has it; the two differ in the masks' pools: Caffe's have no padding and keep the last,
partly outside, window (`ceil_pool`), pytorchcv's are padded.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.ops.resize import bilinear


class Block(nn.Module):
  """Pre-activation bottleneck, [b h w c] -> [b h/stride w/stride features]."""

  features: int
  stride: int = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, width = self.numerics, self.features // 4

    def pre(i, x):
      return n.act(n.norm(train, name=f"bn{i}")(x))

    active = pre(1, x)
    y = n.conv(width, name="conv1")(active)
    y = n.conv(width, 3, self.stride, name="conv2")(pre(2, y))
    y = n.conv(self.features, name="conv3")(pre(3, y))
    if self.stride > 1 or x.shape[-1] != self.features:
      x = n.conv(self.features, 1, self.stride, name="downsample_0")(active)
    return n.materialized(x + y)


class Attention(nn.Module):
  """(1 + mask) * trunk, [b h w c] -> the same; the mask is an hourglass of `depth` poolings."""

  features: int
  depth: int
  lengths: tuple[int, int, int] = (1, 2, 1)  # blocks before, in the trunk, at each size of the mask
  ceil_pool: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, (before, trunk, inside) = self.numerics, self.lengths

    def blocks(x, name, count):
      for i in range(count):
        x = Block(self.features, numerics=n, name=f"{name}_{i}")(x, train=train)
      return x

    x = blocks(x, "init", before)
    skips, mask = [blocks(x, "skip1", trunk)], x
    sizes = [x.shape[1:3]]
    for d in range(1, self.depth + 1):
      padding = 0 if self.ceil_pool else None
      mask = n.max_pool(mask, 3, 2, padding=padding, ceil=self.ceil_pool)
      mask = blocks(mask, f"down{d}", inside)
      if d < self.depth:
        skips.append(mask + blocks(mask, f"skip{d + 1}", 1))
        sizes.append(mask.shape[1:3])
    for d in range(self.depth, 0, -1):
      mask = bilinear(blocks(mask, f"up{d}", inside), sizes[d - 1], corners=True)
      mask = mask + skips[d - 1]
    for i in (1, 2):
      y = n.act(n.norm(train, name=f"mask_bn{i}")(mask))
      mask = n.conv(self.features, name=f"mask_conv{i}")(y)
    return blocks((1 + jax.nn.sigmoid(mask)) * skips[0], "final", 1)


class AttentionNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  Stages end in plain sums; what follows normalises them.
  """

  attentions: tuple[int, int, int]  # modules in the first three stages
  num_classes: int | None = 1000
  ceil_pool: bool = False  # of the masks' pools, as in the authors' prototxt
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = ends["stem"] = n.act(n.norm(train, name="bn1")(n.conv(64, 7, 2, name="conv1")(image)))
    x = n.max_pool(x, 3, 2)
    for s, count in enumerate((*self.attentions, 0), start=1):
      features = 128 * 2**s
      x = Block(features, 1 if s == 1 else 2, n, name=f"layer{s}_0")(x, train=train)
      for i in range(1, count + 1):
        module = Attention(
          features, 4 - s, ceil_pool=self.ceil_pool, numerics=n, name=f"layer{s}_{i}"
        )
        x = module(x, train=train)
      if count == 0:
        for i in (1, 2):
          x = Block(features, numerics=n, name=f"layer{s}_{i}")(x, train=train)
      ends[f"stage{s}"] = x
    x = n.act(n.norm(train, name="norm")(x))
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


VARIANTS = {
  "attention56": partial(AttentionNet, (1, 1, 1)),
  "attention92": partial(AttentionNet, (1, 2, 3)),
}
STAGES = ("conv1|bn1", "layer1_.*", "layer2_.*", "layer3_.*", "layer4_.*|norm", "fc")
WEIGHTS = {}  # none are published
