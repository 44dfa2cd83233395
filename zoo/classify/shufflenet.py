"""ShuffleNet v1 and v2.

Zhang et al. 2017, arXiv:1707.01083; Ma et al. 2018, arXiv:1807.11164.  As in every known
implementation, the first unit of v1 has no groups in its first 1x1 convolution.  Submodules carry
torchvision's names (v2) and, inside the units of v1, pytorchcv's.  "stage1" is the pooled stem,
"stage4" of v2 what its last 1x1 convolution gives.
"""

from functools import partial
import re

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


def shuffle(x, groups: int):
  """Takes channels in turns from `groups` equal parts, [b h w c] -> [b h w c]."""
  parts = x.reshape(*x.shape[:3], groups, -1)
  return parts.swapaxes(3, 4).reshape(x.shape)


class Unit1(nn.Module):
  """ShuffleNet v1, figure 2: [b h w c] -> [b h/stride w/stride out]."""

  out: int
  stride: int = 1
  first: bool = False  # the network's first: its 1x1 convolution sees few channels, ungrouped
  groups: int = 3
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, inner = self.numerics, self.out // 4
    conv, norm = partial(n.conv, groups=self.groups), partial(n.norm, train)
    # At stride 2 the pooled input is a part of the output.
    out = self.out - x.shape[-1] if self.stride > 1 else self.out
    y = n.conv(inner, groups=1 if self.first else self.groups, name="compress_conv1")(x)
    y = shuffle(n.act(norm(name="compress_bn1")(y)), self.groups)
    y = n.conv(inner, 3, self.stride, groups=inner, name="dw_conv2")(y)
    y = norm(name="expand_bn3")(conv(out, name="expand_conv3")(norm(name="dw_bn2")(y)))
    if self.stride == 1:
      return n.act(x + y)
    return n.act(jnp.concatenate([y, n.avg_pool(x, 3, 2)], axis=-1))


class Unit2(nn.Module):
  """ShuffleNet v2, figure 3: [b h w c] -> [b h/stride w/stride out]."""

  out: int
  stride: int = 1
  first: bool = False
  whole_shortcut: bool = False  # at stride 2 the shortcut keeps c channels instead of out/2
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, inner = self.numerics, self.out // 2
    conv, norm = n.conv, partial(n.norm, train)
    if self.stride == 1:
      x, y = jnp.split(x, 2, axis=-1)
    else:
      x, y = self.shortcut(x, train), x
    y = n.act(norm(name="branch2_1")(conv(inner, name="branch2_0")(y)))
    y = norm(name="branch2_4")(conv(inner, 3, self.stride, groups=inner, name="branch2_3")(y))
    y = conv(self.out - x.shape[-1], name="branch2_5")(y)
    y = n.act(norm(name="branch2_6")(y))
    return shuffle(jnp.concatenate([x, y], axis=-1), 2)

  def shortcut(self, x, train: bool):
    n, c = self.numerics, x.shape[-1]
    x = n.conv(c, 3, self.stride, groups=c, name="branch1_0")(x)
    x = n.conv(c if self.whole_shortcut else self.out // 2, name="branch1_2")(
      n.norm(train, name="branch1_1")(x)
    )
    return n.act(n.norm(train, name="branch1_3")(x))


class ShuffleNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  widths: tuple[int, ...]  # of the three stages
  num_classes: int | None = 1000
  unit: partial = partial(Unit2)
  stem: int = 24
  last: int | None = None  # channels of a 1x1 convolution behind the stages
  ceil_pool: bool = False  # the stem's pool, without padding, keeps windows partly outside
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = n.conv(self.stem, 3, 2, name="conv1_0")(image)
    x = ends["stem"] = n.act(n.norm(train, name="conv1_1")(x))
    padding = 0 if self.ceil_pool else None
    x = ends["stage1"] = n.max_pool(x, 3, 2, padding=padding, ceil=self.ceil_pool)
    for s, (width, depth) in enumerate(zip(self.widths, (4, 8, 4)), start=2):
      for i in range(depth):
        first, stride = s == 2 and i == 0, 2 if i == 0 else 1
        x = self.unit(width, stride, first, numerics=n, name=f"stage{s}_{i}")(x, train=train)
      ends[f"stage{s}"] = x
    if self.last is not None:
      x = n.act(n.norm(train, name="conv5_1")(n.conv(self.last, name="conv5_0")(x)))
      ends["stage4"] = x
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="fc")(ends["pooled"])
    return ends


def v1(groups: int, widths: tuple[int, ...], stem: int = 24) -> partial:
  return partial(ShuffleNet, widths, stem=stem, unit=partial(Unit1, groups=groups))


# fmt: off
VARIANTS = {
  "shufflenet_v2_x0_5": partial(ShuffleNet, (48, 96, 192), last=1024),
  "shufflenet_v2_x1_0": partial(ShuffleNet, (116, 232, 464), last=1024),
  "shufflenet_v2_x1_5": partial(ShuffleNet, (176, 352, 704), last=1024),
  "shufflenet_v2_x2_0": partial(ShuffleNet, (244, 488, 976), last=2048),
  "shufflenetv2b_w1": partial(
    ShuffleNet, (116, 232, 464), last=1024, unit=partial(Unit2, whole_shortcut=True)),
  # Table 1 of the paper; pytorchcv's widths: w is 1, wd2 a half, w3d4 three quarters.
  "shufflenet_g1_w1": v1(1, (144, 288, 576)),
  "shufflenet_g2_w1": v1(2, (200, 400, 800)),
  "shufflenet_g3_w1": v1(3, (240, 480, 960)),
  "shufflenet_g4_w1": v1(4, (272, 544, 1088)),
  "shufflenet_g8_w1": v1(8, (384, 768, 1536)),
  "shufflenet_g1_wd4": v1(1, (36, 72, 144), stem=6),
  "shufflenet_g1_wd2": v1(1, (72, 144, 288), stem=12),
  "shufflenet_g1_w3d4": v1(1, (108, 216, 432), stem=18),
  "shufflenet_g3_wd4": v1(3, (60, 120, 240), stem=6),
  "shufflenet_g3_wd2": v1(3, (120, 240, 480), stem=12),
  "shufflenet_g3_w3d4": v1(3, (180, 360, 720), stem=18),
  "shufflenet_g3_w2": v1(3, (480, 960, 1920), stem=48),
}
STAGES = ("conv1_.*", "stage2_.*", "stage3_.*", "stage4_.*|conv5_.*", "fc")



def tv(file: str, top1: float, top5: float, variant: str, resize: int = 256) -> Weights:
  where = f"https://download.pytorch.org/models/shufflenetv2_{file}.pth"
  pixels = Preprocess(resize=resize)
  return Weights(
    variant, "torchvision", where, file.partition("-")[2], "not stated", pixels, top1, top5)


def pcv(file: str, top1, top5: float, variant="", **fields) -> Weights:
  """pytorchcv's files: the name's last part is the beginning of the content's sha1."""
  where = f"https://github.com/osmr/imgclsmob/releases/download/{file}.pth.zip"
  variant = variant or re.split("[/-]", file)[1]
  return Weights(variant, "pytorchcv", where, "", "not stated", Preprocess(), top1, top5, fields)


WEIGHTS = {
  "shufflenet_v2_x0_5.tv": tv("x0.5-f707e7126e", 60.552, 81.746, "shufflenet_v2_x0_5"),
  "shufflenet_v2_x1_0.tv": tv("x1-5666bf0f80", 69.362, 88.316, "shufflenet_v2_x1_0"),
  "shufflenet_v2_x1_5.tv": tv("x1_5-3c479a10", 72.996, 91.086, "shufflenet_v2_x1_5", 232),
  "shufflenet_v2_x2_0.tv": tv("x2_0-8be3c8ee", 76.230, 93.006, "shufflenet_v2_x2_0", 232),
  "shufflenet_v2_x1_0.pcv": pcv("v0.0.133/shufflenetv2_w1-1163-c71dfb7a", 68.56, 88.37,
    "shufflenet_v2_x1_0", ceil_pool=True),
  "shufflenetv2b_w1.pcv": pcv("v0.0.161/shufflenetv2b_w1-1125-6a5d3dc4", 69.38, 88.75),
  "shufflenet_g1_w1.pcv": pcv("v0.0.223/shufflenet_g1_w1-1389-4cfb65a3", 65.07, 86.11),
  "shufflenet_g2_w1.pcv": pcv("v0.0.241/shufflenet_g2_w1-1363-07256203", 65.75, 86.37),
  "shufflenet_g3_w1.pcv": pcv("v0.0.244/shufflenet_g3_w1-1348-ce54f64e", 65.61, 86.52),
  "shufflenet_g4_w1.pcv": pcv("v0.0.245/shufflenet_g4_w1-1335-e2415f82", 65.81, 86.65),
  "shufflenet_g8_w1.pcv": pcv("v0.0.250/shufflenet_g8_w1-1342-9a979b36", 65.94, 86.58),
  "shufflenet_g3_wd2.pcv": pcv("v0.0.167/shufflenet_g3_wd2-2080-ccaacfc8", 55.84, 79.20),
  "shufflenet_g3_w3d4.pcv": pcv("v0.0.219/shufflenet_g3_w3d4-1650-3f3b0aef", 61.80, 83.50),
  # The files' names give the top-5 error; no top-1 is at hand for these.
  "shufflenet_g1_wd4.pcv": pcv("v0.0.134/shufflenet_g1_wd4-3729-47dbd0f2", None, 62.71),
  "shufflenet_g1_wd2.pcv": pcv("v0.0.174/shufflenet_g1_wd2-2261-dae4bdad", None, 77.39),
  "shufflenet_g1_w3d4.pcv": pcv("v0.0.218/shufflenet_g1_w3d4-1711-161cd24a", None, 82.89),
  "shufflenet_g3_wd4.pcv": pcv("v0.0.135/shufflenet_g3_wd4-3653-6abdd65e", None, 63.47),
}
