"""LSTM in torch's form and names: gates i, f, g, o side by side, and both of its biases.

Hochreiter and Schmidhuber 1997; Gers et al. 2000 (forget gates).  The inputs of all steps meet
their weights in one matrix product; only the recurrent one is left to the scan.
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


def gates(state: State, drive: jax.Array, *, clip: float | None = None) -> State:
  """The state after one step; `drive` [b 4*features] is the sum of both products and biases.

  The cell stays within `clip` of zero.
  """
  i, f, g, o = jnp.split(drive.astype(jnp.float32), 4, axis=-1)
  c = nn.sigmoid(f) * state[1] + nn.sigmoid(i) * jnp.tanh(g)
  c = c if clip is None else c.clip(-clip, clip)
  return (nn.sigmoid(o) * jnp.tanh(c)).astype(drive.dtype), c


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
  """One layer in one direction, [b t c] -> [b t features]."""

  features: int
  reverse: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, lengths):
    # Declared as the dense layers that they are; the scan wants the bare recurrent kernel.
    drive = _dense(self, "ih")(x)
    recurrent = _Recurrent(self.features, self.numerics, name="hh")()
    kernel, bias = nn.dtypes.promote_dtype(*recurrent, dtype=drive.dtype)
    zero = jnp.zeros((x.shape[0], self.features))

    def step(state, inputs):
      t, drive = inputs
      new = gates(state, drive + state[0] @ kernel)
      if lengths is not None:  # padding keeps the state: on the way back the text starts behind it
        new = tuple(jnp.where((t < lengths)[:, None], n, s) for n, s in zip(new, state))
      return new, new[0]

    steps = jnp.arange(x.shape[1]), jnp.swapaxes(drive + bias, 0, 1)
    _, ys = lax.scan(step, (zero.astype(drive.dtype), zero), steps, reverse=self.reverse)
    return jnp.swapaxes(ys, 0, 1)


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
    for i in range(self.layers):
      ys = [Direction(self.features, False, self.numerics, name=f"l{i}")(x, lengths)]
      if self.bidirectional:
        ys.append(Direction(self.features, True, self.numerics, name=f"l{i}_reverse")(x, lengths))
      x = jnp.concatenate(ys, axis=-1)
      if lengths is not None:
        x = jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)
    return x
