"""Predictions from the command line: answers, failures, and a folder that is whole or absent."""

import csv
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests import runs
from train import predict
from train.data import transforms
import zoo

pytestmark = pytest.mark.usefixtures("arguments_only")

PHOTOGRAPHS = "test/angle/0.png", "test/both/1.png", "test/math/2.png"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(workdir, folder of photographs)."""
  folder = tmp_path_factory.mktemp("predict")
  data = runs.photographs(folder / "data")
  return runs.finished(folder / "run", data), data


@pytest.fixture(scope="module")
def answered(run, tmp_path_factory):
  """The command on good and bad files, on two devices: (what it left, the finished process)."""
  workdir, data = run
  folder = tmp_path_factory.mktemp("answered")
  (folder / "text.jpg").write_text("hello")
  (folder / "empty").mkdir()
  (folder / "deep/er").mkdir(parents=True)
  Image.open(data / PHOTOGRAPHS[2]).save(folder / "deep/er/<i>x.png")
  (folder / "deep/er/.hidden.png").write_text("hidden")
  (folder / "deep/er/notes.txt").write_text("no picture")
  files = [data / name for name in PHOTOGRAPHS[:2]] + [folder / "text.jpg", folder / "none.jpg"]
  command = [sys.executable, "-m", "train.predict", f"--model={workdir}", "--top=3", "--batch=2",
             "--maps=grad_cam,guided", f"--out={folder / 'out'}", *files, folder / "deep",
             folder / "empty"]  # fmt: skip
  done = subprocess.run(
    list(map(str, command)), capture_output=True, text=True, timeout=300,
    env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
  )  # fmt: skip
  return folder, done


def expected(run):
  """[3 c] probabilities of PHOTOGRAPHS, one by one, by the zoo alone."""
  workdir, data = run
  model, variables = zoo.load(workdir)
  preprocess = zoo.preprocess(workdir)
  views = [preprocess.crop(Image.open(data / name).convert("RGB")) for name in PHOTOGRAPHS]
  apply = jax.jit(lambda v, x: model.apply(v, preprocess.normalize(x), train=False)["logits"])
  logits = jnp.concatenate([apply(variables, view[None]) for view in views])
  return np.asarray(jax.nn.softmax(logits))


def test_answers_are_the_networks(run, answered):
  folder, done = answered
  with open(folder / "out/answers.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == ["path", "rank", "class", "prob"] and len(rows) == 9
  assert rows[6]["path"] == str(folder / "deep/er/<i>x.png")  # after those before it, good or bad
  for i, probs in enumerate(expected(run)):
    mine = rows[3 * i : 3 * i + 3]
    order = np.argsort(-probs)[:3]
    assert [r["class"] for r in mine] == [runs.CLASSES[c] for c in order]
    assert [r["rank"] for r in mine] == ["1", "2", "3"]
    np.testing.assert_allclose([float(r["prob"]) for r in mine], probs[order], atol=1e-4)
    assert f"{100 * probs[order[0]]:6.1f} %  {runs.CLASSES[order[0]]}" in done.stdout


def test_failures_are_sentences_and_the_status(answered):
  folder, done = answered
  assert done.returncode == 1
  for sentence in (
    f"{folder / 'text.jpg'}: it is text, not a picture", f"{folder / 'none.jpg'}: it cannot be",
    f"{folder / 'empty'}: the folder has no photographs",
  ):  # fmt: skip
    assert sentence in done.stderr
  assert "hidden" not in done.stdout + done.stderr and "notes" not in done.stdout + done.stderr
  assert "Traceback" not in done.stderr


def test_the_album_is_whole(answered):
  folder, _ = answered
  names = sorted(path.name for path in (folder / "out").iterdir())
  assert names == [
    "0001_0.png", "0001_0_grad_cam.png", "0001_0_guided.png", "0002_1.png", "0002_1_grad_cam.png",
    "0002_1_guided.png", "0003__i_x.png", "0003__i_x_grad_cam.png", "0003__i_x_guided.png",
    "answers.csv", "boxes.csv", "index.html",
  ]  # fmt: skip
  for name in names[:9]:
    with Image.open(folder / "out" / name) as image:
      assert image.size == (runs.SIZE, runs.SIZE)
  text = (folder / "out/index.html").read_text()
  assert text.count("<img") == 9 and "<script" not in text and "<i>x" not in text
  assert "it is text, not a picture" in text and "http" not in text


def test_boxes_lie_within_what_the_network_saw(answered):
  folder, _ = answered
  with open(folder / "out/boxes.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [r["map"] for r in rows] == ["grad_cam"] * 3
  for r in rows:
    x0, y0, x1, y1 = (int(r[k]) for k in ("x0", "y0", "x1", "y1"))
    assert 0 <= x0 <= x1 <= runs.SIZE and 0 <= y0 <= y1 <= runs.SIZE


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"maps": ("gradcam",)}, "no map gradcam; did you mean grad_cam"),
    ({"maps": ("guided",), "layer": "stage4"}, "guided look at no layer"),
    ({"target": "a & c"}, "no class 'a & c'; did you mean 'a & b'"),
    ({"maps": ("cam",), "layer": "stage2"}, "CAM needs a head"),
  ],
)
def test_a_wrong_map_is_a_sentence(fields, words, run):
  with pytest.raises(ValueError, match=words):
    list(predict.predict(run[0], [run[1] / PHOTOGRAPHS[0]], failed=pytest.fail, **fields))


def test_an_album_is_never_half_written(tmp_path):
  with pytest.raises(KeyboardInterrupt), predict.Album(tmp_path / "out", "t") as album:
    view = np.zeros((8, 8, 3), np.uint8)
    album.add(predict.Answer(tmp_path / "a.png", [("x", 1.0)], view))
    raise KeyboardInterrupt
  assert not list(tmp_path.iterdir())
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/kept").touch()
  with pytest.raises(ValueError, match="is there already"):
    predict.Album(tmp_path / "mine", "t")
  assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_batches_are_full_but_the_last(tmp_path):
  def views(results):
    for i, result in enumerate(results):
      future = predict.Future()
      if isinstance(result, Exception):
        future.set_exception(result)
      else:
        future.set_result(np.full((2, 2, 3), result, np.uint8))
      yield tmp_path / str(i), future

  results = [0, transforms.UnreadableImage("torn"), 2, 3, OSError(5, "Input/output error"), 5, 6]
  failures = []
  got = list(predict.batches(views(results), 2, failures.append))
  assert [[p.name for p in paths] for paths, _ in got] == [["0", "2"], ["3", "5"], ["6"]]
  assert [a[:, 0, 0, 0].tolist() for _, a in got] == [[0, 2], [3, 5], [6]]
  assert failures == [
    f"{tmp_path / '1'}: torn", f"{tmp_path / '4'}: it cannot be opened: Input/output error",
  ]  # fmt: skip


def test_names_of_classes():
  names = predict.class_names(zoo.Record("resnet18"), 1000)
  assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
  assert len(set(names)) == 1000
  assert predict.class_names(zoo.Record("resnet18"), 1001)[:2] == ("background", "tench")
  own = zoo.Record("resnet18", classes=("a", "b"))
  assert predict.class_names(own, 2) == ("a", "b")
  assert predict.class_names(own, 3) == ["class 0", "class 1", "class 2"]


def test_a_wrong_model_is_a_sentence(tmp_path, run):
  for model, words in (("resnet18", "no weights"), (str(tmp_path), "no weights at")):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
      list(predict.predict(model, [run[1] / PHOTOGRAPHS[0]], failed=pytest.fail))


def test_names_that_are_no_text_can_be_printed():
  assert predict.readable("a\udcffb") == "a?b"
