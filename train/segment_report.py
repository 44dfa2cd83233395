"""What a segmenter learned, as one HTML page: python -m train.segment_report WORKDIR

Everything is counted again from predictions.npz: pixels of a class (row) that got an answer
(column).
"""

from collections.abc import Sequence
import csv
import dataclasses
from pathlib import Path

import numpy as np

from train import figures, options, outline, page, report
from train.data import masks
from train.options import option
from train.page import Number, percent

SHOWN = 6  # photographs of each kind


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of counts [truth, answer] of pixels."""

  counts: np.ndarray

  @property
  def iou(self) -> np.ndarray:
    """[c] intersection over union of each class; NaN where neither truth nor answer has it."""
    both = np.diag(self.counts).astype(float)
    either = self.counts.sum(0) + self.counts.sum(1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)

  @property
  def mean_iou(self) -> float:
    return float(np.nanmean(self.iou))

  @property
  def pixels(self) -> float:
    return float(np.trace(self.counts) / max(self.counts.sum(), 1))


def counted(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
  """[c c] int64 of pixels of any shape; truth of 255 is left out."""
  real = truth != masks.IGNORED
  index = truth[real].astype(np.int64) * classes + answer[real]
  return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def write(workdir: Path, out: Path | None = None) -> Path:
  """Writes report.html of a finished run; returns where.

  Raises:
    FileNotFoundError, ValueError: what the folder lacks.
  """
  info = report.read_run(workdir)
  path = workdir / "predictions.npz"
  if not path.exists():
    raise FileNotFoundError(f"{workdir} has no predictions.npz; a finished run leaves one")
  with np.load(path, allow_pickle=False) as arrays:
    keys, truth, answer = (arrays[name] for name in ("keys", "labels", "mask"))
    split = str(arrays["split"])
  classes = info["classes"]
  each = [counted(t, a, len(classes)) for t, a in zip(truth, answer)]
  scores = Scores(np.sum(each, axis=0))
  nothing = Scores(np.sum([counted(t, 0 * t, len(classes)) for t in truth], axis=0))
  order = np.argsort([Scores(c).mean_iou for c in each], kind="stable")
  with open(workdir / "metrics.csv", newline="") as file:
    rows = [
      (int(r["step"]), r["split"], r["name"], float(r["value"])) for r in csv.DictReader(file)
    ]
  curves = {workdir.name: _with_mean(rows)}
  title = f"{info['model']} on {Path(info['data']).name}"
  chosen = {"The worst": order[:SHOWN], "The best": order[::-1][:SHOWN]}
  body = [
    f"<h1>{page.escape(title)}</h1>",
    page.paragraph(f"{len(keys)} {split} photographs, at {info['size']} pixels.", soft=True),
    page.headline([
      (percent(scores.mean_iou), "mean intersection over union of the classes"),
      (percent(scores.pixels), "of the pixels are right"),
      (percent(nothing.mean_iou), "mean IoU of answering the background everywhere"),
    ]),
    page.section("How it learned", page.figures(
      page.figure(page.data_uri(figures.curve(curves, name, share=share)), alt=name)
      for name, share in (("loss", False), ("mean IoU", True), ("pixel", True))
    )),
    _photographs(info, split, keys, truth, answer, chosen, each),
    _classes(classes, scores),
    page.section("Which classes are taken for which", page.paragraph(
      "One row for each true class; percent of its pixels.", soft=True
    ), page.figure(page.data_uri(_confusion(scores.counts, classes)), alt="confusion matrix")),
    page.section("How it was made", page.code(info["command"]), page.paragraph(
      ", ".join(report.versions()), soft=True
    )),
  ]  # fmt: skip
  out = out or workdir / "report.html"
  page.write(out, page.page(title, body))
  return out


def _with_mean(rows):
  """The rows, and the mean of the classes' IoU at each step where they were measured."""
  found: dict[tuple[int, str], list[float]] = {}
  for step, split, name, value in rows:
    if name.startswith("iou/") and not np.isnan(value):
      found.setdefault((step, split), []).append(value)
  return rows + [
    (step, split, "mean IoU", float(np.mean(some))) for (step, split), some in found.items()
  ]


def _photographs(info, split, keys, truth, answer, chosen, each) -> str:
  classes, size, body = info["classes"], info["size"], []
  try:
    source = masks.load(info["data"], info["config"].get("layout", ""))[1][split]
    place = {key: i for i, key in enumerate(source.keys)}
    pictures = {
      row: masks.resized(source.picture(place[keys[row]]), None, size)[0]
      for rows in chosen.values() for row in rows
    }  # fmt: skip
  except (OSError, ValueError, KeyError) as error:
    return page.section("Photographs", page.paragraph(f"The photographs cannot be shown: {error}"))
  for title, rows in chosen.items():
    cards = []
    for row in rows:
      picture = pictures[row]
      height, width = picture.shape[:2]
      views = {
        "photograph": picture,
        "truth": outline.painted(picture, truth[row, :height, :width].astype(np.uint8)),
        "answer": outline.painted(picture, answer[row, :height, :width]),
      }
      shown = [
        page.figure(page.data_uri(figures.png(view)), alt=f"{name}: {keys[row]}", caption=name)
        for name, view in views.items()
      ]
      scores = Scores(each[row])
      found = [
        (classes[k], float(scores.iou[k]), "") for k in np.flatnonzero(~np.isnan(scores.iou))
      ]
      cards.append(page.card(
        shown, f"mean IoU {percent(scores.mean_iou)}", [str(keys[row])], page.bars(found)
      ))  # fmt: skip
    body += [f"<h3>{title}</h3>", page.cards(cards, large=True)]
  return page.section("Photographs", *body)


def _classes(classes: Sequence[str], scores: Scores) -> str:
  iou, truth, answered = scores.iou, scores.counts.sum(1), scores.counts.sum(0)
  right = np.diag(scores.counts)
  rows = [
    [
      outline.swatch(k), classes[k], Number(percent(iou[k])), page.bar(iou[k]),
      Number(percent(right[k] / truth[k]) if truth[k] else "–"),
      Number(percent(right[k] / answered[k]) if answered[k] else "–"),
      Number(percent(truth[k] / scores.counts.sum())),
    ]
    for k in np.argsort(np.nan_to_num(iou, nan=2.0)) if not np.isnan(iou[k])
  ]  # fmt: skip
  header = ["", "class", "IoU", "", "of its pixels found", "of the answers right", "share of all"]
  missing = [classes[k] for k in np.flatnonzero(np.isnan(iou))]
  notes = [page.paragraph(f"Without pixels: {', '.join(missing)}")] if missing else []
  return page.section("Each class", page.table(header, rows), *notes)


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> bytes:
  share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
  return figures.confusion(np.rint(share).astype(int), classes)


@dataclasses.dataclass(frozen=True)
class Config:
  out: str = option("", "The page; report.html in the folder if not given.")


def main(argv: Sequence[str], config: Config) -> None:
  if len(argv) != 2:
    raise ValueError("name the folder of one run: python -m train.segment_report WORKDIR")
  print(write(Path(argv[1]), Path(config.out) if config.out else None).resolve())


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
