"""Pictures and sentences about each: COCO's caption files and Karpathy's.

  annotations/captions_SPLIT*.json and images/SPLIT, SPLIT2014 ...      COCO, a folder
  dataset.json beside the pictures' folders                             Karpathy, a file

SPLIT is train, val, test; Karpathy's "restval" is for training.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from train.data import transforms
from zoo.text import vocabulary

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
LISTED = 20  # faults named in one message; of the others the number is told


@dataclasses.dataclass(frozen=True)
class Captioned:
  """The pictures of one split."""

  root: Path
  keys: tuple[str, ...]  # paths below `root`
  captions: tuple[tuple[str, ...], ...]  # at least one of each

  def data(self, index: int) -> bytes:
    return (self.root / self.keys[index]).read_bytes()


def load(path: str | Path) -> dict[str, Captioned]:
  """{split: Captioned} of a folder of COCO's, or a file of Karpathy's.

  Raises:
    ValueError: all that is wrong: pictures that are not there, or without a caption.
    FileNotFoundError: there is no such file or folder.
  """
  path = Path(path).expanduser()
  if not path.exists():
    raise FileNotFoundError(
      f"no {path}; wanted a folder of COCO's files, or Karpathy's dataset.json"
    )
  faults: list[str] = []
  rows = _coco(path, faults) if path.is_dir() else _karpathy(path, faults)
  root = path if path.is_dir() else path.parent
  splits = {}
  for split in ("train", "val", "test"):
    some = sorted((key, tuple(captions)) for at, key, captions in rows if at == split)
    if not some:
      continue
    for key, captions in some:
      if not captions:
        faults.append(f"{key} has no caption")
      if not (root / key).exists():
        faults.append(f"there is no {root / key}")
    keys, captions = zip(*some)
    splits[split] = Captioned(root, keys, captions)
  if "train" not in splits and not faults:
    faults.append("there are no pictures for training")
  if faults:
    more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    raise ValueError(f"{path} cannot be used:\n  " + "\n  ".join(faults[:LISTED]) + more)
  return splits


def _read(file: Path, what: str, rows: Callable, faults: list[str]) -> list:
  """`rows` of what a JSON file holds; [] and a fault if it is something else."""
  try:
    return rows(json.loads(file.read_text("utf-8")))
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
    faults.append(f"{file.name} is no {what} ({type(error).__name__}: {error})")
    return []


def _spoken(captions: Sequence[str]) -> list[str]:
  """Those with a word in them."""
  return [caption for caption in captions if vocabulary.words(caption)]


def _karpathy(file: Path, faults: list[str]) -> list[tuple[str, str, list[str]]]:
  """(split, path of a picture below the file's folder, captions)."""

  def rows(table):
    return [
      (
        SPLITS.get(row["split"], row["split"]),
        f"{row.get('filepath', '')}/{row['filename']}".lstrip("/"),
        _spoken([s["raw"] if "raw" in s else " ".join(s["tokens"]) for s in row["sentences"]]),
      )
      for row in table["images"]
    ]

  return _read(file, 'file of Karpathy\'s, {"images": [{"filename", "split", "sentences"}]}', rows,
               faults)  # fmt: skip


def _coco(root: Path, faults: list[str]) -> list[tuple[str, str, list[str]]]:
  found = []
  for split in ("train", "val", "test"):
    for file in sorted((root / "annotations").glob(f"captions_{split}*.json"))[:1]:
      part = file.stem.removeprefix("captions_")
      folders = (f"images/{part}", part, f"images/{split}", split, "images")
      folder = next((f for f in folders if (root / f).is_dir()), "")

      def rows(table, folder=folder, split=split, name=file.name):
        told: dict[int, list[str]] = {row["id"]: [] for row in table["images"]}
        for row in table["annotations"]:
          if row["image_id"] in told:
            told[row["image_id"]].append(row["caption"])
          else:
            faults.append(f"{name}: caption {row['id']} is of no picture that is listed")
        return [
          (split, f"{folder}/{row['file_name']}".lstrip("/"), _spoken(told[row["id"]]))
          for row in table["images"]
        ]

      found += _read(
        file, 'COCO file of captions, {"images": ..., "annotations": ...}', rows, faults
      )
  if not found and not faults:
    faults.append("there is no annotations/captions_train.json")
  return found


def train_row(
  source: Captioned, classes: Sequence[str], size: int, length: int, augment, own: Callable
) -> Callable:
  """Makes a row of `threaded.train_rows`: a picture and one of its captions, drawn.

  Args:
    length: words of a caption at most.
    own: from the noise to [length + 2] bool, where the model is to hear its own words; or None.
  """

  def make(row):
    index, rng = row
    some = source.captions[index]
    made = {
      "image": _view(source, index, lambda data: transforms.train_view(data, rng, size, augment)),
      "tokens": vocabulary.encode([some[rng.integers(len(some))]], classes, length)[0],
      "real": np.float32(1),
    }
    return made | ({"own": own(rng)} if own else {})

  return make


def eval_row(
  source: Captioned, classes: Sequence[str], view: Callable, length: int, own: bool
) -> Callable:
  """Makes a row of `threaded.eval_rows`; the captions take turns, so that all kinds occur."""

  def look(data):
    return view(Image.fromarray(transforms.decode(data)))

  def make(index):
    place = max(index, 0)  # a filling row repeats the first
    some = source.captions[place]
    made = {
      "image": _view(source, place, look),
      "tokens": vocabulary.encode([some[place % len(some)]], classes, length)[0],
      "real": np.float32(index >= 0),
      "index": np.int32(index),
    }
    return made | ({"own": np.zeros(length + 2, bool)} if own else {})

  return make


def _view(source: Captioned, index: int, view: Callable) -> np.ndarray:
  try:
    return view(source.data(index))
  except transforms.UnreadableImage as error:
    raise ValueError(f"cannot read {source.root / source.keys[index]}: {error}") from error
