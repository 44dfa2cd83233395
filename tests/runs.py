"""A small finished training folder without training: what reports and predictions are tested on."""

import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

import zoo
from zoo import store

CLASSES = ("<script>alert(1)</script>", "a & b", "long " * 30 + "name", "$\\frac$ _é")
FOLDERS = ("angle", "both", "long", "math")  # what these classes' folders are called on disk
SIZE = 64


def photographs(folder: Path, each: int = 3) -> Path:
  """folder/{train,test}/class/*.png: noise over a colour for each class."""
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    for c, name in enumerate(FOLDERS):
      (folder / split / name).mkdir(parents=True)
      for i in range(each):
        pixels = rng.integers(0, 80, (70, 90, 3)) + np.eye(4, 3)[c] * 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
  return folder


def finished(workdir: Path, data: Path, *, each: int = 3, right: float = 0.5, seed=0) -> Path:
  """A workdir as train.classify leaves it, of an untrained network and invented predictions."""
  workdir.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  preprocess = zoo.Preprocess().at(SIZE)
  fields = {"num_classes": len(CLASSES), "depths": (1, 1, 1, 1)}
  variables = untrained(zoo.create("resnet18", **fields), SIZE, seed)
  record = zoo.Record("resnet18", fields=fields, preprocess=preprocess, classes=CLASSES)
  store.save(workdir / "model.safetensors", variables, record)
  labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), each)
  answers = np.where(rng.random(len(labels)) < right, labels, (labels + 1) % len(CLASSES))
  probs = rng.random((len(labels), len(CLASSES))) + 2 * np.eye(len(CLASSES))[answers]
  np.savez(
    workdir / "predictions.npz",
    keys=np.array([f"test/{FOLDERS[c]}/{i % each}.png" for i, c in enumerate(labels)]),
    labels=labels, probs=(probs / probs.sum(1, keepdims=True)).astype(np.float32), split="test",
  )  # fmt: skip
  lines = ["step,epoch,split,name,value"]
  for step in range(1, 9):
    for split, name in (("train", "loss"), ("train", "top1"), ("val", "loss"), ("val", "top1")):
      lines.append(f"{step},{step / 4},{split},{name},{rng.random()}")
  (workdir / "metrics.csv").write_text("\n".join(lines) + "\n")
  (workdir / "run.json").write_text(json.dumps({
    "command": f"python -m train.classify --data='{CLASSES[0]}' --seed={seed}",
    "config": {"seed": 0, "max_bad": 0.05}, "task": "classify", "model": "resnet18",
    "weights": None, "data": str(data), "classes": CLASSES, "size": SIZE, "finished": True,
    "images": {"train": 12, "test": len(labels)}, "preprocess": dataclasses.asdict(preprocess),
    "test": {"loss": 0.7, "top1": float(np.mean(answers == labels)), "top5": 1.0},
    "skipped": ["train/<b>/x.jpg: it is cut short"], "seconds": {"train": 1.5, "all": 2.5},
  }))  # fmt: skip
  return workdir


def untrained(model, size: int, seed: int = 0) -> dict:
  """Initial variables of a convolutional network, without compiling anything."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    if path[-1].key == "kernel":
      return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
    return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

  return jax.tree_util.tree_map_with_path(fill, zoo.shapes(model, size=size))


def on_devices(count: int, call: str):
  """What `call`, of a module of tests, returns in a process with so many CPU devices, as JSON."""
  code = f"import json; from tests import {call.split('.')[0]}; print(json.dumps({call}))"
  there = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
    env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
  )  # fmt: skip
  assert there.returncode == 0, there.stderr
  return json.loads(there.stdout.splitlines()[-1])
