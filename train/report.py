"""What a run learned, as one HTML page that needs nothing else: python -m train.report WORKDIR ...

The first folder is the run that the page is about; further ones are compared with it. Pictures are
embedded, and lie as PNG files in a folder beside the page too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import csv
import dataclasses
from functools import cached_property
from importlib import metadata
import json
import math
from pathlib import Path
import platform
import re
from typing import Any

import numpy as np

from train import figures, gallery, options, page, startup
from train.options import option
from train.page import Number, percent

PACKAGES = ("flaxzoo", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
SHOWN = 6  # photographs of each kind
LISTED = 25  # rows of a table before the rest is folded
NEEDED = ("run.json", "metrics.csv", "predictions.npz")
OURS = re.compile(r"(loss|accuracy|confusion|(best|worst)_\d+.*)\.png")


@dataclasses.dataclass(frozen=True)
class Run:
  """A training folder, read."""

  name: str
  path: Path
  info: dict[str, Any]  # run.json
  metrics: list[tuple[int, str, str, float]]  # step, split, name, value
  keys: list[str]  # [n] of the photographs that were held out
  labels: np.ndarray  # [n] int32
  probs: np.ndarray  # [n c] float32
  split: str  # "test", or "val" of a data set without

  @property
  def classes(self) -> list[str]:
    return self.info["classes"]

  @cached_property
  def answers(self) -> np.ndarray:
    """[n] int: the most probable class of each photograph."""
    return self.probs.argmax(-1)

  @cached_property
  def right(self) -> np.ndarray:
    return self.answers == self.labels

  @cached_property
  def counts(self) -> np.ndarray:
    """[c c] int: photographs of a class (row) that were answered by one (column)."""
    c = len(self.classes)
    return np.bincount(self.labels * c + self.answers, minlength=c * c).reshape(c, c)

  def within(self, top: int) -> float:
    """Share of photographs whose class is among the `top` most probable."""
    return float(np.mean(ranks(self.probs, self.labels) < top))

  @property
  def photographs(self) -> str:
    return {"val": "validation"}.get(self.split, self.split) + " photographs"


def read_run(workdir: Path) -> dict[str, Any]:
  """run.json of a training folder. Raises FileNotFoundError or ValueError with a sentence."""
  path = Path(workdir) / "run.json"
  if not path.exists():
    raise FileNotFoundError(f"{workdir} has no run.json; python -m train.classify makes one")
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is damaged ({error}); run the command of training again") from error


def write(workdirs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
  """Writes the page `out` about the run in workdirs[0], compared with the others; returns `out`.

  Raises:
    FileNotFoundError, ValueError: all that the folders lack.
  """
  runs, out = read([Path(w) for w in workdirs]), Path(out)
  main = runs[0]
  title = title or f"{main.info['model']} on {Path(main.info['data']).name}"
  curves = {run.name: run.metrics for run in runs}
  pictures = {
    "loss.png": figures.curve(curves, "loss"),
    "accuracy.png": figures.curve(curves, "top1", share=True),
    "confusion.png": figures.confusion(main.counts, main.classes),
  }
  chosen = choose(main)
  shown, notes = gallery.views(main, chosen)
  pictures |= {name: png for views in shown.values() for name, _, png in views}
  body = [
    f"<h1>{page.escape(title)}</h1>",
    page.paragraph(_origin(main), soft=True),
    _headline(main),
    *([_comparison(runs)] if len(runs) > 1 else []),
    _curves(pictures),
    _photographs(main, chosen, shown, notes),
    _confusion(main, pictures),
    _classes(main),
    _data(main),
    _making(runs),
  ]
  folder = out.with_name(f"{out.stem}_files")
  for name, png in pictures.items():
    page.write(folder / name, png)
  for stale in folder.iterdir():
    if stale.name not in pictures and OURS.fullmatch(stale.name):
      stale.unlink()
  page.write(out, page.page(title, body))
  return out


def read(workdirs: Sequence[Path]) -> list[Run]:
  """Raises FileNotFoundError or ValueError with every fault of every folder."""
  if not workdirs:
    raise ValueError("a report needs the folder of at least one run")
  faults = [
    f"{folder} has no {name}"
    for folder in workdirs for name in NEEDED if not (folder / name).exists()
  ]  # fmt: skip
  if faults:
    raise FileNotFoundError(
      "\n".join(faults) + "\na finished run of python -m train.classify leaves these files"
    )
  names = [folder.resolve().name for folder in workdirs]
  if len(set(names)) < len(names):
    names = ["/".join(folder.resolve().parts[-2:]) for folder in workdirs]
  return [_read(name, folder) for name, folder in zip(names, workdirs)]


def _read(name: str, folder: Path) -> Run:
  info = read_run(folder)
  if info["task"] != "classify":
    raise ValueError(
      f"{folder} is a run of the task {info['task']}, not of train.classify; its own script writes "
      "its page"
    )
  with open(folder / "metrics.csv", newline="") as file:
    table = csv.DictReader(file)
    rows = [(int(r["step"]), r["split"], r["name"], float(r["value"])) for r in table]
  with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
    keys, labels, probs = (arrays[k] for k in ("keys", "labels", "probs"))
    split = str(arrays["split"])
  shape = (len(keys), len(info["classes"]))
  if probs.shape != shape or labels.shape != shape[:1] or not len(keys):
    raise ValueError(
      f"{folder / 'predictions.npz'} does not fit run.json: probs {list(probs.shape)} and labels "
      f"{list(labels.shape)} for {shape[0]} photographs of {shape[1]} classes"
    )
  return Run(name, folder, info, rows, keys.tolist(), labels.astype(int), probs, split)


def ranks(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[n] how many classes come before the right one; of equals the first does, as in argmax.

  Equal ones are common where a network is sure of one class and all others have underflown to 0.
  """
  own = np.take_along_axis(probs, labels[:, None], 1)
  earlier = np.arange(probs.shape[1]) < labels[:, None]
  return np.sum((probs > own) | ((probs == own) & earlier), axis=1)


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
  """95 % interval of a share, by Wilson 1927."""
  p, extra = right / n, z * z / n
  half = z * math.sqrt(p * (1 - p) / n + extra / (4 * n))
  return max((p + extra / 2 - half) / (1 + extra), 0), min((p + extra / 2 + half) / (1 + extra), 1)


def choose(run: Run) -> dict[str, list[int]]:
  """Rows to look at: "worst" gives the truth the least probability, "best" is right and surest.

  The best are of different classes as long as there are some.
  """
  truth = np.take_along_axis(run.probs, run.labels[:, None], 1)[:, 0]
  order = np.argsort(truth, kind="stable")
  worst = [int(i) for i in order if not run.right[i]][:SHOWN]
  best = [int(i) for i in order[::-1] if run.right[i]]
  turn = Counter()
  rank = {}
  for i in best:
    rank[i] = turn[run.labels[i]]
    turn[run.labels[i]] += 1
  return {"worst": worst, "best": sorted(best, key=rank.get)[:SHOWN]}


def _origin(run: Run) -> str:
  start = run.info["weights"]
  weights = f"from the weights {start}" if start else "from random weights"
  return f"{run.info['model']}, trained {weights}, at {run.info['size']} pixels."


def _headline(run: Run) -> str:
  n = len(run.labels)
  low, high = wilson(int(run.right.sum()), n)
  common = np.bincount(run.labels).max() / n
  numbers = [
    (percent(run.right.mean()), f"of {n} {run.photographs} get the right class; 95 % interval "
     f"{100 * low:.1f}–{100 * high:.1f} % (Wilson)"),
    (percent(_mean_of_classes(run)), "mean of the classes' accuracies"),
    (percent(common), "by always answering the commonest class"),
  ]  # fmt: skip
  if len(run.classes) > 5:
    numbers.insert(1, (percent(run.within(5)), "have it among the first five"))
  return page.headline(numbers)


def _mean_of_classes(run: Run) -> float:
  counts = run.counts
  seen = counts.sum(1) > 0
  return float(np.mean(np.diag(counts)[seen] / counts.sum(1)[seen]))


def _comparison(runs: Sequence[Run]) -> str:
  many = len(runs[0].classes) > 5
  rows = []
  for run in runs:
    low, high = wilson(int(run.right.sum()), len(run.labels))
    loss = (run.info["test"] or {}).get("loss")
    rows.append({
      "run": run.name,
      "model": run.info["model"],
      "weights": run.info["weights"] or "random",
      "accuracy": Number(percent(run.right.mean())),
      "95 % interval": Number(f"{100 * low:.1f}–{100 * high:.1f}"),
      **({"first five": Number(percent(run.within(5)))} if many else {}),
      "loss": Number("" if loss is None else f"{loss:.3f}"),
      "photographs": Number(len(run.labels)),
      "steps": Number(max((row[0] for row in run.metrics), default=0)),
      "seconds": Number(f"{_seconds(run):.0f}"),
    })  # fmt: skip
  others = [
    run.name for run in runs[1:]
    if run.keys != runs[0].keys or not np.array_equal(run.labels, runs[0].labels)
  ]  # fmt: skip
  note = f"Not measured on the same photographs as {runs[0].name}: {', '.join(others)}."
  notes = [page.paragraph(note)] if others else []
  whole = page.table(list(rows[0]), [row.values() for row in rows], main=0)
  return page.section("The runs", whole, *notes)


def _curves(pictures) -> str:
  names = {"loss.png": "Loss", "accuracy.png": "Accuracy"}
  items = [f"<div><h3>{t}</h3>{_picture(name, pictures, t)}</div>" for name, t in names.items()]
  return page.section("How it learned", page.figures(items))


def _picture(name: str, pictures: dict[str, bytes], alt: str) -> str:
  return page.figure(page.data_uri(pictures[name]), alt=alt)


def _photographs(run: Run, chosen, shown, notes: Sequence[str]) -> str:
  words = {
    "worst": ("The worst", "Those whose right class got the least probability."),
    "best": ("The best", "Right, and the most certain of their class."),
  }
  body = []
  for kind, rows in chosen.items():
    title, text = words[kind]
    cards = [_card(run, row, shown.get(row, ())) for row in rows]
    body += [f"<h3>{title}</h3>", page.paragraph(text if rows else "None.", soft=True)]
    body.append(page.cards(cards, large=kind == "worst"))
  body += [page.paragraph(note) for note in notes]
  text = "A map (Grad-CAM) shows where in the picture the network found what speaks for a class."
  return page.section("Photographs", page.paragraph(text, soft=True), *body)


def _card(run: Run, row: int, views) -> str:
  label, classes = run.labels[row], run.classes
  top = np.argsort(-run.probs[row], kind="stable")[:5]
  bars = [(classes[c], float(run.probs[row, c]), kind(c, label, top[0])) for c in top]
  if label not in top:
    bars.append((classes[label], float(run.probs[row, label]), "right"))
  pictures = [
    page.figure(page.data_uri(png), alt=f"{caption}: {run.keys[row]}", caption=caption)
    for _, caption, png in views
  ]
  taken = "" if top[0] == label else f", taken for {classes[top[0]]}"
  return page.card(pictures, classes[label] + taken, [run.keys[row]], page.bars(bars))


def kind(c, label, answer) -> str:
  """Of a class in the bars of an answer."""
  return "right" if c == label else "wrong" if c == answer else "other"


def _confusion(run: Run, pictures: dict[str, bytes]) -> str:
  counts = run.counts
  each = counts.sum(1)
  wrong = counts - np.diag(np.diag(counts))
  order = np.argsort(-wrong, axis=None, kind="stable")[: wrong.astype(bool).sum()]
  pairs = [np.unravel_index(i, wrong.shape) for i in order]
  rows = [
    [run.classes[a], run.classes[b], Number(wrong[a, b]), Number(percent(wrong[a, b] / each[a]))]
    for a, b in pairs
  ]
  header = ["truth", "answer", "photographs", "of the class"]
  mistakes = [
    "<h3>Most frequent mistakes</h3>",
    _folded(header, rows, 8, "all mistakes") if rows else page.paragraph("None."),
  ]
  text = "One row for each true class, one column for each answer; a row adds up to 100 %."
  return page.section(
    "Which classes are mistaken for which", page.paragraph(text, soft=True),
    _picture("confusion.png", pictures, "confusion matrix"), *mistakes,
  )  # fmt: skip


def _classes(run: Run) -> str:
  counts = run.counts
  each, answered, right = counts.sum(1), counts.sum(0), np.diag(counts)
  share = right / np.maximum(each, 1)
  rows = [
    [
      run.classes[c], Number(percent(share[c])), page.bar(share[c]),
      Number(f"{right[c]}/{each[c]}"),
      Number(percent(right[c] / answered[c]) if answered[c] else "–"),
    ]
    for c in np.lexsort((each, share)) if each[c]
  ]  # fmt: skip
  header = ["class", "accuracy", "", "right of n", "precision"]
  notes = [f"{run.classes[c]}: no {run.photographs}" for c in np.flatnonzero(each == 0)]
  text = "From the worst to the best. Precision: how often that answer is right."
  return page.section(
    "Each class", page.paragraph(text, soft=True), _folded(header, rows, LISTED, "all classes"),
    *([page.details(f"{len(notes)} classes without photographs", page.bullets(notes))] if notes
      else []),
  )  # fmt: skip


def _folded(header, rows, shown: int, what: str) -> str:
  """A table of the first rows, and of all behind a click."""
  if len(rows) <= shown * 1.3:
    return page.table(header, rows)
  whole = page.table(header, rows, tall=True)
  return page.table(header, rows[:shown]) + page.details(f"{what} ({len(rows)})", whole)


def _data(run: Run) -> str:
  images = run.info.get("images") or {run.split: len(run.labels)}
  skipped = run.info.get("skipped") or []
  words = {"train": "for training", "val": "for validation", "test": "for the test"}
  rows = [
    ["data", run.info["data"]],
    ["classes", str(len(run.classes))],
    *([f"photographs {words.get(split, split)}", str(n)] for split, n in images.items()),
    ["left out as unreadable", str(len(skipped))],
  ]
  more = [page.details("the files left out", page.bullets(skipped))] if skipped else []
  return page.section("Data", page.table(["", ""], rows), *more)


def _making(runs: Sequence[Run]) -> str:
  commands = "\n".join(run.info["command"] for run in runs)
  order = list(dict.fromkeys(step for run in runs for step in run.info["seconds"]))
  seconds = [
    [run.name, *(Number(f"{run.info['seconds'].get(step, 0):.1f}") for step in order)]
    for run in runs
  ]
  return page.section(
    "How it was made", page.code(commands), "<h3>Seconds</h3>",
    page.table(["run", *("in all" if step == "all" else step for step in order)], seconds),
    "<h3>Versions</h3>", page.paragraph(", ".join(versions()), soft=True),
  )  # fmt: skip


def _seconds(run: Run) -> float:
  steps = run.info["seconds"]
  return steps.get("all", sum(steps.values()))


def versions() -> Iterator[str]:
  yield f"Python {platform.python_version()}"
  for package in PACKAGES:
    try:
      yield f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
      pass


@dataclasses.dataclass(frozen=True)
class Config:
  out: str = option("", "The page; report.html in the first folder if not given.")
  title: str = option("", "Of the page.")


def main(argv: Sequence[str], config: Config) -> None:
  workdirs = [Path(a) for a in argv[1:]]
  if not workdirs:
    raise ValueError("name the folder of a run: python -m train.report WORKDIR [WORKDIR ...]")
  startup.set_up_compilation()
  out = Path(config.out or workdirs[0] / "report.html")
  write(workdirs, out, title=config.title or None)
  print(out.resolve())


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
