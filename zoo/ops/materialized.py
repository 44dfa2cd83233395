"""Arrays that XLA's CPU backend is to compute once."""

import jax
from jax import lax
import jax.numpy as jnp


@jax.custom_jvp
@jax.jit
def materialized(x: jax.Array) -> jax.Array:
  """x itself, which XLA:CPU then computes once and writes, instead of anew in each of its readers.

  Else a residual stage's last sum is made of all its blocks' outputs, in every layer that reads it.
  Nothing on other platforms.
  """
  return lax.platform_dependent(x, cpu=dear, default=lambda x: x)


@materialized.defjvp
def _(primals, tangents):
  return materialized(*primals), tangents[0]


def dear(x: jax.Array) -> jax.Array:
  """x itself, which XLA does not repeat.

  No instruction says so: a remainder changes nothing here, but XLA takes it for too dear to be
  repeated (LLVM makes a comparison and a subtraction of it). The one bit pattern that changes, to
  zero, is that of ones alone: the largest integer, or a NaN that arithmetic does not give.
  """
  bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
  most = jnp.iinfo(bits.dtype).max
  return lax.bitcast_convert_type(lax.rem(bits, jnp.full_like(bits, most)), x.dtype)
