"""Listings: what they may hold, how they are divided, and that every fault is said at once."""

import json

import numpy as np
from PIL import Image
import pytest

from train.data import listing
from train.data.transforms import Augment
import zoo

PIXELS = zoo.Preprocess(16, 16, squash=True)


def pictures(folder, count, size=(40, 20)):
  """0.png ... of different greys, width x height."""
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    Image.new("RGB", size, (i, i, i)).save(folder / f"{i}.png")
  return folder


def table(folder, text, count=20, name="listing.csv", **kwargs):
  pictures(folder, count, **kwargs)
  (folder / name).write_text(text)
  return folder


def whole(data, name):
  """A target of all splits, by key."""
  return {
    key: value
    for rows in data.splits.values()
    for key, value in zip(rows.keys, rows.targets[name].tolist())
  }


def test_labels_in_a_column_or_in_a_column_each(tmp_path):
  lines = [f"{i}.png,{'a|b' if i % 2 else ''}" for i in range(20)]
  one = listing.load(table(tmp_path / "1", "\n".join(["image,labels", *lines])), "multilabel")
  assert one.classes == ("a", "b") and one.splits.keys() == {"train", "val", "test"}
  assert whole(one, "labels") == {f"{i}.png": [i % 2] * 2 for i in range(20)}
  lines = [f"{i}.png,train,{i % 2}," if i else "0.png,val,-1,0" for i in range(20)]
  each = listing.load(table(tmp_path / "2", "\n".join(["image,split,a,b", *lines])), "multilabel")
  assert each.classes == ("a", "b") and each.splits.keys() == {"train", "val"}
  assert whole(each, "labels")["0.png"] == [-1, 0] and whole(each, "labels")["1.png"] == [1, -1]


def test_json_is_csv_with_lists(tmp_path):
  rows = [{"image": f"{i}.png", "label": "ab"[i % 2], "box": [1, 2, 30, 20] if i else None}
          for i in range(20)]  # fmt: skip
  data = listing.load(table(tmp_path, json.dumps(rows), name="listing.json"), "localize")
  assert whole(data, "box")["0.png"] == [0] * 4 and whole(data, "box")["1.png"] == [1, 2, 30, 20]
  assert whole(data, "size")["3.png"] == [20, 40]
  assert listing.shares(data.splits["train"].targets)["box"].max() == 1
  labels = [{"image": f"{i}.png", "labels": ["b"] if i else []} for i in range(20)]
  (tmp_path / "listing.json").write_text(json.dumps(labels))
  assert listing.load(tmp_path / "listing.json", "multilabel").classes == ("b",)


def test_numbers_that_are_not_known(tmp_path):
  text = "\n".join(
    ["image,age,height", *(f"{i}.png,{i},{'' if i % 2 else i / 2}" for i in range(20))]
  )
  data = listing.load(table(tmp_path, text), "regress")
  value = whole(data, "value")
  assert data.classes == ("age", "height") and value["4.png"] == [4, 2]
  assert value["5.png"][0] == 5 and np.isnan(value["5.png"][1])


def test_bags_and_what_fills_them(tmp_path):
  text = "\n".join(
    ["image,bag,label", *(f"{i}.png,{i // 2},{'xy'[i // 2 % 2]}" for i in range(40))]
  )
  data = listing.load(table(tmp_path, text, 40), "classify", bags=True)
  assert sum(map(len, data.splits.values())) == 20 and data.classes == ("x", "y")
  rows = data.splits["train"]
  some = {"batch": 4, "threads": 1, "process_index": 0, "process_count": 1, "instances": 3}
  batch = next(listing.train_batches(rows, size=8, seed=0, start_step=0, augment=None, **some))
  assert batch["image"].shape == (4, 3, 8, 8, 3) and batch["bag_real"].tolist() == [[1, 1, 0]] * 4
  np.testing.assert_array_equal(batch["image"][:, 2], batch["image"][:, 0], "its own once more")
  again = next(listing.train_batches(rows, size=8, seed=0, start_step=0, augment=None, **some))
  np.testing.assert_array_equal(again["image"], batch["image"])
  *_, last = listing.eval_batches(rows, PIXELS, **some)
  filling = last["index"] < 0
  assert last["bag_real"].any(1).all() and (last["real"] == ~filling).all()


def test_spread():
  assert listing.spread(3, 5).tolist() == [0, 1, 2] and listing.spread(9, 3).tolist() == [0, 3, 6]


def test_boxes_go_with_their_picture(tmp_path):
  """A white box on black: wherever the view puts it, the target says so."""
  rng, rows = np.random.default_rng(0), ["image,label,x0,y0,x1,y1,split"]
  for i in range(12):
    x, y, w, h = rng.integers(2, 30), rng.integers(2, 20), rng.integers(8, 16), rng.integers(8, 12)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    part = "val" if i == 11 else "train"
    rows.append(f"{i}.png,{'ab'[i % 2]},{x},{y},{x + w},{y + h},{part}")
  (tmp_path / "listing.csv").write_text("\n".join(rows))
  data = listing.load(tmp_path, "localize")
  some = {"batch": 11, "threads": 1, "process_index": 0, "process_count": 1}
  batches = [
    next(
      listing.train_batches(data.splits["train"], size=64, seed=s, start_step=0, augment=a, **some)
    )
    for s in range(3)
    for a in (Augment(scale=(0.4, 1.0)), None)
  ]
  batches += listing.eval_batches(data.splits["val"], zoo.Preprocess(64, 64, squash=True), **some)
  for batch in batches:
    for image, box in zip(batch["image"], batch["box"]):
      ys, xs = np.nonzero(image[..., 0] > 127)
      found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
      np.testing.assert_allclose(box, found, atol=1.5)


def test_every_fault_is_said(tmp_path):
  text = "image,split,a,b\n0.png,train,1,yes\n0.png,trian,1,0\n77.png,val,0,0\n,train,0,0,9"
  with pytest.raises(ValueError) as fault:
    listing.load(table(tmp_path, text), "multilabel")
  for part in (
    "line 5 has more cells than there are columns", "line 2: b=yes is neither 1, 0 nor empty",
    "line 3: the split is trian; wanted train, val or test", "line 5 names no image",
    "0.png is listed more than once", "there is no picture 77.png",
  ):  # fmt: skip
    assert part in str(fault.value)


@pytest.mark.parametrize(
  "task, text, said",
  [
    ("regress", "image,age\n0.png,old\n1.png,3", "line 2: age=old is no number"),
    ("regress", "image,age\n0.png,3\n1.png,3", "age has no two different numbers"),
    ("localize", "image,label,x0,y0,x1,y1\n0.png,a,1,1,1,5\n1.png,b,,,,",
     "line 2: the box 1, 1, 1, 5 is none"),
    ("localize", "image,label,x0,y0,x1,y1\n0.png,a,1,1,9,50\n1.png,b,,,,",
     "line 2: the box 1, 1, 9, 50 reaches out of its 40x20 pixels"),
    ("localize", "image,label\n0.png,a\n1.png,a", "there are 1 classes"),
    ("multilabel", "picture,labels\n0.png,a", "no column image but picture, labels"),
    ("multilabel", "image,labels\n0.png,a", "no row is left for val"),
  ],
)  # fmt: skip
def test_faults(tmp_path, task, text, said):
  with pytest.raises(ValueError, match=said):
    listing.load(table(tmp_path, text), task)


def test_faults_of_bags(tmp_path):
  text = "image,bag,label\n0.png,1,a\n1.png,1,b\n2.png,,a\n3.png,2,b"
  with pytest.raises(
    ValueError, match="(?s)line 4 has no bag.*bag 1: its rows do not say the same"
  ):
    listing.load(table(tmp_path, text), "classify", bags=True)
  with pytest.raises(ValueError, match="no column bag"):
    listing.load(table(tmp_path, "image,label\n0.png,a\n1.png,b"), "classify", bags=True)


def test_what_cannot_be_read_is_left_out_if_it_is_rare(tmp_path):
  text = "\n".join(["image,labels", *(f"{i}.png,a" for i in range(20))])
  table(tmp_path, text)
  (tmp_path / "7.png").write_bytes(b"")
  data = listing.load(tmp_path, "multilabel", max_bad=0.1)
  assert data.skipped == ("7.png: the file is empty",) and "7.png" not in whole(data, "labels")
  with pytest.raises(
    ValueError, match="(?s)1 of 20 pictures cannot be read.*7.png: the file is em"
  ):
    listing.load(tmp_path, "multilabel", max_bad=0.01)


def test_chest_x_rays_as_they_are_published(tmp_path):
  rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age"]
  names = [f"{i // 2:08}_{i % 2:03}.png" for i in range(40)]
  for i, name in enumerate(names):
    folder = tmp_path / f"images_{1 + i // 30:03}" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(folder / name)
    rows.append(f"{name},{('No Finding', 'Hernia|Mass')[i % 2]},0,{i // 2},60")
  (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(rows))
  (tmp_path / "train_val_list.txt").write_text("\n".join(names[:30]))
  (tmp_path / "test_list.txt").write_text("\n".join(names[30:]))
  data = listing.load(tmp_path, "multilabel")
  assert data.classes == listing.CHEST and len(data.classes) == 14
  assert len(data.splits["test"]) == 10 and len(data.splits["val"]) >= 2
  of = {split: {k.split("/")[-1][:8] for k in rows.keys} for split, rows in data.splits.items()}
  assert not of["train"] & of["val"] and not of["train"] & of["test"], "no patient is in two"
  labels = whole(data, "labels")
  found = labels[f"images_001/images/{names[1]}"]
  assert [n for n, yes in zip(listing.CHEST, found) if yes] == ["Mass", "Hernia"]
  assert sum(labels[f"images_001/images/{names[0]}"]) == 0
  strange = "\n".join(rows).replace("Hernia|Mass", "Hernia|Gout", 1)
  (tmp_path / "Data_Entry_2017.csv").write_text(strange)
  with pytest.raises(ValueError, match="line 3: Gout is none of the findings Atelectasis, Card"):
    listing.load(tmp_path, "multilabel")


def test_folders_of_boxes(tmp_path):
  pictures(tmp_path / "images", 20)
  boxes = [{"id": i, "image_id": i // 2, "category_id": 1 + i % 2, "bbox": [0, 0, 4 + i % 2, 9],
            "area": 1, "iscrowd": 0} for i in range(38)]  # fmt: skip
  (tmp_path / "instances.json").write_text(json.dumps({
    "images": [{"id": i, "file_name": f"{i}.png"} for i in range(20)], "annotations": boxes,
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
  }))  # fmt: skip
  labels = listing.load(tmp_path, "multilabel")
  assert labels.classes == ("cat", "dog")
  assert sorted(whole(labels, "labels").values()) == [[0, 0], *[[1, 1]] * 19]
  places = listing.load(tmp_path, "localize")
  assert set(map(tuple, whole(places, "box").values())) == {(0, 0, 5, 9)}, "the largest"
  assert set(whole(places, "label").values()) == {1} and len(whole(places, "label")) == 19
