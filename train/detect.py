"""Trains a detector on pictures with boxes, from published weights or from scratch.

  python -m train.detect --data=FOLDER --model=yolov3_tiny --size=160 --workdir=runs/mine
  python -m train.detect --data=FOLDER --model=yolov2_tiny.pod --freeze=5 --workdir=runs/mine
  python -m train.detect --data=FOLDER --model=maskrcnn_resnet50_fpn.tv1 --size=512 --workdir=...

FOLDER is COCO's, VOC's or darknet's, as train/data/detection.py shows.  The same command goes on
with a run that was stopped.  The workdir then holds report.html, model.safetensors (which zoo.load
and python -m train.find take), metrics.csv, predictions.npz, run.json, checkpoints/.

Every picture is fitted into a square, SSD's by stretching it, the others' with grey around it;
torchvision trains RetinaNet and R-CNNs on pictures of many shapes instead.  A Mask R-CNN wants a
mask of each object.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from train import average_precision, backbones, loop, optim, options, startup
from train.data import detection, detection_views
from train.data.detection import BoxSource
from train.data.detection_views import Augment
from train.metrics import show
from train.mix import Mix
from train.options import option
from train.tasks.rcnn import Rcnn, Sampled
from train.tasks.retinanet import Retina
from train.tasks.ssd import Ssd
from train.tasks.yolo import Yolo
import zoo
from zoo import catalog
from zoo.detect import found
from zoo.detect.rcnn import RCNN
from zoo.detect.retinanet import RetinaNet
from zoo.detect.ssd import SSD
from zoo.detect.yolo import YOLO, Dense


@dataclasses.dataclass(frozen=True)
class Config:
  backbone: str = option(
    "", "Weights (variant.tag, a run's folder or file) of a network with the same trunk, such as "
    "yolov2_tiny.pod for yolov3_tiny or resnet50.tv1 for fasterrcnn_resnet50_fpn; the rest is "
    "fresh.",
  )  # fmt: skip
  format: str = option(
    "", "Of the annotations; found out if not given.", choices=("", *detection.FORMATS)
  )
  boxes: int = option(
    100, "Objects of a picture that are trained on; of more, some are left out by chance.",
    lower_bound=1,
  )  # fmt: skip
  augment: bool = option(True, "Change training pictures as below; without, none of it.")
  jitter: float = option(
    0.3, "Share that width and height change by, at most, before the picture is fitted in.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  zoom: tuple[str, ...] = option(
    ("1", "1"), "Least and largest factor of a fitted picture, such as 0.5,1.5; what reaches out "
    "of the square is cut off.",
  )  # fmt: skip
  flip: float = option(0.5, "Probability of left for right.", lower_bound=0.0, upper_bound=1.0)
  hue: float = option(0.1, "Share of the color circle, at most.", lower_bound=0.0, upper_bound=1.0)
  saturation: float = option(1.5, "Factor or its inverse, at most.", lower_bound=1.0)
  exposure: float = option(1.5, "Factor or its inverse, at most.", lower_bound=1.0)
  mosaic: float = option(
    0.0, "Probability that four pictures share the square.", lower_bound=0.0, upper_bound=1.0
  )
  mixup: float = option(
    0.0, "Probability that two pictures are blended.", lower_bound=0.0, upper_bound=1.0
  )
  sizes: tuple[str, ...] = option(
    (), "Sides of the square to train at, another every ten updates, such as 320,416,512; each is "
    "compiled once.",
  )  # fmt: skip
  score: float = option(
    0.005, "Evaluation looks at detections that are surer.", lower_bound=0.0, upper_bound=1.0
  )
  iou: float = option(
    0.45, "Of two detections of a class that overlap more, the better stays.", lower_bound=0.0,
    upper_bound=1.0,
  )  # fmt: skip
  regions: int = option(
    512, "Regions of a picture that an R-CNN's second stage learns from, at most.", lower_bound=4
  )
  limit: int = option(100, "Detections of a picture, at most.", lower_bound=1)
  report: bool = option(True, "Write report.html at the end.", free=True)


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> loop.Job:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  faults = [f"--{name} is missing" for name in ("data", "workdir") if not getattr(config, name)]
  try:
    origin = described(config.model)
    pixels = pixels_of(origin, config.size)
    sizes = tuple(map(int, own.sizes))
    zoom = tuple(map(float, own.zoom))
    faults += strange_sizes(origin.variant, (pixels.size, *sizes))
    if len(zoom) != 2:
      faults.append(f"--zoom has two numbers, such as 0.5,1.5, not {len(zoom)}")
    elif not faults:
      augment = Augment(
        own.jitter, zoom, own.flip, own.hue, own.saturation, own.exposure, own.mosaic, own.mixup
      )
  except (ValueError, OSError) as error:
    faults.append(str(error))
  if faults:
    raise ValueError("\n".join(faults))
  masks = getattr(zoo.create(origin.variant), "mask", None) is not None
  data = detection.load(config.data, format=own.format, seed=config.seed, masks=masks)
  count = len(data.splits["train"])
  per_epoch = count // config.batch
  if not per_epoch:
    raise ValueError(f"--batch={config.batch} is more than the {count} training pictures")
  fields = {
    "num_classes": len(data.classes), "dtype": getattr(jnp, config.dtype),
    "freeze_norm": config.freeze_norm,
  }  # fmt: skip
  model = zoo.create(origin.weights or origin.variant, **{**origin.fields, **fields})
  task, trained = task_of(model, origin.variant, own)
  stages = zoo.stages(origin.variant)
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  some = {
    "batch": config.batch, "boxes": own.boxes, "threads": config.threads,
    "process_index": jax.process_index(), "process_count": jax.process_count(),
  }  # fmt: skip
  return loop.Job(
    name="detect",
    task=task,
    model=trained,
    record=dataclasses.replace(
      origin, classes=data.classes, preprocess=pixels,
      fields={**origin.fields, "num_classes": len(data.classes)},
      provenance={**origin.provenance, "from": own.backbone or config.model, "data": config.data},
    ),
    weights=starting(config, own, model, stages, pixels, fields),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate),
    rate=rate,
    mix=Mix(),
    frozen=optim.frozen(stages, optimizer.freeze),
    train_batches=lambda step: detection_views.train_batches(
      data.splits["train"], pixels, seed=config.seed, start_step=step, sizes=sizes,
      augment=augment if own.augment else None, **some,
    ),
    eval_batches=lambda split: detection_views.eval_batches(data.splits[split], pixels, **some),
    keys={name: source.keys for name, source in data.splits.items()},
    score=lambda split, rows, detections: average_precision.score(
      *beside(data.splits[split], rows, detections, pixels, data.classes), len(data.classes)
    ).measures,
    flags=(config, optimizer, own),
  )  # fmt: skip


def described(model: str) -> zoo.Record:
  """What is known of a detector: a variant, a checkpoint, or a run's folder or file."""
  if not Path(model).exists() and "." not in model and "/" not in model:
    catalog.lookup(model, catalog.VARIANTS | catalog.WEIGHTS, "model")
  if model in catalog.VARIANTS:
    record = zoo.Record(model, preprocess=zoo.preprocess(model))
  else:
    record = zoo.record(model)
  if zoo.task(record.variant) != "detect":
    raise ValueError(
      f"{model} is no detector but one of zoo.names(task={zoo.task(record.variant)!r})"
    )
  return record


def strange_sizes(variant: str, sizes: Sequence[int]) -> list[str]:
  """A sentence if YOLO cannot take squares of these sides; other detectors take any."""
  model = zoo.create(variant)
  if not isinstance(model, YOLO):
    return []
  if any(isinstance(row, Dense) for row in model.neck):
    wrong, wanted = [s for s in sizes if s != 448], "448 pixels, as its dense layer is"
  else:
    wrong, wanted = [s for s in sizes if s % 32 or s < 32], "multiples of 32"
  return [f"sides of {variant}'s input are {wanted}, not {wrong}"] if wrong else []


def starting(config: loop.Config, own: Config, model, stages, pixels, fields):
  """What gives the variables to start from; None for random ones."""
  if own.backbone and config.model not in catalog.VARIANTS:
    raise ValueError(f"--backbone is for a fresh --model; {config.model} has weights of its own")
  if own.backbone:
    return partial(on_backbone, model, own.backbone, stages, pixels.size, config.seed)
  if config.model in catalog.VARIANTS:
    return None
  return lambda: zoo.load(config.model, seed=config.seed, **fields)[1]


def on_backbone(model, backbone: str, stages: Sequence[str], size: int, seed: int) -> dict:
  """Fresh variables, but for all stages before the head, which are those of a checkpoint.

  Of a classifier's checkpoint only the body is taken, for it has nothing else of a detector.

  Raises:
    ValueError: that is of another network.
  """
  if zoo.task(zoo.record(backbone).variant) == "classify":
    known, trunk = backbones.under("body", backbone), ("body",)
  else:
    known, trunk = zoo.load(backbone)[1], stages[:-1]
  return backbones.planted(model, backbone, known, trunk, size=size, seed=seed)


def pixels_of(origin: zoo.Record, size: int) -> zoo.Preprocess:
  """How a detector's pictures are prepared, at a size of one's own if it is not 0."""
  pixels = found.whole(origin.preprocess)
  return pixels.at(size) if size else pixels


def yolo_task(model: YOLO, variant: str, own: Config) -> tuple[Yolo, YOLO]:
  rescore = variant != "yolov2_tiny"  # darknet's yolov2-tiny.cfg has rescore=0
  return Yolo(model, rescore, own.score, own.iou, own.limit), model


def ssd_task(model: SSD, variant: str, own: Config) -> tuple[Ssd, SSD]:
  return Ssd(model, own.score, own.iou, own.limit), model


def retina_task(model: RetinaNet, variant: str, own: Config) -> tuple[Retina, RetinaNet]:
  giou = variant.endswith("_v2")
  return Retina(model, giou, score=own.score, iou=own.iou, limit=own.limit), model


def rcnn_task(model: RCNN, variant: str, own: Config) -> tuple[Rcnn, Sampled]:
  asked = model.clone(score=own.score, iou=own.iou, limit=own.limit)
  return Rcnn(), Sampled(asked.clone, regions=own.regions, numerics=model.numerics)


# Families -> what makes their task, and the model as it is trained.
TASKS: dict[type, Callable] = {
  YOLO: yolo_task, SSD: ssd_task, RetinaNet: retina_task, RCNN: rcnn_task,
}  # fmt: skip


def task_of(model, variant: str, own: Config):
  """(task, model that is trained) of a detector."""
  return TASKS[type(model)](model, variant, own)


def beside(
  source: BoxSource,
  rows: Sequence[int],
  detections: Mapping[str, np.ndarray],
  pixels: zoo.Preprocess,
  classes: Sequence[str],
) -> tuple[list[detection.Objects], list[found.Found]]:
  """(what is there, what was found) of rows of a source, in pixels of the pictures.

  Args:
    detections: "boxes" [n k 4] in pixels of the network's input, "scores" and "box_label" [n k],
      and of a Mask R-CNN "masks" [n k m m] uint8, 0 to 255, of the boxes.
  """
  objects, answers = [], []
  for i, row in enumerate(rows):
    height, width = map(int, source.sizes[row])
    one = {name: detections[name][i] for name in ("boxes", "scores", "box_label")}
    where = found.place(pixels, height, width)
    if "masks" in detections:
      places = where.out(one["boxes"])
      one["masks"] = average_precision.all_pasted(detections["masks"][i], places, height, width)
    answers.append(found.of_one(one, where, height, width, classes))
    objects.append(source.objects[row])
  return objects, answers


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  outcome = loop.run(config, prepare(config, optimizer, own))
  loop.say(f"{outcome.split}: {show(outcome.measured)}")
  if own.report and jax.process_index() == 0:
    from train import detect_report  # late: it imports this module

    page = detect_report.write(Path(config.workdir))
    print(f"report: {page.resolve()}")


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
