"""NASNet-A and PNASNet-5.

Zoph et al. 2017, arXiv:1707.07012, figure 4; Liu et al. 2017, arXiv:1712.00559, figure 1 and
table 1.  Submodules carry the names of Cadene's and timm's ports of TensorFlow's networks; a cell
of the small NASNet is named like that of the large one at the same depth.  Padding is TensorFlow's
SAME; where ports pool zeros too, `count_pad` and `max_zeros` say so.  The papers' auxiliary head is
left out, as in every port.  End points are what the next cell sees, behind its activation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import DropPath, Numerics
from zoo.ops import conv as ops
from zoo.ops.forms import every
from zoo.weights import Preprocess, Weights

PREVIOUS, CURRENT = "previous", "current"  # the two inputs of a cell


class ActConvNorm(nn.Module):
  """norm(conv1x1(act(x))), [b h w c] -> [b h/stride w/stride out]."""

  out: int
  stride: int = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    y = n.conv(self.out, 1, self.stride, padding=0, name="conv")(n.act(x))
    return n.norm(train, name="bn")(y)


class SeparableConv(nn.Module):
  """Depthwise, then pointwise convolution, [b h w c] -> [b h/stride w/stride out]."""

  out: int
  kernel: int
  stride: int = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    n, c = self.numerics, x.shape[-1]
    x = n.conv(c, self.kernel, self.stride, groups=c, name="depthwise_conv2d")(x)
    return n.conv(self.out, name="pointwise_conv2d")(x)


class Separable(nn.Module):
  """Two rounds of act, separable convolution, norm; the first has the stride."""

  out: int
  kernel: int
  stride: int = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    for i, stride in enumerate((self.stride, 1), start=1):
      conv = SeparableConv(self.out, self.kernel, stride, n, name=f"separable_{i}")
      x = n.norm(train, name=f"bn_sep_{i}")(conv(n.act(x)))
    return x


class Path(nn.Module):
  """1x1 convolution of every second pixel."""

  out: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    return self.numerics.conv(self.out, name="conv")(every(x, (2, 2)))


def halve(n: Numerics, x, out: int, train: bool):
  """[b h w c] -> [b h/2 w/2 out], half of it from even pixels, half from odd ones."""
  x = n.act(x)
  shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
  x = [Path(out // 2, n, name="path_1")(x), Path(out // 2, n, name="path_2")(shifted)]
  return n.norm(train, name="final_path_bn")(jnp.concatenate(x, axis=-1))


class Halve(nn.Module):
  """`halve` as a module of its own: PNASNet's names have one more level here."""

  out: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    return halve(self.numerics, x, self.out, train)


# Operations of a cell: functions of (cell, x, stride, train, name).


def separable(kernel: int) -> Callable:
  def operation(cell, x, stride, train, name):
    return Separable(cell.width, kernel, stride, cell.numerics, name=name)(x, train=train)

  return operation


def average(cell, x, stride, train, name):
  return cell.numerics.avg_pool(x, 3, stride, count_pad=cell.count_pad and stride == 2)


def maximum(cell, x, stride, train, name):
  n = cell.numerics
  if cell.max_zeros and stride == 2:
    pads = ops.resolve_pads("SAME", x.shape[1:3], (3, 3), (2, 2))
    return n.max_pool(jnp.pad(x, ((0, 0), *pads, (0, 0))), 3, 2, padding=0)
  return n.max_pool(x, 3, stride)


class Project(nn.Module):
  """norm(conv1x1(x)), without an activation."""

  out: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    return self.numerics.norm(train, name="bn")(self.numerics.conv(self.out, name="conv")(x))


def maximum_project(cell, x, stride, train, name):
  """The first cell of PNASNet pools the stem, which has another number of channels."""
  y = maximum(cell, x, stride, train, name)
  if y.shape[-1] == cell.width:
    return y
  return Project(cell.width, cell.numerics, name=name)(y, train=train)


def identity(cell, x, stride, train, name):
  if stride == 1:
    return x
  return ActConvNorm(cell.width, stride, cell.numerics, name=name)(x, train=train)


# Cells: five sums of (operation, input), an input being one of the two or an earlier sum; and what
# is concatenated in the end.
NORMAL = (
  (
    ((separable(5), CURRENT), (separable(3), PREVIOUS)),
    ((separable(5), PREVIOUS), (separable(3), PREVIOUS)),
    ((average, CURRENT), (identity, PREVIOUS)),
    ((average, PREVIOUS), (average, PREVIOUS)),
    ((separable(3), CURRENT), (identity, CURRENT)),
  ),
  (PREVIOUS, 0, 1, 2, 3, 4),
)
REDUCTION = (
  (
    ((separable(5), CURRENT), (separable(7), PREVIOUS)),
    ((maximum, CURRENT), (separable(7), PREVIOUS)),
    ((average, CURRENT), (separable(5), PREVIOUS)),
    ((average, 0), (identity, 1)),
    ((separable(3), 0), (maximum, CURRENT)),
  ),
  (1, 2, 3, 4),
)
PROGRESSIVE = (
  (
    ((separable(5), PREVIOUS), (maximum_project, PREVIOUS)),
    ((separable(7), CURRENT), (maximum, CURRENT)),
    ((separable(5), CURRENT), (separable(3), CURRENT)),
    ((separable(3), 2), (maximum, CURRENT)),
    ((separable(3), PREVIOUS), (identity, CURRENT)),
  ),
  (0, 1, 2, 3, 4),
)


class Cell(nn.Module):
  """Outputs of the last two cells -> this one's, [b h/stride w/stride some*width]."""

  genes: tuple[Any, Any]
  width: int
  stride: int = 1
  halves: bool = False  # the previous output is twice as large as the current one
  stem: bool = False  # the previous output is taken as it is
  nested: bool = False  # PNASNet's names
  count_pad: bool = False
  max_zeros: bool = False
  drop_path: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, previous, current, *, train: bool):
    n, width = self.numerics, self.width
    if self.halves and self.nested:
      previous = Halve(width, n, name="conv_prev_1x1")(previous, train=train)
    elif self.halves:
      previous = halve(n, previous, width, train)
    elif not self.stem:
      previous = ActConvNorm(width, numerics=n, name="conv_prev_1x1")(previous, train=train)
    current = ActConvNorm(width, numerics=n, name="conv_1x1")(current, train=train)
    known = {PREVIOUS: previous, CURRENT: current}
    sums, concatenated = self.genes
    for i, sides in enumerate(sums):
      known[i] = 0
      for (operation, source), side in zip(sides, ("left", "right")):
        stride = self.stride if source in (PREVIOUS, CURRENT) else 1
        y = operation(self, known[source], stride, train, f"comb_iter_{i}_{side}")
        if y is not known[source]:
          y = DropPath(self.drop_path)(y, train=train)
        known[i] += y
    return jnp.concatenate([known[i] for i in concatenated], axis=-1)


class NASNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  repeats: int  # normal cells between reductions: N of "N @ penultimate"
  width: int  # of the first normal cells
  stem: int
  num_classes: int | None = 1000
  skip: bool = False  # behind a reduction, the cell before the last one is the previous output
  count_pad: bool = False  # average pooling at stride 2 counts padded zeros (timm, Keras)
  max_zeros: bool = False  # maximum pooling at stride 2 sees padded zeros (Keras)
  dropout: float = 0.0
  drop_path: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3, padding="tf")

  def cell(self, genes, width: int, name: str, stride: int = 1, **fields) -> Cell:
    return Cell(
      genes, width, stride, count_pad=self.count_pad, max_zeros=self.max_zeros,
      drop_path=self.drop_path, numerics=self.numerics, name=name, **fields,
    )  # fmt: skip

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, cell, ends = self.numerics, partial(self.cell, NORMAL), {}
    reduction = partial(self.cell, REDUCTION, stride=2)
    p = Stem(self.stem, n, name="conv0")(image, train=train)
    x = reduction(self.width // 4, "cell_stem_0", stem=True)(p, p, train=train)
    ends |= {"stem": p, "stage1": n.act(x)}
    p, x = x, reduction(self.width // 2, "cell_stem_1", halves=True)(p, x, train=train)
    for s in range(3):
      width = self.width * 2**s
      if s > 0:
        before, y = p, reduction(width, f"reduction_cell_{s - 1}")(p, x, train=train)
        p, x = (before if self.skip else x), y
      for i in range(self.repeats):
        make = cell(width, f"cell_{6 * s + i}", halves=i == 0)
        p, x = (x, make(p, x, train=train))
      ends[f"stage{s + 2}"] = n.act(x)
    return finish(self, ends, train)


class PNASNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  repeats: int  # cells of each stage behind the stem
  width: int  # of the first stage's cells
  stem: int
  num_classes: int | None = 1000
  dropout: float = 0.0
  drop_path: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3, padding="tf")

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    cell = partial(Cell, PROGRESSIVE, nested=True, drop_path=self.drop_path, numerics=n)
    p = Stem(self.stem, n, name="conv_0")(image, train=train)
    x = cell(self.width // 4, 2, stem=True, name="cell_stem_0")(p, p, train=train)
    ends |= {"stem": p, "stage1": n.act(x)}
    p, x = x, cell(self.width // 2, 2, halves=True, name="cell_stem_1")(p, x, train=train)
    reduced = True  # the last cell was a reduction
    for i in range(3 * self.repeats):
      s = i // self.repeats
      stride = 2 if s > 0 and i % self.repeats == 0 else 1
      make = cell(self.width * 2**s, stride, halves=reduced, name=f"cell_{i}")
      p, x, reduced = x, make(p, x, train=train), stride == 2
      ends[f"stage{s + 2}"] = n.act(x)
    return finish(self, ends, train)


class Stem(nn.Module):
  """norm(conv3x3(image)), no padding, [b h w c] -> [b h/2 w/2 out]."""

  out: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    return n.norm(train, name="bn")(n.conv(self.out, 3, 2, padding=0, name="conv")(x))


def finish(model: nn.Module, ends: dict, train: bool) -> dict:
  """Adds "pooled" and, given num_classes, "logits"."""
  x = ends["pooled"] = jnp.mean(ends["stage4"], axis=(1, 2))
  if model.num_classes is not None:
    x = nn.Dropout(model.dropout, deterministic=not train)(x)
    ends["logits"] = model.numerics.dense(model.num_classes, name="last_linear")(x)
  return ends


# fmt: off
VARIANTS = {
  "nasnetamobile": partial(NASNet, 4, 44, 32),  # 4 @ 1056
  "nasnetalarge": partial(NASNet, 6, 168, 96, skip=True),  # 6 @ 4032
  "pnasnet5large": partial(PNASNet, 4, 216, 96),
}
NASNET = ("conv0", "cell_stem_0", "cell_stem_1|cell_[0-5]", "reduction_cell_0|cell_([6-9]|1[01])",
  "reduction_cell_1|cell_1[2-7]", "last_linear")
STAGES = {
  "nasnetamobile": NASNET,
  "nasnetalarge": NASNET,
  "pnasnet5large": ("conv_0", "cell_stem_0", "cell_stem_1|cell_[0-3]", "cell_[4-7]",
    "cell_([89]|1[01])", "last_linear"),
}

HALF = (0.5, 0.5, 0.5)
TF224 = Preprocess(224, 256, HALF, HALF)
TF331 = Preprocess(331, 378, HALF, HALF)
TIMM331 = Preprocess(331, 363, HALF, HALF, "bicubic")
PYTORCHCV = "https://github.com/osmr/imgclsmob/releases/download/"
CADENE = "http://data.lip6.fr/cadene/pretrainedmodels/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/nasnet/"
SLIM = "https://storage.googleapis.com/download.tensorflow.org/models/"
TIMM_PADS, KERAS_PADS = {"count_pad": True}, {"count_pad": True, "max_zeros": True}
WEIGHTS = {
  "nasnetamobile.cadene": Weights("nasnetamobile", "cadene", CADENE + "nasnetamobile-7e03cead.pth",
    "7e03cead", "not stated", TF224, 74.080, 91.740),
  "nasnetamobile.keras": Weights("nasnetamobile", "keras", KERAS + "NASNet-mobile.h5",
    "", "not stated", TF224, 74.4, 91.9, KERAS_PADS),
  "nasnetamobile.pcv": Weights("nasnetamobile", "pytorchcv",
    PYTORCHCV + "v0.0.495/nasnet_4a1056-0803-44f5ecbe.pth.zip",
    "", "not stated", Preprocess(), 74.68, 91.97),
  "nasnetalarge.timm": Weights("nasnetalarge", "timm",
    "hf:timm/nasnetalarge.tf_in1k/model.safetensors",
    "", "Apache-2.0", TIMM331, 82.638, 96.066, TIMM_PADS),
  "nasnetalarge.cadene": Weights("nasnetalarge", "cadene", CADENE + "nasnetalarge-a1897284.pth",
    "a1897284", "not stated", TF331, 82.566, 96.086),
  "nasnetalarge.keras": Weights("nasnetalarge", "keras", KERAS + "NASNet-large.h5",
    "", "not stated", TF331, 82.5, 96.0, KERAS_PADS),
  "nasnetalarge.pcv": Weights("nasnetalarge", "pytorchcv",
    PYTORCHCV + "v0.0.101/nasnet_6a4032-0421-f354d28f.pth.zip",
    "", "not stated", Preprocess(331, 378), 81.86, 95.79),
  "pnasnet5large.timm": Weights("pnasnet5large", "timm",
    "hf:timm/pnasnet5large.tf_in1k/model.safetensors",
    "", "Apache-2.0", TIMM331, 82.814, 96.032),
  "pnasnet5large.pcv": Weights("pnasnet5large", "pytorchcv",
    PYTORCHCV + "v0.0.114/pnasnet5large-0428-65de46eb.pth.zip",
    "", "not stated", Preprocess(331, 378), 82.12, 95.72),
} | {
  # TF-slim's own, the networks' first, of which no hash is published.
  f"{v}.slim": Weights(v, "slim", f"{SLIM}{file}.tar.gz#model.ckpt", "", "Apache-2.0", preprocess,
                       top1, top5, {"num_classes": 1001})
  for v, file, preprocess, top1, top5 in (
    ("nasnetamobile", "nasnet-a_mobile_04_10_2017", TF224, 74.0, 91.6),
    ("nasnetalarge", "nasnet-a_large_04_10_2017", TF331, 82.7, 96.2),
    ("pnasnet5large", "pnasnet-5_large_2017_12_13", TF331, 82.9, 96.2),
  )
}
