"""MobileNet v3.  Howard et al. 2019, arXiv:1905.02244, tables 1 and 2.

Submodules carry timm's names.  As in every port the squeezed width is a quarter of the expanded
one, rounded to a multiple of 8.  torchvision's epsilon of 1e-3 is the variants' own; what timm
trained in torch has 1e-5, and TensorFlow's checkpoints pad as TensorFlow does: `Numerics`.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import InvertedResidual, Numerics, SqueezeExcite, pair, round_channels
from zoo.weights import Preprocess, Weights


class Last(nn.Module):
  """hard_swish(norm(conv1x1(x))) or, in minimal networks, with the family's activation."""

  out: int
  hard: bool = True
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.norm(train, name="bn1")(n.conv(self.out, name="conv")(x))
    return nn.hard_swish(x) if self.hard else n.act(x)


class MobileNetV3(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  stacks: tuple[tuple, ...]  # channels, kernel, stride, expansions, squeeze, hard swish
  head: int  # channels of the hidden layer before the classifier
  num_classes: int | None = 1000
  width: float = 1.0
  minimal: bool = False  # no squeezing, no hard swish, 3x3 kernels only
  dropout: float = 0.0
  drop_path: float = 0.0
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  firsts: bool = False  # also "first1" .. "first4": each stage after its first block alone
  numerics: Numerics = Numerics(eps=1e-3, momentum=0.99)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, hard = self.numerics, {}, not self.minimal
    act = nn.hard_swish if hard else n.act
    x = n.conv(16, 3, 2, name="conv_stem")(image)
    x = ends["stem"] = act(n.norm(train, name="bn1")(x))
    strided, reached, rate = 0, 2, 1
    for s, (out, kernel, stride, expansions, squeeze, swish) in enumerate(self.stacks):
      strided += stride != 1
      step = max(pair(stride))
      if reached * step > self.output_stride:
        rate, stride = rate * step, 1
      else:
        reached *= step
      for i, expansion in enumerate(expansions):
        hidden = round_channels(x.shape[-1] * expansion)
        se = partial(
          SqueezeExcite, round_channels(hidden / 4), n, gate=nn.hard_sigmoid,
          names=("conv_reduce", "conv_expand"),
        )  # fmt: skip
        x = InvertedResidual(
          round_channels(out * self.width), kernel if hard else 3, stride if i == 0 else 1,
          expansion, nn.hard_swish if swish and hard else None, se if squeeze and hard else None,
          n, self.drop_path, rate, name=f"blocks_{s}_{i}",
        )(x, train=train)  # fmt: skip
        if self.firsts and i == 0 and step > 1:
          ends[f"first{strided}"] = x
      ends[f"stage{strided}" if strided else "stem"] = x
    last = Last(round_channels(6 * x.shape[-1]), hard, n, name=f"blocks_{len(self.stacks)}_0")
    x = ends["stage4"] = last(x, train=train)
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = act(n.dense(self.head, name="conv_head")(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends


# fmt: off
LARGE = (
  (16, 3, 1, (1,), False, False),
  (24, 3, 2, (4, 3), False, False),
  (40, 5, 2, (3, 3, 3), True, False),
  (80, 3, 2, (6, 2.5, 2.3, 2.3), False, True),
  (112, 3, 1, (6, 6), True, True),
  (160, 5, 2, (6, 6, 6), True, True),
)
SMALL = (
  (16, 3, 2, (1,), True, False),
  (24, 3, 2, (72 / 16, 88 / 24), False, False),
  (40, 5, 2, (4, 6, 6), True, True),
  (48, 5, 1, (3, 3), True, True),
  (96, 5, 2, (6, 6, 6), True, True),
)
VARIANTS = {
  "mobilenet_v3_large": partial(MobileNetV3, LARGE, 1280),
  "mobilenet_v3_small": partial(MobileNetV3, SMALL, 1024),
  "mobilenet_v3_large_075": partial(MobileNetV3, LARGE, 1280, width=0.75),
  "mobilenet_v3_small_050": partial(MobileNetV3, SMALL, 1024, width=0.5),
  "mobilenet_v3_small_075": partial(MobileNetV3, SMALL, 1024, width=0.75),
  "mobilenet_v3_large_minimal": partial(MobileNetV3, LARGE, 1280, minimal=True),
  "mobilenet_v3_small_minimal": partial(MobileNetV3, SMALL, 1024, minimal=True),
}
HEAD = "conv_head|classifier"
LARGE_STAGES = ("conv_stem|bn1|blocks_0_.*", "blocks_1_.*", "blocks_2_.*", "blocks_[34]_.*",
  "blocks_[56]_.*", HEAD)
SMALL_STAGES = ("conv_stem|bn1", "blocks_0_.*", "blocks_1_.*", "blocks_[23]_.*", "blocks_[45]_.*",
  HEAD)
STAGES = {name: LARGE_STAGES if "large" in name else SMALL_STAGES for name in VARIANTS}

HALF = (0.5, 0.5, 0.5)
BICUBIC = Preprocess(interpolation="bicubic")
PLAIN = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
HALVES = Preprocess(mean=HALF, std=HALF)
TORCH, TF = {"eps": 1e-5, "momentum": 0.9}, {"padding": "tf"}


def tv(variant: str, sha256: str, top1, top5, resize: int = 256) -> Weights:
  where = f"https://download.pytorch.org/models/{variant}-{sha256}.pth"
  pixels = Preprocess(resize=resize)
  return Weights(variant, "torchvision", where, sha256, "not stated", pixels, top1, top5)


def timm(variant: str, file: str, pixels: Preprocess, fields, top1=None, top5=None) -> Weights:
  where = f"hf:timm/{file}/model.safetensors"
  return Weights(variant, "timm", where, "", "Apache-2.0", pixels, top1, top5, fields)


def keras(variant: str, file: str, top1: float) -> Weights:
  where = ("https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3/"
    f"weights_mobilenet_v3_{file}_float.h5")
  return Weights(variant, "keras", where, "", "not stated", HALVES, top1, None, TF)


WEIGHTS = {
  "mobilenet_v3_large.tv1": tv("mobilenet_v3_large", "8738ca79", 74.042, 91.340),
  "mobilenet_v3_large.tv2": tv("mobilenet_v3_large", "5c1a4163", 75.274, 92.566, 232),
  "mobilenet_v3_small.tv1": tv("mobilenet_v3_small", "047dcff4", 67.668, 87.402),
  "mobilenet_v3_large.tf": timm("mobilenet_v3_large", "tf_mobilenetv3_large_100.in1k", HALVES, TF,
    75.510, 92.600),
  "mobilenet_v3_small.tf": timm("mobilenet_v3_small", "tf_mobilenetv3_small_100.in1k", HALVES, TF,
    67.922, 87.686),
  "mobilenet_v3_large_075.tf": timm("mobilenet_v3_large_075", "tf_mobilenetv3_large_075.in1k",
    HALVES, TF),
  "mobilenet_v3_small_075.tf": timm("mobilenet_v3_small_075", "tf_mobilenetv3_small_075.in1k",
    HALVES, TF),
  "mobilenet_v3_large_minimal.tf": timm("mobilenet_v3_large_minimal",
    "tf_mobilenetv3_large_minimal_100.in1k", HALVES, TF),
  "mobilenet_v3_small_minimal.tf": timm("mobilenet_v3_small_minimal",
    "tf_mobilenetv3_small_minimal_100.in1k", HALVES, TF),
  "mobilenet_v3_large.ra": timm("mobilenet_v3_large", "mobilenetv3_large_100.ra_in1k", BICUBIC,
    TORCH, 75.784, 92.528),
  "mobilenet_v3_large.ra4": timm("mobilenet_v3_large",
    "mobilenetv3_large_100.ra4_e3600_r224_in1k", Preprocess(224, 235, HALF, HALF, "bicubic"),
    TORCH, 76.310, 92.842),
  "mobilenet_v3_large.miil": timm("mobilenet_v3_large",
    "mobilenetv3_large_100.miil_in21k_ft_in1k", PLAIN, TORCH, 77.920, 92.894),
  "mobilenet_v3_large.miil_in21k": timm("mobilenet_v3_large", "mobilenetv3_large_100.miil_in21k",
    PLAIN, TORCH | {"num_classes": 11221}),
  "mobilenet_v3_small.lamb": timm("mobilenet_v3_small", "mobilenetv3_small_100.lamb_in1k",
    BICUBIC, TORCH, 67.636, 87.638),
  "mobilenet_v3_small_075.lamb": timm("mobilenet_v3_small_075", "mobilenetv3_small_075.lamb_in1k",
    BICUBIC, TORCH),
  "mobilenet_v3_small_050.lamb": timm("mobilenet_v3_small_050", "mobilenetv3_small_050.lamb_in1k",
    BICUBIC, TORCH),
  "mobilenet_v3_large.keras": keras("mobilenet_v3_large", "large_224_1.0", 75.6),
  "mobilenet_v3_small.keras": keras("mobilenet_v3_small", "small_224_1.0", 68.1),
  "mobilenet_v3_large_minimal.keras": keras("mobilenet_v3_large_minimal",
    "large_minimalistic_224_1.0", 72.3),
}
