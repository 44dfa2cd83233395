"""PolyNet: Inception-ResNet blocks composed to polynomials.

Zhang et al. 2016, arXiv:1611.05725.  "Very Deep PolyNet" as the authors released it; submodules
carry the names of Cadene's port.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights

Kernel = int | tuple[int, int]
Path = tuple[tuple, ...]  # of (features, kernel, stride, padding), the last two at will


class ConvNorm(nn.Module):
  """relu(norm(conv(x))), [b h w c] -> [b h' w' features]."""

  features: int
  kernel: Kernel = 1
  stride: int = 1
  padding: int | None = None
  active: bool = True
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.conv(self.features, self.kernel, self.stride, padding=self.padding, name="conv")(x)
    x = n.norm(train, name="bn")(x)
    return n.act(x) if self.active else x


def walk(x, path: Path, name: str, numerics: Numerics, train: bool):
  """`x` through a path's convolutions, named `name` alone or name_0, name_1 ..."""
  for i, fields in enumerate(path):
    part = f"{name}_{i}" if len(path) > 1 else name
    x = ConvNorm(*fields, numerics=numerics, name=part)(x, train=train)
  return x


class Stem(nn.Module):
  """[b h w c] -> the maps at strides 2, 4 and 8, the last [b h/8 w/8 384]."""

  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics

    def go(x, name, *path):
      return walk(x, path, name, n, train)

    def halve(x, name, features):
      pooled = n.max_pool(x, 3, 2, padding=0)
      return jnp.concatenate([pooled, go(x, name, (features, 3, 2, 0))], -1)

    half = go(x, "conv1", (32, 3, 2, 0), (32, 3, 1, 0), (64, 3))
    x = halve(half, "conv1_branch", 96)
    short = go(x, "conv2_short", (64,), (96, 3, 1, 0))
    long = go(x, "conv2_long", (64,), (64, (7, 1)), (64, (1, 7)), (96, 3, 1, 0))
    quarter = jnp.concatenate([short, long], -1)
    return half, quarter, halve(quarter, "conv2_branch", 192)


class Inception(nn.Module):
  """Paths side by side, then a 1x1 back to the input's channels, without activation."""

  paths: tuple[Path, ...]
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    y = [walk(x, path, f"path{i}", n, train) for i, path in enumerate(self.paths)]
    y = jnp.concatenate(y, -1)
    return ConvNorm(x.shape[-1], active=False, numerics=n, name="conv2d")(y, train=train)


class MultiWay(nn.Module):
  """relu(x + scale * (F(x) + G(x))): the paper's 2-way."""

  paths: tuple[Path, ...]
  scale: float
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    y = x
    for i in range(2):
      block = Inception(self.paths, self.numerics, name=f"blocks_{i}")
      y = y + self.scale * block(x, train=train)
    return self.numerics.materialized(self.numerics.act(y))


class SharedConv(nn.Module):
  """relu(norm(conv(x))) with one convolution and a norm for each order."""

  features: int
  kernel: Kernel = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, order: int, *, train: bool):
    n = self.numerics
    x = n.conv(self.features, self.kernel, name="conv")(x)
    return n.act(n.norm(train, name=f"bn_blocks_{order}")(x))


class Poly(nn.Module):
  """relu(x + scale * (F(x) + G(F(x)) + H(G(F(x))))): the paper's poly-3.

  F, G and H share the convolutions of their paths and are active between one another.
  """

  paths: tuple[Path, ...]
  scale: float
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, ((a, b, c), (d,)) = self.numerics, self.paths
    shared = partial(SharedConv, numerics=n)

    def named(fields):
      features, kernel = fields
      return shared(features, kernel, name=f"path0_{kernel[0]}x{kernel[1]}")

    first = shared(*a, name="path0_1x1")
    second, third = named(b), named(c)
    other = shared(*d, name="path1")
    total, channels = x, x.shape[-1]
    for order in range(3):
      y = third(second(first(x, order, train=train), order, train=train), order, train=train)
      y = jnp.concatenate([y, other(x, order, train=train)], -1)
      last = ConvNorm(channels, active=False, numerics=n, name=f"conv2d_blocks_{order}")
      x = last(y, train=train)
      total = total + self.scale * x
      x = n.act(x)
    return n.materialized(n.act(total))


class Reduction(nn.Module):
  """Strided paths and a pool side by side, [b h w c] -> [b (h-1)/2 (w-1)/2 more]."""

  paths: tuple[Path, ...]
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    y = [walk(x, path, f"path{i}", n, train) for i, path in enumerate(self.paths)]
    return jnp.concatenate([*y, n.max_pool(x, 3, 2, padding=0)], -1)


A: tuple[Path, ...] = (((32,), (48, 3), (64, 3)), ((32,), (32, 3)), ((32,),))
B: tuple[Path, ...] = (((128,), (160, (1, 7)), (192, (7, 1))), ((192,),))
C: tuple[Path, ...] = (((192,), (224, (1, 3)), (256, (3, 1))), ((192,),))
REDUCE_A: tuple[Path, ...] = (((256,), (256, 3), (384, 3, 2, 0)), ((384, 3, 2, 0),))
REDUCE_B: tuple[Path, ...] = (
  ((256,), (256, 3), (256, 3, 2, 0)), ((256,), (256, 3, 2, 0)), ((256,), (384, 3, 2, 0)),
)  # fmt: skip


class PolyNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  depths: tuple[int, int, int] = (10, 20, 10)  # stage B and C: poly-3 and 2-way in turn
  num_classes: int | None = 1000
  dropout: float = 0.0  # before the head; the authors trained with 0.2
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, count = self.numerics, {}, 0
    ends["stem"], ends["stage1"], x = Stem(n, name="stem")(image, train=train)
    reductions = {"b": ("reduction_a", REDUCE_A), "c": ("reduction_b", REDUCE_B)}
    for s, (stage, paths, depth) in enumerate(zip("abc", (A, B, C), self.depths), start=2):
      if stage in reductions:
        name, strided = reductions[stage]
        x = Reduction(strided, n, name=name)(x, train=train)
      for i in range(depth):
        scale = 1 - 0.3 * count / (sum(self.depths) - 1)  # 1 at the first block, 0.7 at the last
        kind = Poly if stage != "a" and i % 2 == 0 else MultiWay
        x = kind(paths, scale, n, name=f"stage_{stage}_{i}")(x, train=train)
        count += 1
      ends[f"stage{s}"] = x
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="last_linear")(x)
    return ends


VARIANTS = {"polynet": PolyNet}
STAGES = (
  "stem", "stage_a_.*", "reduction_a|stage_b_.*", "reduction_b|stage_c_.*", "last_linear",
)  # fmt: skip
PIXELS = Preprocess(331, 378, squash=True)
WEIGHTS = {
  "polynet.cad": Weights(
    "polynet", "cadene", "https://data.lip6.fr/cadene/pretrainedmodels/polynet-f71d82a5.pth",
    "f71d82a5", "not stated", PIXELS, top1=81.002, top5=95.624,
  ),
  "polynet.pcv": Weights(
    "polynet", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.96/polynet-0452-6a1b295d.pth.zip",
    "", "not stated", Preprocess(331, 378), top1=80.9, top5=95.48,
  ),
}  # fmt: skip
