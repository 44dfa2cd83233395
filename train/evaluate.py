"""How good a classifier is on a data set, by pretrained weights or by a run's.

  python -m train.evaluate --model=resnet18.tv1 --data=FOLDER --split=all
  python -m train.evaluate --model=runs/mine --data=FOLDER --tta=flip --size=320 --out=evaluation

Prints top-1 and top-5 with their 95 % intervals, the loss, the calibration error and images/s;
--each also the accuracy of each class, and --random=5 the five most probable classes of so many
photographs drawn at random. --out writes a folder: evaluation.json, classes.csv, predictions.csv,
index.html, PNGs.

All devices of the machine share each batch.

The classes of the data are found among the model's by name, or, where their names are numbers, by
number; the model still chooses among all of its classes.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import json
from pathlib import Path
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from train import figures, mesh, options, output, page, predict, startup
from train.batches import one_ahead
from train.data import datasets, pipeline
from train.options import option
from train.page import Number, percent
from train.report import kind, ranks, wilson
import zoo

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv:1706.04599)
VIEWS = {"none": 1, "flip": 2, "five": 5, "ten": 10}


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Weights (variant.tag), the folder of a run, or a .safetensors file.")
  data: str = option(
    "", "Folder of photographs, tar:FOLDER or records:FOLDER of shards, or tfds:NAME."
  )
  split: str = option(
    "test", "Which photographs; all for those of every split.",
    choices=("train", "val", "test", "all"),
  )  # fmt: skip
  size: int = option(
    0, "Pixels of the square input; 0 for the checkpoint's, with the same share of the picture.",
    lower_bound=0,
  )  # fmt: skip
  tta: str = option(
    "none", "Views whose probabilities are averaged: mirrored too, the corners and the middle, or "
    "these mirrored too.", choices=tuple(VIEWS),
  )  # fmt: skip
  each: bool = option(False, "Print the accuracy of each class too.")
  random: int = option(
    0, "Photographs, drawn at random, whose five most probable classes are shown.", lower_bound=0
  )
  out: str = option("", "Folder to write to; must be new.")
  seed: int = option(
    0, "Of the division of a folder that its owner did not split, and of --random."
  )
  batch: int = option(32, "Photographs computed at once.", lower_bound=1)
  threads: int = option(2, "Threads that read photographs.", lower_bound=1)
  max_bad: float = option(
    0.05, "Share of photographs that may be unreadable; they are skipped and listed.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluation:
  keys: list[str]  # [n] names of the photographs
  labels: np.ndarray  # [n] of the model's classes
  probs: np.ndarray  # [n c] float32
  classes: Sequence[str]  # of the model
  present: Sequence[int]  # those that the data has
  seconds: float  # of computing and reading, without the first batch
  # row -> [h w 3] uint8, what the network saw of those drawn at random
  drawn: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def ranks(self) -> np.ndarray:
    """[n] how many classes were more probable than the right one, or as probable and earlier."""
    return ranks(self.probs, self.labels)

  def measures(self) -> dict[str, float]:
    own = self.probs[np.arange(len(self.labels)), self.labels]
    right = self.ranks == 0
    n = len(self.labels)
    each = [right[self.labels == c].mean() for c in np.unique(self.labels)]
    low, high = wilson(int(right.sum()), n)
    low5, high5 = wilson(int((self.ranks < 5).sum()), n)
    return {
      "images": n, "top1": float(right.mean()), "top1_low": low, "top1_high": high,
      "top5": float(np.mean(self.ranks < 5)), "top5_low": low5, "top5_high": high5,
      "mean_per_class": float(np.mean(each)), "loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
      "calibration_error": calibration(self.probs.max(1), right)[0],
      "images_per_second": n / self.seconds if self.seconds else 0.0,
    }  # fmt: skip


def calibration(
  confidence: np.ndarray, right: np.ndarray
) -> tuple[float, list[tuple[int, float, float]]]:
  """(expected calibration error, [(count, mean confidence, accuracy)] of `BINS` equal bins)."""
  bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
  rows, error = [], 0.0
  for b in range(BINS):
    inside = bins == b
    count = int(inside.sum())
    sure, hits = (float(a[inside].mean()) if count else 0.0 for a in (confidence, right))
    rows.append((count, sure, hits))
    error += count / len(right) * abs(sure - hits)
  return error, rows


def evaluate(config: Config) -> Evaluation:
  """Raises ValueError or OSError: sentences for the user."""
  record = zoo.record(config.model)
  data = datasets.load(config.data, seed=config.seed, max_bad=config.max_bad)
  for line in data.skipped:
    print(f"skipped {predict.readable(line)}")
  network, variables = zoo.load(config.model)
  if network.num_classes is None or zoo.task(record.variant) != "classify":
    raise ValueError(f"{config.model} has no classes to evaluate; name a classifier")
  classes = predict.class_names(record, network.num_classes)
  places = matched(data.classes, classes, config.model)
  preprocess = record.preprocess.at(config.size) if config.size else record.preprocess
  one = lambda image: preprocess.crop(image)[None]
  views = preprocess.corners if VIEWS[config.tta] >= 5 else one
  mirror = VIEWS[config.tta] in (2, 10)
  devices = mesh.local(config.batch)
  variables = jax.device_put(variables, mesh.replicated(devices))

  @jax.jit
  def step(variables, image):  # [b v h w 3]
    x = preprocess.normalize(image.reshape(-1, *image.shape[2:]))
    x = jnp.concatenate([x, x[:, :, ::-1]]) if mirror else x
    probs = jax.nn.softmax(network.apply(variables, x, train=False)["logits"].astype(jnp.float32))
    return probs.reshape(-1, *image.shape[:2], probs.shape[-1]).mean((0, 2))

  names = [config.split] if config.split != "all" else list(data.splits)
  if missing := [name for name in names if not len(data.splits.get(name, ()))]:
    have = [name for name, source in data.splits.items() if len(source)]
    raise ValueError(f"{config.data} has no split {missing[0]}; it has {', '.join(have)}, or all")
  keys, labels, probs, seconds, started = [], [], [], 0.0, None
  total = sum(len(data.splits[name]) for name in names)
  rows = mesh.even(min(config.batch, total), devices)
  rng = np.random.default_rng(config.seed)
  drawn = dict.fromkeys(rng.permutation(total)[: config.random].tolist())
  with tqdm(total=total, unit=" images", disable=None) as bar:
    for name in names:
      source = data.splits[name]
      batches = pipeline.eval_batches(source, batch=rows, view=views, threads=config.threads)
      answered = (
        (batch, step(variables, mesh.put_batch(batch["image"], devices))) for batch in batches
      )
      for batch, found in one_ahead(answered):
        found, real = np.asarray(found), batch["index"] >= 0
        now = time.perf_counter()
        seconds += now - started if started else 0.0
        started = now
        for row in drawn.keys() & range(len(keys), len(keys) + int(real.sum())):
          drawn[row] = batch["image"][row - len(keys), -1]  # the middle is the last view
        keys += [source.keys[i] for i in batch["index"][real]]
        labels.append(places[batch["label"][real]])
        probs.append(found[real])
        bar.update(int(real.sum()))
  timed = max(total - rows, 0)
  return Evaluation(
    keys, np.concatenate(labels), np.concatenate(probs), classes, sorted(places.tolist()),
    seconds * total / timed if timed else 0.0, drawn,
  )  # fmt: skip


def matched(wanted: Sequence[str], classes: Sequence[str], model: str) -> np.ndarray:
  """Index among `classes` of each of `wanted`. Raises ValueError that lists those not found."""
  numbers = {plain(name): i for i, name in reversed(list(enumerate(classes)))}
  if all(name.isdecimal() and int(name) < len(classes) for name in wanted):
    return np.array([int(name) for name in wanted])
  if lost := [name for name in wanted if plain(name) not in numbers]:
    shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    raise ValueError(
      f"{model} does not know {len(lost)} of the {len(wanted)} classes of the data: {shown}. "
      "Wanted folders with the names or numbers of its classes; fine-tune it on others with "
      "python -m train.classify"
    )
  return np.array([numbers[plain(name)] for name in wanted])


def plain(name: str) -> str:
  return name.lower().replace("_", " ").strip()


def write(out: Path, config: Config, found: Evaluation) -> None:
  """Leaves the folder of --out."""
  measures, ranks = found.measures(), found.ranks
  answers = found.probs.argmax(1)
  page.write(
    out / "evaluation.json",
    json.dumps({"config": options.as_dict(config), **measures}, indent=2) + "\n",
  )
  rows = of_classes(found)
  page.write(out / "classes.csv", _csv(("class", "images", "right", "top1", "top5"), rows))
  page.write(out / "predictions.csv", _csv(
    ("path", "class", "answer", "prob"),
    ((k, found.classes[c], found.classes[a], f"{p[a]:.6f}")
     for k, c, a, p in zip(found.keys, found.labels, answers, found.probs)),
  ))  # fmt: skip
  _, bins = calibration(found.probs.max(1), ranks == 0)
  pictures = {"calibration.png": figures.calibration(bins)}
  if len(found.present) <= 100:
    pictures["confusion.png"] = _confusion(found, answers)
  for name, picture in pictures.items():
    page.write(out / name, picture)
  rows.sort(key=lambda row: row[3])
  title = f"{Path(config.model).name} on {Path(config.data).name}"
  page.write(out / "index.html", page.page(title, [
    f"<h1>{page.escape(title)}</h1>",
    page.headline([
      (percent(measures["top1"]), f"top-1 of {measures['images']} photographs; 95 % interval "
       f"{percent(measures['top1_low'])} to {percent(measures['top1_high'])}"),
      (percent(measures["top5"]), "top-5"),
      (percent(measures["mean_per_class"]), "mean of the classes"),
      (f"{measures['calibration_error']:.3f}", "expected calibration error"),
    ]),
    page.figures(page.figure(page.data_uri(picture), alt=name) for name, picture in
                 pictures.items()),
    page.section("Classes, the hardest first", page.table(
      ("class", "images", "top-1", "top-5"),
      ((name, Number(n), Number(percent(top1)), Number(percent(top5)))
       for name, n, _, top1, top5 in rows), tall=True,
    )),
    *([page.section("Drawn at random", page.cards(_cards(found)))] if found.drawn else []),
    page.section("How it was made", page.code(json.dumps(options.as_dict(config)))),
  ]))  # fmt: skip


def of_classes(found: Evaluation) -> list[tuple[str, int, int, float, float]]:
  """(class, photographs, right, top-1, top-5) of each class that the data has."""
  rows, ranks = [], found.ranks
  for c in found.present:
    own = found.labels == c
    right = int((ranks[own] == 0).sum())
    share, five = (right / own.sum(), np.mean(ranks[own] < 5)) if own.any() else (0.0, 0.0)
    rows.append((found.classes[c], int(own.sum()), right, share, float(five)))
  return rows


def top5(found: Evaluation, row: int) -> list[tuple[str, float]]:
  """(class, probability), the most probable first."""
  order = np.argsort(-found.probs[row], kind="stable")[:5]
  return [(found.classes[c], float(found.probs[row, c])) for c in order]


def _cards(found: Evaluation) -> list[str]:
  """Those drawn at random, with their answers."""
  cards = []
  for row, view in found.drawn.items():
    key, truth, top = found.keys[row], found.classes[found.labels[row]], top5(found, row)
    bars = page.bars((label, prob, kind(label, truth, top[0][0])) for label, prob in top)
    figure = page.figure(page.data_uri(figures.png(view)), alt=key)
    cards.append(page.card([figure], truth, [key], bars))
  return cards


def _confusion(found: Evaluation, answers: np.ndarray) -> bytes:
  """Of the classes that the data has; all other answers share a last column's class."""
  place = {c: i for i, c in enumerate(found.present)}
  n = len(place)
  beside = any(a not in place for a in answers)
  counts = np.zeros((n + beside,) * 2, int)
  for c, a in zip(found.labels, answers):
    counts[place[c], place.get(a, n)] += 1
  return figures.confusion(counts, [found.classes[c] for c in found.present] + ["others"] * beside)


def _csv(header: Sequence[str], rows) -> str:
  text = io.StringIO(newline="")
  csv.writer(text).writerows([header, *rows])
  return text.getvalue()


def show(measures: Mapping[str, float]) -> str:
  interval = lambda name: (
    f"{measures[name]:.2%} (95 % interval {measures[f'{name}_low']:.2%} to "
    f"{measures[f'{name}_high']:.2%})"
  )
  return (
    f"{measures['images']} photographs\n"
    f"top1               {interval('top1')}\n"
    f"top5               {interval('top5')}\n"
    f"mean of classes    {measures['mean_per_class']:.2%}\n"
    f"loss               {measures['loss']:.4f}\n"
    f"calibration error  {measures['calibration_error']:.4f}"
    # One batch alone is mostly compiling.
    + (
      f"\nimages/s           {measures['images_per_second']:.1f}"
      * bool(measures["images_per_second"])
    )
  )


def main(_, config: Config) -> None:
  if faults := [f"--{name} is missing" for name in ("model", "data") if not getattr(config, name)]:
    raise ValueError("\n".join(faults))
  out = Path(config.out)
  if config.out and (said := output.taken(out)):
    raise ValueError(said)
  startup.set_up_compilation()
  found = evaluate(config)
  if config.each:
    for name, images, right, share, _ in of_classes(found):
      print(f"{share:7.2%}  {right} of {images}  {predict.readable(name)}")
  for row, view in found.drawn.items():
    answer = predict.Answer(found.keys[row], top5(found, row), view)
    truth = predict.readable(found.classes[found.labels[row]])
    print(f"{predict.show(answer)}\n          it is {truth}")
  print(show(found.measures()), flush=True)
  if config.out:
    write(out, config, found)
    print(f"page: {(out / 'index.html').resolve()}")


if __name__ == "__main__":
  options.run(main, Config, stopped="stopped; nothing was written")
