"""python -m train.segment and train.outline: masks, views, a run, scores; what bad input hears."""

import dataclasses
from functools import partial
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from tests import runs, stamps
from train import loop, optim, outline, page, segment, segment_report
from train.data import masks, threaded
from zoo import catalog
import zoo
from zoo.segment import unet

pytestmark = pytest.mark.usefixtures("arguments_only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return stamps.write(tmp_path_factory.mktemp("scenes"))


def as_voc(folder, out):
  """The same pictures in VOC's layout."""
  for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
    (out / name).mkdir(parents=True)
  for split in ("train", "val"):
    names = []
    for path in sorted((folder / "images" / split).iterdir()):
      names.append(f"{split}_{path.stem}")
      shutil.copy(path, out / f"JPEGImages/{names[-1]}.jpg")
      mask = folder / f"masks/{split}/{path.stem}.png"
      shutil.copy(mask, out / f"SegmentationClass/{names[-1]}.png")
    (out / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
  shutil.copy(folder / "classes.txt", out)
  return out


def test_three_layouts_give_the_same_masks(folder, tmp_path):
  classes, plain = masks.load(folder)
  assert classes[:3] == ("background", "bird", "fish") and len(classes) == 13
  assert {split: len(some.keys) for split, some in plain.items()} == {
    "train": 8, "val": 4, "test": 4
  }  # fmt: skip
  named, voc = masks.load(as_voc(folder, tmp_path / "voc"))
  also, coco = masks.load(folder, "coco")
  assert named == also == classes
  for i in range(4):
    want = plain["val"].mask(i)
    np.testing.assert_array_equal(voc["val"].mask(i), want)
    inner = want != masks.IGNORED  # COCO's have no borders
    np.testing.assert_array_equal(coco["val"].mask(i)[inner], want[inner])
    np.testing.assert_array_equal(coco["val"].picture(i), plain["val"].picture(i))


def test_cocos_other_forms_of_an_area():
  packed = pytest.importorskip("pycocotools.mask", reason="pip install --no-deps pycocotools")
  rng = np.random.default_rng(0)
  for density in (0.0, 0.01, 0.5, 1.0):
    solid = rng.random((13, 40)) < density
    text = packed.encode(np.asfortranarray(solid.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(masks.area({"counts": text}, solid.shape), solid)
  square = masks.area([[3, 2, 9, 2, 9, 8, 3, 8]], (10, 12))
  want = np.zeros((10, 12), bool)
  want[2:8, 3:9] = True
  np.testing.assert_array_equal(square, want)
  angles = np.linspace(0, 6.28, 9)[:-1]
  star = (np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(9, 25, (8, 1)) + 30).ravel()
  ours = masks.area([star.tolist()], (60, 64))
  theirs = packed.decode(packed.merge(packed.frPyObjects([star.tolist()], 60, 64))).astype(bool)
  assert (ours & theirs).sum() > 0.97 * (ours | theirs).sum()
  with pytest.raises(ValueError, match="break off"):
    masks.unpacked("h")
  with pytest.raises(ValueError, match="add up to 3 pixels, not to 2 x 2"):
    masks.area({"counts": [1, 2]}, (2, 2))


def test_all_that_is_wrong_with_masks_is_said_at_once(folder, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  shutil.rmtree(broken / "annotations")
  (broken / "masks/train/000000.png").unlink()
  (broken / "images/train/000001.jpg").unlink()
  Image.new("L", (60, 64)).save(broken / "masks/train/000002.png")
  Image.new("L", (64, 64), 77).save(broken / "masks/val/000003.png")
  Image.new("RGB", (64, 64)).save(broken / "masks/val/000002.png")
  with pytest.raises(ValueError) as error:
    masks.load(broken)
  for said in (
    "images/train/000000.jpg has no mask of that name", "masks/train/000001.png has no picture",
    "masks/train/000002.png has 60 x 64 pixels, its picture 64 x 64",
    "masks/val/000003.png has the classes 77; there are 0..12 and 255",
    "000002.png has pixels of mode RGB; wanted a PNG of one channel",
  ):  # fmt: skip
    assert said in str(error.value), said
  (broken / "classes.txt").unlink()
  with pytest.raises(FileNotFoundError, match="names a class a line"):
    masks.load(broken)
  with pytest.raises(ValueError, match="in no layout of masks; wanted images/train"):
    masks.load(tmp_path)
  with pytest.raises(ValueError, match="in no layout of masks voc"):
    masks.load(broken, "voc")


def test_all_that_is_wrong_with_coco_is_said_at_once(folder, tmp_path):
  shutil.copytree(folder / "images", tmp_path / "images")
  (tmp_path / "annotations").mkdir()
  table = json.loads((folder / "annotations/instances_train.json").read_text())
  table["annotations"][0]["category_id"] = 99
  table["annotations"][1]["image_id"] = 99
  table["images"][0]["width"] = 50
  (tmp_path / "images/train/000001.jpg").unlink()
  (tmp_path / "annotations/instances_train.json").write_text(json.dumps(table))
  (tmp_path / "annotations/instances_val.json").write_text("{}")
  with pytest.raises(ValueError) as error:
    masks.load(tmp_path)
  for said in (
    "annotation 1 is of no category", "annotation 2 is of no picture",
    "000000.jpg has 64 x 64 pixels, its masks 50 x 64", "there is no ", "000001.jpg",
    "instances_val.json is no COCO file of instances (KeyError",
  ):  # fmt: skip
    assert said in str(error.value), said


def test_picture_and_mask_are_cropped_and_turned_alike():
  """Each class has its own grey; where a view is not a mixture of two, the mask says which."""
  rng = np.random.default_rng(0)
  mask = np.kron(rng.integers(0, 5, (6, 9)), np.ones((16, 16))).astype(np.uint8)
  picture = np.repeat(mask[..., None] * 50, 3, axis=2)
  flipped = 0
  for seed in range(12):
    noise = np.random.default_rng(seed)
    augment = masks.Augment((0.7, 1.4), 0.5, 0.0)
    view, seen = masks.train_view(picture, mask, noise, 64, augment)
    assert view.shape == (64, 64, 3) and seen.shape == (64, 64)
    pure = (view[..., 0] % 50 == 0) & (seen != masks.IGNORED)
    assert pure.mean() > 0.5
    # On an edge, the mean of two classes may be the grey of a third.
    assert (view[..., 0][pure] // 50 == seen[pure]).mean() > 0.95
    flipped += not np.array_equal(
      seen, masks.train_view(picture, mask, np.random.default_rng(seed), 64,
                             dataclasses.replace(augment, flip=0.0))[1]
    )  # fmt: skip
  assert 0 < flipped < 12
  small = masks.train_view(picture, mask, np.random.default_rng(0), 200, masks.Augment((0.1, 0.1)))
  assert (small[1] == masks.IGNORED).mean() > 0.5, "nothing is learned beyond the picture"
  with pytest.raises(ValueError, match="scale must be positive and rise"):
    masks.Augment((2.0, 1.0))


def test_pixels_between_things_that_almost_touch_count_more():
  mask = np.zeros((20, 30), np.uint8)
  mask[5:12, 3:9], mask[5:12, 12:16], mask[2:4, 24:28] = 1, 1, 2
  mask[15:] = masks.IGNORED
  got = masks.border_weights(mask, 10.0, 3.0)
  things = [mask[5:12, 3:9], mask[5:12, 12:16], mask[2:4, 24:28]]
  corners = [(5, 3), (5, 12), (2, 24)]
  y, x = np.mgrid[:20, :30]
  away = []
  for (top, left), thing in zip(corners, things):
    down = np.maximum(0, np.maximum(top - y, y - (top + thing.shape[0] - 1)))
    across = np.maximum(0, np.maximum(left - x, x - (left + thing.shape[1] - 1)))
    away.append(np.hypot(down, across))
  one, two = np.sort(away, axis=0)[:2]
  want = 1 + 10 * np.exp(-((one + two) ** 2) / (2 * 3.0**2))
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert got[8, 10] > 5 and got[0, 0] < 1.1
  assert (masks.border_weights(mask[:, 20:], 10.0) == 1).all(), "one thing alone"


def test_evaluation_sees_every_pixel_once(folder):
  class Uneven:
    keys, sizes = ("a", "b"), ((40, 60), (90, 30))

    def picture(self, index):
      return np.full((*self.sizes[index], 3), 7, np.uint8)

    def mask(self, index):
      return np.full(self.sizes[index], 1, np.uint8)

  assert masks.canvas(Uneven(), 40, 8) == (80, 64)
  rows = threaded.eval_rows(2, batch=3, process_index=0, process_count=1)
  (batch,) = threaded.batches(rows, masks.eval_row(Uneven(), 40, 8), 2)
  assert batch["index"].tolist() == [0, 1, -1] and batch["real"].tolist() == [1, 1, 0]
  assert [(m == 1).sum() for m in batch["mask"]] == [40 * 60, 80 * 27, 0]


def test_batches_are_a_function_of_the_step(folder):
  _, splits = masks.load(folder)
  make = masks.train_row(splits["train"], 32, masks.Augment())

  def some(start, count, index=0, of=1):
    rows = threaded.train_rows(
      8, batch=4, seed=5, start_step=start, process_index=index, process_count=of
    )
    batches = threaded.batches(rows, make, 2)
    return [next(batches) for _ in range(count)]

  whole = some(0, 4)
  for ours, theirs in zip(whole[3:], some(3, 1)):
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name])
  halves = [some(2, 1, i, 2)[0]["image"] for i in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), whole[2]["image"])


def test_windows_blend_to_what_one_look_gives():
  """Of a network that looks at single pixels, windows change nothing, whatever their size."""
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 255, (50, 71, 3), np.uint8)
  for window, overlap, batch in ((16, 0.5, 3), (32, 0.0, 4), (96, 0.5, 1), (96, 0.5, 4)):
    seen, compiled = [], set()

    def probs(views):
      seen.append(len(views))  # noqa: B023
      return views.astype(np.float32) / 255

    found = outline.blended(probs, picture, window, overlap, batch, compiled)
    np.testing.assert_allclose(found, picture / 255, atol=1e-6)
    assert set(seen) == compiled and max(seen) <= batch
  assert seen == [1], "one window does not wait for four"
  assert outline.starts(50, 16, 0.5) == [0, 7, 14, 20, 27, 34]
  assert outline.starts(16, 16, 0.5) == outline.starts(9, 16, 0.5) == [0]
  answer = outline.likeliest(found, (100, 142))
  np.testing.assert_array_equal(answer[::2, ::2].shape, (50, 71))
  assert (outline.likeliest(found, (50, 71)) == picture.argmax(-1)).all()


def narrow(monkeypatch):
  small = partial(unet.UNet, widths=(4, 8), padded=True, batch_norm=True, bias=False)
  monkeypatch.setitem(catalog.VARIANTS, "unet_padded", small)


def test_a_run_scores_as_scikit_learn_does_and_outlines(folder, tmp_path, monkeypatch, capsys):
  narrow(monkeypatch)
  config = loop.Config(
    model="unet_padded", data=str(folder), workdir=str(tmp_path / "run"), batch=4, steps=2, size=32
  )
  parts = config, optim.Config(), segment.Config(scale=("0.8", "1.2"), dice=0.5, borders=5.0)
  outcome = loop.run(config, segment.prepare(*parts))
  truth, answer = outcome.target, outcome.predictions["mask"]
  assert outcome.split == "test" and truth.shape == answer.shape == (4, 32, 32)
  jaccard = pytest.importorskip("sklearn.metrics").jaccard_score
  real = truth != masks.IGNORED
  either = np.union1d(truth[real], answer[real])
  want = jaccard(truth[real], answer[real], labels=either, average=None)
  scores = segment_report.Scores(segment_report.counted(truth, answer, 13))
  np.testing.assert_allclose(scores.iou[either], want, rtol=1e-12)
  assert segment.mean_iou(outcome.measured) == pytest.approx(want.mean(), rel=1e-6)
  assert scores.pixels == pytest.approx(outcome.measured["pixel"], rel=1e-6)
  assert np.isnan(np.delete(scores.iou, either)).all()

  page_ = segment_report.write(tmp_path / "run").read_text()
  assert page.percent(scores.mean_iou) in page_ and "images/test/000000.jpg" in page_
  assert page_.count("<article") == 8 and "The photographs cannot be shown" not in page_

  (tmp_path / "broken.jpg").write_text("no picture")
  photo = str(folder / "images/test/000001.jpg")
  config = outline.Config(
    model=str(tmp_path / "run"), out=str(tmp_path / "out"), window=32, size=48
  )
  assert outline.main(["", photo, str(tmp_path / "broken.jpg")], config) == 1
  said = capsys.readouterr()
  assert "%  " in said.out and "broken.jpg: it is text, not a picture" in said.err
  (name,) = (tmp_path / "out/masks").iterdir()
  pixels = masks.read_mask(name)
  assert pixels.shape == (64, 64) and pixels.max() < 13
  assert "000001" in (tmp_path / "out/index.html").read_text()
  assert (tmp_path / "out/classes.txt").read_text().startswith("background\nbird\n")
  with pytest.raises(ValueError, match="is there already"):
    outline.main(["", photo], config)


def test_a_published_body_is_planted_or_refused(monkeypatch):
  model = zoo.create("unet_resnet18", num_classes=3)
  known = runs.untrained(zoo.create("resnet18", num_classes=None), 32, seed=1)
  monkeypatch.setattr(zoo, "load", lambda name, **fields: (None, known))
  fields = {"num_classes": 3}
  got = segment.on_backbone("unet_resnet18", "resnet18.any", 0, fields, 32)
  fresh = zoo.init(model, jax.random.key(0, impl="rbg"), size=32)
  for collection in ("params", "batch_stats"):
    jax.tree.map(np.testing.assert_array_equal, got[collection]["backbone"], known[collection])
    assert got[collection].keys() == fresh[collection].keys()
    same = got[collection]["blocks_0"], fresh[collection]["blocks_0"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *same)
  del known["params"]["layer2_0"]
  with pytest.raises(ValueError, match="has another trunk: 9 of 100 .* params/backbone/layer2_0"):
    segment.on_backbone("unet_resnet18", "resnet18.any", 0, fields, 32)


def test_what_is_missing_is_said(folder, tmp_path):
  faults = {
    "--data is missing\n--workdir is missing\nresnet18 gives no class for each pixel": dict(
      model="resnet18"
    ),
    "craft.mlt_25k gives no class for each pixel": dict(model="craft.mlt_25k"),
    "--backbone is for a fresh --model": dict(
      model="lraspp_mobilenet_v3_large.tv1", own=segment.Config(backbone="resnet18.tv1")
    ),
    "--scale has two numbers": dict(model="unet", own=segment.Config(scale=("1",))),
    "--scale: could not convert string": dict(model="unet", own=segment.Config(scale=("a", "1"))),
  }
  for said, fields in faults.items():
    own = fields.pop("own", segment.Config())
    with pytest.raises(ValueError, match=said):
      segment.prepare(loop.Config(**fields), optim.Config(), own)
  real = dict(model="unet", data=str(folder), workdir=str(tmp_path / "run"))
  with pytest.raises(ValueError, match="--class_weights has 1 numbers, and there are 13 classes"):
    own = segment.Config(class_weights=("2",))
    segment.prepare(loop.Config(**real), optim.Config(), own)
  with pytest.raises(ValueError, match="--batch=32 is more than the 8 training pictures"):
    segment.prepare(loop.Config(**real), optim.Config(), segment.Config())
  with pytest.raises(ValueError, match="name a model and photographs"):
    outline.main([""], outline.Config())
  for name in ("resnet18.tv1", "craft.mlt_25k"):
    with pytest.raises(ValueError, match="gives no class"):
      outline.segmenter(name)
