"""Normalisations without parameters, on [b h w c]."""

import jax
from jax import lax
import jax.numpy as jnp


def local_response_norm(
  x: jax.Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, constant: float = 1.0
) -> jax.Array:
  """x / (constant + alpha * mean(x**2 over `size` neighbouring channels)) ** beta.

  Channels beyond the ends count as zeros. Caffe and torch divide alpha by `size`, as here; the
  2012 paper does not. Computed in float32.
  """
  square = jnp.square(x.astype(jnp.float32))
  half = size // 2
  total = lax.reduce_window(
    square, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), (*((0, 0),) * 3, (half, size - 1 - half))
  )
  return x / ((constant + alpha / size * total) ** beta).astype(x.dtype)
