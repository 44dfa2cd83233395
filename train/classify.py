"""Trains a classifier on a folder of photographs, from published weights or from scratch.

  python -m train.classify --data=FOLDER --model=resnet18.broccoli --workdir=runs/mine
  python -m train.classify --flagfile=train/recipes/groceries_resnet18.flags --data=FOLDER ...

The same command goes on with a run that was stopped. The workdir then holds report.html,
model.safetensors (which zoo.load and python -m train.predict take), metrics.csv, predictions.npz,
run.json, checkpoints/ and tensorboard/; with --cache_features also features/ (see train.features).
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from train import features, loop, optim, options, rates, report, startup
from train import mesh as meshes
from train.data import datasets, pipeline
from train.metrics import show
from train.noise import CROP, Noise
from train.options import option
from train.tasks.classify import Classify
import zoo
from zoo import catalog

# Flags of what training sees of a picture, beyond the middle square.
VIEWS = ("mixup", "cutmix", "crop", "flip", "randaugment", "magnitude", "erase", "repeat")


@dataclasses.dataclass(frozen=True)
class Config(Noise):
  loss: str = option(
    "softmax", "Cross-entropy over all classes, or sigmoid: of each class for itself.",
    choices=("softmax", "sigmoid"),
  )  # fmt: skip
  smoothing: float = option(
    0.0, "Label smoothing: the share of the target that all classes get alike.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  aux: float = option(
    0.0, "Weight of the loss of each auxiliary head, where the model has some, such as 0.4; 0 for "
    "none.", lower_bound=0.0,
  )  # fmt: skip
  crop: float = option(0.08, CROP, lower_bound=0.0, upper_bound=1.0)
  repeat: int = option(
    1, "How often each picture of a batch is in it, in different views (arXiv:1901.09335).",
    lower_bound=1,
  )  # fmt: skip
  balance: str = option(
    "none", "Where some classes have more images: sample shows all classes equally often, loss "
    "weighs an image by the inverse of its class's count.", choices=("none", "sample", "loss"),
  )  # fmt: skip
  squash: bool = option(
    False, "Evaluation sees the whole picture, squashed to a square, instead of its middle."
  )
  cache_features: bool = option(
    False, "The network sees every image once, as evaluation does, and is held; the head alone is "
    "trained, on what is kept in WORKDIR/features/.",
  )  # fmt: skip
  best: str = option(
    "top1", "What makes an evaluation the best one: the most right answers or the least loss.",
    choices=("top1", "loss"),
  )  # fmt: skip
  find_lr: str = option(
    "", "Instead of training, raise the rate from update to update, say which to take and draw the "
    "losses into this PNG.", free=True,
  )  # fmt: skip
  report: bool = option(True, "Write report.html at the end.", free=True)


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> loop.Job:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  needed = ("data",) if own.find_lr else ("data", "workdir")
  faults = [f"--{name} is missing" for name in needed if not getattr(config, name)]
  if own.find_lr and not own.find_lr.endswith(".png"):
    faults.append(f"--find_lr={own.find_lr}: wanted the name of a PNG, such as rates.png")
  if own.cache_features:
    faults += contradictions(config, optimizer, own)
  try:
    origin = described(config.model)
    noise = own.fields(origin.variant)
  except (ValueError, OSError) as error:
    faults.append(str(error))
  if faults:
    raise ValueError("\n".join(faults))
  stages = zoo.stages(origin.variant)
  frozen = optim.frozen(stages, optimizer.freeze)
  data = datasets.load(config.data, seed=config.seed, max_bad=config.max_bad)
  per_epoch = pipeline.steps_per_epoch(data.splits["train"], config.batch)
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  fields = {
    "num_classes": len(data.classes), "dtype": getattr(jnp, config.dtype),
    "freeze_norm": config.freeze_norm, "head": "", **noise,
  }  # fmt: skip
  preprocess = origin.preprocess.at(config.size) if config.size else origin.preprocess
  if own.squash:
    preprocess = dataclasses.replace(
      preprocess, resize=preprocess.size, squash=True, letterbox=False
    )
  record = dataclasses.replace(
    origin, classes=data.classes, preprocess=preprocess,
    fields={**origin.fields, "num_classes": len(data.classes)},
    provenance={**origin.provenance, "from": config.model, "data": config.data},
  )  # fmt: skip
  model = zoo.create(origin.weights or origin.variant, **{**origin.fields, **fields})
  if own.aux and not getattr(model, "aux", False):
    raise ValueError(f"--aux: {config.model} has no auxiliary heads")
  job = loop.Job(
    name="classify",
    task=Classify(
      own.loss,
      own.smoothing,
      class_weights(data.splits["train"].labels, len(data.classes))
      if own.balance == "loss"
      else (),
      aux=own.aux,
      best=own.best,
    ),
    model=model,
    record=record,
    weights=None if config.model in catalog.VARIANTS else partial(weights, config, fields),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate, per_epoch=per_epoch),
    rate=rate,
    mix=own.mix,
    frozen=frozen,
    train_batches=partial(train_batches, config, own, data, preprocess),
    eval_batches=lambda split: pipeline.eval_batches(
      data.splits[split],
      batch=config.batch,
      view=preprocess.crop,
      threads=config.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    keys={name: source.keys for name, source in data.splits.items() if len(source)},
    skipped=data.skipped,
    flags=(config, optimizer, own),
    phases=optim.phases(optimizer, stages, per_epoch),
    heard=partial(optim.heard, optimizer),
  )
  return on_features(config, own, job, data) if own.cache_features else job


def contradictions(config: loop.Config, optimizer: optim.Config, own: Config) -> list[str]:
  """A sentence for each flag that asks for more than features can give."""
  lost = [
    f"--{name}={getattr(part, name)} and --cache_features do not go together: {why}"
    for part, names, why in (
      (own, VIEWS, "every image is seen once, as evaluation sees it"),
      (own, ("dropout", "drop_path", "aux"), "the head alone runs while it is trained"),
      (optimizer, ("freeze", "unfreeze", "layer_decay"), "all but the head is held anyway"),
      (config, ("remat",), "the head alone runs while it is trained"),
      (own, ("find_lr",), "no features are kept without a run"),
    )
    for name in names
    if getattr(part, name) != getattr(type(part)(), name)
  ]
  if config.model in catalog.VARIANTS:
    lost.append(
      f"--model={config.model} would see with random weights; --cache_features wants a checkpoint, "
      "such as resnet18.tv1, or a run"
    )
  if jax.process_count() > 1:
    lost.append("--cache_features is for one process")
  return lost


def on_features(config: loop.Config, own: Config, job: loop.Job, data) -> loop.Job:
  """The run that trains the head of `job` alone, on what the rest of it sees of every image."""
  record = job.record
  stage, size = zoo.stages(record.variant)[-1], record.preprocess.size
  seen = features.Features(
    Path(config.workdir) / features.KEY, job.model,
    features.head_of(job.model, stage, size, record.in_channels), job.weights, record,
    {name: source for name, source in data.splits.items() if len(source)},
    config.batch, config.threads,
  )  # fmt: skip
  return dataclasses.replace(
    job,
    task=dataclasses.replace(job.task, inputs=(features.KEY,)),
    model=seen.head,
    weights=seen.start,
    published=seen.whole,
    ready=lambda: seen.make(meshes.make(config.mesh), loop.say),
    train_batches=partial(seen.train_batches, config.batch, config.seed, own.balance == "sample"),
    eval_batches=partial(seen.eval_batches, config.batch),
  )


def class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
  """Of each class: how much an image of it counts, so that all classes count alike; mean 1."""
  counts = np.bincount(labels, minlength=classes)
  present = np.count_nonzero(counts)
  return tuple(float(len(labels) / (present * max(n, 1))) for n in counts)


def described(model: str) -> zoo.Record:
  """What is known of a variant, of a checkpoint, or of a run's folder or file.

  Without the head of `zoo.heads` and the meaning of its outputs that it may have had there.
  """
  if not Path(model).exists() and "." not in model and "/" not in model:
    catalog.lookup(model, catalog.VARIANTS | catalog.WEIGHTS, "model")
  record = zoo.Record(model) if model in catalog.VARIANTS else zoo.record(model)
  if (task := zoo.task(record.variant)) != "classify":
    raise ValueError(f"{model} is no classifier but one of zoo.names(task={task!r})")
  fields = {name: value for name, value in record.fields.items() if name != "head"}
  return dataclasses.replace(record, fields=fields, outputs={})


def weights(config: loop.Config, fields) -> dict:
  return zoo.load(config.model, seed=config.seed, **fields)[1]


def train_batches(config: loop.Config, own: Config, data, preprocess: zoo.Preprocess, step: int):
  return pipeline.train_batches(
    data.splits["train"], batch=config.batch, size=preprocess.size, seed=config.seed,
    start_step=step, threads=config.threads,
    process_index=jax.process_index(), process_count=jax.process_count(),
    repeat=own.repeat, balance=own.balance == "sample", augment=own.views,
  )  # fmt: skip


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  job = prepare(config, optimizer, own)
  if own.find_lr:
    stages = zoo.stages(job.record.variant)
    make_tx = partial(optim.make, optimizer, stages, per_epoch=job.per_epoch)
    return rates.run(config, job, make_tx, Path(own.find_lr))
  outcome = loop.run(config, job)
  loop.say(f"{outcome.split}: {show(outcome.measured)}")
  if own.report and jax.process_index() == 0:
    page = report.write([Path(config.workdir)], Path(config.workdir) / "report.html")
    print(f"report: {page.resolve()}")


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
