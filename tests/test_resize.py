"""Resizing and transposed convolution against torch, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import conv, resize

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
F = torch.nn.functional


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_equals(ours, theirs, *arrays):
  """Values, and gradients of their sum weighted at random; `theirs` takes and gives [b c h w]."""
  weights = random(*jax.eval_shape(ours, *arrays).shape)

  def loss(*arrays):
    y = ours(*arrays)
    return jnp.sum(y * weights), y

  places = tuple(range(len(arrays)))
  grads, got = jax.jit(jax.grad(loss, argnums=places, has_aux=True))(*arrays)
  tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
  want = theirs(tensors[0].permute(0, 3, 1, 2), *tensors[1:]).permute(0, 2, 3, 1)
  (want * torch.from_numpy(weights)).sum().backward()
  np.testing.assert_allclose(got, want.detach(), atol=2e-5)
  for grad, tensor in zip(grads, tensors):
    np.testing.assert_allclose(grad, tensor.grad, atol=2e-4)


@pytest.mark.parametrize("size", [(14, 10), (3, 4), (13, 5), (7, 1)])
def test_bilinear(size):
  x = random(2, 7, 5, 3)
  for corners in (False, True):
    assert_equals(
      lambda x: resize.bilinear(x, size, corners=corners),  # noqa: B023
      lambda x: F.interpolate(x, size, mode="bilinear", align_corners=corners),  # noqa: B023
      x,
    )


@pytest.mark.parametrize("size", [(14, 10), (3, 4), (13, 9), (7, 5)])
def test_nearest(size):
  assert_equals(
    lambda x: resize.nearest(x, size), lambda x: F.interpolate(x, size), random(2, 7, 5, 3)
  )


@pytest.mark.parametrize(
  ("kernel", "stride", "cut"),
  [((2, 2), (2, 2), 0), ((4, 4), (2, 2), 1), ((3, 5), (2, 3), 1), ((1, 3), (2, 1), 0)],
)
def test_transposed_convolution(kernel, stride, cut):
  assert_equals(
    lambda x, k: conv.conv_transpose(x, k, stride=stride, padding=((cut, cut),) * 2),
    lambda x, k: F.conv_transpose2d(x, k.permute(2, 3, 0, 1), stride=stride, padding=cut),
    random(2, 5, 4, 3), random(*kernel, 3, 6),
  )  # fmt: skip
