"""What is where in photographs, by a pretrained or a trained detector.

  python -m train.find --model=yolov2_tiny.pod photo.jpg
  python -m train.find --model=runs/mine photo.jpg folder/ --confidence=0.3 --out=answers
  python -m train.find --model=fasterrcnn_resnet50_fpn.tv1 photo.jpg --maps=grad_cam --out=answers

Prints each detection: its score, its class, x0 y0 x1 y1 in pixels of the picture.  --out writes a
folder: the pictures with boxes drawn over them as PNG, and masks where the model finds them,
answers.json, answers.csv, coco.json (which COCO's tools take) and index.html.  --flip looks at each
picture mirrored too; --tile cuts large pictures into overlapping tiles and looks at these beside
the whole.  --maps=grad_cam shows for each detection where in the whole picture its score comes
from, at the last map of the network's backbone.  What cannot be read is named at the end, and makes
the exit status 1; the other photographs are answered all the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
from functools import partial
import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as packed

from train import average_precision, batches, options, predict, startup
from train.album import Album, Answer
from train.options import option
from train.predict import readable
import zoo
from zoo import explain
from zoo.detect import found
from zoo.detect.found import Found
from zoo.weights import Preprocess

OVERLAP = 0.2  # share of a tile that its neighbour shows too


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Weights (variant.tag), the folder of a run, or a .safetensors file.")
  confidence: float = option(
    0.25, "Detections are surer than this.", lower_bound=0.0, upper_bound=1.0
  )
  iou: float = option(
    0.45, "Of two detections of a class that overlap more, the surer stays.", lower_bound=0.0,
    upper_bound=1.0,
  )  # fmt: skip
  max_detections: int = option(100, "Of a picture.", lower_bound=1)
  classes: tuple[str, ...] = option((), "Only these, such as person,dog.")
  flip: bool = option(False, "Look at each picture mirrored too.")
  tile: int = option(
    0, "Pixels of the square tiles that larger pictures are cut into too; 0 for none.",
    lower_bound=0,
  )  # fmt: skip
  maps: str = option(
    "", "Maps to lay over the photographs in --out, one for each detection.",
    choices=("", "grad_cam"),
  )  # fmt: skip
  out: str = option("", "Folder to write pictures and answers to; must be new.")
  batch: int = option(8, "Views computed at once.", lower_bound=1)
  threads: int = option(4, "Threads that read photographs, and that write them.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Network:
  """A detector of pictures as `found.seen` gives them; `apply` as the detector's own."""

  model: nn.Module
  pixels: Preprocess
  size: jax.Array  # [b 2], of `found.Seen`

  def apply(self, variables, image, *, train: bool):
    pixels = self.pixels.normalize(image)
    if self.pixels.longest is None:
      return self.model.apply(variables, pixels, train=train)
    rows, columns = (jnp.arange(n) for n in image.shape[1:3])
    height, width = (self.size[:, i, None, None] for i in (0, 1))
    inside = (rows[:, None] < height) & (columns < width)
    pixels = jnp.where(inside[..., None], pixels, 0)
    return self.model.apply(variables, pixels, train=train, size=self.size)


class View(NamedTuple):
  """A part of a picture, perhaps mirrored."""

  pixels: np.ndarray  # [h w 3] uint8
  left: int
  top: int
  mirrored: bool

  def back(self, one: Found, height: int, width: int) -> Found:
    """What was found in it, in pixels of the whole picture of that size."""
    x0, y0, x1, y1 = one.boxes.T
    if self.mirrored:
      right = self.pixels.shape[1]
      x0, x1 = right - x1, right - x0
    boxes = np.stack([x0 + self.left, y0 + self.top, x1 + self.left, y1 + self.top], 1)
    masks = one.masks
    if masks is not None and (self.mirrored or self.pixels.shape[:2] != (height, width)):
      masks = np.array([self._mask_back(mask, height, width) for mask in masks], object)
    return dataclasses.replace(one, boxes=np.float32(boxes), masks=masks)

  def _mask_back(self, mask: dict, height: int, width: int) -> dict:
    part, out = packed.decode(mask), np.zeros((height, width), np.uint8, order="F")
    part = part[:, ::-1] if self.mirrored else part
    out[self.top : self.top + part.shape[0], self.left : self.left + part.shape[1]] = part
    return packed.encode(out)


def find(
  pictures: Iterable[tuple[Path | int, np.ndarray]], config: Config, *, many: bool = False
) -> Iterator[Answer]:
  """Answers in order of `pictures`, each [h w 3] uint8.

  Args:
    many: there are many, all of one size: the network is folded and packed for them first.

  Raises:
    ValueError, FileNotFoundError: there is no such model or class, or it is no detector.
  """
  record = zoo.record(config.model)
  if zoo.task(record.variant) != "detect":
    raise ValueError(f"{config.model} finds no boxes; name a detector (python -m zoo lists them)")
  network, variables = zoo.load(config.model)
  if network.num_classes is None:
    raise ValueError(f"{config.model} is a backbone without classes; name a detector")
  classes = predict.class_names(record, network.num_classes)
  nothing(classes).of(config.classes)  # names those that are unknown
  pixels = record.preprocess
  if pixels.longest is None:
    pixels = found.whole(pixels)
  pictures = iter(pictures)
  if many and (first := next(pictures, None)):
    pictures = itertools.chain([first], pictures)
    size = found.seen(pixels, first[1]).pixels.shape[:2]
    rows = config.batch if jax.default_backend() == "cpu" else None
    network, variables = zoo.fold(network, variables, size=size, cpu_batch=rows)
  variables = jax.device_put(variables)

  @jax.jit
  def step(variables, image, size):
    out = Network(network, pixels, size).apply(variables, image, train=False)
    rows = network.detect(out, score=config.confidence, iou=config.iou, limit=config.max_detections)
    if getattr(network, "mask", None) is not None:
      masks = network.apply(variables, out, rows, method="masks")
      rows["masks"] = jnp.rint(255 * masks).astype(jnp.uint8)
    return rows

  @jax.jit
  def explained(variables, image, size, boxes, labels):
    target = explain.of_box(network.decode, boxes, labels)
    return explain.grad_cam(
      Network(network, pixels, size), variables, image, target, layer_of(network)
    )

  compiled = defaultdict(set)  # what and its shape: numbers of rows
  for some in batches.chunks(pictures, config.batch):
    views = [view for _, image in some for view in views_of(image, config.flip, config.tile)]
    answers = {}
    for alike in _alike(views, pixels, config.batch):
      known = compiled["boxes", alike[0][1].pixels.shape]
      stack = _stacked([s for _, s in alike], batches.at_once(len(alike), known, config.batch))
      rows = jax.device_get(step(variables, *stack))
      for n, (i, seen) in enumerate(alike):
        height, width = views[i].pixels.shape[:2]
        one = {name: rows[name][n] for name in ("boxes", "scores", "box_label")}
        if "masks" in rows:
          places = seen.where.out(one["boxes"])
          masks = average_precision.all_pasted(rows["masks"][n], places, height, width)
          one["masks"] = masks
        answers[i] = found.of_one(one, seen.where, height, width, classes)
    start = 0
    for name, image in some:
      count = len(views_of(image, config.flip, config.tile))
      size = image.shape[:2]
      own = [views[i].back(answers[i], *size) for i in range(start, start + count)]
      whole = merged(own, size, config.iou, config.max_detections)
      whole = whole.of(config.classes) if config.classes else whole
      start += count
      maps = []
      if config.maps:
        seen, run = found.seen(pixels, image), partial(explained, variables)
        maps = maps_of(run, seen, whole, config.batch, compiled["maps", seen.pixels.shape])
      yield Answer(name, image, whole, maps)


def _alike(
  views: Sequence[View], pixels: Preprocess, count: int
) -> Iterator[list[tuple[int, found.Seen]]]:
  """Views with their numbers, at most `count` of one shape; each shape is compiled for itself."""
  waiting = {}
  for i, view in enumerate(views):
    seen = found.seen(pixels, view.pixels)
    some = waiting.setdefault(seen.pixels.shape, [])
    some.append((i, seen))
    if len(some) == count:
      yield waiting.pop(seen.pixels.shape)
  yield from waiting.values()


def _stacked(some: Sequence[found.Seen], count: int) -> tuple[np.ndarray, np.ndarray]:
  """(pixels, sizes) of pictures, the last one repeated until there are `count`."""
  some = batches.filled(some, count)
  return np.stack([one.pixels for one in some]), np.array([one.size for one in some], np.int32)


def layer_of(network) -> str:
  """The last end point of the backbone that the detector reads."""
  if hasattr(network, "maps"):
    return network.maps[-1]
  image = np.zeros((1, 448, 448, 3), np.float32)  # YOLO v1 takes no other
  run = partial(network.init_with_output, train=False)
  ends, _ = jax.eval_shape(run, jax.random.key(0), image)
  return max((end for end in ends if end.startswith("stage")), key=lambda end: int(end[5:]))


def maps_of(
  run: Callable, seen: found.Seen, one: Found, most: int, compiled: set[int]
) -> list[np.ndarray]:
  """A map over the picture for each detection, [h' w'].

  Args:
    run: (pixels, sizes, boxes, labels) of `most` rows or fewer -> maps of the whole input.
    compiled: numbers of rows that `run` is compiled for.
  """
  height, width = one.height, one.width
  x0, y0, x1, y1 = np.rint(seen.where.into(np.array([[0, 0, width, height]]))[0]).astype(int)
  boxes, maps = seen.where.into(one.boxes), []
  for rows in batches.chunks(range(len(one)), most):
    own, count = len(rows), batches.at_once(len(rows), compiled, most)
    rows = batches.filled(rows, count)
    heat = run(*_stacked([seen], count), boxes[rows], one.labels[rows])
    for row in np.asarray(heat, np.float32)[:own]:
      large = cv2.resize(row, seen.pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
      maps.append(large[y0:y1, x0:x1])
  return maps


def nothing(classes: Sequence[str]) -> Found:
  empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
  return Found(*empty, 1, 1, tuple(classes))


def views_of(image: np.ndarray, flip: bool, tile: int) -> list[View]:
  """The whole picture, its tiles if it is larger than one, and each mirrored."""
  height, width = image.shape[:2]
  views = [View(image, 0, 0, False)]
  if tile and max(height, width) > tile:
    tops, lefts = (_starts(side, tile) for side in (height, width))
    views += [View(image[y : y + tile, x : x + tile], x, y, False) for y in tops for x in lefts]
  if flip:
    views += [v._replace(pixels=v.pixels[:, ::-1], mirrored=True) for v in views]
  return views


def _starts(side: int, tile: int) -> list[int]:
  """Where tiles begin: evenly, from edge to edge, overlapping by `OVERLAP` at least."""
  if side <= tile:
    return [0]
  count = -int(-(side - tile) // (tile * (1 - OVERLAP))) + 1
  return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def merged(parts: Sequence[Found], size: tuple[int, int], iou: float, limit: int) -> Found:
  """Detections of all views of a picture of `size` (height, width), each object once."""
  first, (height, width) = parts[0], size
  boxes, scores, labels, masks = (
    None if getattr(first, name) is None else np.concatenate([getattr(p, name) for p in parts])
    for name in ("boxes", "scores", "labels", "masks")
  )
  order = np.argsort(-scores, kind="stable")
  kept = order[:limit]
  if len(parts) > 1:  # one view's detections have been thinned out already
    near = average_precision.overlaps(boxes, boxes) > iou
    near &= labels[:, None] == labels[None]
    gone, kept = np.zeros(len(scores), bool), []
    for i in order:
      if not gone[i] and len(kept) < limit:
        kept.append(i)
        gone |= near[i]
  kept = np.asarray(kept, int)
  masks = None if masks is None else masks[kept]
  return Found(boxes[kept], scores[kept], labels[kept], height, width, first.classes, masks)


def show(answer: Answer) -> str:
  lines = [
    f"{100 * score:6.1f} %  {name}  " + " ".join(f"{v:.0f}" for v in box)
    for name, score, box in zip(answer.found.names, answer.found.scores, answer.found.boxes)
  ]
  return "\n".join([readable(answer.name), *(lines or ["nothing"])])


def main(argv: Sequence[str], config: Config) -> int:
  failures = []
  failed = lambda sentence: failures.append(readable(sentence))
  if not config.model or not argv[1:]:
    raise ValueError(
      "name a model and photographs: python -m train.find --model=yolov2_tiny.pod photo.jpg folder/"
    )
  if config.maps and not config.out:
    raise ValueError(f"--maps={config.maps} are drawn into a folder; name it by --out")
  startup.set_up_compilation()
  paths = predict.find(argv[1:], failed)
  answered = 0
  with contextlib.ExitStack() as stack:
    album = None
    if config.out:
      title = f"Found by {Path(config.model).name}"
      album = stack.enter_context(Album(Path(config.out), title, config.threads))
    for answer in find(predict.read(paths, config.threads, failed), config):
      answered += 1
      if album:
        album.add(answer)
      print(show(answer), flush=True)
    if album and answered:
      album.finish(failures)
  status = predict.unanswered(failures)
  if album and answered:
    print(f"pictures: {(Path(config.out) / 'index.html').resolve()}")
  return status


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
