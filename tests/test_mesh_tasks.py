"""Updates on four devices, batch and state split in two, are those of one: of reading,
segmentation, captions, YOLO and Mask R-CNN."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from tests import parity, runs, test_anchor_tasks, test_rcnn_cli, test_tasks
from train import mesh
from train.step import make_state, make_train_step
from train.tasks.rcnn import Rcnn, Sampled
from train.tasks.yolo import Yolo
import zoo


def detectors():
  """{name: (network, task)}, with few narrow layers."""
  masks = partial(test_rcnn_cli.NARROW, num_classes=4)
  grid = zoo.create("yolov3_tiny", num_classes=4, width=1 / 16)
  # A quarter of 80 regions may have masks, more than are computed in any case.
  return {"masks": (Sampled(masks, anchors=64, regions=80), Rcnn()), "grid": (grid, Yolo(grid))}


def cases():
  """{name: (network, task, batch of four rows)}."""
  rng, found = np.random.default_rng(0), {}
  for name, (make, task, asked) in test_tasks.LEARNERS.items():
    network, size = make()
    found[name] = network, task, asked, (*size, 1)
  objects = {
    "boxes": test_anchor_tasks.BOXES, "box_label": test_anchor_tasks.LABELS,
    "masks": rng.integers(0, 2, (2, 5, 28, 28)).astype(np.uint8) * 255,
  }  # fmt: skip
  for name, (network, task) in detectors().items():
    found[name] = network, task, objects, (128, 128, 3)
  for name, (network, task, asked, shape) in found.items():
    rows = asked | {"image": rng.integers(0, 256, (2, *shape), np.uint8), "real": np.ones(2, "f")}
    found[name] = network, task, {k: np.concatenate([v, v[::-1]]) for k, v in rows.items()}
  return found


def update(network, task, batch, place):
  """{name: number} of one update on a mesh: what was measured, each array's sum of magnitudes."""
  size, channels = batch["image"].shape[1:3], batch["image"].shape[3]
  preprocess = zoo.Preprocess(8, 8, (0.5,) * channels, (0.25,) * channels)
  variables = zoo.init(network, jax.random.key(0), size=size, channels=channels)
  tx = optax.sgd(0.1, momentum=0.9)
  make = partial(make_state, tx=tx)
  split = mesh.shardings(place, jax.eval_shape(make, variables))
  state = jax.jit(make, out_shardings=split)(variables)
  step = make_train_step(
    network, task, tx, jax.random.key(1), preprocess, shardings=(split, mesh.replicated(place))
  )
  state, measured = step(state, mesh.put_batch(batch, place))
  return {
    name: float(a) / max(float(b), 1) for name, (a, b) in measured.items()
  } | {
    jax.tree_util.keystr(path): float(np.abs(leaf).sum())
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state.opt))
  }  # fmt: skip


def updates() -> dict[str, list[dict[str, float]]]:
  """Of each case, on one device and on all four."""
  jax.jit = partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
  places = mesh.make(devices=jax.devices()[:1]), mesh.make(("data:2", "fsdp:2"))
  return {name: [update(*case, place) for place in places] for name, case in cases().items()}


def test_four_devices_update_as_one():
  found = runs.on_devices(4, "test_mesh_tasks.updates()")
  assert found.keys() == cases().keys()
  for name, (one, four) in found.items():
    # The gradient of a scale that a batch norm follows is zero but for rounding.
    assert one["loss"] > 0 and four == pytest.approx(one, rel=1e-4, abs=1e-6 * one["loss"]), name
