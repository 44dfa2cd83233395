"""Which learning rate to try: the loss while the rate rises from update to update.

The range test of Smith 2017 (arXiv:1506.01186): the rate grows by the same factor in each update;
where the loss falls fastest is a rate to start with, where it is least is already too large.
"""

from collections.abc import Callable
import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import optax

from train import figures, loop
from train import mesh as meshes
from train.step import make_train_step

UPDATES = 100
LOWEST, HIGHEST = 1e-6, 1.0
WORSE = 4.0  # as many times the least loss as end the search
SMOOTH = 0.9  # share of the mean that an update keeps


def find(
  config: loop.Config, job: loop.Job, make_tx: Callable[[Callable], optax.GradientTransformation]
) -> tuple[np.ndarray, np.ndarray]:
  """(rates [n], losses [n]) of updates with ever larger rates; nothing is written.

  Args:
    make_tx: the run's optimizer with another rate.
  """
  growth = (HIGHEST / LOWEST) ** (1 / (UPDATES - 1))
  rate = lambda step: LOWEST * growth**step
  config = dataclasses.replace(config, ema=0.0)
  job = dataclasses.replace(job, tx=make_tx(rate))
  mesh = meshes.make(config.mesh, batch=config.batch)
  wanted = loop.like(config, job, mesh)
  state = loop.begin(config, job, wanted)
  step = make_train_step(
    job.model, job.task, job.tx, jax.random.key(config.seed), job.record.preprocess,
    frozen=job.held(0), mix=job.mix, remat=config.remat,
    shardings=(loop.places(wanted), meshes.replicated(mesh)),
  )  # fmt: skip
  losses, least = [], math.inf
  for _, batch in zip(range(UPDATES), job.train_batches(0)):
    state, measured = step(state, meshes.put_batch(batch, mesh))
    total, weight = jax.device_get(measured["loss"])
    losses.append(float(total) / max(float(weight), 1.0))
    least = min(least, losses[-1])
    if not losses[-1] < WORSE * least:
      break
  return np.array([rate(i) for i in range(len(losses))]), np.array(losses)


def smoothed(losses: np.ndarray) -> np.ndarray:
  """Means that forget, without the pull of their beginning."""
  mean, found = 0.0, []
  for i, loss in enumerate(losses, 1):
    mean = SMOOTH * mean + (1 - SMOOTH) * loss
    found.append(mean / (1 - SMOOTH**i))
  return np.array(found)


def suggestion(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
  """(the rate where the smoothed loss falls fastest before it is least, where it is least).

  Raises:
    ValueError: the loss never falls.
  """
  curve = smoothed(losses[np.isfinite(losses)])
  best = int(np.argmin(curve))
  if best < 2:
    raise ValueError(
      f"the loss falls at no rate from {LOWEST:g} to {rates[-1]:g}: look at the data, or start "
      "from other weights"
    )
  return float(rates[int(np.argmin(np.gradient(curve[: best + 1])))]), float(rates[best])


def run(config: loop.Config, job: loop.Job, make_tx, path: Path) -> None:
  """Finds, says and draws. Raises ValueError, OSError: sentences."""
  rates, losses = find(config, job, make_tx)
  fastest, least = suggestion(rates, losses)
  if jax.process_index() == 0:
    path.write_bytes(figures.rates(rates, losses, smoothed(losses), fastest))
  loop.say(
    f"suggested: --lr={fastest:.2g}, where the loss falls fastest; at {least:.2g} it is least, and "
    f"that is too large already. Curve: {path.resolve()}"
  )
