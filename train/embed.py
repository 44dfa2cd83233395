"""An index of pictures for visual search: their vectors, by any layer of any network.

  python -m train.embed --model=resnet18.tv1 --data=photographs/ --out=index
  python -m train.embed --model=runs/mine --data=tfds:oxford_flowers102 --layer=stage3 --out=index

The index is a folder: a file of vectors, colours and names for each part of the data, and
index.json. Each part appears when it is whole, so that the same command goes on where it was
stopped or killed, and ends at the same bits. With --processes=N --process=I, N processes, on one
machine or on many with one file system, share the parts.

A folder's pictures are found at any depth; the folder that a picture lies in is its label, by which
python -m train.search --measure can tell how good the answers are.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
import sys

import jax
import numpy as np
from tqdm import tqdm

from convert import readers, writers
from train import batches, mesh, options, page, predict, startup
from train.data import datasets, shards
from train.data.folders import SPLITS
from train.options import option
import zoo
from zoo import retrieve

THUMBNAIL = 64  # pixels of the side at which colours are counted
HEADER = "flaxzoo.index"


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Weights (variant.tag), the folder of a run, or a .safetensors file.")
  data: str = option("", "Folder of photographs, or a data set such as tfds:NAME.")
  out: str = option("", "Folder of the index; the same command goes on with one begun.")
  layer: str = option("pooled", "End point whose mean over places is a picture's vector.")
  size: int = option(0, "Pixels of the square input; 0 for the checkpoint's.", lower_bound=0)
  colors: int = option(5, "Dominant colours kept of each picture.", lower_bound=1, upper_bound=16)
  shard: int = option(4096, "Pictures in one file of the index.", lower_bound=1)
  batch: int = option(32, "Pictures computed at once, in one process.", lower_bound=1)
  threads: int = option(4, "Threads that read pictures.", lower_bound=1)
  processes: int = option(1, "How many processes make the index.", lower_bound=1)
  process: int = option(0, "Which of them this is, from 0.", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Encoded pictures by number."""

  keys: Sequence[str]
  labels: Sequence[str]  # "" where there is none
  read: Callable[[int], bytes]


def pictures(data: str) -> Pictures:
  """Those of a folder at any depth, or of all splits of a data set.

  Raises:
    ValueError: there are none.
  """
  root = Path(data).expanduser()
  if root.is_dir() and not shards.kind_of(root):
    faults = []
    paths = predict.find([str(root)], faults.append)
    if faults:
      raise ValueError(faults[0])
    keys = [path.relative_to(root).as_posix() for path in paths]
    return Pictures(
      [predict.readable(key) for key in keys], [_label(key) for key in keys],
      lambda i: paths[i].read_bytes(),
    )  # fmt: skip
  found = datasets.load(data)
  places = [(split, i) for split, source in found.splits.items() for i in range(len(source))]

  def row(i):
    split, at = places[i]
    return found.splits[split][at]

  keys = [f"{split}/{found.splits[split].keys[i]}" for split, i in places]
  labels = [found.classes[_label_of(found.splits[split], i)] for split, i in places]
  return Pictures(keys, labels, lambda i: row(i)["image"])


def _label(key: str) -> str:
  """The folders that a picture lies in, without that of a split."""
  parts = key.split("/")[:-1]
  return predict.readable("/".join(parts[1:] if parts and parts[0].lower() in SPLITS else parts))


def _label_of(source, i: int) -> int:
  return int(source.labels[i]) if hasattr(source, "labels") else int(source[i]["label"])


class Embedder:
  """Pictures [b size size 3] uint8 -> vectors and colours, over the devices of this process."""

  def __init__(self, model: str, layer: str, size: int, colors: int, batch: int):
    self.record = zoo.record(model)
    pixels = self.record.preprocess
    if not isinstance(pixels, zoo.Preprocess):
      raise ValueError(f"{model} reads lines of text; name a network of photographs")
    self.preprocess = pixels.at(size) if size else pixels
    network, variables = zoo.load(model)
    self._devices = mesh.local(batch)
    self.batch = mesh.even(batch, self._devices)
    self._variables = jax.device_put(variables, mesh.replicated(self._devices))
    step = max(1, self.preprocess.size // THUMBNAIL)

    def signature(image):
      small = image[::step, ::step]
      return retrieve.signature(small, retrieve.salience(small), colors=colors)

    @jax.jit
    def run(variables, image):
      x = self.preprocess.normalize(image)
      return retrieve.embed(network, variables, x, layer), jax.vmap(signature)(image)

    side = self.preprocess.size
    image = jax.ShapeDtypeStruct((self.batch, side, side, 3), np.uint8)
    self.width = jax.eval_shape(run, variables, image)[0].shape[-1]
    self._run = run

  def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    full = batches.padded(image, self.batch)
    out = jax.device_get(self._run(self._variables, mesh.put_batch(full, self._devices)))
    return tuple(np.asarray(part)[: len(image)] for part in out)


@dataclasses.dataclass(frozen=True)
class Index:
  """What a folder of `train.embed` holds."""

  info: dict  # of index.json
  features: np.ndarray  # [n d] float32 of unit length
  signatures: np.ndarray  # [n colors 4] float32
  keys: list[str]
  labels: list[str]
  failed: list[str]  # one sentence for each picture that could not be read


def load(folder: Path) -> Index:
  """A finished index. Raises ValueError that says what is there instead."""
  info = read_info(folder)
  parts = [shard_path(folder, i) for i in range(info["shards"])]
  there = [path for path in parts if path.exists()]
  if len(there) < len(parts):
    raise ValueError(
      f"{folder} is not finished: {len(there)} of its {len(parts)} parts are there; the command "
      f"that began it goes on: python -m train.embed --model={info['model']} "
      f"--data={info['data']} --out={folder}"
    )
  arrays, headers = zip(*(_read(path) for path in parts))
  whole = lambda name: np.concatenate([part[name] for part in arrays])
  every = lambda name: [text for header in headers for text in header[name]]
  return Index(
    info, whole("features"), whole("signatures"), every("keys"), every("labels"), every("failed")
  )


def read_info(folder: Path) -> dict:
  path = folder / "index.json"
  if not path.exists():
    raise ValueError(f"{folder} is no index; python -m train.embed --out={folder} makes one")
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is damaged ({error}); delete {folder} and make it again") from error


def shard_path(folder: Path, number: int) -> Path:
  return folder / f"{number:05}.safetensors"


def _read(path: Path):
  text = readers.safetensors_metadata(path).get(HEADER)
  if text is None:
    raise ValueError(f"{path} is no part of an index; delete it and run train.embed again")
  return readers.safetensors(path), json.loads(text)


def claim(config: Config, found: Pictures, width: int) -> int:
  """Makes --out the folder of this index, new or begun; the number of its parts.

  Raises:
    ValueError: the folder is another index's; says what differs.
  """
  names = hashlib.sha256("\n".join(found.keys).encode()).hexdigest()
  wanted = {
    "model": config.model, "layer": config.layer, "size": config.size, "colors": config.colors,
    "data": config.data, "pictures": len(found.keys), "names": names, "width": width,
    "shard": config.shard, "shards": -(-len(found.keys) // config.shard),
    # Batches of another length may round otherwise.
    "batch": config.batch,
  }  # fmt: skip
  out = Path(config.out)
  if (out / "index.json").exists():
    there = read_info(out)
    if faults := [f"{name}: {there.get(name)} there, {value} now"
                  for name, value in wanted.items() if there.get(name) != value]:  # fmt: skip
      raise ValueError(
        f"{out} holds another index:\n  " + "\n  ".join(faults) +
        "\ngive another --out, or delete it"
      )  # fmt: skip
  elif out.exists() and (not out.is_dir() or any(p.name[0] != "." for p in out.iterdir())):
    raise ValueError(f"--out={out} is there and is no index; name another folder")
  else:
    page.write(out / "index.json", json.dumps(wanted, indent=2) + "\n")
  return wanted["shards"]


def make(config: Config, bar: tqdm | None = None) -> list[str]:
  """Writes what this process has to of the index; sentences on the pictures that are unreadable.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  if config.process >= config.processes:
    raise ValueError(
      f"--process={config.process} of --processes={config.processes}: they are counted from 0"
    )
  found = pictures(config.data)
  embedder = Embedder(config.model, config.layer, config.size, config.colors, config.batch)
  parts = claim(config, found, embedder.width)
  own = range(config.process, parts, config.processes)
  numbers = lambda i: range(i * config.shard, min((i + 1) * config.shard, len(found.keys)))
  if bar is not None:
    bar.reset(sum(len(numbers(i)) for i in own))
  failed = []
  for i in own:
    path = shard_path(Path(config.out), i)
    if not path.exists():
      failed += _write(path, numbers(i), found, embedder, config.threads, bar)
    else:
      failed += _read(path)[1]["failed"]
      if bar is not None:
        bar.update(len(numbers(i)))
  return failed


def _write(path: Path, numbers: range, found: Pictures, embedder: Embedder, threads, bar):
  """One part of the index, in one piece; what could not be read."""
  failed, kept, parts = [], [], []
  reads = ((Row(i, found.keys[i]), lambda i=i: found.read(i)) for i in numbers)
  views = predict.views(reads, embedder.preprocess, threads)
  for rows, image in predict.batches(views, embedder.batch, failed.append):
    parts.append(embedder(image))
    kept += [row.number for row in rows]
    if bar is not None:
      bar.update(len(rows))
  if bar is not None:
    bar.update(len(failed))
  size = embedder.preprocess.size
  parts = parts or [tuple(a[:0] for a in embedder(np.zeros((1, size, size, 3), np.uint8)))]
  features, signatures = (np.concatenate(part) for part in zip(*parts))
  header = {
    "keys": [found.keys[i] for i in kept], "labels": [found.labels[i] for i in kept],
    "failed": [predict.readable(sentence) for sentence in failed],
  }  # fmt: skip
  arrays = {
    "features": features, "signatures": signatures, "numbers": np.array(kept, np.int64)
  }  # fmt: skip
  writers.safetensors(path, arrays, {HEADER: json.dumps(header)})
  return header["failed"]


@dataclasses.dataclass(frozen=True)
class Row:
  number: int
  key: str

  def __str__(self) -> str:
    return self.key


def thumbnails(data: str, keys: Sequence[str]) -> Iterator[bytes | None]:
  """The encoded pictures of an index's keys; None for those that are gone."""
  try:
    found = pictures(data)
  except (ValueError, OSError):
    yield from (None for _ in keys)
    return
  place = {key: i for i, key in enumerate(found.keys)}
  for key in keys:
    try:
      yield found.read(place[key])
    except (KeyError, OSError):
      yield None


def main(argv: Sequence[str], config: Config) -> int:
  if missing := [f"--{name}" for name in ("model", "data", "out") if not getattr(config, name)]:
    raise ValueError(
      f"{' and '.join(missing)} missing: python -m train.embed --model=resnet18.tv1 "
      "--data=photographs/ --out=index"
    )
  startup.set_up_compilation()
  with tqdm(unit=" pictures", disable=None) as bar:
    failed = make(config, bar)
  if failed:
    print("\n".join(["not in the index:", *failed]), file=sys.stderr)
  print(f"index: {Path(config.out).resolve()}")
  return 0


if __name__ == "__main__":
  options.run(main, Config, stopped="stopped; the same command goes on from the last whole part")
