"""A convolution and its gradients as primitives, each lowered in the form that is fastest there.

y = conv(x, kernel), x' = back(y', kernel) and kernel' = learn(x, y') are the three sides of one sum
over products of x, kernel and y; each is linear in its two arguments, and its transposes are the
other two. So derivatives of every order are there, and a network's trace has one equation for a
layer, whatever form it takes. BUILD.md, "Speed", says which form, bench/speed.md why.
"""

import dataclasses
from functools import partial, reduce
import math
import operator

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from zoo.ops import winograd
from zoo.ops.materialized import dear

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

# Neighbouring groups are joined into dense blocks of at most so many channels; in layers of more
# than `MANY` they are of twice as many, for each block is compiled by itself.
BLOCK, MANY = 16, 256
# Values that one of the output is made of, at most, in a layer that is no product of matrices.
THIN = 36
# Tiles of 2x2 times channels, the fewer of input and output, from which on `tiles` is the faster.
TILED = 25_000
# Rows that are added in one expression, where a kernel's gradient sums over pixels.
RUN = 14


@dataclasses.dataclass(frozen=True)
class Layer:
  """Shapes, [b h w c] and [kh kw c/groups f], their type, and how the kernel moves."""

  x: tuple[int, ...]
  kernel: tuple[int, ...]
  dtype: jnp.dtype
  stride: Pair
  pads: Pads
  dilation: Pair
  groups: int

  @property
  def y(self) -> tuple[int, ...]:
    size = (
      (n + low + high - (k - 1) * d - 1) // s + 1
      for n, k, s, (low, high), d in zip(
        self.x[1:3], self.kernel, self.stride, self.pads, self.dilation
      )
    )
    return (self.x[0], *size, self.kernel[-1])

  @property
  def kind(self) -> str:
    """Which row of the tables below it takes on a CPU."""
    if self.kernel[:2] == (1, 1):
      if self.groups > 1:
        return "pointwise grouped"
      return "pointwise" if self._by_eigen else "pointwise product"
    if self.groups == self.x[-1] == self.kernel[-1]:
      return "depthwise"
    few = math.prod(self.kernel[:3]) <= THIN and self.dtype.itemsize >= 4  # halves would be summed
    if self.groups > 1:
      if few and self._narrow:
        return "narrow"
      return "grouped" if self.stride == (1, 1) else "grouped strided"
    if few:
      return "thin"
    return "tiled" if self._tiled else "dense"

  @property
  def _by_eigen(self) -> bool:
    """Whether 1x1 goes as it is: XLA makes a product of it after YNNPACK took its own.

    Eigen is ahead, but for a single pixel, or one small map and a middling kernel.
    """
    pixels, weights = math.prod(self.y[:3]), math.prod(self.kernel)
    small = pixels <= 64 and self.kernel[-1] >= 320 and 2**17 <= weights <= 2**19
    return self.dtype == jnp.float32 and math.prod(self.y[1:3]) > 1 and not small

  @property
  def _narrow(self) -> bool:
    """Whether `narrow` can, and is the faster: it turns channels and groups around."""
    turned = self.groups % 16 == 0 and self.kernel[2] in (2, 4)
    return turned and self.kernel[-1] == self.x[-1] and self.stride == (1, 1)

  @property
  def tileable(self) -> bool:
    """Whether `of_tiles` can, without being felt."""
    size = self.kernel[0]
    simple = self.kernel[:2] in ((3, 3), (5, 5)) and self.stride == self.dilation == (1, 1)
    inside = all(0 <= side < size for pads in self.pads for side in pads)
    exact = self.dtype.itemsize >= 4  # in eight bits of mantissa its sums would be felt
    return self.groups == 1 and simple and inside and exact

  @property
  def tiling(self) -> tuple[int, int, int]:
    """(images, rows, columns) of the tiles of 2x2 that cover the output."""
    b, h, w, _ = self.y
    return b, -(-h // 2), -(-w // 2)

  @property
  def _tiled(self) -> bool:
    """Whether `tiles` can, and is the faster."""
    narrower = min(self.x[-1], self.kernel[-1])
    large = narrower >= 128 and math.prod(self.tiling) * narrower >= TILED
    return self.tileable and self.kernel[0] == 3 and large


def conv(x: jax.Array, kernel: jax.Array, *, layer: Layer) -> jax.Array:
  return CONV.bind(x, kernel, layer=layer)


# The plain operation, and what autodiff makes of a form.


def plain(x, kernel, *, layer: Layer):
  return lax.conv_general_dilated(
    x, kernel, layer.stride, layer.pads, rhs_dilation=layer.dilation,
    feature_group_count=layer.groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip


def back_of(form):
  def back(dy, kernel, *, layer):
    x = jax.ShapeDtypeStruct(layer.x, dy.dtype)
    [dx] = jax.linear_transpose(lambda x: form(x, kernel, layer=layer), x)(dy)
    return dx

  return back


def learn_of(form):
  def learn(x, dy, *, layer):
    kernel = jax.ShapeDtypeStruct(layer.kernel, dy.dtype)
    [dk] = jax.linear_transpose(lambda kernel: form(x, kernel, layer=layer), kernel)(dy)
    return dk

  return learn


# Forms in JAX that XLA's CPU backend is fast at.


def product(x, kernel, *, layer):
  """1x1: slice by the stride, then one matrix product for each group."""
  x = every(pad(x, layer.pads, 0), layer.stride)
  if layer.groups == 1:  # of [pixels c]: with more axes the kernel's gradient takes up to 5 times
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:3], -1)
  x = x.reshape(*x.shape[:3], layer.groups, -1)
  y = jnp.einsum("bhwgc,cgf->bhwgf", x, kernel[0, 0].reshape(x.shape[-1], layer.groups, -1))
  return y.reshape(*y.shape[:3], -1)


def shifted(x, kernel, *, layer):
  """Depthwise: kh*kw shifted slices, each scaled, summed; XLA:CPU fuses them into one loop."""
  size = kernel.shape[:2]
  if any(map(any, layer.pads)):  # else the tap in the middle reads x besides
    x = lax.optimization_barrier(pad(x, layer.pads, 0))
  slices = taps(x, size, layer.stride, layer.dilation)
  weights = kernel.reshape(size[0] * size[1], -1)
  return reduce(operator.add, (tap * w for tap, w in zip(slices, weights)))


def thin(x, kernel, *, layer):
  """Of few channels, such as a picture's: each value of each tap, times its row of the kernel."""
  return _of_each_value(x, kernel.reshape(-1, *layer.kernel[2:]), layer)


def narrow(x, kernel, *, layer):
  """Grouped, few channels in each: `thin` in every group, with the groups side by side."""
  kh, kw, ci, _ = layer.kernel
  kernel = kernel.reshape(kh * kw, ci, layer.groups, -1).swapaxes(2, 3)
  y = _of_each_value(groups_last(x, layer), kernel, layer)
  return dear(y.swapaxes(3, 4).reshape(layer.y))


def narrow_back(dy, kernel, *, layer):
  kh, kw, ci, _ = layer.kernel
  kernel = kernel[::-1, ::-1].reshape(kh, kw, ci, layer.groups, -1).swapaxes(2, 4)
  kernel = kernel.reshape(kh, kw, -1, layer.x[-1])
  return narrow(dy, kernel, layer=_backwards(layer, kernel.shape))


def narrow_learn(x, dy, *, layer):
  """Neighbouring rows in one expression: XLA's own sums over pixels are slow here."""
  h = layer.y[1]
  runs = -(-h // RUN)
  run = -(-h // runs)
  more, ((top, bottom), sides) = runs * run - h, layer.pads
  x = pad(groups_last(x, layer), ((top, bottom + more), sides), 0)
  dy = pad(groups_last(dy, layer), ((0, more), (0, 0)), 0)
  dys = [dy[:, i::run, :, None] for i in range(run)]
  found = []
  for tap in taps(x, layer.kernel[:2], (1, 1), layer.dilation):
    products = [tap[:, i::run, ..., None, :] * rows for i, rows in enumerate(dys)]
    found.append(dear(interleaved_sum(products)).sum((0, 1, 2)))
  return jnp.stack(found).swapaxes(2, 3).reshape(layer.kernel)


def _of_each_value(x, kernel, layer):
  """[b h w c ...] and [kh*kw c ...]: the sum of each tap's values, times their rows."""
  slices = taps(pad(x, layer.pads, 0), layer.kernel[:2], layer.stride, layer.dilation)
  terms = [
    tap[:, :, :, i : i + 1] * row for tap, rows in zip(slices, kernel) for i, row in enumerate(rows)
  ]
  return dear(interleaved_sum(terms))


def _backwards(layer, kernel):
  """Of stride 1: the layer of such a kernel that takes y to x."""
  pads = tuple(
    ((k - 1) * d - low, (k - 1) * d - high)
    for k, d, (low, high) in zip(kernel, layer.dilation, layer.pads)
  )
  return dataclasses.replace(layer, x=layer.y, kernel=kernel, pads=pads)


def groups_last(x, layer):
  """[b h w c] -> [b h w c/groups groups]."""
  return dear(x.reshape(*x.shape[:3], layer.groups, -1).swapaxes(3, 4))


def interleaved_sum(terms: list, chains: int = 4):
  """By turns into so many sums: an addition waits for the one before it, but not for others."""
  starts = range(min(chains, len(terms)))
  return reduce(operator.add, [reduce(operator.add, terms[i::chains]) for i in starts])


def blocks(x, kernel, *, layer):
  """Grouped: neighbouring groups as one dense convolution with a block-diagonal kernel."""
  kh, kw, ci, features = kernel.shape
  groups, co = layer.groups, features // layer.groups
  join = joined(layer, BLOCK if layer.stride == (1, 1) else 2 * BLOCK)
  eye = jnp.eye(join, dtype=kernel.dtype)
  dense = jnp.einsum(
    "hwcbgf,gk->bhwkcgf", kernel.reshape(kh, kw, ci, groups // join, join, co), eye
  )
  dense = dense.reshape(groups // join, kh, kw, join * ci, join * co)
  parts = jnp.split(x, groups // join, axis=-1)
  one = dataclasses.replace(layer, groups=1)
  return jnp.concatenate([plain(p, k, layer=one) for p, k in zip(parts, dense)], axis=-1)


def tiles(x, kernel, *, layer):
  """3x3: each 2x2 of the output from 4x4 of the input, by 16 products instead of 36."""
  return of_tiles(x, winograd.kernel(rows_of_taps(kernel)), operator.matmul, layer)


def tiled_back(dy, kernel, *, layer):
  layer = _backwards(layer, (3, 3, *layer.kernel[:1:-1]))
  kernels = winograd.kernel(rows_of_taps(kernel)[::-1])
  return of_tiles(dy, kernels, lambda x, k: x @ k.T, layer)  # so no large kernel is transposed


def rows_of_taps(kernel) -> list:
  """[kh kw c f] -> kh*kw x [c f]."""
  kh, kw = kernel.shape[:2]
  return [kernel[i, j] for i in range(kh) for j in range(kw)]


def of_tiles(x, kernels, multiply, layer, at_once=False):
  """`tiles` with those of `winograd.kernel`, each of which `multiply` takes behind [pixels c].

  `at_once` keeps what is multiplied until all products are done. Else XLA gives its memory to later
  products, and these wait for it, one behind the other.
  """
  (b, high, wide), (h, w, features) = layer.tiling, layer.y[1:]
  ((top, _), (left, _)), (height, width) = layer.pads, layer.x[1:3]
  more = layer.kernel[0] - 1
  x = pad(x, ((top, 2 * high + more - height - top), (left, 2 * wide + more - width - left)), 0)
  corners = winograd.pixels([*taps(x, (more + 2, more + 2), (2, 2))])
  corners = [corner.reshape(-1, corner.shape[-1]) for corner in corners]
  if at_once:
    corners = lax.optimization_barrier(corners)
  found = [multiply(corner, k) for corner, k in zip(corners, kernels)]
  y = jnp.stack(winograd.outputs(found))
  if at_once:  # never so, but XLA does not know
    y = jnp.where(sum(corner[0, 0] for corner in corners) > jnp.inf, 0, y)
  y = y.reshape(2, 2, b, high, wide, features).transpose(2, 3, 0, 4, 1, 5)
  return y.reshape(b, 2 * high, 2 * wide, features)[:, :h, :w]


def joined(layer, channels: int) -> int:
  """How many groups have at most so many channels, or one."""
  if layer.x[-1] > MANY:
    channels = 2 * BLOCK
  fits = max(1, channels // layer.kernel[2])
  return max(j for j in range(1, fits + 1) if layer.groups % j == 0)


def scanned_learn(x, dy, *, layer):
  """Depthwise: row by row, so that what is summed stays near."""
  (kh, kw), (sh, sw), (eh, ew) = layer.kernel[:2], layer.stride, layer.dilation
  b, h, w, c = layer.y
  x = pad(x, layer.pads, 0)
  span = (kh - 1) * eh + 1

  def step(sums, place):
    image, row = place // h, place % h
    rows = lax.dynamic_slice(x, (image, row * sh, 0, 0), (1, span, x.shape[2], c))[0]
    d = lax.dynamic_slice(dy, (image, row, 0, 0), (1, 1, w, c))[0, 0]
    views = [
      rows[i * eh, j * ew : j * ew + (w - 1) * sw + 1 : sw] for i in range(kh) for j in range(kw)
    ]
    return tuple(total + view * d for total, view in zip(sums, views)), None

  zeros = tuple(jnp.zeros((w, c), dy.dtype) for _ in range(kh * kw))
  sums, _ = lax.scan(step, zeros, jnp.arange(b * h))
  return jnp.stack([total.sum(0) for total in sums]).reshape(layer.kernel)


def columns_learn(x, dy, *, layer):
  """Grouped: what the taps of a block see side by side, one product, and its diagonal."""
  kh, kw, ci, features = layer.kernel
  join = joined(layer, BLOCK)
  parts, count = layer.groups // join, kh * kw
  xs, dys = jnp.split(pad(x, layer.pads, 0), parts, -1), jnp.split(dy, parts, -1)
  columns = (jnp.concatenate([*taps(x, (kh, kw), layer.stride, layer.dilation)], -1) for x in xs)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  found = jnp.stack([rows(dy).T @ rows(x) for dy, x in zip(dys, columns)])
  found = found.reshape(parts, join, features // layer.groups, count, join, ci)
  return jnp.einsum("bgftgc->tcbgf", found).reshape(layer.kernel)


def product_learn(x, dy, *, layer):
  """1x1: the narrower side's rows first; XLA would turn the product around without the barrier."""
  x = every(pad(x, layer.pads, 0), layer.stride).reshape(-1, layer.x[-1])
  dy = dy.reshape(-1, layer.y[-1])
  if x.shape[1] <= dy.shape[1]:
    return (x.T @ dy).reshape(layer.kernel)
  return lax.optimization_barrier(dy.T @ x).T.reshape(layer.kernel)


FORMS = {
  "pointwise": plain, "pointwise product": product, "pointwise grouped": product,
  "depthwise": shifted, "grouped": blocks, "grouped strided": blocks, "narrow": narrow,
  "thin": thin, "tiled": tiles, "dense": plain,
}  # fmt: skip
# Where autodiff of the form is not the fastest.
BACKS = {
  "pointwise": back_of(product), "narrow": narrow_back, "thin": back_of(plain), "tiled": tiled_back,
}  # fmt: skip
LEARNS = {
  "pointwise": product_learn, "pointwise product": product_learn, "depthwise": scanned_learn,
  "grouped strided": columns_learn, "narrow": narrow_learn, "thin": learn_of(plain),
}  # fmt: skip
# Whose maps are computed once: their forms read them many times, or turned around, and XLA would
# make each reading anew from the map before the norm.
ONCE = "dense", "thin", "tiled"


def _cpu_back(layer):
  return BACKS.get(layer.kind) or back_of(FORMS[layer.kind])


def _cpu_learn(layer):
  return LEARNS.get(layer.kind) or learn_of(FORMS[layer.kind])


def _primitive(name, shape, default, cpu) -> Primitive:
  """Of two arrays and a `layer`; `cpu(layer)` gives its form there."""
  primitive = Primitive(name)
  compiled = jax.jit(primitive.bind, static_argnames="layer")
  primitive.def_impl(compiled)

  @primitive.def_abstract_eval
  def _(a, b, *, layer):
    return a.update(shape=getattr(layer, shape), weak_type=False)

  def on_cpu(ctx, a, b, *, layer):
    def form(a, b, *, layer):
      if layer.kind in ONCE:
        a, b = dear(a), dear(b) if shape == "kernel" else b  # else b is the kernel
      return cpu(layer)(a, b, layer=layer)

    return mlir.lower_fun(form, multiple_results=False)(ctx, a, b, layer=layer)

  mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=False), inline=False)
  mlir.register_lowering(primitive, on_cpu, platform="cpu", inline=False)

  def batched(args, axes, *, layer):
    return jax.vmap(partial(default, layer=layer), axes)(*args), 0

  batching.primitive_batchers[primitive] = batched
  return primitive


CONV = _primitive("conv", "y", plain, lambda layer: FORMS[layer.kind])
BACK = _primitive("conv_back", "x", back_of(plain), _cpu_back)
LEARN = _primitive("conv_learn", "kernel", learn_of(plain), _cpu_learn)

ad.defbilinear(
  CONV,
  lambda dy, x, kernel, layer: BACK.bind(dy, kernel, layer=layer),
  lambda dy, x, kernel, layer: LEARN.bind(x, dy, layer=layer),
)
ad.defbilinear(
  BACK,
  lambda dx, y, kernel, layer: CONV.bind(dx, kernel, layer=layer),
  lambda dx, y, kernel, layer: LEARN.bind(dx, y, layer=layer),
)
ad.defbilinear(
  LEARN,
  lambda dk, x, y, layer: BACK.bind(y, dk, layer=layer),
  lambda dk, x, y, layer: CONV.bind(x, dk, layer=layer),
)


# Rows, columns and borders.


def every(x: jax.Array, stride: Pair) -> jax.Array:
  """[b h w c] -> every so many rows and columns, from the first; a plain slice for a free b too."""
  for axis, step in zip((1, 2), stride):
    x = jax.lax.slice_in_dim(x, 0, x.shape[axis], step, axis)
  return x


def pad(x, pads, value):
  """Pads height and width with `value`; negative pads crop."""
  config = ((0, 0, 0), *((lo, hi, 0) for lo, hi in pads), *((0, 0, 0) for _ in x.shape[3:]))
  return lax.pad(x, jnp.array(value, x.dtype), config)


def taps(x, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)):
  """The kh*kw shifted and strided views of a padded input, each of the output's size."""
  sh, sw = stride
  h, w = ((n - (k - 1) * d - 1) // s for n, k, s, d in zip(x.shape[1:3], kernel, stride, dilation))
  for i in range(kernel[0]):
    for j in range(kernel[1]):
      top, left = i * dilation[0], j * dilation[1]
      yield x[:, top : top + h * sh + 1 : sh, left : left + w * sw + 1 : sw]
