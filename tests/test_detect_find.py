"""python -m train.find: views and their merging, what it writes, real weights on photographs."""

import csv
import json
import zipfile

import numpy as np
from PIL import Image
import pytest

from tests.runs import untrained
from tests.test_yolo import IN_THEM, PHOTOGRAPHS, PHOTOGRAPHS_SHA256
from tests.wheels import reachable
from train import find
from train.find import Config
import zoo
from zoo import catalog, store
from zoo.detect import yolo
from zoo.detect.found import Found

CLASSES = ("cat", "dog")


def some(rows, size=(100, 100)):
  """Rows of x0 y0 x1 y1, score, label."""
  rows = np.array(rows, np.float32).reshape(-1, 6)
  return Found(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32), *size, CLASSES)


def test_views_cover_the_picture():
  image = np.arange(100 * 250 * 3, dtype=np.uint32).reshape(100, 250, 3).astype(np.uint8)
  assert len(find.views_of(image, False, 0)) == len(find.views_of(image, False, 250)) == 1
  whole, *tiles = find.views_of(image, False, 100)
  assert [(v.left, v.top) for v in tiles] == [(0, 0), (75, 0), (150, 0)]
  for v in tiles:
    np.testing.assert_array_equal(v.pixels, image[v.top :, v.left : v.left + 100])
  mirrored = find.views_of(image, True, 100)[4:]
  assert len(mirrored) == 4 and all(v.mirrored for v in mirrored)
  np.testing.assert_array_equal(mirrored[2].pixels, tiles[1].pixels[:, ::-1])
  back = mirrored[2].back(some([(10, 20, 30, 60, 0.9, 0)]))
  np.testing.assert_allclose(back.boxes, [[75 + 70, 20, 75 + 90, 60]])


def test_each_object_once():
  parts = [
    some([(0, 0, 10, 10, 0.5, 0), (50, 50, 90, 90, 0.4, 1)]),
    some([(1, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.3, 1), (60, 0, 70, 10, 0.2, 0)]),
  ]
  one = find.merged(parts, (100, 120), 0.5, 10)
  assert (one.height, one.width) == (100, 120)
  np.testing.assert_allclose(one.scores, [0.8, 0.4, 0.3, 0.2])
  assert one.names == ["cat", "dog", "dog", "cat"]
  assert len(find.merged(parts, (100, 120), 0.5, 2)) == 2


@pytest.fixture
def trained(tmp_path, monkeypatch):
  """A run's folder of a narrow detector that nobody trained."""
  layers = (yolo.Conv(8, 3, 4), yolo.Conv(8, 3, 4), yolo.Pool())
  make = lambda: yolo.YOLO(layers, (yolo.Conv(8), yolo.Head(((20, 20),), 32)), 2)
  monkeypatch.setitem(catalog.VARIANTS, "yolov3_tiny", make)
  pixels = zoo.Preprocess(64, 64, letterbox=True, mean=(0.0,) * 3, std=(1.0,) * 3)
  record = zoo.Record("yolov3_tiny", preprocess=pixels, classes=CLASSES)
  store.save(tmp_path / "run/model.safetensors", untrained(make(), 64), record)
  return str(tmp_path / "run")


def test_the_folder_of_out(trained, tmp_path, capsys):
  rng = np.random.default_rng(0)
  for name, size in {"a": (40, 80), "b": (90, 60), "c": (50, 50)}.items():
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
  (tmp_path / "bad.png").write_bytes(b"nothing")
  config = Config(
    model=trained, confidence=0.01, flip=True, tile=50, batch=4, out=str(tmp_path / "out")
  )
  names = [str(tmp_path / f"{n}.png") for n in ("a", "bad", "b", "c")]
  assert find.main(["find", *names], config) == 1
  said = capsys.readouterr()
  assert "bad.png" in said.err and "a.png" in said.out
  answers = json.loads((tmp_path / "out/answers.json").read_text())
  assert [(a["width"], a["height"]) for a in answers] == [(80, 40), (60, 90), (50, 50)]
  marks = [mark for a in answers for mark in a["found"]]
  assert marks and {mark["class"] for mark in marks} <= set(CLASSES)
  with open(tmp_path / "out/answers.csv") as file:
    rows = list(csv.DictReader(file))
  assert [float(row["score"]) for row in rows] == [mark["score"] for mark in marks]
  made = json.loads((tmp_path / "out/coco.json").read_text())
  assert len(made["annotations"]) == len(marks) and len(made["images"]) == 3
  first, box = made["annotations"][0]["bbox"], marks[0]["box"]
  np.testing.assert_allclose(first, [box[0], box[1], box[2] - box[0], box[3] - box[1]], atol=0.02)
  assert len(list((tmp_path / "out").glob("*.png"))) == 3
  assert "bad.png" in (tmp_path / "out/index.html").read_text()
  only = list(find.find([tmp_path / "a.png"], Config(
    model=trained, confidence=0.01, classes=("dog",)
  ), pytest.fail))[0].found  # fmt: skip
  assert set(only.names) <= {"dog"}
  with pytest.raises(ValueError, match="is there already; delete it"):
    find.main(["find", names[0]], config)


def test_what_is_wrong_is_said(trained, tmp_path):
  faults = {
    "name a model and photographs": Config(),
    "no classes cow; there are cat, dog": Config(model=trained, classes=("cow",)),
  }
  for said, config in faults.items():
    with pytest.raises(ValueError, match=said):
      find.main(["find", "a.png"], config)
  store.save(
    tmp_path / "resnet.safetensors", untrained(zoo.create("resnet18", depths=(1, 1, 1, 1)), 32),
    zoo.Record("resnet18", fields={"depths": (1, 1, 1, 1)}),
  )  # fmt: skip
  with pytest.raises(ValueError, match="finds no boxes; name a detector"):
    find.main(["find", "a.png"], Config(model=str(tmp_path / "resnet.safetensors")))


def test_real_weights_on_photographs(tmp_path):
  """Boxes of published weights lie where the people and the bus are."""
  row = catalog.WEIGHTS["yolov2_tiny.pod"]
  reachable(row.where, row.sha256, row.beside)
  with zipfile.ZipFile(reachable(PHOTOGRAPHS, PHOTOGRAPHS_SHA256)) as wheel:
    for name in IN_THEM:
      (tmp_path / f"{name}.jpg").write_bytes(wheel.read(f"ultralytics/assets/{name}.jpg"))
  paths = [tmp_path / f"{name}.jpg" for name in IN_THEM]
  config = Config(model="yolov2_tiny.pod", confidence=0.5, batch=2)
  answers = {a.path.stem: a.found for a in find.find(paths, config, pytest.fail)}
  for name, things in IN_THEM.items():
    assert sorted(answers[name].names) == sorted(things)
  bus = answers["bus"]
  assert (bus.width, bus.height) == (810, 1080)
  (box,) = bus.of(["bus"]).boxes
  # the bus fills nearly the width of the picture, in its upper three quarters
  assert box[0] < 60 and box[2] > 700 and 150 < box[1] < 320 and 650 < box[3] < 850
