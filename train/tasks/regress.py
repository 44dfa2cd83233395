"""Numbers for each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Regress:
  """out["logits"] [b k] and batch["value"] [b k] float32 in the user's units, NaN if not known.

  The loss is of standardised numbers, so that targets of all units weigh alike; "mae/0" is the mean
  absolute error of the first target in its unit.  Answers are unbounded, or lie within bounds
  through a sigmoid.
  """

  mean: tuple[float, ...]  # of each target over the training set
  std: tuple[float, ...]
  low: tuple[float, ...] = ()  # bounds of each target, in its unit; () for none
  high: tuple[float, ...] = ()
  loss: str = "huber"  # "l1", "l2" or "huber"
  delta: float = 1.0  # standard deviations from which Huber's loss grows linearly
  inputs: tuple[str, ...] = ("image",)
  target: str = "value"

  def value(self, logits: jax.Array) -> jax.Array:
    """[... k] outputs of the network in the user's units."""
    logits = logits.astype(jnp.float32)
    if self.low:
      low, high = jnp.asarray(self.low), jnp.asarray(self.high)
      return low + (high - low) * jax.nn.sigmoid(logits)
    return logits * jnp.asarray(self.std) + jnp.asarray(self.mean)

  def terms(self, out, batch):
    known = ~jnp.isnan(batch["value"])
    value = self.value(out["logits"])
    off = jnp.where(known, value - jnp.where(known, batch["value"], 0), 0)
    error = jnp.abs(off / jnp.asarray(self.std))
    if self.loss == "l1":
      loss = error
    elif self.loss == "l2":
      loss = jnp.square(error)
    else:
      linear = self.delta * (error - self.delta / 2)
      loss = jnp.where(error < self.delta, jnp.square(error) / 2, linear)
    known = known.astype(jnp.float32)
    each = {f"mae/{k}": (jnp.abs(off[:, k]), known[:, k]) for k in range(off.shape[1])}
    return {"loss": (loss.sum(-1), known.sum(-1)), **each}

  def predict(self, out):
    return {"value": self.value(out["logits"])}

  def rank(self, measured):
    return (-math.inf if math.isnan(measured["loss"]) else -measured["loss"],)
