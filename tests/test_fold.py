"""`zoo.fold`: one classifier of every family answers the same without its batch norms."""

from functools import partial

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases, parity
import zoo

SIZE = 96


@pytest.mark.parametrize(("name", "fields"), cases.smallest().values(), ids=cases.smallest())
def test_a_folded_network_answers_the_same(name, fields):
  with jax.enable_x64(True):
    model = zoo.create(name, **{**fields, "plain": True, "dtype": jnp.float64})
    variables = jax.tree.map(np.float64, parity.fresh(model, size=SIZE, spread=0.5))
    folded = zoo.fold(model, variables, size=SIZE)
    image = np.random.default_rng(1).normal(size=(2, SIZE, SIZE + 1, 3))

    @partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
    def both(whole, less, image):
      return [m.apply(v, image, train=False) for m, v in ((model, whole), (folded[0], less))]

    want, got = jax.device_get(both(variables, folded[1], image))
  assert got.keys() == want.keys()
  for end, value in want.items():
    np.testing.assert_allclose(got[end], value, rtol=0, atol=1e-9 * np.abs(value).max())
  norms = set(traverse_util.flatten_dict(variables.get("batch_stats", {}), sep="/"))
  left = set(traverse_util.flatten_dict(folded[1].get("batch_stats", {}), sep="/"))
  assert not norms or len(left) < len(norms) / 4  # those of heads that only training runs
