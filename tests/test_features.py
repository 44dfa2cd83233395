"""--cache_features: the same run as with all but the head held, on features kept on disk."""

import csv
import dataclasses
import json
import os
import subprocess

import jax
import numpy as np
from PIL import Image
import pytest

from tests import photographs, runs
from train import classify, evaluate, features, loop, optim
from train.data import datasets, pipeline
import zoo
from zoo import store

pytestmark = pytest.mark.usefixtures("arguments_only")

SIZE = 32
SGD = optim.Config(optimizer="sgd", lr=0.4, head_lr=1.0, momentum=0.0, warmup=0.0,
                   schedule="constant", plateau=1, plateau_of="val", drop=0.5)  # fmt: skip
OWN = classify.Config(cache_features=True, best="loss")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Pictures that are as large as the network's view: the middle and the evaluation's are one."""
  folder, rng = tmp_path_factory.mktemp("features") / "data", np.random.default_rng(0)
  for split, each in (("train", 6), ("val", 3), ("test", 3)):
    for name, colour in photographs.COLOURS.items():
      (folder / split / name).mkdir(parents=True)
      for i in range(each):
        light = 0.3 * np.array(colour) + rng.normal(80, 40, 3)  # classes that overlap
        pixels = light + rng.normal(0, 30, (SIZE, SIZE, 3))
        path = folder / split / name / f"{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
  return folder


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
  """An untrained network of one block, as a file to start from."""
  fields = {"depths": (1,), "width": 16, "num_classes": 5}
  variables = runs.untrained(zoo.create("resnet18", **fields), SIZE)
  path = tmp_path_factory.mktemp("origin") / "model.safetensors"
  store.save(path, variables, zoo.Record("resnet18", fields=fields, preprocess=PIXELS))
  return path


PIXELS = zoo.Preprocess(SIZE, SIZE)


def make(origin, data, folder, optimizer=SGD, own=OWN, **changes):
  config = loop.Config(
    model=str(origin), data=str(data), workdir=str(folder), batch=5, epochs=6, log_every=1,
    freeze_norm=True, **changes,
  )  # fmt: skip
  return config, classify.prepare(config, optimizer, own)


@pytest.fixture(scope="module")
def cached(origin, data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("cached")
  config, job = make(origin, data, folder)
  return folder, loop.run(config, job)


def rows(folder):
  wanted = ("loss", "top1", "rate_scale")
  with open(folder / "metrics.csv", newline="") as file:
    return {(r["step"], r["split"], r["name"]): float(r["value"])
            for r in csv.DictReader(file) if r["name"] in wanted}  # fmt: skip


def test_it_is_the_run_that_holds_all_but_the_head(cached, origin, data, tmp_path):
  folder, outcome = cached
  held = dataclasses.replace(SGD, freeze=5)
  own = classify.Config(augment=False, best="loss")
  other = loop.run(*make(origin, data, tmp_path, held, own))
  mine, theirs = rows(folder), rows(tmp_path)
  assert mine.keys() == theirs.keys() and len(mine) > 60
  for key, value in theirs.items():
    assert mine[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
  scales = [value for (_, _, name), value in mine.items() if name == "rate_scale"]
  assert scales[0] == 1 and scales[-1] < 1, "the plateau lowers the rate"
  np.testing.assert_allclose(
    outcome.predictions["probs"], other.predictions["probs"], rtol=1e-3, atol=1e-6
  )
  whole, frozen = (store.read_variables(f / "model.safetensors") for f in (folder, tmp_path))
  assert jax.tree.structure(whole) == jax.tree.structure(frozen)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(frozen)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  start = zoo.load(origin, num_classes=3)[1]["params"]["fc"]["kernel"]
  assert np.abs(whole["params"]["fc"]["kernel"] - start).max() > 1e-2, "the head has learned"


def test_what_it_publishes_is_a_whole_network(cached, data):
  folder, outcome = cached
  found = evaluate.evaluate(evaluate.Config(model=str(folder), data=str(data), batch=4))
  np.testing.assert_allclose(found.probs, outcome.predictions["probs"], rtol=1e-3, atol=1e-6)
  record = zoo.record(folder)
  assert record.classes == tuple(photographs.COLOURS) and record.fields["num_classes"] == 3
  losses = {int(k[0]): v for k, v in rows(folder).items() if k[1:] == ("val", "loss")}
  assert losses[record.provenance["step"]] == min(losses.values()), "the best by its loss"


def test_features_are_what_evaluation_sees(cached, origin, data):
  folder, _ = cached
  there = folder / "features"
  names = {f"{s}{end}" for s in ("train", "val", "test") for end in
           (".npy", "_labels.npy", "_keys.json")}  # fmt: skip
  assert {path.name for path in there.iterdir()} == names | {"features.json"}
  model, variables = zoo.load(origin, num_classes=None)
  keys = json.loads((there / "test_keys.json").read_text())
  views = np.stack([PIXELS.crop(Image.open(data / key)) for key in keys])
  want = model.apply(variables, PIXELS.normalize(views), train=False)["pooled"]
  np.testing.assert_allclose(np.load(there / "test.npy"), want, rtol=1e-4, atol=1e-5)
  labels = [list(photographs.COLOURS).index(key.split("/")[-2]) for key in keys]
  assert np.load(there / "test_labels.npy").tolist() == labels


def test_the_same_rows_as_with_pictures(data):
  source = datasets.load(data).splits["train"]
  for balance in (False, True):
    some = {"batch": 4, "seed": 3, "start_step": 2, "balance": balance}
    pictures = pipeline.train_batches(source, size=SIZE, augment=None, **some)
    numbers = pipeline.train_rows(source, **some)
    for _, batch, index in zip(range(9), pictures, numbers):
      assert source.labels[index].tolist() == batch["label"].tolist()
      for row, image in zip(index, batch["image"]):
        np.testing.assert_array_equal(np.asarray(Image.open(data / source.keys[row])), image)


class Crash(Exception):
  pass


def test_a_killed_run_goes_on_to_the_same_bits(cached, origin, data, tmp_path):
  folder, _ = cached
  config, job = make(origin, data, tmp_path, save_every=2)

  def crashing(start):
    for step, batch in enumerate(job.train_batches(start), start):
      if step == 9:
        raise Crash
      yield batch

  with pytest.raises(Crash):
    loop.run(config, dataclasses.replace(job, train_batches=crashing))
  made = (tmp_path / "features/train.npy").stat().st_mtime_ns
  loop.run(*make(origin, data, tmp_path, save_every=2))
  assert (tmp_path / "features/train.npy").stat().st_mtime_ns == made
  one, two = (store.read_variables(f / "model.safetensors") for f in (folder, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_features_appear_whole_and_only_for_their_data(origin, data, tmp_path, monkeypatch, capsys):
  _, job = make(origin, data, tmp_path)
  write = features.Features._write

  def torn(self, path, *more):
    write(self, path, *more)
    if path.name == "val":
      raise Crash

  with monkeypatch.context() as patch, pytest.raises(Crash):
    patch.setattr(features.Features, "_write", torn)
    job.ready()
  assert not (tmp_path / "features").exists()
  job.ready()
  path = tmp_path / "features/train.npy"
  first = path.stat().st_ino, path.stat().st_mtime_ns
  make(origin, data, tmp_path)[1].ready()
  assert (path.stat().st_ino, path.stat().st_mtime_ns) == first
  assert capsys.readouterr().out.endswith(f"the features of {tmp_path / 'features'} are there\n")
  picture = data / "train/red/0.png"
  os.utime(picture, ns=(1, 1))
  make(origin, data, tmp_path)[1].ready()
  assert (path.stat().st_ino, path.stat().st_mtime_ns) != first
  assert [p.name for p in tmp_path.iterdir()] == ["features"]


def test_flags_that_contradict_get_a_sentence_each(origin, data, tmp_path):
  own = dataclasses.replace(OWN, mixup=0.2, cutmix=1.0, erase=0.5)
  with pytest.raises(ValueError) as fault:
    make(origin, data, tmp_path, dataclasses.replace(SGD, freeze=2), own)
  lines = str(fault.value).splitlines()
  for line, name in zip(lines, ("mixup=0.2", "cutmix=1.0", "erase=0.5", "freeze=2")):
    assert line.startswith(f"--{name} and --cache_features do not go together: ")
  assert len(lines) == 4
  with pytest.raises(ValueError, match="--model=resnet18 would see with random weights"):
    make("resnet18", data, tmp_path)


def test_a_head_of_more_than_one_layer_gets_a_sentence():
  head = features.head_of(zoo.create("vgg11", num_classes=7, hidden=64), "fc8", 224)
  assert (head.layer, head.width, head.num_classes) == ("fc8", 64, 7)
  for name, layers in (
    ("squeezenet1_1", "conv10"),
    ("mobilenet_v3_small", "classifier, conv_head"),
  ):
    with pytest.raises(ValueError, match=f'one linear layer of "pooled"; .* is {layers}.'):
      features.head_of(zoo.create(name), zoo.stages(name)[-1], 224)


def test_squashed_pictures_are_seen_whole(origin, data, tmp_path):
  _, job = make(origin, data, tmp_path, own=dataclasses.replace(OWN, squash=True))
  wide = Image.new("RGB", (300, 30))
  wide.paste((255, 0, 0), (0, 0, 30, 30))
  assert job.record.preprocess.crop(wide)[0, 0, 0] == 255 > PIXELS.crop(wide)[0, 0, 0]


def test_as_a_user_runs_it(origin, data, cache, tmp_path):
  command = [*photographs.command("--cache_features", f"--data={data}", f"--model={origin}"),
             f"--workdir={tmp_path}", "--epochs=1"]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                        env=photographs.environment(cache))  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("features of 36 images: ") and "bottleneck" not in done.stderr
