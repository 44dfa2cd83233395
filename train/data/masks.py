"""Pictures and a class for each of their pixels: folders, VOC's and COCO's layout.

  images/SPLIT/*.jpg, masks/SPLIT/*.png          folders; SPLIT is train, val, test
  JPEGImages, SegmentationClass, ImageSets       VOC
  annotations/instances_SPLIT*.json, images/...  COCO: the instances, painted by their categories

Masks are PNGs of one channel or with a palette; a pixel's number is its class, 255 is neither
taught nor counted.  classes.txt names them, a class a line; without a line "background" first, the
background is put before them.  Masks of COCO's polygons differ from pycocotools' by pixels of their
edges; run lengths are exact.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from train.data import transforms
from train.data.folders import SUFFIXES
from zoo.weights import VOC

IGNORED = 255
SPLITS = ("train", "val", "test")
LISTED = 20  # faults named in one message; of the others the number is told
READERS = 8  # threads that wait for the disk
FINER = (
  4  # parts of a pixel's side, on which polygons are painted; its middle says whether it is in
)
WIDEST = 2.0  # longer side over the shorter; beyond it a picture is made smaller


class Pairs(Protocol):
  """Pictures of a split, with their masks; read from several threads at once."""

  keys: Sequence[str]
  sizes: Sequence[tuple[int, int]]  # (height, width) of each, upright

  def picture(self, index: int) -> np.ndarray:
    """[h w 3] uint8."""

  def mask(self, index: int) -> np.ndarray:
    """[h w] uint8."""


@dataclasses.dataclass(frozen=True)
class Files:
  """A picture file and a mask file each."""

  root: Path
  keys: tuple[str, ...]  # paths of pictures below `root`
  masks: tuple[str, ...]
  sizes: tuple[tuple[int, int], ...]

  def picture(self, index: int) -> np.ndarray:
    return _decoded(self.root / self.keys[index])

  def mask(self, index: int) -> np.ndarray:
    return read_mask(self.root / self.masks[index])


@dataclasses.dataclass(frozen=True)
class Instances:
  """COCO's: things, painted from the largest to the smallest."""

  root: Path
  keys: tuple[str, ...]
  sizes: tuple[tuple[int, int], ...]
  things: tuple[tuple[dict, ...], ...]  # annotations of each picture
  numbers: dict[int, int]  # category id -> class

  def picture(self, index: int) -> np.ndarray:
    return _decoded(self.root / self.keys[index])

  def mask(self, index: int) -> np.ndarray:
    mask = np.zeros(self.sizes[index], np.uint8)
    for thing in sorted(self.things[index], key=lambda thing: -thing.get("area", 0)):
      number = IGNORED if thing.get("iscrowd") else self.numbers[thing["category_id"]]
      mask[area(thing["segmentation"], mask.shape)] = number
    return mask


def _decoded(path: Path) -> np.ndarray:
  try:
    return transforms.decode(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"cannot read {path}: {error}") from error


def read_mask(path: Path) -> np.ndarray:
  """[h w] uint8 of a mask file. Raises ValueError: it has colours, or more than 256 classes."""
  with Image.open(path) as image:
    if image.mode == "1":
      return np.asarray(image).astype(np.uint8)
    if image.mode not in ("L", "P"):
      raise ValueError(
        f"{path} has pixels of mode {image.mode}; wanted a PNG of one channel of 8 bits, or with "
        "a palette, whose numbers are the classes"
      )
    return np.asarray(image)


def load(root: str | Path, layout: str = "") -> tuple[tuple[str, ...], dict[str, Pairs]]:
  """(classes, {split: Pairs}) of a folder in one of the layouts, by default the one it has.

  Raises:
    ValueError: all that is wrong: pictures without a mask and masks without a picture, masks of
      another size, of strange numbers, or of colours.
    FileNotFoundError: there is no such folder.
  """
  root = Path(root).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f"no folder {root}")
  marks = {"voc": "SegmentationClass", "folders": "masks", "coco": "annotations"}
  found = [name for name, mark in marks.items() if (root / mark).is_dir()]
  layout = layout or next(iter(found), "")
  if layout not in found:
    raise ValueError(
      f"{root} is in no layout of masks{f' {layout}' if layout else ''}; wanted images/train and "
      "masks/train, or VOC's JPEGImages and SegmentationClass, or COCO's annotations"
    )
  faults: list[str] = []
  if layout == "coco":
    classes, splits = _coco(root, faults)
  else:
    classes = class_names(root, VOC if layout == "voc" else ())
    splits = (_voc if layout == "voc" else _folders)(root, classes, faults)
  if "train" not in splits and not faults:
    faults.append("there is no split train")
  if faults:
    more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    raise ValueError(f"{root} cannot be used:\n  " + "\n  ".join(faults[:LISTED]) + more)
  return classes, splits


def class_names(root: Path, default: Sequence[str] = ()) -> tuple[str, ...]:
  path = root / "classes.txt"
  if not path.exists():
    if default:
      return tuple(default)
    raise FileNotFoundError(f"no {path}; it names a class a line, those of the numbers 1, 2, ...")
  names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
  if len(names) + (names[:1] != ["background"]) > IGNORED:
    raise ValueError(f"{path} names {len(names)} classes; a mask of 8 bits has 255 at most")
  return tuple(names if names[:1] == ["background"] else ["background", *names])


def _folders(root: Path, classes, faults) -> dict[str, Files]:
  splits = {}
  for split in SPLITS:
    pictures, masks = (_by_stem(root / kind / split) for kind in ("images", "masks"))
    if pictures or masks:
      pairs = {stem: (pictures.get(stem), masks.get(stem)) for stem in pictures.keys() | masks}
      splits[split] = _checked(root, pairs, classes, faults)
  return splits


def _voc(root: Path, classes, faults) -> dict[str, Files]:
  splits = {}
  pictures, masks = (_by_stem(root / kind) for kind in ("JPEGImages", "SegmentationClass"))
  for split in SPLITS:
    index = root / f"ImageSets/Segmentation/{split}.txt"
    if index.exists():
      pairs = {stem: (pictures.get(stem), masks.get(stem)) for stem in index.read_text().split()}
      splits[split] = _checked(root, pairs, classes, faults)
  if not splits:
    faults.append("there is no ImageSets/Segmentation/train.txt, a name of a picture a line")
  return splits


def _by_stem(folder: Path) -> dict[str, Path]:
  """{path below the folder, without its suffix: path}."""
  return {
    p.relative_to(folder).with_suffix("").as_posix(): p
    for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES
  }  # fmt: skip


def _checked(root: Path, pairs, classes, faults) -> Files:
  whole = {stem: pair for stem, pair in sorted(pairs.items()) if all(pair)}
  for stem, (picture, mask) in sorted(pairs.items()):
    if not picture:
      faults.append(f"{mask.relative_to(root) if mask else stem} has no picture")
    elif not mask:
      faults.append(f"{picture.relative_to(root)} has no mask of that name")

  def look(pair):
    return _pair(root, *pair, len(classes))

  with ThreadPoolExecutor(READERS) as pool:
    looked = list(pool.map(look, whole.values()))
  faults += [fault for fault, _ in looked if fault]
  names = [tuple(p.relative_to(root).as_posix() for p in pair) for pair in whole.values()]
  keys, masks = zip(*names) if names else ((), ())
  return Files(root, keys, masks, tuple(size for _, size in looked))


def _pair(root: Path, picture: Path, mask: Path, count: int) -> tuple[str, tuple[int, int]]:
  """(what is wrong, size of the picture)."""
  name = mask.relative_to(root)
  try:
    size, pixels = upright_size(picture), read_mask(mask)
  except (OSError, ValueError) as error:
    return f"{error}", (0, 0)
  if pixels.shape != size:
    return (
      f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, its picture {size[1]} x {size[0]}"
    ), size
  strange = [n for n in np.unique(pixels).tolist() if n >= count and n != IGNORED]
  if strange:
    return (
      f"{name} has the classes {', '.join(map(str, strange[:9]))}; there are 0..{count - 1} and "
      f"{IGNORED} for what is ignored"
    ), size
  return "", size


def upright_size(path: Path) -> tuple[int, int]:
  """(height, width) as it is looked at."""
  with Image.open(path) as image:
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in transforms.SIDEWAYS
  return (width, height) if turned else (height, width)


def _coco(root: Path, faults) -> tuple[tuple[str, ...], dict[str, Instances]]:
  splits, named = {}, {}
  for split in SPLITS:
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if not files:
      continue
    try:
      table = json.loads(files[0].read_text("utf-8"))
      named |= {row["id"]: row["name"] for row in table["categories"]}
      splits[split] = _instances(root, files[0], split, table, faults)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      faults.append(
        f"{files[0].name} is no COCO file of instances ({type(error).__name__}: {error}); wanted "
        '"images", "annotations" and "categories"'
      )
  if not splits and not faults:
    faults.append("there is no annotations/instances_train.json")
  numbers = {id_: i for i, id_ in enumerate(sorted(named), start=1)}
  if len(numbers) >= IGNORED:
    faults.append(f"there are {len(numbers)} categories; a mask of 8 bits has 254 at most")
  classes = ("background", *(named[id_] for id_ in sorted(named)))
  return classes, {
    split: dataclasses.replace(source, numbers=numbers) for split, source in splits.items()
  }


def _instances(root: Path, file: Path, split: str, table, faults) -> Instances:
  part = file.stem.removeprefix("instances_")
  folders = (f"images/{part}", part, f"images/{split}", split, "images")
  folder = next((f for f in folders if (root / f).is_dir()), "")
  things: dict[int, list] = {row["id"]: [] for row in table["images"]}
  known = {row["id"] for row in table["categories"]}
  for thing in table["annotations"]:
    if thing["image_id"] not in things:
      faults.append(f"{file.name}: annotation {thing['id']} is of no picture that is listed")
    elif thing["category_id"] not in known:
      faults.append(f"{file.name}: annotation {thing['id']} is of no category that is listed")
    elif thing.get("segmentation"):
      things[thing["image_id"]].append(thing)
  rows = sorted(table["images"], key=lambda row: row["id"])
  for row in rows:
    path = root / folder / row["file_name"]
    if not path.exists():
      faults.append(f"{file.name}: there is no {path}")
    elif (size := upright_size(path)) != (row["height"], row["width"]):
      faults.append(
        f"{file.name}: {row['file_name']} has {size[1]} x {size[0]} pixels, its masks "
        f"{row['width']} x {row['height']}"
      )
  return Instances(
    root, tuple(f"{folder}/{row['file_name']}".lstrip("/") for row in rows),
    tuple((row["height"], row["width"]) for row in rows),
    tuple(tuple(things[row["id"]]) for row in rows), {},
  )  # fmt: skip


def area(segmentation, shape: tuple[int, int]) -> np.ndarray:
  """[h w] bool of COCO's polygons, run lengths, or run lengths packed into text."""
  if isinstance(segmentation, list):
    fine = np.zeros([n * FINER for n in shape], np.uint8)
    for polygon in segmentation:
      points = np.asarray(polygon, np.float32).reshape(-1, 2) * FINER
      cv2.fillPoly(fine, [np.rint(points).astype(np.int32)], 1)
    return fine[FINER // 2 :: FINER, FINER // 2 :: FINER].astype(bool)
  counts = segmentation["counts"]
  counts = unpacked(counts) if isinstance(counts, str) else counts
  values = np.arange(len(counts)) % 2 == 1
  flat = np.repeat(values, counts)
  if flat.size != math.prod(shape):
    raise ValueError(f"run lengths add up to {flat.size} pixels, not to {shape[1]} x {shape[0]}")
  return flat.reshape(shape, order="F")


def unpacked(text: str) -> list[int]:
  """pycocotools' text of run lengths: base 32, signed, each less the last but one."""
  counts, i = [], 0
  while i < len(text):
    value, shift, more = 0, 0, True
    while more:
      if i == len(text):
        raise ValueError("packed run lengths break off")
      digit = ord(text[i]) - 48
      value |= (digit & 31) << shift
      more, shift, i = bool(digit & 32), shift + 5, i + 1
    if digit & 16:
      value -= 1 << shift
    counts.append(value + (counts[-2] if len(counts) > 2 else 0))
  return counts


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training does to a picture and its mask alike."""

  scale: tuple[float, float] = (0.5, 2.0)  # of the shorter side, over that of evaluation
  flip: float = 0.5  # probability of left for right
  light: float = 0.2  # brightness and contrast change by so large a share, at most

  def __post_init__(self):
    if not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.flip <= 1 or not 0 <= self.light < 1:
      raise ValueError(
        f"augmentation: scale must be positive and rise, flip lie in 0..1 and light in 0..1, not "
        f"{self.scale}, {self.flip}, {self.light}"
      )


def resized(
  picture: np.ndarray, mask: np.ndarray | None, shorter: float
) -> tuple[np.ndarray, np.ndarray | None]:
  """Both with a shorter side of so many pixels, the longer one of `WIDEST` times that at most."""
  height, width = picture.shape[:2]
  ratio = shorter / max(min(height, width), max(height, width) / WIDEST)
  size = max(1, round(width * ratio)), max(1, round(height * ratio))
  how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
  picture = cv2.resize(picture, size, interpolation=how)
  return picture, None if mask is None else _nearest(mask, size)


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """By the pixel in the middle; OpenCV's "nearest" takes the one to the top left of it."""
  return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def filled(picture: np.ndarray, mask: np.ndarray, size: tuple[int, int]):
  """Both with grey, and nothing to learn, to the right and below."""
  pads = [(0, max(0, n - have)) for n, have in zip(size, mask.shape)]
  return (
    np.pad(picture, (*pads, (0, 0)), constant_values=128),
    np.pad(mask, pads, constant_values=IGNORED),
  )


def train_view(
  picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int, augment: Augment
) -> tuple[np.ndarray, np.ndarray]:
  """[size size 3], [size size] uint8: a random crop of both at a random scale, perhaps flipped."""
  low, high = map(math.log, augment.scale)
  picture, mask = resized(picture, mask, size * math.exp(rng.uniform(low, high)))
  picture, mask = filled(picture, mask, (size, size))
  top, left = (int(rng.integers(n - size + 1)) for n in mask.shape)
  picture, mask = (a[top : top + size, left : left + size] for a in (picture, mask))
  if rng.random() < augment.flip:
    picture, mask = picture[:, ::-1], mask[:, ::-1]
  contrast, light = rng.uniform(-augment.light, augment.light, 2)
  if augment.light:
    mean = picture.mean()
    picture = (picture - mean) * (1 + contrast) + mean * (1 + light)
    picture = np.rint(picture.clip(0, 255)).astype(np.uint8)
  return np.ascontiguousarray(picture), np.ascontiguousarray(mask)


def canvas(pairs: Pairs, shorter: int, step: int = 32) -> tuple[int, int]:
  """(height, width), multiples of `step`, for all pictures at a shorter side of so many pixels."""
  sides = []
  for axis in (0, 1):
    ratios = [size[axis] / max(min(size), max(size) / WIDEST) for size in pairs.sizes]
    sides.append(-(max(math.ceil(shorter * ratio - 1e-6) for ratio in ratios) // -step) * step)
  return sides[0], sides[1]


def border_weights(mask: np.ndarray, most: float, sigma: float = 5.0) -> np.ndarray:
  """[h w] float32: 1, and up to 1 + `most` between two things that almost touch.

  Equation 2 of U-Net (arXiv:1505.04597).  A thing is what hangs together of one class; the first
  class and what is ignored are none.
  """
  nearest = np.full((2, *mask.shape), np.inf, np.float32)  # distance to the nearest two things
  for k in np.unique(mask[(mask != 0) & (mask != IGNORED)]):
    count, labels = cv2.connectedComponents((mask == k).astype(np.uint8), connectivity=8)
    for thing in range(1, count):
      away = cv2.distanceTransform(
        (labels != thing).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
      )
      nearest = np.sort(np.concatenate([nearest, away[None]]), axis=0)[:2]
  return (1 + most * np.exp(-(nearest.sum(0) ** 2) / (2 * sigma**2))).astype(np.float32)


def train_row(pairs: Pairs, size: int, augment: Augment, borders: float = 0.0) -> Callable:
  """Makes a row of `threaded.train_rows`; with `border_weights` of so much, unless 0."""

  def make(row):
    index, rng = row
    image, mask = train_view(pairs.picture(index), pairs.mask(index), rng, size, augment)
    made = {"image": image, "mask": mask, "real": np.float32(1)}
    return made | ({"weight": border_weights(mask, borders)} if borders else {})

  return make


def eval_row(pairs: Pairs, shorter: int, step: int = 32) -> Callable:
  """Makes a row of `threaded.eval_rows`: the whole picture on a canvas that all of them fit."""
  size = canvas(pairs, shorter, step)

  def make(index):
    if index < 0:
      image, mask = np.zeros((*size, 3), np.uint8), np.full(size, IGNORED, np.uint8)
    else:
      image, mask = filled(*resized(pairs.picture(index), pairs.mask(index), shorter), size)
    return {
      "image": image, "mask": mask, "real": np.float32(index >= 0), "index": np.int32(index)
    }  # fmt: skip

  return make


def palette() -> np.ndarray:
  """[256 3] uint8: VOC's colours, whose bits are those of the class, spread over the channels."""
  number, colors = np.arange(256), np.zeros((256, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      colors[:, channel] |= (((number >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
  return colors


def indexed(mask: np.ndarray) -> bytes:
  """[h w] uint8 classes -> the bytes of a PNG with a palette, whose pixels are the classes."""
  image = Image.fromarray(mask)
  image.putpalette(palette().tobytes())
  out = io.BytesIO()
  image.save(out, "PNG", optimize=True)
  return out.getvalue()
