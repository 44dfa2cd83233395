"""kill -9 at random moments, the same run again, the last state compared: python -m bench.kills

Each trial starts a small run of a real loop (JPEG files through Grain's threads, batch norm,
dropout, averages, a checkpoint every other update), kills it at a random moment, by turns anywhere
or within a save, starts it again in a new process and lets it end. What it leaves then must equal a
run that nobody stopped: every array of the state by its digest, metrics.csv without its clocks, and
the published weights byte for byte.

Processes are forked from one that has the imports but no JAX client yet, so that a trial costs a
second or two.
"""

import argparse
from functools import partial
import hashlib
import os
from pathlib import Path
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings

from flax import linen as nn
import grain  # noqa: F401 (before the forks)
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bench.input import photographs
from train import checkpoint, loop, optim
from train.data import pipeline
from train.data.sources import FolderSource
from train.mix import Mix
from train.tasks.classify import Classify
import zoo

SIZE, BATCH, STEPS, IMAGES = 32, 8, 12, 32


class Net(nn.Module):
  numerics: zoo.Numerics = zoo.Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    n = self.numerics
    x = n.act(n.norm(train, name="bn")(n.conv(32, 3, 4, bias=False, name="conv")(image)))
    x = nn.Dropout(0.3, deterministic=not train)(x.mean((1, 2)))
    return {"logits": n.dense(4, name="fc")(x)}


def train(workdir: Path, source: FolderSource) -> None:
  """Trains to the end and notes what the run has left."""
  config = loop.Config(
    model="net", data="clouds", workdir=str(workdir), batch=BATCH, steps=STEPS, log_every=1,
    save_every=2, eval_every=1.5, ema=0.9,
  )  # fmt: skip
  optimizer = optim.Config(warmup=0.0, clip=1.0)
  rate = optim.schedule(optimizer, total=STEPS, warmup=0)
  preprocess = zoo.Preprocess().at(SIZE)
  common = {"batch": BATCH, "threads": 2}
  loop.run(config, loop.Job(
    name="classify", task=Classify(), model=Net(),
    record=zoo.Record("resnet18", preprocess=preprocess, classes=tuple("abcd")), weights=None,
    total=STEPS, per_epoch=IMAGES // BATCH,
    tx=optim.make(optimizer, ("conv|bn", "fc"), rate), rate=rate, mix=Mix(mixup=0.2), frozen="",
    train_batches=lambda step: pipeline.train_batches(
      source, size=SIZE, seed=0, start_step=step, **common),
    eval_batches=lambda split: pipeline.eval_batches(source, view=preprocess.crop, **common),
    keys=dict.fromkeys(("train", "val"), source.keys), flags=(config, optimizer),
  ))  # fmt: skip
  (workdir / "left").write_text(left(workdir))


def start(run, said: Path) -> int:
  """The number of a process of its own that does `run`."""
  if pid := os.fork():
    return pid
  code = 1
  try:
    with open(said, "ab", 0) as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
    run()
    code = 0
  except BaseException as error:
    print(repr(error))
  os._exit(code)


def left(workdir: Path) -> str:
  """What a run leaves: the digest of its state and its weights, and its rows."""
  state = ocp.load(workdir / f"checkpoints/{STEPS}")
  rows = [r for r in (workdir / "metrics.csv").read_text().splitlines() if "second" not in r]
  weights = hashlib.sha256((workdir / "model.safetensors").read_bytes()).hexdigest()
  return "\n".join([checkpoint.digest(state), weights, *rows])


def saving(workdir: Path) -> bool:
  return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def killed(pid: int, workdir: Path, after: float, save: int | None) -> bool:
  """Kills the process `after` seconds, from its start or from its save number `save` on.

  False if it had come to its end by itself.
  """
  deadline, seen, was = time.monotonic() + (after if save is None else 60), 0, False
  while time.monotonic() < deadline:
    if os.waitpid(pid, os.WNOHANG)[0]:
      return False
    if save is not None and (now := saving(workdir)) != was:
      was, seen = now, seen + now
      if seen > save:
        time.sleep(after)
        break
    time.sleep(0.0005)
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  return True


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  warnings.filterwarnings("ignore", message="os.fork")
  chance = random.Random(options.seed)
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    (folder / "photographs").mkdir()
    source = photographs(folder / "photographs", IMAGES, 60, 80)
    source = FolderSource(source.root, source.keys, np.arange(IMAGES, dtype=np.int32) % 4)
    whole = folder / "whole"
    for _ in range(2):  # the first compiles, the second tells how long a run takes
      shutil.rmtree(whole, ignore_errors=True)
      began = time.monotonic()
      _, status = os.waitpid(start(partial(train, whole, source), folder / "said"), 0)
      assert not status, (folder / "said").read_text()
      seconds = time.monotonic() - began
    wanted = (whole / "left").read_text()
    kills = within = resumed = equal = 0
    while kills < options.kills:
      workdir, said = folder / f"trial{kills}", folder / f"said{kills}"
      run = partial(train, workdir, source)
      save = chance.randrange(STEPS // 2) if kills % 2 else None
      after = chance.uniform(0, seconds if save is None else 0.03)
      if not killed(start(run, said), workdir, after, save):
        shutil.rmtree(workdir, ignore_errors=True)
        continue
      kills += 1
      within += saving(workdir)
      _, status = os.waitpid(start(run, said), 0)
      text = said.read_text()
      assert not status, text
      resumed += "going on with" in text
      equal += (workdir / "left").read_text() == wanted
      print(f"\r{kills} kills, {within} within a save, {equal} equal", end="", flush=True)
  print(
    f"\n{kills} kills at random moments of a run of {seconds:.1f} s, {within} within a save; "
    f"{resumed} went on from a checkpoint, the others from the beginning; {equal} of {kills} ended "
    "with equal bits"
  )
  sys.exit(equal != kills)


if __name__ == "__main__":
  main()
