"""Which object each anchor answers for, and which anchors are trained on.

Objects are padded: `real` [m] says which of m rows are there.  With none, every anchor is
background.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

BACKGROUND, IGNORED = -1, -2
Overlap = Callable[[jax.Array], jax.Array]  # number of an object -> [n]


def match(
  overlap: Overlap, real: jax.Array, *, high: float, low: float, rescue: bool = False
) -> jax.Array:
  """[n] int32: the object of each anchor, BACKGROUND below `low`, IGNORED between the two.

  Args:
    overlap: the IoU of an object with every anchor.
    real: [m] bool.
    high: from which an anchor answers for the object that it overlaps most.
    low: below which it is background.
    rescue: the anchors that overlap an object most (all of equal ones) are never lost; they answer
      for the object that they themselves overlap most, which may be another.
  """
  most = lambda rescued, i, iou: rescued | (iou == iou.max())
  best, own, rescued = _seen(overlap, real, most if rescue else lambda none, *_: none, False)
  found = jnp.where(best >= high, own, jnp.where(best < low, BACKGROUND, IGNORED))
  return jnp.where(rescued, own, found)


def match_each(overlap: Overlap, real: jax.Array, *, high: float) -> jax.Array:
  """[n] int32 as `match`, and every object gets the anchor that it overlaps most: SSD's rule.

  Where two objects want the same anchor, the later has it.
  """
  give = lambda given, i, iou: given.at[jnp.argmax(iou)].set(i)
  best, own, given = _seen(overlap, real, give, BACKGROUND)
  return jnp.where(given >= 0, given, jnp.where(best >= high, own, BACKGROUND))


def _seen(overlap: Overlap, real, mark, unmarked):
  """[n] each: the largest IoU, whose it is, and what `mark` makes of `unmarked` for each object."""
  real, n = jnp.asarray(real), jax.eval_shape(overlap, 0).shape[0]

  def see(i, state):
    best, own, marks = state
    iou = lax.stop_gradient(overlap(i))
    closer = real[i] & (iou > best)
    marks = jnp.where(real[i], mark(marks, i, iou), marks)
    return jnp.where(closer, iou, best), jnp.where(closer, i, own), marks

  last = jnp.max(jnp.where(real, jnp.arange(len(real)) + 1, 0), initial=0)
  start = jnp.full(n, -1.0), jnp.zeros(n, jnp.int32), jnp.full(n, unmarked)
  # One behind the other: all with all anchors are arrays of gigabytes, and a scatter leaves open
  # which of equal indices is written last.
  return lax.fori_loop(0, last, see, start)


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
