"""Faster R-CNN and Mask R-CNN, on a feature pyramid or on one map.

Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870.  As torchvision has them, both
versions; submodules carry its names.  All shapes are static: a picture has a fixed number of
proposals, of which some are padding.

`fasterrcnn_vgg16` is the first paper's: VGG-16 up to conv5_3, nine anchors for each of its cells,
fc6 and fc7 on each region.  It departs as torchvision's classes do: regions are read by RoIAlign,
nothing is dropped out, and regressed numbers are 10 and 5 times too large instead of normalised.

`num_classes` counts the objects; of each region's logits the first is the background's.
"""

from collections.abc import Callable
from functools import partial
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from zoo.classify import vgg
from zoo.detect import coco, fpn
from zoo.detect.fpn import FPN
from zoo.layers import Numerics
from zoo.ops import boxes, nms, roi
from zoo.weights import Preprocess, Weights

CODER = (10.0, 10.0, 5.0, 5.0)  # what a region's regressed numbers are times too large
SIZES = ((32,), (64,), (128,), (256,), (512,))
TOO_SMALL = 1e-3, 1e-2  # sides of proposals and of detections, in pixels
MASKS = 16  # of a picture, computed in any case; then so many more as before, where there are any
# Chooses the regions that the heads see: (proposals [b p 4], real [b p]) -> [b r 4].
Choose = Callable[[jax.Array, jax.Array], jax.Array]


class RPN(nn.Module):
  """Maps [b h w c] -> "rpn_logits" [b n] and "rpn_deltas" [b n 4] of the anchors of all cells."""

  anchors: int  # of a cell
  depth: int = 1  # 3x3 convolutions
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, maps):
    n = self.numerics
    conv = partial(n.conv, bias=True, init=nn.initializers.normal(0.01))
    convs = [conv(maps[0].shape[-1], 3, name=f"conv_{i}_0") for i in range(self.depth)]
    heads = conv(self.anchors, name="cls_logits"), conv(4 * self.anchors, name="bbox_pred")
    logits, deltas = [], []
    for x in maps:
      for layer in convs:
        x = n.act(layer(x))
      logits.append(heads[0](x).reshape(x.shape[0], -1))
      deltas.append(heads[1](x).reshape(x.shape[0], -1, 4))
    return {"rpn_logits": jnp.concatenate(logits, 1), "rpn_deltas": jnp.concatenate(deltas, 1)}


class TwoDense(nn.Module):
  """Regions [n h w c] -> [n width]."""

  width: int = 1024
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = x.reshape(x.shape[0], -1)
    for name in ("fc6", "fc7"):
      x = n.act(n.dense(self.width, name=name)(x))
    return x


class ConvsDense(nn.Module):
  """Four 3x3 convolutions with norms and a dense layer: regions [n h w c] -> [n width]."""

  width: int = 1024
  convs: int = 4
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    for i in range(self.convs):
      x = n.conv(x.shape[-1], 3, name=f"{i}_0")(x)
      x = n.act(n.norm(train, name=f"{i}_1")(x))
    x = n.dense(self.width, name=f"{self.convs + 1}")(x.reshape(x.shape[0], -1))
    return n.act(x)


class BoxPredictor(nn.Module):
  """Regions [n c] -> (logits [n classes], deltas [n 4*classes])."""

  classes: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    n = self.numerics
    return n.dense(self.classes, name="cls_score")(x), n.dense(4 * self.classes, name="bbox_pred")(
      x
    )


class MaskHead(nn.Module):
  """Four 3x3 convolutions: regions [n h w c] -> the same."""

  convs: int = 4
  batch_norm: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    for i in range(self.convs):
      x = n.conv(x.shape[-1], 3, bias=not self.batch_norm, name=f"{i}_0")(x)
      x = n.act(n.norm(train, name=f"{i}_1")(x) if self.batch_norm else x)
    return x


class MaskPredictor(nn.Module):
  """Regions [n h w c] -> a logit of each class for each cell, [n 2h 2w classes]."""

  classes: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    n = self.numerics
    x = n.act(n.deconv(x.shape[-1], 2, 2, name="conv5_mask")(x))
    return n.conv(self.classes, bias=True, name="mask_fcn_logits")(x)


class RCNN(nn.Module):
  """The body's end points, "map1" .., and, given num_classes, those of the two stages:

  "rpn_logits" [b n], "rpn_deltas" [b n 4], "anchors" [n 4] in pixels, "size" [b 2], each picture's
  height and width; "proposals" [b p 4] best first and "real" [b p], which of them are no padding;
  "rois" [b r 4], the regions that the heads have seen, "logits" [b r 1+num_classes] and "deltas"
  [b r 4*(1+num_classes)].
  """

  trunk: Callable[..., nn.Module] = fpn.RESNET50  # a classifier; takes num_classes and numerics
  num_classes: int | None = 90
  maps: tuple[str, ...] = fpn.STAGES_OF_RESNET  # the trunk's end points that are read
  strides: tuple[int, ...] = (4, 8, 16, 32)  # of those
  pyramid: partial | None = partial(FPN)  # None: the trunk's maps as they are
  sizes: tuple[tuple[int, ...], ...] = SIZES  # of the anchors of each map of the pyramid
  depth: int = 1  # of the proposals' head
  head: partial = partial(TwoDense)
  mask: partial | None = None  # such as `MaskHead`
  pooled: int = 7  # cells of a region, and of its mask's
  pooled_mask: int = 14
  # Proposals of each map that suppression looks at and of a picture, in evaluation and training.
  before: tuple[int, int] = (1000, 2000)
  after: tuple[int, int] = (1000, 2000)
  rpn_score: float = 0.0
  rpn_iou: float = 0.7
  score: float = 0.05  # the published thresholds of detection
  iou: float = 0.5
  limit: int = 100
  candidates: int = 5000  # best pairs of a region and a class
  numerics: Numerics = Numerics()

  def setup(self):
    n = self.numerics
    self.body = self.trunk(num_classes=None, numerics=n)
    if self.pyramid is not None:
      self.fpn = self.pyramid(numerics=n)
    if self.num_classes is None:
      return
    self.rpn = RPN(3 * len(self.sizes[0]), self.depth, n)
    self.box_head = self.head(numerics=n)
    self.box_predictor = BoxPredictor(1 + self.num_classes, n)
    if self.mask is not None:
      self.mask_head = self.mask(numerics=n)
      self.mask_predictor = MaskPredictor(1 + self.num_classes, n)

  def __call__(
    self, image, choose: Choose | None = None, *, train: bool, size: jax.Array | None = None
  ):
    """
    Args:
      image: [b h w c], pictures at the top left.
      choose: which regions the heads see, in training a sample; None is all proposals.
      size: [b 2], height and width of each picture within the canvas, which cut its boxes; None
        fills it.
    """
    ends = self.body(image, train=train)
    maps = [ends[end] for end in self.maps]
    if self.pyramid is not None:
      maps = self.fpn(maps, train=train)
    ends |= {f"map{i}": x for i, x in enumerate(maps, start=1)}
    if self.num_classes is None:
      return ends
    ends["anchors"] = jnp.asarray(fpn.priors(self.sizes, fpn.grids(ends), image.shape[1:3]))
    ends["size"] = fpn.extent(image, size)
    ends |= self.rpn(maps)
    proposals, real = self.propose(ends, train=train)
    rois = proposals if choose is None else choose(proposals, real)
    x = self.regions(ends, rois, self.pooled)
    x = self.box_head(x.reshape(-1, *x.shape[2:]), train=train)
    logits, deltas = self.box_predictor(x)
    b, r = rois.shape[:2]
    ends |= {
      "proposals": proposals, "real": real, "rois": rois,
      "logits": logits.reshape(b, r, -1), "deltas": deltas.reshape(b, r, -1),
    }  # fmt: skip
    if self.is_initializing() and self.mask is not None:
      _mask_logits(self, ends, rois[:, :1], train)
    return ends

  def propose(self, ends, *, train: bool):
    """(proposals [b p 4] best first, real [b p]); they pass no gradient."""
    before, limit = self.before[train], self.after[train]
    logits, deltas = lax.stop_gradient((ends["rpn_logits"], ends["rpn_deltas"]))
    counts = [h * w * 3 * len(own) for (h, w), own in zip(fpn.grids(ends), self.sizes)]

    def one(logits, deltas, size):
      parts, start = [], 0
      for level, count in enumerate(counts):
        top, index = lax.top_k(logits[start : start + count], min(before, count))
        index += start
        found = boxes.decode(deltas[index].astype(jnp.float32), ends["anchors"][index])
        parts.append((found, top, jnp.full(top.shape, level)))
        start += count
      found, logit, level = (jnp.concatenate(part) for part in zip(*parts))
      found = boxes.clip(found, size)
      score = jax.nn.sigmoid(logit.astype(jnp.float32))
      fine = _sides(found).min(-1) >= TOO_SMALL[0]
      score = jnp.where(fine & (score >= self.rpn_score), score, -jnp.inf)
      index, real = nms.nms_padded(found, score, self.rpn_iou, limit, group=level)
      return jnp.where(real[:, None], found[index], 0), real

    return jax.vmap(one)(logits, deltas, ends["size"])

  def regions(self, ends, rois, cells: int):
    """[b r cells cells c]: each region out of the map that suits its size."""
    maps = [ends[f"map{i}"] for i in range(1, len(self.strides) + 1)]
    lowest, highest = (int(math.log2(self.strides[i])) for i in (0, -1))
    level = roi.pyramid_level(rois, lowest, highest)
    return roi.roi_align(maps, rois, self.strides, size=(cells, cells), level=level)

  def mask_logits(self, ends, rois, there, *, train: bool):
    """[b r m m 1+num_classes] of regions [b r 4].

    Masks are dear, and most rows are padding: what stands behind the last region that is `there`
    [b r] of all pictures is not computed, but zeros.
    """
    # A norm's statistics are those of all regions.
    normed = self.mask_head.batch_norm and train and not self.numerics.freeze_norm
    end = rois.shape[1] if normed or self.numerics.plain else MASKS
    logits = [_mask_logits(self, ends, rois[:, :end], train)]
    # Made anew for their gradients: to keep what leads there, zeros were kept where nothing is.
    make = nn.remat(_mask_logits, static_argnums=(3,))
    while end < rois.shape[1]:
      more = there[:, end:].any()
      args = self, ends, rois[:, end : 2 * end]
      logits.append(nn.cond(more, lambda *args: make(*args, train), _no_mask_logits, *args))
      end *= 2
    return jnp.concatenate(logits, axis=1)

  def masks(self, ends, found) -> jax.Array:
    """[b k m m] in 0..1, the masks of what `detect` has found; `zoo.ops.roi.paste_masks` places
    them.  Called by `model.apply(variables, ends, found, method="masks")`."""
    logits = self.mask_logits(ends, found["boxes"], found["box_label"] >= 0, train=False)
    label = (found["box_label"] + 1)[..., None, None, None]
    return jax.nn.sigmoid(jnp.take_along_axis(logits, label, -1)[..., 0].astype(jnp.float32))

  def decode(self, ends) -> tuple[jax.Array, jax.Array]:
    """(boxes [b r num_classes 4] in pixels of the network's input, scores [b r num_classes]).

    Scores are 0 where there is no region, or its box has no side to speak of.
    """
    deltas = ends["deltas"].astype(jnp.float32)
    deltas = deltas.reshape(*deltas.shape[:2], -1, 4)[:, :, 1:]
    found = boxes.decode(deltas, ends["rois"][:, :, None], CODER)
    found = boxes.clip(found, ends["size"][:, None])
    scores = jax.nn.softmax(ends["logits"].astype(jnp.float32))[..., 1:]
    there = (_sides(ends["rois"]).min(-1) > 0)[..., None]
    return found, jnp.where(there & (_sides(found).min(-1) >= TOO_SMALL[1]), scores, 0)

  def detect(
    self, ends, *, score: float | None = None, iou: float | None = None, limit: int | None = None,
    candidates: int | None = None,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """The best detections of each picture; see `zoo.ops.nms.detections`.  None is the published
    threshold."""
    find = partial(
      nms.detections,
      score=self.score if score is None else score,
      iou=self.iou if iou is None else iou,
      limit=self.limit if limit is None else limit,
      candidates=self.candidates if candidates is None else candidates,
    )
    return jax.vmap(find)(*self.decode(ends))


def _mask_logits(model, ends, rois, train: bool):
  x = model.regions(ends, rois, model.pooled_mask)
  y = model.mask_predictor(model.mask_head(x.reshape(-1, *x.shape[2:]), train=train))
  return y.reshape(*x.shape[:2], *y.shape[1:])


def _no_mask_logits(model, ends, rois):
  side = 2 * model.pooled_mask
  return jnp.zeros((*rois.shape[:2], side, side, 1 + model.num_classes), model.numerics.dtype)


def _sides(found: jax.Array) -> jax.Array:
  return found[..., 2:] - found[..., :2]


FIRST = partial(RCNN)
SECOND = partial(RCNN, pyramid=partial(FPN, batch_norm=True), depth=2, head=partial(ConvsDense))
MOBILE = partial(
  RCNN, fpn.MOBILENET_V3, maps=fpn.STAGES_OF_MOBILENET, strides=(32, 32),
  sizes=((32, 64, 128, 256, 512),) * 3, rpn_score=0.05,
)  # fmt: skip
# The paper's numbers of proposals; torchvision has no such variant.
ONE_LEVEL = partial(
  RCNN, partial(vgg.VARIANTS["vgg16"], hidden=None), maps=("stage4",), strides=(16,), pyramid=None,
  sizes=((128, 256, 512),), head=partial(TwoDense, 4096), before=(6000, 12000), after=(300, 2000),
)  # fmt: skip
VARIANTS = {
  "fasterrcnn_vgg16": ONE_LEVEL,
  "fasterrcnn_resnet18_fpn": partial(FIRST, fpn.RESNET18),
  "fasterrcnn_resnet50_fpn": FIRST,
  "fasterrcnn_resnet50_fpn_v2": SECOND,
  "fasterrcnn_mobilenet_v3_large_fpn": MOBILE,
  "fasterrcnn_mobilenet_v3_large_320_fpn": partial(MOBILE, before=(150, 2000), after=(150, 2000)),
  "maskrcnn_resnet18_fpn": partial(FIRST, fpn.RESNET18, mask=partial(MaskHead)),
  "maskrcnn_resnet50_fpn": partial(FIRST, mask=partial(MaskHead)),
  "maskrcnn_resnet50_fpn_v2": partial(SECOND, mask=partial(MaskHead, batch_norm=True)),
}
HEADS = "rpn|box_head|box_predictor"
STAGES = {
  name: ("body", "fpn", f"{HEADS}|mask_head|mask_predictor" if "mask" in name else HEADS)
  for name in VARIANTS
} | {"fasterrcnn_vgg16": ("body", HEADS)}

TORCH = "https://download.pytorch.org/models/"
# The first were trained when torchvision's frozen norms added nothing to the variance.
FROZEN = {"eps": 0.0, "freeze_norm": True}
LARGE = Preprocess(800, 800, longest=1333)
SMALL = Preprocess(320, 320, longest=640)
UNPUBLISHED = {
  "fasterrcnn_vgg16": Preprocess(600, 600, longest=1000),
  "fasterrcnn_resnet18_fpn": LARGE, "maskrcnn_resnet18_fpn": LARGE,
}  # fmt: skip


def _torchvision(variant: str, file: str, pixels=LARGE, fields=None) -> Weights:
  return Weights(
    variant, "torchvision", f"{TORCH}{file}.pth", file.rpartition("-")[2], "BSD-3-Clause", pixels,
    fields=fields or {}, classes=coco.CLASSES,
  )  # fmt: skip


WEIGHTS = {
  f"{variant}.tv1": _torchvision(variant, file, *rest)
  for variant, file, *rest in (
    ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6", LARGE, FROZEN),
    ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a"),
    ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7", LARGE,
     {"freeze_norm": True}),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9",
     SMALL, {"freeze_norm": True}),
    ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", LARGE, FROZEN),
    ("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019"),
  )
}  # fmt: skip
