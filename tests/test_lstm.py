"""LSTM beside torch's, with its arrays under its names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import engine, rules
from zoo.layers import Numerics
from zoo.text.lstm import LSTM, LSTMCell

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")


def converted(original, module, *inputs):
  target = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  state = {name: value.numpy() for name, value in original.state_dict().items()}
  return engine.convert(state, target, rules.TORCH)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
  ("layers", "bidirectional", "rows", "ragged"),
  [(1, False, 3, False), (2, True, 3, False), (2, True, 3, True), (2, True, 1, False)],
)
def test_equals_torch(layers, bidirectional, rows, ragged, plain):
  """Outputs and gradients, ours and autodiff's; padded rows against packed sequences."""
  torch.manual_seed(0)
  original = torch.nn.LSTM(
    5, 7, num_layers=layers, bidirectional=bidirectional, batch_first=True
  )  # fmt: skip
  module = LSTM(7, layers, bidirectional, Numerics(plain=plain))
  x = np.random.default_rng(0).normal(size=(rows, 6, 5)).astype(np.float32)
  lengths = np.array([6, 4, 1]) if ragged else None
  variables = converted(original, module, x, lengths)
  weights = np.random.default_rng(1).normal(size=(rows, 6, 7 * (1 + bidirectional)))

  def loss(variables, x):
    y = module.apply(variables, x, lengths)
    return jnp.sum(y * weights), y

  (grads, dx), got = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x)
  inputs = torch.from_numpy(x).requires_grad_()
  if ragged:
    pack = torch.nn.utils.rnn
    packed, _ = original(pack.pack_padded_sequence(inputs, torch.tensor(lengths), True))
    want, _ = pack.pad_packed_sequence(packed, True)
  else:
    want, _ = original(inputs)
  (want * torch.from_numpy(weights)).sum().backward()
  np.testing.assert_allclose(got, want.detach(), atol=1e-6)
  np.testing.assert_allclose(dx, inputs.grad, rtol=1e-4, atol=1e-5)
  target = jax.eval_shape(lambda: variables)
  theirs = {name: value.grad.numpy() for name, value in original.named_parameters()}
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    grads, engine.convert(theirs, target, rules.TORCH),
  )  # fmt: skip


def test_cell_equals_torch():
  original, cell = torch.nn.LSTMCell(5, 7), LSTMCell(7)
  rng = np.random.default_rng(0)
  h, c, x = (rng.normal(size=(3, n)).astype(np.float32) for n in (7, 7, 5))
  got = cell.apply(converted(original, cell, (h, c), x), (h, c), x)
  want = original(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
  for ours, theirs in zip(got, want):
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-6)


def test_half_precision_keeps_the_cell_in_full():
  x = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(np.float32)
  half = LSTM(7, 1, True, Numerics(dtype=jnp.bfloat16))
  variables = half.init(jax.random.key(0), x)
  full = LSTM(7, 1, True)
  got, want = half.apply(variables, x), full.apply(variables, x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02)

  def loss(variables, module):
    return (module.apply(variables, x).astype(jnp.float32) ** 2).sum()

  got, want = (jax.grad(loss)(variables, module) for module in (half, full))
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def test_forward_mode_of_the_plain_form():
  x = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(np.float32)
  module = LSTM(7, 1, True, Numerics(plain=True))
  variables = module.init(jax.random.key(0), x)
  near, step = partial(module.apply, variables), 1e-3 * x[::-1]
  _, got = jax.jvp(near, (x,), (step,))
  np.testing.assert_allclose(got, (near(x + step) - near(x - step)) / 2, atol=2e-6)
