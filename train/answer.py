"""What runs of train.label and train.bags say of new pictures; `train.predict` hands them on.

--out gets answers.csv with a row for each picture: its labels and the probability of every one;
its numbers in their units; or its class and box, x0 y0 x1 y1 in pixels of the picture.  Of a run on
bags each folder of the command line is a bag, and a picture a bag of one; instances.csv then has
each picture's own answer and its share in the bag's.
"""

from collections.abc import Callable, Iterator, Sequence
import csv
import dataclasses
from functools import partial
import io
from pathlib import Path

import jax
import numpy as np

from train import output, page, predict, startup
from train.batches import padded
from train.data import listing
from train.data.transforms import UnreadableImage
from train.tasks import Task
from train.tasks.bags import Bags
from train.tasks.classify import Classify
from train.tasks.localize import Localize
from train.tasks.multilabel import Multilabel
from train.tasks.regress import Regress
import zoo
from zoo.detect.found import place

Cells = dict[str, str]  # {column: text}
BOX = listing.BOX


@dataclasses.dataclass(frozen=True)
class Answer:
  path: Path  # of a picture, or of a bag's folder
  cells: Cells
  text: str  # for people
  instances: list[tuple[Path, Cells]] = dataclasses.field(default_factory=list)


def task_of(record: zoo.Record) -> Task:
  """The task whose `predict` says what the network's outputs mean."""
  outputs = record.outputs
  if outputs["task"] == "regress":
    return Regress(*(tuple(outputs[k]) for k in ("mean", "std", "low", "high")))
  of = {"multilabel": Multilabel, "classify": Classify, "localize": Localize}[outputs["task"]]()
  return Bags(of) if "instances" in outputs else of


def answers(
  model: str | Path, arguments: Sequence[str], *, batch: int, threads: int,
  failed: Callable[[str], None],
) -> Iterator[Answer]:  # fmt: skip
  """Of each picture, or of each bag; `failed` gets a sentence for each that is unreadable."""
  record = zoo.record(model)
  network, variables = zoo.load(model)
  task, variables = task_of(record), jax.device_put(variables)

  @jax.jit
  def run(variables, image, *more):
    x = record.preprocess.normalize(image)
    return task.predict(network.apply(variables, x, *more, train=False))

  step = partial(run, variables)
  if isinstance(task, Bags):
    yield from _bags(record, step, arguments, threads, failed)
    return
  paths = predict.find(arguments, failed)
  batch = min(batch, max(len(paths), 1))
  views = predict.views(_reads(paths), record.preprocess, threads)
  for some, pixels in predict.batches(views, batch, failed):
    found = jax.device_get(step(padded(pixels, batch)))
    for i, path in enumerate(some):
      own = {name: array[i] for name, array in found.items()}
      if "box" in own:
        height, width = listing.upright_size(path)
        box = place(record.preprocess, height, width).out(own["box"][None])[0]
        own["box"] = np.clip(box, 0, [width, height] * 2)
      cells = _cells(record, own)
      yield Answer(path, cells, _text(record, cells))


def _reads(paths: Sequence[Path]):
  return [(path, path.read_bytes) for path in paths]


def _bags(record, step, arguments, threads: int, failed) -> Iterator[Answer]:
  most = record.outputs["instances"]
  for argument in dict.fromkeys(arguments):
    paths, pixels = [], []
    reads = _reads(predict.find([argument], failed))
    for path, view in predict.views(reads, record.preprocess, threads):
      try:
        pixels.append(view.result())
        paths.append(path)
      except (UnreadableImage, OSError) as error:
        failed(f"{path}: {error}")
    if not paths:
      continue
    chosen = listing.spread(len(paths), most)
    image = np.stack([pixels[chosen[i % len(chosen)]] for i in range(most)])[None]
    real = (np.arange(most) < len(chosen))[None]
    found = {name: array[0] for name, array in jax.device_get(step(image, real)).items()}
    cells = _cells(record, {"probs": found["probs"]})
    instances = [
      (paths[k], {"share": f"{share:.6f}", **_cells(record, {"probs": probs})})
      for k, share, probs in zip(chosen, found["attention"], found["instance_probs"])
    ]
    yield Answer(Path(argument), cells, _text(record, cells), instances)


def _cells(record: zoo.Record, own: dict[str, np.ndarray]) -> Cells:
  """A row of answers.csv."""
  names, outputs = record.classes, record.outputs
  if outputs["task"] == "regress":
    return {name: f"{value:.6g}" for name, value in zip(names, own["value"])}
  probs = own["probs"]
  each = {f"prob of {name}": f"{prob:.6f}" for name, prob in zip(names, probs)}
  if outputs["task"] == "multilabel":
    yes = [n for n, p, least in zip(names, probs, outputs["thresholds"]) if p >= least]
    return {"labels": "|".join(yes), **each}
  top = int(probs.argmax())
  box = {name: f"{x:.1f}" for name, x in zip(BOX, own["box"])} if "box" in own else {}
  return {"class": names[top], "prob": f"{probs[top]:.6f}", **box, **each}


def _text(record: zoo.Record, cells: Cells) -> str:
  if record.outputs["task"] == "regress":
    return ", ".join(f"{name} {value}" for name, value in cells.items())
  if record.outputs["task"] == "multilabel":
    return cells["labels"].replace("|", ", ") or "none of the labels"
  where = " ".join(cells[name] for name in BOX if name in cells)
  return f"{100 * float(cells['prob']):5.1f} %  {cells['class']}" + (f"  at {where}" * bool(where))


def main(argv: Sequence[str], config: predict.Config) -> int:
  out, failures, found = Path(config.out), [], []
  if config.out and (said := output.taken(out)):
    raise ValueError(said)
  startup.set_up_compilation()
  failed = lambda sentence: failures.append(predict.readable(sentence))
  for answer in answers(
    config.model, argv[1:], batch=config.batch, threads=config.threads, failed=failed
  ):
    found.append(answer)
    print(f"{predict.readable(answer.path)}\n  {answer.text}", flush=True)
  if config.out and found:
    _write(out / "answers.csv", ((a.path, a.cells) for a in found), "path")
    some = [(path, {"bag": predict.readable(a.path), **cells})
            for a in found for path, cells in a.instances]  # fmt: skip
    if some:
      _write(out / "instances.csv", some, "path")
  return predict.unanswered(failures)


def _write(path: Path, rows, first: str) -> None:
  rows = [{first: predict.readable(name), **cells} for name, cells in rows]
  text = io.StringIO(newline="")
  table = csv.DictWriter(text, rows[0])
  table.writeheader()
  table.writerows(rows)
  page.write(path, text.getvalue())
