"""Resizing [b h w c] maps as torch does, without antialiasing.

Bilinear weights are two small matrices: their products are as fast backwards as forwards, where
gathered rows would be scattered one by one.
"""

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]


def bilinear(x: jax.Array, size: Pair, *, corners: bool = False) -> jax.Array:
  """[b h w c] -> [b *size c].

  Args:
    x: of a floating type.
    size: (height, width).
    corners: the corner pixels' centres stay in the corners (torch's `align_corners`); else the
      corners of the corner pixels do, and what lies beyond their centres repeats them.
  """
  for axis, n in zip((1, 2), size):
    length = x.shape[axis]
    if length == n:
      continue
    if corners:
      places = np.linspace(0, length - 1, n)
    else:
      places = np.clip((np.arange(n) + 0.5) * (length / n) - 0.5, 0, length - 1)
    weights = np.maximum(0, 1 - abs(places[:, None] - np.arange(length)))
    x = jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,)))
    x = jnp.moveaxis(x, -1, axis)
  return x


def nearest(x: jax.Array, size: Pair) -> jax.Array:
  """[b h w c] -> [b *size c], each pixel the one at floor(i * length / n)."""
  for axis, n in zip((1, 2), size):
    length = x.shape[axis]
    if n % length == 0:
      x = jnp.repeat(x, n // length, axis)
    else:
      x = jnp.take(x, np.arange(n) * length // n, axis)
  return x
