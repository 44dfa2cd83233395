"""zoo.ops.conv against plain loops in NumPy, and each fast form against the plain one."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import conv as ops
from zoo.ops import forms

KEY = jax.random.key(0)


def naive_conv(x, kernel, stride, pads, dilation, groups):
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  kh, kw, ci, features = kernel.shape
  h, w = (
    (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[1:3], (kh, kw), dilation, stride)
  )
  out = np.zeros((x.shape[0], h, w, features))
  for f, i, j in itertools.product(range(features), range(h), range(w)):
    group = f // (features // groups)
    patch = x[:, i * stride[0] :, j * stride[1] :, group * ci : (group + 1) * ci]
    patch = patch[:, : (kh - 1) * dilation[0] + 1 : dilation[0]]
    patch = patch[:, :, : (kw - 1) * dilation[1] + 1 : dilation[1]]
    out[:, i, j, f] = (patch * kernel[..., f]).sum((1, 2, 3))
  return out


FORMS = {  # groups, kernel, stride, padding, dilation, features
  "dense": (1, (3, 3), (2, 2), "SAME", (1, 1), 5),
  "pointwise": (1, (1, 1), (2, 2), "VALID", (1, 1), 5),
  "pointwise, wider": (1, (1, 1), (1, 1), "VALID", (1, 1), 12),
  "pointwise padded": (1, (1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1), 5),
  "pointwise grouped": (4, (1, 1), (1, 1), "VALID", (1, 1), 12),
  "depthwise": (8, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 8),
  "depthwise even, stride 2": (8, (3, 3), (2, 2), "SAME", (1, 1), 8),
  "depthwise dilated": (8, (5, 3), (1, 1), ((4, 4), (2, 2)), (2, 2), 8),
  "grouped": (4, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 12),
  "grouped dilated": (2, (3, 2), (1, 2), "SAME", (2, 1), 6),
  "depthwise, two outputs a channel": (8, (3, 3), (1, 1), "SAME", (1, 1), 16),
}


@pytest.mark.parametrize("form", FORMS)
def test_conv_is_its_definition_and_so_are_its_gradients(form):
  groups, kernel, stride, padding, dilation, features = FORMS[form]
  x = jax.random.normal(KEY, (2, 9, 8, 8))
  w = jax.random.normal(KEY, (*kernel, 8 // groups, features))
  run = partial(ops.conv, stride=stride, padding=padding, dilation=dilation, groups=groups)
  pads = ops.resolve_pads(padding, (9, 8), kernel, stride, dilation)
  want = naive_conv(np.asarray(x, np.float64), np.asarray(w), stride, pads, dilation, groups)
  np.testing.assert_allclose(jax.jit(run)(x, w), want, rtol=1e-4, atol=1e-4)

  def loss(x, w, plain):
    return jnp.sum(jnp.sin(run(x, w, plain=plain)))

  fast, plain = (jax.jit(jax.grad(partial(loss, plain=p), (0, 1)))(x, w) for p in (False, True))
  for a, b in zip(fast, plain):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


WINDOWS = [  # size, kernel, stride, padding, ceil
  ((7, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), False),
  ((9, 8), (3, 3), (2, 2), "VALID", False),
  ((8, 9), (3, 3), (2, 2), "VALID", True),
  ((8, 6), (2, 2), (2, 2), "VALID", False),
  ((6, 7), (5, 5), (1, 1), "SAME", False),
  ((7, 7), (2, 2), (3, 3), "VALID", False),
]


@pytest.mark.parametrize("size, kernel, stride, padding, ceil", WINDOWS)
def test_own_gradients_of_a_maximum(size, kernel, stride, padding, ceil):
  x = jnp.round(jax.random.normal(KEY, (2, *size, 3)) * 2)  # many are equal: the first is taken
  how = dict(stride=stride, padding=padding, ceil=ceil)

  def loss(x, plain):
    y = ops.max_pool(x, kernel, plain=plain, **how)
    return jnp.sum(y * jnp.arange(y.size).reshape(y.shape))

  got, want = (jax.grad(partial(loss, plain=plain))(x) for plain in (False, True))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_no_gradient_of_a_maximum_is_lost_where_xla_computes_its_input_twice():
  """Autodiff's comparison with the maximum lost a tenth of it behind norms in Inceptions."""
  x = jax.random.normal(KEY, (2, 13, 13, 8))
  scale = jax.random.normal(jax.random.key(1), (8,))

  def before(x):
    return jnp.maximum(x * scale / jnp.sqrt(x.var((0, 1, 2)) + 1e-3) + scale, 0)

  @jax.jit
  @jax.grad
  def slope(shift, x):
    y = ops.max_pool(before(x) + shift, (3, 3), stride=(2, 2))
    return jnp.sum(jnp.square(y) / 2) - jnp.sum(jnp.square(before(x)) / 2)

  want = ops.max_pool(before(x), (3, 3), stride=(2, 2)).sum()
  np.testing.assert_allclose(slope(0.0, x), want, rtol=1e-5)


def test_the_plain_form_has_forward_derivatives():
  x, w = jax.random.normal(KEY, (1, 5, 5, 2)), jax.random.normal(KEY, (3, 3, 1, 2))
  run = partial(ops.conv, groups=2, plain=True)
  _, moved = jax.jvp(lambda x: run(x, w), (x,), (jnp.ones_like(x),))
  np.testing.assert_allclose(moved, run(jnp.ones_like(x), w), rtol=1e-5)
  pool = partial(ops.max_pool, kernel=(2, 2), stride=(1, 1), plain=True)
  _, moved = jax.jvp(pool, (x,), (x,))
  np.testing.assert_allclose(moved, pool(x), rtol=1e-5)


def test_groups_join_into_blocks_of_bounded_width():
  x, w = jnp.ones((1, 5, 5, 256)), jax.random.normal(KEY, (3, 3, 8, 256))
  fast = partial(ops.conv, groups=32)
  text = jax.jit(fast).lower(x, w).as_text()
  assert text.count("stablehlo.convolution") == 256 // forms.BLOCK
  assert "feature_group_count = 32" not in text
  plain = partial(fast, plain=True)
  np.testing.assert_allclose(jax.jit(fast)(x, w), jax.jit(plain)(x, w), rtol=1e-4, atol=1e-4)
  x = jax.random.normal(KEY, x.shape)
  slope = lambda run: jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(run(x, w, stride=(2, 2))))))(w)
  np.testing.assert_allclose(slope(fast), slope(plain), rtol=1e-4, atol=1e-4)


def without_convolution(run, x, w):
  """Values and both gradients, ours and plain, of what takes a convolution in halves alone."""
  assert "stablehlo.convolution" not in jax.jit(run).lower(x, w).as_text()
  half = [a.astype(jnp.bfloat16) for a in (x, w)]
  assert "stablehlo.convolution" in jax.jit(run).lower(*half).as_text()

  def all_of(plain):
    loss = lambda x, w: jnp.sum(jnp.sin(run(x, w, plain=plain)))
    return run(x, w, plain=plain), *jax.jit(jax.grad(loss, (0, 1)))(x, w)

  return zip(all_of(False), all_of(True), strict=True)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
def test_large_kernels_of_3x3_go_by_tiles(padding):
  x, w = jax.random.normal(KEY, (2, 33, 30, 128)), jax.random.normal(KEY, (3, 3, 128, 130)) / 34
  for got, want in without_convolution(partial(ops.conv, padding=padding), x, w):
    assert np.abs(got - want).max() < 5e-6 * np.abs(want).max()


@pytest.mark.parametrize(
  "shape, features, product",
  [((1, 7, 7, 160), 960, True), ((2, 7, 7, 160), 960, False), ((1, 7, 7, 160), 256, False),
   ((1, 7, 7, 512), 2048, False)],
)  # fmt: skip
def test_the_last_layers_of_small_networks_are_products_of_matrices(shape, features, product):
  x = jax.random.normal(KEY, shape)
  w = jax.random.normal(KEY, (1, 1, shape[-1], features)) / shape[-1] ** 0.5
  run = jax.jit(ops.conv)
  assert product == ("stablehlo.convolution" not in run.lower(x, w).as_text())
  np.testing.assert_allclose(run(x, w), ops.conv(x, w, plain=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, each", [((3, 3), 4), ((5, 3), 2)])
@pytest.mark.parametrize("size", [(9, 8), (31, 7)])  # whose rows are summed at once, and in parts
def test_groups_of_few_channels_go_side_by_side(kernel, each, size):
  x = jax.random.normal(KEY, (2, *size, 16 * each))
  w = jax.random.normal(KEY, (*kernel, each, 16 * each)) / 6
  for moves in ({}, {"padding": ((2, 0), (5, 1)), "dilation": (2, 1)}):
    run = partial(ops.conv, groups=16, **moves)
    for got, want in without_convolution(run, x, w):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert "stablehlo.convolution" in jax.jit(partial(run, stride=(2, 2))).lower(x, w).as_text()


@pytest.mark.parametrize("kernel, channels", [((3, 3), 3), ((5, 5), 1), ((2, 3), 5)])
def test_pictures_go_without_a_product_of_matrices(kernel, channels):
  x = jax.random.normal(KEY, (2, 9, 8, channels))
  w = jax.random.normal(KEY, (*kernel, channels, 7))
  for moves in ({}, {"stride": (2, 1), "padding": "VALID", "dilation": (2, 1)}):
    for got, want in without_convolution(partial(ops.conv, **moves), x, w):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_derivatives_of_every_order_and_both_modes():
  x, w = jax.random.normal(KEY, (2, 6, 5, 4)), jax.random.normal(KEY, (3, 3, 1, 4))
  run = partial(ops.conv, groups=4, stride=(2, 1))

  def curve(x, w, plain):
    slope = jax.grad(lambda x, w: jnp.sum(jnp.sin(run(x, w, plain=plain))), (0, 1))
    return jax.jvp(slope, (x, w), (jnp.cos(x), jnp.cos(w)))[1]

  for got, want in zip(curve(x, w, False), curve(x, w, True)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_convolution_under_vmap():
  x, w = jax.random.normal(KEY, (3, 2, 6, 5, 4)), jax.random.normal(KEY, (3, 3, 3, 1, 4))
  run = partial(ops.conv, groups=4)
  for axes in ((0, 0), (0, None), (None, 0)):
    args = [a if axis == 0 else a[0] for a, axis in zip((x, w), axes)]
    for function in (run, jax.grad(lambda x, w: jnp.sum(jnp.sin(run(x, w))), (0, 1))):
      got = jax.vmap(function, axes)(*args)
      for i in range(3):
        want = function(*(a[i] if axis == 0 else a for a, axis in zip(args, axes)))
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
          np.testing.assert_allclose(one[i], other, rtol=1e-4, atol=1e-4)


def test_other_platforms_get_the_plain_convolution_alone():
  x, w = jnp.ones((1, 5, 5, 8)), jnp.ones((3, 3, 1, 8))
  traced = jax.jit(partial(ops.conv, groups=8)).trace(x, w)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("stablehlo.convolution") == 1 and "stablehlo.slice" not in text
  assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_a_gpu_scatters_no_gradient_through_small_pools():
  for kernel, scatters in ((3, 0), (5, 1)):
    pool = partial(ops.max_pool, kernel=(kernel,) * 2, stride=(2, 2))
    traced = jax.jit(jax.grad(lambda x, pool=pool: pool(x).sum())).trace(jnp.ones((1, 9, 9, 2)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.select_and_scatter") == scatters


def naive_pool(x, kernel, stride, pad, ceil, reduce):
  """Torch's rule: windows may pass the end when `ceil`, but none begins beyond the input."""
  n, h, w, c = x.shape
  sizes = []
  for size in (h, w):
    count = (size + 2 * pad - kernel) / stride
    count = int(np.ceil(count) if ceil else np.floor(count)) + 1
    sizes.append(count - 1 if ceil and (count - 1) * stride >= size + pad else count)
  out = np.zeros((n, *sizes, c))
  for i, j in itertools.product(*map(range, sizes)):
    top, left = i * stride - pad, j * stride - pad
    rows, columns = (slice(max(0, a), a + kernel) for a in (top, left))
    inside = (min(top + kernel, h + pad) - top) * (min(left + kernel, w + pad) - left)
    out[:, i, j] = reduce(x[:, rows, columns], inside)
  return out


POOLS = list(itertools.product([(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1)], [False, True]))


@pytest.mark.parametrize("sizes, ceil", POOLS)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_pools_are_their_definitions(size, sizes, ceil):
  kernel, stride, pad = sizes
  x = jax.random.normal(KEY, (2, *size, 3)) - 3  # negative: a padded zero would win a maximum
  args = dict(stride=(stride,) * 2, padding=((pad, pad),) * 2, ceil=ceil)
  data = np.asarray(x, np.float64)
  naive = partial(naive_pool, data, kernel, stride, pad, ceil)
  for plain in (False, True):

    def pools(x, plain=plain):
      run = dict(kernel=(kernel,) * 2, plain=plain, **args)
      return ops.max_pool(x, **run), ops.avg_pool(x, **run), ops.avg_pool(x, count_pad=False, **run)

    wants = (
      lambda w, n: w.max((1, 2)),
      lambda w, n: w.sum((1, 2)) / n,
      lambda w, n: w.mean((1, 2)),
    )
    for got, want in zip(jax.jit(pools)(x), wants):
      np.testing.assert_allclose(got, naive(want), rtol=1e-4)


@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
def test_gradients_of_pools_are_the_plain_ones(pool):
  x = jax.random.normal(KEY, (2, 7, 8, 3))

  def loss(x, plain):
    args = dict(stride=(2, 2), padding=((1, 1), (1, 1)), ceil=True, plain=plain)
    return jnp.sum(jnp.sin(pool(x, (3, 3), **args)))

  fast, plain = (jax.jit(jax.grad(partial(loss, plain=p)))(x) for p in (False, True))
  np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-5)


def test_same_average_pooling_ignores_padding():
  y = ops.avg_pool(jnp.ones((1, 5, 5, 1)), (3, 3), stride=(2, 2), padding="SAME", count_pad=False)
  np.testing.assert_allclose(y, 1.0, rtol=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (3, 5), (13, 7)])
def test_adaptive_average_pool(size):
  x = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)
  want = np.zeros((2, *size, 3))
  for i, j in itertools.product(range(size[0]), range(size[1])):
    rows = slice(i * 7 // size[0], -(-(i + 1) * 7 // size[0]))
    columns = slice(j * 9 // size[1], -(-(j + 1) * 9 // size[1]))
    want[:, i, j] = x[:, rows, columns].mean((1, 2))
  np.testing.assert_allclose(
    ops.adaptive_avg_pool(jnp.asarray(x), size), want, rtol=1e-4, atol=1e-5
  )


def test_a_window_larger_than_the_picture_is_a_sentence():
  with pytest.raises(ValueError, match="window of 7 does not fit an input of 5"):
    ops.max_pool(jnp.ones((1, 5, 5, 1)), (7, 7), stride=(1, 1))


@pytest.mark.parametrize("margin", [((1, 1), (1, 1)), ((0, 1), (2, 0))])
def test_a_margin_of_zeros_is_what_padding_makes(margin):
  random = np.random.default_rng(0)
  shapes = (2, 6, 5, 8), (1, 1, 8, 24), (24,)
  x, kernel, bias = (random.normal(size=shape).astype("f") for shape in shapes)
  got = ops.conv_in_zeros(x, kernel, bias, margin)
  want = np.pad(ops.conv(x, kernel, plain=True) + bias, ((0, 0), *margin, (0, 0)))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
  (top, bottom), (left, right) = margin
  inside = np.zeros(want.shape, bool)
  inside[:, top : got.shape[1] - bottom, left : got.shape[2] - right] = True
  assert not np.asarray(got)[~inside].any()  # not nearly zero
