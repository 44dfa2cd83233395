"""Data sets by name: a folder, shards, or a set of TensorFlow Datasets without TensorFlow.

  load("~/photographs")                  see `folders`
  load("tar:~/shards")                   see `shards`; so is records:, of ArrayRecord files
  load("tfds:oxford_flowers102")         its own splits; a missing val is the last tenth of train
  load("tfds:cifar10:train=train[:90%],val=train[90%:],test=test")    TFDS's notation of splits

A TFDS set must be prepared in array_record files before, which for most sets needs TensorFlow, in
an environment of its own; reading it does not.
"""

from collections.abc import Mapping
import dataclasses
import difflib
from pathlib import Path
import re

from train.data import folders, shards
from train.data.sources import Source, TfdsSource

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
  name: str
  classes: tuple[str, ...]
  splits: Mapping[str, Source]  # "train", "val" and, where there is one, "test"
  skipped: tuple[str, ...] = ()  # one sentence for each file left out

  @property
  def num_classes(self) -> int:
    return len(self.classes)


def load(
  data: str | Path, *, seed: int = 0, max_bad: float = 0.05, data_dir: str | Path | None = None
) -> Dataset:
  """Opens a data set; pictures are read when rows are asked for.

  Args:
    data: a folder, `tar:FOLDER`, `records:FOLDER`, or
      `tfds:NAME[:VERSION][:train=SPLIT,val=SPLIT,test=SPLIT]`.
    seed: of the division of a folder or of shards that are not split by their owner.
    max_bad: share of the photographs that may be unreadable and skipped, 0..1.
    data_dir: where TFDS keeps prepared sets; None is TFDS's own default.

  Raises:
    ValueError: names all faults of the folder, or what the TFDS set lacks.
  """
  if str(data).startswith("tfds:"):
    return load_tfds(str(data).removeprefix("tfds:"), data_dir)
  kind, named, path = str(data).partition(":")
  if not named or kind not in shards.KINDS:
    kind, path = "", data
  root = Path(path).expanduser()
  if not root.exists():
    raise ValueError(f"no folder {root}{_near(root)} (a TFDS set is written tfds:NAME)")
  if kind := kind or shards.kind_of(root):
    classes, splits, skipped = shards.load(kind, root, seed, max_bad)
  else:
    classes, splits, skipped = folders.load(root, seed, max_bad)
  return Dataset(root.resolve().name, classes, splits, skipped)


def _near(root: Path) -> str:
  if not root.parent.is_dir():
    return f" (there is no {root.parent})"
  names = [path.name for path in root.parent.iterdir() if path.is_dir()]
  close = difflib.get_close_matches(root.name, names, n=1)
  return f"; did you mean {root.parent / close[0]}?" if close else ""


def load_tfds(spec: str, data_dir: str | Path | None) -> Dataset:
  """A prepared TFDS set with one picture and one class in each example."""
  name, wanted = parse_tfds(spec)
  import tensorflow_datasets as tfds

  folder = str(data_dir or tfds.core.constants.DATA_DIR)
  prepare = (
    f"Prepare it once, in an environment that has TensorFlow: tfds build {name} "
    f"--file_format=array_record --data_dir={folder}"
  )
  try:
    builder = tfds.builder(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f"TFDS knows no set {name!r}, nor is one of that name in {folder}{_near(Path(folder) / name)}"
    ) from error
  except ImportError as error:  # some sets import TensorFlow even to describe themselves
    raise ValueError(f"{name} is not prepared in {folder}. {prepare}") from error
  if not builder.info.splits:
    raise ValueError(f"{name} is not prepared in {folder}. {prepare}")
  image, label = _features(tfds, builder)
  have = set(builder.info.splits)
  if not wanted:
    wanted = _own_splits(name, have)
  decoders = {image: tfds.decode.SkipDecoding()}
  splits = {}
  for split, part in wanted.items():
    try:
      rows = builder.as_data_source(split=part, decoders=decoders)
    except (ValueError, KeyError, NotImplementedError) as error:
      raise ValueError(f"{name} cannot give {split}={part}: {error}; it has {sorted(have)}") from (
        error
      )
    splits[split] = TfdsSource(rows, part, image, label)
  return Dataset(f"tfds:{spec}", tuple(builder.info.features[label].names), splits)


def parse_tfds(spec: str) -> tuple[str, dict[str, str]]:
  """ "name:3.0.1:train=train[:9%]" -> ("name:3.0.1", {"train": "train[:9%]"})."""
  match = re.fullmatch(r"([\w/.+-]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.*))?", spec)
  parts = [part.partition("=") for part in match[2].split(",")] if match and match[2] else []
  wanted = {key.strip(): value.strip() for key, _, value in parts}
  faulty = not match or not all(wanted.values()) or len(wanted) < len(parts)
  if faulty or wanted.keys() - set(SPLITS) or (wanted and not {"train", "val"} <= wanted.keys()):
    raise ValueError(
      f"cannot read tfds:{spec}; wanted tfds:NAME, or with splits "
      "tfds:NAME:train=train[:90%],val=train[90%:],test=test (test may be left out)"
    )
  return match[1], wanted


def _own_splits(name: str, have: set[str]) -> dict[str, str]:
  if "train" not in have:
    raise ValueError(
      f"{name} has no split train but {sorted(have)}; say which to take: "
      f"tfds:{name}:train=SPLIT,val=SPLIT"
    )
  val = next((split for split in ("validation", "val", "valid") if split in have), None)
  # The examples of a prepared set lie in random order already, so its end is a fair tenth.
  wanted = {"train": "train", "val": val} if val else {"train": "train[:90%]", "val": "train[90%:]"}
  return wanted | ({"test": "test"} if "test" in have else {})


def _features(tfds, builder) -> tuple[str, str]:
  """Names of the picture and of its class."""
  if not hasattr(builder.info.features, "items"):
    raise ValueError(f"{builder.name} has no named features")
  features = dict(builder.info.features.items())
  names = []
  for what, kind in (("picture", tfds.features.Image), ("class", tfds.features.ClassLabel)):
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    preferred = [key for key in builder.info.supervised_keys or () if key in found]
    if len(preferred or found) != 1:
      raise ValueError(
        f"{builder.name} has {len(found)} features that are a {what} ({found}); wanted one. "
        f"It has {sorted(features)}"
      )
    names += preferred or found
  return names[0], names[1]
