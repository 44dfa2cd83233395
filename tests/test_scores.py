"""Scores: those of scikit-learn on the same answers, thresholds that are the best, baselines."""

import numpy as np
import pytest

from train import scores

metrics = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(0)


def test_many_labels():
  labels = RNG.integers(-1, 2, (200, 3)).astype(np.int8)
  labels[:, 2] = np.where(labels[:, 2] == 1, 0, labels[:, 2])  # the last never occurs
  probs = RNG.random((200, 3)).astype(np.float32)
  found = scores.measure(
    "multilabel", "abc", {"labels": labels}, {"probs": probs}, {"labels": labels}, [0.3, 0.6, 0.5]
  )
  for k, name in enumerate("ab"):
    known = labels[:, k] >= 0
    own, prob = labels[known, k], probs[known, k]
    assert found["each"][name]["auroc"] == metrics.roc_auc_score(own, prob)
    assert found["each"][name]["ap"] == metrics.average_precision_score(own, prob)
    assert found["each"][name]["f1"] == metrics.f1_score(own, prob >= (0.3, 0.6)[k])
  assert np.isnan(found["each"]["c"]["auroc"]) and np.isnan(found["each"]["c"]["ap"])
  assert found["mean"]["map"] == np.mean([found["each"][n]["ap"] for n in "ab"])
  share = [(labels[:, k] == 1).sum() / (labels[:, k] >= 0).sum() for k in range(2)]
  assert found["baseline"]["map"] == pytest.approx(np.mean(share))
  assert scores.plain(found)["each"]["c"]["auroc"] is None
  assert "map 0." in scores.show(found) and "(baseline 0." in scores.show(found)


def test_thresholds_are_the_best():
  labels = (RNG.random((150, 2)) < 0.3).astype(np.int8)
  labels[:9, 0] = -1
  probs = (0.5 * labels + RNG.random((150, 2))).clip(0, 1.5) / 1.5
  found = scores.best_thresholds(labels, probs)
  for own, prob, threshold in zip(labels.T, probs.T, found):
    own, prob = own[own >= 0], prob[own >= 0]
    best = max(metrics.f1_score(own, prob >= t) for t in np.unique(prob))
    assert metrics.f1_score(own, prob >= threshold) == pytest.approx(best)
  assert scores.best_thresholds(np.zeros((5, 1), np.int8), np.ones((5, 1))) == [0.5]


def test_numbers():
  right = RNG.normal(size=(50, 2))
  answer = right + RNG.normal(0, 0.3, right.shape)
  right[::4, 1] = np.nan
  train = {"value": np.array([[0.0, 1], [np.nan, 3], [4, 2]])}
  found = scores.measure("regress", ["a", "b"], {"value": right}, {"value": answer}, train)
  known = ~np.isnan(right[:, 1])
  own = found["each"]["b"]
  assert own["mae"] == metrics.mean_absolute_error(right[known, 1], answer[known, 1])
  assert own["r2"] == metrics.r2_score(right[known, 1], answer[known, 1])
  assert own["known"] == known.sum()
  assert own["mae_baseline"] == pytest.approx(np.abs(right[known, 1] - 2).mean())
  assert found["mean"]["mae"] == pytest.approx(
    np.mean([found["each"][n]["mae"] for n in ("a", "b")])
  )


def test_places():
  box = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]], np.float32)
  answers = {
    "box": np.array([[0, 0, 0.5, 0.4], [0, 0, 0.5, 0.5], [0, 0, 1, 1]], np.float32),
    "probs": np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]),
  }
  label = np.array([0, 1, 1])
  targets = {"label": label, "box": box}
  found = scores.measure("localize", ["a", "b"], targets, answers, targets)
  assert found["mean"]["top1"] == metrics.accuracy_score(label, [0, 0, 1])
  assert found["mean"]["log_loss"] == metrics.log_loss(label, answers["probs"])
  assert found["mean"]["iou"] == pytest.approx(0.4) and found["mean"]["found"] == 0.5
  # The median of the two boxes is the middle, which shares a seventh with each.
  assert found["baseline"]["iou"] == pytest.approx(1 / 7)
  assert found["baseline"]["top1"] == pytest.approx(2 / 3)


def test_one_class():
  label, probs = RNG.integers(0, 3, 60), RNG.dirichlet(np.ones(3), 60)
  found = scores.measure("classify", "abc", {"label": label}, {"probs": probs}, {"label": label})
  assert found["mean"]["mean_per_class"] == pytest.approx(
    metrics.balanced_accuracy_score(label, probs.argmax(1))
  )
