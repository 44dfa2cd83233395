"""Any labels for each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from train.mix import taught


@dataclasses.dataclass(frozen=True)
class Multilabel:
  """Sigmoids: out["logits"] [b c], batch["labels"] [b c] int8: 1 yes, 0 no, -1 not annotated.

  What is not annotated is neither taught nor counted.  A label's error is its cross-entropy times
  (1 - p)**gamma of the probability of what is right: with one gamma the focal loss
  (arXiv:1708.02002), with two and a margin the asymmetric one (arXiv:2009.14119).  "f1" is of all
  labels together, answered yes from a half; thresholds for each are chosen in `train.scores`.
  """

  gamma_yes: float = 0.0
  gamma_no: float = 0.0
  margin: float = 0.0  # probabilities of what is not there count as 0 up to this
  yes: tuple[float, ...] = ()  # weight of each label where it is there; () is 1 for each
  no: tuple[float, ...] = ()  # and where it is not
  inputs: tuple[str, ...] = ("image",)
  target: str = "labels"

  def terms(self, out, batch):
    logits = out["logits"].astype(jnp.float32)
    is_so, is_not = taught(batch, "labels", _annotated)
    loss = (is_so * self._yes(logits) + is_not * self._no(logits)).sum(-1)
    yes, no = _annotated(batch["labels"])
    answer = (logits >= 0).astype(jnp.float32)
    both = (answer * yes).sum(-1)
    wrong = (answer * no + (1 - answer) * yes).sum(-1)
    known = (yes + no).sum(-1)
    return {
      "loss": (loss, (is_so + is_not).sum(-1)),
      "right": (known - wrong, known),
      "f1": (2 * both, 2 * both + wrong),
    }

  def _yes(self, logits):
    """What labels cost that are there, [b c]."""
    loss = jax.nn.softplus(-logits)
    if self.gamma_yes:
      loss *= jax.nn.sigmoid(-logits) ** self.gamma_yes
    return loss * jnp.asarray(self.yes) if self.yes else loss

  def _no(self, logits):
    """And those that are not."""
    prob = jax.nn.sigmoid(logits)
    if self.margin:
      prob = jnp.maximum(prob - self.margin, 0)
      loss = -jnp.log1p(-prob)
    else:
      loss = jax.nn.softplus(logits)
    if self.gamma_no:
      # Of nothing the power's gradient may be infinite: below the margin nothing is learned.
      some = prob > 0
      loss *= jnp.where(some, jnp.where(some, prob, 1.0) ** self.gamma_no, 0.0)
    return loss * jnp.asarray(self.no) if self.no else loss

  def predict(self, out):
    return {"probs": jax.nn.sigmoid(out["logits"].astype(jnp.float32))}

  def rank(self, measured):
    return (-math.inf if math.isnan(measured["loss"]) else -measured["loss"],)


def _annotated(labels) -> jax.Array:
  """[2 b c] float32 of labels [b c]: 1 where one is annotated yes, and where it is no."""
  return jnp.stack([labels == 1, labels == 0]).astype(jnp.float32)
