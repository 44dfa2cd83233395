"""The few layers that families share, and the numerical dialect they speak."""

from collections.abc import Callable, Iterable
import dataclasses
from functools import partial
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.ops import conv as ops
from zoo.ops import norm, packed
from zoo.ops.materialized import materialized

Size = int | tuple[int, int]
# None is the dialect's own padding, an int is that many pixels on each side.
Padding = None | int | str | tuple[tuple[int, int], tuple[int, int]]

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pair(size: Size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


class Conv(nn.Module):
  """`nn.Conv` on [b h w c], with the same parameters, in the platform's fastest form."""

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: tuple[int, int] = (1, 1)
  padding: Any = "SAME"  # as in `zoo.ops.conv`
  dilation: tuple[int, int] = (1, 1)
  groups: int = 1
  bias: bool = False
  dtype: Any = None
  plain: bool = False
  init: Any = he_normal  # of the kernel
  bias_init: Any = nn.initializers.zeros
  folded: bool = False  # has a bias where it took over a norm's
  margin: Any = None  # zeros around a 1x1 kernel's output, ((top, bottom), (left, right))

  @nn.compact
  def __call__(self, x):
    layer = self.layer(x)
    kernel = _param(self, "kernel", self.init, layer.kernel)
    has_bias = self.bias or self.folded and self.has_variable("params", "bias")
    bias = _param(self, "bias", self.bias_init, (self.features,)) if has_bias else None
    if packed.is_packed(kernel):
      x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
      y = packed.conv(x, kernel, layer)
    else:
      x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
      if self.margin and bias is not None:
        return ops.conv_in_zeros(x, kernel, bias, self.margin)
      y = ops.conv(
        x, kernel, stride=self.stride, padding=layer.pads, dilation=self.dilation,
        groups=self.groups, plain=self.plain,
      )  # fmt: skip
    y = y if bias is None else y + bias
    return ops.pad(y, self.margin, 0) if self.margin else y

  def layer(self, x) -> ops.Layer:
    """What it does with such an input."""
    return ops.layer(
      x.shape, (*self.kernel, x.shape[-1] // self.groups, self.features), self.dtype or x.dtype,
      stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
    )  # fmt: skip


def _param(module: nn.Module, name: str, init, shape):
  """`module.param`, which traces an initialiser even where the parameter is there already.

  A kernel may be what `zoo.fold` has packed it to.
  """
  given = module.get_variable("params", name)
  if packed.is_packed(given) or isinstance(given, (jax.Array, np.ndarray)) and given.shape == shape:
    return given
  return module.param(name, init, shape)


class Dense(nn.Dense):
  """`nn.Dense`, whose kernel `zoo.fold` may have packed."""

  @nn.compact
  def __call__(self, x):  # no call of Flax's within: interceptors would meet both
    kernel = _param(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
    bias = _param(self, "bias", self.bias_init, (self.features,)) if self.use_bias else None
    if packed.is_packed(kernel):
      x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
      y = packed.dense(x, kernel)
    else:
      x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
      y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + bias

  def layer(self, x) -> ops.Layer:
    """What it does with such an input, as a convolution of single pixels."""
    kernel = (1, 1, x.shape[-1], self.features)
    return ops.layer((math.prod(x.shape[:-1]), 1, 1, x.shape[-1]), kernel, self.dtype or x.dtype)


class Affine(nn.Module):
  """What `zoo.fold` leaves of a batch norm: x * scale + bias, or x if a convolution took both."""

  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    if not self.has_variable("params", "scale"):
      return x
    scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
    x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
    return x * scale + bias


class BatchNorm(nn.BatchNorm):
  """`nn.BatchNorm` over all axes but the last, with statistics in the platform's fastest form."""

  @nn.compact
  def __call__(self, x):  # no call of Flax's within: interceptors would meet both
    features = x.shape[-1:]
    mean = self.variable("batch_stats", "mean", jnp.zeros, features)
    var = self.variable("batch_stats", "var", jnp.ones, features)
    scale = (
      _param(self, "scale", self.scale_init, features) if self.use_scale else jnp.ones(features)
    )
    bias = _param(self, "bias", self.bias_init, features)
    if self.use_running_average:
      y = norm.shifted(x, scale, bias, mean.value, var.value, self.epsilon)
    else:
      y, *moments = norm.batch_norm(x, scale, bias, self.epsilon)
      if not self.is_initializing():
        for kept, new in zip((mean, var), moments):
          kept.value = self.momentum * kept.value + (1 - self.momentum) * new
    return y.astype(self.dtype or y.dtype)


class Deconv(nn.Module):
  """Transposed convolution, [b h w c] -> [b (h-1)*stride+kernel-2*padding ... features]."""

  features: int
  kernel: tuple[int, int]
  stride: tuple[int, int]
  padding: int = 0  # pixels cut off at each side
  bias: bool = True
  init: Any = he_normal  # of the kernel
  dtype: Any = None
  plain: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (*self.kernel, x.shape[-1], self.features)
    kernel = _param(self, "kernel", self.init, shape)
    bias = _param(self, "bias", nn.initializers.zeros, (self.features,)) if self.bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    pads = ((self.padding,) * 2,) * 2
    y = ops.conv_transpose(x, kernel, stride=self.stride, padding=pads, plain=self.plain)
    return y if bias is None else y + bias


@dataclasses.dataclass(frozen=True)
class Numerics:
  """What a checkpoint and a run assume of the layers, beyond the architecture.

  Sizes given as one int are square. `padding=None` asks for the dialect's own: "torch" pads
  dilation * (kernel // 2) on each side, "tf" is SAME (at stride 2 the two differ on even sizes).
  """

  eps: float = 1e-5
  padding: str = "torch"
  act: Callable = nn.relu  # the family's activation; explanation maps may replace it
  momentum: float = 0.9  # share of the old statistic that is kept: torch's 0.1 is 0.9 here
  dtype: Any = jnp.float32  # of the computation; parameters stay float32
  norm_scale: bool = True  # batch norm has a gamma; TensorFlow's Inceptions have none
  freeze_norm: bool = False  # use stored statistics even when training
  plain: bool = False  # only plain XLA convolutions and windows, for exporters
  folded: bool = False  # takes the variables that `zoo.fold` makes, and no others

  def pads(self, padding: Padding, kernel: Size, dilation: Size = 1):
    """`padding` in the form of `zoo.ops.conv`."""
    if padding is None:
      if self.padding == "tf":
        return "SAME"
      return tuple((d * (k // 2),) * 2 for k, d in zip(pair(kernel), pair(dilation)))
    return ((padding, padding),) * 2 if isinstance(padding, int) else padding

  def conv(
    self, features: int, kernel: Size = 1, stride: Size = 1, *, padding: Padding = None,
    dilation: Size = 1, groups: int = 1, bias: bool = False, init: Any = he_normal,
    bias_init: Any = nn.initializers.zeros, margin: Any = None, name: str,
  ) -> Conv:  # fmt: skip
    return Conv(
      features, pair(kernel), pair(stride), self.pads(padding, kernel, dilation), pair(dilation),
      groups, bias, self.dtype, self.plain, init, bias_init, self.folded, margin, name=name,
    )  # fmt: skip

  def deconv(
    self, features: int, kernel: Size, stride: Size, *, padding: int = 0, bias: bool = True,
    init: Any = he_normal, name: str,
  ) -> Deconv:  # fmt: skip
    return Deconv(
      features, pair(kernel), pair(stride), padding, bias, init, self.dtype, self.plain, name=name
    )

  def norm(self, train: bool, *, name: str) -> nn.BatchNorm | Affine:
    if self.folded:
      return Affine(self.dtype, name=name)
    stored = self.freeze_norm or not train
    return (nn.BatchNorm if stored or self.plain else BatchNorm)(
      stored, momentum=self.momentum, epsilon=self.eps, use_scale=self.norm_scale,
      dtype=self.dtype, name=name,
    )  # fmt: skip

  def dense(self, features: int, *, bias: bool = True, name: str) -> Dense:
    return Dense(features, use_bias=bias, dtype=self.dtype, name=name)

  def materialized(self, x):
    """What several layers read, such as a residual block's sum: computed once on a CPU."""
    return x if self.plain else materialized(x)

  def max_pool(self, x, kernel: Size, stride: Size, *, padding: Padding = None, ceil=False):
    pads = self.pads(padding, kernel)
    return ops.max_pool(
      x, pair(kernel), stride=pair(stride), padding=pads, ceil=ceil, plain=self.plain
    )

  def avg_pool(
    self, x, kernel: Size, stride: Size, *, padding: Padding = None, ceil=False, count_pad=None
  ):
    """`count_pad=None` follows the dialect: torch counts padded zeros, TensorFlow does not."""
    count_pad = self.padding != "tf" if count_pad is None else count_pad
    return ops.avg_pool(
      x, pair(kernel), stride=pair(stride), padding=self.pads(padding, kernel), ceil=ceil,
      count_pad=count_pad, plain=self.plain,
    )  # fmt: skip


class AddedToRoot(float):
  """An epsilon of darknet's: x / (sqrt(var) + eps), not x / sqrt(var + eps)."""

  def root(self, var: np.ndarray) -> np.ndarray:
    """What the norm divides by."""
    return np.sqrt(var) + var.dtype.type(self)


class SqueezeExcite(nn.Module):
  """x * gate(its channels' means), [b h w c] -> the same.  Hu et al. 2017, arXiv:1709.01507."""

  hidden: int
  numerics: Numerics = Numerics()
  act: Callable | None = None  # None is the family's own
  gate: Callable = nn.sigmoid
  names: tuple[str, str] = ("fc1", "fc2")

  @nn.compact
  def __call__(self, x):
    n = self.numerics
    y = n.conv(self.hidden, bias=True, name=self.names[0])(x.mean((1, 2), keepdims=True))
    y = (self.act or n.act)(y)
    return x * self.gate(n.conv(x.shape[-1], bias=True, name=self.names[1])(y))


class DropPath(nn.Module):
  """Leaves a branch out for some images when training.  Huang et al. 2016, arXiv:1603.09382."""

  rate: float

  @nn.compact
  def __call__(self, x, *, train: bool):
    if not train or self.rate == 0:
      return x
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - self.rate), 0)


def dilate(strides: Iterable[int], output_stride: int, reached: int) -> list[tuple[int, int, int]]:
  """(stride, dilation of the strided block, of those behind it) of each stage, as timm has it.

  Args:
    strides: of the stages.
    output_stride: beyond which stages dilate instead of striding.
    reached: stride of what comes before them.
  """
  out, dilation = [], 1
  for stride in strides:
    before = dilation  # a dilated stage's first block was trained behind the undilated one
    if reached * stride > output_stride:
      dilation, stride = dilation * stride, 1
    reached *= stride
    out.append((stride, before, dilation))
  return out


def round_channels(channels: float, divisor: int = 8) -> int:
  """The nearest multiple of `divisor`, above zero, not below nine tenths of `channels`."""
  near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return near if near >= 0.9 * channels else near + divisor


KEEP_ZERO = nn.relu, nn.relu6  # cheap activations of which zero stays zero
LARGE = 28 * 28  # pixels from which on it is dearer to copy a map than to have a margin computed


class InvertedResidual(nn.Module):
  """Expand, depthwise, project, [b h w c] -> [b h/stride w/stride features], in timm's names.

  Sandler et al. 2018, arXiv:1801.04381.  x is added where shapes allow.  Without a first
  convolution, the last one is called conv_pw.
  """

  features: int
  kernel: int = 3
  stride: Size = 1
  expand: float = 6
  act: Callable | None = None  # None is the family's own
  squeeze: Callable[..., nn.Module] | None = None  # takes name=, acts before the projection
  numerics: Numerics = Numerics()
  drop_path: float = 0.0
  dilation: int = 1  # of the depthwise convolution
  first: bool | None = None  # whether there is a first convolution; None: unless `expand` is 1

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, c = self.numerics, x.shape[-1]
    norm, act = partial(n.norm, train), self.act or n.act
    first = self.expand != 1 if self.first is None else self.first
    hidden = round_channels(c * self.expand)
    names, y = iter(("bn1", "bn2", "bn3")), x
    pads = n.pads(None, self.kernel, self.dilation)
    if first:
      margin, large = None, math.prod(x.shape[1:3]) >= LARGE
      if large and act in KEEP_ZERO and n.folded and not n.plain:  # no norm is between
        moves = (pair(each) for each in (self.kernel, self.stride, self.dilation))
        margin, pads = ops.resolve_pads(pads, x.shape[1:3], *moves), "VALID"
      y = act(norm(name=next(names))(n.conv(hidden, margin=margin, name="conv_pw")(y)))
    y = n.conv(
      hidden, self.kernel, self.stride, padding=pads, dilation=self.dilation, groups=hidden,
      name="conv_dw",
    )(y)  # fmt: skip
    y = act(norm(name=next(names))(y))
    if self.squeeze is not None:  # which reads the map twice
      y = self.squeeze(name="se")(n.materialized(y))
    y = n.conv(self.features, name="conv_pwl" if first else "conv_pw")(y)
    y = norm(name=next(names))(y)
    if pair(self.stride) != (1, 1) or c != self.features:
      return y
    return x + DropPath(self.drop_path)(y, train=train)


class ConvNorm(nn.Module):
  """act(norm(conv(x))), what the Inception nets are made of: [b h w c] -> [b h' w' features]."""

  features: int
  kernel: Size = 1
  stride: int = 1
  padding: Padding = None
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    conv = n.conv(self.features, self.kernel, self.stride, padding=self.padding, name="conv")
    return n.act(n.norm(train, name="bn")(conv(x)))


@dataclasses.dataclass(frozen=True)
class Chains:
  """Applies `ConvNorm`s inside the module under construction."""

  numerics: Numerics
  train: bool

  def __call__(self, x, name: str, *layers: tuple):
    """`layers` are `ConvNorm`'s first arguments; several are numbered name_0, name_1 ..."""
    for i, layer in enumerate(layers):
      own = name if len(layers) == 1 else f"{name}_{i}"
      x = ConvNorm(*layer, numerics=self.numerics, name=own)(x, train=self.train)
    return x


class Mixed(nn.Module):
  """Chains of `ConvNorm`s side by side, and a pool: [b h w c] -> [b h' w' c']."""

  branches: tuple[tuple[tuple, ...], ...]  # for each its layers, as for `Chains`
  pooled: int | None = None  # channels after an average pool; None is a max pool of stride 2
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    ys = [chain(x, f"branch{i}", *layers) for i, layers in enumerate(self.branches)]
    if self.pooled is None:
      ys.append(n.max_pool(x, 3, 2, padding="VALID"))
    else:  # padding is never counted, as in TensorFlow
      y = n.avg_pool(x, 3, 1, count_pad=False)
      ys.append(chain(y, f"branch{len(ys)}_1", (self.pooled,)))
    return jnp.concatenate(ys, axis=-1)
