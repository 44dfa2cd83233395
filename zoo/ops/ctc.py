"""Connectionist temporal classification: the likelihood of a text, and the ways back to text.

Graves et al. 2006; prefix beam search after Graves 2012 (section 7.5.3) and Hannun et al. 2014,
arXiv:1408.2873.  All shapes are static.  `frames` [b] counts the real time steps of each row
(padding stands on the right; None: all are real).  Labels are padded with anything behind their
length; decoded ones with the blank, which no text contains.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Stands for log 0: finite, so that gradients of impossible paths are 0 and not NaN.
NEVER = -1e30


class Decoded(NamedTuple):
  tokens: jax.Array  # [b t] int32
  lengths: jax.Array  # [b] int32
  confidence: jax.Array  # [b t] float32, of each token: its highest probability while it is held


class Beams(NamedTuple):
  tokens: jax.Array  # [b width t] int32, the best text first
  lengths: jax.Array  # [b width] int32
  log_probs: jax.Array  # [b width] float32, of the text, summed over the paths that were kept


def feasible(labels: jax.Array, lengths: jax.Array, frames: jax.Array) -> jax.Array:
  """[b] bool: whether a text fits its frames; equal neighbours need a blank between them."""
  inside = jnp.arange(1, labels.shape[1]) < lengths[:, None]
  repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & inside, axis=1)
  return lengths + repeats <= frames


def loss(
  logits: jax.Array, labels: jax.Array, lengths: jax.Array, frames=None, *, blank: int = 0
) -> tuple[jax.Array, jax.Array]:
  """(-log p(text) [b], feasible [b] bool) of logits [b t c] and labels [b l].

  Rows whose text does not fit their frames have loss 0 and no gradient: mask them in the mean.
  """
  frames = _frames(logits, frames)
  fits = feasible(labels, lengths, frames)
  value = -log_likelihood(logits, labels[:, None], lengths[:, None], frames, blank=blank)[:, 0]
  return jnp.where(fits, value, 0), fits


def log_likelihood(
  logits: jax.Array, labels: jax.Array, lengths: jax.Array, frames=None, *, blank: int = 0
) -> jax.Array:
  """log p(text) [b n] of n texts for each row; at most NEVER / 2 where a text cannot be.

  Args:
    logits: [b t c].
    labels: [b n l], or [n l]: the same texts for every row.
    lengths: [b n] or [n].
    frames: [b], see the module.
    blank: class of the blank.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  each = jax.vmap(_log_likelihood, (None, 0, 0, None, None))
  axes = (0, 0 if labels.ndim == 3 else None, 0 if lengths.ndim == 2 else None, 0, None)
  return jax.vmap(each, axes)(log_probs, labels, lengths, _frames(logits, frames), blank)


def _log_likelihood(log_probs, labels, length, frames, blank):
  """Of one text [l] in [t c].  alpha[i] ends in label i, gap[i] in the blank before it.

  Only the columns of the text and of the blank are read: an alphabet's size costs nothing.
  """
  steps, size = log_probs.shape[0], labels.shape[0]
  empty = log_probs[:, blank]
  spoken = log_probs[:, labels]
  # From one label right to the next: only to a different one.
  direct = jnp.concatenate([jnp.array([True]), labels[1:] != labels[:-1]])

  def step(state, inputs):
    t, p, b = inputs
    alpha, gap = state
    came = jnp.concatenate([jnp.full(1, NEVER), alpha[:-1]])
    new = jnp.logaddexp(jnp.logaddexp(alpha, gap[:size]), jnp.where(direct, came, NEVER)) + p
    hold = jnp.concatenate([jnp.full(1, NEVER), alpha])
    rest = jnp.logaddexp(gap, hold) + b
    real = t < frames
    return (jnp.where(real, new, alpha), jnp.where(real, rest, gap)), None

  start = jnp.full(size, NEVER), jnp.full(size + 1, NEVER).at[0].set(0.0)
  (alpha, gap), _ = lax.scan(step, start, (jnp.arange(steps), spoken, empty))
  last = jnp.where(length > 0, alpha[jnp.maximum(length - 1, 0)], NEVER) if size else NEVER
  return jnp.logaddexp(gap[length], last)


def greedy(logits: jax.Array, frames=None, *, blank: int = 0) -> Decoded:
  """The most probable class of every frame, repeats joined and blanks left out: [b t c]."""
  steps = jnp.arange(logits.shape[1])
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  best = jnp.argmax(probs, axis=-1).astype(jnp.int32)
  best = jnp.where(steps < _frames(logits, frames)[:, None], best, blank)
  before = jnp.concatenate([jnp.full_like(best[:, :1], blank), best[:, :-1]], axis=1)
  starts = (best != blank) & (best != before)
  place = jnp.cumsum(starts, axis=1) - 1
  place = jnp.where(best != blank, place, logits.shape[1])  # blanks land outside and are dropped

  def collect(best, place, peak):
    tokens = jnp.full_like(best, blank).at[place].set(best, mode="drop")
    return tokens, jnp.zeros_like(peak).at[place].max(peak, mode="drop")

  tokens, confidence = jax.vmap(collect)(best, place, probs.max(-1))
  return Decoded(tokens, starts.sum(1, dtype=jnp.int32), confidence)


def lexicon(
  logits: jax.Array, words: jax.Array, lengths: jax.Array, frames=None, *, blank: int = 0
) -> tuple[jax.Array, jax.Array]:
  """(the most probable of given words [b] int32, log p of every word [b n]).

  Args are those of `log_likelihood`.  Exact: every word is weighed over all its paths.
  """
  scores = log_likelihood(logits, words, lengths, frames, blank=blank)
  return jnp.argmax(scores, axis=-1).astype(jnp.int32), scores


def beam_search(
  logits: jax.Array, width: int, frames=None, *, blank: int = 0, candidates: int | None = None
) -> Beams:
  """The most probable texts of logits [b t c], by prefix beam search.

  Args:
    logits: [b t c].
    width: texts kept after every frame; exact if it holds every prefix that there is.
    frames: [b], see the module.
    blank: class of the blank.
    candidates: classes of a frame that may extend a text, the most probable ones; None is all.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  classes = logits.shape[-1]
  some = classes if candidates is None else min(candidates + 1, classes)  # one may be the blank

  def one(log_probs, frames):
    steps = log_probs.shape[0]

    def step(state, inputs):
      t, p = inputs
      moved = _extend(state, p, blank, some)
      return jax.tree.map(lambda new, old: jnp.where(t < frames, new, old), moved, state), None

    state = (
      jnp.full((width, steps), blank, jnp.int32),
      jnp.zeros(width, jnp.int32),
      jnp.full(width, -jnp.inf).at[0].set(0.0),  # log p of all paths that end in a blank
      jnp.full(width, -jnp.inf),  # and of those that end in the text's last token
    )
    (tokens, lengths, gap, held), _ = lax.scan(step, state, (jnp.arange(steps), log_probs))
    return Beams(tokens, lengths, jnp.logaddexp(gap, held))

  return jax.vmap(one)(log_probs, _frames(logits, frames))


def _extend(state, p, blank: int, some: int):
  """One frame [c] of the search: every text stays or grows by a class; the best are kept."""
  tokens, lengths, gap, held = state
  width, steps = tokens.shape
  rows = jnp.arange(width)
  end = jnp.maximum(lengths - 1, 0)
  last = jnp.where(lengths > 0, tokens[rows, end], blank)
  total = jnp.logaddexp(gap, held)

  def grown(row, token):
    """log p of a text's paths that go on with `token`; a repeat needs a blank in between."""
    return jnp.where(token == last[row], gap[row], total[row]) + p[token]

  # A text that another one of the beam becomes by growing collects that one's paths.
  stems = tokens.at[rows, end].set(blank)
  child = jnp.all(stems[None] == tokens[:, None], axis=-1)  # [text, child]
  child &= (lengths[None] == lengths[:, None] + 1) & jnp.isfinite(total)
  parent = jnp.argmax(child, axis=0)
  gain = jnp.where(child.any(0), grown(parent, last), -jnp.inf)
  stay_gap = total + p[blank]
  stay_held = jnp.logaddexp(jnp.where(lengths > 0, held + p[last], -jnp.inf), gain)

  _, new = lax.top_k(p, some)
  grow = grown(rows[:, None], new[None])
  known = jnp.any(child[:, :, None] & (last[None, :, None] == new), axis=1)
  grow = jnp.where(known | (new == blank), -jnp.inf, grow)

  scores = jnp.concatenate([jnp.logaddexp(stay_gap, stay_held), grow.reshape(-1)])
  _, best = lax.top_k(scores, width)
  stays = best < width
  source = jnp.where(stays, best, (best - width) // some)
  token = new[(best - width) % some]
  place = jnp.where(stays, steps, lengths[source])  # outside where nothing is appended
  return (
    tokens[source].at[rows, place].set(token, mode="drop"),
    lengths[source] + ~stays,
    jnp.where(stays, stay_gap[source], -jnp.inf),
    jnp.where(stays, stay_held[source], scores[best]),
  )


def _frames(logits, frames):
  return jnp.full(logits.shape[0], logits.shape[1]) if frames is None else frames
