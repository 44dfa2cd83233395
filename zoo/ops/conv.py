"""Convolution and pooling on [b h w c], each in the form that is fastest where it is lowered.

XLA's CPU backend is 10 to 100 times slower than it need be on depthwise and grouped kernels, and
slow on 1x1 kernels' gradients and on pooling windows; other formulations in plain JAX win that
back (BUILD.md, "Speed"). `zoo.ops.forms` chooses at lowering time, so one trace serves CPU, GPU and
TPU; `plain=True` gives the one XLA operation alone, for exporters.

Sizes are (height, width) pairs; pads are ((top, bottom), (left, right)), "SAME" or "VALID".
"""

from functools import partial, reduce
import itertools
import math
import operator

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from zoo.ops import forms
from zoo.ops.forms import Layer, Pads, Pair, pad, taps
from zoo.ops.materialized import dear


def resolve_pads(
  padding: str | Pads, size: Pair, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> Pads:
  """Explicit ((top, bottom), (left, right)) of "SAME" (TensorFlow's), "VALID" or pads as given."""
  if not isinstance(padding, str):
    return tuple(tuple(p) for p in padding)
  span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
  return tuple(lax.padtype_to_pads(size, span, stride, padding))


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: Pair = (1, 1),
  padding: str | Pads = "SAME",
  dilation: Pair = (1, 1),
  groups: int = 1,
  plain: bool = False,
) -> jax.Array:
  """Cross-correlation: [b h w c] with kernel [kh kw c/groups f] -> [b h' w' f]."""
  moves = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
  return (forms.plain if plain else forms.conv)(
    x, kernel, layer=layer(x.shape, kernel.shape, x.dtype, **moves)
  )


def layer(
  x: tuple[int, ...], kernel: tuple[int, ...], dtype: jnp.dtype, *, stride: Pair = (1, 1),
  padding: str | Pads = "SAME", dilation: Pair = (1, 1), groups: int = 1,
) -> Layer:  # fmt: skip
  """What `conv` does with arrays of these shapes."""
  pads = resolve_pads(padding, x[1:3], kernel[:2], stride, dilation)
  return Layer(x, kernel, jnp.dtype(dtype), tuple(stride), pads, tuple(dilation), groups)


def conv_in_zeros(x: jax.Array, kernel: jax.Array, bias: jax.Array, margin: Pads) -> jax.Array:
  """1x1, kernel [1 1 c f], plus bias [f], within a margin of zeros: what a next layer pads.

  On a CPU a channel of ones, which is zero in the margin, brings the bias: no large map is copied.
  """

  def by_ones(x, kernel, bias):
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
    kernel = jnp.concatenate([kernel, bias.reshape(1, 1, 1, -1)], 2)
    return conv(dear(pad(x, margin, 0)), kernel)

  def padded(x, kernel, bias):
    return pad(conv(x, kernel) + bias, margin, 0)

  return lax.platform_dependent(x, kernel, bias, cpu=by_ones, default=padded)


def conv_transpose(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: Pair,
  padding: Pads = ((0, 0), (0, 0)),
  plain: bool = False,
) -> jax.Array:
  """What `conv` does to gradients: [b h w c] with kernel [kh kw c f] -> [b h' w' f].

  h' is (h - 1) * stride + kh without `padding`, which cuts the borders off.  The kernel's taps of
  one phase of the stride make an ordinary convolution; the phases are laid side by side.
  """
  (sh, sw), (kh, kw, c, f) = stride, kernel.shape
  mh, mw = -(kh // -sh), -(kw // -sw)
  kernel = jnp.pad(kernel, ((0, mh * sh - kh), (0, mw * sw - kw), (0, 0), (0, 0)))
  kernel = kernel.reshape(mh, sh, mw, sw, c, f)[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(mh, mw, c, sh * sw * f)
  y = conv(x, kernel, padding=((mh - 1,) * 2, (mw - 1,) * 2), plain=plain)
  b, h, w, _ = y.shape
  y = y.reshape(b, h, w, sh, sw, f).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * sh, w * sw, f)
  (top, bottom), (left, right) = padding
  height, width = (x.shape[1] - 1) * sh + kh, (x.shape[2] - 1) * sw + kw
  return y[:, top : height - bottom, left : width - right]


def max_pool(
  x: jax.Array,
  kernel: Pair,
  *,
  stride: Pair,
  padding: str | Pads = "VALID",
  ceil: bool = False,
  plain: bool = False,
) -> jax.Array:
  """Maximum over windows; padding never wins. `ceil` keeps the last, partly outside, window."""
  pads, out = _window(x, kernel, stride, padding, ceil)
  y = (_plain_max if plain else _fastest_max)(x, kernel, stride, pads)
  return y[:, : out[0], : out[1]]


def _plain_max(x, kernel, stride, pads):
  return lax.reduce_window(
    x, np.array(_least(x.dtype), x.dtype), lax.max, (1, *kernel, 1), (1, *stride, 1),
    ((0, 0), *pads, (0, 0)),
  )  # fmt: skip


@partial(jax.jit, static_argnums=(1, 2, 3))
def _fastest_max(x, *window):
  # On a GPU the plain operation's gradient is a scatter.
  where = ("cpu", "cuda") if math.prod(window[0]) <= 9 else ("cpu",)
  forms = {platform: lambda x: _largest(x, *window) for platform in where}
  return lax.platform_dependent(x, default=lambda x: _plain_max(x, *window), **forms)


def _least(dtype):
  return -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _largest(x, kernel, stride, pads):
  """The maximum of the taps. Its gradient goes to the first of equals, as torch's does.

  Autodiff asks which tap equals the maximum. Where XLA computes a tap twice, in two fusions whose
  roundings differ, none does, and that gradient would be lost without a word.
  """
  return reduce(jnp.maximum, taps(pad(x, pads, _least(x.dtype)), kernel, stride))


def _largest_forward(x, kernel, stride, pads):
  first, *others = taps(pad(x, pads, _least(x.dtype)), kernel, stride)
  largest, winner = first, jnp.zeros(first.shape, np.min_scalar_type(len(others) + 1))
  for number, tap in enumerate(others, 1):
    winner = jnp.where(tap > largest, winner.dtype.type(number), winner)
    largest = jnp.maximum(largest, tap)
  return largest, (x, dear(winner))  # else XLA computes winners for each tap


def _largest_backward(kernel, stride, pads, saved, dy):
  x, winner = saved  # of x only the shape
  term = lambda i, j, dy, winner: jnp.where(winner == i * kernel[1] + j, dy, 0)
  return (_scattered(term, [dy, winner], x.shape[1:3], kernel, stride, pads),)


_largest.defvjp(_largest_forward, _largest_backward)


def _scattered(term, arrays, size, kernel: Pair, stride: Pair, pads: Pads):
  """What `taps` takes, given back: [b size c] from arrays of the output's size.

  `term(i, j, *views)` is what a tap adds where it was taken from. For each phase of the stride that
  is a sum of shifted slices; the phases are laid side by side.
  """
  n, *out, c = arrays[0].shape
  axes = [_phases(*of) for of in zip(size, out, kernel, stride, pads)]
  arrays = [pad(x, [reach for _, reach in axes], 0) for x in arrays]
  height, width = (length // -s * -1 for length, s in zip(size, stride))
  phases = []
  for rows, columns in itertools.product(*(phases for phases, _ in axes)):
    terms = [
      term(i, j, *(x[:, top : top + height, left : left + width] for x in arrays))
      for (i, top), (j, left) in itertools.product(rows, columns)
    ]
    empty = jnp.zeros((n, height, width, c), arrays[0].dtype)
    phases.append(reduce(operator.add, terms) if terms else empty)
  if len(phases) == 1:
    return phases[0]
  y = jnp.stack(phases).reshape(*stride, *phases[0].shape).transpose(2, 3, 0, 4, 1, 5)
  return y.reshape(n, height * stride[0], width * stride[1], c)[:, : size[0], : size[1]]


def _phases(n, out, k, stride, pads):
  """Of one axis: for each phase of the stride its taps, as (tap, first row); and dy's padding."""
  low, _ = pads
  phases = [
    [(i, (phase + low - i) // stride) for i in range(k) if (phase + low - i) % stride == 0]
    for phase in range(stride)
  ]
  starts = [start for taps in phases for _, start in taps]
  before, after = -min(starts), max(starts) - (n // -stride) - out
  return [[(i, start + before) for i, start in taps] for taps in phases], (before, after)


def avg_pool(
  x: jax.Array,
  kernel: Pair,
  *,
  stride: Pair,
  padding: str | Pads = "VALID",
  ceil: bool = False,
  count_pad: bool = True,
  plain: bool = False,
) -> jax.Array:
  """Mean over windows; `count_pad` counts padded zeros, as torch does and TensorFlow does not.

  What `ceil` adds beyond the padding is never counted.
  """
  pads, out = _window(x, kernel, stride, padding, ceil)
  asked = resolve_pads(padding, x.shape[1:3], kernel, stride)
  counts = [
    _counts(n, k, s, p, lo_hi if count_pad else (0, 0), o)
    for n, k, s, p, lo_hi, o in zip(x.shape[1:3], kernel, stride, pads, asked, out)
  ]
  count = counts[0][:, None] * counts[1][None, :]
  y = (_plain_sum if plain else _fastest_sum)(x, kernel, stride, pads)
  return y[:, : out[0], : out[1]] / jnp.asarray(count, x.dtype)[None, :, :, None]


def _plain_sum(x, kernel, stride, pads):
  return lax.reduce_window(
    x, np.zeros((), x.dtype), lax.add, (1, *kernel, 1), (1, *stride, 1), ((0, 0), *pads, (0, 0))
  )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _fastest_sum(x, *window):
  def shifted(x):
    kernel, stride, pads = window
    return reduce(operator.add, taps(pad(x, pads, 0), kernel, stride))

  return lax.platform_dependent(x, cpu=shifted, default=lambda x: _plain_sum(x, *window))


def adaptive_avg_pool(x: jax.Array, size: Pair) -> jax.Array:
  """[b h w c] -> [b size c]: bin i averages rows floor(i*h/n) to ceil((i+1)*h/n), as torch does."""
  for axis, n in zip((1, 2), size):
    length = x.shape[axis]
    if length == n:
      continue
    weights = np.zeros((n, length), np.float32)
    for i in range(n):
      lo, hi = i * length // n, -((i + 1) * length // -n)
      weights[i, lo:hi] = 1 / (hi - lo)
    x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,))), -1, axis)
  return x


def _window(x, kernel, stride, padding, ceil) -> tuple[Pads, Pair]:
  """Pads that reach the last window, and the output's size."""
  pads, out = [], []
  asked = resolve_pads(padding, x.shape[1:3], kernel, stride)
  for n, k, s, (lo, hi) in zip(x.shape[1:3], kernel, stride, asked):
    room = n + lo + hi - k
    if room < 0:
      raise ValueError(f"a window of {k} does not fit an input of {n} with padding {(lo, hi)}")
    count = (-(room // -s) if ceil else room // s) + 1
    if ceil and (count - 1) * s >= n + lo:  # torch: no window may start beyond the input
      count -= 1
    pads.append((lo, max(hi, (count - 1) * s + k - n - lo)))
    out.append(count)
  return tuple(pads), tuple(out)


def _counts(n, k, s, pad, counted, out) -> np.ndarray:
  """How many counted positions each of `out` windows holds along one axis."""
  real = np.zeros(n + sum(pad), np.float32)
  real[pad[0] - counted[0] : pad[0] + n + counted[1]] = 1
  return np.array([real[i * s : i * s + k].sum() for i in range(out)], np.float32)
