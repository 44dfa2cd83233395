"""The page of a run of train.label or train.bags: scores of each output, and pictures."""

from collections.abc import Mapping, Sequence
import csv
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from train import figures, page
from train.data import listing, transforms
from train.page import Number
from train.report import versions
import zoo
from zoo.detect.found import place
from zoo.ops import boxes

SHOWN = 6  # rows of each kind
WORDS = {
  "map": "mean average precision", "auroc": "mean area under the ROC curve",
  "f1": "mean F1 at the thresholds", "f1_micro": "F1 of all labels together",
  "mae": "mean absolute error", "r2": "mean R²", "top1": "get the right class",
  "mean_per_class": "mean of the classes' accuracies", "log_loss": "cross-entropy",
  "iou": "mean overlap (IoU) of the boxes", "box": "of the boxes overlap by half or more",
  "found": "have the right class and such a box",
}  # fmt: skip
RIGHT, ANSWER = (59, 138, 90), (217, 128, 50)  # colours of boxes


def write(workdir: Path, data: listing.Listed) -> Path:
  """Writes report.html into the folder of a finished run on `data`; returns its path."""
  info = json.loads((workdir / "run.json").read_text())
  with np.load(workdir / "predictions.npz", allow_pickle=False) as arrays:
    answers = dict(arrays)
  rows = data.splits[str(answers["split"])]
  place_of = {key: i for i, key in enumerate(rows.keys)}
  index = [place_of[key] for key in answers["keys"].tolist()]
  with open(workdir / "metrics.csv", newline="") as file:
    curves = [(int(r["step"]), r["split"], r["name"], float(r["value"]))
              for r in csv.DictReader(file)]  # fmt: skip
  scores = info["scores"]
  title = f"{info['model']} on {Path(info['data']).name}"
  figure = page.figure(page.data_uri(figures.curve({workdir.name: curves}, "loss")), alt="loss")
  record = zoo.record(workdir)
  sheet = Sheet(info["outputs"]["task"], data.classes, record, rows.some(index), answers)
  worst = sheet.order[:SHOWN]
  best = [row for row in reversed(sheet.order) if row not in worst][:SHOWN]
  body = [
    f"<h1>{page.escape(title)}</h1>",
    page.paragraph(_origin(info, len(index), str(answers["split"])), soft=True),
    page.headline(_headline(scores)),
    page.section("Each output", _table(scores["each"])),
    page.section("How it learned", page.figures([figure])),
    page.section(
      "Pictures", page.paragraph(sheet.words, soft=True),
      "<h3>The worst</h3>", page.cards(map(sheet.card, worst)),
      "<h3>The best</h3>", page.cards(map(sheet.card, best)),
    ),
    page.section(
      "How it was made", page.code(info["command"]),
      page.paragraph(", ".join(versions()), soft=True),
    ),
  ]  # fmt: skip
  out = workdir / "report.html"
  page.write(out, page.page(title, body))
  return out


def _origin(info: Mapping, count: int, split: str) -> str:
  start = info["weights"]
  weights = f"from the weights {start}" if start else "from random weights"
  note = "; the thresholds were chosen on the same pictures" if split == "val" else ""
  labels = note if info["outputs"].get("thresholds") else ""
  what = "bags" if "instances" in info["outputs"] else "pictures"
  return (
    f"{info['model']}, trained {weights}, at {info['size']} pixels; measured on {count} {what} of "
    f"{split}{labels}."
  )


def _headline(scores: Mapping) -> list[tuple[str, str]]:
  parts = []
  for name, value in scores["mean"].items():
    usual = scores["baseline"].get(name)
    beside = "" if usual is None else f"; {usual:.3f} without looking at a picture"
    parts.append((_show(value), WORDS[name] + beside))
  return parts


def _show(value: float | int | None) -> Number:
  if value is None or isinstance(value, float) and math.isnan(value):
    return Number("–")
  return Number(value if isinstance(value, int) else f"{value:.3f}")


def _table(each: Mapping[str, Mapping]) -> str:
  header = list(dict.fromkeys(name for scores in each.values() for name in scores))
  rows = [[name, *(_show(own.get(k)) for k in header)] for name, own in each.items()]
  return page.table(["", *header], rows, tall=len(rows) > 25)


class Sheet:
  """Cards of rows, and their order from the worst to the best."""

  def __init__(self, task, names: Sequence[str], record: zoo.Record, rows, answers):
    self._task, self._names, self._record = task, names, record
    self._rows, self._answers, self._targets = rows, answers, rows.targets
    self.order = np.argsort(-self._wrong(), kind="stable").tolist()
    self.words = {
      "multilabel": "By the mean cross-entropy of the labels that are annotated.",
      "regress": "By the mean error in standard deviations.",
      "classify": "By the probability of the right class.",
      "localize": "By the overlap of the boxes: green is right, orange the answer.",
    }[task]
    if "bag_real" in answers or "attention" in answers:
      self.words += " Below each picture of a bag stands its share in the answer."

  def _wrong(self) -> np.ndarray:
    """[n] larger for the worse."""
    targets, answers = self._targets, self._answers
    if self._task == "multilabel":
      labels, probs = targets["labels"], answers["probs"].clip(1e-6, 1 - 1e-6)
      loss = -np.where(labels == 1, np.log(probs), np.log1p(-probs)) * (labels >= 0)
      return loss.sum(1) / np.maximum((labels >= 0).sum(1), 1)
    if self._task == "regress":
      off = np.abs(answers["value"] - targets["value"]) / np.array(self._record.outputs["std"])
      return np.nan_to_num(off).mean(1)
    if self._task == "classify":
      return -np.take_along_axis(answers["probs"], targets["label"][:, None], 1)[:, 0]
    shares = listing.shares(targets)["box"]
    return -np.asarray(boxes.iou(answers["box"] / self._record.preprocess.size, shares))

  def card(self, row: int) -> str:
    pictures = self._pictures(row)
    views = [
      page.figure(page.data_uri(figures.png(pixels)), alt=self._rows.keys[row], caption=caption)
      for caption, pixels in pictures
    ]
    title, bars = self._answer(row)
    return page.card(views, title, [self._rows.keys[row]], bars)

  def _pictures(self, row: int) -> list[tuple[str, np.ndarray]]:
    paths, preprocess = self._rows.paths[row], self._record.preprocess
    if "attention" in self._answers:
      attention = self._answers["attention"][row]
      chosen = [paths[i] for i in listing.spread(len(paths), len(attention))]
      return [(page.percent(a), view(p, preprocess)) for p, a in zip(chosen, attention)]
    image = view(paths[0], preprocess)
    if self._task == "localize":
      image = self._with_boxes(row, image)
    return [("", image)]

  def _with_boxes(self, row: int, image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    draw, box = ImageDraw.Draw(picture), self._targets["box"][row]
    if box.any():
      where = place(self._record.preprocess, *self._targets["size"][row].tolist())
      draw.rectangle(where.into(box).tolist(), outline=RIGHT, width=2)
    draw.rectangle(self._answers["box"][row].tolist(), outline=ANSWER, width=2)
    return np.asarray(picture)

  def _answer(self, row: int) -> tuple[str, str]:
    """(title, bars) of a card."""
    names, answers, targets = self._names, self._answers, self._targets
    if self._task == "regress":
      value, right = answers["value"][row], targets["value"][row]
      pairs = [f"{n} {a:.4g} (is {b:.4g})" for n, a, b in zip(names, value, right)]
      return ", ".join(pairs), ""
    probs = answers["probs"][row]
    top = np.argsort(-probs, kind="stable")[:5]
    if self._task == "multilabel":
      labels = targets["labels"][row]
      title = ", ".join(n for n, yes in zip(names, labels) if yes == 1) or "none of the labels"
      top = dict.fromkeys([*top.tolist(), *np.flatnonzero(labels == 1).tolist()])
      kind = {1: "right", 0: "wrong", -1: "other"}
      return title, page.bars((names[c], float(probs[c]), kind[int(labels[c])]) for c in top)
    label = int(targets["label"][row])
    top = dict.fromkeys([*top.tolist(), label])
    bars = page.bars((names[c], float(probs[c]), "right" if c == label else "other") for c in top)
    return names[label], bars


def view(path: Path, preprocess: zoo.Preprocess) -> np.ndarray:
  return preprocess.crop(Image.fromarray(transforms.decode(path.read_bytes())))
