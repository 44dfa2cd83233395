"""What people watch while a run goes on: means, metrics.csv, TensorBoard, the progress bar."""

from collections.abc import Callable, Mapping
import csv
import os
from pathlib import Path
import sys
import time

import jax
from tqdm import tqdm

SLOW = 0.2  # share of the time that may go to waiting for the input before that is said
COLUMNS = ("step", "epoch", "split", "name", "value")


class Meter:
  """Adds up {name: (numerator, denominator)}; `means` divides at the end."""

  def __init__(self):
    self._sums: dict[str, tuple[float, float]] = {}

  def add(self, measured: Mapping[str, tuple[float, float]]) -> None:
    for name, (a, b) in measured.items():
      before = self._sums.get(name, (0.0, 0.0))
      self._sums[name] = before[0] + float(a), before[1] + float(b)

  def means(self) -> dict[str, float]:
    return {name: a / b if b else float("nan") for name, (a, b) in self._sums.items()}


class Log:
  """metrics.csv and TensorBoard's events of a workdir, as they stood after `step`.

  Rows that a killed run wrote after its last checkpoint are dropped: they are written again.
  """

  def __init__(self, workdir: Path, step: int, per_epoch: int):
    SummaryWriter = _tensorboard()
    self._path, self._per_epoch = workdir / "metrics.csv", per_epoch
    self.seconds = _rewind(self._path, step)  # of training, in earlier processes
    self._file = open(self._path, "a", newline="")
    self._rows = csv.writer(self._file)
    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._rows.writerow((step, f"{step / self._per_epoch:.4f}", split, name, repr(float(value))))
      self._board.add_scalar(f"{split}/{name}", value, step)
    self._file.flush()

  def close(self) -> None:
    self._file.close()
    self._board.close()


class NoLog:
  """A log that keeps nothing, for all processes but the first."""

  seconds = 0.0

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    pass

  def close(self) -> None:
    pass


def _tensorboard():
  """tensorboardX's writer. Where there is a torch, it would import that too: five seconds more."""
  torch = sys.modules.get("torch")
  sys.modules["torch"] = None
  try:
    from tensorboardX import SummaryWriter
  finally:
    del sys.modules["torch"]
    if torch is not None:
      sys.modules["torch"] = torch
  return SummaryWriter


def _rewind(path: Path, step: int) -> float:
  """Drops what will be written again: rows after `step`, those of the test split, a half row.

  Returns the seconds of training until then.
  """
  rows, seconds = [], 0.0
  if path.exists():
    with open(path, newline="") as file:
      for row in csv.DictReader(file):
        if None in row.values() or row["split"] == "test" or int(row["step"]) > step:
          continue
        rows.append([row[c] for c in COLUMNS])
        if (row["split"], row["name"]) == ("train", "seconds"):
          seconds = float(row["value"])
  part = path.with_suffix(".part")
  with open(part, "w", newline="") as file:
    csv.writer(file).writerows([COLUMNS, *rows])
  os.replace(part, path)
  return seconds


class Progress:
  """Takes the measures of train steps while the next step runs; bar, rows and means of them.

  Fetching a step's measures waits for that step, so `ran` fetches those of the step before.
  """

  def __init__(
    self, log: Log, rate: Callable[[int], jax.Array], *, start: int, total: int, batch: int,
    every: int, watch: Callable[[int, Mapping], None] = lambda step, measured: None,
    shown: bool = True, warn: Callable[[float, float], None] | None = None,
  ):  # fmt: skip
    self._log, self._rate, self._batch, self._every = log, rate, batch, every
    self._pending, self._total, self._watch, self._shown = None, total, watch, shown
    self._window, self._since_said = Meter(), Meter()
    self._images, self._started, self._seconds = 0, time.perf_counter(), log.seconds
    self._warn, self._waited, self._blocked = warn, 0.0, 0.0
    self._settled = None  # (images, seconds) after the first row, which has what starts slowly
    self._bar = tqdm(
      total=total * batch, initial=start * batch, unit=" images", file=sys.stdout,
      disable=None if shown else True, dynamic_ncols=True, leave=False,
    )  # fmt: skip

  def ran(self, step: int, measured) -> None:
    """The update number `step`, counted from 1, is on its way; its measures are not yet read."""
    before, self._pending = self._pending, (step, measured)
    if before:
      self._arrived(*before)

  def waited(self, seconds: float) -> None:
    """So long the next batch was waited for."""
    self._waited += seconds

  @property
  def speed(self) -> float:
    """Images a second of this process's training; 0 before the second row."""
    images, seconds = self._settled or (0, 0.0)
    return images / seconds if seconds else 0.0

  def drain(self) -> None:
    """Waits for the measures of the last step and writes the row that they end."""
    if self._pending:
      step, _ = self._pending
      self._arrived(*self._pending)
      self._pending = None
      self._write_row(step)

  def restart_clock(self) -> None:
    """Leaves what happened since the last step (compiling, evaluating) out of images/s."""
    self._started, self._waited, self._blocked = time.perf_counter(), 0.0, 0.0

  def say(self, step: int, evaluated: Mapping[str, Mapping[str, float]]) -> None:
    """One line for people: the means since the last line, and those of evaluations by name."""
    parts = [f"step {step}/{self._total}", "train " + show(self._since_said.means())]
    parts += [f"{name} {show(found)}" for name, found in evaluated.items() if found]
    if self._shown:
      self._bar.write("  |  ".join(parts), file=sys.stdout)
    sys.stdout.flush()
    self._since_said = Meter()

  def close(self) -> None:
    self._bar.close()

  def _arrived(self, step: int, measured) -> None:
    asked = time.perf_counter()
    measured = jax.device_get(measured)
    self._blocked += time.perf_counter() - asked
    self._watch(step, measured)
    self._window.add(measured)
    self._since_said.add(measured)
    self._images += self._batch
    self._bar.update(self._batch)
    self._bar.set_postfix_str(f"loss {self._window.means()['loss']:.3f}", refresh=False)
    if step % self._every == 0:
      self._write_row(step)

  def _write_row(self, step: int) -> None:
    if not self._images:
      return
    now = time.perf_counter()
    spent = max(now - self._started, 1e-9)
    self._seconds += spent
    updates = self._images / self._batch
    self._log.write(
      step, "train",
      self._window.means() | {
        "lr": float(self._rate(step - 1)), "images_per_second": self._images / spent,
        "input_seconds": self._waited / updates,
        "compute_seconds": max(spent - self._waited, 0.0) / updates,
        "seconds": self._seconds,
      },
    )  # fmt: skip
    if self._settled:
      images, seconds = self._settled
      self._settled = images + self._images, seconds + spent
      # Where the device is the slower one, its last update is waited for after the batch.
      if self._warn and self._waited > max(self._blocked, SLOW * spent):
        self._warn(self._waited, spent)
        self._warn = None
    self._settled = self._settled or (0, 0.0)
    self._window, self._images, self._started = Meter(), 0, now
    self._waited = self._blocked = 0.0


def show(means: Mapping[str, float]) -> str:
  """Means as text, such as: loss 0.123 top1 45.6%."""
  return " ".join(
    f"{name} {value:.1%}" if name.startswith("top") else f"{name} {value:.3f}"
    for name, value in means.items()
  )
