"""A bidirectional LSTM beside torch's, in one run: python -m bench.lstm

Prints for each size torch's time over ours, forward and training step (the median of paired rounds
and their quartiles), and the same for Flax's own `nn.RNN` of optimised cells.
"""

import os
import time

from flax import linen as nn
import jax
import numpy as np
import torch

from zoo.text.lstm import LSTM

ROUNDS = 9
SIZES = ((1, 26, 512, 256), (32, 26, 512, 256), (32, 100, 512, 256), (32, 26, 256, 512))


def seconds(run) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def ours(module, x):
  """(forward, gradients) of a Flax module, compiled."""
  variables = jax.jit(module.init)(jax.random.key(0), x)
  forward = jax.jit(module.apply)
  grads = jax.jit(jax.grad(lambda v: (module.apply(v, x) ** 2).mean()))
  runs = (
    lambda: jax.block_until_ready(forward(variables, x)),
    lambda: jax.block_until_ready(grads(variables)),
  )
  for run in runs:
    run()
  return runs


def theirs(channels: int, hidden: int, x):
  module = torch.nn.LSTM(channels, hidden, bidirectional=True, batch_first=True)
  image = torch.from_numpy(x)

  def forward():
    with torch.no_grad():
      module(image)

  def grads():
    module.zero_grad()
    (module(image)[0] ** 2).mean().backward()

  for run in (forward, grads):
    run()
  return forward, grads


def shown(ratios) -> str:
  low, middle, high = np.percentile(ratios, (25, 50, 75))
  return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
  torch.set_num_threads(os.cpu_count())
  print("batch, steps, channels, hidden: torch / ours forward, gradients; flax / ours the same")
  for batch, steps, channels, hidden in SIZES:
    x = np.random.default_rng(0).normal(size=(batch, steps, channels)).astype(np.float32)
    cells = [nn.RNN(nn.OptimizedLSTMCell(hidden)) for _ in range(2)]
    kinds = (
      ours(LSTM(hidden, 1, True), x), theirs(channels, hidden, x), ours(nn.Bidirectional(*cells), x)
    )  # fmt: skip
    rounds = np.array(
      [[[seconds(run) for run in runs] for runs in kinds] for _ in range(ROUNDS)]
    )  # [round kind forward/gradients]
    ratios = rounds[:, 1:] / rounds[:, :1]
    columns = (shown(ratios[:, kind, way]) for kind in range(2) for way in range(2))
    print(f"{batch}, {steps}, {channels}, {hidden}:", ", ".join(columns), flush=True)


if __name__ == "__main__":
  main()
