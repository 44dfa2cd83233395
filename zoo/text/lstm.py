"""LSTM in torch's form and names: gates i, f, g, o side by side, and both of its biases.

Hochreiter and Schmidhuber 1997; Gers et al. 2000 (forget gates).  The inputs of all steps meet
their weights in one matrix product; only the recurrent one is left to the scan, and its kernel's
gradient is one product again, of all steps.
"""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from zoo.layers import Numerics

State = tuple[jax.Array, jax.Array]  # output h, cell c: [b features]


def _uniform(features: int):
  """torch's initial weights: within 1 / sqrt(features) of zero."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1, 1) * features**-0.5

  return init


def _activated(drive):
  """i, f, g, o of their sums [b 4*features]."""
  i, f, g, o = jnp.split(drive.astype(jnp.float32), 4, axis=-1)
  return nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)


def gates(state: State, drive: jax.Array, *, clip: float | None = None) -> State:
  """The state after one step; `drive` [b 4*features] is the sum of both products and biases.

  The cell stays within `clip` of zero.
  """
  return _moved(state, _activated(drive), drive.dtype, clip)


def _moved(state: State, activated, dtype, clip: float | None = None) -> State:
  i, f, g, o = activated
  c = f * state[1] + i * g
  c = c if clip is None else c.clip(-clip, clip)
  return (o * jnp.tanh(c)).astype(dtype), c


class LSTMCell(nn.Module):
  """One step, `torch.nn.LSTMCell`: state, [b c] -> state."""

  features: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, state: State, x: jax.Array) -> State:
    ih, hh = (_dense(self, name) for name in ("ih", "hh"))
    return gates(state, ih(x) + hh(state[0]))


def _dense(module, name: str) -> nn.Dense:
  init = _uniform(module.features)
  return nn.Dense(
    4 * module.features, kernel_init=init, bias_init=init, dtype=module.numerics.dtype, name=name
  )


class Direction(nn.Module):
  """What one direction is given: [t b c] -> (its recurrent kernel, drive [t b 4*features])."""

  features: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    # Declared as the dense layers that they are; the scan wants the bare recurrent kernel.
    drive = _dense(self, "ih")(x)
    recurrent = _Recurrent(self.features, self.numerics, name="hh")()
    kernel, bias = nn.dtypes.promote_dtype(*recurrent, dtype=drive.dtype)
    return kernel, drive + bias


class _Recurrent(nn.Module):
  """The recurrent (kernel [features 4*features], bias [4*features])."""

  features: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self):
    init = _uniform(self.features)
    shape = (self.features, 4 * self.features)
    return self.param("kernel", init, shape), self.param("bias", init, shape[1:])


class LSTM(nn.Module):
  """[b t c] -> [b t features], or [b t 2*features] with the way back behind the way there.

  With `lengths` [b] the steps behind are padding: they are read by nobody and give zeros.
  """

  features: int
  layers: int = 1
  bidirectional: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, lengths=None):
    x = jnp.swapaxes(x, 0, 1)
    real = None if lengths is None else jnp.arange(len(x))[:, None, None] < lengths[:, None]
    ways = (1, -1) if self.bidirectional else (1,)  # in which order steps are taken
    run = _outputs if self.numerics.plain else _scanned
    for i in range(self.layers):
      given = []  # of each way
      for way in ways:
        name = f"l{i}" if way > 0 else f"l{i}_reverse"
        kernel, drive = Direction(self.features, self.numerics, name=name)(x[::way])
        given.append((kernel, drive, None if real is None else real[::way]))
      # Both ways in one scan, whose products then run beside each other on a CPU's cores, but for a
      # single row: that is too little to be shared.
      scans = [[one] for one in given] if x.shape[1] == 1 else [given]
      ys = [y for scan in scans for y in run(scan)]
      x = jnp.concatenate([y[::way] for y, way in zip(ys, ways)], axis=-1)
      if real is not None:
        x = jnp.where(real, x, 0)
    return jnp.swapaxes(x, 0, 1)


@jax.custom_vjp
def _scanned(given):
  """[(kernel, drive [t b 4*features], real [t b 1] or None)] -> [[t b features]].

  Steps that are not real keep the state. The gradients are our own: autodiff's would sum the
  kernel's up step by step.
  """
  return _outputs(given)


def _outputs(given):
  return _kept(given)[0]


def _forth(given):
  """(h, c, i, f, g, o) of each, [t b features] all."""
  kernels, *inputs = zip(*given)

  def step(states, inputs):
    # All products come first: one behind the other they would wait for each other's memory.
    products = [h @ kernel for (h, _), kernel in zip(states, kernels)]
    after = []
    for state, product, drive, real in zip(states, products, *inputs):
      activated = _activated(drive + product)
      new = _moved(state, activated, drive.dtype)
      if real is not None:  # on the way back the text starts behind the padding
        new = [jnp.where(real, n, s) for n, s in zip(new, state)]
      after.append((*new, *activated))
    return [state[:2] for state in after], after

  zeros = [jnp.zeros((drive.shape[1], len(kernel)), drive.dtype) for kernel, drive, _ in given]
  start = [(zero, zero.astype(jnp.float32)) for zero in zeros]
  return lax.scan(step, start, inputs)[1]


def _kept(given):
  states = _forth(given)
  return [state[0] for state in states], (given, states)


def _back(kept, dys):
  given, states = kept
  turned = [kernel.T for kernel, *_ in given]
  reals = [real for *_, real in given]

  def before(x):
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

  def step(carry, inputs):
    sums, others = [], []
    for (dh, dc), dy, (_, c, i, f, g, o), was, real in zip(carry, *inputs):
      dh, tanh = dh + dy, jnp.tanh(c)
      inner = dc + dh * o * (1 - tanh * tanh)
      dsums = (
        inner * g * i * (1 - i), inner * was * f * (1 - f), inner * i * (1 - g * g),
        dh * tanh * o * (1 - o),
      )  # fmt: skip
      dsums = jnp.concatenate(dsums, axis=-1).astype(dy.dtype)
      sums.append(dsums if real is None else jnp.where(real, dsums, 0))
      others.append((dh, inner * f if real is None else jnp.where(real, inner * f, dc)))
    products = [(dsums @ kernel).astype(jnp.float32) for dsums, kernel in zip(sums, turned)]
    after = [
      (product if real is None else jnp.where(real, product, dh), dc)
      for product, (dh, dc), real in zip(products, others, inputs[-1])
    ]
    return after, sums

  inputs = dys, states, [before(state[1]) for state in states], reals
  start = [(jnp.zeros(dy.shape[1:], jnp.float32),) * 2 for dy in dys]
  _, drives = lax.scan(step, start, inputs, reverse=True)
  kernels = [
    jnp.einsum("tbh,tbg->hg", before(state[0]), drive) for state, drive in zip(states, drives)
  ]
  return ([(*grads, None) for grads in zip(kernels, drives)],)


_scanned.defvjp(_kept, _back)
