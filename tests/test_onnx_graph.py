"""Single operations and small programs as ONNX graphs, run by onnxruntime beside JAX."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
import numpy as np
import pytest

from convert import onnx_graph
from zoo.ops import conv as ops
from zoo.ops.forms import every

pytest.importorskip("onnx", reason="pip install flaxzoo[onnxruntime]")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install flaxzoo[references]")


def written(run, size: int, channels: int, arrays=()):
  """(graph, its answer, JAX's answer) of run(image, *arrays) for two images."""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=shape).astype(np.float32) for shape in arrays]
  image = rng.normal(size=(2, size, size, channels)).astype(np.float32)
  [batch] = jax.export.symbolic_shape("batch")
  free = jax.ShapeDtypeStruct((batch, *image.shape[1:]), np.float32)
  names = [f"array_{i}" for i in range(len(arrays))]
  program = jax.make_jaxpr(run)(free, *arrays)
  model = onnx_graph.model(program, ["image", *names], ["out"], dict(zip(names, arrays)), {})
  session = onnxruntime.InferenceSession(model.SerializeToString())
  [got] = session.run(None, {"image": image})
  return model.graph, got, np.asarray(jax.jit(run)(image, *arrays))


def padded(x, before, after):
  return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


SLICES = {  # (program, how many of which operations)
  "every second": (lambda x: every(x, (2, 2)), {"MaxPool": 1}),
  "every third row": (lambda x: every(x, (3, 1)), {"MaxPool": 1}),
  "from the second on": (lambda x: every(x[:, 1:, 1:], (2, 2)), {"Conv": 1}),
  "behind a border": (lambda x: every(padded(x, 0, 1)[:, 1:, 1:], (2, 2)), {"Conv": 1}),
  "a border before": (lambda x: every(padded(x, 1, 0), (2, 2)), {"Conv": 1}),
  "in two steps": (lambda x: every(every(x, (2, 2)), (2, 2)), {"MaxPool": 1}),
  "far from the edge": (lambda x: every(x[:, 2:-1, 2:-1], (2, 2)), {"Slice": None}),
  "a part": (lambda x: lax.slice_in_dim(x, 1, 5, 2, 1), {"Slice": None}),
  "a border behind": (lambda x: every(padded(x[:, 1:, 1:], 1, 1), (2, 2)), {"Pad": 1}),
  "whole numbers": (lambda x: every(x.astype(jnp.int32), (2, 2)), {"Slice": None}),
}


@pytest.mark.parametrize("size", (8, 9))
@pytest.mark.parametrize("name", SLICES)
def test_slices_with_steps(name, size):
  run, kinds = SLICES[name]
  graph, got, want = written(run, size, 5)
  np.testing.assert_array_equal(got, want)
  found = Counter(node.op_type for node in graph.node)
  assert all(found[kind] == count if count else found[kind] for kind, count in kinds.items())
  if not kinds.keys() & {"Slice", "Pad"}:
    assert not found.keys() & {"Slice", "Pad"}


convolved = partial(ops.conv, plain=True)


def narrow_depthwise(x, first, second, third):
  return convolved(convolved(convolved(x, first), second, groups=11), third)


def odd_branches(x, first, second, third, fourth):
  one, two = jax.nn.relu(convolved(x, first)), jax.nn.sigmoid(convolved(x, second))
  return convolved(jnp.concatenate([one, two], -1) * 2, third) + convolved(x, fourth)


def two_halves(x, first, second, whole, last):
  """A concatenation that is added to a convolution of all its channels, and met by a third."""
  joined = jnp.concatenate([convolved(x, first), convolved(x, second)], -1)
  total = joined + convolved(x, whole)
  return convolved(jnp.concatenate([total, convolved(x, whole)], -1), last)


def gated(x, first, small, last):
  y = convolved(x, first)
  gate = jax.nn.sigmoid(convolved(y.mean((1, 2), keepdims=True), small))
  return convolved(jnp.concatenate([y * gate, y], -1), last)


def seen(x, first, second, third):
  """What is rounded for one reader is an answer as well, and cut by another."""
  y = convolved(x, first)
  after = convolved(convolved(y, second, groups=11), third)
  return jnp.concatenate([y[..., 3:7], after], -1)


PROGRAMS = {  # (program, channels of the image, shapes of its kernels, kinds that are not left)
  "depthwise": (narrow_depthwise, 5, [(1, 1, 5, 11), (3, 3, 1, 11), (1, 1, 11, 7)], {"Gather"}),
  "branches": (
    odd_branches, 6, [(3, 3, 6, 10), (1, 1, 6, 3), (1, 1, 13, 5), (1, 1, 6, 5)], {"Gather"},
  ),
  "halves": (
    two_halves, 6, [(1, 1, 6, 11), (1, 1, 6, 7), (1, 1, 6, 18), (3, 3, 36, 5)], {"Gather"},
  ),
  "gate": (gated, 6, [(3, 3, 6, 22), (1, 1, 22, 22), (1, 1, 44, 3)], {"Gather"}),
  "readers": (seen, 5, [(1, 1, 5, 11), (3, 3, 1, 11), (1, 1, 11, 7)], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_channels_in_whole_blocks(name):
  run, channels, shapes, gone = PROGRAMS[name]
  graph, got, want = written(run, 8, channels, shapes)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  assert not gone & {node.op_type for node in graph.node}
  sizes = {array.name: list(array.dims) for array in graph.initializer}
  assert any(size[0] % 16 == 0 for size in sizes.values() if len(size) == 4)


@pytest.mark.parametrize(
  "size, before, groups, merged",
  [(4, 4, 8, 2), (8, 8, 4, 2), (4, 8, 8, 2), (2, 2, 8, 1), (16, 16, 2, 2), (3, 3, 4, 4),
   (4, 4, 3, 3)],
)  # fmt: skip
def test_narrow_groups_side_by_side(size, before, groups, merged):
  shape = (3, 3, before, size * groups)
  run = partial(convolved, groups=groups)
  graph, got, want = written(run, 7, before * groups, [shape])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  [node] = [node for node in graph.node if node.op_type == "Conv"]
  assert [a.i for a in node.attribute if a.name == "group"] == [merged]
