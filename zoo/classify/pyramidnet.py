"""PyramidNet: residual networks whose every block is a little wider than the one before.

Han et al. 2016, arXiv:1610.02915.  A block begins with a norm alone and ends with one; its shortcut
is pooled where it strides and filled up with channels of zeros.  Submodules carry torchvision's
names of ResNet; the last norm is `norm`.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Weights


class Block(nn.Module):
  """shortcut(x) + residual(x), [b h w c] -> [b h/stride w/stride out], rounding sizes up."""

  width: int
  stride: int = 1
  bottleneck: bool = True  # 1x1, 3x3, 1x1 with 4x expansion; else 3x3, 3x3
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    conv, norm = n.conv, partial(n.norm, train)
    y = norm(name="bn1")(x)
    if self.bottleneck:
      y = norm(name="bn2")(conv(self.width, name="conv1")(y))
      y = norm(name="bn3")(conv(self.width, 3, self.stride, name="conv2")(n.act(y)))
      y = norm(name="bn4")(conv(4 * self.width, name="conv3")(n.act(y)))
    else:
      y = norm(name="bn2")(conv(self.width, 3, self.stride, name="conv1")(y))
      y = norm(name="bn3")(conv(self.width, 3, name="conv2")(n.act(y)))
    if self.stride > 1:
      x = n.avg_pool(x, 2, self.stride, padding=0, ceil=True)
    return n.materialized(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1]))) + y)


class PyramidNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  Stages end in plain sums; what follows normalises them.
  """

  depths: tuple[int, ...]
  widening: int  # of the widths, before expansion, over the whole net: the paper's alpha
  num_classes: int | None = 1000
  block: partial = partial(Block)
  dropout: float = 0.0  # before the head; 200-a450 was trained with 0.5
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, count = self.numerics, {}, 0
    x = ends["stem"] = n.act(n.norm(train, name="bn1")(n.conv(64, 7, 2, name="conv1")(image)))
    x = n.max_pool(x, 3, 2)
    for s, depth in enumerate(self.depths, start=1):
      for i in range(depth):
        count += 1
        width = round(64 + self.widening * count / sum(self.depths))
        stride = 2 if s > 1 and i == 0 else 1
        x = self.block(width, stride, numerics=n, name=f"layer{s}_{i}")(x, train=train)
      ends[f"stage{s}"] = x
    x = n.act(n.norm(train, name="norm")(x))
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


VARIANTS = {
  "pyramidnet101_a360": partial(PyramidNet, (3, 4, 23, 3), 360),
  "pyramidnet200_a300": partial(PyramidNet, (3, 24, 36, 3), 300),
  "pyramidnet200_a450": partial(PyramidNet, (3, 24, 36, 3), 450),
}
STAGES = ("conv1|bn1", "layer1_.*", "layer2_.*", "layer3_.*", "layer4_.*|norm", "fc")
WEIGHTS = {
  "pyramidnet101_a360.pcv": Weights(
    "pyramidnet101_a360", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/"
    "v0.0.507/pyramidnet101_a360-0543-7f1747f8.pth.zip",
    "", "not stated", top1=79.47, top5=94.57,
  ),
}  # fmt: skip
