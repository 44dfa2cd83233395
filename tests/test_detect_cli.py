"""python -m train.detect: a run, what it leaves, and what it answers to bad input."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from tests import parity
from tests.runs import untrained
from tests.test_detect_data import CLASSES, coco
from train import average_precision, detect, detect_report, loop, optim
from train.data import detection, detection_views
from train.tasks.retinanet import Retina
from train.tasks.ssd import Ssd
import zoo
from zoo import store
from zoo.detect import found, yolo

TRUNK = (yolo.Conv(8, 3, 2), yolo.Conv(8, 3, 2), yolo.Conv(8, 3, 2), yolo.Pool(), yolo.Pool())
NECK = (yolo.Conv(8), yolo.Head(((20, 20), (40, 20)), 32))


@pytest.fixture
def small(monkeypatch):
  """yolov3_tiny, with a few narrow layers."""
  make = lambda: yolo.YOLO(TRUNK, NECK, 80)
  monkeypatch.setitem(zoo.catalog.VARIANTS, "yolov3_tiny", make)
  stages = {**yolo.STAGES, "yolov3_tiny": yolo._stages(TRUNK, NECK)}
  monkeypatch.setattr(yolo, "STAGES", stages)


def configs(tmp_path, own=None, **fields):
  fields = {"data": str(tmp_path / "data"), "workdir": str(tmp_path / "run"), **fields}
  config = loop.Config(batch=2, **{"model": "yolov3_tiny", **fields})
  return config, optim.Config(head_lr=1.0), own or detect.Config(boxes=5, limit=20)


def test_a_run_trains_and_leaves_a_detector(small, tmp_path):
  """Two updates on three pictures, one of them without objects; then its file is a model."""
  coco(tmp_path / "data")
  parts = configs(tmp_path, size=64, steps=2, ema=0.5)
  job = detect.prepare(*parts)
  outcome = loop.run(parts[0], job)
  assert outcome.split == "val" and outcome.predictions["boxes"].shape == (3, 20, 4)
  assert {"loss", "iou", "ap", "ap50", "ap75", "voc07", "voc"} <= outcome.measured.keys()
  record = store.read_record(tmp_path / "run/model.safetensors")
  assert record.classes == CLASSES and record.preprocess.size == 64 and record.preprocess.letterbox
  source = detection.load(tmp_path / "data").splits["val"]
  both = detect.beside(source, outcome.index, outcome.predictions, record.preprocess, CLASSES)
  again = average_precision.score(*both, len(CLASSES)).measures["ap50"]
  assert again == pytest.approx(outcome.measured["ap50"], nan_ok=True)
  model, variables = zoo.load(tmp_path / "run")
  view = detection_views.eval_view(source, 0, record.preprocess).image[None]

  def run(image):
    out = model.apply(variables, record.preprocess.normalize(image), train=False)
    return model.detect(out, score=0.005, limit=20)

  answer = jax.jit(run, compiler_options=parity.QUICK_COMPILATION)(view)
  np.testing.assert_array_equal(answer["box_label"][0], outcome.predictions["box_label"][0])
  page = detect_report.write(tmp_path / "run")
  text = page.read_text()
  assert "AP50" in text and "The worst pictures" in text and "<script" not in text
  scores = json.loads((tmp_path / "run/report_files/scores.json").read_text())
  assert scores["classes"].keys() == set(CLASSES)


def test_the_score_finds_what_is_there(small, tmp_path):
  """Answers that are the truth in the network's pixels have an AP of 1."""
  coco(tmp_path / "data")
  job = detect.prepare(*configs(tmp_path, size=64, steps=1))
  (batch,) = list(detection_views.eval_batches(
    detection.load(tmp_path / "data").splits["val"], job.record.preprocess, batch=3, boxes=5
  ))  # fmt: skip
  answers = {**batch, "scores": (batch["box_label"] >= 0).astype(np.float32)}
  measured = job.score("val", batch["index"], answers)
  assert measured["ap50"] == measured["voc"] == measured["voc07"] == 1


def test_the_trunk_of_another(small, tmp_path, monkeypatch):
  coco(tmp_path / "data")
  known = yolo.YOLO(TRUNK, NECK, 80)
  pixels = detect.described("yolov3_tiny").preprocess.at(64)
  record = zoo.Record("yolov3_tiny", preprocess=pixels)
  store.save(tmp_path / "run/model.safetensors", untrained(known, 64, 7), record)
  own = detect.Config(boxes=5, backbone=str(tmp_path / "run"))
  start = detect.prepare(*configs(tmp_path, own, size=64, steps=1, workdir="other")).weights()
  _, trained = zoo.load(tmp_path / "run")
  for name in trained["params"]:
    kernels = (part[name]["conv"]["kernel"] for part in (trained["params"], start["params"]))
    same = np.array_equal(*kernels)
    assert same == (name in ("layer0", "layer1", "layer2"))
  other = (yolo.Conv(16, 3, 2), *TRUNK[1:])
  monkeypatch.setitem(zoo.catalog.VARIANTS, "yolov3_tiny", lambda: yolo.YOLO(other, NECK, 80))
  job = detect.prepare(*configs(tmp_path, own, size=64, steps=1, workdir="other"))
  monkeypatch.setattr(zoo, "load", lambda name, **_: (None, trained))
  with pytest.raises(ValueError, match="has another trunk: . of .. arrays do not fit"):
    job.weights()
  fresh = configs(tmp_path, own, model=str(tmp_path / "run"))
  with pytest.raises(ValueError, match="--backbone is for a fresh --model"):
    detect.prepare(*fresh)


@pytest.mark.parametrize("name, task, shown", [
  ("ssdlite320_mobilenet_v3_large", Ssd, "squash"),
  ("retinanet_resnet50_fpn_v2", Retina, "letterbox"),
])  # fmt: skip
def test_other_families(name, task, shown, tmp_path):
  """The same script: whole pictures in, the same form of detections out."""
  coco(tmp_path / "data")
  job = detect.prepare(*configs(tmp_path, model=name, size=96, steps=1))
  pixels = job.record.preprocess
  assert isinstance(job.task, task) and getattr(pixels, shown) and pixels.size == 96
  assert job.model.num_classes == len(CLASSES) and job.weights is None
  batch = next(job.train_batches(0))

  def run(image):
    out, _ = job.model.clone(
      numerics=dataclasses.replace(job.model.numerics, plain=True)
    ).init_with_output(jax.random.key(0), image, train=False)
    return job.task.terms(out, batch), job.task.predict(out)

  terms, found = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32))
  assert terms["loss"][0].shape == (2,) and found["boxes"].shape == (2, 20, 4)


def test_drawn_faults():
  """Found, missed, taken for another, and where nothing is."""
  boxes = np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
  marks = detection.Objects(boxes, np.array([0, 1, 0]), np.zeros(3, bool), np.zeros(3, bool))
  one = found.Found(
    np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [70, 70, 90, 90]]), np.float32([0.9, 0.8, 0.7]),
    np.array([0, 0, 1]), 100, 100, CLASSES,
  )  # fmt: skip
  rows, wrong = detect_report.faults(marks, one)
  assert wrong == ["no dog", "dog taken for cat", "cat missed"]
  assert [row[1] for row in rows] == ["dog 0.70", "cat", "dog taken for cat", "cat missed"]


def test_what_is_missing_is_said(tmp_path):
  coco(tmp_path / "data")
  faults = {
    "--data is missing\n--workdir is missing": dict(data="", workdir=""),
    "resnet18 is no detector but one of zoo.names(task='classify')": dict(model="resnet18"),
    "did you mean 'yolov3_tiny'": dict(model="yolov3_tny"),
    "sides of yolov3_tiny's input are multiples of 32, not [100]": dict(size=100),
    "sides of yolov1_tiny's input are 448 pixels": dict(model="yolov1_tiny", size=416),
    "--batch=2 is more than the 1 training pictures": dict(),
    "--zoom has two numbers": dict(own=detect.Config(zoom=("1",))),
    "saturation is a factor of at least 1": dict(own=detect.Config(saturation=0.5)),
  }
  (tmp_path / "data/train/instances.json").write_text(json.dumps({
    "images": [{"id": 1, "file_name": "a.png"}], "annotations": [],
    "categories": [{"id": 1, "name": name} for name in ("x",)],
  }))  # fmt: skip
  (tmp_path / "data/val/instances.json").unlink()
  picture = json.loads((tmp_path / "data/train/instances.json").read_text())
  picture["images"].append({"id": 2, "file_name": "b.png"})
  (tmp_path / "data/train/instances.json").write_text(json.dumps(picture))
  for said, fields in faults.items():
    with pytest.raises(ValueError, match=re.escape(said)):
      detect.prepare(*configs(tmp_path, **fields))
