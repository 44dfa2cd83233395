"""Listings: a CSV or JSON file that says of each picture what a task asks of it.

  image,labels                any of them, joined by |; nothing where there is none
  image,rain,snow,fog         or a column for each: 1, 0, or nothing where it is not annotated
  image,height,width          numbers, a column for each; nothing where one is not known
  image,label,x0,y0,x1,y1     a class and a box in pixels; four empty cells where none is known
  image,bag,label             bags: a row for each picture, what is said being said of its bag;
                              or labels, or a column for each, as above

`image` is a path from the listing's folder.  A column `split` holds train, val or test; without one
tenths are cut for val and test, and without val one for val.  JSON is a list of objects with the
same names; there `labels` may be a list, and `box` is [x0, y0, x1, y1].

ChestX-ray14 (arXiv:1705.02315) is read as it is published: Data_Entry_2017.csv with the columns
"Image Index" and "Finding Labels", pictures in images*/, and train_val_list.txt and test_list.txt,
where they are; no patient is in two parts.  Folders of COCO's, VOC's and darknet's layout are read
too: for labels all classes of a picture, for places its largest box.

A picture that cannot be read is left out, as long as those are few; every other fault is said, all
in one message.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
from functools import partial
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from train.data import detection, folders, threaded, transforms
from train.data.folders import LISTED, READERS
from train.data.transforms import Augment
from zoo.detect.found import place
from zoo.weights import Preprocess

TASKS = ("multilabel", "regress", "localize")
SPLITS = ("train", "val", "test")
FILES = ("listing.csv", "listing.json", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOX = ("x0", "y0", "x1", "y1")
KEPT = 0.7  # share of a box's area that a crop for training must show
CHEST = (  # in the order of CheXNet's outputs (arXiv:1711.05225, table 2)
  "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
  "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Pictures, or bags of them, with what tasks ask, in an order that never changes."""

  paths: tuple[tuple[Path, ...], ...]  # of each row: one picture, or those of its bag
  keys: tuple[str, ...]  # of pictures the path as it is listed, of bags the name
  targets: Mapping[str, np.ndarray]  # each [n ...]; boxes in pixels of the picture

  def __len__(self) -> int:
    return len(self.keys)

  def some(self, index: Sequence[int]) -> "Rows":
    return Rows(
      tuple(self.paths[i] for i in index), tuple(self.keys[i] for i in index),
      {name: array[list(index)] for name, array in self.targets.items()},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Listed:
  name: str
  classes: tuple[str, ...]  # or labels, or names of numbers, in order of the outputs
  splits: Mapping[str, Rows]
  skipped: tuple[str, ...] = ()  # a sentence for each picture left out


@dataclasses.dataclass
class Table:
  """A listing as it was read: rows of {column: text}, and where each stands."""

  file: Path
  columns: tuple[str, ...]
  rows: list[dict]
  where: list[str]
  faults: list[str] = dataclasses.field(default_factory=list)


def load(
  data: str | Path, task: str, *, bags: bool = False, seed: int = 0, max_bad: float = 0.05
) -> Listed:
  """Reads a listing and looks at every picture's two ends.

  Args:
    data: a .csv or .json file; or a folder that has one of FILES, or a layout with boxes.
    task: one of TASKS, or "classify" of bags.
    bags: rows of one `bag` are one row.
    seed: of the division where the listing has none.
    max_bad: share of pictures that may be unreadable and left out.

  Raises:
    ValueError: all that is wrong with it.
  """
  path = Path(data).expanduser().absolute()
  file = next((f for name in FILES if (f := path / name).exists()), None) if path.is_dir() else path
  if file is None and not bags and task in ("multilabel", "localize"):
    return _of_boxes(detection.load(path, seed=seed), task)
  if file is None or not file.exists():
    raise ValueError(f"no listing {file or path}; wanted a .csv or .json file, or a folder with "
                     f"one of {', '.join(FILES)}")  # fmt: skip
  table = read(file)
  groups = None
  if "Image Index" in table.columns:
    groups = _chest(table)
  if bags and "bag" not in table.columns:
    table.faults.append("there is no column bag, which says what belongs together")
  classes, targets = {
    "multilabel": _labels, "regress": _numbers, "localize": _places, "classify": _classes,
  }[task](table)  # fmt: skip
  rows, division = _rows(table, targets, groups, bags)
  rows, kept, skipped = _readable(table, rows, max_bad)
  if task == "localize" and not table.faults:
    rows = _sized(table, rows, [table.where[i] for i in kept])
  _refuse(table)
  splits = _divided(table, rows, [division[i] for i in kept], seed)
  _refuse(table)
  return Listed(file.stem, classes, splits, skipped)


def _refuse(table: Table) -> None:
  """Raises ValueError if there are faults."""
  if table.faults:
    named, more = table.faults[:LISTED], len(table.faults) - LISTED
    named += [f"and {more} more"] if more > 0 else []
    raise ValueError(f"the listing {table.file} cannot be used:\n  " + "\n  ".join(named))


def read(file: Path) -> Table:
  """Raises ValueError if it is no table of pictures."""
  try:
    text = file.read_text("utf-8-sig")
    if file.suffix.lower() == ".json":
      raw = json.loads(text)
      if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise ValueError("wanted a list of objects")
      rows = [_flat(row) for row in raw]
      columns = tuple(dict.fromkeys(name for row in rows for name in row))
      where = [f"object {i}" for i in range(1, len(rows) + 1)]
    else:
      reader = csv.DictReader(text.splitlines())
      columns = tuple(name for name in reader.fieldnames or () if name)
      pairs = [(row, f"line {reader.line_num}") for row in reader]
      rows, where = [row for row, _ in pairs], [line for _, line in pairs]
  except (ValueError, csv.Error, RecursionError) as error:
    raise ValueError(f"{file} is no listing: {error}") from error
  if "image" not in columns and "Image Index" not in columns:
    raise ValueError(f"{file} has no column image but {', '.join(columns) or 'nothing'}; the first "
                     "line of a CSV names its columns")  # fmt: skip
  table = Table(file, columns, rows, where)
  table.faults += [f"{at} has more cells than there are columns"
                   for row, at in zip(rows, where) if None in row]  # fmt: skip
  return table


def _flat(row: dict) -> dict[str, str]:
  """An object of JSON as a line of CSV says it."""
  box = row.get("box")
  if isinstance(box, list) and len(box) == 4:
    row = {name: value for name, value in row.items() if name != "box"} | dict(zip(BOX, box))
  return {name: "|".join(map(str, value)) if isinstance(value, list) else
          "" if value is None else str(int(value) if isinstance(value, bool) else value)
          for name, value in row.items()}  # fmt: skip


def _cell(row: Mapping, column: str) -> str:
  return (row.get(column) or "").strip()


def _own(table: Table) -> tuple[str, ...]:
  """Columns that are neither a picture, a bag nor a split."""
  return tuple(c for c in table.columns if c not in ("image", "bag", "split"))


def _labels(table: Table):
  if "labels" in table.columns:
    said = [{name for part in _cell(row, "labels").split("|") if (name := part.strip())}
            for row in table.rows]  # fmt: skip
    classes = tuple(sorted(set().union(*said)))
    array = [[int(name in some) for name in classes] for some in said]
  else:
    classes, array = _own(table), []
    for row, at in zip(table.rows, table.where):
      cells = [_cell(row, name) for name in classes]
      if strange := [f"{n}={c}" for n, c in zip(classes, cells) if c not in ("1", "0", "", "-1")]:
        table.faults.append(f"{at}: {strange[0]:.60} is neither 1, 0 nor empty")
      array.append([{"1": 1, "0": 0}.get(c, -1) for c in cells])
  if not classes:
    table.faults.append("no labels: wanted a column labels, or one for each label")
  return classes, {"labels": np.array(array, np.int8).reshape(len(table.rows), len(classes))}


def _numbers(table: Table):
  classes, array = _own(table), []
  for row, at in zip(table.rows, table.where):
    array.append([_number(table, at, name, _cell(row, name)) for name in classes])
  if not classes:
    table.faults.append("no numbers: wanted a column for each")
  array = np.array(array, np.float32).reshape(len(table.rows), len(classes))
  for name, column in zip(classes, array.T):
    if np.isnan(column).all() or np.nanmax(column) == np.nanmin(column):
      table.faults.append(f"the column {name} has no two different numbers")
  return classes, {"value": array}


def _number(table: Table, at: str, name: str, cell: str) -> float:
  try:
    value = float(cell) if cell else math.nan
  except ValueError:
    value = math.inf
  if math.isinf(value):
    table.faults.append(f"{at}: {name}={cell:.40} is no number")
  return value


def _classes(table: Table):
  said = [_cell(row, "label") for row in table.rows]
  table.faults += [f"{at} has no label" for name, at in zip(said, table.where) if not name]
  classes = tuple(sorted({name for name in said if name}))
  if len(classes) < 2:
    table.faults.append(f"there are {len(classes)} classes in the column label; wanted two or more")
  number = {name: i for i, name in enumerate(classes)} | {"": 0}
  return classes, {"label": np.array([number[name] for name in said], np.int32)}


def _places(table: Table):
  classes, targets = _classes(table)
  array = np.zeros((len(table.rows), 4), np.float32)
  for i, (row, at) in enumerate(zip(table.rows, table.where)):
    cells = [_cell(row, name) for name in BOX]
    if not any(cells):
      continue
    box = [_number(table, at, name, cell) for name, cell in zip(BOX, cells)]
    said = ", ".join(cells)
    if not all(cells):
      table.faults.append(f"{at}: a box has four numbers, not {said}")
    elif not any(map(math.isinf, box)):
      if not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        table.faults.append(f"{at}: the box {said} is none; wanted 0 <= x0 < x1 and 0 <= y0 < y1")
      array[i] = box
  return classes, {**targets, "box": array}


def _chest(table: Table) -> list[str]:
  """Turns the published columns into ours; returns the patient of each row."""
  root = table.file.parent
  found = {p.name: p.relative_to(root).as_posix() for p in root.glob("images*/**/*.png")}
  part = {}
  for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
    if (root / name).exists():
      part |= dict.fromkeys((root / name).read_text().split(), split)
  columns = ("image", *CHEST, *(("split",) if part else ()))
  for i, (row, at) in enumerate(zip(table.rows, table.where)):
    name = _cell(row, "Image Index")
    said = set(_cell(row, "Finding Labels").split("|")) - {"No Finding"}
    if strange := sorted(said - set(CHEST)):
      table.faults.append(f"{at}: {strange[0]:.40} is none of the findings {', '.join(CHEST)}")
    if part and name not in part:
      table.faults.append(f"{at}: {name} is neither in train_val_list.txt nor in test_list.txt")
    table.rows[i] = {
      "image": found.get(name, f"images/{name}"), "split": part.get(name, "train"),
      "patient": _cell(row, "Patient ID") or name.partition("_")[0],
      **{finding: str(int(finding in said)) for finding in CHEST},
    }  # fmt: skip
  table.columns = columns
  return [row["patient"] for row in table.rows]


def _rows(table: Table, targets, groups, bags: bool) -> tuple[Rows, list[tuple[str, str]]]:
  """All rows, and of each (its split or "", what must not be parted from it)."""
  root, images = table.file.parent, [_cell(row, "image") for row in table.rows]
  splits = [_cell(row, "split").lower() for row in table.rows]
  for split, at in zip(splits, table.where):
    if "split" in table.columns and split not in SPLITS:
      table.faults.append(f"{at}: the split is {split or 'empty'}; wanted train, val or test")
  table.faults += [f"{at} names no image" for name, at in zip(images, table.where) if not name]
  if not bags:
    twice = [name for name, count in Counter(images).items() if count > 1 and name]
    table.faults += [f"{name} is listed more than once" for name in twice]
    rows = Rows(tuple((root / name,) for name in images), tuple(images), targets)
    return rows, list(zip(splits, groups or images))
  members: dict[str, list[int]] = {}
  for i, row in enumerate(table.rows):
    members.setdefault(_cell(row, "bag"), []).append(i)
    if not _cell(row, "bag"):
      table.faults.append(f"{table.where[i]} has no bag")
  for bag, of in members.items():
    unlike = any((a[of] != a[of[0]]).any() for a in targets.values())
    if unlike or len({splits[i] for i in of}) > 1:
      table.faults.append(f"bag {bag}: its rows do not say the same of it")
  paths = tuple(tuple(root / images[i] for i in of) for of in members.values())
  first = [of[0] for of in members.values()]
  rows = Rows(paths, tuple(members), {name: array[first] for name, array in targets.items()})
  return rows, [(splits[i], bag) for i, bag in zip(first, members)]


def _readable(table: Table, rows: Rows, max_bad: float):
  """(rows without pictures that cannot be read, the numbers of those left, sentences on others)."""
  root, pictures = table.file.parent, list(dict.fromkeys(p for of in rows.paths for p in of))
  missing = [p for p in pictures if not p.is_file()]
  name = lambda p: p.relative_to(root).as_posix() if p.is_relative_to(root) else str(p)
  table.faults += [f"there is no picture {name(p)}" for p in missing]
  if missing:
    return rows, range(len(rows)), ()
  with ThreadPoolExecutor(READERS) as pool:
    reasons = {p: why for p, why in zip(pictures, pool.map(folders.fault_of, pictures)) if why}
  skipped = tuple(f"{name(p)}: {why}" for p, why in reasons.items())
  if len(reasons) > max_bad * len(pictures):
    table.faults.append(f"{len(reasons)} of {len(pictures)} pictures cannot be read, more than the "
                        f"{max_bad:.1%} that max_bad allows:")  # fmt: skip
    table.faults += [f"  {line}" for line in skipped]
  left = [tuple(p for p in of if p not in reasons) for of in rows.paths]
  kept = [i for i, of in enumerate(left) if of]
  return dataclasses.replace(rows, paths=tuple(left)).some(kept), kept, skipped


def _sized(table: Table, rows: Rows, where: Sequence[str]) -> Rows:
  """With "size" [n 2], height and width, among the targets; boxes must lie within."""
  with ThreadPoolExecutor(READERS) as pool:
    sizes = np.array(list(pool.map(upright_size, [path for (path,) in rows.paths])), np.int32)
  for box, (height, width), at in zip(rows.targets["box"], sizes, where):
    if box[2] > width or box[3] > height:
      said = ", ".join(f"{v:g}" for v in box)
      table.faults.append(f"{at}: the box {said} reaches out of its {width}x{height} pixels")
  return dataclasses.replace(rows, targets={**rows.targets, "size": sizes})


def upright_size(path: Path) -> tuple[int, int]:
  """(height, width) of a picture held upright."""
  with Image.open(path) as image:
    size = (image.height, image.width)
    return size[::-1] if transforms._orientation(image) in transforms.SIDEWAYS else size


def shares(targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Targets with boxes as shares of the width and the height, where there are any."""
  if "box" not in targets:
    return dict(targets)
  return {**targets, "box": targets["box"] / targets["size"][:, [1, 0, 1, 0]]}


def _divided(table: Table, rows: Rows, division, seed: int) -> dict[str, Rows]:
  """The splits; what the listing leaves to us is cut by hashes, groups undivided."""
  given = {split for split, _ in division} - {""}
  tenths = {} if "val" in given else {"val": 4} if given else {"val": 4, "test": 9}
  owners = sorted({group for split, group in division if split in ("", "train")})
  of = {
    group: part for part, some in folders.cut(owners, "", seed, tenths).items() for group in some
  }
  index = {name: [] for name in SPLITS}
  for i, (split, group) in enumerate(division):
    index[of[group] if split in ("", "train") else split].append(i)
  for name in ("train", "val"):
    if not index[name]:
      table.faults.append(f"no row is left for {name}; list more, or say each row's split")
  return {name: rows.some(some) for name, some in index.items() if some}


def _of_boxes(data: detection.Dataset, task: str) -> Listed:
  """A set of objects, asked for the classes of each picture, or for its largest box."""
  splits = {}
  for name, source in data.splits.items():
    marked = [(o.boxes[o.plain], o.labels[o.plain]) for o in source.objects]
    index = [i for i, (found, _) in enumerate(marked) if len(found) or task == "multilabel"]
    if task == "multilabel":
      array = np.zeros((len(marked), len(data.classes)), np.int8)
      for row, (_, labels) in zip(array, marked):
        row[labels] = 1
      targets = {"labels": array[index]}
    else:
      area = lambda found: (found[:, 2:] - found[:, :2]).prod(1)
      largest = [(i, int(area(marked[i][0]).argmax())) for i in index]
      targets = {
        "label": np.array([marked[i][1][k] for i, k in largest], np.int32),
        "box": np.array([marked[i][0][k] for i, k in largest], np.float32).reshape(-1, 4),
        "size": source.sizes[index],
      }
    splits[name] = Rows(
      tuple((source.paths[i],) for i in index), tuple(source.keys[i] for i in index), targets
    )
  return Listed(data.name, data.classes, splits)


def train_batches(
  rows: Rows, *, batch: int, size: int, seed: int, start_step: int, threads: int,
  process_index: int, process_count: int, augment: Augment | None, instances: int = 0,
) -> Iterator[dict]:  # fmt: skip
  """Batches of step `start_step`, `start_step` + 1 ... without end; a function of seed and step.

  Args:
    augment: None shows the middle square, and the whole picture where there is a box.
    instances: pictures of a bag, drawn anew each time; 0 for rows of one picture.

  Yields:
    {"image": [b size size 3] uint8, the targets, "real": [b] float32}, or for bags "image"
    [b i size size 3] and "bag_real" [b i] bool.  Pictures that fill up a bag are its own once
    more, so that a batch norm sees nothing strange.
  """
  numbered = threaded.train_rows(
    len(rows), batch=batch, seed=seed, start_step=start_step,
    process_index=process_index, process_count=process_count,
  )  # fmt: skip
  make = partial(_train_row, rows, size, augment, instances)
  return threaded.batches(numbered, lambda row: make(*row), threads)


def eval_batches(
  rows: Rows, preprocess: Preprocess, *, batch: int, threads: int, process_index: int,
  process_count: int, instances: int = 0,
) -> Iterator[dict]:  # fmt: skip
  """All rows once, with "index" [b]; of a larger bag `instances` evenly spread pictures."""
  numbered = threaded.eval_rows(
    len(rows), batch=batch, process_index=process_index, process_count=process_count
  )
  return threaded.batches(numbered, partial(_eval_row, rows, preprocess, instances), threads)


def _train_row(rows: Rows, size: int, augment, instances: int, index: int, rng) -> dict:
  paths, row = rows.paths[index], _targets(rows, index)
  if "box" in row:
    row["image"], row["box"] = _decoded(paths[0], _boxed_view, row["box"], rng, size, augment)
    return row
  view = lambda path: _decoded(path, transforms.train_view, rng, size, augment)
  if not instances:
    return row | {"image": view(paths[0])}
  chosen = rng.permutation(len(paths))[:instances]
  return row | _bag([view(paths[i]) for i in chosen], instances)


def _eval_row(rows: Rows, preprocess: Preprocess, instances: int, index: int) -> dict:
  paths, row = rows.paths[max(index, 0)], _targets(rows, max(index, 0))  # filling repeats the first
  row |= {"index": np.int32(index), "real": np.float32(index >= 0)}
  pixels = partial(_decoded, view=transforms.decode)
  if "box" in row:
    picture = pixels(paths[0])
    if row["box"].any():
      row["box"] = place(preprocess, *picture.shape[:2]).into(row["box"])
    return row | {"image": preprocess.crop(Image.fromarray(picture))}
  view = lambda path: preprocess.crop(Image.fromarray(pixels(path)))
  if not instances:
    return row | {"image": view(paths[0])}
  chosen = spread(len(paths), instances)
  return row | _bag([view(paths[i]) for i in chosen], instances)


def spread(count: int, most: int) -> np.ndarray:
  """`most` of `count` numbers at most, evenly spread."""
  return np.arange(min(count, most)) * count // min(count, most)


def _targets(rows: Rows, index: int) -> dict:
  return {name: array[index] for name, array in rows.targets.items()} | {"real": np.float32(1)}


def _bag(views: Sequence[np.ndarray], instances: int) -> dict:
  image = np.stack([views[i % len(views)] for i in range(instances)])
  return {"image": image, "bag_real": np.arange(instances) < len(views)}


def _decoded(path: Path, view: Callable, *args):
  """view(the file's bytes, *args). Raises ValueError that names a file that is damaged."""
  try:
    return view(path.read_bytes(), *args)
  except transforms.UnreadableImage as error:
    raise ValueError(
      f"cannot decode {path}: {error}. Mend it or take it out of the listing, and run again"
    ) from error


def _boxed_view(data: bytes, box: np.ndarray, rng, size: int, augment: Augment | None):
  """([size size 3] uint8, the box in its pixels): a crop that shows most of the box, squashed."""
  pixels = transforms.decode(data)
  height, width = pixels.shape[:2]
  top, left, h, w = 0, 0, height, width
  for _ in range(10 if augment else 0):
    crop = transforms.crop_box(rng, height, width, augment)
    if _shown(box, crop) >= KEPT:
      top, left, h, w = crop
      break
  view = transforms.resize(np.ascontiguousarray(pixels[top : top + h, left : left + w]), size)
  if box.any():
    box = np.clip(box - np.float32([left, top] * 2), 0, [w, h] * 2) * np.float32(
      [size / w, size / h] * 2
    )
  if augment and rng.random() < augment.flip:
    view = view[:, ::-1]
    box = np.array([size - box[2], box[1], size - box[0], box[3]]) if box.any() else box
  return np.ascontiguousarray(view), np.float32(box)


def _shown(box: np.ndarray, crop: tuple[int, int, int, int]) -> float:
  """Share of a box's area that lies within (top, left, height, width); 1 of no box."""
  top, left, h, w = crop
  low, high = np.maximum(box[:2], [left, top]), np.minimum(box[2:], [left + w, top + h])
  area = np.prod(box[2:] - box[:2])
  return float(np.prod(np.maximum(high - low, 0)) / area) if area else 1.0
