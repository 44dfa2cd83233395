"""Trains a network that says more of a picture than one class, from published weights or afresh.

  python -m train.label --task=multilabel --data=tags.csv --model=resnet18.tv1 --workdir=runs/tags
  python -m train.label --task=regress --data=ages.csv --low=0 --high=120 --loss=l1 ...
  python -m train.label --task=localize --data=FOLDER --loss=giou ...

--data is a listing (train/data/listing.py says what it holds), ChestX-ray14's folder, or for labels
and places a folder in COCO's, VOC's or darknet's layout.  The same command goes on with a run that
was stopped.  The workdir then holds report.html, scores in run.json, and model.safetensors, which
knows the labels' thresholds, chosen on val, or the numbers' units: python -m train.predict answers
in them.
"""

from collections.abc import Mapping
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import classify, loop, optim, options, scores, scoresheet, startup, workdir
from train import mesh as meshes
from train.data import listing
from train.noise import Noise
from train.options import option
from train.tasks import Task
from train.tasks.localize import Localize
from train.tasks.multilabel import Multilabel
from train.tasks.regress import Regress
import zoo
from zoo import catalog, heads, store

LOSSES = {  # of each task; the first is the one that is taken
  "multilabel": ("sigmoid", "focal", "asymmetric"),
  "regress": ("huber", "l1", "l2"),
  "localize": ("smooth_l1", "l2", "giou"),
}


@dataclasses.dataclass(frozen=True)
class Config(Noise):
  task: str = option("multilabel", "What is asked of a picture.", choices=listing.TASKS)
  loss: str = option(
    "", "multilabel: sigmoid, focal or asymmetric; regress: huber, l1 or l2; localize: smooth_l1, "
    "l2 or giou. The first if not given.",
  )  # fmt: skip
  balance: bool = option(
    False, "Weigh what is rarer, yes or no, by the share of the other, for each label."
  )
  low: tuple[str, ...] = option(
    (), "Bounds below of the numbers to be answered, one for all or one for each."
  )
  high: tuple[str, ...] = option((), "And above.")
  box_weight: float = option(5.0, "Of the box's loss, beside that of the class.", lower_bound=0.0)
  report: bool = option(True, "Write report.html at the end.", free=True)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a script asks of `job`."""

  name: str  # of the task, one of train.scores.TASKS
  task: Task
  data: listing.Listed
  head: str = ""  # of zoo.heads
  outputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for the record
  instances: int = 0  # of a bag
  squash: bool = False  # networks see whole pictures


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> tuple[loop.Job, Plan]:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  demand(config)
  loss = chosen_loss(own.task, own.loss)
  data = listing.load(config.data, own.task, seed=config.seed, max_bad=config.max_bad)
  train = data.splits["train"].targets
  if own.task == "multilabel":
    plan = Plan(own.task, multilabel(loss, own.balance, train["labels"]), data)
  elif own.task == "regress":
    plan = regress(own, loss, data)
  else:
    task = Localize(loss, weight=own.box_weight)
    plan = Plan(own.task, task, data, head="box", squash=True)
  plan = dataclasses.replace(plan, outputs={"task": own.task, **plan.outputs})
  return job(config, optimizer, own, plan), plan


def demand(config: loop.Config) -> None:
  if faults := [
    f"--{name} is missing" for name in ("data", "workdir") if not getattr(config, name)
  ]:
    raise ValueError("\n".join(faults))


def chosen_loss(task: str, loss: str) -> str:
  if loss and loss not in LOSSES[task]:
    raise ValueError(f"--loss={loss} is none of --task={task}: {', '.join(LOSSES[task])}")
  return loss or LOSSES[task][0]


def multilabel(loss: str, balance: bool, labels: np.ndarray) -> Multilabel:
  """Of labels [n c] of the training set."""
  known = np.maximum((labels >= 0).sum(0), 1)
  # CheXNet's weights (arXiv:1711.05225, part 2.1): the share of the other answer.
  weights = {
    "yes": tuple(((labels == 0).sum(0) / known).tolist()),
    "no": tuple(((labels == 1).sum(0) / known).tolist()),
  } if balance else {}  # fmt: skip
  if loss == "focal":
    return Multilabel(2.0, 2.0, **weights)
  if loss == "asymmetric":  # as its authors set it
    return Multilabel(0.0, 4.0, 0.05, **weights)
  return Multilabel(**weights)


def regress(own: Config, loss: str, data: listing.Listed) -> Plan:
  value = data.splits["train"].targets["value"]
  if lost := [name for name, some in zip(data.classes, value.T) if np.isnan(some).all()]:
    raise ValueError(f"no row of train knows {', '.join(lost)}")
  mean, std = np.nanmean(value, 0).tolist(), np.nanstd(value, 0).tolist()
  low, high = bounds(own, len(data.classes))
  if low and (out := [
    name for name, some, a, b in zip(data.classes, value.T, low, high)
    if np.nanmin(some) < a or np.nanmax(some) > b
  ]):  # fmt: skip
    raise ValueError(f"--low and --high leave out numbers that train has of {', '.join(out)}")
  if flat := [name for name, s in zip(data.classes, std) if not s]:
    raise ValueError(f"train has no two different numbers of {', '.join(flat)}")
  outputs = {"mean": mean, "std": std, "low": low, "high": high}
  task = Regress(*(tuple(outputs[k]) for k in ("mean", "std", "low", "high")), loss=loss)
  return Plan("regress", task, data, outputs=outputs)


def bounds(own: Config, count: int) -> tuple[list[float], list[float]]:
  """([], []) for unbounded answers."""
  try:
    low, high = ([float(cell) for cell in some] for some in (own.low, own.high))
  except ValueError:
    low, high = [0.0], []
  low, high = (some * count if len(some) == 1 else some for some in (low, high))
  if not low and not high:
    return low, high
  if len(low) != count or len(high) != count or any(a >= b for a, b in zip(low, high)):
    raise ValueError(
      f"--low={','.join(own.low)} --high={','.join(own.high)}: wanted both, with one number for "
      f"all or one for each of {count}, each low below its high"
    )
  return low, high


def job(config: loop.Config, optimizer: optim.Config, own: Noise, plan: Plan) -> loop.Job:
  """What the loop runs; `own` are the script's flags."""
  lost = [f"--dropout: {plan.head} heads have no such layer"] if plan.head and own.dropout else []
  if plan.head == "box":
    lost += [
      f"--{name}: the box would not go with it"
      for name in ("randaugment", "erase") if getattr(own, name)
    ]  # fmt: skip
  if plan.head or plan.name == "regress":
    lost += [
      f"--{name}: only pictures of classes or labels are mixed"
      for name in ("mixup", "cutmix") if getattr(own, name)
    ]  # fmt: skip
  if lost:
    raise ValueError("\n".join(lost))
  data, train = plan.data, plan.data.splits["train"]
  origin = classify.described(config.model)
  per_epoch = len(train) // config.batch
  if not per_epoch:
    raise ValueError(f"--batch={config.batch} is more than the {len(train)} rows of train")
  fields = {
    "head": plan.head, "num_classes": len(data.classes), "dtype": getattr(jnp, config.dtype),
    "freeze_norm": config.freeze_norm, **own.fields(origin.variant),
  }  # fmt: skip
  preprocess = origin.preprocess.at(config.size) if config.size else origin.preprocess
  if plan.squash:
    preprocess = dataclasses.replace(
      preprocess, resize=preprocess.size, squash=True, letterbox=False
    )
  stages = zoo.stages(origin.variant)
  stages = heads.stages(stages) if plan.head else stages
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  some = {
    "batch": config.batch, "threads": config.threads, "instances": plan.instances,
    "process_index": jax.process_index(), "process_count": jax.process_count(),
  }  # fmt: skip
  kept = {"head": plan.head} if plan.head else {}
  return loop.Job(
    name="bags" if plan.instances else plan.name,
    task=plan.task,
    model=zoo.create(origin.weights or origin.variant, **{**origin.fields, **fields}),
    record=dataclasses.replace(
      origin, classes=data.classes, preprocess=preprocess, outputs=plan.outputs,
      fields={**origin.fields, **kept, "num_classes": len(data.classes)},
      provenance={**origin.provenance, "from": config.model, "data": config.data},
    ),
    weights=None if config.model in catalog.VARIANTS else partial(classify.weights, config, fields),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate, per_epoch=per_epoch),
    rate=rate,
    mix=own.mix,
    frozen=optim.frozen(stages, optimizer.freeze),
    phases=optim.phases(optimizer, stages, per_epoch),
    heard=partial(optim.heard, optimizer),
    train_batches=lambda step: listing.train_batches(
      train, size=preprocess.size, seed=config.seed, start_step=step, augment=own.views, **some
    ),
    eval_batches=lambda split: listing.eval_batches(data.splits[split], preprocess, **some),
    keys={name: rows.keys for name, rows in data.splits.items()},
    skipped=data.skipped,
    flags=(config, optimizer, own),
  )  # fmt: skip


def train(config: loop.Config, made: loop.Job, plan: Plan) -> scores.Scores:
  """Runs it, scores it on the host, and leaves thresholds and scores where the run lies."""
  outcome = loop.run(config, made)
  folder, splits, outputs = Path(config.workdir), plan.data.splits, dict(plan.outputs)
  path = folder / "model.safetensors"
  if "labels" in splits["val"].targets:
    held = outcome
    if outcome.split != "val":
      evaluate = loop.Evaluator(
        made, meshes.make(config.mesh), dict.fromkeys(("compile", "evaluate"), 0.0)
      )
      held = evaluate("val", store.read_variables(path))
    asked = splits["val"].targets["labels"][held.index]
    outputs["thresholds"] = scores.best_thresholds(asked, held.predictions["probs"])
  answers = outcome.predictions
  if "box" in answers:
    answers = {**answers, "box": answers["box"] / made.record.preprocess.size}
  found = scores.measure(
    plan.name, plan.data.classes, listing.shares(splits[outcome.split].some(outcome.index).targets),
    answers, listing.shares(splits["train"].targets), outputs.get("thresholds", ()),
  )  # fmt: skip
  if jax.process_index() == 0:
    record = dataclasses.replace(store.read_record(path), outputs=outputs)
    store.save(path, store.read_variables(path), record)
    more = {"outputs": outputs, "scores": scores.plain(found)}
    workdir.write(folder, workdir.read(folder) | more)
  loop.say(f"{outcome.split}: {scores.show(found)}")
  return found


def report(config: loop.Config, plan: Plan) -> None:
  """Writes the page of a run, in one of its processes."""
  if jax.process_index() == 0:
    page = scoresheet.write(Path(config.workdir), plan.data)
    print(f"report: {page.resolve()}")


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  made, plan = prepare(config, optimizer, own)
  train(config, made, plan)
  if own.report:
    report(config, plan)


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
