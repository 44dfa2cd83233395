"""`zoo.ops.packed`: convolutions with packed kernels, against XLA's own with the kernel itself."""

import dataclasses

import jax
import numpy as np
import pytest

import zoo
from zoo import layers
from zoo.ops import conv, packed, winograd

WIDE = (3, 3, 128, 64)


def of(x, kernel, dtype=np.float64, **moves):
  return conv.layer(x, kernel, dtype, **moves)


@pytest.mark.parametrize(
  "layer",
  [
    of((2, 9, 12, 128), WIDE),
    of((1, 8, 7, 128), WIDE, padding="VALID"),
    of((1, 5, 6, 64), (3, 3, 64, 96), padding=((2, 0), (1, 2))),
    of((1, 9, 12, 256), (3, 3, 256, 256)),  # all products at once
    of((2, 7, 10, 48), (5, 5, 48, 64)),
    of((1, 9, 8, 40), (5, 5, 40, 40), padding=((0, 4), (1, 3))),
    of((1, 6, 5, 40), (5, 5, 40, 40), padding="VALID"),
    of((2, 9, 8, 512), (1, 1, 512, 640)),
    of((1, 9, 8, 512), (1, 1, 512, 640), stride=(2, 3), padding=((1, 0), (0, 2))),
    of((3, 1, 1, 4096), (1, 1, 4096, 64)),
  ],
  ids=str,
)
def test_a_packed_convolution_equals_the_plain_one(layer):
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, kernel = random.normal(size=layer.x), random.normal(size=layer.kernel)
    layout = packed.layout([layer], 1)
    got = packed.conv(jax.numpy.asarray(x), packed.pack(kernel, layout), layer)
    moves = dict(stride=layer.stride, padding=layer.pads)
    want = conv.conv(jax.numpy.asarray(x), jax.numpy.asarray(kernel), plain=True, **moves)
  assert got.shape == layer.y
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("size", [3, 5])
def test_winograds_products_are_a_convolution(size):
  x, kernel = (np.random.default_rng(0).normal(size=(n, n)) for n in (size + 1, size))
  factors = zip(winograd.pixels(x.ravel()), winograd.kernel(kernel.ravel()))
  got = winograd.outputs([pixel * tap for pixel, tap in factors])
  places = [(i, j) for i in (0, 1) for j in (0, 1)]
  want = [(x[i : i + size, j : j + size] * kernel).sum() for i, j in places]
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_a_broken_pixel_stays_in_its_tiles(broken):
  layer = of((1, 12, 12, 256), (3, 3, 256, 256), np.float32)
  x, kernel = np.ones(layer.x, np.float32), np.ones(layer.kernel, np.float32)
  x[0, 0, 0, 0] = broken
  run = jax.jit(lambda x, kernel: packed.conv(x, kernel, layer))
  arguments = x, packed.pack(kernel, packed.layout([layer], 1))
  assert "optimization_barrier" in run.lower(*arguments).as_text()
  finite = np.isfinite(run(*arguments)).all((0, 3))
  assert not finite[0, 0] and finite[2:].all() and finite[:, 2:].all()


def test_which_products_are_at_once():
  def at_once(layer):
    kernel = packed.pack(np.ones(layer.kernel, np.float32), packed.layout([layer], 1))
    run = jax.jit(lambda x: packed.conv(x, kernel, layer))
    return "optimization_barrier" in run.lower(jax.ShapeDtypeStruct(layer.x, layer.dtype)).as_text()

  square = lambda side, kernel=3: of((1, side, side, 128), (kernel, kernel, 128, 128), np.float32)
  assert [at_once(square(side)) for side in (18, 20, 56, 58)] == [False, True, True, False]
  assert not at_once(square(20, 5))


def test_which_layers_are_packed():
  assert packed.layout([of((1, 14, 14, 128), WIDE)], 8) == "tiles"
  for moves in ({"stride": (2, 2)}, {"dilation": (2, 2)}, {"padding": ((3, 0), (1, 1))}):
    assert packed.layout([of((1, 14, 14, 128), WIDE, **moves)], 1) is None
  assert packed.layout([of((1, 14, 14, 128), (3, 3, 2, 128), groups=64)], 1) is None
  assert packed.layout([of((1, 14, 14, 128), WIDE, dtype=np.float16)], 1) is None
  assert packed.layout([of((1, 14, 14, 32), (3, 3, 32, 63))], 1) is None  # few weights
  assert packed.layout([of((1, 28, 28, 16), (5, 5, 16, 47))], 1) == "tiles"
  assert packed.layout([of((1, 28, 28, 16), (5, 5, 16, 46))], 1) is None
  assert packed.layout([of((1, 14, 14, 64), (5, 5, 64, 64), padding=((5, 0), (2, 2)))], 1) is None
  assert packed.layout([of((1, 224, 224, 128), WIDE)], 1) is None  # many pixels
  one = of((1, 14, 14, 512), (1, 1, 512, 512))
  assert [packed.layout([one], batch) for batch in (1, 2, 3)] == ["turned", "turned", None]
  assert packed.layout([of((1, 14, 14, 512), (1, 1, 512, 511))], 1) is None
  assert packed.layout([of((1, 14, 14, 1024), (1, 1, 512, 1024), groups=2)], 1) is None


def test_a_layer_that_is_called_twice_is_packed_if_both_gain():
  small, large = of((1, 7, 7, 512), (1, 1, 512, 512)), of((1, 28, 28, 512), (1, 1, 512, 512))
  assert packed.layout([small, dataclasses.replace(small, x=(1, 9, 9, 512))], 1) == "turned"
  assert packed.layout([small, large], 1) is None


def test_a_packed_network_has_no_3x3_convolution_left():
  model, folded = zoo.create("vgg11"), zoo.create("vgg11", folded=True)
  arrays, image = zoo.shapes(model), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)

  def left(batch):
    kernels = jax.eval_shape(lambda v: zoo.fold(model, v, size=64, cpu_batch=batch)[1], arrays)
    run = jax.jit(lambda v, x: folded.apply(v, x, train=False)["logits"])
    lines = run.lower(kernels, image).as_text().splitlines()
    return sum("stablehlo.convolution" in line and "tensor<3x3x" in line for line in lines)

  # Of eight the first never is one on a CPU, and two that are alike are one function.
  assert (left(None), left(1)) == (6, 0)


def test_a_packed_kernel_has_its_margin_too():
  random, margin = np.random.default_rng(0), ((0, 1), (2, 0))
  x, kernel = random.normal(size=(1, 5, 4, 512)), random.normal(size=(1, 1, 512, 512))
  params = {"kernel": packed.pack(kernel, "turned"), "bias": np.arange(512.0)}
  module = layers.Conv(512, folded=True, margin=margin)
  with jax.enable_x64(True):
    got = module.apply({"params": params}, jax.numpy.asarray(x))
  want = np.pad(x @ kernel[0, 0] + params["bias"], ((0, 0), *margin, (0, 0)))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
