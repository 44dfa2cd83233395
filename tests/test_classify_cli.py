"""python -m train.classify as a user runs it, and what it answers to bad input."""

import dataclasses
import json
import subprocess

import jax
import numpy as np
import pytest

from tests import photographs
from train import classify, loop, optim
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


def test_freezing_too_much(photos):
  config = dataclasses.replace(GOOD, data=str(photos))
  with pytest.raises(ValueError, match="--freeze=6 would leave nothing to train"):
    classify.prepare(config, optim.Config(freeze=6), classify.Config())


def test_recipes_are_made_of_our_flags():
  names = {
    f.name for c in (loop.Config, optim.Config, classify.Config) for f in dataclasses.fields(c)
  }
  recipes = sorted((photographs.ROOT / "train" / "recipes").glob("*.flags"))
  assert recipes
  for recipe in recipes:
    for line in recipe.read_text().splitlines():
      if line and not line.startswith("#"):
        name = line.removeprefix("--").partition("=")[0]
        assert {name, name.removeprefix("no")} & names, f"{recipe.name}: {line}"
