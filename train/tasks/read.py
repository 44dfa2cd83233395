"""A text for each line."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from zoo.ops import ctc, edit
from zoo.text import decode


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
    return {"loss": (loss, fits.astype(jnp.float32))} | self._errors(out, text, length, fits)

  def _errors(self, out, text, length, fits):
    read = self.read(out)
    wrong = edit.distance(read.tokens, read.lengths, text, length).astype(jnp.float32)
    one = jnp.ones(length.shape, jnp.float32)
    return {
      "cer": (wrong, length.astype(jnp.float32)),
      "line": ((wrong == 0).astype(jnp.float32), one),
      "infeasible": ((~fits).astype(jnp.float32), one),
    }

  def read(self, out) -> ctc.Decoded:
    return ctc.greedy(out["logits"], blank=self.blank)

  def predict(self, out):
    return self.read(out)._asdict()

  def rank(self, measured):
    cer, loss = measured["cer"], measured["loss"]
    return tuple(-math.inf if math.isnan(v) else -v for v in (cer, loss))


@dataclasses.dataclass(frozen=True)
class Spell(Read):
  """The same by cross-entropy: out["logits"] [b t c] say character by character (arXiv:1704.03549).

  The blank ends a text and is asked for at all steps behind it. While it trains, the model hears
  the text, and "cer" and "line" are of what it says then; else it hears itself.
  """

  smoothing: float = 0.1  # label smoothing (arXiv:1512.00567)
  inputs: tuple[str, ...] = ("image", "text")

  def terms(self, out, batch):
    text, logits = batch["text"], out["logits"].astype(jnp.float32)
    length, steps = jnp.sum(text != self.blank, axis=1), logits.shape[1]
    wanted = jnp.pad(text, ((0, 0), (0, steps)), constant_values=self.blank)[:, :steps]
    smooth = optax.smooth_labels(jax.nn.one_hot(wanted, logits.shape[-1]), self.smoothing)
    loss, fits = optax.softmax_cross_entropy(logits, smooth).sum(1), length <= steps
    real = fits.astype(jnp.float32)
    return {"loss": (loss * real, real)} | self._errors(out, text, length, fits)

  def read(self, out) -> ctc.Decoded:
    return decode.spelled(out["logits"], blank=self.blank)
