"""train.label and train.bags from a listing to the scores, one short run for each task."""

import csv
import dataclasses
import json
from pathlib import Path
import shutil

from absl import flags
import jax
import numpy as np
import pytest

from tests import answers, runs
from train import bags, label, loop, optim, options, predict, report
from train.data import listing
from train.mix import Mix
import zoo
from zoo import store

pytestmark = pytest.mark.usefixtures("arguments_only")

SIZE = 32
OPTIMIZER = optim.Config(lr=2e-3, head_lr=1.0, warmup=0.0)
CASES = {  # what makes the listing, the script, its flags, updates
  "multilabel": (answers.labels, label, label.Config(task="multilabel", loss="asymmetric"), 24),
  "regress": (answers.numbers, label, label.Config(task="regress", augment=False), 24),
  "localize": (answers.places, label, label.Config(task="localize", crop=0.9, flip=0.0), 24),
  "bags": (answers.bags, bags, bags.Config(instances=5, crop=0.9), 72),
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
  """An untrained network that is compiled quickly, as a file to start from."""
  fields = {"depths": (1, 1, 1), "widths": (16, 32, 64), "hidden": 64, "num_classes": 5}
  variables = runs.untrained(zoo.create("vgg11_bn", **fields), SIZE)
  path = tmp_path_factory.mktemp("narrow") / "model.safetensors"
  record = zoo.Record("vgg11_bn", fields=fields, preprocess=zoo.Preprocess(SIZE, SIZE))
  store.save(path, variables, record)
  return path


@pytest.fixture(scope="module", params=CASES)
def done(request, narrow, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  make, script, own, steps = CASES[request.param]
  config = loop.Config(
    model=str(narrow), data=str(make(folder)), workdir=str(folder / "run"), batch=16, steps=steps,
    eval_every=100.0, log_every=8,
  )  # fmt: skip
  made, plan = script.prepare(config, OPTIMIZER, own)
  scores = label.train(config, made, plan)
  label.report(config, plan)
  return request.param, folder / "run", plan, scores


BETTER = {  # by how much, in the mean's own unit; the last says whether less is better
  "multilabel": ("map", 0.15, False), "regress": ("mae", 0.15, True),
  "localize": ("iou", 0.1, False), "bags": ("top1", 0.2, False),
}  # fmt: skip


def test_it_beats_who_sees_no_picture(done):
  task, _, _, scores = done
  name, margin, less = BETTER[task]
  gain = scores["mean"][name] - scores["baseline"][name]
  assert (-gain / scores["baseline"][name] if less else gain) > margin, scores


def test_what_it_leaves(done):
  task, folder, plan, scores = done
  info = json.loads((folder / "run.json").read_text())
  assert info["scores"]["mean"] == pytest.approx(scores["mean"]) and info["finished"]
  record = zoo.record(folder)
  assert record.outputs["task"] == plan.name and record.classes == plan.data.classes
  if task == "multilabel":
    assert len(record.outputs["thresholds"]) == 2
  page = (folder / "report.html").read_text()
  assert "The worst" in page and all(name in page for name in plan.data.classes)
  with pytest.raises(ValueError, match=f"a run of the task {task}, not of train.classify"):
    report.read([folder])
  model, variables = zoo.load(folder)
  with np.load(folder / "predictions.npz") as arrays:
    saved = dict(arrays)
  rows = plan.data.splits[str(saved["split"])]
  index = [rows.keys.index(key) for key in saved["keys"].tolist()]
  np.testing.assert_array_equal(rows.targets[plan.task.target][index], saved["labels"])
  shapes = jax.eval_shape(
    lambda x: model.apply(variables, x, train=False), np.zeros((1, SIZE, SIZE, 3), np.float32)
  )
  assert shapes["logits"].shape == (1, len(plan.data.classes))


def test_wrong_flags(narrow, tmp_path):
  data = answers.numbers(tmp_path, 20)
  config = loop.Config(model=str(narrow), data=str(data), workdir="w", batch=4)
  with pytest.raises(ValueError, match="--data is missing\n--workdir is missing"):
    label.prepare(loop.Config(), optim.Config(), label.Config())
  for own, text in (
    (label.Config(task="regress", loss="giou"), "--loss=giou is none of --task=regress: huber"),
    (label.Config(task="regress", low=("0",)), "wanted both, with one number for all or one for"),
    (label.Config(task="regress", low=("0",), high=("2",)), "leave out numbers that train has of"),
  ):
    with pytest.raises(ValueError, match=text):
      label.prepare(config, optim.Config(), own)
  marked = dataclasses.replace(config, data=str(answers.places(tmp_path / "places", 20)))
  with pytest.raises(ValueError) as error:
    own = label.Config(task="localize", dropout=0.1, randaugment=2, erase=0.5, mixup=0.2)
    label.prepare(marked, optim.Config(), own)
  assert str(error.value).splitlines() == [
    "--dropout: box heads have no such layer", "--randaugment: the box would not go with it",
    "--erase: the box would not go with it",
    "--mixup: only pictures of classes or labels are mixed",
  ]  # fmt: skip
  with pytest.raises(ValueError, match="--drop_path: vgg11_bn has no such layers"):
    label.prepare(config, optim.Config(), label.Config(task="regress", drop_path=0.1))
  with pytest.raises(ValueError, match="--batch=64 is more than"):
    big = dataclasses.replace(config, batch=64)
    label.prepare(big, optim.Config(), label.Config(task="regress"))


@pytest.mark.parametrize("task", ["multilabel", "regress", "bags"])
def test_noise_is_that_of_classes(task, narrow, tmp_path):
  make, script, own, _ = CASES[task]
  config = loop.Config(model=str(narrow), data=str(make(tmp_path)), workdir="w", batch=4)

  def prepared(**fields):
    noisy = dataclasses.replace(own, augment=True, **fields)
    return script.prepare(config, optim.Config(), noisy)[0]

  plain = next(prepared().train_batches(0))
  for fields in ({"randaugment": 2}, {"erase": 1.0}):
    batch = next(prepared(**fields).train_batches(0))
    assert (batch["image"] != plain["image"]).any(axis=(-3, -2, -1)).mean() > 0.5
    for name in plain.keys() - {"image"}:
      np.testing.assert_array_equal(batch[name], plain[name])
  if task != "bags":
    assert prepared(dropout=0.25).model.dropout == 0.25
  if task == "multilabel":
    assert prepared(mixup=0.2, cutmix=1.0).mix == Mix(0.2, 1.0)


def test_bounds_of_one_or_of_each():
  own = label.Config(low=("0",), high=("1", "2"))
  assert label.bounds(own, 2) == ([0.0, 0.0], [1.0, 2.0])
  assert options.as_dict(own)["low"] == ("0",)


def test_new_pictures_are_answered(done, tmp_path, capsys):
  """By the command, as the run had answered them at its end."""
  task, folder, plan, _ = done
  with np.load(folder / "predictions.npz") as arrays:
    saved = dict(arrays)
  rows = plan.data.splits[str(saved["split"])]
  index = rows.keys.index(str(saved["keys"][0]))
  paths = rows.paths[index]
  if task == "bags":
    bag = tmp_path / "bag"
    bag.mkdir()
    for path in paths:
      shutil.copy(path, bag)
    paths = [bag]
  config = predict.Config(model=str(folder), out=str(tmp_path / "out"))
  assert predict.main(["predict", str(paths[0]), str(tmp_path / "gone.jpg")], config) == 1
  assert "gone.jpg" in capsys.readouterr().err
  with open(tmp_path / "out/answers.csv", newline="") as file:
    (row,) = csv.DictReader(file)
  names = plan.data.classes
  if task == "regress":
    got, want = [float(row[name]) for name in names], saved["value"][0]
  else:
    got, want = [float(row[f"prob of {name}"]) for name in names], saved["probs"][0]
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
  if task == "localize":
    shares = [float(row[name]) / answers.SIDE for name in ("x0", "y0", "x1", "y1")]
    np.testing.assert_allclose(shares, (saved["box"][0] / SIZE).clip(0, 1), atol=0.01)
  if task == "multilabel":
    least = zoo.record(folder).outputs["thresholds"]
    assert row["labels"] == "|".join(n for n, p, t in zip(names, got, least) if p >= t)
  if task == "bags":
    with open(tmp_path / "out/instances.csv", newline="") as file:
      each = list(csv.DictReader(file))
    assert len(each) == len(rows.paths[index])
    assert sum(float(one["share"]) for one in each) == pytest.approx(1, abs=1e-4)


def test_chexnet_is_prepared_as_its_recipe_says(tmp_path):
  """From ChestX-ray14's layout: 14 outputs, findings weighed by how rare they are."""
  rows = ["Image Index,Finding Labels,Patient ID"]
  for i in range(40):
    answers.save(tmp_path / f"images/{i:08}_000.png", np.zeros((8, 8, 3)))
    rows.append(f"{i:08}_000.png,{'Hernia' if i % 4 == 0 else 'No Finding'},{i}")
  (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(rows))
  values = flags.FlagValues()
  readers = [options.define(c, values) for c in (loop.Config, optim.Config, label.Config)]
  recipe = Path(label.__file__).parent / "recipes/chexnet.flags"
  values(["train.label", f"--flagfile={recipe}", f"--data={tmp_path}", f"--workdir={tmp_path}",
          "--model=chexnet"])  # fmt: skip
  job, plan = label.prepare(*(read() for read in readers))
  assert job.model.num_classes == 14 and job.record.classes == listing.CHEST
  labels = plan.data.splits["train"].targets["labels"]
  place, share = listing.CHEST.index("Hernia"), (labels == 1).mean(0)
  assert plan.task.yes[place] == pytest.approx(1 - share[place])
  assert plan.task.no[place] == pytest.approx(share[place]) and plan.task.no[0] == 0
