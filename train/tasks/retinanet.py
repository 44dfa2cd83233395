"""RetinaNet's loss over padded boxes, as torchvision trains it; see `train.tasks.anchors`."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from train.tasks import anchors
from zoo.detect.retinanet import RetinaNet
from zoo.ops import boxes as box_ops
from zoo.ops import match


@dataclasses.dataclass(frozen=True)
class Retina:
  """Focal loss of the classes and L1 of the boxes, each over the anchors of a picture's objects."""

  model: RetinaNet
  giou: bool = False  # instead of L1, as the second version has it
  alpha: float = 0.25  # weight of what is there; what is not has the rest
  gamma: float = 2.0
  score: float = 0.05  # of detections
  iou: float = 0.5
  limit: int = 300
  inputs: tuple[str, ...] = ("image",)
  target: str = "index"  # annotations stay on the host, which scores detections

  def terms(self, out, batch):
    def one(logits, deltas, objects, label):
      overlap = anchors.overlap(objects, out["anchors"])
      index = match.match(overlap, label >= 0, high=0.5, low=0.4, rescue=True)
      positive = index >= 0
      count = jnp.maximum(positive.sum(), 1)
      wanted = jax.nn.one_hot(anchors.labels(index, label) - 1, logits.shape[-1])
      kind = self.focal(logits, wanted)
      kind = anchors.over(index != match.IGNORED, kind) / count
      place = anchors.over(positive, self.misplaced(deltas, index, objects, out["anchors"]))
      return kind, place / count

    logits, deltas = (out[name].astype(jnp.float32) for name in ("logits", "deltas"))
    kind, place = jax.vmap(one)(logits, deltas, batch["boxes"], batch["box_label"])
    count = jnp.ones_like(kind)
    return {"loss": (kind + place, count), "place": (place, count), "kind": (kind, count)}

  def focal(self, logits, wanted):
    """Lin et al. 2017, arXiv:1708.02002, equation 5: what is nearly right counts little."""
    prob = jax.nn.sigmoid(logits)
    right = prob * wanted + (1 - prob) * (1 - wanted)
    weight = self.alpha * wanted + (1 - self.alpha) * (1 - wanted)
    entropy = optax.sigmoid_binary_cross_entropy(logits, wanted)
    return weight * entropy * (1 - right) ** self.gamma

  def misplaced(self, deltas, index, objects, places):
    """[n] of each anchor; only those of objects mean something."""
    if not self.giou:
      return jnp.abs(deltas - anchors.matched(index, objects, places)).sum(-1)
    own = jnp.where((index >= 0)[:, None], objects[jnp.maximum(index, 0)], places)
    return 1 - box_ops.generalized_iou(box_ops.decode(deltas, places), own)

  def predict(self, out):
    return self.model.detect(out, score=self.score, iou=self.iou, limit=self.limit)

  def rank(self, measured):
    return anchors.rank(measured)
