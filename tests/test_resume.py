"""kill -9 at any moment, the same command again: the same result to the last bit."""

import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from tests import photographs

FLAGS = ("--epochs=2", "--save_every=3")
LAST = 14


def saving(workdir: Path) -> bool:
  return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def saving_after(step: int):
  """A checkpoint is being written, and that of `step` is whole."""
  return lambda workdir: saving(workdir) and (workdir / "checkpoints" / str(step)).exists()


def row(step: int):
  """The update number `step` is done, and its row written."""

  def reached(workdir: Path) -> bool:
    path = workdir / "metrics.csv"
    return path.exists() and f"\n{step}," in path.read_text()

  return reached


# Updates 1..14; checkpoints after 3, 6, 9, 12 and 14; evaluations after 7 and 14.
KILLS = {
  "before the first checkpoint": row(2),
  "during the first save": saving,
  "in mid-epoch": row(5),
  "during a later save": saving_after(3),
  "in the second epoch": row(8),
  "near the end": row(11),
}


def train(workdir, photos, cache, until=None) -> str:
  """Runs the script to its end, or kills it as soon as `until(workdir)`; returns what it said."""
  process = subprocess.Popen(
    photographs.command(f"--data={photos}", f"--workdir={workdir}", *FLAGS), text=True,
    env=photographs.environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  deadline = time.monotonic() + 300
  while until and process.poll() is None and not until(workdir):
    assert time.monotonic() < deadline
    time.sleep(0.005)
  if until:
    os.kill(process.pid, signal.SIGKILL)
  text = process.communicate(timeout=300)[0]
  assert process.returncode == (-signal.SIGKILL if until else 0), text
  return text


# The superuser writes where nobody may, unless this right of his is given up.
NOBODY_ABOVE = ("setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override")


def closed_to_writers(workdir, photos, cache) -> tuple[int, str]:
  """(exit status, what was said) of a run whose folders become read-only after two updates."""
  above = NOBODY_ABOVE if os.geteuid() == 0 else ()
  if above and not shutil.which(above[0]):
    pytest.skip("as the superuser, this needs setpriv of util-linux")
  process = subprocess.Popen(
    [*above, *photographs.command(f"--data={photos}", f"--workdir={workdir}", *FLAGS)], text=True,
    env=photographs.environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  while process.poll() is None and not row(2)(workdir):
    time.sleep(0.005)
  folders = (workdir, workdir / "checkpoints")
  for folder in folders:
    folder.chmod(0o555)
  try:
    text = process.communicate(timeout=300)[0]
  finally:
    for folder in folders:
      folder.chmod(0o755)
  return process.returncode, text


def final_state(workdir):
  return jax.tree.map(np.asarray, ocp.load(workdir / "checkpoints" / str(LAST)))


def rows(workdir):
  """metrics.csv without the rows that tell the time."""
  lines = (workdir / "metrics.csv").read_text().splitlines()
  return [line for line in lines if "second" not in line]


@pytest.fixture(scope="module")
def whole(photos, cache, tmp_path_factory):
  """A run never killed."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  train(workdir, photos, cache)
  return workdir


# One test, for where tests run side by side each process would make what several of them share.
def test_a_run_killed_again_and_again_ends_as_one_never_killed(whole, photos, cache, tmp_path):
  killed = tmp_path / "killed"
  said, half_written = [], 0
  for reached in KILLS.values():
    said.append(train(killed, photos, cache, until=reached))
    half_written += saving(killed)
  assert half_written  # so a kill did fall into a save
  said.append(train(killed, photos, cache))
  assert not saving(killed)  # what was half-written is gone

  found = [re.search(r"going on with .* at step (\d+)", text) for text in said]
  steps = [int(match[1]) if match else 0 for match in found]
  assert steps[:2] == [0, 0] and steps == sorted(steps)
  assert set(steps) <= {0, 3, 6, 9, 12} and steps[-1] >= 6
  assert all("from random weights" in text for text, step in zip(said, steps) if not step)

  a, b = final_state(whole), final_state(killed)
  assert jax.tree.structure(a) == jax.tree.structure(b)
  leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b)))
  assert len(leaves) > 150  # parameters, statistics, momentum, counters
  assert all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in leaves)

  assert rows(whole) == rows(killed)
  assert len([line for line in rows(killed) if ",train,loss," in line]) == LAST
  assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
  a, b = (np.load(run / "predictions.npz") for run in (whole, killed))
  assert all((a[key] == b[key]).all() for key in a.files)


def test_a_workdir_that_becomes_read_only(whole, photos, cache, tmp_path):
  """It ends with a sentence; mended, it goes on to the same state."""
  status, text = closed_to_writers(tmp_path / "run", photos, cache)
  assert status == 1 and "Traceback" not in text
  assert re.search(r"cannot save a checkpoint in .*: Permission denied .* none is saved yet", text)
  train(tmp_path / "run", photos, cache)
  a, b = final_state(whole), final_state(tmp_path / "run")
  assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b))))
