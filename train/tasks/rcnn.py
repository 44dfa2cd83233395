"""Faster R-CNN's losses over padded boxes, as torchvision trains it; see `train.tasks.anchors`.

Both stages learn from a random sample.  It is drawn beside the model, by `Sampled`, whose `apply`
stands in for the model's: the second stage must know its regions while it runs.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import optax

from train.tasks import anchors
from zoo.detect.rcnn import CODER, RCNN
from zoo.ops import boxes as box_ops
from zoo.ops import match

BETA = 1 / 9  # where smooth L1 becomes straight


@dataclasses.dataclass(frozen=True)
class Sampled:
  """The model on pictures and their boxes; its end points and, of what was sampled,

  "rpn_index" [b s] of anchors and "rpn_object" [b s], the object that each answers for; "rois"
  [b r 4] and "roi_object" [b r].  Objects are as in `zoo.ops.match`; IGNORED rows are padding.
  """

  model: RCNN
  anchors: int = 256  # of a picture, at most half of them objects'
  regions: int = 512  # at most a quarter of them objects'

  def apply(self, variables, image, boxes, box_label, *, train: bool, rngs=None, **options):
    """As the model's own; `boxes` and `box_label` as in the batch.

    In evaluation nothing is sampled: all anchors and all proposals count.
    """
    kept = {}
    real = box_label >= 0
    keys = None
    if train:
      keys = jax.random.split(jax.random.fold_in(rngs["dropout"], 1), (2, len(image)))

    def choose(proposals, there):
      rois, kept["roi_object"] = jax.vmap(self.some_regions)(keys[1], proposals, there, boxes, real)
      return rois

    out = self.model.apply(
      variables, image, choose if train else None, train=train, rngs=rngs, **options
    )
    ends, *rest = out if isinstance(out, tuple) else (out,)
    if train:
      index, found = jax.vmap(self.some_anchors, (0, None, 0, 0))(
        keys[0], ends["anchors"], boxes, real
      )
    else:
      found = jax.vmap(lambda o, r: first_stage(ends["anchors"], o, r))(boxes, real)
      index = jnp.broadcast_to(jnp.arange(found.shape[1]), found.shape)
      own = jax.vmap(second_stage)(ends["rois"], boxes, real)
      kept["roi_object"] = jnp.where(ends["real"], own, match.IGNORED)
    ends = ends | kept | {"rpn_index": index, "rpn_object": found}
    return (ends, *rest) if rest else ends

  def some_anchors(self, key, places, objects, real):
    """(index [s], object [s]) of one picture."""
    found = first_stage(places, objects, real)
    index, positive, negative = match.sample(key, found, self.anchors, 0.5)
    return index, jnp.where(positive | negative, found[index], match.IGNORED)

  def some_regions(self, key, proposals, there, objects, real):
    """(regions [r 4], object [r]) of one picture; its own boxes are among the proposals."""
    places = jnp.concatenate([proposals, objects])
    found = second_stage(places, objects, real)
    found = jnp.where(jnp.concatenate([there, real]), found, match.IGNORED)
    index, positive, negative = match.sample(key, found, self.regions, 0.25)
    taken = positive | negative
    rois = jnp.where(taken[:, None], places[index], 0)
    return lax.stop_gradient(rois), jnp.where(taken, found[index], match.IGNORED)


def first_stage(places, objects, real):
  """[n] the object of each anchor."""
  overlap = box_ops.pairwise_iou(objects, places)
  return match.match(overlap, real, high=0.7, low=0.3, rescue=True)


def second_stage(places, objects, real):
  """[n] the object of each region."""
  return match.match(box_ops.pairwise_iou(objects, places), real, high=0.5, low=0.5)


@dataclasses.dataclass(frozen=True)
class Rcnn:
  """Four means over all that was sampled in a batch: of both stages, whether and where."""

  model: RCNN
  score: float = 0.05  # of detections
  iou: float = 0.5
  limit: int = 100
  inputs: tuple[str, ...] = ("image", "boxes", "box_label")  # of `Sampled`
  target: str = "index"  # annotations stay on the host, which scores detections

  def terms(self, out, batch):
    first = jax.vmap(lambda *a: self.proposed(out["anchors"], *a))(
      *(out[name] for name in ("rpn_logits", "rpn_deltas", "rpn_index", "rpn_object")),
      batch["boxes"],
    )
    second = jax.vmap(self.classified)(
      *(out[name] for name in ("logits", "deltas", "rois", "roi_object")),
      batch["boxes"], batch["box_label"],
    )  # fmt: skip
    pairs = {
      "objectness": (first[0], first[2]), "proposals": (first[1], first[2]),
      "kind": (second[0], second[2]), "place": (second[1], second[2]),
    }  # fmt: skip
    # The sum of means: each picture's share of every mean, times the number of pictures.
    real = batch["real"]
    share = lambda part, count: part / jnp.maximum((count * real).sum(), 1) * real.sum()
    loss = sum(share(*pair) for pair in pairs.values())
    return {"loss": (loss, jnp.ones_like(loss))} | pairs

  def proposed(self, places, logits, deltas, index, found, objects):
    """(objectness, misplacement, anchors sampled) of one picture."""
    taken, positive = found != match.IGNORED, found >= 0
    entropy = optax.sigmoid_binary_cross_entropy(
      logits[index].astype(jnp.float32), positive.astype(jnp.float32)
    )
    wanted = anchors.matched(found, objects, places[index])
    miss = anchors.smooth_l1(deltas[index].astype(jnp.float32), wanted, BETA)
    count = taken.sum().astype(jnp.float32)
    return anchors.over(taken, entropy), anchors.over(positive, miss), count

  def classified(self, logits, deltas, rois, found, objects, label):
    """(entropy of the classes, misplacement, regions sampled) of one picture."""
    taken, positive = found != match.IGNORED, found >= 0
    kind = anchors.labels(found, label)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), kind)
    deltas = deltas.astype(jnp.float32).reshape(len(deltas), -1, 4)  # of each class
    own = jnp.take_along_axis(deltas, kind[:, None, None], 1)[:, 0]
    miss = anchors.smooth_l1(own, anchors.matched(found, objects, rois, CODER), BETA)
    count = taken.sum().astype(jnp.float32)
    return anchors.over(taken, entropy), anchors.over(positive, miss), count

  def predict(self, out):
    return self.model.detect(out, score=self.score, iou=self.iou, limit=self.limit)

  def rank(self, measured):
    return anchors.rank(measured)
