"""A TPU's own compiler takes our updates, of eight chips; none of them runs here."""

import jax
import numpy as np
import pytest

from bench import tpu
from tests import runs, test_lowered, test_mesh_tasks
from train.tasks.classify import Classify
import zoo

pytestmark = pytest.mark.skipif(
  not tpu.LIBRARY.is_file(), reason="libtpu is not there: make references"
)
# Every kind of convolution, recurrent layers, and boxes.
NETWORKS = "resnet", "mobilenet_v1"
TASKS = "read", "segment", "soft", "grid"


def cases():
  """{name: (network, task, batch of eight rows)}."""
  found = {}
  for family in NETWORKS:
    name, fields = test_lowered.LEARN[family]
    network = zoo.create(name, **{**fields, "plain": False})
    rows = {"label": np.zeros(8, np.int32), "image": np.zeros((8, 64, 64, 3), np.uint8)}
    found[family] = network, Classify(), rows | {"real": np.ones(8, np.float32)}
  for name in TASKS:
    network, task, batch = test_mesh_tasks.cases()[name]
    found[name] = network, task, {k: np.concatenate([v, v]) for k, v in batch.items()}
  return found


def updates() -> dict[str, tuple[int, int, dict[str, int]]]:
  """{name: (bytes of the state, of it updated in place, exchanges between chips)}."""
  jax.config.update("jax_exec_time_optimization_effort", -1.0)  # in two thirds of the time
  chips, found = tpu.slice_of("v5e:2x4"), {}
  assert len(chips) == 8 and jax.default_backend() == "cpu"
  for name, (network, task, batch) in cases().items():
    channels = batch["image"].shape[3]
    pixels = zoo.Preprocess(8, 8, (0.5,) * channels, (0.25,) * channels)
    program = tpu.compiled(network, task, batch, chips, pixels)
    held = program.memory_analysis()
    sizes = held.output_size_in_bytes, held.alias_size_in_bytes
    found[name] = *sizes, tpu.exchanges(program.as_text())
  return found


def test_updates_compile_for_a_slice():
  found = runs.on_devices(1, "test_tpu.updates()")
  assert found.keys() == {*NETWORKS, *TASKS}
  for name, (state, in_place, exchanges) in found.items():
    assert 0.9 * state < in_place <= state, name  # what is measured is new
    assert exchanges["all-reduce"], name
