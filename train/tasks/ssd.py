"""SSD's loss over padded boxes, as torchvision trains it; see `train.tasks.anchors`."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from train.tasks import anchors
from zoo.detect.ssd import CODER, SSD
from zoo.ops import match

NEGATIVES = 3  # of the background's boxes the hardest count, so many for each object's


@dataclasses.dataclass(frozen=True)
class Ssd:
  """Smooth L1 of the boxes and cross entropy of the classes, over the boxes of objects."""

  model: SSD
  score: float = 0.01  # of detections
  iou: float = 0.45
  limit: int = 200
  overlap: float = 0.5  # from which a default box answers for an object
  inputs: tuple[str, ...] = ("image",)
  target: str = "index"  # annotations stay on the host, which scores detections

  def terms(self, out, batch):
    def one(logits, deltas, objects, label):
      overlap = anchors.overlap(objects, out["anchors"])
      index = match.match_each(overlap, label >= 0, high=self.overlap)
      positive = index >= 0
      wanted = anchors.matched(index, objects, out["anchors"], CODER)
      place = anchors.over(positive, anchors.smooth_l1(deltas, wanted, 1.0))
      entropy = optax.softmax_cross_entropy_with_integer_labels(
        logits, anchors.labels(index, label)
      )
      hardness = jnp.where(positive, -jnp.inf, jax.lax.stop_gradient(entropy))
      order = jnp.argsort(-hardness, stable=True)
      rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
      hard = ~positive & (rank < NEGATIVES * positive.sum())
      kind = anchors.over(positive | hard, entropy)
      return place, kind, positive.sum().astype(jnp.float32)

    logits, deltas = (out[name].astype(jnp.float32) for name in ("logits", "deltas"))
    place, kind, count = jax.vmap(one)(logits, deltas, batch["boxes"], batch["box_label"])
    return {"loss": (place + kind, count), "place": (place, count), "kind": (kind, count)}

  def predict(self, out):
    return self.model.detect(out, score=self.score, iou=self.iou, limit=self.limit)

  def rank(self, measured):
    return anchors.rank(measured)
