"""Composed scenes: one function of the seed, and its files agree with each other."""

import json

import numpy as np
from PIL import Image
import pytest

from tests import stamps
from train import scenes as script
from train.data import masks, scenes

NAMES = tuple(scenes.CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return stamps.write(tmp_path_factory.mktemp("scenes"))


def table(folder, name):
  return json.loads((folder / name).read_text())


def test_files_agree_with_each_other(folder):
  instances = table(folder, "annotations/instances_train.json")
  assert [row["name"] for row in instances["categories"]] == list(NAMES)
  assert (folder / "classes.txt").read_text().splitlines() == list(NAMES)
  by_image = {row["id"]: [] for row in instances["images"]}
  for thing in instances["annotations"]:
    by_image[thing["image_id"]].append(thing)
  kinds = set()
  for row in instances["images"]:
    stem = row["file_name"].removesuffix(".jpg")
    painted = np.asarray(Image.open(folder / f"masks/train/{stem}.png"))
    lines = (folder / f"labels/train/{stem}.txt").read_text().splitlines()
    things = by_image[row["id"]]
    assert len(things) == len(lines) and painted.shape == (row["height"], row["width"])
    for thing, line in zip(things, lines):
      solid = masks.area(thing["segmentation"], painted.shape)
      x, y, w, h = thing["bbox"]
      box = np.zeros_like(solid)
      box[y : y + h, x : x + w] = True
      assert not (solid & ~box).any() and solid[y].any() and solid[:, x + w - 1].any()
      assert solid.sum() == thing["area"]
      assert set(painted[solid].tolist()) <= {thing["category_id"], masks.IGNORED}
      label, *place = line.split()
      assert int(label) + 1 == thing["category_id"]
      want = np.array([x + w / 2, y + h / 2, w, h]) / len(painted)
      np.testing.assert_allclose([float(v) for v in place], want, atol=1e-6)
    kinds |= {thing["category_id"] for thing in things}
  assert len(kinds) > 4
  told = table(folder, "annotations/captions_train.json")["annotations"]
  karpathy = table(folder, "karpathy.json")["images"]
  assert [row["split"] for row in karpathy] == ["train"] * 8 + ["val"] * 4 + ["test"] * 4
  assert [s["raw"] for row in karpathy[:8] for s in row["sentences"]] == [
    r["caption"] for r in told
  ]


def test_cocos_own_code_reads_them(folder, capsys):
  coco = pytest.importorskip("pycocotools.coco", reason="pip install --no-deps pycocotools")
  read = coco.COCO(str(folder / "annotations/instances_val.json"))
  for id_, thing in read.anns.items():
    want = masks.area(thing["segmentation"], (64, 64))
    np.testing.assert_array_equal(read.annToMask(read.anns[id_]), want)


def test_a_scene_is_a_function_of_its_key(tmp_path):
  one, other = (scenes.composers(*stamps.make(tmp_path / name), 48) for name in "ab")
  for key in ((0, 0, 0), (0, 0, 1), (5, 1, 0)):
    a, b = one["train"].scene(key), other["train"].scene(key)
    np.testing.assert_array_equal(a.image, b.image)
    assert a.captions == b.captions and len(a.captions) == 5
  assert (one["train"].scene((0, 0, 0)).image != one["train"].scene((0, 0, 1)).image).any()
  known, held = ({c.path for some in one[s].cut_outs for c in some} for s in ("train", "test"))
  assert not known & held and known == {c.path for some in one["val"].cut_outs for c in some}
  assert len(held) == len(NAMES)


def test_things_are_hidden_a_little_at_most(tmp_path):
  composer = scenes.composers(*stamps.make(tmp_path), 64)["train"]
  made = [composer.scene((1, 0, i)) for i in range(12)]
  assert any(len(scene.things) > 2 for scene in made)
  for scene in made:
    for thing in scene.things:
      assert thing.mask.sum() >= (1 - scenes.COVERED) * thing.whole
      x0, y0, x1, y1 = thing.box
      assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64


def test_colours_have_names():
  named = {(250, 250, 250): "white", (10, 10, 10): "black", (128, 128, 128): "grey",
           (220, 30, 30): "red", (90, 60, 30): "brown", (240, 220, 40): "yellow",
           (30, 180, 60): "green", (40, 60, 200): "blue", (240, 130, 20): "orange"}  # fmt: skip
  assert {rgb: scenes.color_name(rgb) for rgb in named} == named


def test_what_is_missing_is_said_with_its_remedy(tmp_path):
  with pytest.raises(ValueError) as error:
    scenes.composers(tmp_path, tmp_path, 48)
  said = str(error.value)
  assert "no two cut-outs of bird, fish" in said and "apt-get download tuxpaint" in said
  assert "has 0 JPEG photographs" in said and "--backgrounds=FOLDER/usr/share/backgrounds" in said
  (tmp_path / "a").touch()
  with pytest.raises(
    ValueError, match="--stamps is missing\n--backgrounds is missing\n--out=.*there"
  ):
    script.main([], script.Config(out=str(tmp_path)))
