"""What a detector learned, as one HTML page: python -m train.detect_report WORKDIR

Everything is scored again from predictions.npz and the annotations of the data.
"""

from collections import Counter
from collections.abc import Sequence
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np

from train import average_precision, detect, figures, options, page, report
from train.average_precision import Scores
from train.data import detection
from train.data.detection import BoxSource, Objects
from train.options import option
from train.page import Number, percent
import zoo
from zoo.detect.found import Found

SHOWN = 8  # pictures
MASKS = {"mask_ap50": "AP50", "mask_ap": "AP"}
FOUND, MISSED, EXTRA = "#3b8a5a", "#b9493c", "#d98032"


@dataclasses.dataclass(frozen=True)
class Run:
  """A training folder, read."""

  info: dict  # run.json
  split: str
  source: BoxSource
  rows: np.ndarray  # [n] of the source
  objects: Sequence[Objects]
  found: Sequence[Found]
  classes: tuple[str, ...]


def read(workdir: Path) -> Run:
  """Raises FileNotFoundError or ValueError: what the folder lacks, or that its data has changed."""
  info = report.read_run(workdir)
  if info["task"] != "detect":
    raise ValueError(f"{workdir} is a run of train.{info['task']}; its report is another")
  path = Path(workdir) / "predictions.npz"
  if not path.exists():
    raise FileNotFoundError(f"{workdir} has no predictions.npz; a finished run leaves one")
  with np.load(path, allow_pickle=False) as arrays:
    saved = dict(arrays)
  config, split = info["config"], str(saved["split"])
  data = detection.load(
    info["data"], format=config["format"], seed=config["seed"], masks="masks" in saved
  )
  place = {key: i for i, key in enumerate(data.splits[split].keys)}
  if gone := [key for key in saved["keys"].tolist() if key not in place]:
    raise ValueError(f"{info['data']} has changed since; it has no {', '.join(gone[:5])}")
  rows = np.array([place[key] for key in saved["keys"].tolist()])
  pixels, classes = zoo.Preprocess(**_tuples(info["preprocess"])), tuple(info["classes"])
  both = detect.beside(data.splits[split], rows, saved, pixels, classes)
  return Run(info, split, data.splits[split], rows, *both, classes)


def _tuples(fields: dict) -> dict:
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def write(workdir: Path, out: Path | None = None) -> Path:
  """Writes report.html of a finished run; returns where. Raises as `read`."""
  workdir = Path(workdir)
  run, out = read(workdir), out or workdir / "report.html"
  scores = average_precision.score(run.objects, run.found, len(run.classes))
  counts = average_precision.confusion(run.objects, run.found, len(run.classes))
  curves = {
    name: (curve.recall, curve.precision)
    for name, curve in zip(run.classes, scores.curves) if curve.objects
  }  # fmt: skip
  metrics = {workdir.resolve().name: _metrics(workdir)}
  pictures = {
    "precision_recall.png": figures.precision_recall(curves),
    "loss.png": figures.curve(metrics, "loss"),
    "ap50.png": figures.curve(metrics, "ap50", share=True),
    "confusion.png": figures.confusion(counts, [*run.classes, "nothing"]),
  }
  cards, misses = _misses(run)
  pictures |= misses
  title = f"{run.info['model']} on {Path(run.info['data']).name}"
  start = run.info["config"]["backbone"] or run.info["weights"]
  start = f"the weights {start}" if start else "random weights"
  show = lambda name, alt: page.figure(page.data_uri(pictures[name]), alt=alt)
  body = [
    f"<h1>{page.escape(title)}</h1>",
    page.paragraph(f"trained from {start}, at {run.info['size']} pixels.", soft=True),
    _headline(run, scores),
    page.section("How it learned", page.figures(
      f"<div><h3>{words}</h3>{show(name, words)}</div>"
      for name, words in (("loss.png", "Loss"), ("ap50.png", "AP50")))),
    page.section("Precision and recall", page.paragraph(
      "From the surest detection on, at an IoU of at least 0.5.", soft=True,
    ), show("precision_recall.png", "precision over recall")),
    page.section("Each class", _classes(run, scores)),
    page.section("What was taken for what", page.paragraph(
      f"Detections surer than {average_precision.SHOWN}. The last row has those where nothing is, "
      "the last column the objects that were not found.", soft=True,
    ), show("confusion.png", "confusion matrix")),
    page.section("The worst pictures", page.paragraph(
      "Green: found. Red: missed, or taken for another class. Orange: found where it is not.",
      soft=True,
    ), page.cards(cards, large=True) if cards else page.paragraph("None: all was found.")),
    page.section("How it was made", page.code(run.info["command"]), page.paragraph(
      ", ".join(report.versions()), soft=True)),
  ]  # fmt: skip
  folder = out.with_name(f"{out.stem}_files")
  for name, png in pictures.items():
    page.write(folder / name, png)
  page.write(folder / "scores.json", json.dumps(_table(run, scores), indent=2) + "\n")
  page.write(out, page.page(title, body))
  return out


def _metrics(workdir: Path) -> list[tuple[int, str, str, float]]:
  with open(workdir / "metrics.csv", newline="") as file:
    table = csv.DictReader(file)
    return [(int(r["step"]), r["split"], r["name"], float(r["value"])) for r in table]


def _headline(run: Run, scores: Scores) -> str:
  n, m = len(run.objects), scores.measures
  count = sum(int(o.plain.sum()) for o in run.objects)
  split = {"val": "validation"}.get(run.split, run.split)
  return page.headline([
    (percent(m["ap50"]), f"AP50 of {count} objects in {n} {split} pictures, by COCO's rules"),
    (percent(m["ap"]), "AP, the mean over IoUs of .50 to .95"),
    (percent(m["ap75"]), "AP75"),
    (percent(m["voc07"]), "mAP by VOC 2007's eleven points"),
    (percent(m["voc"]), "mAP by VOC's area"),
    *((percent(m[k]), f"{words} of masks") for k, words in MASKS.items() if k in m),
  ])  # fmt: skip


def _table(run: Run, scores: Scores) -> dict:
  rows = zip(run.classes, scores.each.tolist(), scores.curves)
  number = lambda x: None if np.isnan(x) else x
  return {
    "split": run.split, **{k: number(v) for k, v in scores.measures.items()},
    "classes": {
      name: {"ap": number(ap), "ap50": number(ap50), "voc": number(curve.area),
             "voc07": number(curve.eleven), "objects": curve.objects}
      for name, (ap, ap50), curve in rows
    },
  }  # fmt: skip


def _classes(run: Run, scores: Scores) -> str:
  rows = []
  order = np.argsort(np.nan_to_num(scores.each[:, 1], nan=2))
  for c in order:
    ap, ap50 = scores.each[c]
    if scores.curves[c].objects:
      rows.append([
        run.classes[c], Number(percent(ap50)), page.bar(ap50), Number(percent(ap)),
        Number(percent(scores.curves[c].eleven)), Number(scores.curves[c].objects),
      ])  # fmt: skip
  header = ["class", "AP50", "", "AP", "VOC 07", "objects"]
  without = [run.classes[c] for c in order if not scores.curves[c].objects]
  note = [page.paragraph(f"Without an object: {', '.join(without)}.", soft=True)] if without else []
  return page.table(header, rows, tall=len(rows) > 30) + "".join(note)


def _misses(run: Run) -> tuple[list[str], dict[str, bytes]]:
  """(cards, pictures) of those where most was missed or made up."""
  drawn = [faults(o, f) for o, f in zip(run.objects, run.found)]
  order = sorted(range(len(drawn)), key=lambda i: -len(drawn[i][1]))
  cards, pictures = [], {}
  for number, i in enumerate((i for i in order[:SHOWN] if drawn[i][1]), start=1):
    rows, wrong = drawn[i]
    row = int(run.rows[i])
    name = f"worst_{number:02d}.png"
    pictures[name] = figures.png(figures.boxes(run.source.picture(row), rows))
    words = ", ".join(f"{what} {n}x" if n > 1 else what for what, n in Counter(wrong).items())
    view = page.figure(page.data_uri(pictures[name]), alt=f"boxes in {run.source.keys[row]}")
    cards.append(page.card([view], words, [run.source.keys[row]]))
  return cards, pictures


def faults(marks: Objects, one: Found) -> tuple[list[tuple], list[str]]:
  """(rows for `figures.boxes`, a word for each fault) of one picture."""
  sure = one.scores >= average_precision.SHOWN
  pairs = dict(average_precision.matched(marks, one))
  taken, rows, wrong = set(pairs.values()), [], []
  for j in np.flatnonzero(sure):
    if j not in taken:
      rows.append((one.boxes[j], f"{one.names[j]} {one.scores[j]:.2f}", EXTRA))
      wrong.append(f"no {one.names[j]}")
  for i in np.flatnonzero(marks.plain):
    name = one.classes[marks.labels[i]]
    answer = one.names[pairs[i]] if i in pairs else None
    if answer == name:
      rows.append((marks.boxes[i], name, FOUND))
    else:
      text = f"{name} taken for {answer}" if answer else f"{name} missed"
      rows.append((marks.boxes[i], text, MISSED))
      wrong.append(text)
  return rows, wrong


@dataclasses.dataclass(frozen=True)
class Config:
  out: str = option("", "The page; report.html in the run's folder if not given.")


def main(argv: Sequence[str], config: Config) -> None:
  if len(argv) != 2:
    raise ValueError("name the folder of a run: python -m train.detect_report WORKDIR")
  print(write(Path(argv[1]), Path(config.out) if config.out else None).resolve())


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
