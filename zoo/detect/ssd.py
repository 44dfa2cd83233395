"""SSD on VGG-16 and MobileNet v1, and SSDLite on MobileNet v3.

Liu et al. 2015, arXiv:1512.02325; SSDLite: Sandler et al. 2018, arXiv:1801.04381, section 6.2.
Departs from the paper as torchvision does: VGG is torchvision's, of RGB with its own mean, and its
SSDLite stands on the halved tail of MobileNet v3 (arXiv:1905.02244, section 6.3).  The network on
MobileNet v1 is Caffe's MobileNet-SSD.  Submodules carry torchvision's names, those of the trunks
are of `zoo.classify`.

`num_classes` counts the objects; of each box's logits the first is the background's.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.classify import mobilenet_v1, mobilenet_v3, vgg
from zoo.detect import coco
from zoo.detect.yolo import VOC
from zoo.layers import Numerics
from zoo.ops import anchors, boxes, nms
from zoo.weights import Preprocess, Weights

CODER = (10.0, 10.0, 5.0, 5.0)  # what the regressed numbers are times too large
Shapes = tuple[tuple[float, float], ...]  # width, height


class Priors(NamedTuple):
  """The default boxes of each map, in shares of the picture."""

  shapes: tuple[Shapes, ...]
  steps: tuple[float, ...] | None = None  # pixels between cells; None spreads them evenly

  def on(self, grids, canvas: tuple[int, int]) -> np.ndarray:
    """[n 4] in pixels, for maps of sizes `grids` of a picture of `canvas` (height, width)."""
    height, width = canvas
    found = []
    for i, (shapes, grid) in enumerate(zip(self.shapes, grids, strict=True)):
      half = np.array(shapes) * (width, height) / 2
      around = np.concatenate([-half, half], -1)
      stride = (height / grid[0], width / grid[1]) if self.steps is None else (self.steps[i],) * 2
      found.append(anchors.on_grid(around, grid, stride, offset=0.5))
    return np.concatenate(found)


class Extra(NamedTuple):
  """1x1 to `hidden`, then `kernel` to `out`: one more map."""

  hidden: int
  out: int
  kernel: int = 3
  stride: int = 2
  padding: int = 1


class Rescale(nn.Module):
  """x / ||x||, over the channels of each place, times a learnt scale, 20 at first."""

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:])
    wide = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-24))
    return (wide / norm * scale).astype(x.dtype)


def _extras(x, rows: tuple[Extra, ...], numerics: Numerics, first: int):
  """The maps of further layers, called extra_`first` and so on."""
  for i, row in enumerate(rows, start=first):
    x = numerics.act(numerics.conv(row.hidden, bias=True, name=f"extra_{i}_0")(x))
    x = numerics.conv(
      row.out, row.kernel, row.stride, padding=row.padding, bias=True, name=f"extra_{i}_2"
    )(x)
    x = numerics.act(x)
    yield x


class OnVGG(nn.Module):
  """The trunk's end points and "map1" .., of strides 8, 16, 32 and so on."""

  trunk: Callable[..., nn.Module]
  extras: tuple[Extra, ...]
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = self.trunk(num_classes=None, hidden=None, numerics=n, name="features")(
      image, train=train
    )
    del ends["stage5"]  # the fifth pool here keeps the size
    maps = [Rescale(name="rescale")(ends["stage3"])]
    x = n.max_pool(ends["stage4"], 3, 1, padding=1)
    x = n.act(n.conv(1024, 3, padding=6, dilation=6, bias=True, name="fc6")(x))
    x = n.act(n.conv(1024, bias=True, name="fc7")(x))
    maps += [x, *_extras(x, self.extras, n, 1)]
    return ends | {f"map{i}": x for i, x in enumerate(maps, start=1)}


class OnMobileNetV1(nn.Module):
  """The trunk's end points and "map1" .., of strides 16, 32 and so on."""

  extras: tuple[Extra, ...]
  trunk: Callable[..., nn.Module] = mobilenet_v1.MobileNetV1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = self.trunk(num_classes=None, numerics=n, name="features")(image, train=train)
    maps = [ends["stage3"], ends["stage4"], *_extras(ends["stage4"], self.extras, n, 0)]
    return ends | {f"map{i}": x for i, x in enumerate(maps, start=1)}


class OnMobileNetV3(nn.Module):
  """The trunk's end points and "map1" .., of strides 16, 32 and so on."""

  trunk: Callable[..., nn.Module]
  extras: tuple[int, ...] = (512, 256, 256, 128)  # channels of further maps
  expanded: str = "blocks_5_0"  # whose expansion is the first map
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, maps = self.numerics, []

    def watch(call, args, kwargs, context):
      y = call(*args, **kwargs)
      if context.module.path[-2:] == (self.expanded, "bn1"):
        maps.append(nn.hard_swish(y))
      return y

    with nn.intercept_methods(watch):
      trunk = self.trunk(num_classes=None, numerics=n, name="features")
      ends = trunk(image, train=train)
    x = ends["stage4"]
    maps.append(x)
    for i, out in enumerate(self.extras):
      layers = (
        n.conv(out // 2, name=f"extra_{i}_0_0"),
        n.conv(out // 2, 3, 2, groups=out // 2, name=f"extra_{i}_1_0"),
        n.conv(out, name=f"extra_{i}_2_0"),
      )
      for j, conv in enumerate(layers):
        x = nn.relu6(n.norm(train, name=f"extra_{i}_{j}_1")(conv(x)))
      maps.append(x)
    return ends | {f"map{i}": x for i, x in enumerate(maps, start=1)}


class Scores(nn.Module):
  """Maps [b h w c] -> [b n columns] of the boxes of all cells of all maps."""

  columns: int
  boxes: tuple[int, ...]  # of one cell, for each map
  kernel: int = 3
  lite: bool = False  # depthwise, then 1x1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, maps, *, train: bool):
    n, found = self.numerics, []
    last = partial(n.conv, bias=True, init=nn.initializers.xavier_uniform())
    for i, (x, count) in enumerate(zip(maps, self.boxes, strict=True)):
      name, out = f"module_list_{i}", count * self.columns
      if self.lite:
        conv = n.conv(x.shape[-1], self.kernel, groups=x.shape[-1], name=f"{name}_0_0")
        x = nn.relu6(n.norm(train, name=f"{name}_0_1")(conv(x)))
        x = last(out, name=f"{name}_1")(x)
      else:
        x = last(out, self.kernel, name=name)(x)
      found.append(x.reshape(x.shape[0], -1, self.columns))
    return jnp.concatenate(found, 1)


class SSD(nn.Module):
  """The backbone's end points and, given num_classes, "logits" [b n 1+num_classes], "deltas"
  [b n 4], "anchors" [n 4] in pixels and "canvas" [2], the height and width of the input."""

  backbone: Callable[..., nn.Module]  # takes numerics and name
  priors: Priors
  num_classes: int | None = 90
  head: partial = partial(Scores)
  score: float = 0.01  # the published thresholds of detection
  iou: float = 0.45
  limit: int = 200
  candidates: int = 400  # of each class
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = self.backbone(numerics=n, name="backbone")(image, train=train)
    if self.num_classes is None:
      return ends
    maps = [ends[f"map{i}"] for i in range(1, len(self.priors.shapes) + 1)]
    head = partial(self.head, boxes=tuple(map(len, self.priors.shapes)), numerics=n)
    for end, columns, name in (
      ("logits", 1 + self.num_classes, "classification_head"),
      ("deltas", 4, "regression_head"),
    ):
      ends[end] = head(columns, name=name)(maps, train=train)
    canvas = image.shape[1:3]
    ends["anchors"] = jnp.asarray(self.priors.on([x.shape[1:3] for x in maps], canvas))
    ends["canvas"] = jnp.array(canvas, jnp.int32)
    return ends

  def decode(self, ends) -> tuple[jax.Array, jax.Array]:
    """(boxes [b n 4] in pixels of the network's input, scores [b n num_classes])."""
    found = boxes.decode(ends["deltas"].astype(jnp.float32), ends["anchors"], CODER)
    scores = jax.nn.softmax(ends["logits"].astype(jnp.float32))[..., 1:]
    return boxes.clip(found, ends["canvas"]), scores

  def detect(
    self, ends, *, score: float | None = None, iou: float | None = None, limit: int | None = None,
    candidates: int | None = None,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """The best detections of each picture; see `zoo.ops.nms.detections`.  None is the published
    threshold; `candidates` are those of each class."""
    find = partial(
      nms.detections,
      score=self.score if score is None else score,
      iou=self.iou if iou is None else iou,
      limit=self.limit if limit is None else limit,
      candidates=self.candidates if candidates is None else candidates,
      per_class=True,
    )
    return jax.vmap(find)(*self.decode(ends))


def _priors(scales, ratios, steps=None) -> Priors:
  """One more scale than maps; for each map the ratios of its further boxes, cut to the picture."""
  return Priors(
    tuple(
      tuple(map(tuple, np.minimum(anchors.default_shapes(small, large, wide), 1).tolist()))
      for small, large, wide in zip(scales[:-1], scales[1:], ratios, strict=True)
    ),
    steps,
  )


def _caffe_priors() -> Priors:
  """MobileNet-SSD's prototxt: not cut, and the first map lacks the square between the scales."""
  scales = np.array([60, 105, 150, 195, 240, 285, 300]) / 300
  shapes = [
    anchors.default_shapes(small, large, (2,) if i == 0 else (2, 3))
    for i, (small, large) in enumerate(zip(scales, scales[1:]))
  ]
  # The scale after the first map's is 0.35, and so is the second map's own.
  shapes[0] = np.delete(shapes[0], 1, 0)
  return Priors(tuple(tuple(map(tuple, s.tolist())) for s in shapes))


SSD300 = (Extra(256, 512), Extra(128, 256), Extra(128, 256, 3, 1, 0), Extra(128, 256, 3, 1, 0))
# As torchvision's `SSDFeatureExtractorVGG(highres=True)` has it: but for one layer those of SSD300,
# where the authors' SSD512 goes on with stride 2.
SSD512 = (*SSD300, Extra(128, 256, 4, 1, 0))
CAFFE = (Extra(256, 512), Extra(128, 256), Extra(128, 256), Extra(64, 128))
TRUNK = partial(vgg.VARIANTS["vgg16"], ceil_pools=(3,))
# The tail of MobileNet v3 has half the channels.
HALF_TAIL = (*mobilenet_v3.LARGE[:-1], (80, *mobilenet_v3.LARGE[-1][1:]))
LITE = Numerics(eps=1e-3, momentum=0.97)
VARIANTS = {
  "ssd300_vgg16": partial(
    SSD, partial(OnVGG, TRUNK, SSD300),
    _priors((0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), ((2,), *((2, 3),) * 3, (2,), (2,)),
            (8, 16, 32, 64, 100, 300)),
  ),
  "ssd512_vgg16": partial(
    SSD, partial(OnVGG, TRUNK, SSD512),
    _priors((0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05), ((2,), *((2, 3),) * 4, (2,), (2,)),
            (8, 16, 32, 64, 128, 256, 512)),
  ),
  "ssdlite320_mobilenet_v3_large": partial(
    SSD, partial(OnMobileNetV3, partial(mobilenet_v3.MobileNetV3, HALF_TAIL, 1280)),
    _priors((0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), ((2, 3),) * 6),
    head=partial(Scores, lite=True), score=0.001, iou=0.55, limit=300, candidates=300,
    numerics=LITE,
  ),
  "ssd300_mobilenet_v1": partial(
    SSD, partial(OnMobileNetV1, CAFFE), _caffe_priors(), 20, head=partial(Scores, kernel=1),
    score=0.25, limit=100, candidates=100, numerics=Numerics(act=nn.relu),
  ),
}  # fmt: skip
STAGES = ("backbone", "classification_head|regression_head")

TORCH = "https://download.pytorch.org/models/"
FUTUREVISION = "pypi:futurevision==0.1.5/futurevision/SSD_MobileNet"
BYTES = (1 / 255,) * 3  # as std: pixels of 0..255
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SQUASHED = Preprocess(300, 300, mean=(0.48235, 0.45882, 0.40784), std=BYTES, squash=True)
UNPUBLISHED = {"ssd512_vgg16": SQUASHED.at(512)}  # nobody published weights of torchvision's form
WEIGHTS = {
  "ssd300_vgg16.tv1": Weights(
    "ssd300_vgg16", "torchvision", f"{TORCH}ssd300_vgg16_coco-b556d3b4.pth", "b556d3b4",
    "BSD-3-Clause", SQUASHED, classes=coco.CLASSES,
  ),
  "ssdlite320_mobilenet_v3_large.tv1": Weights(
    "ssdlite320_mobilenet_v3_large", "torchvision",
    f"{TORCH}ssdlite320_mobilenet_v3_large_coco-a79551df.pth", "a79551df", "BSD-3-Clause",
    Preprocess(320, 320, squash=True, **HALVES), classes=coco.CLASSES,
  ),
  # Trained on VOC 2007 and 2012; its norms are folded into the convolutions.
  "ssd300_mobilenet_v1.caffe": Weights(
    "ssd300_mobilenet_v1", "caffe", f"{FUTUREVISION}.caffemodel",
    "761c86fbae3d8361dd454f7c740a964f62975ed32f4324b8b85994edec30f6af", "MIT",
    Preprocess(300, 300, squash=True, channels="BGR", **HALVES), classes=VOC,
    beside={
      f"{FUTUREVISION}_prototxt.txt":
      "e781559c4f5beaec2a486ccd952af5b6fa408e9498761bf5f4fb80b4e9f0d25e"},
  ),
}  # fmt: skip
