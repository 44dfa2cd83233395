"""From a network that says what comes next to whole sequences: greedy and beam search.

`spelled` reads what a network has said by itself.

`step(state, tokens [n]) -> (state, logits [n classes])`; every array of a state has n rows.  A
sequence begins behind `start` and ends with `end`; what follows is 0.  All shapes are static.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from zoo.ops.ctc import Decoded

Step = Callable[[Any, jax.Array], tuple[Any, jax.Array]]
PAD, START, END, UNKNOWN = range(4)


class Sequences(NamedTuple):
  tokens: jax.Array  # [b t] or [b width t] int32, the best first; without `start`, with `end`
  lengths: jax.Array  # [b] or [b width] int32; `end` counts
  log_probs: jax.Array  # [b] or [b width] float32, of the whole sequence


def greedy(step: Step, state, steps: int, *, start: int = START, end: int = END) -> Sequences:
  """The likeliest token, again and again, until `end` or for `steps` tokens."""
  rows = jax.tree.leaves(state)[0].shape[0]

  def body(carry, _):
    state, token, done, total = carry
    state, logits = step(state, token)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    token = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    total += jnp.where(done, 0, jnp.max(log_probs, axis=-1))
    token = jnp.where(done, PAD, token)
    return (state, token, done | (token == end), total), (token, ~done)

  first = jnp.full(rows, start, jnp.int32), jnp.zeros(rows, bool), jnp.zeros(rows)
  (_, _, _, total), (tokens, real) = lax.scan(body, (state, *first), None, steps)
  return Sequences(tokens.T, real.sum(0, dtype=jnp.int32), total)


def beam(
  step: Step, state, steps: int, width: int, *, penalty: float = 0.0, start: int = START,
  end: int = END,
) -> Sequences:  # fmt: skip
  """The `width` best sequences that a search keeping `width` prefixes finds.

  Args:
    step: see the module.
    state: of b rows.
    steps: most tokens of a sequence; those that have not ended by then end there.
    width: prefixes kept; so many sequences come back, fewer real ones have log p -inf.
    penalty: sequences are ranked by log p / length**penalty; 0 favours short ones, 1 is the mean.
    start: see the module.
    end: see the module.
  """
  rows = jax.tree.leaves(state)[0].shape[0]
  spread = jax.tree.map(lambda a: jnp.repeat(a, width, axis=0), state)
  empty = jnp.zeros((rows, width, steps), jnp.int32)
  never = jnp.full((rows, width), -jnp.inf)
  alive = never.at[:, 0].set(0.0)

  def body(carry, t):
    state, token, tokens, alive, done = carry
    state, logits = step(state, token.reshape(-1))
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, width, -1)
    classes = log_probs.shape[-1]
    total = alive[..., None] + log_probs
    # Those that end here leave the race.
    ended = tokens.at[:, :, t].set(end), jnp.full((rows, width), t + 1), total[..., end]
    done = _best(Sequences(*(jnp.concatenate(p, 1) for p in zip(done, ended))), width, penalty)
    open_ = total.at[..., end].set(-jnp.inf).reshape(rows, -1)
    alive, place = lax.top_k(open_, width)
    source, token = place // classes, (place % classes).astype(jnp.int32)
    tokens = jnp.take_along_axis(tokens, source[..., None], 1).at[:, :, t].set(token)
    source = (source + width * jnp.arange(rows)[:, None]).reshape(-1)
    state = jax.tree.map(lambda a: a[source], state)
    return (state, token, tokens, alive, done), None

  token = jnp.full((rows, width), start, jnp.int32)
  nothing = Sequences(empty, jnp.ones((rows, width), jnp.int32), never)
  carry = (spread, token, empty, alive, nothing)
  (_, _, tokens, alive, done), _ = lax.scan(body, carry, jnp.arange(steps))
  cut = Sequences(tokens, jnp.full((rows, width), steps), alive)
  return _best(Sequences(*(jnp.concatenate(p, 1) for p in zip(done, cut))), width, penalty)


def spelled(logits: jax.Array, *, blank: int) -> Decoded:
  """The likeliest class of each step, [b t c], up to the first `blank`."""
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  tokens = jnp.argmax(probs, -1).astype(jnp.int32)
  there = jnp.cumprod(tokens != blank, axis=1)
  lengths = there.sum(1, dtype=jnp.int32)
  return Decoded(jnp.where(there, tokens, blank), lengths, probs.max(-1) * there)


def _best(found: Sequences, width: int, penalty: float) -> Sequences:
  _, place = lax.top_k(found.log_probs / found.lengths**penalty, width)
  return Sequences(
    jnp.take_along_axis(found.tokens, place[..., None], 1),
    *(jnp.take_along_axis(a, place, 1) for a in found[1:]),
  )
