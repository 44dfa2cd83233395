"""A text for each line."""

import dataclasses
import math

import jax.numpy as jnp

from zoo.ops import ctc, edit


@dataclasses.dataclass(frozen=True)
class Read:
  """CTC: out["logits"] [b t c] and batch["text"] [b l] int32, filled up with the blank.

  "cer" is letters wrong over letters asked, "line" the share of lines without an error; both of
  the greedy reading.  A text that does not fit its frames teaches nothing: "infeasible" counts it.
  """

  blank: int = 0
  inputs: tuple[str, ...] = ("image",)
  target: str = "text"

  def terms(self, out, batch):
    text = batch["text"]
    length = jnp.sum(text != self.blank, axis=1)
    loss, fits = ctc.loss(out["logits"], text, length, blank=self.blank)
    read = ctc.greedy(out["logits"], blank=self.blank)
    wrong = edit.distance(read.tokens, read.lengths, text, length).astype(jnp.float32)
    one = jnp.ones(length.shape, jnp.float32)
    return {
      "loss": (loss, fits.astype(jnp.float32)),
      "cer": (wrong, length.astype(jnp.float32)),
      "line": ((wrong == 0).astype(jnp.float32), one),
      "infeasible": ((~fits).astype(jnp.float32), one),
    }

  def predict(self, out):
    return ctc.greedy(out["logits"], blank=self.blank)._asdict()

  def rank(self, measured):
    cer, loss = measured["cer"], measured["loss"]
    return tuple(-math.inf if math.isnan(v) else -v for v in (cer, loss))
