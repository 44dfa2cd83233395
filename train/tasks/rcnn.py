"""The losses of Faster and Mask R-CNN over padded boxes, as torchvision trains them.

See `train.tasks.anchors`.  Both stages learn from a random sample.  It is drawn by `Sampled`, which
is trained in the model's place: the second stage must know its regions while it runs.
"""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import optax

from train.tasks import anchors
from zoo.detect.rcnn import CODER, RCNN
from zoo.layers import Numerics
from zoo.ops import match, roi

BETA = 1 / 9  # where smooth L1 becomes straight
POSITIVE = 0.25  # of the sampled regions, those of objects, at most


class Sampled(nn.Module):
  """The model on pictures [b h w c] and their boxes; its end points and, of what was sampled,

  "rpn_index" [b s] of anchors and "rpn_object" [b s], the object that each answers for; "rois"
  [b r 4] and "roi_object" [b r]; of a Mask R-CNN also "mask_rois" [b p 4], "mask_object" [b p] and
  "mask_logits" [b p m m 1+num_classes].  Objects are as in `zoo.ops.match`; IGNORED rows are
  padding.

  In evaluation nothing is sampled: all anchors and all proposals count, masks are those of the
  objects' own boxes, and "found" is what `detect` answers, with "masks" [b k m m] uint8, 0 to 255.

  It shares the model's scope: variables are the model's own.
  """

  network: Callable[..., RCNN]  # takes numerics
  anchors: int = 256  # of a picture, at most half of them objects'
  regions: int = 512
  numerics: Numerics = Numerics()

  def setup(self):
    self.model = self.network(numerics=self.numerics)
    nn.share_scope(self, self.model)

  def __call__(self, image, boxes=None, box_label=None, *, train: bool):
    """As the model's own; `boxes` and `box_label` as in the batch. Without them it is the model."""
    if boxes is None:
      return self.model(image, train=train)
    real = box_label >= 0
    ends = self._train(image, boxes, real) if train else self._evaluate(image, boxes, real)
    if self.model.mask is not None:
      ends["mask_logits"] = self.model.mask_logits(
        ends, ends["mask_rois"], ends["mask_object"] >= 0, train=train
      )
    return ends

  def _train(self, image, boxes, real):
    keys, kept = jax.random.split(self.make_rng("dropout"), (2, len(image))), {}

    def choose(proposals, there):
      rois, kept["roi_object"] = jax.vmap(self.some_regions)(keys[1], proposals, there, boxes, real)
      return rois

    ends = self.model(image, choose, train=True) | kept
    index, found = jax.vmap(self.some_anchors, (0, None, 0, 0))(
      keys[0], ends["anchors"], boxes, real
    )
    most = int(self.regions * POSITIVE)  # which come first
    return ends | {
      "rpn_index": index, "rpn_object": found,
      "mask_rois": ends["rois"][:, :most], "mask_object": ends["roi_object"][:, :most],
    }  # fmt: skip

  def _evaluate(self, image, boxes, real):
    ends = self.model(image, train=False)
    found = jax.vmap(lambda o, r: first_stage(ends["anchors"], o, r))(boxes, real)
    own = jax.vmap(second_stage)(ends["rois"], boxes, real)
    answer = self.model.detect(ends)
    if self.model.mask is not None:
      shares = self.model.masks(ends, answer)
      answer["masks"] = jnp.rint(255 * shares).astype(jnp.uint8)
    return ends | {
      "rpn_index": jnp.broadcast_to(jnp.arange(found.shape[1]), found.shape), "rpn_object": found,
      "roi_object": jnp.where(ends["real"], own, match.IGNORED),
      "mask_rois": boxes, "mask_object": jnp.where(real, jnp.arange(real.shape[1]), match.IGNORED),
      "found": answer,
    }  # fmt: skip

  @nn.nowrap
  def some_anchors(self, key, places, objects, real):
    """(index [s], object [s]) of one picture."""
    found = first_stage(places, objects, real)
    index, positive, negative = match.sample(key, found, self.anchors, 0.5)
    return index, jnp.where(positive | negative, found[index], match.IGNORED)

  @nn.nowrap
  def some_regions(self, key, proposals, there, objects, real):
    """(regions [r 4], object [r]) of one picture; its own boxes are among the proposals."""
    places = jnp.concatenate([proposals, objects])
    found = second_stage(places, objects, real)
    found = jnp.where(jnp.concatenate([there, real]), found, match.IGNORED)
    index, positive, negative = match.sample(key, found, self.regions, POSITIVE)
    taken = positive | negative
    rois = jnp.where(taken[:, None], places[index], 0)
    return lax.stop_gradient(rois), jnp.where(taken, found[index], match.IGNORED)


def first_stage(places, objects, real):
  """[n] the object of each anchor."""
  overlap = anchors.overlap(objects, places)
  return match.match(overlap, real, high=0.7, low=0.3, rescue=True)


def second_stage(places, objects, real):
  """[n] the object of each region."""
  return match.match(anchors.overlap(objects, places), real, high=0.5, low=0.5)


@dataclasses.dataclass(frozen=True)
class Rcnn:
  """Four means over all that was sampled in a batch: of both stages, whether and where.

  With masks there is a fifth, over the regions of objects; the batch then has "masks" [b n c c]
  uint8, the bitmap of each box within its `zoo.ops.roi.window`.
  """

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
    if "mask_logits" in out:
      canvas = batch["image"].shape[1:3]
      pairs["mask"] = jax.vmap(lambda *one: self.masked(*one, canvas))(
        *(out[name] for name in ("mask_logits", "mask_rois", "mask_object")),
        batch["boxes"], batch["box_label"], batch["masks"],
      )  # fmt: skip
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

  def masked(self, logits, rois, found, objects, label, bitmaps, canvas):
    """(entropy of a cell of the own class's mask, regions of objects) of one picture."""
    positive, which = found >= 0, jnp.maximum(found, 0)
    kind = anchors.labels(found, label)[:, None, None, None]
    own = jnp.take_along_axis(logits.astype(jnp.float32), kind, -1)[..., 0]
    wanted = roi.mask_targets(
      bitmaps[which], objects[which], rois, size=logits.shape[1], canvas=canvas
    )
    entropy = optax.sigmoid_binary_cross_entropy(own, wanted).mean((1, 2))
    return anchors.over(positive, entropy), positive.sum().astype(jnp.float32)

  def predict(self, out):
    return out["found"]

  def rank(self, measured):
    return anchors.rank(measured)
