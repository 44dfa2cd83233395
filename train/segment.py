"""Trains a network that gives a class to each pixel, on pictures with masks of your own.

  python -m train.segment --model=unet_resnet18 --backbone=resnet18.broccoli --data=FOLDER \\
    --workdir=runs/mine
  python -m train.segment --model=deeplabv3_resnet50.tv1 --data=VOC2012 --workdir=runs/voc

FOLDER holds images/train and masks/train (and val, test), VOC's or COCO's files; see
train/data/masks.py.  The same command goes on with a run that was stopped.  At the end the workdir
holds report.html; python -m train.outline --model=WORKDIR outlines other photographs.
"""

import dataclasses
from functools import partial
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from train import backbones, loop, optim, options, segment_report, startup
from train.data import masks, threaded
from train.mix import Mix
from train.options import option
from train.tasks.segment import Segment
import zoo
from zoo import catalog
from zoo.segment import fcn

LAYOUTS = ("", "folders", "voc", "coco")


@dataclasses.dataclass(frozen=True)
class Config:
  layout: str = option("", "Of --data, if it has several.", choices=LAYOUTS)
  backbone: str = option(
    "", "Published classifier (variant.tag) whose weights a fresh --model begins with."
  )
  scale: tuple[str, ...] = option(
    ("0.5", "2"), "Training shows pictures at random sizes from here to there, over --size."
  )
  flip: float = option(0.5, "Probability of left for right.", lower_bound=0.0, upper_bound=1.0)
  light: float = option(
    0.2, "Brightness and contrast change by so large a share.", lower_bound=0.0, upper_bound=0.9
  )
  focal: float = option(0.0, "Gamma of the focal loss, such as 2; 0 for none.", lower_bound=0.0)
  dice: float = option(0.0, "Weight of the Dice loss beside cross-entropy.", lower_bound=0.0)
  borders: float = option(
    0.0, "What pixels between things that almost touch count more, as in U-Net; 10 there.",
    lower_bound=0.0,
  )  # fmt: skip
  aux: float = option(0.5, "Weight of a model's auxiliary head.", lower_bound=0.0)
  class_weights: tuple[str, ...] = option(
    (), "What a pixel of each class counts, the background first; 1 for all if not given."
  )
  report: bool = option(True, "Write report.html at the end.", free=True)


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> loop.Job:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  faults = [f"--{name} is missing" for name in ("data", "workdir") if not getattr(config, name)]
  try:
    origin = described(config.model, own.backbone)
  except (ValueError, OSError) as error:
    faults.append(str(error))
  scale, weights = (_numbers(own, name, faults) for name in ("scale", "class_weights"))
  if len(scale) != 2:
    faults.append(f"--scale has two numbers, such as 0.5,2, not {len(scale)}")
  if faults:
    raise ValueError("\n".join(faults))
  classes, splits = masks.load(config.data, own.layout)
  if weights and len(weights) != len(classes):
    raise ValueError(
      f"--class_weights has {len(weights)} numbers, and there are {len(classes)} classes: "
      + ", ".join(classes)
    )
  count = len(splits["train"].keys)
  per_epoch = count // config.batch
  if not per_epoch:
    raise ValueError(f"--batch={config.batch} is more than the {count} training pictures")
  stages = zoo.stages(origin.variant)
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  fields = {
    "num_classes": len(classes), "dtype": getattr(jnp, config.dtype),
    "freeze_norm": config.freeze_norm,
  }  # fmt: skip
  size = config.size or origin.preprocess.size
  pixels = dataclasses.replace(origin.preprocess, size=size, resize=size)
  augment = masks.Augment(scale, own.flip, own.light)
  share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  return loop.Job(
    name="segment",
    task=Segment(masks.IGNORED, own.focal, own.dice, weights, own.aux),
    model=zoo.create(origin.weights or origin.variant, **{**origin.fields, **fields}),
    record=dataclasses.replace(
      origin, classes=classes, preprocess=pixels,
      fields={**origin.fields, "num_classes": len(classes)},
      provenance={
        **origin.provenance, "from": own.backbone or config.model, "data": config.data
      },
    ),
    weights=starting(config, own, fields, size),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate),
    rate=rate,
    mix=Mix(),
    frozen=optim.frozen(stages, optimizer.freeze),
    train_batches=lambda step: threaded.batches(
      threaded.train_rows(count, batch=config.batch, seed=config.seed, start_step=step, **share),
      masks.train_row(splits["train"], size, augment, own.borders), config.threads,
    ),
    eval_batches=lambda split: threaded.batches(
      threaded.eval_rows(len(splits[split].keys), batch=config.batch, **share),
      masks.eval_row(splits[split], size), config.threads,
    ),
    keys={name: source.keys for name, source in splits.items() if source.keys},
    flags=(config, optimizer, own),
  )  # fmt: skip


def _numbers(own: Config, name: str, faults: list[str]) -> tuple[float, ...]:
  try:
    return tuple(map(float, getattr(own, name)))
  except ValueError as error:
    faults.append(f"--{name}: {error}")
    return ()


def described(model: str, backbone: str = "") -> zoo.Record:
  """What is known of a segmenter: a variant, a checkpoint, or a run's folder or file.

  Of a variant with a published backbone, its pixels are those of the backbone.
  """
  if not Path(model).exists() and "." not in model and "/" not in model:
    catalog.lookup(model, catalog.VARIANTS | catalog.WEIGHTS, "model")
  fresh = model in catalog.VARIANTS
  record = zoo.Record(model) if fresh else zoo.record(model)
  if zoo.task(record.variant) != "segment" or record.variant == "craft":
    raise ValueError(
      f"{model} gives no class for each pixel; python -m zoo --filter='unet|fcn|deeplab|lraspp' "
      "lists what does"
    )
  if backbone and not fresh:
    raise ValueError(f"--backbone is for a fresh --model; {model} has weights of its own")
  if backbone:
    record = dataclasses.replace(record, preprocess=zoo.record(backbone).preprocess)
  return record


def starting(config: loop.Config, own: Config, fields, size: int):
  """What gives the variables to start from; None for random ones."""
  if own.backbone:
    return partial(on_backbone, config.model, own.backbone, config.seed, fields, size)
  if config.model in catalog.VARIANTS:
    return None
  return lambda: zoo.load(config.model, seed=config.seed, **fields)[1]


def on_backbone(variant: str, backbone: str, seed: int, fields, size: int) -> dict:
  """Fresh variables of a segmenter, but for those that a classifier's checkpoint has.

  Raises:
    ValueError: it is another network than the one the segmenter stands on.
  """
  model = zoo.create(variant, **fields)
  if isinstance(model, fcn.FCN):  # the original, which is a VGG itself
    fresh = zoo.init(model, jax.random.key(seed, impl="rbg"), size=size)
    return fcn.transplant(zoo.load(backbone)[1], fresh)
  known = backbones.under("backbone", backbone)
  return backbones.planted(model, backbone, known, ("backbone",), size=size, seed=seed)


def mean_iou(measured) -> float:
  """Over the classes that occur in truth or answer."""
  found = [v for name, v in measured.items() if name.startswith("iou/") and not math.isnan(v)]
  return sum(found) / max(len(found), 1)


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  job = prepare(config, optimizer, own)
  outcome = loop.run(config, job)
  measured = outcome.measured
  for k, name in enumerate(job.record.classes):
    if not math.isnan(iou := measured[f"iou/{k}"]):
      loop.say(f"{iou:7.1%}  {name}")
  loop.say(
    f"{outcome.split}: mean IoU {mean_iou(measured):.1%}, pixels {measured['pixel']:.1%}, "
    f"loss {measured['loss']:.3f}"
  )
  if own.report and jax.process_index() == 0:
    page = segment_report.write(Path(config.workdir))
    print(f"report: {page.resolve()}")


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
