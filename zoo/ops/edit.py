"""How many letters two texts differ by."""

import jax
from jax import lax
import jax.numpy as jnp


def distance(a: jax.Array, a_length: jax.Array, b: jax.Array, b_length: jax.Array) -> jax.Array:
  """[b] int32: insertions, deletions and substitutions from a [b s] to b [b t] (Levenshtein).

  What stands behind the lengths [b] does not count.
  """
  return jax.vmap(_distance)(a, a_length, b, b_length)


def _distance(a, a_length, b, b_length):
  places = jnp.arange(b.shape[0] + 1)

  def row(before, inputs):
    i, letter = inputs
    change = before[:-1] + (b != letter)
    best = jnp.minimum(before + 1, jnp.concatenate([before[:1] + 1, change]))
    # Insertions go along the row: the least of all places before, and a step for each between.
    new = lax.cummin(best - places) + places
    return jnp.where(i < a_length, new, before), None

  last, _ = lax.scan(row, places, (jnp.arange(a.shape[0]), a))
  return last[b_length]
