"""A caption for each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from zoo.text.decode import PAD


@dataclasses.dataclass(frozen=True)
class Caption:
  """Cross-entropy of each next word: out["logits"] [b t c] and batch["tokens"] [b t] int32.

  Tokens begin with the start and end in padding; behind token i the model is asked for token i + 1.
  """

  smoothing: float = 0.0  # label smoothing (arXiv:1512.00567)
  # Every place should be looked at once in all (arXiv:1502.03044, equation 14).
  stochastic: float = 1.0
  # Of what hard attention learns by: places that made the caption likelier than the batch's mean
  # are drawn more often; and of the entropy that keeps them from settling at once (equation 12).
  reinforce: float = 1.0
  entropy: float = 0.002
  inputs: tuple[str, ...] = ("image", "tokens")
  target: str = "tokens"

  def terms(self, out, batch):
    tokens = batch["tokens"]
    logits, wanted = out["logits"][:, :-1].astype(jnp.float32), tokens[:, 1:]
    real = (wanted != PAD).astype(jnp.float32)
    smooth = optax.smooth_labels(jax.nn.one_hot(wanted, logits.shape[-1]), self.smoothing)
    loss = (optax.softmax_cross_entropy(logits, smooth) * real).sum(1)
    count = real.sum(1)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, wanted) * real
    right = (jnp.argmax(logits, -1) == wanted) * real
    if "attention" in out:
      loss += self._attention(out, -plain.sum(1), real)
    return {
      "loss": (loss, count),
      "nats": (plain.sum(1), count),  # per word; its exponential is the perplexity
      "word": (right.sum(1), count),
    }

  def _attention(self, out, log_prob, real):
    """What looking costs [b], of captions that are so likely [b]."""
    attention = out["attention"][:, :-1].astype(jnp.float32)
    if "chosen_log_prob" not in out:
      seen = (attention * real[..., None]).sum(1)
      return self.stochastic * jnp.square(1 - seen).sum(1)
    chosen = (out["chosen_log_prob"][:, :-1] * real).sum(1)
    reward = jax.lax.stop_gradient(log_prob - log_prob.mean())
    spread = -(attention * jnp.log(attention + 1e-20)).sum(-1)
    return -self.reinforce * reward * chosen - self.entropy * (spread * real).sum(1)

  def predict(self, out):
    """What the model, shown each word, expects next."""
    return {"next": jnp.argmax(out["logits"], -1).astype(jnp.int32)}

  def rank(self, measured):
    return (-math.inf if math.isnan(measured["nats"]) else -measured["nats"],)
