"""`zoo.fold`: a network answers the same without its batch norms.

One classifier of every family, and some of the other tasks' with norms of their own.
"""

from functools import partial

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases, parity
import zoo

SIZE = 96
# Unlike those of float32, convolutions of float64 are code that LLVM has to improve.
COMPILATION = parity.QUICK_COMPILATION | {"xla_backend_optimization_level": 1}
OTHERS = ("yolov3_tiny", "ssd300_mobilenet_v1", "lraspp_mobilenet_v3_large", "craft", "crnn")
NETWORKS = cases.smallest() | {name: (name, {}) for name in OTHERS}
# What `cpu_batch` changes: heads that see maps of several sizes, wide 1x1 kernels, dense layers.
PACKED = {"vgg11": {"tiles", "turned"}, "retinanet_resnet50_fpn": {"tiles", "turned"}}


@pytest.mark.parametrize(("name", "fields"), NETWORKS.values(), ids=NETWORKS)
def test_a_folded_network_answers_the_same(name, fields):
  reads = isinstance(zoo.preprocess(name), zoo.Line)
  size, channels = ((32, 100), 1) if reads else ((SIZE, SIZE), 3)
  variables, folded = compared(name, fields, size, channels)
  norms = set(traverse_util.flatten_dict(variables.get("batch_stats", {}), sep="/"))
  left = set(traverse_util.flatten_dict(folded.get("batch_stats", {}), sep="/"))
  assert not norms or len(left) < len(norms) / 4  # those of heads that only training runs


@pytest.mark.parametrize(("name", "layouts"), PACKED.items(), ids=PACKED)
def test_so_does_one_with_packed_kernels(name, layouts):
  _, folded = compared(name, {}, (SIZE, SIZE), 3, cpu_batch=1)
  kernels = traverse_util.flatten_dict(folded["params"])
  assert {path[-1] for path in kernels if path[-2] == "kernel"} == layouts


def compared(name, fields, size, channels, **packing):
  """The variables of a network and of itself folded, once both have answered the same."""
  with jax.enable_x64(True):
    model = zoo.create(name, **{**fields, "plain": False, "dtype": jnp.float64})
    fresh = parity.fresh(model, size=size, channels=channels, spread=0.5)
    variables = jax.tree.map(np.float64, fresh)
    folded = zoo.fold(model, variables, size=size, channels=channels, **packing)
    image = np.random.default_rng(1).normal(size=(1, size[0], size[1] + 32, channels))

    @partial(jax.jit, compiler_options=COMPILATION)
    def both(whole, less, image):
      return [m.apply(v, image, train=False) for m, v in ((model, whole), (folded[0], less))]

    want, got = jax.device_get(both(variables, folded[1], image))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(*map(jax.tree.leaves, (got, want))):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())
  return variables, folded[1]
