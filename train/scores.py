"""How good answers are, by scikit-learn, on the host: for tasks that ask more than one class.

`measure` returns {"mean": {name: value}, "each": {output: {name: value}}, "baseline": {name:
value}} of a whole split; the baseline knows the training set's answers and no picture.
"""

from collections.abc import Callable, Mapping, Sequence
import math

import numpy as np
from sklearn import metrics

from zoo.ops import boxes

Scores = dict[str, dict]


def measure(
  task: str,
  names: Sequence[str],
  targets: Mapping[str, np.ndarray],
  answers: Mapping[str, np.ndarray],
  train: Mapping[str, np.ndarray],
  thresholds: Sequence[float] = (),
) -> Scores:
  """Scores of one of TASKS.

  Args:
    names: of the outputs: labels, numbers or classes.
    targets: what was right, as `train.data.listing` has it; boxes in the same pixels as `answers`.
    answers: what the task predicts.
    train: the training set's targets, for the baseline.
    thresholds: of each label; a half if not given.
  """
  return TASKS[task](names, targets, answers, train, thresholds)


def _multilabel(names, targets, answers, train, thresholds) -> Scores:
  labels, probs = targets["labels"], answers["probs"]
  thresholds = np.array(thresholds or [0.5] * len(names))
  each = {}
  for name, own, prob, threshold in zip(names, labels.T, probs.T, thresholds):
    known = own >= 0
    own, prob = own[known], prob[known]
    both = 0 < own.sum() < len(own)
    each[name] = {
      "auroc": float(metrics.roc_auc_score(own, prob)) if both else math.nan,
      "ap": float(metrics.average_precision_score(own, prob)) if own.any() else math.nan,
      "f1": float(metrics.f1_score(own, prob >= threshold, zero_division=np.nan)),
      "threshold": float(threshold), "yes": int(own.sum()), "known": int(known.sum()),
    }  # fmt: skip
  known = labels >= 0
  micro = metrics.f1_score(labels[known], (probs >= thresholds)[known], zero_division=np.nan)
  mean = {"map": _mean(each, "ap"), "auroc": _mean(each, "auroc"), "f1": _mean(each, "f1"),
          "f1_micro": float(micro)}  # fmt: skip
  # Who says the same of every picture has each label's frequency as its precision.
  found = [own[own >= 0].mean() for own in labels.T if (own == 1).any()]
  often = np.array([_share(own) for own in train["labels"].T]) >= 0.5
  constant = metrics.f1_score(
    labels[known], np.broadcast_to(often, labels.shape)[known], zero_division=0.0
  )
  baseline = {"map": float(np.mean(found)) if found else math.nan, "auroc": 0.5,
              "f1_micro": float(constant)}  # fmt: skip
  return {"mean": mean, "each": each, "baseline": baseline}


def _share(labels: np.ndarray) -> float:
  known = labels[labels >= 0]
  return float((known == 1).mean()) if len(known) else 0.0


def _mean(each: Mapping[str, Mapping[str, float]], name: str) -> float:
  """Over outputs that have the score."""
  values = [scores[name] for scores in each.values() if not math.isnan(scores[name])]
  return float(np.mean(values)) if values else math.nan


def _regress(names, targets, answers, train, _) -> Scores:
  each, usual = {}, {}
  for k, name in enumerate(names):
    known = ~np.isnan(targets["value"][:, k])
    if not known.any():
      continue
    right, answer = targets["value"][known, k], answers["value"][known, k]
    each[name] = {
      "mae": float(metrics.mean_absolute_error(right, answer)),
      "rmse": float(metrics.root_mean_squared_error(right, answer)),
      "r2": float(metrics.r2_score(right, answer)) if len(right) > 1 else math.nan,
      "known": int(known.sum()),
    }
    middle = np.full(len(right), np.nanmedian(train["value"][:, k]))  # has the least error
    each[name]["mae_baseline"] = usual[name] = float(metrics.mean_absolute_error(right, middle))
  mean = {name: _mean(each, name) for name in ("mae", "r2")}
  return {"mean": mean, "each": each, "baseline": {"mae": float(np.mean(list(usual.values())))}}


def _classify(names, targets, answers, train, _) -> Scores:
  label, probs = targets["label"], answers["probs"]
  answer = probs.argmax(1)
  each = {
    name: {"right": float((answer[label == c] == c).mean()), "images": int((label == c).sum())}
    for c, name in enumerate(names)
    if (label == c).any()
  }
  mean = {
    "top1": float(metrics.accuracy_score(label, answer)),
    "mean_per_class": _mean(each, "right"),
    "log_loss": float(metrics.log_loss(label, probs, labels=np.arange(len(names)))),
  }
  common = np.bincount(train["label"], minlength=len(names)).argmax()
  return {"mean": mean, "each": each, "baseline": {"top1": float((label == common).mean())}}


def _localize(names, targets, answers, train, _) -> Scores:
  scores = _classify(names, targets, answers, train, ())
  label, answer = targets["label"], answers["probs"].argmax(1)
  real = (targets["box"][:, 2:] > targets["box"][:, :2]).all(1)
  overlap = np.asarray(boxes.iou(answers["box"], targets["box"]))
  found = (overlap >= 0.5) & (answer == label)
  for c, name in enumerate(names):
    of = real & (label == c)
    if of.any():
      scores["each"][name] |= {"iou": float(overlap[of].mean()), "found": float(found[of].mean())}
  scores["mean"] |= {
    "iou": float(overlap[real].mean()) if real.any() else math.nan,
    "box": float((overlap[real] >= 0.5).mean()) if real.any() else math.nan,
    "found": float(found[real].mean()) if real.any() else math.nan,
  }
  known = (train["box"][:, 2:] > train["box"][:, :2]).all(1)
  if known.any() and real.any():
    middle = np.median(train["box"][known], 0)
    usual = np.asarray(boxes.iou(middle[None], targets["box"]))[real]
    scores["baseline"] |= {"iou": float(usual.mean()), "box": float((usual >= 0.5).mean())}
  return scores


TASKS: dict[str, Callable[..., Scores]] = {
  "multilabel": _multilabel, "regress": _regress, "classify": _classify, "localize": _localize,
}  # fmt: skip


def best_thresholds(labels: np.ndarray, probs: np.ndarray) -> list[float]:
  """Of each label [n c] the probability from which "yes" has the best F1.

  A half where a label never occurs; else in the middle between two answers, so that it does not
  hang on one of them.
  """
  found = []
  for own, prob in zip(labels.T, probs.T):
    own, prob = own[own >= 0], prob[own >= 0]
    if not (own == 1).any():
      found.append(0.5)
      continue
    precision, recall, places = metrics.precision_recall_curve(own, prob)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    below = places[best - 1] if best else 0.0
    found.append(float((places[best] + below) / 2))
  return found


def plain(scores):
  """For JSON, which knows no NaN."""
  if isinstance(scores, dict):
    return {name: plain(value) for name, value in scores.items()}
  return None if isinstance(scores, float) and math.isnan(scores) else scores


def show(scores: Scores) -> str:
  """The means, each beside its baseline, in a line."""
  parts = []
  for name, value in scores["mean"].items():
    usual = scores["baseline"].get(name)
    parts.append(f"{name} {value:.3f}" + ("" if usual is None else f" (baseline {usual:.3f})"))
  return ", ".join(parts)
