"""Views of pictures with boxes, and batches of them as a function of the step.

A training view is darknet's: jittered, placed in a square, flipped and recoloured; four may share a
square and two may be blended.  `eval_view` shows a picture as the checkpoint wants it.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from train.data import threaded
from train.data.detection import BoxSource
from zoo.detect.found import Place, place
from zoo.ops.roi import window
from zoo.weights import Preprocess

CELLS = 112  # of a mask's bitmap, down and across: four for each that Mask R-CNN answers
GREY = 128  # around a picture that does not fill the square


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training does to a picture; `None` in its place shows it as evaluation does."""

  jitter: float = 0.3  # of width and height, before the picture is fitted into the square
  scale: tuple[float, float] = (1.0, 1.0)  # of the fitted picture; above 1 its borders are cut off
  flip: float = 0.5  # probability of left for right
  hue: float = 0.1  # share of the circle, at most
  saturation: float = 1.5  # factor or its inverse, at most
  exposure: float = 1.5
  mosaic: float = 0.0  # probability that four pictures share the square (arXiv:2004.10934)
  mixup: float = 0.0  # probability that two pictures are blended (arXiv:1902.04103)
  visible: float = 0.2  # share of an object that must be left for it to count

  def __post_init__(self):
    faults = [
      f"{name} is a share within 0..1, not {getattr(self, name)}"
      for name in ("flip", "mosaic", "mixup", "visible", "hue", "jitter")
      if not 0 <= getattr(self, name) <= 1
    ]
    if not 0 < self.scale[0] <= self.scale[1]:
      faults.append(f"scale must be positive and rise, not {self.scale}")
    faults += [f"{name} is a factor of at least 1, not {getattr(self, name)}"
               for name in ("saturation", "exposure") if getattr(self, name) < 1]  # fmt: skip
    if faults:
      raise ValueError("augmentation: " + "; ".join(faults))


class View(NamedTuple):
  """What a network sees, and what is in it."""

  image: np.ndarray  # [size size 3] uint8
  boxes: np.ndarray  # [n 4] float32 in its pixels
  labels: np.ndarray  # [n] int32
  masks: np.ndarray | None = None  # [n size size] uint8, 0 to 255; None if not asked for

  def bitmaps(self) -> np.ndarray | None:
    """[n CELLS CELLS] uint8: each mask within the `zoo.ops.roi.window` of its box."""
    if self.masks is None:
      return None
    out = np.zeros((len(self.labels), CELLS, CELLS), np.uint8)
    first, scale = window(np.float32(self.boxes), CELLS)
    for row, mask, (x, y), (wide, tall) in zip(out, self.masks, first.astype(int), scale):
      x1, y1 = x + round(CELLS * float(wide)), y + round(CELLS * float(tall))
      part = mask[y:y1, x:x1]
      shape = tuple(CELLS if n > 1 else have for n, have in zip((wide, tall), part.shape[::-1]))
      if part.size:
        row[: shape[1], : shape[0]] = cv2.resize(part, shape, interpolation=cv2.INTER_AREA)
    return out


def train_view(
  source: BoxSource, index: int, rng: np.random.Generator, size: int, augment: Augment
) -> View:
  """One row for training: as darknet does it, and by mosaic and mixup of further rows."""
  view = _one_or_four(source, index, rng, size, augment)
  if augment.mixup and rng.random() < augment.mixup:
    other = _one_or_four(source, int(rng.integers(len(source))), rng, size, augment)
    share = rng.beta(8, 8)
    mixed = share * view.image.astype(np.float32) + (1 - share) * other.image
    view = View(np.rint(mixed).astype(np.uint8), *_joined([view, other]))
  image, boxes, labels, masks = view
  if rng.random() < augment.flip:
    image = image[:, ::-1]
    boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    masks = None if masks is None else masks[..., ::-1]
  return View(np.ascontiguousarray(distorted(image, rng, augment)), boxes, labels, masks)


def _joined(views: Sequence[View]):
  """(boxes, labels, masks) of several views of the same square."""
  parts = zip(*(view[1:] for view in views))
  return [None if part[0] is None else np.concatenate(part) for part in parts]


def _one_or_four(source, index, rng, size, augment) -> View:
  if not augment.mosaic or rng.random() >= augment.mosaic:
    return _placed(source, index, rng, size, augment)
  rows = [index, *(int(i) for i in rng.integers(len(source), size=3))]
  middle = np.rint(rng.uniform(0.25, 0.75, 2) * size).astype(int)
  image = np.full((size, size, 3), GREY, np.uint8)
  views = []
  for quarter, row in enumerate(rows):
    part = _placed(source, row, rng, size, augment)
    right, below = quarter % 2, quarter // 2
    # the part's corner goes to the middle, and what reaches out of the square is cut off
    x, y = (int(m) if far else int(m) - size for m, far in zip(middle, (right, below)))
    low = (max(x, 0), max(y, 0))
    high = (min(x + size, size), min(y + size, size))
    into = (slice(low[1], high[1]), slice(low[0], high[0]))
    out_of = (slice(low[1] - y, high[1] - y), slice(low[0] - x, high[0] - x))
    image[into] = part.image[out_of]
    boxes, kept = _cut(part.boxes + np.float32([x, y] * 2), (*low, *high), augment.visible)
    masks = None
    if part.masks is not None:
      masks = np.zeros((kept.sum(), size, size), np.uint8)
      masks[:, *into] = part.masks[kept][:, *out_of]
    views.append(View(image, boxes, part.labels[kept], masks))
  return View(image, *_joined(views))


def _placed(source, index, rng, size, augment) -> View:
  """A picture of another shape and size, somewhere in the square."""
  pixels = source.picture(index)
  height, width = pixels.shape[:2]
  shape = [side * (1 + rng.uniform(-1, 1) * augment.jitter) for side in (height, width)]
  factor = rng.uniform(*augment.scale) * size / max(shape)
  new_h, new_w = (max(1, round(side * factor)) for side in shape)
  # anywhere inside; where it is larger than the square, anywhere that fills it
  top, left = (int(rng.integers(min(0, size - n), max(0, size - n) + 1)) for n in (new_h, new_w))
  image = _pasted(pixels, (new_h, new_w), (top, left), size)
  objects = source.objects[index]
  where = Place(new_w / width, new_h / height, left, top)
  plain = objects.plain
  boxes, kept = _cut(where.into(objects.boxes[plain]), (0, 0, size, size), augment.visible)
  masks = source.masks(index)
  if masks is not None:
    masks = _all_pasted(masks[kept], (new_h, new_w), (top, left), size)
  return View(image, boxes, objects.labels[plain][kept], masks)


def _all_pasted(masks, shape: tuple[int, int], corner: tuple[int, int], size: int) -> np.ndarray:
  """[n size size]: masks where `_pasted` puts their picture."""
  out = np.zeros((len(masks), size, size), np.uint8)
  for row, mask in zip(out, masks):
    row[:] = _pasted(mask, shape, corner, size, 0)
  return out


def _pasted(
  pixels, shape: tuple[int, int], corner: tuple[int, int], size: int, ground: int = GREY
) -> np.ndarray:
  """[size size ...]: a picture resized to `shape` with its first pixel at `corner`."""
  small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_LINEAR)
  image = np.full((size, size, *pixels.shape[2:]), ground, np.uint8)
  (t0, t1), (s0, s1) = zip(*(
    ((max(at, 0), min(at + n, size)), (max(-at, 0), min(at + n, size) - at))
    for at, n in zip(corner, shape)
  ))  # fmt: skip
  image[t0[0] : t0[1], t1[0] : t1[1]] = small[s0[0] : s0[1], s1[0] : s1[1]]
  return image


def _cut(boxes: np.ndarray, frame, visible: float) -> tuple[np.ndarray, np.ndarray]:
  """(boxes cut to a frame x0 y0 x1 y1, mask of those that stay): enough of them is inside."""
  low, high = np.float32(frame[:2]), np.float32(frame[2:])
  inside = np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], 1)
  size = np.maximum(inside[:, 2:] - inside[:, :2], 0)
  whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
  kept = (size.prod(1) >= visible * whole) & (size >= 1).all(1)
  return inside[kept], kept


def distorted(image: np.ndarray, rng: np.random.Generator, augment: Augment) -> np.ndarray:
  """Another hue, saturation and exposure, each drawn as darknet draws it."""
  hue = rng.uniform(-augment.hue, augment.hue)
  factors = [rng.uniform(1, most) for most in (augment.saturation, augment.exposure)]
  factors = [f if rng.random() < 0.5 else 1 / f for f in factors]
  if hue == 0 and factors == [1, 1]:
    return image
  hsv = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2HSV)
  hsv[..., 0] = (hsv[..., 0] + 360 * hue) % 360
  hsv[..., 1:] = np.minimum(hsv[..., 1:] * np.float32(factors), 1)
  return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)


def eval_view(source: BoxSource, index: int, preprocess: Preprocess) -> View:
  """The picture as `preprocess.crop` shows it."""
  pixels, objects = source.picture(index), source.objects[index]
  where, plain = place(preprocess, *pixels.shape[:2]), objects.plain
  image = preprocess.crop(Image.fromarray(pixels))
  masks = source.masks(index)
  if masks is not None:
    height, width = pixels.shape[:2]
    shape = round(height * where.scale_y), round(width * where.scale_x)
    masks = _all_pasted(masks, shape, (where.top, where.left), preprocess.size)
  return View(image, where.into(objects.boxes[plain]), objects.labels[plain], masks)


def train_batches(
  source: BoxSource, preprocess: Preprocess, *, batch: int, boxes: int, seed: int,
  start_step: int = 0, threads: int = 2, augment: Augment | None = Augment(),  # noqa: B008 (frozen)
  sizes: Sequence[int] = (), process_index: int = 0, process_count: int = 1,
) -> Iterator[dict]:  # fmt: skip
  """Batches of step `start_step`, `start_step` + 1 ... without end; a function of seed and step.

  Args:
    batch: pictures in all processes together.
    boxes: rows of a picture; of more objects some are left out by chance.
    augment: None shows pictures as evaluation does.
    sizes: of the square, another every ten steps, as darknet's `random=1`; () is the preprocess's.

  Yields:
    {"image": [b size size 3] uint8, "boxes": [b boxes 4] float32, "box_label": [b boxes] int32
    with -1 for padding, "seen": [b] int32, pictures of the run up to and with this batch,
    "index": [b] int32, "real": [b] float32 of ones}, and "masks": [b boxes CELLS CELLS] uint8, as
    `View.bitmaps`, where they were asked for.
  """
  per_epoch = len(source) // batch
  if not per_epoch:
    raise ValueError(
      f"there are {len(source)} training pictures, fewer than one batch of {batch}; set the batch "
      f"to {len(source)} or less"
    )

  def rows():
    step = start_step
    while True:
      epoch, at = divmod(step, per_epoch)
      order = threaded.permutation(len(source), seed, 0, epoch)[at * batch : (at + 1) * batch]
      size = preprocess.size
      if sizes:
        size = int(np.random.default_rng((seed, 1, step // 10)).choice(sizes))
      numbered = [(size, int(row), step * batch + i) for i, row in enumerate(order)]
      yield threaded.share(numbered, process_index, process_count)
      step += 1

  def make(row):
    size, index, number = row
    rng = np.random.default_rng((seed, 2, number))
    if augment is None:
      view = eval_view(source, index, preprocess.at(size))
    else:
      view = train_view(source, index, rng, size, augment)
    return _row(index, view, boxes, rng) | {"seen": np.int32((number // batch + 1) * batch)}

  return threaded.batches(rows(), make, threads)


def eval_batches(
  source: BoxSource, preprocess: Preprocess, *, batch: int, boxes: int, threads: int = 2,
  process_index: int = 0, process_count: int = 1,
) -> Iterator[dict]:  # fmt: skip
  """All rows once, as `train_batches` yields them; filling rows have index -1 and real 0."""

  def make(index):
    view = eval_view(source, max(index, 0), preprocess)
    if index < 0:
      view = View(np.zeros_like(view.image), *(None if a is None else a[:0] for a in view[1:]))
    return _row(index, view, boxes, np.random.default_rng((3, max(index, 0))))

  rows = threaded.eval_rows(
    len(source), batch=batch, process_index=process_index, process_count=process_count
  )
  return threaded.batches(rows, make, threads)


def _row(index: int, view: View, limit: int, rng: np.random.Generator) -> threaded.Row:
  n = len(view.labels)
  some = np.arange(n) if n <= limit else np.sort(rng.permutation(n)[:limit])

  def padded(values, dtype, nothing):
    rows = np.full((limit, *values.shape[1:]), nothing, dtype)
    rows[: len(some)] = values[some]
    return rows

  row = {
    "image": view.image, "boxes": padded(view.boxes, np.float32, 0),
    "box_label": padded(view.labels, np.int32, -1), "index": np.int32(index),
    "real": np.float32(index >= 0),
  }  # fmt: skip
  bitmaps = view.bitmaps()
  return row if bitmaps is None else row | {"masks": padded(bitmaps, np.uint8, 0)}
