"""What a detector found in one picture, in the picture's own pixels.

Networks answer in pixels of their input; `Place` says where the picture stood in it.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.detect import fpn
from zoo.weights import Preprocess, between, letterboxed


class Place(NamedTuple):
  """Where a picture stands in a network's input: x * scale_x + left, y * scale_y + top."""

  scale_x: float
  scale_y: float
  left: float
  top: float

  def into(self, boxes: np.ndarray) -> np.ndarray:
    """Boxes [n 4] of the picture in pixels of the network's input."""
    return np.float32(boxes * self._scale + self._shift)

  def out(self, boxes: np.ndarray) -> np.ndarray:
    """The inverse of `into`."""
    return np.float32((boxes - self._shift) / self._scale)

  @property
  def _scale(self) -> np.ndarray:
    return np.array((self.scale_x, self.scale_y) * 2)

  @property
  def _shift(self) -> np.ndarray:
    return np.array((self.left, self.top) * 2)


def whole(preprocess: Preprocess) -> Preprocess:
  """The same, or letterboxed where it would show the middle of a picture only, or no square."""
  if preprocess.letterbox or (preprocess.squash and preprocess.resize == preprocess.size):
    return preprocess
  return dataclasses.replace(preprocess, letterbox=True, longest=None)


def place(preprocess: Preprocess, height: int, width: int) -> Place:
  """Where `preprocess.crop` puts a picture of that size.

  Raises:
    ValueError: it shows a part of the picture only, as a classifier's does; see `whole`.
  """
  size = preprocess.size
  if preprocess.letterbox:
    new_h, new_w = (
      (size, width * size // height) if width < height else (height * size // width, size)
    )
    left, top = (size - new_w) // 2, (size - new_h) // 2
    return Place(new_w / width, new_h / height, left, top)
  if preprocess.squash and preprocess.resize == size:
    return Place(size / width, size / height, 0, 0)
  raise ValueError(f"a detector sees whole pictures (letterbox or squash), not {preprocess}")


class Seen(NamedTuple):
  """What a network sees of one picture."""

  pixels: np.ndarray  # [H W 3] in 0..255, of uint8 or float32
  size: tuple[int, int]  # height and width of what is picture or belongs to it, at the top left
  where: Place


def seen(preprocess: Preprocess, image: np.ndarray) -> Seen:
  """A whole picture [h w 3] uint8, as a detector's weights want it.

  With `longest` that is torchvision's way: resized without antialiasing, on one of five canvases
  (see `zoo.detect.fpn.canvas`); beyond `size` a network wants zeros once pixels are normalised.

  Raises:
    ValueError: as of `place`.
  """
  height, width = image.shape[:2]
  if preprocess.longest is None:
    where, side = place(preprocess, height, width), preprocess.size
    if preprocess.letterbox:  # as `crop` does, but for the copy that PIL would make
      return Seen(letterboxed(image, side), (side, side), where)
    return Seen(preprocess.crop(Image.fromarray(image)), (side, side), where)
  size = fpn.fitted((height, width), preprocess.size, preprocess.longest)
  pixels = image
  for axis, new in enumerate(size):
    old = pixels.shape[axis]
    at = np.clip((np.arange(new, dtype=np.float32) + 0.5) * (old / new) - 0.5, 0, old - 1)
    pixels = between(pixels, axis, np.float32(at))
  canvas = fpn.canvas(size, preprocess.size, preprocess.longest)
  where = Place(size[1] / width, size[0] / height, 0, 0)
  return Seen(fpn.on_canvas(pixels, canvas), size, where)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """Detections of one picture, best first."""

  boxes: np.ndarray  # [n 4] float32, x0 y0 x1 y1 in pixels of the picture
  scores: np.ndarray  # [n] float32
  labels: np.ndarray  # [n] int32
  height: int  # of the picture
  width: int
  classes: Sequence[str]
  masks: np.ndarray | None = None  # [n] of objects, each as pycocotools packs it, where there are

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def names(self) -> list[str]:
    return [self.classes[i] for i in self.labels]

  @property
  def boxes_xywh(self) -> np.ndarray:
    """[n 4] left, top, width, height in pixels, as COCO writes them."""
    return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)

  @property
  def boxes_cxcywh(self) -> np.ndarray:
    """[n 4] centre, width, height in pixels."""
    size = self.boxes[:, 2:] - self.boxes[:, :2]
    return np.concatenate([self.boxes[:, :2] + size / 2, size], 1)

  @property
  def boxes_share(self) -> np.ndarray:
    """[n 4] x0 y0 x1 y1 as shares of the picture's width and height."""
    return self.boxes / np.float32([self.width, self.height] * 2)

  @property
  def boxes_cxcywh_share(self) -> np.ndarray:
    """[n 4] centre, width, height as shares, as darknet's label files write them."""
    return self.boxes_cxcywh / np.float32([self.width, self.height] * 2)

  def only(self, rows) -> "Found":
    """Those of an index or a mask."""
    names = ("boxes", "scores", "labels", *(() if self.masks is None else ("masks",)))
    return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

  def of(self, names: Collection[str]) -> "Found":
    """Those of some classes. Raises ValueError that names unknown ones."""
    if strange := sorted(set(names) - set(self.classes)):
      raise ValueError(f"no classes {', '.join(strange)}; there are {', '.join(self.classes)}")
    return self.only(np.isin(self.labels, [self.classes.index(name) for name in names]))

  def as_dict(self) -> dict[str, Any]:
    """Plain numbers, for JSON; masks as COCO's run lengths in text."""
    rows = zip(self.names, self.scores, self.boxes, self.boxes_share)
    found = [
      {"class": name, "score": round(float(score), 6), "box": _rounded(box, 2),
       "share": _rounded(share, 6)}
      for name, score, box, share in rows
    ]  # fmt: skip
    for one, mask in zip(found, () if self.masks is None else self.masks):
      one["mask"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
    return {"width": self.width, "height": self.height, "found": found}


def _rounded(numbers, digits: int) -> list[float]:
  return [round(float(x), digits) for x in numbers]


def of_one(
  detections: Mapping[str, np.ndarray], where: Place, height: int, width: int, classes
) -> Found:
  """What `detect` answered for one picture: "boxes" [n 4], "scores" [n], "box_label" [n].

  And "masks" [n], as of `Found`, if there are.  Padding is dropped; boxes are cut to the picture,
  and those that lie outside it dropped.
  """
  boxes = where.out(np.asarray(detections["boxes"], np.float32))
  boxes = np.clip(boxes, 0, np.float32([width, height] * 2))
  labels, scores = (np.asarray(detections[k]) for k in ("box_label", "scores"))
  real = (labels >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
  found = Found(boxes, scores, labels, height, width, tuple(classes), detections.get("masks"))
  return found.only(real)
