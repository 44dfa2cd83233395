"""python -m train.find: views and their merging, what it writes, real weights on photographs."""

import csv
import dataclasses
import json
from pathlib import Path
import zipfile

import cv2
import jax
import numpy as np
from PIL import Image, ImageColor
from pycocotools import mask as packed
from pycocotools.coco import COCO
import pytest

from tests import detectors, parity, test_rcnn
from tests.detectors import detection  # noqa: F401 (a fixture)
from tests.runs import untrained
from tests.test_yolo import IN_THEM, PHOTOGRAPHS, PHOTOGRAPHS_SHA256
from tests.wheels import reachable
from train import album, batches, figures, find, predict
from train.find import Config
import zoo
from zoo import catalog, store
from zoo.detect import found, fpn, yolo
from zoo.detect.found import Found

pytestmark = pytest.mark.usefixtures("arguments_only")

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
  back = mirrored[2].back(some([(10, 20, 30, 60, 0.9, 0)]), 100, 250)
  np.testing.assert_allclose(back.boxes, [[75 + 70, 20, 75 + 90, 60]])


def test_rows_that_are_computed_are_few_and_of_few_numbers():
  def in_turn(*counts):
    compiled = set()
    return [batches.at_once(count, compiled, 6) for count in counts]

  assert [in_turn(count) for count in range(1, 7)] == [[1], [2], [4], [4], [6], [6]]
  assert in_turn(6, 2, 1) == [6, 6, 6]
  assert in_turn(1, 2, 3, 1, 5) == [1, 2, 4, 1, 6]


def test_masks_of_views_lie_where_their_boxes_do():
  mask = np.zeros((100, 100), np.uint8, order="F")
  mask[20:60, 10:30] = 1
  part = some([(10, 20, 30, 60, 0.9, 0)])
  part = dataclasses.replace(part, masks=np.array([packed.encode(mask)], object))
  views = find.views_of(np.zeros((100, 250, 3), np.uint8), True, 100)
  for view in views[1:4] + views[5:]:
    back = view.back(part, 100, 250)
    [x0, y0, x1, y1] = back.boxes[0].astype(int)
    there = packed.decode(back.masks[0])
    assert there.shape == (100, 250) and there.sum() == there[y0:y1, x0:x1].sum() == 800
  less = dataclasses.replace(part, scores=np.float32([0.5]))
  both = find.merged([part, less], (100, 250), 0.5, 9)
  assert len(both) == len(both.masks) == 1


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
    model=trained, confidence=0.01, flip=True, tile=50, batch=4, out=str(tmp_path / "out"),
    max_detections=3, maps="grad_cam",
  )  # fmt: skip
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
  assert len(list((tmp_path / "out").glob("000?_?.png"))) == 3
  assert len(list((tmp_path / "out").glob("*_grad_cam.png"))) == len(marks)
  assert "bad.png" in (tmp_path / "out/index.html").read_text()
  picture = predict.read([tmp_path / "a.png"], 1, pytest.fail)
  (only,) = find.find(picture, Config(model=trained, confidence=0.01, classes=("dog",)))
  only = only.found
  assert set(only.names) <= {"dog"}
  with pytest.raises(ValueError, match="is there already; delete it"):
    find.main(["find", names[0]], config)


# Sides whose scale torch cuts to 799 pixels, longer ones that stop at 1333, and a square.
@pytest.mark.parametrize("size", [(161, 240), (90, 337), (203, 57), (64, 64), (1, 300)])
def test_seen_as_torchvision_shows_it(size, detection):  # noqa: F811
  """Pixels, their place in the canvas, and boxes back in the picture."""
  import torch

  mean, std = zoo.Preprocess().mean, zoo.Preprocess().std
  show = detection.transform.GeneralizedRCNNTransform(800, 1333, mean, std).eval()
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  wanted, _ = show([torch.from_numpy(image.transpose(2, 0, 1)) / 255])
  pixels = zoo.preprocess("fasterrcnn_resnet50_fpn.tv1")
  seen = found.seen(pixels, image)
  assert seen.size == wanted.image_sizes[0]
  assert seen.pixels.shape[:2] in {(800, 800), (800, 1088), (800, 1344), (1088, 800), (1344, 800)}
  assert (np.array(seen.pixels.shape[:2]) >= wanted.tensors.shape[2:]).all()
  height, width = seen.size
  theirs = wanted.tensors[0].permute(1, 2, 0).numpy()[:height, :width]
  np.testing.assert_allclose(pixels.normalize(seen.pixels)[:height, :width], theirs, atol=3e-4)
  assert not seen.pixels[height:].any() and not seen.pixels[:, width:].any()
  boxes = np.float32([[1, 2, 30.5, 50], [0, 0, size[1], size[0]]])
  [back] = show.postprocess(
    [{"boxes": torch.tensor(seen.where.into(boxes))}], wanted.image_sizes, [size]
  )
  np.testing.assert_allclose(seen.where.into(boxes)[1], [0, 0, width, height], rtol=1e-6)
  np.testing.assert_allclose(seen.where.out(seen.where.into(boxes)), back["boxes"], rtol=1e-5)


def test_finds_what_torchvision_finds(detection, tmp_path, monkeypatch):  # noqa: F811
  """A picture of odd sides, from its file to boxes in it; and where the best one's score lies."""
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(1)
  original, model, names = test_rcnn.small(detection, "v1")
  size = (90, 137)
  first = np.rint(255 * detectors.pictures(size)[0]).astype(np.uint8)
  images = detectors.tensors([first / np.float32(255), *detectors.pictures((96, 128))])
  parity.randomize(original, images)
  seen = []
  original.backbone.body.layer4.register_forward_hook(lambda module, inputs, y: seen.append(y))
  with torch.no_grad():
    original.rpn.head.cls_logits.weight.mul_(8)
    original.roi_heads.box_predictor.cls_score.weight.mul_(2)
  batch = original.transform(images)[0].tensors.permute(0, 2, 3, 1).numpy()
  wanted = original(images)[0]  # beside a picture that fills the canvas
  variables = detectors.variables_of(original, model, names, batch)
  monkeypatch.setitem(catalog.VARIANTS, "maskrcnn_resnet50_fpn", lambda: model)
  pixels = zoo.Preprocess(96, 96, longest=128)
  record = zoo.Record("maskrcnn_resnet50_fpn", preprocess=pixels, classes=("a", "b", "c"))
  store.save(tmp_path / "net.safetensors", variables, record)
  Image.fromarray(first).save(tmp_path / "odd.png")
  Image.fromarray(first.swapaxes(0, 1)).save(tmp_path / "tall.png")  # another canvas
  config = Config(
    model=str(tmp_path / "net.safetensors"), confidence=0.05, iou=0.5, batch=2,
    maps="grad_cam", out=str(tmp_path / "out"),
  )  # fmt: skip
  monkeypatch.setattr(jax, "jit", detectors.quick)
  paths = [tmp_path / "odd.png", tmp_path / "tall.png"]
  answer, tall = find.find(predict.read(paths, 2, pytest.fail), config)
  one = answer.found
  mine = {"boxes": one.boxes, "scores": one.scores, "box_label": one.labels}
  detectors.check_same(mine, wanted, first_label=1, at_least=20)
  assert (tall.found.width, tall.found.height) == size and len(tall.maps) == len(tall.found)
  theirs = wanted["masks"][:, 0].detach().numpy()
  for box, label, mask in zip(one.boxes, one.labels, one.masks):
    alike = wanted["labels"].numpy() == label + 1
    apart = np.abs(wanted["boxes"].detach().numpy() - box).max(1)
    there = theirs[np.argmin(np.where(alike, apart, np.inf))]
    sure = np.abs(there - 0.5) > 0.01
    assert (packed.decode(mask) == (there > 0.5))[sure].all() and sure.mean() > 0.95

  [grad] = torch.autograd.grad(wanted["scores"][0], seen[0])
  heat = torch.relu((seen[0] * grad.mean((2, 3), keepdim=True)).sum(1))[:1, None]
  heat = torch.nn.functional.interpolate(heat, (96, 128), mode="bilinear")[0, 0].detach().numpy()
  height, width = fpn.fitted(size, 96, 128)
  ours = answer.maps[0]
  np.testing.assert_allclose(one.scores[0], wanted["scores"][0].item(), rtol=1e-4)
  np.testing.assert_allclose(ours, heat[:height, :width], atol=1e-3 * heat.max())
  assert heat.max() > 0 and len(answer.maps) == len(one)

  with album.Album(tmp_path / "out", "title", 2) as folder:
    folder.add(answer)
    folder.finish([])
  marks = COCO(str(tmp_path / "out/coco.json"))
  for mark in marks.anns.values():
    shown = marks.annToMask(mark)
    assert shown.shape == size and shown.sum() == mark["area"]
  assert len(marks.anns) == len(one)
  drawn = sorted(p.name for p in (tmp_path / "out").glob("*grad_cam.png"))
  assert drawn[0] == "0001_odd_01_grad_cam.png" and len(drawn) == len(one)
  with Image.open(tmp_path / "out" / drawn[0]) as picture:
    assert picture.size == size[::-1]
  assert drawn[0] in (tmp_path / "out/index.html").read_text()


def test_masks_are_drawn_where_they_are():
  """Two that overlap; the surer one's colour is on top."""
  image = np.full((400, 500, 3), 100, np.uint8)
  masks = np.zeros((2, 400, 500), np.uint8)
  masks[0, 100:300, 120:200], masks[0, 250:300, 120:400], masks[1, 150:350, 150:450] = 1, 1, 1
  one = Found(
    np.float32([[120, 100, 400, 300], [150, 150, 450, 350]]), np.float32([0.9, 0.5]),
    np.int32([0, 1]), 400, 500, CLASSES,
    np.array([packed.encode(np.asfortranarray(mask)) for mask in masks], object),
  )  # fmt: skip
  drawn = album.drawn(album.Answer(Path("a"), image, one))
  want = image.astype(float)
  for mask, color in ((masks[1], figures.COLORS[1]), (masks[0], figures.COLORS[0])):
    there = mask == 1
    want[there] = np.rint(0.55 * want[there] + 0.45 * np.array(ImageColor.getrgb(color)))
  lines = (abs(drawn - image.astype(float)).max(-1) > 0) & ~masks.any(0)  # of boxes, and words
  assert lines.mean() < 0.05
  inside = cv2.erode(masks[0] | masks[1], np.ones((9, 9))).astype(bool)
  same = (drawn == want).all(-1)
  assert same[inside].mean() > 0.9 and same[~masks.any(0) & ~lines].all()
  assert same[280, 300] and same[160, 160] and same[340, 300] and same[110, 160], "each part"


def test_what_is_wrong_is_said(trained, tmp_path):
  faults = {
    "--maps=grad_cam are drawn into a folder; name it by --out": Config(
      model=trained, maps="grad_cam"
    ),
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
  answers = {a.name.stem: a.found for a in find.find(predict.read(paths, 2, pytest.fail), config)}
  for name, things in IN_THEM.items():
    assert sorted(answers[name].names) == sorted(things)
  bus = answers["bus"]
  assert (bus.width, bus.height) == (810, 1080)
  (box,) = bus.of(["bus"]).boxes
  # the bus fills nearly the width of the picture, in its upper three quarters
  assert box[0] < 60 and box[2] > 700 and 150 < box[1] < 320 and 650 < box[3] < 850
