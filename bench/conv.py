"""Each form of zoo.ops.conv beside the plain XLA operation: python -m bench.conv

Interleaved in one run, after a check that both give the same; prints the median of the paired
ratios plain / ours with their quartiles, of the forward pass and of the gradients of both inputs.
"""

from functools import partial
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from zoo.ops import conv as ops

ROUNDS = 7
LAYERS = {  # name: batch, pixels, channels, features, kernel, stride, groups
  "depthwise 3x3, 56x56x144": (8, 56, 144, 144, 3, 1, 144),
  "depthwise 3x3, 14x14x384": (8, 14, 384, 384, 3, 1, 384),
  "depthwise 3x3 stride 2, 56x56x144": (8, 56, 144, 144, 3, 2, 144),
  "grouped 3x3, 32 groups, 56x56x128": (8, 56, 128, 128, 3, 1, 32),
  "grouped 3x3, 32 groups, 14x14x512": (8, 14, 512, 512, 3, 1, 32),
  "3x3, 224x224, 3 to 16": (8, 224, 3, 16, 3, 1, 1),
  "3x3 stride 2, 224x224, 3 to 32": (8, 224, 3, 32, 3, 2, 1),
  "1x1, 56x56, 64 to 256": (8, 56, 64, 256, 1, 1, 1),
  "1x1, 14x14, 1024 to 256": (8, 14, 1024, 256, 1, 1, 1),
}


def layer(kernel, stride, groups, plain, x, w):
  pad = ((kernel // 2,) * 2,) * 2
  return ops.conv(x, w, stride=(stride,) * 2, padding=pad, groups=groups, plain=plain)


def max_pool(plain, x, _):
  return ops.max_pool(x, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), plain=plain)


def seconds(run, *inputs) -> float:
  start = time.perf_counter()
  jax.block_until_ready(run(*inputs))
  return time.perf_counter() - start


def ratios(form, *inputs) -> np.ndarray:
  """Paired plain / ours, after both agreed."""
  plain, ours = (jax.jit(partial(form, p)) for p in (True, False))
  for a, b in zip(jax.tree.leaves(plain(*inputs)), jax.tree.leaves(ours(*inputs))):
    scale = float(jnp.abs(a).max())
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-4)
  return np.array([seconds(plain, *inputs) / seconds(ours, *inputs) for _ in range(ROUNDS)])


def gradient(form):
  def run(plain, x, w):
    return jax.grad(lambda x, w: jnp.sum(form(plain, x, w) ** 2), (0, 1))(x, w)

  return run


def main():
  machine = platform.processor() or platform.machine()
  print(f"{machine}, {os.cpu_count()} cores, {jax.devices()[0]}, jax {jax.__version__}")
  print(f"{'plain / ours, median (quartiles)':38}{'forward':>24}{'gradients':>24}")
  key = jax.random.key(0)
  forms = {}
  for name, (b, pixels, c, f, k, s, groups) in LAYERS.items():
    x = jax.random.normal(key, (b, pixels, pixels, c))
    w = jax.random.normal(key, (k, k, c // groups, f))
    forms[name] = partial(layer, k, s, groups), x, w
  forms["max pool 3x3 stride 2, 112x112x64"] = (
    max_pool, jax.random.normal(key, (8, 112, 112, 64)), jnp.zeros(())
  )  # fmt: skip
  for name, (form, *inputs) in forms.items():
    texts = []
    for run in (form, gradient(form)):
      low, middle, high = np.percentile(ratios(run, *inputs), (25, 50, 75))
      texts.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    print(f"{name:38}{texts[0]:>24}{texts[1]:>24}", flush=True)


if __name__ == "__main__":
  main()
