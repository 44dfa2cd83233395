"""The loop with a toy network: starts, checkpoints, the best and the last, logs, full disks."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_step import PREPROCESS, STAGES, model, variables
from train import checkpoint, loop, metrics, optim, workdir
from train.mix import Mix
from train.checkpoint import Checkpoints, SaveError
from train.step import make_state
from train.tasks.classify import Classify
import zoo
from zoo import store

TRAIN, HELD, BATCH = 12, 6, 4


class Crash(Exception):
  pass


def rows(split, index):
  """Pictures whose brightness is their class, with some noise."""
  seeds = [(("train", "val", "test").index(split), int(i)) for i in index]
  noise = [np.random.default_rng(seed).integers(0, 99, (32, 32, 3)) for seed in seeds]
  label = np.array(index, np.int32) % 4
  return {
    "image": (np.stack(noise) + 50 * label[:, None, None, None]).astype(np.uint8),
    "label": label,
    "real": np.ones(len(index), np.float32),
  }


def train_batches(start, crash_at=None, term_at=None, broken=()):
  for step in itertools.count(start):
    if step == crash_at:
      raise Crash
    if step == term_at:
      os.kill(os.getpid(), signal.SIGTERM)
    batch = rows("train", np.random.default_rng((0, step)).permutation(TRAIN)[:BATCH])
    if step in broken:
      batch["real"][0] = np.nan
    yield batch


def eval_batches(split):
  for index in (np.arange(4), np.array([4, 5, 0, 0])):
    batch = rows(split, index) | {"index": index.astype(np.int32)}
    if index[0]:
      batch["index"][2:], batch["real"][2:] = -1, 0
    yield batch


def make(folder, *, events=None, splits=("val", "test"), weights=variables, **changes):
  """(config, job) of twelve updates, three in an epoch."""
  config = loop.Config(
    model="toy", data="noise", workdir=str(folder), batch=BATCH, epochs=4, log_every=2
  )
  optimizer = optim.Config(lr=3e-3, warmup=0.0)
  flags = [config, optimizer]
  for i, part in enumerate(flags):
    own = {k: v for k, v in changes.items() if hasattr(part, k)}
    flags[i] = dataclasses.replace(part, **own)
  config, optimizer = flags
  total = loop.length(config, TRAIN // BATCH)
  rate = optim.schedule(optimizer, total=total, warmup=0)
  return config, loop.Job(
    name="classify", task=Classify(), model=model(), phases=optim.phases(
      optimizer, STAGES, TRAIN // BATCH),
    record=zoo.Record("resnet18", preprocess=PREPROCESS, classes=tuple("abcd")),
    weights=lambda: weights(model()), total=total, per_epoch=TRAIN // BATCH,
    tx=optim.make(optimizer, STAGES, rate, per_epoch=TRAIN // BATCH), rate=rate, mix=Mix(),
    frozen="",
    train_batches=lambda step: train_batches(step, **(events or {})), eval_batches=eval_batches,
    keys={s: [f"{s}/{i}" for i in range(HELD if s != "train" else TRAIN)]
          for s in ("train", *splits)},
    skipped=["x.jpg: is a text"], flags=(config, optimizer),
  )  # fmt: skip


def table(folder):
  with open(folder / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def last_state(folder, job, step=None):
  like = jax.eval_shape(lambda v: make_state(v, job.tx), zoo.shapes(job.model, size=32))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
  with Checkpoints(folder / "checkpoints") as checkpoints:
    return jax.device_get(checkpoints._load(step, like) if step else checkpoints.restore(like))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  config, job = make(folder)
  return folder, job, loop.run(config, job)


def test_a_run_leaves_what_the_others_read(finished):
  folder, job, outcome = finished
  run = json.loads((folder / "run.json").read_text())
  assert run["finished"] and run["test"] == outcome.measured and outcome.split == "test"
  assert run["classes"] == list("abcd") and run["skipped"] == ["x.jpg: is a text"]
  assert run["config"]["batch"] == BATCH and run["preprocess"]["size"] == run["size"] == 32
  assert {"input", "compile", "train", "evaluate"} <= run["seconds"].keys()
  answers = np.load(folder / "predictions.npz")
  assert list(answers["keys"]) == [f"test/{i}" for i in range(HELD)]
  assert answers["labels"].tolist() == [0, 1, 2, 3, 0, 1] and str(answers["split"]) == "test"
  assert answers["probs"].shape == (HELD, 4)
  np.testing.assert_allclose(answers["probs"].sum(-1), 1, rtol=1e-5)
  top1 = (answers["probs"].argmax(-1) == answers["labels"]).mean()
  assert outcome.measured["top1"] == pytest.approx(top1)
  assert list((folder / "tensorboard").iterdir())


def test_metrics_rows(finished):
  folder, job, outcome = finished
  found = table(folder)
  train = [int(r["step"]) for r in found if (r["split"], r["name"]) == ("train", "loss")]
  assert train == [2, 3, 4, 6, 8, 9, 10, 12]  # every second, and where an epoch ends
  val = [r for r in found if (r["split"], r["name"]) == ("val", "top1")]
  assert [(r["step"], r["epoch"]) for r in val] == [
    ("3", "1.0000"), ("6", "2.0000"), ("9", "3.0000"), ("12", "4.0000")
  ]  # fmt: skip
  rates = {int(r["step"]): float(r["value"]) for r in found if r["name"] == "lr"}
  assert rates[10] == float(job.rate(9))
  test = {r["name"]: float(r["value"]) for r in found if r["split"] == "test"}
  assert test == outcome.measured


def test_the_best_and_the_last_are_kept(finished):
  folder, job, _ = finished
  evaluated = {}
  for r in table(folder):
    if r["split"] == "val":
      evaluated.setdefault(int(r["step"]), {})[r["name"]] = float(r["value"])
  best = max(evaluated, key=lambda step: (job.task.rank(evaluated[step]), -step))
  facts = store.read_record(folder / "model.safetensors").provenance
  assert facts["step"] == best and facts["measured"] == evaluated[best]
  with Checkpoints(folder / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [9, 12]


def test_a_finished_run_only_evaluates_again(finished, capsys):
  folder, _, outcome = finished
  before = table(folder)
  config, job = make(folder, crash_at=0)
  again = loop.run(config, job)
  assert again.measured == outcome.measured
  assert "going on" in capsys.readouterr().out
  assert table(folder) == before


def test_a_crash_and_the_same_command_again(finished, tmp_path):
  folder, job, outcome = finished
  config, crashing = make(tmp_path, events={"crash_at": 7}, save_every=2)
  with pytest.raises(Crash):
    loop.run(config, crashing)
  assert not json.loads((tmp_path / "run.json").read_text())["finished"]
  with open(tmp_path / "metrics.csv", "a") as file:  # rows after the last checkpoint, one half
    file.write("8,2.6667,train,loss,77.0\n9,3.0000,tra")
  (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()

  def never(_):
    raise AssertionError("a run that goes on needs no weights")

  config, job = make(tmp_path, weights=never, save_every=5)
  assert loop.run(config, job).measured == outcome.measured
  a, b = last_state(folder, job), last_state(tmp_path, job)
  assert checkpoint.digest(a) == checkpoint.digest(b)
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))
  ends = [
    [r for r in table(run) if r["step"] in ("3", "9", "12") and r["split"] == "val"]
    for run in (folder, tmp_path)
  ]
  assert ends[0] == ends[1]
  steps = [int(r["step"]) for r in table(tmp_path)]
  assert steps == sorted(steps)
  assert "77.0" not in (tmp_path / "metrics.csv").read_text()


def test_sigterm_saves_and_the_same_command_goes_on(finished, tmp_path, capsys):
  folder, job, outcome = finished
  config, job = make(tmp_path, events={"term_at": 4})
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as end:
    loop.run(config, job)
  assert end.value.code == 0 and signal.getsignal(signal.SIGTERM) is before
  assert "SIGTERM at step 5, which is saved" in capsys.readouterr().out
  config, job = make(tmp_path)
  assert loop.run(config, job).measured == outcome.measured
  assert "at step 5" in capsys.readouterr().out
  assert checkpoint.digest(last_state(folder, job)) == checkpoint.digest(last_state(tmp_path, job))


def test_a_clock_that_goes_backwards(finished, tmp_path, monkeypatch):
  folder, job, outcome = finished
  now = itertools.count(2e9, -3600)
  monkeypatch.setattr(time, "time", lambda: next(now))
  config, job = make(tmp_path)
  assert loop.run(config, job).measured == outcome.measured
  assert min(json.loads((tmp_path / "run.json").read_text())["seconds"].values()) >= 0
  assert checkpoint.digest(last_state(folder, job)) == checkpoint.digest(last_state(tmp_path, job))


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="cannot write in --workdir=.*file/run: Not a directory; mend"):
    loop.run(*make(tmp_path / "file/run"))


def test_stages_are_released_one_by_one(tmp_path):
  """Held: the first two of four; after an epoch of three updates the second learns too."""
  changes = {"freeze": 2, "unfreeze": 1.0, "epochs": 2.0}
  config, job = make(tmp_path / "whole", **changes)
  assert [since for since, _ in job.phases] == [0, 3, 6]
  loop.run(config, job)
  start = variables(job.model)
  early, late = (last_state(tmp_path / "whole", job, step).variables for step in (3, 6))

  def moved(now, name):
    return any(not np.array_equal(a, b) for kind in now for a, b in zip(
      jax.tree.leaves(now[kind].get(name, {})), jax.tree.leaves(start[kind].get(name, {}))
    ))  # fmt: skip

  names = ("conv1", "bn1", "layer1_0", "layer2_0", "fc")
  assert [moved(early, name) for name in names] == [False, False, False, True, True]
  assert [moved(late, name) for name in names] == [False, False, True, True, True]
  config, crashing = make(tmp_path / "killed", events={"crash_at": 4}, save_every=2, **changes)
  with pytest.raises(Crash):
    loop.run(config, crashing)
  loop.run(*make(tmp_path / "killed", save_every=2, **changes))
  a, b = (last_state(tmp_path / name, job) for name in ("whole", "killed"))
  assert checkpoint.digest(a) == checkpoint.digest(b)


def test_trace_and_times(tmp_path, capsys):
  config, job = make(tmp_path, steps=4, profile="2-3", peak=1e-6)
  loop.run(config, job)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  found = table(tmp_path)
  times = {name: [float(r["value"]) for r in found if r["name"] == name]
           for name in ("input_seconds", "compute_seconds")}  # fmt: skip
  assert len(times["input_seconds"]) == 3 and min(min(t) for t in times.values()) >= 0
  used = json.loads((tmp_path / "run.json").read_text())["utilisation"]
  text = capsys.readouterr().out
  # conv1 16 Ki, layer1_0 and layer2_0 by hand: 8x8x8x27, 4x4x16x72, 2x2x16x144, and the head.
  adds = 8 * 8 * 8 * 27 + 4 * 4 * 16 * 72 + 2 * 2 * 16 * 144 + 16 * 4
  rate = float(re.search(r"GFLOP forward an image, ([\d.]+) images/s", text)[1])
  assert used == pytest.approx(6 * adds * rate / 1e6, rel=0.01) and "utilisation" in text
  with pytest.raises(ValueError, match="--profile=9-7: wanted .* within 1..4, such as 4-4"):
    loop.run(*make(tmp_path / "other", steps=4, profile="9-7"))
  assert not (tmp_path / "other").exists()


def test_an_input_that_is_the_bottleneck_is_said_once(tmp_path):
  said = []
  log = metrics.Log(tmp_path, 0, per_epoch=10)
  progress = metrics.Progress(
    log, lambda step: 0.1, start=0, total=99, batch=1, every=1,
    warn=lambda waited, spent: said.append(waited / spent),
  )  # fmt: skip
  for step in range(1, 9):
    if step > 4:
      time.sleep(0.02)
      progress.waited(0.02)
    progress.ran(step, {"loss": (np.float32(1), np.float32(1))})
    assert len(said) == (step > 4)
  assert 0.2 < said[0] <= 1
  waits = [float(r["value"]) for r in table(tmp_path) if r["name"] == "input_seconds"]
  assert waits[:3] == [0] * 3 and waits[-1] >= 0.02
  progress.close()
  log.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_for_terminals(tmp_path, monkeypatch, terminal):
  screen = io.StringIO()
  screen.isatty = lambda: terminal
  monkeypatch.setattr("sys.stdout", screen)
  with contextlib.closing(metrics.Log(tmp_path, 0, per_epoch=10)) as log:
    progress = metrics.Progress(log, lambda step: 0.1, start=2, total=8, batch=4, every=99)
    progress.ran(3, {"loss": (np.float32(6), np.float32(4))})
    progress.drain()
    progress.say(3, {"val": {"top1": 0.5}})
    progress.close()
  assert "step 3/8  |  train loss 1.500  |  val top1 50.0%" in screen.getvalue()
  assert ("/32" in screen.getvalue()) == terminal  # images


def test_one_process_at_a_time(finished):
  folder, _, _ = finished
  with workdir.locked(folder):
    with pytest.raises(ValueError, match=f"is in use: process {os.getpid()} on .* trains there"):
      loop.run(*make(folder))


def test_a_broken_loss_stops_the_run_and_leaves_its_batch(tmp_path):
  config, job = make(tmp_path, events={"broken": (4,)})
  with pytest.raises(FloatingPointError, match="loss, .* of update 5 is not finite.*--skip"):
    loop.run(config, job)
  with np.load(tmp_path / "broken_step_5.npz") as found:
    assert np.isnan(found["real"][0]) and found["image"].shape == (BATCH, 32, 32, 3)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [3]


def test_broken_updates_are_left_out_by_flag(tmp_path):
  config, job = make(tmp_path / "two", events={"broken": (4, 7, 8)}, skip=2)
  assert np.isfinite(loop.run(config, job).measured["loss"])
  skipped = {r["step"]: r["value"] for r in table(tmp_path / "two") if r["name"] == "skipped"}
  assert skipped == {"2": "0.0", "3": "0.0", "4": "0.0", "6": "0.5", "8": "0.5", "9": "1.0",
                     "10": "0.0", "12": "0.0"}  # fmt: skip
  config, job = make(tmp_path / "one", events={"broken": (4, 7, 8)}, skip=1)
  with pytest.raises(FloatingPointError, match="2 updates in a row, the last of them 9"):
    loop.run(config, job)


def test_mixing_and_rematerialization_reach_the_step(tmp_path, monkeypatch):
  told = []

  def make_step(*_, mix, remat, **__):
    told.append((mix, remat))
    raise Crash

  monkeypatch.setattr(loop, "make_train_step", make_step)
  config, job = make(tmp_path, remat=True)
  with pytest.raises(Crash):
    loop.run(config, dataclasses.replace(job, mix=Mix(cutmix=1.0)))
  assert told == [(Mix(cutmix=1.0), True)]


def test_averages_are_evaluated_and_the_better_is_published(tmp_path):
  config, job = make(tmp_path, ema=0.9, epochs=2.0)
  loop.run(config, job)
  rows_ = table(tmp_path)
  losses = {s: [float(r["value"]) for r in rows_ if (r["split"], r["name"]) == (s, "loss")]
            for s in ("val", "val_ema")}  # fmt: skip
  assert len(losses["val"]) == len(losses["val_ema"]) == 2 and losses["val"] != losses["val_ema"]
  facts = store.read_record(tmp_path / "model.safetensors").provenance
  ranks = [(r["split"], r["step"]) for r in rows_ if r["split"].startswith("val")]
  assert (facts["split"], str(facts["step"])) in ranks
  best = max(
    job.task.rank({r["name"]: float(r["value"]) for r in rows_ if (r["split"], r["step"]) == key})
    for key in set(ranks)
  )
  assert job.task.rank(facts["measured"]) == best


def test_early_stopping_and_going_on_after_it(tmp_path, capsys):
  config, job = make(tmp_path, patience=2, lr=0.0, epochs=30.0)  # statistics settle, no more
  outcome = loop.run(config, job)
  best = re.search(r"stopped: no evaluation since step (\d+) was better", capsys.readouterr().out)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.steps()[-1] == int(best[1]) + 6 < 90
  before = table(tmp_path)
  assert loop.run(config, job).measured == outcome.measured
  assert table(tmp_path) == before


def test_without_val_the_last_is_published(tmp_path):
  config, job = make(tmp_path, splits=("test",), epochs=1.0)
  loop.run(config, job)
  published = store.read_variables(tmp_path / "model.safetensors")
  state = last_state(tmp_path, job)
  assert checkpoint.digest(published) == checkpoint.digest(state.variables)
  assert store.read_record(tmp_path / "model.safetensors").provenance["step"] == 3


def test_another_runs_workdir_is_refused(finished, tmp_path):
  folder, _, _ = finished
  config, job = make(folder, lr=0.5, batch=2, log_every=7)
  with pytest.raises(ValueError) as fault:
    loop.run(config, job)
  text = str(fault.value)
  assert "--lr=0.003 there, --lr=0.5 now" in text and "--batch=4 there, --batch=2 now" in text
  assert "log_every" not in text and "--workdir" in text
  (tmp_path / "model.safetensors").touch()
  with pytest.raises(ValueError, match="has model.safetensors but no run.json"):
    workdir.claim(tmp_path, {"config": {}}, set())
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(ValueError, match="run.json is damaged"):
    workdir.claim(tmp_path, {"config": {}}, set())


def test_nothing_held_out_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no images are held out"):
    loop.run(*make(tmp_path, splits=()))
  assert not list(tmp_path.iterdir())


def test_epochs_and_steps():
  assert loop.length(loop.Config(epochs=2.5), 4) == 10
  assert loop.length(loop.Config(steps=3), 4) == 3
  with pytest.raises(ValueError, match="not one update"):
    loop.length(loop.Config(epochs=0.1), 4)


def test_measures_are_fetched_a_step_late(tmp_path):
  fetched = []

  class Measure:
    def __init__(self, step):
      self.step = step

    def __array__(self, dtype=None, copy=None):
      fetched.append(self.step)
      return np.float32(1)

  log = metrics.Log(tmp_path, 0, per_epoch=10)
  progress = metrics.Progress(log, lambda step: 0.1, start=0, total=9, batch=1, every=99)
  for step in (1, 2, 3):
    progress.ran(step, {"loss": (Measure(step), np.float32(1))})
    assert set(fetched) == set(range(1, step))
  progress.drain()
  assert set(fetched) == {1, 2, 3}
  progress.close()
  log.close()


# ---- checkpoints


def state_of(value, size=300_000):
  noise = np.random.default_rng(value).normal(size=size).astype(np.float32)
  tx = optim.make(optim.Config(), STAGES, lambda step: 0.1)
  state = make_state({"params": {"fc": {"kernel": jnp.asarray(noise)}}}, tx)
  return state.replace(step=jnp.int32(value))


def like(state):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def saved(folder, *steps):
  with Checkpoints(folder) as checkpoints:
    for step in steps:
      checkpoints.save(state_of(step))
      checkpoints.save(state_of(step))  # a second time is no fault


def flip_a_byte(folder, step):
  path = max((folder / str(step)).rglob("d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


def test_two_checkpoints_are_kept(tmp_path):
  saved(tmp_path, 1, 2, 3)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [2, 3]
    state = checkpoints.restore(like(state_of(0)))
  assert int(state.step) == 3 and checkpoint.digest(state) == checkpoint.digest(state_of(3))


def break_index(folder, step):
  for path in (folder / str(step)).rglob("manifest.ocdbt"):
    path.write_bytes(path.read_bytes()[:20])


def break_description(folder, step):
  for path in (folder / str(step)).rglob("*METADATA"):
    path.write_text("{")


@pytest.mark.parametrize("damage", [flip_a_byte, break_index, break_description])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage):
  saved(tmp_path, 1, 2)
  damage(tmp_path, 2)
  with Checkpoints(tmp_path) as checkpoints:
    state = checkpoints.restore(like(state_of(0)))
    assert int(state.step) == 1 and checkpoint.digest(state) == checkpoint.digest(state_of(1))
    checkpoints.save(state_of(2))  # training goes on and comes to step 2 again
  text = capsys.readouterr().out
  assert "checkpoint of step 2" in text and "the one before, of step 1" in text
  with Checkpoints(tmp_path) as checkpoints:
    assert int(checkpoints.restore(like(state_of(0))).step) == 2


def test_only_damaged_checkpoints(tmp_path):
  saved(tmp_path, 1, 2)
  flip_a_byte(tmp_path, 1)
  flip_a_byte(tmp_path, 2)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="every checkpoint .* is damaged:\n  step 2.*\n  step 1"):
      checkpoints.restore(like(state_of(0)))
    assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_of_another_network(tmp_path):
  saved(tmp_path, 1)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="another network") as fault:
      checkpoints.restore(like(state_of(0, size=7)))
    assert "float32[300000] there, float32[7] here" in str(fault.value)
    assert checkpoints.steps() == [1]


def test_nothing_saved(tmp_path):
  with Checkpoints(tmp_path / "new") as checkpoints:
    assert checkpoints.restore(like(state_of(0))) is None


def test_a_full_disk(tmp_path):
  """A limit on file sizes is refused at the same place as a full disk, with another number."""
  saved(tmp_path, 1)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(SaveError) as fault, Checkpoints(tmp_path) as checkpoints:
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
      checkpoints.save(state_of(2))
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  text = str(fault.value)
  assert "File too large" in text and "last whole checkpoint is of step 1" in text
  with Checkpoints(tmp_path) as checkpoints:  # it removes what the writing threads left behind
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert int(checkpoints.restore(like(state_of(0))).step) == 1


def test_a_full_disk_for_the_weights(tmp_path):
  arrays = {"params": {"fc": {"kernel": np.zeros(300_000, np.float32)}}}
  path = tmp_path / "model.safetensors"
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    with pytest.raises(OSError, match="cannot write .*model.safetensors"):
      store.save(path, arrays, zoo.Record("resnet18"))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())


def test_a_run_of_an_older_version_goes_on(tmp_path):
  """It does not know a flag that came later, which must then be as if it was not given."""
  old = {"config": {"lr": 0.1}, "finished": False, "task": "toy", "classes": [], "images": {}}
  usual = {"lr": 0.01, "mixup": 0.0, "mesh": ()}
  workdir.claim(tmp_path, old, set(), usual)
  newer = old | {"config": {"lr": 0.1, "mixup": 0.0, "mesh": ()}}
  workdir.claim(tmp_path, newer, set(), usual)
  workdir.write(tmp_path, old)
  newer["config"]["mixup"] = 0.2
  with pytest.raises(ValueError, match=r"--mixup=0.0 there, --mixup=0.2 now\n"):
    workdir.claim(tmp_path, newer, set(), usual)
