"""Normalisations against their definitions."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import BatchNorm
from zoo.ops import norm


def test_local_response_norm():
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 7)).astype(np.float32) * 30
  want = np.zeros_like(x)
  for c in range(7):
    window = x[..., max(0, c - 2) : c + 3]  # channels beyond the ends are zeros
    want[..., c] = x[..., c] / (2 + 0.01 / 5 * (window**2).sum(-1)) ** 0.75
  got = norm.local_response_norm(jnp.asarray(x), alpha=0.01, constant=2.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert norm.local_response_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def images():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 5, 3, 6)) * rng.uniform(0.5, 3, 6) + rng.normal(size=6)
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("fields", [{}, {"use_scale": False}, {"use_running_average": True}])
def test_batch_norm_is_that_of_flax(fields, dtype):
  fields = {"use_running_average": False, "momentum": 0.7, "epsilon": 1e-3, **fields}
  x = images()
  own, flax = (layer(dtype=dtype, **fields) for layer in (BatchNorm, nn.BatchNorm))
  variables = jax.tree.map(
    lambda v: v + jnp.cos(jnp.arange(v.size)).reshape(v.shape) / 2, own.init(jax.random.key(0), x)
  )
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
    jnp.shape, flax.init(jax.random.key(0), x)
  )

  def loss(params, x, layer):
    y, moved = layer.apply({**variables, "params": params}, x.astype(dtype), mutable="batch_stats")
    assert y.dtype == dtype
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, moved)

  run = jax.value_and_grad(loss, (0, 1), has_aux=True)
  got, want = (jax.jit(partial(run, layer=layer))(variables["params"], x) for layer in (own, flax))
  rounding = 1e-5 if dtype == jnp.float32 else 2e-2
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    one, other = (np.asarray(v, np.float64) for v in (one, other))
    assert np.abs(one - other).max() <= rounding * max(1, np.abs(other).max())


def test_every_output_of_batch_norm_has_gradients_of_every_order():
  x, scale, bias = images(), jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)

  def turns(run, x, scale, bias):
    y, mean, var = run(x, scale, bias, 1e-3)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(mean)) + jnp.sum(var**2)

  def twice(run):
    slope = jax.grad(partial(turns, run), (0, 1, 2))
    return slope, jax.grad(lambda *args: sum(jnp.sum(jnp.sin(s)) for s in slope(*args)), (0, 1, 2))

  for got, want in zip(twice(norm.batch_norm), twice(norm._shifted)):
    for one, other in zip(got(x, scale, bias), want(x, scale, bias)):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_has_no_gradient_of_its_variance():
  x = images().at[..., 2].set(3.0)
  slope = jax.grad(lambda x: jnp.sum(norm.batch_norm(x, jnp.ones(6), jnp.ones(6), 1e-3)[0] ** 2))(x)
  assert np.abs(slope[..., 2]).max() < 1e-3 and np.isfinite(slope).all()


def test_other_platforms_keep_the_norm_of_flax():
  loss = lambda x: jnp.sum(jnp.sin(norm.batch_norm(x, jnp.ones(6), jnp.ones(6), 1e-3)[0]))
  traced = jax.jit(jax.grad(loss)).trace(images())
  cpu, tpu = (traced.lower(lowering_platforms=(to,)).as_text() for to in ("cpu", "tpu"))
  assert "stablehlo.sqrt" in cpu and "stablehlo.rsqrt" not in cpu
  assert "stablehlo.rsqrt" in tpu and "stablehlo.sqrt" not in tpu
