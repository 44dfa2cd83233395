"""Normalisations, on [b h w c]."""

from functools import partial
import math

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


def shifted(x, scale, bias, mean, var, eps):
  """x by given statistics, as Flax does."""
  return (x - mean) * (lax.rsqrt(var + eps) * scale) + bias


def _with_statistics(x):
  x, axes = x.astype(jnp.promote_types(x.dtype, jnp.float32)), range(x.ndim - 1)
  mean = x.mean(axes)
  return x, mean, jnp.maximum(0.0, (x * x).mean(axes) - mean * mean)


def _shifted(x, scale, bias, eps):
  x, mean, var = _with_statistics(x)
  return shifted(x, scale, bias, mean, var, eps), mean, var


def _scaled(x, scale, bias, eps):
  x, mean, var = _with_statistics(x)
  root = jnp.sqrt(var + eps)
  return x * (scale / root) + (bias * root - mean * scale) / root, mean, var


def _shifted_gradients(x, scale, bias, mean, var, dy, dmean, dvar, eps):
  return jax.vjp(partial(_shifted, eps=eps), x, scale, bias)[1]((dy, dmean, dvar))


def _scaled_gradients(x, scale, bias, mean, var, dy, dmean, dvar, eps):
  axes, count = range(x.ndim - 1), math.prod(x.shape[:-1])
  root = jnp.sqrt(var + eps)
  dbias = dy.sum(axes)
  dscale = ((dy * x).sum(axes) - mean * dbias) / root
  # What is added to (scale / root) * dy; each ends in a division, so that XLA computes it once.
  slope = jnp.where(var > 0, 2 * dvar * root**2 - scale * dscale, 0.0) / (count * root**2)
  shift = (dmean * root - scale * dbias - count * root * mean * slope) / (count * root)
  return ((scale / root) * dy + slope * x + shift).astype(x.dtype), dscale, dbias


# Jitted: a network has many norms of one shape, and each shape is traced once.


@partial(jax.jit, static_argnames="eps")
def _forward(*args, eps):
  return lax.platform_dependent(
    *args, cpu=partial(_scaled, eps=eps), default=partial(_shifted, eps=eps)
  )


@partial(jax.jit, static_argnames="eps")
def _backward(*args, eps):
  return lax.platform_dependent(
    *args, cpu=partial(_scaled_gradients, eps=eps), default=partial(_shifted_gradients, eps=eps)
  )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[... c], [c], [c] -> x normalised by its own statistics, in float32 at least; mean, variance.

  Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.  The variance is the biased one, computed
  as Flax does.  On a CPU x * a + b has gradients of its own that read x and y's twice; elsewhere
  it is Flax's (x - mean) * a + bias and what autodiff makes of it (bench/speed.md).
  Differentiable backward, as often as one likes, not forward.
  """
  return _forward(x, scale, bias, eps=eps)


def _batch_norm_forward(x, scale, bias, eps):
  y, mean, var = _forward(x, scale, bias, eps=eps)
  return (y, mean, var), (x, scale, bias, mean, var)


def _batch_norm_backward(eps, saved, cotangents):
  return _backward(*saved, *cotangents, eps=eps)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
