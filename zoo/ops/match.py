"""Which object each anchor answers for, and which anchors are trained on.

Objects are padded: `real` [m] says which of m rows are there.  With none, every anchor is
background.
"""

import jax
from jax import lax
import jax.numpy as jnp

BACKGROUND, IGNORED = -1, -2


def match(
  iou: jax.Array, real: jax.Array, *, high: float, low: float, rescue: bool = False
) -> jax.Array:
  """[n] int32: the object of each anchor, BACKGROUND below `low`, IGNORED between the two.

  Args:
    iou: [m n] of every object with every anchor.
    real: [m] bool.
    high: from which an anchor answers for the object that it overlaps most.
    low: below which it is background.
    rescue: the anchors that overlap an object most (all of equal ones) are never lost; they answer
      for the object that they themselves overlap most, which may be another.
  """
  iou = jnp.where(real[:, None], iou, -1)
  own, best = jnp.argmax(iou, 0).astype(jnp.int32), iou.max(0)
  found = jnp.where(best >= high, own, jnp.where(best < low, BACKGROUND, IGNORED))
  if rescue:
    top = iou.max(1, keepdims=True)
    found = jnp.where(((iou == top) & real[:, None]).any(0), own, found)
  return jnp.where(real.any(), found, BACKGROUND)


def match_each(iou: jax.Array, real: jax.Array, *, high: float) -> jax.Array:
  """[n] int32 as `match`, and every object gets the anchor that it overlaps most: SSD's rule.

  Where two objects want the same anchor, the later has it.
  """
  found = match(iou, real, high=high, low=high)
  n = iou.shape[1]
  best = jnp.where(real, jnp.argmax(iou, 1), n)
  # a loop, for scatter leaves open which of equal indices is written last
  return lax.fori_loop(
    0, len(real), lambda i, out: out.at[best[i]].set(i, mode="drop"), found
  )  # fmt: skip


def sample(
  key: jax.Array, matched: jax.Array, count: int, share: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A random choice of anchors: (index [count], positive [count] bool, negative [count] bool).

  Positives come first, at most `share` of `count`; background fills up.  Rows that are neither are
  padding.

  Args:
    matched: [n] int32 from `match`.
  """
  n = matched.shape[0]
  noise = jax.random.uniform(key, (n,))
  positive, negative = matched >= 0, matched == BACKGROUND
  most = int(count * share)
  taken = positive & (_rank(positive, noise) < most)
  room = count - taken.sum()
  other = negative & (_rank(negative, noise) < room)
  # positives before background before the rest, each in random order
  order = jnp.argsort(-(2.0 * taken + other) - 0.5 * noise, stable=True)[:count]
  if n < count:
    order = jnp.pad(order, (0, count - n))
  there = jnp.arange(count) < n
  return order.astype(jnp.int32), taken[order] & there, other[order] & there


def _rank(chosen, noise):
  """[n]: place of each row in the random order of the chosen; others come after."""
  order = jnp.argsort(jnp.where(chosen, noise, 2.0))
  return jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
