"""RetinaNet.  Lin et al. 2017, arXiv:1708.02002.

As torchvision has it: five maps of strides 8 to 128, anchors rounded to whole pixels.  Its second
version puts group norms between the head's convolutions and takes the coarse maps from the body's
last one.  Submodules carry torchvision's names.
"""

from collections.abc import Callable
from functools import partial
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from zoo.detect import coco, fpn
from zoo.detect.fpn import FPN, Top
from zoo.layers import Numerics
from zoo.ops import boxes, nms
from zoo.weights import Preprocess, Weights

# Three sizes an octave, cut to whole pixels.
SIZES = tuple(tuple(int(x * 2 ** (i / 3)) for i in range(3)) for x in (32, 64, 128, 256, 512))
PRIOR = 0.01  # what a fresh head believes an anchor's chance of being a class


class Head(nn.Module):
  """Four 3x3 convolutions and one to `columns` numbers for each anchor: maps -> [b n columns]."""

  columns: int
  last: str  # name of the last convolution
  bias: float = 0.0  # of the last convolution, at first
  anchors: int = 9  # of a cell
  groups: int | None = None  # of the norms between
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, maps):
    n, found = self.numerics, []
    conv = partial(n.conv, init=nn.initializers.normal(0.01))
    width, plain = maps[0].shape[-1], self.groups is None
    convs = [conv(width, 3, bias=plain, name=f"conv_{i}_0") for i in range(4)]
    norms = [
      nn.GroupNorm(self.groups, epsilon=1e-5, dtype=n.dtype, name=f"conv_{i}_1")
      for i in range(0 if plain else 4)
    ]
    last = conv(
      self.anchors * self.columns, 3, bias=True,
      bias_init=nn.initializers.constant(self.bias), name=self.last,
    )  # fmt: skip
    for x in maps:
      for i in range(4):
        x = convs[i](x)
        x = n.act(x if plain else norms[i](x))
      found.append(last(x).reshape(x.shape[0], -1, self.columns))
    return jnp.concatenate(found, 1)


class RetinaNet(nn.Module):
  """The body's end points, "map1".."map5" and, given num_classes, "logits" [b n num_classes],
  "deltas" [b n 4], "anchors" [n 4] in pixels and "size" [b 2], height and width of each picture."""

  trunk: Callable[..., nn.Module] = fpn.RESNET50  # a classifier; takes num_classes and numerics
  num_classes: int | None = 91  # of COCO's numbers, which begin with an unused 0
  maps: tuple[str, ...] = fpn.STAGES_OF_RESNET[1:]  # the trunk's end points that are read
  pyramid: partial = partial(FPN, top=Top.P5)
  groups: int | None = None  # of the head's norms
  sizes: tuple[tuple[int, ...], ...] = SIZES
  score: float = 0.05  # the published thresholds of detection
  iou: float = 0.5
  limit: int = 300
  candidates: int = 1000  # of each map
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool, size: jax.Array | None = None):
    """
    Args:
      image: [b h w c], pictures at the top left.
      size: [b 2], height and width of each picture within the canvas, which cut its boxes; None
        fills it.
    """
    n = self.numerics
    ends = self.trunk(num_classes=None, numerics=n, name="body")(image, train=train)
    maps = self.pyramid(numerics=n, name="fpn")([ends[end] for end in self.maps], train=train)
    ends |= {f"map{i}": x for i, x in enumerate(maps, start=1)}
    if self.num_classes is None:
      return ends
    head = partial(Head, anchors=3 * len(self.sizes[0]), groups=self.groups, numerics=n)
    bias = -math.log((1 - PRIOR) / PRIOR)
    ends["logits"] = head(self.num_classes, "cls_logits", bias, name="classification_head")(maps)
    ends["deltas"] = head(4, "bbox_reg", name="regression_head")(maps)
    ends["anchors"] = jnp.asarray(fpn.priors(self.sizes, fpn.grids(ends), image.shape[1:3]))
    ends["size"] = fpn.extent(image, size)
    return ends

  def decode(self, ends) -> tuple[jax.Array, jax.Array]:
    """(boxes [b n 4] in pixels of the network's input, scores [b n num_classes])."""
    found = boxes.decode(ends["deltas"].astype(jnp.float32), ends["anchors"])
    scores = jax.nn.sigmoid(ends["logits"].astype(jnp.float32))
    return boxes.clip(found, ends["size"]), scores

  def detect(
    self, ends, *, score: float | None = None, iou: float | None = None, limit: int | None = None,
    candidates: int | None = None,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """The best detections of each picture; see `zoo.ops.nms.detections`.  None is the published
    threshold; `candidates` are the best pairs of a box and a class of each map."""
    score = self.score if score is None else score
    limit = self.limit if limit is None else limit
    candidates = self.candidates if candidates is None else candidates
    shapes = 3 * len(self.sizes[0])
    counts = [h * w * shapes for h, w in fpn.grids(ends)]

    def best(found, scores):
      """One picture's candidates of all maps: [k 4], [k], [k]."""
      parts, start = [], 0
      for count in counts:
        own = scores[start : start + count]
        flat = jnp.where(own > score, own, -jnp.inf).reshape(-1)
        top, pair = lax.top_k(flat, min(candidates, flat.size))
        parts.append((found[start + pair // own.shape[1]], top, pair % own.shape[1]))
        start += count
      return [jnp.concatenate(part) for part in zip(*parts)]

    def find(found, scores):
      found, scores, label = best(found, scores)
      index, real = nms.nms_padded(
        found, scores, self.iou if iou is None else iou, limit, group=label
      )
      return {
        "boxes": jnp.where(real[:, None], found[index], 0),
        "scores": jnp.where(real, scores[index], 0),
        "box_label": jnp.where(real, label[index], -1).astype(jnp.int32),
      }

    return jax.vmap(find)(*self.decode(ends))


VARIANTS = {
  "retinanet_resnet18_fpn": partial(RetinaNet, fpn.RESNET18),
  "retinanet_resnet50_fpn": partial(RetinaNet),
  "retinanet_resnet50_fpn_v2": partial(RetinaNet, pyramid=partial(FPN, top=Top.C5), groups=32),
}
STAGES = ("body", "fpn", "classification_head|regression_head")

TORCH = "https://download.pytorch.org/models/"
PIXELS_OF_COCO = Preprocess(800, 800, longest=1333)
UNPUBLISHED = {"retinanet_resnet18_fpn": PIXELS_OF_COCO}
NUMBERED = ("background", *coco.CLASSES)


def _torchvision(variant: str, digest: str, fields) -> Weights:
  where = f"{TORCH}{variant}_coco-{digest}.pth"
  return Weights(
    variant, "torchvision", where, digest, "BSD-3-Clause", PIXELS_OF_COCO, fields=fields,
    classes=NUMBERED,
  )  # fmt: skip


WEIGHTS = {
  # The first was trained when torchvision's frozen norms added nothing to the variance.
  "retinanet_resnet50_fpn.tv1": _torchvision(
    "retinanet_resnet50_fpn", "eeacb38b", {"eps": 0.0, "freeze_norm": True}
  ),
  "retinanet_resnet50_fpn_v2.tv1": _torchvision("retinanet_resnet50_fpn_v2", "5905b1c5", {}),
}
