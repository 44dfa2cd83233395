"""How fast a run is: the profiler's trace, what waits for what, how much of a device is used."""

from pathlib import Path
import re
import sys
import time

import jax
import jax.numpy as jnp

SIDE = {"cpu": 1024}  # of the matrix product that measures a device; elsewhere
LARGE = 8192
GRADIENT = 3  # forward and backward passes as multiples of the forward pass


def updates(text: str, total: int) -> tuple[int, int] | None:
  """The first and the last update of "20-25"; None for "". Raises ValueError."""
  if not text:
    return None
  match = re.fullmatch(r"(\d+)-(\d+)", text)
  first, last = (int(match[1]), int(match[2])) if match else (0, 0)
  if not 0 < first <= last <= total:
    raise ValueError(
      f"--profile={text}: wanted the first and the last update to trace within 1..{total}, such as "
      f"{min(20, total)}-{min(25, total)}"
    )
  return first, last


class Trace:
  """JAX's profiler over some updates. Use as a context manager: leaving ends what is begun."""

  def __init__(self, folder: Path, traced: tuple[int, int] | None):
    self._folder, self._traced, self._on = folder, traced or (0, 0), False

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    self._end()

  def before(self, step: int) -> None:
    if step == self._traced[0]:
      jax.profiler.start_trace(str(self._folder))
      self._on = True

  def after(self, step: int, measured) -> None:
    if self._on and step == self._traced[1]:
      jax.block_until_ready(measured)
      self._end()

  def _end(self) -> None:
    if self._on:
      self._on = False
      jax.profiler.stop_trace()


def input_bound(threads: int, waited: float, spent: float) -> None:
  """Says that the device waits for the input."""
  print(
    f"the input is the bottleneck: the device waited for it {waited / spent:.0%} of the time. "
    f"More --threads (now {threads}) or smaller photographs on a faster disk would help",
    file=sys.stderr, flush=True,
  )  # fmt: skip


def utilisation(
  multiply_adds: int, images: float, *, devices: int, dtype: str, peak: float, partly: bool
) -> tuple[float, str]:
  """(the share of what the devices can do that the model's own arithmetic takes, a sentence).

  Args:
    multiply_adds: of the forward pass of one image.
    images: a second.
    peak: TFLOP/s of one device; 0 to measure it.
    partly: stages are held; how much of the backward pass that saves is not counted, so only the
      forward pass is.
  """
  how = "--peak" if peak else "as measured by a matrix product"
  if jax.default_backend() == "cpu":
    devices = 1  # of one computer, however many there seem to be
  peak = devices * (peak or measured_peak(dtype))
  done = 2 * multiply_adds * images * (1 if partly else GRADIENT) / 1e12
  return done / peak, (
    f"model FLOP utilisation {'at least ' * partly}{done / peak:.1%}: {done:.3g} of {peak:.3g} "
    f"TFLOP/s {how}; {2 * multiply_adds / 1e9:.3g} GFLOP forward an image, {images:.1f} images/s"
  )


def measured_peak(dtype: str) -> float:
  """TFLOP/s of one device in a product of square matrices, the best of five."""
  side = SIDE.get(jax.default_backend(), LARGE)
  matrix = jnp.ones((side, side), dtype)
  product = jax.jit(lambda a: a @ a)
  product(matrix).block_until_ready()
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    product(matrix).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * side**3 / best / 1e12
