"""A class for each pixel."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Segment:
  """Cross-entropy over pixels: out["logits"] [b h w c] and batch["mask"] [b h w] int32.

  "pixel" is the share of pixels that are right; "iou/3" has the pixels that class 3 and its answer
  share over those of either, so that sums over a whole set give its intersection over union.
  """

  ignore: int = 255  # pixels of this class are neither taught nor counted
  focal: float = 0.0  # gamma of arXiv:1708.02002: sure pixels weigh (1 - p)**gamma
  dice: float = 0.0  # weight of 1 - the mean Dice coefficient of an image (arXiv:1606.04797)
  weights: tuple[float, ...] = ()  # of the classes' pixels; () is 1 for each
  aux: float = 0.5  # weight of "aux_logits", where a model has them
  inputs: tuple[str, ...] = ("image",)
  target: str = "mask"

  def terms(self, out, batch):
    logits, mask = out["logits"].astype(jnp.float32), batch["mask"]
    classes = logits.shape[-1]
    real = mask != self.ignore
    wanted = jax.nn.one_hot(mask, classes) * real[..., None]
    loss, weight = self._loss(logits, wanted, batch.get("weight"))
    if "aux_logits" in out:
      loss += self.aux * self._loss(out["aux_logits"], wanted, batch.get("weight"))[0]
    answer = jax.nn.one_hot(jnp.argmax(logits, -1), classes) * real[..., None]
    both = (wanted * answer).sum((1, 2))
    either = jnp.maximum(wanted, answer).sum((1, 2))
    return {
      "loss": (loss, weight),
      "pixel": (both.sum(1), real.sum((1, 2)).astype(jnp.float32)),
      **{f"iou/{k}": (both[:, k], either[:, k]) for k in range(classes)},
    }

  def _loss(self, logits, wanted, borders):
    """(sum over an image's pixels, their weight) [b]; `borders` [b h w] are weights of pixels."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    pixel = -(wanted * log_probs).sum(-1)
    weight = wanted.sum(-1)
    if self.focal:
      pixel *= (1 - jnp.exp(-pixel)) ** self.focal
    if self.weights:
      weight = wanted @ jnp.asarray(self.weights, jnp.float32)
    if borders is not None:
      weight *= borders
    total, weight = (pixel * weight).sum((1, 2)), weight.sum((1, 2))
    if self.dice:
      probs = jnp.exp(log_probs) * wanted.sum(-1, keepdims=True)
      both = (probs * wanted).sum((1, 2))
      share = (2 * both + 1) / (probs.sum((1, 2)) + wanted.sum((1, 2)) + 1)
      total += self.dice * (1 - share.mean(-1)) * weight
    return total, weight

  def predict(self, out):
    return {"mask": jnp.argmax(out["logits"], -1).astype(jnp.uint8)}

  def rank(self, measured):
    """By the mean over the classes that occur."""
    found = [v for name, v in measured.items() if name.startswith("iou/") and not math.isnan(v)]
    return (sum(found) / max(len(found), 1),)
