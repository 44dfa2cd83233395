"""A folder of photographs: what lies in it, and every fault of it in one message.

  folder/class/photo.jpg                     split here, 80 : 10 : 10
  folder/{train,val,test}/class/photo.jpg    split by its owner; a missing val is cut from train
  folder/Images/class/photo.jpg              split by its owner's lists of class/photo.jpg,
                                             TrainImages.txt and TestImages.txt as MIT Indoor 67
                                             has them, or train.txt, val.txt, test.txt

Photographs may lie in folders of their own below a class. Hidden files are ignored, and files that
are no pictures by their names.

Finding faults opens each file but decodes hardly any: the header is read, and the mark that ends a
whole file is looked for at its end. Measured on 500x375 JPEGs, per 10,000 on one core: this way
0.4 s; decoding at an eighth of the size 6.6 s (Pillow's draft mode 8.7 s); decoding 9.3 s. Files
whose end is in doubt, and formats without such a mark, are decoded. What this misses is damage in
the middle of a file: `pipeline` names the file when it comes to it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import os
from pathlib import Path
import stat
import unicodedata

import numpy as np
from PIL import Image

from train.data import transforms
from train.data.sources import FolderSource

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FOREIGN = (".avif", ".dng", ".heic", ".heif", ".jp2", ".psd", ".svg")  # pictures, but not for us
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LISTED = 200  # faulty files named in one message; of the others the number is told
READERS = 8  # threads that wait for the disk
HIDDEN = (".", "__MACOSX", "@eaDir")  # how names begin that archives and file servers leave behind


@dataclasses.dataclass
class Findings:
  """What a folder holds: (split, class) -> paths below the folder, and what is wrong with it."""

  root: Path
  folders: dict[str, str] = dataclasses.field(default_factory=dict)  # of splits, as they are called
  photographs: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)
  faults: list[str] = dataclasses.field(default_factory=list)
  unreadable: dict[str, str] = dataclasses.field(default_factory=dict)  # path -> why

  @property
  def classes(self) -> tuple[str, ...]:
    return tuple(sorted({name for _, name in self.photographs}))

  @property
  def splits(self) -> list[str]:
    return [s for s in ("all", "train", "val", "test") if any(s == k for k, _ in self.photographs)]


def load(
  root: Path, seed: int, max_bad: float
) -> tuple[tuple[str, ...], dict[str, FolderSource], tuple[str, ...]]:
  """(classes, {split: FolderSource}, sentences on skipped files) of a folder.

  Raises:
    ValueError: all its faults.
  """
  if not 0 <= max_bad < 1:
    raise ValueError(f"max_bad is a share of the photographs, 0 <= max_bad < 1, not {max_bad}")
  root = root.absolute()
  try:
    found = scan(root)
  except OSError as error:
    raise ValueError(f"cannot list {error.filename}: {error.strerror}") from error
  check(found, max_bad)
  if found.faults:
    raise ValueError(f"the folder {root} cannot be used:\n  " + "\n  ".join(found.faults))
  splits = split(found.photographs, seed)
  classes = found.classes
  number = {label: i for i, label in enumerate(classes)}
  sources = {
    name: FolderSource(
      root,
      tuple(path for _, path in rows),
      np.array([number[label] for label, _ in rows], np.int32),
    )
    for name, rows in splits.items()
    if rows
  }
  return classes, sources, tuple(f"{path}: {why}" for path, why in found.unreadable.items())


def scan(root: Path) -> Findings:
  """Lists the classes and their photographs, and opens each of them; `root` is absolute."""
  found = Findings(root)
  if not root.is_dir():
    what = "is a file, not a folder" if root.exists() else "does not exist"
    found.faults.append(f"it {what}; wanted a folder of classes, {root.name}/rose/photo.jpg")
    return found
  if lists := _lists(root):
    _read_lists(found, lists)
    _open_all(found)
    return found
  found.folders = _split_folders(found)
  for name, parent in found.folders.items():
    for folder in _folders(root / parent):
      paths = [_below(root, path) for path in _files(str(folder), (str(folder.resolve()),))]
      found.photographs[name, folder.name] = sorted(p for p in paths if _is_photograph(p))
      for path in paths:
        if path.lower().endswith(FOREIGN):
          kind = Path(path).suffix.lower()
          found.unreadable[path] = f"{kind} files are not read; save it as .jpg or .png"
  for parent in {".", *found.folders.values()}:
    for path in _visible(root / parent):
      if not path.is_dir() and _is_photograph(path.name):
        found.unreadable[_below(root, str(path))] = "it lies beside the class folders, in no class"
  _open_all(found)
  return found


def _split_folders(found: Findings) -> dict[str, str]:
  """{split: its folder's name}; {"all": "."} where the folders are classes."""
  names = [path.name for path in _folders(found.root)]
  named = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
  others = [name for name in names if name not in named]
  if not named or (others and "train" not in named.values()):
    return {"all": "."}
  if others:
    # Folders named train and bus may be vehicles: then photographs lie right in them.
    if all(not _folders(found.root / name) for name in named):
      return {"all": "."}
    found.faults.append(
      f"folders of splits ({_list(named)}) and others ({_list(others)}) lie side by side; "
      "put all classes into the splits, or leave the splits out"
    )
  for split_name, count in Counter(named.values()).items():
    if count > 1:
      same = [name for name, of in named.items() if of == split_name]
      found.faults.append(f"the folders {_list(same)} are the same split; keep one")
  if "train" not in named.values():
    found.faults.append(f"there is {_list(named)} but no folder train")
  return {of: name for name, of in named.items()}


def _lists(root: Path) -> dict[str, Path]:
  """{split: its list of photographs}, if there is one for training and one more."""
  named = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
  found = {
    of: named[name]
    for split_name, of in SPLITS.items()
    for name in (f"{split_name}.txt", f"{split_name}images.txt")
    if name in named
  }
  return found if "train" in found and len(found) > 1 else {}


def _read_lists(found: Findings, lists: Mapping[str, Path]) -> None:
  root = found.root
  images = next((name for name in ("Images", "images") if (root / name).is_dir()), "")
  seen = {}
  for name, path in lists.items():
    found.folders[name] = path.name
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
      below = Path(line.replace("\\", "/"))
      if below.is_absolute() or ".." in below.parts or len(below.parts) < 2:
        found.faults.append(f"{path.name} has the line {line!r}; wanted class/photo.jpg")
        continue
      photograph = (Path(images) / below).as_posix()
      if seen.setdefault(photograph, path.name) != path.name:
        found.faults.append(f"{line} is in {seen[photograph]} and in {path.name}; keep one")
        continue
      found.photographs.setdefault((name, below.parts[-2]), []).append(photograph)


def _visible(folder: Path) -> list[Path]:
  return sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))


def _folders(folder: Path) -> list[Path]:
  return [path for path in _visible(folder) if path.is_dir()]


def _files(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  """Everything that is no folder below `folder`, through links too, but never in a circle.

  By `os.scandir`, which knows folders from files without asking for each: 5 times as fast as Path.
  """
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith(HIDDEN):
        continue
      if not entry.is_dir():
        yield entry.path
      elif not entry.is_symlink():
        yield from _files(entry.path, above)
      else:
        target = os.path.realpath(entry.path)
        inside = os.path.realpath(folder) + os.sep
        if target not in above and not inside.startswith(target + os.sep):
          yield from _files(entry.path, (*above, target))


def _is_photograph(name: str) -> bool:
  return name.lower().endswith(SUFFIXES)


def _below(root: Path, path: str) -> str:
  return path[len(str(root)) :].lstrip(os.sep).replace(os.sep, "/")


def _list(names: Iterable[str]) -> str:
  return ", ".join(names)


def _open_all(found: Findings) -> None:
  """Moves the files that cannot be read from the photographs to the unreadable ones."""
  paths = [path for group in found.photographs.values() for path in group]
  with ThreadPoolExecutor(READERS) as pool:
    reasons = dict(zip(paths, pool.map(lambda path: fault_of(found.root / path), paths)))
  found.unreadable |= {path: why for path, why in reasons.items() if why}
  for key, group in found.photographs.items():
    found.photographs[key] = [path for path in group if not reasons[path]]


def fault_of(path: Path) -> str:
  """Why a picture file cannot be used; "" if it can, as far as its two ends tell."""
  try:
    path.as_posix().encode()
  except UnicodeEncodeError:
    return "its name is not UTF-8 text; rename it"
  try:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
      return "it is not a regular file"
    with open(path, "rb") as file:
      if info.st_size and is_whole(file, info.st_size):
        return ""
    transforms.decode(path.read_bytes())
  except transforms.UnreadableImage as error:
    return str(error)
  except OSError as error:
    return f"it cannot be opened: {error.strerror or error}"
  return ""


def is_whole(file, size: int) -> bool:
  """Whether the header is in order and the file ends as its format ends; False is "perhaps"."""
  try:
    image = Image.open(file)
    kind, pixels = image.format, image.width * image.height
  except Exception:  # Pillow does not document what a broken header raises
    return False
  if pixels > transforms.MAX_PIXELS:
    return False
  file.seek(max(0, size - 32))
  tail = file.read()
  if kind in ("JPEG", "MPO"):
    return tail.rstrip(b"\0").endswith(b"\xff\xd9")
  if kind == "PNG":
    return tail.endswith(b"IEND\xaeB`\x82")
  if kind == "GIF":
    return tail.rstrip(b"\0").endswith(b"\x3b")
  return False


def check(found: Findings, max_bad: float) -> None:
  """Adds the faults that show only when all is listed."""
  if found.root.is_dir():
    _check_classes(found)
  readable = sum(map(len, found.photographs.values()))
  share = len(found.unreadable) / max(1, readable + len(found.unreadable))
  if found.unreadable and (found.faults or share > max_bad):
    limit = f", more than the {max_bad:.1%} that max_bad allows" if share > max_bad else ""
    found.faults.append(
      f"{len(found.unreadable)} of {readable + len(found.unreadable)} photographs cannot be used "
      f"({share:.1%}{limit}):"
    )
    named = sorted(found.unreadable.items())
    found.faults += [f"  {path}: {why}" for path, why in named[:LISTED]]
    if len(named) > LISTED:
      found.faults.append(f"  and {len(named) - LISTED} more")


def _check_classes(found: Findings) -> None:
  groups, classes = found.photographs, found.classes
  if not groups and not found.faults:
    found.faults.append(
      f"there are no class folders; wanted one for each class, {found.root.name}/rose/photo.jpg"
    )
  for name in found.splits:
    for label in classes:
      folder = (Path(found.folders[name]) / label).as_posix()
      if (name, label) not in groups:
        found.faults.append(f"{folder} is missing, a class that another split has")
      elif not groups[name, label]:
        tried = sum(path.startswith(f"{folder}/") for path in found.unreadable)
        found.faults.append(
          f"{folder} has no photograph that can be read, of {tried}; mend them or remove the folder"
          if tried
          else f"{folder} is a class without images; add {_list(SUFFIXES)} files or remove it"
        )
  if len(classes) == 1:
    found.faults.append(f"there is one class only, {classes[0]}; wanted two or more")
  owners = [paths for (name, _), paths in groups.items() if name in ("all", "train")]
  if owners and "val" not in found.splits and max(map(len, owners)) == 1:
    found.faults.append("no class has two photographs, so none can be held back for validation")


def split(
  photographs: dict[tuple[str, str], list[str]], seed: int
) -> dict[str, list[tuple[str, str]]]:
  """{"train", "val", "test": [(class, path)] sorted by path}; what its owner split stays so."""
  given = {name for name, _ in photographs}
  tenths = {"val": 4, "test": 9} if "all" in given else {} if "val" in given else {"val": 4}
  groups = {name: [] for name in ("train", *tenths)}
  for (name, label), paths in photographs.items():
    parts = cut(paths, label, seed, tenths) if name in ("all", "train") else {name: paths}
    for part, chosen in parts.items():
      groups.setdefault(part, []).extend((label, path) for path in chosen)
  for part in tenths:
    if not groups[part]:
      _hold_one_back(groups, part, seed)
  return {name: sorted(rows, key=lambda row: row[1]) for name, rows in groups.items()}


def _hold_one_back(groups: dict[str, list[tuple[str, str]]], part: str, seed: int) -> None:
  """Gives an empty part one photograph of the largest class, if that leaves the class one."""
  (label, count), *_ = Counter(label for label, _ in groups["train"]).most_common(1)
  if count > 1:
    rows = [row for row in groups["train"] if row[0] == label]
    row = min(rows, key=lambda row: digest(seed, row[1]))
    groups["train"].remove(row)
    groups[part].append(row)


def cut(paths: list[str], label: str, seed: int, tenths: dict[str, int]) -> dict[str, list[str]]:
  """Gives each named part one tenth of a class, train the rest and never nothing.

  Depends on the class's own files only, by the hash of their paths: on every machine the same, and
  photographs added to one class move none of another. Paths are dealt in the order of their hashes,
  ten a round, beginning at a place that depends on the class: so the tenths of many small classes
  add up to a tenth too.
  """
  order = sorted(paths, key=lambda path: digest(seed, path))
  first = int.from_bytes(digest(seed, label)[:8], "big") % 10
  parts = {"train": [], **{name: [] for name in tenths}}
  by_place = {place: name for name, place in tenths.items()}
  for rank, path in enumerate(order):
    parts[by_place.get((first + rank) % 10, "train")].append(path)
  if paths and not parts["train"]:
    parts = {"train": paths, **{name: [] for name in tenths}}
  return parts


def digest(seed: int, name: str) -> bytes:
  # Macs write accents as two characters in file names; the split should not notice.
  text = f"{seed}/{unicodedata.normalize('NFC', name)}"
  return hashlib.sha256(os.fsencode(text)).digest()
