"""python -m train.evaluate as a user runs it, and its measures by hand."""

import csv
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests import photographs, runs
from train import evaluate
from train.data import transforms
import zoo

pytestmark = pytest.mark.usefixtures("arguments_only")


def run(cache, *flags, code=0, devices=1):
  done = subprocess.run(
    [sys.executable, "-m", "train.evaluate", *flags], capture_output=True, text=True, timeout=200,
    env=photographs.environment(cache)
    | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
  )  # fmt: skip
  assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
  return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(a workdir of four classes, its photographs in folders called by the classes' numbers)."""
  folder = tmp_path_factory.mktemp("evaluated")
  data = runs.photographs(folder / "named")
  runs.finished(folder / "run", data)
  for i, name in enumerate(runs.FOLDERS):
    for split in ("train", "test"):
      (data / split / name).rename(data / split / str(i))
  return folder / "run", data


@pytest.mark.parametrize("devices", [1, 4])
def test_measures_equal_those_of_each_photograph(trained, cache, tmp_path, devices):
  workdir, data = trained
  out = tmp_path / "out"
  said = run(cache, f"--model={workdir}", f"--data={data}", "--split=all", "--batch=5",
             f"--out={out}", devices=devices)  # fmt: skip
  model, variables = zoo.load(workdir)
  preprocess = zoo.record(workdir).preprocess
  want = {}
  for path in sorted(data.rglob("*.png")):
    view = preprocess.crop(Image.fromarray(transforms.decode(path.read_bytes())))
    probs = jax.nn.softmax(
      model.apply(variables, preprocess.normalize(view[None]), train=False)["logits"]
    )[0]
    want[str(path.relative_to(data))] = int(path.parent.name), int(probs.argmax()), probs.max()
  rows = list(csv.DictReader((out / "predictions.csv").open()))
  assert sorted(row["path"] for row in rows) == sorted(want)
  for row in rows:
    label, answer, prob = want[row["path"]]
    assert (row["class"], row["answer"]) == (runs.CLASSES[label], runs.CLASSES[answer])
    assert abs(float(row["prob"]) - prob) < 1e-4
  top1 = np.mean([label == answer for label, answer, _ in want.values()])
  measures = json.loads((out / "evaluation.json").read_text())
  assert measures["images"] == len(want) == 24 and measures["top1"] == pytest.approx(top1)
  assert f"top1               {top1:.2%}" in said and measures["top5"] == 1
  table = list(csv.DictReader((out / "classes.csv").open()))
  assert sum(int(row["right"]) for row in table) == round(top1 * 24)
  assert "<script>alert" not in (out / "index.html").read_text()
  assert all((out / f"{name}.png").stat().st_size > 1000 for name in ("confusion", "calibration"))


def test_each_class_and_some_photographs_by_name(trained, cache, tmp_path):
  workdir, data = trained
  out = tmp_path / "out"
  said = run(cache, f"--model={workdir}", f"--data={data}", "--each", "--random=5", "--seed=3",
             f"--out={out}")  # fmt: skip
  found = evaluate.evaluate(
    evaluate.Config(model=str(workdir), data=str(data), random=5, seed=3, batch=5)
  )
  rows = evaluate.of_classes(found)
  assert [row[0] for row in rows] == list(runs.CLASSES) and sum(row[1] for row in rows) == 12
  for name, images, right, share, five in rows:
    assert share == right / images and five == 1
    assert f"{share:7.2%}  {right} of {images}  {name}\n" in said
  mean = np.mean([row[3] for row in rows])
  assert f"mean of classes    {mean:.2%}" in said
  assert len(found.drawn) == 5
  preprocess = zoo.record(workdir).preprocess
  for row, view in found.drawn.items():
    np.testing.assert_array_equal(view, preprocess.crop(Image.open(data / found.keys[row])))
    top = evaluate.top5(found, row)
    assert [name for name, _ in top] == [runs.CLASSES[c] for c in np.argsort(-found.probs[row])]
    assert top[0][1] == found.probs[row].max()
    lines = said[said.index(f"\n{found.keys[row]}\n") :].splitlines()[2:7]
    assert lines[0] == f"{100 * top[0][1]:6.1f} %  {top[0][0]}"
    assert lines[4] == f"          it is {runs.CLASSES[found.labels[row]]}"
  other = evaluate.evaluate(
    evaluate.Config(model=str(workdir), data=str(data), random=99, seed=4, tta="ten")
  )
  assert sorted(other.drawn) == list(range(12)) and list(other.drawn)[:5] != list(found.drawn)
  assert (out / "index.html").read_text().count("Drawn at random") == 1


@pytest.mark.parametrize("tta, views", [("flip", 2), ("five", 5), ("ten", 10)])
def test_views_are_averaged(trained, tta, views):
  workdir, data = trained
  config = evaluate.Config(model=str(workdir), data=str(data), tta=tta, size=48, batch=4)
  found = evaluate.evaluate(config)
  model, variables = zoo.load(workdir)
  preprocess = zoo.record(workdir).preprocess.at(48)
  picture = Image.open(data / found.keys[0])
  all_views = preprocess.corners(picture) if views >= 5 else preprocess.crop(picture)[None]
  if views in (2, 10):
    all_views = np.concatenate([all_views, all_views[:, :, ::-1]])
  assert len(all_views) == views
  logits = model.apply(variables, preprocess.normalize(all_views), train=False)["logits"]
  np.testing.assert_allclose(found.probs[0], jax.nn.softmax(logits).mean(0), atol=1e-5)


def test_corners_lie_where_they_should():
  preprocess = zoo.Preprocess(size=4, resize=8)
  picture = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
  views = preprocess.corners(Image.fromarray(picture))
  want = [picture[:4, :4], picture[:4, 6:], picture[4:, :4], picture[4:, 6:], picture[2:6, 3:7]]
  np.testing.assert_array_equal(views, want)


def test_calibration_by_hand():
  confidence = np.array([0.95, 0.95, 0.55, 1.0])
  right = np.array([True, False, True, True])
  error, bins = evaluate.calibration(confidence, right)
  # Of 15 bins: 0.95, 0.95 and 1.0 in the last, 0.55 in the ninth.
  want = 3 / 4 * abs((0.95 + 0.95 + 1) / 3 - 2 / 3) + 1 / 4 * abs(0.55 - 1)
  assert error == pytest.approx(want) and [n for n, *_ in bins if n] == [1, 3]


def test_who_is_sure_has_no_others_within_five():
  probs = np.zeros((8, 8), np.float32)
  probs[:, 0] = 1
  found = evaluate.Evaluation(["x"] * 8, np.arange(8), probs, "abcdefgh", range(8), 1.0)
  assert list(found.ranks) == list(range(8))
  assert found.measures()["top1"] == 1 / 8 and found.measures()["top5"] == 5 / 8
  for row in range(8):
    names = [name for name, _ in evaluate.top5(found, row)]
    assert (found.classes[row] in names) == (found.ranks[row] < 5)


def test_ranks_and_intervals():
  probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], np.float32)
  found = evaluate.Evaluation(["a", "b"], np.array([1, 1]), probs, "xyz", [1], 1.0)
  assert list(found.ranks) == [1, 0]
  measures = found.measures()
  assert measures["top1"] == 0.5 and measures["top1_low"] < 0.5 < measures["top1_high"]
  assert measures["loss"] == pytest.approx(-np.log([0.3, 0.5]).mean(), rel=1e-6)
  assert jnp.isfinite(measures["images_per_second"])


def test_classes_are_found_by_name_or_number():
  classes = ["tench", "great white shark", "crane", "crane"]
  assert list(evaluate.matched(["Great_White_Shark", "tench"], classes, "m")) == [1, 0]
  assert list(evaluate.matched(["3", "0"], classes, "m")) == [3, 0]
  assert list(evaluate.matched(["crane"], classes, "m")) == [2]  # the first of two of that name
  with pytest.raises(ValueError, match="m does not know 2 of the 3 classes of the data: cat, dog"):
    evaluate.matched(["cat", "tench", "dog"], classes, "m")


def test_bad_input_gets_a_sentence(trained, cache, tmp_path):
  workdir, data = trained
  said = run(cache, code=1)
  assert "--model is missing" in said and "--data is missing" in said
  (tmp_path / "x").mkdir()
  (tmp_path / "x/y").touch()
  said = run(cache, f"--model={workdir}", f"--data={data}", f"--out={tmp_path / 'x'}", code=1)
  assert "is there already" in said
  assert "no folder" in run(cache, f"--model={workdir}", "--data=nowhere", code=1)
