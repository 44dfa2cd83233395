"""What is in each image, and where: one class and one box."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from train.tasks.classify import Classify
from zoo.ops import boxes


@dataclasses.dataclass(frozen=True)
class Localize:
  """out["logits"] [b n], out["box"] [b 4]; batch["label"] [b] int32, batch["box"] [b 4] float32.

  Boxes are x0 y0 x1 y1 in pixels of the network's input; one without area is not annotated, and
  its image teaches the class alone.  Differences are taken as shares of the image's sides.  "iou"
  is the mean overlap, "box" the share of boxes that overlap by a half at least, and "found" of
  those whose class is right too, as ILSVRC counts.
  """

  loss: str = "smooth_l1"  # "l2", "smooth_l1" or "giou" (arXiv:1902.09630)
  beta: float = 0.1  # share of a side from which smooth L1 grows linearly
  weight: float = 5.0  # of the box's loss, beside that of the class
  of: Classify = Classify()
  inputs: tuple[str, ...] = ("image",)
  target: str = "label"

  def terms(self, out, batch):
    box, wanted = out["box"].astype(jnp.float32), batch["box"].astype(jnp.float32)
    real = jnp.all(wanted[:, 2:] > wanted[:, :2], -1).astype(jnp.float32)
    terms = self.of.terms(out, batch)
    loss, one = terms["loss"]
    overlap = boxes.iou(box, wanted)
    half = (overlap >= 0.5) * real
    height, width = batch["image"].shape[1:3]
    where = self._where(box, wanted, jnp.array([width, height] * 2, jnp.float32))
    return {
      **terms,
      "loss": (loss + self.weight * where * real, one),
      "iou": (overlap * real, real),
      "box": (half, real),
      "found": (half * terms["top1"][0], real),
    }

  def _where(self, box, wanted, sides):
    """[b] what is wrong with a box."""
    if self.loss == "giou":
      return 1 - boxes.generalized_iou(box, wanted)
    off = jnp.abs(box - wanted) / sides
    if self.loss == "l2":
      return jnp.square(off).sum(-1)
    smooth = jnp.square(off) / (2 * self.beta)
    return jnp.where(off < self.beta, smooth, off - self.beta / 2).sum(-1)

  def predict(self, out):
    probs = jax.nn.softmax(out["logits"].astype(jnp.float32))
    return {"probs": probs, "box": out["box"].astype(jnp.float32)}

  def rank(self, measured):
    loss, found = measured["loss"], measured["found"]
    known = -math.inf if math.isnan(found) else found
    return known, -math.inf if math.isnan(loss) else -loss
