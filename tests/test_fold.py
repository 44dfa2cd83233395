"""`zoo.fold`: one network of every family answers the same without its batch norms."""

from functools import partial

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from tests.test_contract import _smallest
import zoo

OTHERS = {
  "yolo": ("yolov3_tiny", {"num_classes": 4}, 64),
  "retinanet": ("retinanet_resnet50_fpn_v2", {"num_classes": 4}, 64),
  "lraspp": ("lraspp_mobilenet_v3_large", {"num_classes": 4}, 64),
  "unet": ("unet_encoder", {"num_classes": 4}, 64),
}
CASES = {family: (*row, 96) for family, row in _smallest().items()}


def drawn(model, size):
  """Its variables in float64, every statistic away from zero and one."""
  rng = np.random.default_rng(0)
  flat = traverse_util.flatten_dict(zoo.shapes(model, size=size), sep="/")
  for path, spec in flat.items():
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
      flat[path] = rng.normal(size=spec.shape) * np.sqrt(2 / np.prod(spec.shape[:-1]))
    elif leaf in ("var", "scale"):
      flat[path] = rng.uniform(0.5, 1.5, spec.shape)
    else:
      flat[path] = 0.3 * rng.normal(size=spec.shape)
  return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize(("name", "fields", "size"), CASES.values(), ids=CASES)
def test_a_folded_network_answers_the_same(name, fields, size):
  with jax.enable_x64(True):
    model = zoo.create(name, **{**fields, "plain": True, "dtype": jnp.float64})
    variables = drawn(model, size)
    folded = zoo.fold(model, variables, size=size)
    image = np.random.default_rng(1).normal(size=(2, size, size + 1, 3))

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
