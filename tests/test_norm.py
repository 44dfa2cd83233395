"""Local response normalisation against its definition."""

import jax.numpy as jnp
import numpy as np

from zoo.ops.norm import local_response_norm


def test_local_response_norm():
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 7)).astype(np.float32) * 30
  want = np.zeros_like(x)
  for c in range(7):
    window = x[..., max(0, c - 2) : c + 3]  # channels beyond the ends are zeros
    want[..., c] = x[..., c] / (2 + 0.01 / 5 * (window**2).sum(-1)) ** 0.75
  got = local_response_norm(jnp.asarray(x), alpha=0.01, constant=2.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert local_response_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
