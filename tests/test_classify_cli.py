"""python -m train.classify as a user runs it, and what it answers to bad input."""

import dataclasses
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import photographs
from train import classify, loop, optim
from train.data import datasets
from train.mix import Mix
from train.tasks.classify import Classify
from zoo import store
import zoo


def run(cache, *flags, code=0):
  done = subprocess.run(
    photographs.command(*flags), capture_output=True, text=True, timeout=300,
    env=photographs.environment(cache),
  )  # fmt: skip
  assert done.returncode == code, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  return done.stdout, done.stderr


@pytest.fixture(scope="module")
def first(photos, cache, tmp_path_factory):
  folder = tmp_path_factory.mktemp("first")
  out, _ = run(cache, f"--data={photos}", f"--workdir={folder}", "--epochs=2", "--report")
  return folder, out


def test_it_trains_evaluates_and_reports(first, cache):
  folder, out = first
  info = json.loads((folder / "run.json").read_text())
  lines = out.splitlines()
  assert lines[0] == "starting resnet18 from random weights"
  assert lines[1].startswith("step 7/14  |  train loss") and "val loss" in lines[1]
  assert lines[-2].startswith("test: loss") and f"top1 {info['test']['top1']:.1%}" in lines[-2]
  assert lines[-1] == f"report: {folder / 'report.html'}" and (folder / "report.html").exists()
  assert info["command"].startswith("python -m train.classify --model=resnet18")
  assert info["weights"] is None and info["classes"] == ["blue", "green", "red"]
  assert list((cache / "xla").iterdir())  # the compilations are kept


def test_zoo_loads_what_it_left(first):
  folder, _ = first
  record = zoo.record(folder)
  assert record.classes == ("blue", "green", "red") and record.preprocess.size == 32
  made, variables = zoo.load(folder)
  answers = np.load(folder / "predictions.npz")
  image = np.zeros((1, 32, 32, 3), np.float32)
  out = jax.jit(lambda v, x: made.apply(v, x, train=False))(variables, image)
  assert out["logits"].shape == (1, 3) == answers["probs"][:1].shape


def test_a_run_starts_another_with_frozen_stages(first, photos, cache, tmp_path):
  folder, _ = first
  out, _ = run(
    cache, f"--data={photos}", f"--workdir={tmp_path}", f"--model={folder}", "--freeze=5",
    "--steps=3", "--dtype=bfloat16",
  )  # fmt: skip
  assert out.startswith("starting from ")
  old, new = (store.read_variables(run / "model.safetensors") for run in (folder, tmp_path))
  for kind in ("params", "batch_stats"):
    for name in old[kind].keys() - {"fc"}:
      for a, b in zip(jax.tree.leaves(old[kind][name]), jax.tree.leaves(new[kind][name])):
        np.testing.assert_array_equal(a, b)
  assert (old["params"]["fc"]["kernel"] != new["params"]["fc"]["kernel"]).any()
  assert zoo.record(tmp_path).provenance["from"] == str(folder)


def test_another_command_in_its_workdir(first, photos, cache):
  folder, _ = first
  _, error = run(cache, f"--data={photos}", f"--workdir={folder}", "--epochs=2", "--wd=0.3", code=1)
  assert "holds another run" in error and "--wd=0.0001 there, --wd=0.3 now" in error


@pytest.mark.parametrize(
  "flags, text",
  [
    (["--mesh=data:3"], "--mesh=data:3 is for 3 devices; there are 8"),
    (["--batch=12"], "--batch=12 cannot be split over 8 devices"),
    (["--batch=12", "--find_lr=rates.png"], "--batch=12 cannot be split over 8 devices"),
    (["--optimizer=adamm"], "should be one of <adamw|sgd|lamb|rmsprop>"),
  ],
)
def test_bad_flags_are_told_before_any_compilation(photos, cache, tmp_path, flags, text):
  done = subprocess.run(
    photographs.command(f"--data={photos}", f"--workdir={tmp_path}/run", "--batch=8", *flags),
    capture_output=True, text=True, timeout=300, env=photographs.environment(cache) | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_LOG_COMPILES": "1",
    },
  )  # fmt: skip
  assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr
  assert "Compiling" not in done.stderr and not list(tmp_path.iterdir())


def test_misspelt_flag(cache):
  _, error = run(cache, "--lrr=3", code=1)
  assert "Did you mean: lr" in error


GOOD = loop.Config(model="resnet18", data="photos", workdir="w", batch=4)


@pytest.mark.parametrize(
  "changes, text",
  [
    ({"model": "resnet81"}, "did you mean 'resnet18'"),
    ({"model": "resnet18.nobody"}, "no weights and no file named 'resnet18.nobody'"),
    ({"model": "runs/none"}, "no weights and no file named 'runs/none'"),
    ({"model": "x", "data": "", "workdir": ""}, "--data is missing\n--workdir is missing\nunknown"),
    ({"data": "phoots"}, "no folder"),
    ({"batch": 64}, "fewer than one batch of 64"),
    ({"epochs": 0.0}, "--epochs=0.0 is not one update"),
  ],
)
def test_what_is_wrong_is_said_before_anything_starts(photos, changes, text):
  config = dataclasses.replace(GOOD, data=str(photos))
  changes = {k: str(photos.parent / v) if v == "phoots" else v for k, v in changes.items()}
  with pytest.raises(ValueError) as fault:
    classify.prepare(dataclasses.replace(config, **changes), optim.Config(), classify.Config())
  assert text in str(fault.value)


def prepared(photos, optimizer=optim.Config(), model="resnet18", changes=None, **own):  # noqa: B008
  config = dataclasses.replace(GOOD, data=str(photos), model=model, **(changes or {}))
  return classify.prepare(config, optimizer, classify.Config(**own))


def test_flags_of_a_recipe_reach_what_they_change(photos):
  assert prepared(photos, model="mobilenet_v2", dropout=0.3).model.dropout == 0.3
  assert prepared(photos, model="efficientnet_lite0", drop_path=0.2).model.drop_path == 0.2
  with pytest.raises(ValueError, match="--drop_path: vgg11 has no such layers"):
    prepared(photos, model="vgg11", drop_path=0.1)
  assert prepared(photos, model="googlenet", aux=0.3).task.aux == 0.3
  with pytest.raises(ValueError, match="--aux: vgg11 has no auxiliary heads"):
    prepared(photos, model="vgg11", aux=0.3)
  assert prepared(photos).task.weights == ()
  weights = np.array(prepared(photos, balance="loss").task.weights)
  labels = datasets.load(photos).splits["train"].labels
  np.testing.assert_allclose(weights * np.bincount(labels), len(labels) / 3, rtol=1e-6)
  assert prepared(photos, smoothing=0.1, loss="sigmoid").task == Classify("sigmoid", 0.1)
  assert prepared(photos, mixup=0.2, cutmix=1.0).mix == Mix(0.2, 1.0) and not prepared(photos).mix
  made = prepared(photos, changes={"dtype": "bfloat16", "freeze_norm": True}).model.numerics
  assert made.dtype == jnp.bfloat16 and made.freeze_norm
  job = prepared(photos, optim.Config(freeze=2, unfreeze=0.5))
  assert [since for since, _ in job.phases] == [0, 4, 7] and job.held(3) == job.frozen
  assert job.held(7) == "" != job.held(4) != job.frozen


@pytest.mark.parametrize(
  "own",
  [
    {"augment": False}, {"crop": 0.9}, {"flip": 1.0}, {"randaugment": 2}, {"erase": 1.0},
    {"randaugment": 2, "magnitude": 1.0}, {"repeat": 2}, {"balance": "sample"},
  ],
  ids=lambda own: "-".join(own),
)  # fmt: skip
def test_flags_of_views_reach_the_batches(photos, own):
  # A magnitude changes the operations, not which pictures there are.
  plain = {"randaugment": 2} if "magnitude" in own else {}
  before, after = (next(prepared(photos, **flags).train_batches(0)) for flags in (plain, own))
  assert (before["image"] != after["image"]).any()
  assert (after["label"][::2] == after["label"][1::2]).all() or own.keys() != {"repeat"}


def test_class_weights():
  weights = classify.class_weights(np.array([0] * 6 + [2] * 2), 3)
  assert weights[0] * 6 == weights[2] * 2 == 4


def test_the_rate_finder_needs_no_workdir(photos):
  config = loop.Config(model="resnet18", data=str(photos), batch=4)
  assert classify.prepare(config, optim.Config(), classify.Config(find_lr="rates.png"))
  with pytest.raises(ValueError, match="--find_lr=rates: wanted the name of a PNG"):
    classify.prepare(config, optim.Config(), classify.Config(find_lr="rates"))


def test_freezing_too_much(photos):
  config = dataclasses.replace(GOOD, data=str(photos))
  with pytest.raises(ValueError, match="--freeze=6 would leave nothing to train"):
    classify.prepare(config, optim.Config(freeze=6), classify.Config())
