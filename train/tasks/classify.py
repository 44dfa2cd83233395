"""One label for each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from train.mix import taught

PRESENT = 0.2  # of a mixture: more than this share of it, as timm's recipes have it


@dataclasses.dataclass(frozen=True)
class Classify:
  """Cross-entropy of softmax or sigmoid: out["logits"] [b c] and batch["label"] [b] int32."""

  loss: str = "softmax"  # or "sigmoid", each class for itself (arXiv:2006.07159)
  smoothing: float = 0.0  # label smoothing (arXiv:1512.00567): this share goes to all classes alike
  weights: tuple[float, ...] = ()  # of the classes, in the loss and its mean; () for all alike
  inputs: tuple[str, ...] = ("image",)
  target: str = "label"
  aux: float = 0.0  # weight of each head of "aux_logits" [b c] or [b heads c], in training
  best: str = "top1"  # or "loss": what tells the better of two evaluations; the other breaks ties

  def terms(self, out, batch):
    logits, label = out["logits"].astype(jnp.float32), batch["label"]
    wanted = taught(batch, "label", lambda k: jax.nn.one_hot(k, logits.shape[-1]))
    weight = jnp.sum(wanted * jnp.array(self.weights), -1) if self.weights else 1.0
    wanted = optax.smooth_labels(wanted, self.smoothing)
    # The label's rank: how many logits are larger, or equal and earlier (as argmax breaks ties).
    own = jnp.take_along_axis(logits, label[:, None], -1)
    earlier = jnp.arange(logits.shape[-1]) < label[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & earlier), -1)
    one = jnp.ones(label.shape, jnp.float32)
    if self.loss == "sigmoid":  # mixed classes are both there (arXiv:2110.00476)
      wanted = (wanted > PRESENT).astype(jnp.float32) if "other" in batch else wanted
    loss = self._loss(logits, wanted)
    if self.aux and "aux_logits" in out:
      heads = out["aux_logits"].astype(jnp.float32).reshape(len(label), -1, logits.shape[-1])
      loss += self.aux * jnp.sum(self._loss(heads, wanted[:, None]), -1)
    return {
      "loss": (loss * weight, one * weight),
      "top1": ((rank < 1).astype(jnp.float32), one),
      "top5": ((rank < 5).astype(jnp.float32), one),
    }

  def _loss(self, logits, wanted):
    if self.loss == "sigmoid":
      return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, wanted), -1)
    return optax.softmax_cross_entropy(logits, wanted)

  def predict(self, out):
    return {"probs": jax.nn.softmax(out["logits"].astype(jnp.float32))}

  def rank(self, measured):
    loss = -math.inf if math.isnan(measured["loss"]) else -measured["loss"]
    return (loss, measured["top1"]) if self.best == "loss" else (measured["top1"], loss)
