"""python -m train.detect of Faster and Mask R-CNN: losses fall, runs go on, masks are scored."""

import dataclasses
from functools import partial
import json

import jax
import numpy as np
import pytest

from tests import parity
from tests.runs import untrained
from tests.test_detect_data import CLASSES, coco
from train import average_precision, detect, detect_report, find, loop, optim, predict
from train.data import detection
from train.tasks.rcnn import Rcnn
import zoo
from zoo import store
from zoo.classify.resnet import Block, ResNet
from zoo.detect import fpn, rcnn
from zoo.detect.rcnn import RCNN, MaskHead, TwoDense
from zoo.layers import Numerics
from zoo.ops import roi

SIZE, BOXES = 64, 100
STEPS, SAVED, STOPPED = 10, 3, 5
# Few narrow layers.
NARROW = partial(
  RCNN, partial(ResNet, (1, 1, 1, 1), block=partial(Block, bottleneck=False), width=8),
  maps=("stage2", "stage3"), strides=(8, 16), sizes=((16,), (32,), (64,)),
  pyramid=partial(fpn.FPN, 16), head=partial(TwoDense, 32), mask=partial(MaskHead, 1),
  before=(20, 20), after=(20, 20), pooled=3, pooled_mask=7,
)  # fmt: skip


@pytest.fixture
def thin(monkeypatch, tmp_path):
  """Both variants with few narrow layers; what is compiled is compiled once for several runs."""
  masks = partial(NARROW, numerics=Numerics(plain=True))
  names = {"fasterrcnn_resnet50_fpn": partial(masks, mask=None), "maskrcnn_resnet50_fpn": masks}
  for name, make in names.items():
    monkeypatch.setitem(rcnn.VARIANTS, name, make)
    monkeypatch.setitem(zoo.catalog.VARIANTS, name, make)
  monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=parity.QUICK_COMPILATION))
  compiled = {
    "jax_compilation_cache_dir": str(tmp_path / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
  }
  before = {key: getattr(jax.config, key) for key in compiled}
  for key, value in compiled.items():
    jax.config.update(key, value)
  yield
  for key, value in before.items():
    jax.config.update(key, value)


@dataclasses.dataclass(frozen=True)
class Counted(Rcnn):
  """Knows how often it was traced."""

  traced: list = dataclasses.field(default_factory=list)

  def terms(self, out, batch):
    self.traced.append(batch["image"].shape)
    return super().terms(out, batch)


def configs(tmp_path, name, **fields):
  config = loop.Config(
    batch=3, model=name, size=SIZE, data=str(tmp_path / "data"), steps=STEPS, save_every=SAVED,
    eval_every=100, log_every=1, **{"workdir": str(tmp_path / "run"), **fields},
  )  # fmt: skip
  return config, optim.Config(lr=3e-3, warmup=0, head_lr=1), detect.Config(boxes=BOXES)


def counted(parts):
  """The job; it counts, and samples less, to be quick."""
  job = detect.prepare(*parts)
  return dataclasses.replace(job, task=Counted(), model=job.model.clone(anchors=64, regions=64))


def crowded(batches, start: int):
  """The third update sees no object, the fourth as many as there may be, some of them alike."""
  for step, batch in enumerate(batches, start=start + 1):
    if step == 3:
      batch["box_label"][:] = -1
    elif step == 4:
      rng = np.random.default_rng(0)
      corner = rng.integers(0, SIZE - 20, (3, BOXES, 2))
      batch["boxes"] = np.float32(np.concatenate([corner, corner + 8 + step], -1))
      batch["box_label"][:] = rng.integers(0, 2, (3, BOXES))
    yield batch


def stopped(batches, start: int):
  for step, batch in enumerate(batches, start=start + 1):
    if step == STOPPED:
      raise KeyboardInterrupt
    yield batch


def losses(workdir) -> list[float]:
  rows = detect_report._metrics(workdir)
  return [value for _, split, name, value in rows if split == "train" and name == "loss"]


def test_a_run(thin, tmp_path):
  """One compilation for 0 to 100 objects; a run that was stopped ends at the same bits."""
  coco(tmp_path / "data")
  parts = configs(tmp_path, "maskrcnn_resnet50_fpn")
  job = counted(parts)
  feed = lambda step: crowded(job.train_batches(step), step)
  outcome = loop.run(parts[0], dataclasses.replace(job, train_batches=feed))
  assert len(job.task.traced) == 2, "once to train and once to evaluate"
  fell = losses(tmp_path / "run")
  assert len(fell) == STEPS and np.isfinite(fell).all()
  assert fell[-1] < 0.7 * fell[0]
  names = {"loss", "objectness", "proposals", "kind", "place", "mask", "ap50", "mask_ap50"}
  assert names <= outcome.measured.keys()
  assert outcome.predictions["masks"].shape == (3, 100, 14, 14)
  assert 50 < outcome.predictions["masks"].max() <= 255  # of shares that training has hardly moved
  assert 0 < outcome.measured["mask"] < 2

  other = configs(tmp_path, "maskrcnn_resnet50_fpn", workdir=str(tmp_path / "other"))
  job = counted(other)
  with pytest.raises(KeyboardInterrupt):
    loop.run(other[0], dataclasses.replace(
      job, train_batches=lambda step: stopped(feed(step), step)
    ))  # fmt: skip
  seen = []
  again = lambda step: (seen.append(step), feed(step))[1]
  loop.run(other[0], dataclasses.replace(job, train_batches=again))
  assert seen == [SAVED]
  both = [store.read_variables(tmp_path / w / "model.safetensors") for w in ("run", "other")]
  jax.tree.map(np.testing.assert_array_equal, *both)

  page = detect_report.write(tmp_path / "run")
  assert "AP50 of masks" in page.read_text()
  scores = json.loads((tmp_path / "run/report_files/scores.json").read_text())
  assert scores["mask_ap50"] == pytest.approx(outcome.measured["mask_ap50"])
  paths = [tmp_path / "data/val" / f"{name}.png" for name in "abc"]
  config = find.Config(model=str(tmp_path / "run"), confidence=0.01, iou=0.45, batch=3)
  record = zoo.record(tmp_path / "run")
  source = detection.load(tmp_path / "data").splits["val"]
  told = detect.beside(
    source, outcome.index, outcome.predictions, record.preprocess, record.classes
  )[1]
  for answer, mine in zip(find.find(predict.read(paths, 2, pytest.fail), config), told):
    sure = mine.scores > 0.01
    np.testing.assert_array_equal(answer.found.labels, mine.labels[sure])
    np.testing.assert_allclose(answer.found.boxes, mine.boxes[sure], atol=0.05)


def test_without_masks(thin, tmp_path):
  """A Faster R-CNN asks for none; a Mask R-CNN says which objects have none."""
  coco(tmp_path / "data")
  file = tmp_path / "data/train/instances.json"
  info = json.loads(file.read_text())
  info["annotations"][1].pop("segmentation")
  file.write_text(json.dumps(info))
  parts = configs(tmp_path, "fasterrcnn_resnet50_fpn", workdir="run")
  batch = next(detect.prepare(*parts).train_batches(0))
  assert "masks" not in batch and batch["boxes"].shape == (3, BOXES, 4)
  with pytest.raises(ValueError, match="object 2: it has no mask; wanted polygons or run lengths"):
    detect.prepare(*configs(tmp_path, "maskrcnn_resnet50_fpn", workdir="run"))


def test_the_body_of_a_classifier(thin, tmp_path):
  """Its weights become the body's; the pyramid and the heads are fresh."""
  coco(tmp_path / "data")
  trunk = ResNet((1, 1, 1, 1), block=partial(Block, bottleneck=False), width=8)
  variables = untrained(trunk, SIZE)
  store.save(tmp_path / "trunk.safetensors", variables, zoo.Record("resnet18"))
  own = detect.Config(boxes=BOXES, backbone=str(tmp_path / "trunk.safetensors"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(zoo, "load", lambda name, **_: (trunk, variables))
    config, optimizer, _ = configs(tmp_path, "fasterrcnn_resnet50_fpn", workdir="run")
    start = detect.prepare(config, optimizer, own).weights()
    with pytest.raises(ValueError, match="is a classifier, and the network stands on none"):
      config = dataclasses.replace(config, model="yolov3_tiny")
      detect.prepare(config, optimizer, own).weights()
  np.testing.assert_array_equal(
    start["params"]["body"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"]
  )
  assert set(start["params"]) == {"body", "fpn", "rpn", "box_head", "box_predictor"}


def test_the_truth_is_scored(thin, tmp_path):
  """What the network is taught of its own boxes, in its pixels, has an AP of 1."""
  coco(tmp_path / "data")
  job = detect.prepare(*configs(tmp_path, "maskrcnn_resnet50_fpn", workdir="run"))
  [batch] = job.eval_batches("val")
  taught = jax.vmap(partial(roi.mask_targets, size=28, canvas=(SIZE, SIZE)))
  masks = np.rint(255 * taught(batch["masks"], batch["boxes"], batch["boxes"])).astype(np.uint8)
  answers = {**batch, "scores": (batch["box_label"] >= 0).astype(np.float32), "masks": masks}
  measured = job.score("val", batch["index"], answers)
  assert measured["ap50"] == measured["mask_ap75"] == pytest.approx(1)
  assert measured["mask_ap"] > 0.9
  measured = job.score("val", batch["index"], {**answers, "masks": np.zeros_like(masks)})
  assert measured["ap50"] == pytest.approx(1) and measured["mask_ap50"] == 0


def test_masks_are_scored():
  """The truth's own masks have an AP of 1, the boxes' full rectangles less."""
  size, box = (60, 80), np.float32([[10, 8, 50, 48], [20.5, 30, 70, 59]])
  yy, xx = np.mgrid[: size[0], : size[1]] + 0.5
  discs = []
  for x0, y0, x1, y1 in box:
    middle, half = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2)
    discs.append(((xx - middle[0]) / half[0]) ** 2 + ((yy - middle[1]) / half[1]) ** 2 <= 1)
  truth = tuple(average_precision.packed.encode(np.asfortranarray(d, np.uint8)) for d in discs)
  no = np.zeros(2, bool)
  objects = detection.Objects(box, np.array([0, 1]), no, no, truth)
  unit = (np.arange(28) + 0.5) / 14 - 1
  round_ = np.uint8(255 * (unit[:, None] ** 2 + unit**2 <= 1))
  measured = {}
  for name, mask in {"disc": round_, "square": np.full((28, 28), 255, np.uint8)}.items():
    masks = np.array([average_precision.pasted(mask, one, *size) for one in box])
    one = find.Found(box, np.float32([0.9, 0.8]), np.array([0, 1]), *size, CLASSES, masks)
    measured[name] = average_precision.score([objects], [one], 2).measures
  assert measured["disc"]["ap"] == pytest.approx(1) == measured["square"]["ap"]
  assert measured["disc"]["mask_ap"] > 0.85 and measured["disc"]["mask_ap75"] == pytest.approx(1)
  assert measured["square"]["mask_ap"] < 0.65  # pi / 4 of a rectangle is its disc
