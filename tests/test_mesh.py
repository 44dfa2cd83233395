"""One device, eight, four by two, and several processes train the same network."""

import base64
import dataclasses
import itertools
import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from flax import linen as nn
import jax
import numpy as np
import pytest

from tests import test_loop
from tests.test_step import PREPROCESS, variables
from train import loop, mesh, optim, startup
from train.data import threaded
from train.mix import Mix
from train.tasks.classify import Classify
import zoo

ROOT = Path(__file__).parent.parent
STEPS, BATCH, ROWS = 20, 16, 48


class Net(nn.Module):
  """Two convolutions, dropout and a head, with batch norm or without."""

  norm: bool
  numerics: zoo.Numerics = zoo.Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    n, x = self.numerics, image
    for i, (features, stride) in enumerate(((32, 4), (64, 2))):
      x = n.conv(features, 3, stride, bias=not self.norm, name=f"conv{i}")(x)
      x = n.act(n.norm(train, name=f"bn{i}")(x) if self.norm else x)
    x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
    return {"logits": n.dense(4, name="fc")(x)}


def train_batches(start):
  for step in itertools.count(start):
    picked = np.random.default_rng((0, step)).permutation(ROWS)[:BATCH]
    yield own_rows(test_loop.rows("train", picked))


def eval_batches(split):
  index = np.arange(BATCH)
  batch = test_loop.rows(split, index) | {"index": index.astype(np.int32)}
  batch["real"][-3:], batch["index"][-3:] = 0, -1
  yield own_rows(batch)


def own_rows(batch):
  place = jax.process_index(), jax.process_count()
  return {name: threaded.share(rows, *place) for name, rows in batch.items()}


def train(folder: str, norm: str, shape: str, *, pause: str = "0", coordinator: str = "",
          processes: str = "0", process: str = "0"):  # fmt: skip
  """Runs in a process of its own; prints the losses of the updates."""
  where = startup.Config(
    coordinator=coordinator, processes=int(processes), process=int(process), heartbeat=10
  )
  startup.join(where)
  config = loop.Config(
    model="net", data="noise", workdir=folder, batch=BATCH, steps=STEPS, log_every=1, eval_every=3,
    save_every=5, mesh=tuple(shape.split(",")) if shape else (),
  )  # fmt: skip
  optimizer = optim.Config(optimizer="sgd", lr=0.01, head_lr=1.0, warmup=0.0)
  rate, net = optim.schedule(optimizer, total=STEPS, warmup=0), Net(norm == "norm")
  keys = {split: [str(i) for i in range(ROWS)] for split in ("train", "val", "test")}

  def batches(start):
    for batch in train_batches(start):
      time.sleep(float(pause))
      yield batch

  loop.run(config, loop.Job(
    name="classify", task=Classify(), model=net,
    record=zoo.Record("resnet18", preprocess=PREPROCESS, classes=tuple("abcd")),
    weights=lambda: variables(net), total=STEPS, per_epoch=3,
    tx=optim.make(optimizer, (".*conv.*|bn.*", "fc"), rate), rate=rate,
    mix=Mix(mixup=0.4, cutmix=1.0), frozen="", train_batches=batches, eval_batches=eval_batches,
    keys=keys, flags=(config, optimizer),
  ))  # fmt: skip


def start(*arguments, devices=1, inside=(), **named):
  """A process of `train`; the words `inside` go before its command."""
  code = "import sys; from train import options; from tests import test_mesh; "
  code += f"options.run(lambda _: test_mesh.train(*{arguments!r}, **{named!r}))"
  kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  return subprocess.Popen(
    [*inside, sys.executable, "-c", code],
    text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    env=kept | {
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    },
  )  # fmt: skip


def pair(folder, norm, shape="", **named):
  """Two processes of two devices each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  return [
    start(str(folder), norm, shape, devices=2, coordinator=address, processes="2", process=str(i),
          **named) for i in range(2)
  ]  # fmt: skip


def end(*processes, code=0):
  said = [p.communicate(timeout=240)[0] for p in processes]
  assert [p.returncode for p in processes] == [code] * len(processes), "\n".join(said)
  return said


def losses(folder):
  rows = [r for r in test_loop.table(folder) if (r["split"], r["name"]) == ("train", "loss")]
  assert [int(r["step"]) for r in rows] == list(range(1, STEPS + 1))
  return [float(r["value"]) for r in rows]


def final(folder):
  """Parameters and statistics as they were saved last, on one device."""
  net = Net((folder / "norm").exists())
  config = optim.Config(optimizer="sgd", lr=0.01, head_lr=1.0, warmup=0.0)
  tx = optim.make(config, (".*conv.*|bn.*", "fc"), optim.schedule(config, total=STEPS, warmup=0))
  job = dataclasses.make_dataclass("Job", ("model", "tx"))(net, tx)
  return test_loop.last_state(folder, job)


def split(folder):
  """{array of the last checkpoint: the mesh's axis that each of its own was split over}."""
  (path,) = (folder / f"checkpoints/{STEPS}").rglob("_sharding")
  return {
    base64.b64decode(name).decode(): json.loads(place)["partition_spec"]
    for name, place in json.loads(path.read_text()).items()
  }


def same(a, b):
  np.testing.assert_allclose(losses(a), losses(b), rtol=1e-5, atol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
               final(a).variables, final(b).variables)  # fmt: skip
  x, y = (json.loads((f / "run.json").read_text())["test"] for f in (a, b))
  assert x == pytest.approx(y, rel=1e-5)
  x, y = (np.load(f / "predictions.npz") for f in (a, b))
  np.testing.assert_array_equal(x["keys"], y["keys"])
  np.testing.assert_allclose(x["probs"], y["probs"], atol=1e-5)


def await_step_5(folder, process):
  """Returns when that step is saved, and the process still trains."""
  waited = time.monotonic()
  while not (folder / "checkpoints/5").exists():
    assert time.monotonic() < waited + 120 and process.poll() is None
    time.sleep(0.05)


def folders(tmp_path_factory, norm, *names):
  made = [tmp_path_factory.mktemp(norm) / name for name in names]
  for folder in made:
    folder.mkdir()
    if norm == "norm":
      (folder / "norm").touch()
  return made


ALONE = {}


def alone(tmp_path_factory, norm):
  """The folder of a run on one device."""
  if norm not in ALONE:
    (ALONE[norm],) = folders(tmp_path_factory, norm, "one")
    end(start(str(ALONE[norm]), norm, ""))
  return ALONE[norm]


@pytest.mark.parametrize("norm", ["norm", "plain"])
def test_devices_and_processes_agree(tmp_path_factory, norm):
  eight, fsdp, two = folders(tmp_path_factory, norm, "eight", "fsdp", "two")
  one = alone(tmp_path_factory, norm)
  end(start(str(eight), norm, "data:8", devices=8))
  end(start(str(fsdp), norm, "data:4,fsdp:2", devices=8))
  said = end(*pair(two, norm, "data:2,fsdp:2"))
  assert "starting from net" in said[0] and "starting from net" not in said[1]
  for folder in (eight, fsdp, two):
    same(one, folder)
    kernels = [part for name, part in split(folder).items() if name.endswith("conv1.kernel")]
    assert len(kernels) == 2  # and its momentum
    assert all(part == ([] if folder == eight else [None] * 3 + ["fsdp"]) for part in kernels)


def test_a_killed_process_ends_the_other_and_both_resume(tmp_path_factory):
  whole, killed = folders(tmp_path_factory, "norm", "whole", "killed")
  end(*pair(whole, "norm"))
  first, second = pair(killed, "norm", pause="0.3")
  await_step_5(killed, first)
  second.send_signal(signal.SIGKILL)
  waited = time.monotonic()
  said = first.communicate(timeout=60)[0]  # within a minute
  # Where the loss of the connection does not end the communication, JAX's heartbeat ends the
  # process, and says so in its own words.
  assert "another of its 2 processes" in said or "another task died" in said, said
  assert first.returncode
  assert time.monotonic() < waited + 60
  said = end(*pair(killed, "norm"))[0]
  assert re.search("going on with .* at step (5|10)", said)
  assert losses(whole) == losses(killed)
  a, b = final(whole), final(killed)
  assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_sigterm_to_one_process_stops_both_at_one_step(tmp_path_factory):
  (folder,) = folders(tmp_path_factory, "norm", "stopped")
  first, second = pair(folder, "norm", pause="0.3")
  await_step_5(folder, first)
  second.send_signal(signal.SIGTERM)
  said = end(first, second)[0]
  step = int(re.search(r"stopped by SIGTERM at step (\d+), which is saved", said)[1])
  assert (folder / f"checkpoints/{step}").exists() and 5 <= step < STEPS


def test_a_checkpoint_moves_between_meshes(tmp_path_factory):
  """From eight devices with the state split in two to one, and back."""
  (moved,) = folders(tmp_path_factory, "norm", "moved")
  wide = {"shape": "data:4,fsdp:2", "devices": 8}
  for where in (wide, {"shape": ""}):
    before = newest(moved)
    process = start(str(moved), "norm", pause="0.3", **where)
    waited = time.monotonic()
    while newest(moved) == before:
      assert time.monotonic() < waited + 120 and process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    (said,) = end(process)
    assert "stopped by SIGTERM" in said and ("going on with" in said) == bool(before)
  assert "going on with" in end(start(str(moved), "norm", **wide))[0]
  same(alone(tmp_path_factory, "norm"), moved)


def newest(folder):
  """The step of the last whole checkpoint; 0 for none."""
  return max((int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()), default=0)


# ---- two computers


def ip(*words):
  return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
  """[(network namespace, its address)] of two that see each other and nothing else."""
  found = [(f"flaxzoo{os.getpid()}_{i}", f"10.213.77.{i + 1}") for i in range(2)]
  ends = [f"fz{os.getpid()}_{i}" for i in range(2)]
  try:
    try:
      for name, _ in found:
        ip("netns", "add", name)
      ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
      for (name, address), link in zip(found, ends):
        ip("link", "set", link, "netns", name)
        ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "link", "set", "lo", "up")
        # A computer's own name leads to its address, as where several are set up to work together.
        own = Path("/etc/netns", name)
        own.mkdir(parents=True)
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
    except (OSError, subprocess.CalledProcessError) as error:
      text = getattr(error, "stderr", "") or str(error)
      pytest.skip(f"no network namespaces here (they need root and iproute2): {text.strip()}")
    yield found
  finally:
    for name, _ in found:
      subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
      shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def test_two_hosts_agree_with_one_device(tmp_path_factory, hosts):
  (two,) = folders(tmp_path_factory, "norm", "hosts")
  address = f"{hosts[0][1]}:12345"
  said = end(*(
    start(str(two), "norm", "", devices=2, inside=("ip", "netns", "exec", name),
          coordinator=address, processes="2", process=str(i))
    for i, (name, _) in enumerate(hosts)
  ))  # fmt: skip
  assert "starting from net" in said[0]
  same(alone(tmp_path_factory, "norm"), two)


@pytest.mark.parametrize(
  "shape, text",
  [
    (("data:3",), "is for 3 devices; there are 1: .*such as data:1"),
    (("model:1",), "cannot read --mesh=model:1; wanted such as data:8"),
    (("data:x",), "cannot read"),
    (("data:0",), "cannot read"),
    (("data:1", "data:1"), "cannot read"),
  ],
)
def test_impossible_meshes(shape, text):
  with pytest.raises(ValueError, match=text):
    mesh.make(shape)


def test_a_batch_that_devices_cannot_share(monkeypatch):
  monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
  with pytest.raises(ValueError, match="--batch=12 cannot be split over 8 devices: .* such as 16"):
    mesh.make(batch=12)


def test_the_longest_even_axis_is_split():
  shapes = {(3, 3, 64, 128): (None, None, None, "fsdp"), (3, 3, 64, 127): (None, None, "fsdp"),
            (512, 1000): (None, "fsdp"), (513, 1001): (), (128,): ()}  # fmt: skip
  arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
  two = jax.sharding.AbstractMesh((4, 2), mesh.AXES)
  assert [tuple(place.spec) for place in mesh.shardings(two, arrays)] == list(shapes.values())
  whole = mesh.shardings(mesh.make(("data:1", "fsdp:1")), arrays)
  assert all(place.is_fully_replicated for place in whole)


@pytest.mark.parametrize(
  "coordinator, processes, process", [("x:1", 0, 0), ("", 0, 1), ("x:1", 2, 2)]
)
def test_contradicting_flags_of_processes(coordinator, processes, process):
  flags = startup.Config(coordinator=coordinator, processes=processes, process=process)
  with pytest.raises(ValueError, match="do not go together"):
    startup.join(flags)
