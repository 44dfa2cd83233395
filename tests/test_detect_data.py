"""Pictures with boxes: three forms of one set, all faults in one message, batches by the step."""

import json

import numpy as np
from PIL import Image
import pytest

from train.data import detection, detection_views
from train.data.detection_views import Augment
from train.data.scenes import run_lengths
import zoo
from zoo.detect import found
from zoo.ops.roi import window

CLASSES = ("cat", "dog")
# height, width, then rows of label x0 y0 x1 y1
SCENES = {
  "a": ((40, 60), [(0, 5, 5, 25, 30), (1, 30, 10, 55, 38)]),
  "b": ((60, 40), [(1, 0, 0, 40, 60)]),
  "c": ((30, 30), []),
}
PIXELS = zoo.Preprocess(64, 64, letterbox=True, mean=(0,) * 3, std=(1,) * 3)
STILL = Augment(jitter=0, flip=0, hue=0, saturation=1, exposure=1)


def picture(path, size, rows=()):
  """Dark, objects bright: class 0 red, class 1 green."""
  pixels = np.zeros((*size, 3), np.uint8)
  for label, x0, y0, x1, y1 in rows:
    pixels[y0:y1, x0:x1, label] = 255
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def coco(root, scenes=SCENES, splits=("train", "val")):
  for split in splits:
    images, marks = [], []
    for i, (name, (size, rows)) in enumerate(scenes.items(), start=1):
      picture(root / split / f"{name}.png", size, rows)
      images.append({"id": i, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
      for label, x0, y0, x1, y1 in rows:
        marks.append({
          "id": len(marks) + 1, "image_id": i, "category_id": 10 * (label + 1), "iscrowd": 0,
          "bbox": [x0, y0, x1 - x0, y1 - y0],
          "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        })  # fmt: skip
    kinds = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": marks, "categories": kinds})
    (root / split / "instances.json").write_text(text)
  return root


def voc(root):
  for name, (size, rows) in SCENES.items():
    picture(root / "JPEGImages" / f"{name}.png", size, rows)
    marks = "".join(
      f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
      f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
      for label, x0, y0, x1, y1 in rows
    )
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{name}.xml").write_text(
      f"<annotation><filename>{name}.png</filename><size><width>{size[1]}</width>"
      f"<height>{size[0]}</height></size>{marks}</annotation>"
    )
  lists = root / "ImageSets/Main"
  lists.mkdir(parents=True)
  for split in ("train", "val"):
    (lists / f"{split}.txt").write_text("\n".join(SCENES))
  return root


def yolo(root):
  for split in ("train", "val"):
    for name, (size, rows) in SCENES.items():
      picture(root / "images" / split / f"{name}.png", size, rows)
      file = root / "labels" / split / f"{name}.txt"
      file.parent.mkdir(parents=True, exist_ok=True)
      h, w = size
      lines = [f"{k} {(x0 + x1) / 2 / w} {(y0 + y1) / 2 / h} {(x1 - x0) / w} {(y1 - y0) / h}"
               for k, x0, y0, x1, y1 in rows]  # fmt: skip
      if lines:  # a picture without a label file has no objects
        file.write_text("\n".join(lines) + "\n")
  (root / "classes.txt").write_text("\n".join(CLASSES))
  return root


@pytest.mark.parametrize("write", (coco, voc, yolo), ids=lambda f: f.__name__)
def test_one_set_in_three_forms(write, tmp_path):
  data = detection.load(write(tmp_path))
  assert data.classes == CLASSES and list(data.splits) == ["train", "val"]
  source = data.splits["train"]
  assert [key.rpartition("/")[2] for key in source.keys] == ["a.png", "b.png", "c.png"]
  for objects, size, (want, rows) in zip(source.objects, source.sizes, SCENES.values()):
    assert tuple(size) == want
    np.testing.assert_allclose(objects.boxes, np.array(rows).reshape(-1, 5)[:, 1:], atol=1e-4)
    assert objects.labels.tolist() == [row[0] for row in rows]
    assert objects.plain.all()


def test_a_missing_val_is_cut_from_train(tmp_path):
  data = detection.load(coco(tmp_path, splits=("train",)))
  assert {name: len(s) for name, s in data.splits.items()} == {"train": 2, "val": 1}
  assert not set(data.splits["train"].keys) & set(data.splits["val"].keys)


def test_every_fault_of_coco_is_said(tmp_path):
  coco(tmp_path)
  path = tmp_path / "train/instances.json"
  info = json.loads(path.read_text())
  bad = {
    "bbox": [5, 5, -3, 4], "nan": [float("nan"), 1, 2, 3], "out": [50, 5, 20, 4],
    "three": [1, 2, 3],
  }  # fmt: skip
  for i, box in enumerate(bad.values(), start=50):
    info["annotations"].append({"id": i, "image_id": 1, "category_id": 10, "bbox": box})
  info["annotations"] += [
    {"id": 60, "image_id": 1, "category_id": 99, "bbox": [1, 1, 2, 2]},
    {"id": 61, "image_id": 77, "category_id": 10, "bbox": [1, 1, 2, 2]},
    {"id": 1, "image_id": 2, "category_id": 10, "bbox": [1, 1, 2, 2]},
  ]
  info["images"] += [
    {"id": 90, "file_name": "lost.png", "height": 5, "width": 5},
    {"id": 91, "file_name": "../../etc/passwd"}, {"id": 2, "file_name": "c.png"},
  ]  # fmt: skip
  info["images"][0]["width"] = 61
  path.write_text(json.dumps(info))
  with pytest.raises(ValueError) as error:
    detection.load(tmp_path)
  said = str(error.value)
  for part in (
    "object 50: the box 5, 5, 2, 9 has no positive size",
    "object 51: the box nan, 1, nan, 4 has numbers that are not finite",
    "object 52: the box 50, 5, 70, 9 reaches out of its 60x40 pixels",
    "object 53: bbox must be four numbers, not [1, 2, 3]",
    "object 60: unknown class category_id 99", "object 61: there is no picture 77",
    "object id 1 is there more than once", "picture id 2 is there more than once",
    "train/lost.png: the picture is missing", "etc/passwd lies outside of the set",
    "train/a.png has 60x40 pixels; its annotation says 61x40",
    "train/c.png is listed 2 times",
  ):  # fmt: skip
    assert part in said, said


def test_every_fault_of_voc_and_of_darknet_is_said(tmp_path):
  voc(tmp_path / "voc")
  file = tmp_path / "voc/Annotations/a.xml"
  file.write_text(file.read_text().replace("<xmax>25</xmax>", "<xmax>2</xmax>"))
  (tmp_path / "voc/Annotations/b.xml").write_text("<annotation>")
  (tmp_path / "voc/ImageSets/Main/val.txt").write_text("c\nd\n")
  (tmp_path / "voc/JPEGImages/c.png").write_bytes(b"no picture")
  with pytest.raises(ValueError) as error:
    detection.load(tmp_path / "voc")
  said = str(error.value)
  for part in (
    "Annotations/a.xml, object 1: the box 5, 5, 2, 30 has no positive size",
    "Annotations/b.xml is no annotation of VOC's", "Annotations/d.xml is missing",
    "JPEGImages/c.png: the picture cannot be read",
  ):  # fmt: skip
    assert part in said, said
  yolo(tmp_path / "yolo")
  labels = tmp_path / "yolo/labels/train"
  (labels / "c.txt").write_text(
    "7 .5 .5 .1 .1\n0 .5 .5 .1\n0 nan .5 .1 .1\nx 1 2 3 4\n0 2 2 .1 .1\n"
  )
  (labels / "lost.txt").write_text("")
  with pytest.raises(ValueError) as error:
    detection.load(tmp_path / "yolo")
  said = str(error.value)
  for part in (
    "train/c.txt, line 1: unknown class number 7", "line 2: wanted class, x, y, width, height",
    "line 3: the box nan", "line 4 is not made of numbers", "line 5: the box",
    "labels/train/lost.txt: there is no picture for it in images/train",
  ):  # fmt: skip
    assert part in said, said
  with pytest.raises(ValueError, match="is no set of pictures with boxes. Wanted COCO's"):
    detection.load(tmp_path / "voc/ImageSets")


def test_crowds_and_difficult_objects_are_not_trained_on(tmp_path):
  coco(tmp_path)
  path = tmp_path / "train/instances.json"
  info = json.loads(path.read_text())
  info["annotations"][0]["iscrowd"] = 1
  path.write_text(json.dumps(info))
  source = detection.load(tmp_path).splits["train"]
  assert source.objects[0].crowd.tolist() == [True, False]
  view = detection_views.eval_view(source, 0, PIXELS)
  assert view.labels.tolist() == [1]


def bright(view: detection_views.View) -> list[float]:
  """How much of each box shows its class's color."""
  out = []
  for label, box in zip(view.labels, view.boxes):
    x0, y0, x1, y1 = np.rint(box).astype(int)
    out.append(float((view.image[y0:y1, x0:x1, label] > 90).mean()))
  return out


# flips and jitter move pixels and boxes alike; more than half of a box that mixup blends stays dark
@pytest.mark.parametrize("augment", (
  STILL, Augment(hue=0), Augment(hue=0, jitter=0.5, scale=(0.5, 2)), Augment(hue=0, mosaic=1),
), ids=("still", "darknet", "scale", "mosaic"))  # fmt: skip
def test_boxes_follow_their_pixels(augment, tmp_path):
  source = detection.load(coco(tmp_path)).splits["train"]
  shares, count = [], 0
  for seed in range(12):
    for index in (0, 1):
      view = detection_views.train_view(source, index, np.random.default_rng(seed), 64, augment)
      assert view.image.shape == (64, 64, 3) and view.image.dtype == np.uint8
      assert (view.boxes >= 0).all() and (view.boxes <= 64).all()
      shares += bright(view)
      count += len(view.labels)
  assert count > 20 and np.mean(shares) > 0.9 and min(shares) > 0.6


@pytest.mark.parametrize("augment", (
  STILL, Augment(hue=0, jitter=0.5, scale=(0.5, 2), mixup=0.5), Augment(hue=0, mosaic=1),
), ids=("still", "scale", "mosaic"))  # fmt: skip
def test_masks_follow_their_pixels(augment, tmp_path):
  source = detection.load(coco(tmp_path), masks=True).splits["train"]
  count = 0
  for seed in range(12):
    for index in (0, 1, 2):
      view = detection_views.train_view(source, index, np.random.default_rng(seed), 64, augment)
      for mask, box, label, bitmap in zip(view.masks, view.boxes, view.labels, view.bitmaps()):
        assert mask.shape == view.image.shape[:2]
        if not augment.mixup:
          assert (view.image[mask > 200, label] > 90).mean() > 0.95
        rows, columns = (np.flatnonzero((mask > 127).any(axis)) for axis in (1, 0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(around, box, atol=1)
        x, y = box[:2].astype(int)  # the bitmap is the mask from the box's corner on
        part = mask[y : y + detection_views.CELLS, x : x + detection_views.CELLS]
        np.testing.assert_array_equal(bitmap[: part.shape[0], : part.shape[1]], part)
        assert not bitmap[part.shape[0] :].any() and not bitmap[:, part.shape[1] :].any()
        count += 1
  assert count > 20


def test_masks_of_large_objects_are_squeezed():
  """The bitmap spans what the box touches; its cells are means of the pixels in them."""
  mask = np.zeros((1, 300, 300), np.uint8)
  mask[0, 10:234, 20:44] = 255  # 224 high, twice CELLS, and 24 wide
  mask[0, 11:234:2] = 0  # every second row
  view = detection_views.View(None, np.float32([[20.5, 10, 44, 233.5]]), np.zeros(1), mask)
  [bitmap] = view.bitmaps()
  assert (abs(bitmap[:, :24].astype(int) - 127.5) < 1).all() and not bitmap[:, 24:].any()
  first, scale = window(view.boxes, detection_views.CELLS)
  np.testing.assert_array_equal(first, [[20, 10]])
  np.testing.assert_array_equal(scale, [[1, 2]])


def test_masks_in_every_form(tmp_path):
  """Polygons, run lengths and packed ones of one object; of darknet's files, the outlines."""
  want = np.zeros((40, 60), np.uint8)
  want[5:30, 5:25] = 1
  polygon = [[5, 5, 25, 5, 25, 30, 5, 30]]
  runs = {"size": [40, 60], "counts": run_lengths(want)}
  packed = detection.run_lengths(runs, (40, 60))
  text = {"size": [40, 60], "counts": packed["counts"].decode()}
  for form in (polygon, runs, text):
    made = detection.packed.decode(detection.run_lengths(form, (40, 60)))
    np.testing.assert_array_equal(made, want)
  yolo(tmp_path)
  line = "0 " + " ".join(map(str, np.array(polygon[0]) / np.tile([60, 40], 4)))
  for split in ("train", "val"):
    labels = tmp_path / "labels" / split
    (labels / "a.txt").write_text(line)
    (labels / "b.txt").unlink()
  source = detection.load(tmp_path, masks=True).splits["train"]
  np.testing.assert_array_equal(source.masks(0), 255 * want[None])
  assert source.masks(2).shape == (0, 30, 30)
  assert detection.load(tmp_path).splits["train"].masks(0) is None


def test_masks_of_voc(tmp_path):
  voc(tmp_path)
  folder, lists = tmp_path / "SegmentationObject", tmp_path / "ImageSets/Segmentation"
  folder.mkdir()
  lists.mkdir()
  (lists / "train.txt").write_text("a\nb\n")
  wanted = {}
  for name, (size, rows) in list(SCENES.items())[:2]:
    numbers = np.zeros(size, np.uint8)
    for i, (_, x0, y0, x1, y1) in enumerate(rows, start=1):
      numbers[y0:y1, x0:x1] = i
    wanted[name] = numbers
    image = Image.fromarray(np.where(numbers == 0, 255, numbers).astype(np.uint8), "P")  # borders
    image.putpalette(bytes(768))
    image.save(folder / f"{name}.png")
  source = detection.load(tmp_path, masks=True).splits["train"]
  keys = [key.rpartition("/")[2] for key in source.keys]
  assert set(keys) | {k.rpartition("/")[2] for k in detection.load(
    tmp_path, masks=True).splits["val"].keys} == {"a.png", "b.png"}  # fmt: skip
  numbers = wanted[keys[0][0]]
  for i, mask in enumerate(source.masks(0), start=1):
    np.testing.assert_array_equal(mask, 255 * (numbers == i))
  (folder / "b.png").unlink()
  Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "a.png")
  with pytest.raises(ValueError, match="SegmentationObject/b.png is missing") as fault:
    detection.load(tmp_path, masks=True)
  assert "a.xml, object 1: it has no mask" in str(fault.value)


def test_every_fault_of_masks_is_said(tmp_path):
  coco(tmp_path)
  path = tmp_path / "train/instances.json"
  info = json.loads(path.read_text())
  bad = (
    None, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, float("nan")]], [[1, 1, 9, 9, 99, 1]],
    {"counts": [3, 4], "size": [40, 60]}, {"counts": [-3, 2403], "size": [40, 60]},
    {"counts": "0", "size": [40, 60]}, {"counts": 5}, "x", [["a"] * 6], {"counts": "P"},
  )  # fmt: skip
  for i, mask in enumerate(bad, start=50):
    info["annotations"].append({
      "id": i, "image_id": 1, "category_id": 10, "bbox": [1, 1, 5, 5], "segmentation": mask,
    })  # fmt: skip
  path.write_text(json.dumps(info))
  assert detection.load(tmp_path).splits["train"].objects[0].masks is None
  with pytest.raises(ValueError) as error:
    detection.load(tmp_path, masks=True)
  said = str(error.value)
  shape = "a polygon of its mask is not x y x y x y of three corners or more"
  none = "it has no mask; wanted polygons or run lengths"
  runs = "the run lengths of its mask do not make 60x40 pixels"
  for number, words in enumerate((
    none, shape, shape, "a polygon of its mask reaches out of the picture", runs, runs, runs, none,
    none, "could not convert string to float", "packed run lengths break off",
  ), start=50):  # fmt: skip
    assert f"object {number}: {words}" in said, said


def test_letterboxed_boxes_follow_too(tmp_path):
  source = detection.load(coco(tmp_path)).splits["train"]
  view = detection_views.eval_view(source, 0, PIXELS)
  assert min(bright(view)) > 0.9
  where = found.place(PIXELS, 40, 60)
  np.testing.assert_allclose(where.out(view.boxes), source.objects[0].boxes, atol=1e-3)
  (tall,) = detection_views.eval_view(source, 1, PIXELS).boxes
  np.testing.assert_allclose(tall, [11, 0, 53, 64])  # 42 of 64 pixels wide, as darknet truncates
  with pytest.raises(ValueError, match="a detector sees whole pictures"):
    found.place(zoo.Preprocess(), 40, 60)
  assert found.whole(zoo.Preprocess(64, 64)).letterbox and found.whole(PIXELS) == PIXELS


def test_mixup_has_the_objects_of_both(tmp_path):
  source = detection.load(coco(tmp_path)).splits["train"]
  views = [
    detection_views.train_view(source, 0, np.random.default_rng(i), 64, Augment(mixup=1))
    for i in range(9)
  ]
  assert {len(v.labels) for v in views} == {2, 3, 4}


def test_batches_are_a_function_of_seed_and_step(tmp_path):
  source = detection.load(coco(tmp_path)).splits["train"]

  def some(start, count, index=0, of=1, batch=2, **more):
    batches = detection_views.train_batches(
      source, PIXELS, batch=batch, boxes=5, seed=3, start_step=start, threads=2,
      process_index=index, process_count=of, augment=Augment(mosaic=0.5, mixup=0.5), **more,
    )  # fmt: skip
    return [next(batches) for _ in range(count)]

  whole = some(0, 5)
  for ours, theirs in zip(whole[3:], some(3, 2)):
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name])
  assert whole[0]["boxes"].shape == (2, 5, 4) and whole[0]["box_label"].dtype == np.int32
  assert [b["seen"].tolist() for b in whole[:2]] == [[2, 2], [4, 4]]
  halves = [some(2, 1, i, 2)[0] for i in (0, 1)]
  joined = np.concatenate([h["image"] for h in halves])
  np.testing.assert_array_equal(joined, whole[2]["image"])
  sides = {b["image"].shape[1] for b in some(0, 40, sizes=(32, 64), batch=3)}
  assert sides == {32, 64}
  few = detection_views.train_batches(
    source, PIXELS, batch=3, boxes=1, seed=0, threads=1, augment=STILL
  )
  assert next(few)["box_label"].shape == (3, 1)
  with pytest.raises(ValueError, match="fewer than one batch of 9; set the batch to 3"):
    next(detection_views.train_batches(source, PIXELS, batch=9, boxes=1, seed=0))


def test_evaluation_shows_each_once(tmp_path):
  source = detection.load(coco(tmp_path)).splits["val"]
  batches = list(detection_views.eval_batches(source, PIXELS, batch=2, boxes=4))
  index = np.concatenate([b["index"] for b in batches])
  assert index.tolist() == [0, 1, 2, -1]
  assert np.concatenate([b["real"] for b in batches]).tolist() == [1, 1, 1, 0]
  labels = np.concatenate([b["box_label"] for b in batches])
  assert labels.tolist() == [[0, 1, -1, -1], [1, -1, -1, -1], [-1] * 4, [-1] * 4]


def test_found_in_every_form():
  one = found.of_one(
    {"boxes": [[16, 16, 48, 32], [0, 0, 9, 9], [0, 0, 9, 9]], "scores": [0.9, 0.5, 0.1],
     "box_label": [1, 0, -1]}, found.place(PIXELS, 40, 80), 40, 80, CLASSES,
  )  # fmt: skip
  assert one.names == ["dog"], "the second lies in the band above, the third is padding"
  np.testing.assert_allclose(one.boxes, [[20, 0, 60, 20]])
  np.testing.assert_allclose(one.boxes_xywh, [[20, 0, 40, 20]])
  np.testing.assert_allclose(one.boxes_cxcywh, [[40, 10, 40, 20]])
  np.testing.assert_allclose(one.boxes_share, [[0.25, 0, 0.75, 0.5]])
  np.testing.assert_allclose(one.boxes_cxcywh_share, [[0.5, 0.25, 0.5, 0.5]])
  assert len(one.of(["cat"])) == 0 and one.as_dict()["found"][0]["class"] == "dog"
  with pytest.raises(ValueError, match="no classes cow; there are cat, dog"):
    one.of(["cow"])
