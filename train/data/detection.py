"""Pictures with boxes: COCO's JSON, VOC's XML and darknet's text files, as one kind of source.

  FOLDER/annotations/instances_train2017.json, FOLDER/train2017/    COCO
  FOLDER/train/instances.json, or _annotations.coco.json            COCO, pictures beside it
  FOLDER/Annotations/*.xml, JPEGImages/, ImageSets/Main/train.txt   VOC
  FOLDER/images/train/, FOLDER/labels/train/, FOLDER/data.yaml      darknet's; or classes.txt

Every fault of a set is said in one message. Pictures without objects are kept. A missing val is
every tenth of train. Objects marked as crowd or difficult are not trained on, as darknet has it.
Masks are COCO's polygons and run lengths, the outlines of darknet's files, and VOC's
SegmentationObject/*.png, whose pixels of number i are those of the annotation's i-th object; where
masks are asked for, VOC's splits are those of ImageSets/Segmentation.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json
import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as packed

from train.data import folders, transforms
from train.data.folders import LISTED, READERS, SUFFIXES
from train.data.masks import read_mask, unpacked

SPLITS = ("train", "val", "test")
CALLED = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SLACK = 1.0  # pixels that a box may reach beyond its picture; it is cut there
FORMATS = ("coco", "voc", "yolo")


class Objects(NamedTuple):
  """What is marked in one picture."""

  boxes: np.ndarray  # [n 4] float32, pixels of the picture
  labels: np.ndarray  # [n] int32
  crowd: np.ndarray  # [n] bool: a group that is one box; neither trained on nor counted
  difficult: np.ndarray  # [n] bool: the same, as VOC calls it
  masks: tuple[dict, ...] | None = None  # of each, as pycocotools packs it; None if not asked for

  @property
  def plain(self) -> np.ndarray:
    """[n] bool: to be found."""
    return ~(self.crowd | self.difficult)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxSource:
  """Pictures with their objects, in an order that never changes."""

  paths: tuple[Path, ...]
  keys: tuple[str, ...]  # paths below the data set's folder
  sizes: np.ndarray  # [n 2] int32: height, width
  objects: tuple[Objects, ...]

  def __len__(self) -> int:
    return len(self.keys)

  def picture(self, index: int) -> np.ndarray:
    """[h w 3] uint8. Raises ValueError that names a file that cannot be decoded."""
    try:
      return transforms.decode(self.paths[index].read_bytes())
    except transforms.UnreadableImage as error:
      raise ValueError(
        f"cannot decode {self.keys[index]}: {error}. Mend it or take it out of the data, and run "
        "again"
      ) from error

  def masks(self, index: int) -> np.ndarray | None:
    """[n h w] uint8, 0 or 255, of the objects to be found; None if masks were not asked for."""
    objects = self.objects[index]
    if objects.masks is None:
      return None
    some = [255 * packed.decode(objects.masks[i]) for i in np.flatnonzero(objects.plain)]
    return np.stack(some) if some else np.zeros((0, *self.sizes[index]), np.uint8)

  def some(self, rows: Sequence[int]) -> "BoxSource":
    return BoxSource(
      tuple(self.paths[i] for i in rows), tuple(self.keys[i] for i in rows), self.sizes[rows],
      tuple(self.objects[i] for i in rows),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dataset:
  name: str
  classes: tuple[str, ...]
  splits: Mapping[str, BoxSource]


class Picture(NamedTuple):
  """One picture as its annotations tell of it."""

  path: Path
  size: tuple[int, int] | None  # height, width, where they are told
  # (class's name or number, x0, y0, x1, y1, crowd, difficult, mask as it is told, where it stands)
  rows: list[tuple]
  share: bool = False  # boxes are shares of the width and the height


@dataclasses.dataclass
class Reading:
  """What was read of a set, and all that is wrong with it."""

  root: Path
  splits: dict[str, list[Picture]] = dataclasses.field(default_factory=dict)
  classes: tuple[str, ...] | None = None  # None: those that occur
  masks: bool = False  # are asked for
  faults: list[str] = dataclasses.field(default_factory=list)

  def name(self, path: Path) -> str:
    return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def load(data: str | Path, *, format: str = "", seed: int = 0, masks: bool = False) -> Dataset:
  """Reads all annotations and every picture's header.

  Args:
    data: a folder as above.
    format: one of FORMATS; found out if not given.
    seed: of the tenth that is held out where there is no val.
    masks: read them too; an object without one is a fault.

  Raises:
    ValueError: all that is wrong with it.
  """
  root = Path(data).expanduser().absolute()
  if not root.is_dir():
    raise ValueError(f"no folder {root}")
  format = format or _format(root)
  reading = Reading(root, masks=masks)
  READ[format](reading)
  if not any(reading.splits.values()) and not reading.faults:
    reading.faults.append(f"there are no pictures for training in it (read as {format})")
  sources = {name: _checked(reading, some) for name, some in reading.splits.items() if some}
  if "train" not in sources and not reading.faults:
    reading.faults.append(f"it has no split train but {', '.join(sources)}")
  if reading.faults:
    named, more = reading.faults[:LISTED], len(reading.faults) - LISTED
    named += [f"and {more} more"] if more > 0 else []
    raise ValueError(f"the set {root} cannot be used:\n  " + "\n  ".join(named))
  if "val" not in sources:
    whole = sources["train"]
    order = sorted(range(len(whole)), key=lambda i: folders.digest(seed, whole.keys[i]))
    held = sorted(order[: max(1, len(order) // 10)])
    rest = sorted(set(range(len(whole))) - set(held))
    if not rest:
      raise ValueError(f"{root} has one picture; of these none can be held back for validation")
    sources |= {"train": whole.some(rest), "val": whole.some(held)}
  return Dataset(root.name, reading.classes, {s: sources[s] for s in SPLITS if s in sources})


def _format(root: Path) -> str:
  if any(_coco_files(root)):
    return "coco"
  if (root / "Annotations").is_dir() or any(root.glob("*/*.xml")):
    return "voc"
  if any(root.glob("labels/**/*.txt")) or any(root.glob("*/labels/*.txt")):
    return "yolo"
  raise ValueError(
    f"{root} is no set of pictures with boxes. Wanted COCO's (annotations/instances_train.json or "
    "train/instances.json), VOC's (Annotations/, JPEGImages/, ImageSets/Main/train.txt) or "
    "darknet's (images/train/, labels/train/, classes.txt)"
  )


def _coco_files(root: Path) -> dict[str, tuple[Path, tuple[Path, ...]]]:
  """{split: (file, folders where its pictures may lie)}."""
  found = {}
  for split, names in CALLED.items():
    for name in names:
      beside = [root / name / f for f in ("instances.json", "_annotations.coco.json")]
      central = sorted((root / "annotations").glob(f"instances_{name}*.json"))
      for file in (f for f in (*beside, *central) if f.exists()):
        own = file.stem.removeprefix("instances_")
        places = (file.parent, file.parent / "images", root / own, root / "images" / own, root)
        found.setdefault(split, (file, places))
  if not found and (root / "instances.json").exists():
    found["train"] = (root / "instances.json", (root, root / "images"))
  return found


def _read_coco(reading: Reading) -> None:
  for split, (file, places) in _coco_files(reading.root).items():
    where = reading.name(file)
    try:
      info = json.loads(file.read_bytes())
      images, marks, kinds = (list(info[k]) for k in ("images", "annotations", "categories"))
      ids = [[row["id"] for row in rows] for rows in (images, marks, kinds)]
      if strange := [i for some in ids for i in some if not isinstance(i, int | str)]:
        raise TypeError(f"the id {strange[0]!r:.40} is no number")
      names = tuple(str(row["name"]) for row in sorted(kinds, key=lambda row: row["id"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      reading.faults.append(f"{where} is no COCO file ({type(error).__name__}: {error})")
      continue
    for what, numbers in zip(("picture", "object", "class"), ids):
      twice = [str(n) for n, count in Counter(map(str, numbers)).items() if count > 1]
      if twice:
        reading.faults.append(f"{where}: {what} id {_some(twice)} is there more than once")
    if reading.classes is None:
      reading.classes = names
    elif reading.classes != names:
      reading.faults.append(f"{where} has other classes than the other splits: {_some(names)}")
    label = {str(row["id"]): str(row["name"]) for row in kinds}
    pictures = {}
    for row in images:
      try:
        size = (int(row["height"]), int(row["width"])) if "height" in row else None
        path = _below(places, str(row["file_name"]))
      except (KeyError, ValueError, TypeError) as error:
        reading.faults.append(f"{where}: picture {row['id']} is not described ({error})")
        continue
      pictures[str(row["id"])] = Picture(path, size, [])
    for row in marks:
      here = f"{where}, object {row['id']}"
      if (owner := str(row.get("image_id"))) not in pictures:
        reading.faults.append(f"{here}: there is no picture {owner}")
        continue
      try:
        x, y, w, h = (float(v) for v in row["bbox"])
      except (KeyError, ValueError, TypeError):
        reading.faults.append(f"{here}: bbox must be four numbers, not {row.get('bbox')}")
        continue
      known = str(row.get("category_id"))
      kind, crowd = label.get(known, f"category_id {known}"), bool(row.get("iscrowd"))
      mask = row.get("segmentation") or None
      pictures[owner].rows.append((kind, x, y, x + w, y + h, crowd, False, mask, here))
    reading.splits[split] = list(pictures.values())


def _below(places: Sequence[Path], name: str) -> Path:
  """The file of that name; in the first place if there is none. Never outside of these folders."""
  if Path(name).is_absolute() or ".." in Path(name).parts:
    raise ValueError(f"its file {name} lies outside of the set")
  return next((p / name for p in places if (p / name).exists()), places[0] / name)


def _read_voc(reading: Reading) -> None:
  root = reading.root
  lists = root / "ImageSets" / ("Segmentation" if reading.masks else "Main")
  if (root / "Annotations").is_dir():
    groups = {
      split: [root / "Annotations" / f"{line.split()[0]}.xml"
              for line in list_.read_text("utf-8-sig").splitlines() if line.strip()]
      for split, names in CALLED.items() for name in names
      if (list_ := lists / f"{name}.txt").exists()
    } or {"train": sorted((root / "Annotations").glob("*.xml"))}  # fmt: skip
  else:
    groups = {
      split: sorted((root / name).glob("*.xml"))
      for split, names in CALLED.items() for name in names if (root / name).is_dir()
    }  # fmt: skip
  for split, files in groups.items():
    pictures = reading.splits.setdefault(split, [])
    for file in files:
      where = reading.name(file)
      try:
        pictures.append(_voc_picture(reading, file, where))
      except FileNotFoundError as error:
        missing = where if error.filename is None else reading.name(Path(error.filename))
        reading.faults.append(f"{missing} is missing")
      except (ElementTree.ParseError, ValueError, AttributeError, TypeError) as error:
        reading.faults.append(f"{where} is no annotation of VOC's ({error})")
  if (names := _names(root)) is not None:
    reading.classes = names


def _voc_picture(reading: Reading, file: Path, where: str) -> Picture:
  root, numbers = reading.root, None
  top = ElementTree.fromstring(file.read_bytes())
  if reading.masks:
    numbers = read_mask(root / "SegmentationObject" / f"{file.stem}.png")
  name = top.findtext("filename") or f"{file.stem}.jpg"
  path = _below((root / "JPEGImages", file.parent), name)
  size = top.find("size")
  size = size is not None and tuple(int(size.findtext(k)) for k in ("height", "width"))
  rows = []
  for i, mark in enumerate(top.findall("object"), start=1):
    try:
      box = [float(mark.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
    except TypeError:
      reading.faults.append(f"{where}, object {i}: it has no bndbox")
      continue
    # VOC counts pixels from 1, and the last one belongs to the box
    box = [box[0] - 1, box[1] - 1, *box[2:]]
    difficult = (mark.findtext("difficult") or "0").strip() == "1"
    name = mark.findtext("name", "").strip()
    mask = None if numbers is None else numbers == i
    mask = mask if mask is not None and mask.any() else None
    rows.append((name, *box, False, difficult, mask, f"{where}, object {i}"))
  return Picture(path, size or None, rows)


def _names(root: Path) -> tuple[str, ...] | None:
  """Classes as a file of the set lists them, or None."""
  for file in (*(root / n for n in ("data.yaml", "dataset.yaml")), *sorted(root.glob("*.yaml"))):
    if file.exists():
      import yaml

      names = (yaml.safe_load(file.read_text("utf-8")) or {}).get("names")
      if isinstance(names, Mapping):
        return tuple(str(names[k]) for k in sorted(names))
      if isinstance(names, Sequence):
        return tuple(map(str, names))
  for file in (*(root / n for n in ("classes.txt", "obj.names")), *sorted(root.glob("*.names"))):
    if file.exists():
      lines = file.read_text("utf-8-sig").splitlines()
      return tuple(line.strip() for line in lines if line.strip())
  return None


def _read_yolo(reading: Reading) -> None:
  root, names = reading.root, _names(reading.root)
  if names is None:
    reading.faults.append(f"no list of classes: {root.name}/classes.txt, one a line, or data.yaml")
    return
  reading.classes = names
  pairs = {
    split: pair for split, called in CALLED.items() for name in called
    for pair in ((root / "images" / name, root / "labels" / name),
                 (root / name / "images", root / name / "labels")) if pair[0].is_dir()
  } or {"train": (root / "images", root / "labels")}  # fmt: skip
  for split, (images, labels) in pairs.items():
    paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES)
    twice = Counter(p.relative_to(images).with_suffix("") for p in paths)
    faults = [f"{reading.name(images / p)}: two pictures, one label file" for p, n in twice.items()
              if n > 1]  # fmt: skip
    for file in sorted(labels.rglob("*.txt")):
      if file.relative_to(labels).with_suffix("") not in twice and file.name != "classes.txt":
        faults.append(f"{reading.name(file)}: there is no picture for it in {reading.name(images)}")
    reading.faults += faults
    reading.splits[split] = [
      Picture(p, None, _yolo_rows(reading, (labels / p.relative_to(images)).with_suffix(".txt")),
              share=True)
      for p in paths
    ]  # fmt: skip


def _yolo_rows(reading: Reading, file: Path) -> list[tuple]:
  """Lines "class cx cy w h", or "class x y x y x y ..." of an outline; no file, no objects."""
  rows = []
  lines = file.read_text("utf-8-sig").splitlines() if file.exists() else ()
  for i, line in enumerate(lines, start=1):
    here = f"{reading.name(file)}, line {i}"
    try:
      kind, *numbers = line.split() or ["skip"]
      numbers = [float(n) for n in numbers]
      label = int(kind) if numbers else -1
    except ValueError:
      reading.faults.append(f"{here} is not made of numbers: {line[:60]!r}")
      continue
    if kind == "skip":
      continue
    if len(numbers) == 4:
      x, y, w, h = numbers
      box, mask = (x - w / 2, y - h / 2, x + w / 2, y + h / 2), None
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
      box = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
      mask = [numbers]
    else:
      reading.faults.append(f"{here}: wanted class, x, y, width, height, not {line[:60]!r}")
      continue
    kind = reading.classes[label] if 0 <= label < len(reading.classes) else f"number {kind}"
    rows.append((kind, *box, False, False, mask, here))
  return rows


READ: dict[str, Callable[[Reading], None]] = {
  "coco": _read_coco, "voc": _read_voc, "yolo": _read_yolo,
}  # fmt: skip


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _checked(reading: Reading, pictures: Sequence[Picture]) -> BoxSource:
  """The source of one split; what is wrong with its pictures and boxes goes to the faults."""
  if reading.classes is None:
    reading.classes = tuple(sorted({row[0] for p in pictures for row in p.rows}))
  with ThreadPoolExecutor(READERS) as pool:
    sizes = list(pool.map(_size, [p.path for p in pictures]))
  number = {name: i for i, name in enumerate(reading.classes)}
  objects, seen = [], Counter(p.path for p in pictures)
  reading.faults += [f"{reading.name(p)} is listed {n} times" for p, n in seen.items() if n > 1]
  for picture, size in zip(pictures, sizes):
    name = reading.name(picture.path)
    if isinstance(size, str):
      reading.faults.append(f"{name}: {size}")
      size = picture.size
    elif picture.size and picture.size != size:
      told, is_ = (f"{w}x{h}" for h, w in (picture.size, size))
      reading.faults.append(f"{name} has {is_} pixels; its annotation says {told}")
    objects.append(_objects(picture, size, number, reading))
  keys = tuple(reading.name(p.path) for p in pictures)
  array = np.array([s if isinstance(s, tuple) else (1, 1) for s in sizes], np.int32).reshape(-1, 2)
  return BoxSource(tuple(p.path for p in pictures), keys, array, tuple(objects))


def _size(path: Path) -> tuple[int, int] | str:
  """(height, width) of a picture held upright, or what is wrong with it."""
  try:
    with Image.open(path) as image:
      size = (image.height, image.width)
      return size[::-1] if transforms._orientation(image) in transforms.SIDEWAYS else size
  except FileNotFoundError:
    return "the picture is missing"
  except Exception as error:  # Pillow does not document what a broken header raises
    return f"the picture cannot be read ({type(error).__name__})"


def _objects(
  picture: Picture, size: tuple[int, int] | None, number: Mapping[str, int], reading: Reading
) -> Objects:
  rows, masks, faults = [], [], reading.faults
  for kind, x0, y0, x1, y1, crowd, difficult, mask, here in picture.rows:
    if picture.share and size:
      x0, x1, y0, y1 = x0 * size[1], x1 * size[1], y0 * size[0], y1 * size[0]
      mask = mask and [[v * size[1 - i % 2] for i, v in enumerate(mask[0])]]
    box = (x0, y0, x1, y1)
    said = ", ".join(f"{v:g}" for v in box)
    if kind not in number:
      faults.append(f"{here}: unknown class {kind}")
    elif not all(map(math.isfinite, box)):
      faults.append(f"{here}: the box {said} has numbers that are not finite")
    elif x1 <= x0 or y1 <= y0:
      faults.append(f"{here}: the box {said} has no positive size")
    elif size and not _inside(box, size):
      faults.append(f"{here}: the box {said} reaches out of its {size[1]}x{size[0]} pixels")
    else:
      rows.append((number[kind], *box, crowd, difficult))
      if reading.masks and size:
        try:
          masks.append(run_lengths(mask, size))
        except (ValueError, TypeError, KeyError) as error:
          faults.append(f"{here}: {error}")
  table = np.array(rows, np.float64).reshape(-1, 7)
  boxes = table[:, 1:5]
  if size:
    boxes = np.clip(boxes, 0, [size[1], size[0]] * 2)
  return Objects(
    boxes.astype(np.float32), table[:, 0].astype(np.int32), table[:, 5] > 0, table[:, 6] > 0,
    tuple(masks) if reading.masks else None,
  )  # fmt: skip


def run_lengths(mask, size: tuple[int, int]) -> dict:
  """A mask as pycocotools packs it.

  Args:
    mask: COCO's polygons, or run lengths, which may be packed into text; or [h w] of bool.
    size: (height, width) of its picture.

  Raises:
    ValueError: it is nothing of these, or not of this picture.
  """
  if isinstance(mask, list) and mask:
    sides = np.array(size[::-1])
    polygons = []
    for polygon in mask:
      points = np.array(polygon, np.float64)
      if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon of its mask is not x y x y x y of three corners or more")
      points = points.reshape(-1, 2)
      if points.min() < -SLACK or (points > sides + SLACK).any():
        raise ValueError("a polygon of its mask reaches out of the picture")
      polygons.append(np.clip(points, 0, sides).ravel().tolist())
    return packed.merge(packed.frPyObjects(polygons, *size))
  if isinstance(mask, np.ndarray) and mask.shape == size:
    return packed.encode(np.asfortranarray(mask.astype(np.uint8)))
  if isinstance(mask, np.ndarray):
    wide, tall = mask.shape[::-1]
    raise ValueError(f"its mask has {wide}x{tall} pixels, not {size[1]}x{size[0]}")
  if not isinstance(mask, dict) or not isinstance(mask.get("counts"), list | str):
    raise ValueError("it has no mask; wanted polygons or run lengths")
  counts = mask["counts"]
  counts = unpacked(counts) if isinstance(counts, str) else counts
  # pycocotools would show whatever lies in memory beyond runs that are too short
  if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
    raise ValueError(f"the run lengths of its mask do not make {size[1]}x{size[0]} pixels")
  return packed.frPyObjects({"size": list(size), "counts": counts}, *size)


def _inside(box, size: tuple[int, int]) -> bool:
  x0, y0, x1, y1 = box
  height, width = size
  low = min(x0, y0) >= -SLACK and x0 < width and y0 < height
  return low and x1 <= width + SLACK and y1 <= height + SLACK
