"""What a held network sees of every image, computed once: train.classify --cache_features.

WORKDIR/features/ has, for each split, SPLIT.npy [n d] float32 (the network's "pooled" of the view
that evaluation has), SPLIT_labels.npy [n] int32 and SPLIT_keys.json, the images' names;
features.json says what they were made from.  The folder appears when it is whole; it serves as long
as that is the same, and is made again when it is not.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from functools import cached_property
import hashlib
import json
from pathlib import Path
import re
import shutil

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from train import mesh as meshes
from train.data import pipeline
from train.data.sources import FolderSource, Source
import zoo
from zoo.layers import Numerics

KEY = "features"  # of a batch, and the folder's name


class Head(nn.Module):
  """Features [b d] -> "pooled", as they are, and "logits": a network's last layer by itself.

  Its variables are made by an image [b h w c], as those of every model, whatever that shows.
  """

  layer: str  # the name that the layer has in the network
  width: int  # d
  num_classes: int
  bias: bool = True
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, features, *, train: bool):
    x = jnp.zeros((len(features), self.width)) if features.ndim == 4 else features
    dense = self.numerics.dense(self.num_classes, bias=self.bias, name=self.layer)
    return {"pooled": x, "logits": dense(x)}


def head_of(model: nn.Module, stage: str, size: int, channels: int = 3) -> Head:
  """The last layer of a classifier, by itself; found by tracing, nothing is computed.

  Args:
    stage: regular expression of the head's modules, the last of the variant's STAGES.
    size, channels: of images that the model takes.

  Raises:
    ValueError: the head is not one linear layer of "pooled".
  """
  layers = []

  def intercept(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
      layers.append((context.module.path, context.module.use_bias, args[0], out))
    return out

  def trace(key, image):
    with nn.intercept_methods(intercept):
      ends, variables = model.init_with_output(key, image, train=False)
    found.extend(
      Head(path[0], x.shape[-1], model.num_classes, bias, model.numerics)
      for path, bias, x, out in layers
      if len(path) == 1 and x is ends["pooled"] and out is ends["logits"] and x.ndim == 2
    )
    return variables

  found = []
  image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  variables = jax.eval_shape(trace, jax.random.key(0), image)
  modules = [name for name in variables["params"] if re.fullmatch(stage, name)]
  if not found or modules != [found[0].layer]:
    raise ValueError(
      '--cache_features trains a head that is one linear layer of "pooled"; that of '
      f"{type(model).__name__} is {', '.join(modules)}. Hold all before it by --freeze instead"
    )
  return found[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """The features of a data set, in `folder` once `make` has returned."""

  folder: Path
  model: nn.Module  # the whole network
  head: Head
  load: Callable[[], Mapping]  # variables of the whole network to start from
  record: zoo.Record  # of the network
  splits: Mapping[str, Source]
  batch: int
  threads: int

  @cached_property
  def variables(self) -> dict:
    return dict(self.load())

  def start(self) -> dict:
    """Variables of the head."""
    return {"params": {self.head.layer: self.variables["params"][self.head.layer]}}

  def whole(self, variables: Mapping) -> dict:
    """Variables of the network that ends in the head of `variables`."""
    return {**self.variables, "params": {**self.variables["params"], **variables["params"]}}

  def make(self, mesh, say: Callable[[str], None]) -> None:
    """Computes what is not there yet.

    Raises:
      ValueError: an image cannot be decoded, by name.
      OSError: a file cannot be written.
    """
    facts = json.dumps(self._facts(), indent=2) + "\n"
    path = self.folder / "features.json"
    if path.exists() and path.read_text() == facts:
      say(f"the features of {self.folder} are there")
      return
    part = self.folder.with_name(f".{KEY}.part")
    for old in (part, self.folder):
      shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    variables = jax.device_put(self.variables, meshes.replicated(mesh))

    @jax.jit
    def see(variables, image):
      x = self.record.preprocess.normalize(image)
      return self.model.apply(variables, x, train=False)["pooled"].astype(jnp.float32)

    total = sum(map(len, self.splits.values()))
    with tqdm(total=total, unit=" images", desc=KEY, disable=None, leave=False) as bar:
      for name, source in self.splits.items():
        self._write(part / name, source, lambda image: see(variables, image), mesh, bar)
    (part / "features.json").write_text(facts)
    part.rename(self.folder)
    say(f"features of {total} images: {self.folder}")

  def _write(self, path: Path, source: Source, see: Callable, mesh, bar: tqdm) -> None:
    shape = (len(source), self.head.width)
    features = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, shape)
    for batch in pipeline.eval_batches(
      source, batch=self.batch, view=self.record.preprocess.crop, threads=self.threads
    ):
      real = batch["index"] >= 0
      seen = see(meshes.put_batch(batch["image"], mesh))
      features[batch["index"][real]] = np.asarray(seen)[real]
      bar.update(int(real.sum()))
    features.flush()
    np.save(path.with_name(f"{path.name}_labels.npy"), np.asarray(source.labels, np.int32))
    path.with_name(f"{path.name}_keys.json").write_text(json.dumps(list(source.keys)))

  def _facts(self) -> dict:
    """What the features depend on; equal for two sets only if they would be."""
    flat = traverse_util.flatten_dict(self.variables, sep="/")
    body = hashlib.sha256()
    for name in sorted(flat):
      if not name.startswith(f"params/{self.head.layer}/"):
        body.update(f"{name} {flat[name].shape}".encode())
        body.update(np.ascontiguousarray(flat[name]))
    record, dtype = self.record, jnp.dtype(self.model.numerics.dtype).name
    return {
      "variant": record.variant, "weights": record.weights, "fields": dict(record.fields),
      "dtype": dtype, "arrays": body.hexdigest(), "batch": self.batch,
      "preprocess": dataclasses.asdict(record.preprocess),
      "images": {name: _names(source) for name, source in self.splits.items()},
    }  # fmt: skip

  def train_batches(self, batch: int, seed: int, balance: bool, step: int) -> Iterator[dict]:
    """As `pipeline.train_batches` without augmentation, of features instead of images."""
    source = self.splits["train"]
    rows = pipeline.train_rows(source, batch=batch, seed=seed, start_step=step, balance=balance)
    features, labels = self._read("train")
    for index in rows:
      yield _batch(features, labels, index)

  def eval_batches(self, batch: int, split: str) -> Iterator[dict]:
    """As `pipeline.eval_batches`, of features instead of images."""
    features, labels = self._read(split)
    for start in range(0, len(labels), batch):
      index = np.arange(start, start + batch)
      index = np.where(index < len(labels), index, -1)
      yield _batch(features, labels, index) | {"index": index.astype(np.int32)}

  def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    features = np.load(self.folder / f"{split}.npy", mmap_mode="r")
    return features, np.load(self.folder / f"{split}_labels.npy")


def _batch(features: np.ndarray, labels: np.ndarray, index: np.ndarray) -> dict:
  """{"features": [b d], "label": [b], "real": [b]}; -1 fills a row, which is not real."""
  real = index >= 0
  return {
    KEY: np.where(real[:, None], features[index], 0), "label": np.where(real, labels[index], 0),
    "real": real.astype(np.float32),
  }  # fmt: skip


def _names(source: Source) -> str:
  """A digest of the images' names and labels, and of files' sizes and times."""
  told = hashlib.sha256(np.asarray(source.labels, np.int32).tobytes())
  for key in source.keys:
    told.update(f"\n{key}".encode("utf-8", "surrogateescape"))
    if isinstance(source, FolderSource):
      known = (source.root / key).stat()
      told.update(f" {known.st_size} {known.st_mtime_ns}".encode())
  return told.hexdigest()
