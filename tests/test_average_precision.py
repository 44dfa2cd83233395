"""Average precision by hand, and pycocotools' beside our own."""

import numpy as np
import pytest

from train import average_precision as ap
from train.data.detection import Objects
from zoo.detect.found import Found

CLASSES = ("a", "b", "c")


def marks(rows, difficult=()):
  rows = np.array(rows, np.float32).reshape(-1, 5)
  n = len(rows)
  hard = np.isin(np.arange(n), difficult)
  return Objects(rows[:, 1:], rows[:, 0].astype(np.int32), np.zeros(n, bool), hard)


def answers(rows):
  """Rows of label, score, box."""
  rows = np.array(rows, np.float32).reshape(-1, 6)
  return Found(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int32), 100, 100, CLASSES)


def test_by_hand():
  """Two objects; the surest is right, then one wrong, one twice, and the other."""
  objects = [marks([(0, 0, 0, 10, 10), (0, 20, 20, 40, 40)])]
  found = [answers([
    (0, 0.9, 0, 0, 10, 10), (0, 0.8, 60, 60, 70, 70), (0, 0.7, 0, 0, 10, 9),
    (0, 0.6, 20, 20, 40, 39),
  ])]  # fmt: skip
  curve = ap.curve(objects, found, 0)
  np.testing.assert_allclose(curve.recall, [0.5, 0.5, 0.5, 1])
  np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 1 / 2])
  assert curve.area == pytest.approx(0.5 + 0.5 * 0.5)
  assert curve.eleven == pytest.approx((6 * 1 + 5 * 0.5) / 11)
  measures, each = ap.coco(objects, found, 3)
  # of 101 recalls, 51 up to .5 have the precision 1 and 50 have .5
  assert measures["ap50"] == pytest.approx((51 + 25) / 101) == each[0, 1]
  assert np.isnan(each[1:]).all(), "classes without an object"


def test_difficult_objects_do_not_count():
  objects = [marks([(0, 0, 0, 10, 10), (0, 20, 20, 40, 40)], difficult=(1,))]
  found = [answers([(0, 0.9, 20, 20, 40, 40), (0, 0.8, 0, 0, 10, 10)])]
  scores = ap.score(objects, found, 3)
  assert scores.curves[0].objects == 1
  assert [scores.measures[k] for k in ("ap", "voc", "voc07")] == pytest.approx([1, 1, 1])
  missed = ap.score(objects, [answers([])], 3).measures
  assert [missed[k] for k in ("ap", "voc")] == [0, 0]
  assert np.isnan(ap.score([marks([])], [answers([])], 3).measures["ap"])


def test_ours_beside_pycocotools():
  """AP50: theirs samples the curve at 101 places, ours is its area."""
  rng = np.random.default_rng(0)
  objects, found = [], []
  for _ in range(40):
    boxes = rng.uniform(0, 60, (rng.integers(0, 6), 4))
    boxes[:, 2:] = boxes[:, :2] + rng.uniform(5, 40, (len(boxes), 2))
    labels = rng.integers(0, 3, len(boxes))
    objects.append(marks(np.concatenate([labels[:, None], boxes], 1)))
    shaken = np.repeat(boxes, 2, 0) + rng.normal(0, 2.5, (2 * len(boxes), 4))
    shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)
    kinds = np.where(rng.random(len(shaken)) < 0.8, np.repeat(labels, 2), 1)
    rows = np.concatenate([kinds[:, None], rng.random((len(shaken), 1)), shaken], 1)
    found.append(answers(rows))
  scores = ap.score(objects, found, 3)
  assert 0.1 < scores.measures["ap"] < scores.measures["ap50"] < 0.95
  np.testing.assert_allclose([c.area for c in scores.curves], scores.each[:, 1], atol=0.02)
  assert scores.measures["voc"] == pytest.approx(np.mean([c.area for c in scores.curves]))
  counts = ap.confusion(objects, found, 3)
  assert counts[:3].sum() == sum(len(o.labels) for o in objects)
  assert counts.trace() > counts[:3, :3].sum() / 2


def test_who_was_taken_for_whom():
  objects = [marks([(0, 0, 0, 10, 10), (1, 50, 50, 60, 60)])]
  found = [answers([(2, 0.9, 0, 0, 10, 10), (1, 0.2, 50, 50, 60, 60), (1, 0.8, 80, 80, 90, 90)])]
  counts = ap.confusion(objects, found, 3)
  want = np.zeros((4, 4), int)
  want[0, 2] = want[1, 3] = want[3, 1] = 1
  np.testing.assert_array_equal(counts, want)
