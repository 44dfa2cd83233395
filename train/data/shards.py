"""Photographs packed into few large files, read at random: tar shards and ArrayRecord files.

  load("tar:FOLDER")        tar files as WebDataset writes them: 17.jpg beside 17.cls or 17.json
  load("records:FOLDER")    ArrayRecord files of tf.train.Example with a picture and a label

A shard whose path holds the word train, val or test belongs to that split (train-0001.tar,
val/0001.tar); shards that tell no split are divided here as a folder is. A .cls holds the class's
name or number; a .json has it as "label", "cls" or "class"; a tar without either has a folder for
each class in it. classes.txt beside the shards names numbered classes, one a line.

The shards are read once, and what stands where is kept in the cache, for as long as a shard's size
and time stay. Of a tar that takes its headers and both ends of each picture: as in a folder, damage
in the middle is found when the picture's turn comes. From then on a picture is one read at its
offset, so the order of an epoch is as free as a folder's.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
from functools import cached_property, partial
import hashlib
import io
import json
import os
from pathlib import Path
import re
import tarfile

import numpy as np

from convert import protobuf
from convert.files import UnsafeFile
from train.data import folders, transforms
from train.data.sources import Row
from zoo.fetch import cache_dir

KINDS = {"tar": r"\.tar", "records": r"\.array_?record(-\d+-of-\d+)?"}
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # which nothing can read at random
LABELS = ("label", "cls", "class")  # in a .json
IMAGE = ("image/encoded", "image")  # of an Example
LABEL = ("image/class/label", "label")
LABEL_LIMIT = 1 << 20  # bytes of a .cls or .json
INDEX = 1  # the number of this form of the index
# Example.features.feature, a map: {1: key, 2: one of bytes_list, float_list, int64_list}
EXAMPLE = {1: ("features", {1: ("feature", {
  1: ("key", "text"),
  2: ("value", {1: ("texts", {1: ("value", "bytes")}), 3: ("numbers", {1: ("value", "ints")})}),
})})}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
  name: str  # in its shard
  offset: int  # in bytes of a tar, in records of ArrayRecord
  size: int  # bytes
  label: str  # name or number
  fault: str  # why it cannot be used, "" if it can


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
  """Samples of some shards. `read(path, offset, size)` gives the encoded picture."""

  kind: str
  root: Path
  shards: tuple[str, ...]  # paths below `root`
  names: tuple[str, ...]  # [n] in the shard
  shard: np.ndarray  # [n] int32
  offset: np.ndarray  # [n] int64
  size: np.ndarray  # [n] int64
  labels: np.ndarray  # [n] int32

  @cached_property
  def keys(self) -> Sequence[str]:
    return tuple(f"{self.shards[s]}/{name}" for s, name in zip(self.shard, self.names))

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Row:
    path = self.root / self.shards[self.shard[index]]
    offset, size = int(self.offset[index]), int(self.size[index])
    read = _read_record if self.kind == "records" else _read
    return {"image": read(path, offset, size), "label": int(self.labels[index])}


def kind_of(root: Path) -> str:
  """The kind of shards in a folder that holds nothing else, or of a file; "" if they are none."""
  if not root.is_dir():
    return next((k for k, end in KINDS.items() if re.search(end + "$", root.name)), "")
  inner = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(folders.HIDDEN)]
  if any(p.name.lower() not in folders.SPLITS for p in inner):
    return ""
  names = [p.name for folder in (root, *inner) for p in folder.iterdir() if p.is_file()]
  return next((k for k, end in KINDS.items() if any(re.search(end + "$", n) for n in names)), "")


def load(
  kind: str, root: Path, seed: int, max_bad: float
) -> tuple[tuple[str, ...], dict[str, ShardSource], tuple[str, ...]]:
  """(classes, {split: source}, sentences on samples left out), as `folders.load`.

  Raises:
    ValueError: all faults.
  """
  root = root.absolute()
  paths = _shards(kind, root)
  root = root if root.is_dir() else root.parent
  read = partial(_indexed, {"tar": _tar, "records": _records}[kind])
  samples, faults = [], []  # (its shard's number, sample)
  for number, path in enumerate(paths):
    try:
      samples += [(number, sample) for sample in read(path)]
    except (tarfile.TarError, ValueError, OSError, RuntimeError) as error:
      faults.append(f"{path.name}: {str(error).splitlines()[0]}")
  bad = [(number, sample) for number, sample in samples if sample.fault]
  good = [(number, sample) for number, sample in samples if not sample.fault]
  skipped = tuple(f"{paths[number].name}/{sample.name}: {sample.fault}" for number, sample in bad)
  if len(bad) > max_bad * len(samples):
    faults.append(
      f"{len(bad)} of {len(samples)} samples cannot be used ({len(bad) / len(samples):.1%}, more "
      f"than the {max_bad:.1%} that max_bad allows):"
    )
    faults += [f"  {line}" for line in skipped[: folders.LISTED]]
  if not good and not faults:
    faults.append(f"no shard holds a photograph; wanted {', '.join(folders.SUFFIXES)} in them")
  classes, label, more = _classes(root, [sample.label for _, sample in good])
  if faults := faults + more:
    raise ValueError(f"the shards in {root} cannot be used:\n  " + "\n  ".join(faults))
  below = tuple(path.relative_to(root).as_posix() for path in paths)
  part = [_split_of(name) for name in below]
  if "all" in part and set(part) != {"all"}:
    odd = below[part.index("all")]
    raise ValueError(
      f"the shards in {root} cannot be used:\n  {odd} tells no split, others do; wanted train, val "
      "or test in the path of each, or of none"
    )
  groups, place = {}, {}
  for i, (number, sample) in enumerate(good):
    key = f"{below[number]}/{sample.name}"
    groups.setdefault((part[number], classes[label[i]]), []).append(key)
    place[key] = i
  if not {"all", "train"} & set(part):
    raise ValueError(f"the shards in {root} cannot be used:\n  none is of the split train")
  sources = {}
  for name, rows in folders.split(groups, seed).items():
    own = [place[key] for _, key in rows]
    column = lambda f, dtype: np.array([f(good[i]) for i in own], dtype)  # noqa: B023
    if own:
      sources[name] = ShardSource(
        kind, root, below, tuple(good[i][1].name for i in own),
        column(lambda s: s[0], np.int32), column(lambda s: s[1].offset, np.int64),
        column(lambda s: s[1].size, np.int64), np.array([label[i] for i in own], np.int32),
      )  # fmt: skip
  return classes, sources, skipped


def _shards(kind: str, root: Path) -> list[Path]:
  if root.is_file():
    return [root]
  if not root.is_dir():
    raise ValueError(f"no folder or file {root}; wanted {kind}:FOLDER with shards in it")
  files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
  if packed := [p.name for p in files if kind == "tar" and p.name.lower().endswith(PACKED)]:
    raise ValueError(
      f"{root / packed[0]} is compressed, so nothing can be read from its middle; unpack each of "
      f"the {len(packed)} to a plain .tar (the photographs in it are compressed already)"
    )
  if found := [p for p in files if re.search(KINDS[kind] + "$", p.name)]:
    return found
  wanted = {"tar": "train-0001.tar", "records": "train.array_record-00000-of-00008"}[kind]
  raise ValueError(f"{root} holds no shards; wanted such as {wanted}")


def _split_of(path: str) -> str:
  words = re.split(r"[^a-z]+", path.lower())
  return next((folders.SPLITS[word] for word in words if word in folders.SPLITS), "all")


def _classes(root: Path, found: list[str]) -> tuple[tuple[str, ...], list[int], list[str]]:
  """(names, the number of each of `found`, faults)."""
  path = root / "classes.txt"
  names = path.read_text().split("\n") if path.exists() else []
  names = [name.strip() for name in names if name.strip()]
  kinds = set(found)
  faults = []
  if all(label.isdecimal() for label in kinds):
    top = max((int(label) for label in kinds), default=0)
    names = names or [str(i) for i in range(top + 1)]
    if top >= len(names):
      faults.append(f"a label is {top}, but {path.name} has {len(names)} lines")
    numbers = {label: int(label) for label in kinds}
  else:
    names = names or sorted(kinds)
    numbers = {name: i for i, name in enumerate(names)}
    if lost := sorted(kinds - numbers.keys()):
      faults.append(f"{path.name} lacks {len(lost)} of the classes: {', '.join(lost[:8])}")
  if len(kinds) == 1:
    faults.append(f"there is one class only, {found[0]}; wanted two or more")
  return tuple(names), [numbers.get(label, 0) for label in found], faults


# ---- what stands where


def _indexed(read, path: Path) -> list[Sample]:
  """What `read(path)` finds, from the cache where the shard is as it was."""
  info = path.stat()
  facts = json.dumps([INDEX, read.__name__, str(path), info.st_size, info.st_mtime_ns])
  kept = cache_dir() / "shards" / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"
  try:
    return [Sample(*row) for row in json.loads(kept.read_text())]
  except (OSError, ValueError, TypeError):
    pass  # not there, or half of it
  samples = list(read(path))
  part = kept.with_suffix(f".{os.getpid()}")
  try:
    kept.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps([dataclasses.astuple(sample) for sample in samples]))
    os.replace(part, kept)
  except OSError:
    part.unlink(missing_ok=True)  # a cache that cannot be written only makes the next start slower
  return samples


def _tar(path: Path) -> Iterator[Sample]:
  pictures, labels, seen = [], {}, Counter()
  with tarfile.open(path, "r:") as archive:  # plain, at random
    for member in archive:
      stem, dot, end = member.name.rpartition("/")[2].partition(".")
      key = member.name[: len(member.name) - len(dot + end)]
      if not member.isreg() or not stem or stem.startswith(folders.HIDDEN):
        continue
      seen[member.name] += 1
      if seen[member.name] > 1:
        raise ValueError(f"{member.name} is in it {seen[member.name]} times; write the shard again")
      if "." + end.lower().rpartition(".")[2] in folders.SUFFIXES:
        pictures.append((key, member.name, member.offset_data, member.size))
      elif end.lower() in ("cls", "json") and member.size <= LABEL_LIMIT:
        found = _label(end.lower(), _read(path, member.offset_data, member.size))
        labels[key] = found if end.lower() == "cls" else labels.get(key, found)
    last = archive.offset  # where tarfile saw no further header, for whatever reason
  if path.stat().st_size < last + tarfile.BLOCKSIZE or any(_read(path, last, tarfile.BLOCKSIZE)):
    raise ValueError(f"it is cut off or damaged after {len(seen)} files; get it again")
  named = bool(labels)
  for key, name, offset, size in pictures:
    label = labels.get(key, "") if named else name.rpartition("/")[0].rpartition("/")[2]
    fault = _fault(path, offset, size)
    if not label:
      fault = "it has no class: neither .cls nor .json with a label beside it, nor a folder"
    yield Sample(name, offset, size, label, fault)


def _label(end: str, data: bytes) -> str:
  """The name or number that a .cls or .json holds; "" if it holds none."""
  try:
    value = data.decode()
    if end == "json":
      value = json.loads(value)
      value = next((value[name] for name in LABELS if name in value), "")
  except (ValueError, TypeError):
    return ""
  return str(value).strip() if isinstance(value, str | int) else ""


class _Part(io.RawIOBase):
  """Some bytes of a file as a file of their own."""

  def __init__(self, file, offset: int, size: int):
    self._file, self._offset, self._size, self._at = file, offset, size, 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, at, whence=0):
    self._at = max(0, at + (0, self._at, self._size)[whence])
    return self._at

  def tell(self):
    return self._at

  def readinto(self, buffer):
    count = max(0, min(len(buffer), self._size - self._at))
    data = os.pread(self._file.fileno(), count, self._offset + self._at)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def _fault(path: Path, offset: int, size: int) -> str:
  """As `folders.fault_of`, of a part of a file."""
  with open(path, "rb", 0) as file:
    if size and folders.is_whole(io.BufferedReader(_Part(file, offset, size), 4096), size):
      return ""
  return _decodes(_read(path, offset, size))


def _decodes(data: bytes) -> str:
  try:
    transforms.decode(data)
  except transforms.UnreadableImage as error:
    return str(error)
  return ""


def _read(path: Path, offset: int, size: int) -> bytes:
  with open(path, "rb", 0) as file:
    data = os.pread(file.fileno(), size, offset)
  if len(data) < size:
    raise OSError(f"{path} is shorter than it was; it ends before byte {offset + size}")
  return data


def _rows(path: Path):
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  return ArrayRecordDataSource([str(path)])


def _records(path: Path) -> Iterator[Sample]:
  rows = _rows(path)
  for i in range(len(rows)):
    try:
      image, label = _example(rows[i])
    except UnsafeFile as error:
      yield Sample(str(i), i, 0, "", str(error))
      continue
    whole = folders.is_whole(io.BytesIO(image), len(image))
    yield Sample(str(i), i, len(image), label, "" if whole else _decodes(image))


_OPEN = {}  # readers of this process, by path: to open one takes as long as a thousand reads


def _read_record(path: Path, offset: int, size: int) -> bytes:
  if path not in _OPEN:
    _OPEN[path] = _rows(path)
  return _example(_OPEN[path][offset])[0]


def _example(record: bytes) -> tuple[bytes, str]:
  """(encoded picture, its label) of a tf.train.Example. Raises UnsafeFile."""
  message = protobuf.parse(np.frombuffer(record, np.uint8), EXAMPLE)
  found = {}
  for features in message.all("features"):
    for feature in features.all("feature"):
      found[feature.one("key", "")] = feature.one("value")
  image = next((found[name] for name in IMAGE if found.get(name)), None)
  label = next((found[name] for name in LABEL if found.get(name)), None)
  texts = image.one("texts") if image else None
  if texts is None or label is None:
    raise UnsafeFile(
      f"it is no Example with a picture ({' or '.join(IMAGE)}) and a label "
      f"({' or '.join(LABEL)}); it has {', '.join(sorted(found)) or 'nothing'}"
    )
  if numbers := label.one("numbers"):
    name = str(int(numbers.numbers("value", np.int64)[0]))
  else:
    name = label.one("texts").one("value").tobytes().decode()
  return texts.one("value").tobytes(), name
