"""A zoo of vision models in functional Flax, with their published weights.

model = zoo.create("resnet50", num_classes=67)               # a Linen module
model, variables = zoo.load("resnet50.tv1", num_classes=67)  # its weights, a fresh head
out = model.apply(variables, images, train=False)            # {"stage1": ..., "logits": ...}
"""

from collections.abc import Collection, Mapping
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from convert import engine, readers, rules
from zoo import catalog, fetch, heads, listing, store, traces, weights
from zoo.catalog import stages, task
from zoo.layers import Numerics, Size, pair
from zoo.listing import Feature, Info
from zoo.nnx import to_nnx
from zoo.ops import packed
from zoo.store import Record
from zoo.weights import Line, Preprocess, Weights

__all__ = [
  "Feature", "Info", "Line", "Numerics", "Preprocess", "Record", "Weights", "create",
  "feature_info", "fold", "info", "init", "load", "names", "preprocess", "record", "shapes",
  "stages", "task", "to_nnx",
]  # fmt: skip


def names(pretrained: bool = False, task: str | None = None) -> list[str]:
  """Variants, or `variant.tag` of every published checkpoint.

  Args:
    pretrained: list checkpoints.
    task: only what does this: "classify", "detect", "segment" or "text".
  """
  if task not in (None, *catalog.TASKS):
    raise ValueError(f"unknown task {task!r}; there are {', '.join(catalog.TASKS)}")
  found = sorted(catalog.WEIGHTS if pretrained else catalog.VARIANTS)
  return [name for name in found if task in (None, catalog.task(name.partition(".")[0]))]


def create(name: str, *, head: str = "", **fields: Any) -> nn.Module:
  """The module of a variant, or of a checkpoint `variant.tag` as that checkpoint needs it.

  Args:
    name: see `names()`.
    head: one of `zoo.heads.HEADS` in place of a classifier's own.
    **fields: of the module, such as `num_classes` (None gives the backbone), or of its `Numerics`,
      such as `dtype=jnp.bfloat16` or `freeze_norm=True`.
  """
  if name in catalog.WEIGHTS:
    row = catalog.WEIGHTS[name]
    model = _with_fields(catalog.VARIANTS[row.variant](), row.fields)
  else:
    model = catalog.lookup(name, catalog.VARIANTS, "variant")()
  model = _with_fields(model, fields)
  return heads.on(model, head) if head else model


def _with_fields(model: nn.Module, fields: Mapping[str, Any]) -> nn.Module:
  own = {f.name for f in dataclasses.fields(model)} - {"parent", "name"}
  numeric = {f.name for f in dataclasses.fields(Numerics)}
  if unknown := [f for f in fields if f not in own | numeric]:
    hints = ", ".join(f"{f!r}{catalog.suggest(f, own | numeric)}" for f in unknown)
    raise ValueError(f"{type(model).__name__} has no field {hints}; it has {sorted(own)}")
  changes = {f: value for f, value in fields.items() if f in own}
  numerics = {f: value for f, value in fields.items() if f not in own}
  if numerics:
    base = changes.get("numerics", model.numerics)
    changes["numerics"] = dataclasses.replace(base, **numerics)
  return model.clone(**changes)


def init(
  model: nn.Module, key: jax.Array, *, size: Size = 224, channels: int = 3,
  paths: Collection[str] | None = None,
) -> dict:  # fmt: skip
  """Random variables of a model of images, {"params": ..., "batch_stats": ...}.

  Args:
    paths: such as "params/stem/kernel": only these are made, which compiles sooner; None is all.
  """

  def some(key):
    variables = model.init(key, jnp.zeros((1, *pair(size), channels)), train=False)
    flat = traverse_util.flatten_dict(variables, sep="/")
    kept = flat.keys() if paths is None else paths
    return traverse_util.unflatten_dict({path: flat[path] for path in kept}, sep="/")

  return jax.jit(some)(key)  # jit drops the rest


def shapes(model: nn.Module, *, size: Size = 224, channels: int = 3) -> dict:
  """The structure of `init`'s result as ShapeDtypeStruct, without computing anything."""
  image = jax.ShapeDtypeStruct((1, *pair(size), channels), jnp.float32)
  plain = _with_fields(model, {"plain": True})  # the same shapes, traced in half the time
  return jax.eval_shape(partial(plain.init, train=False), jax.random.key(0), image)


def fold(
  model: nn.Module, variables: Mapping[str, Any], *, size: Size = 224, channels: int = 3,
  cpu_batch: int | None = None,
) -> tuple[nn.Module, dict]:  # fmt: skip
  """The same function without batch norms, for inference: (model, variables), both new.

  A norm right behind a convolution becomes part of its kernel and bias; what is left of the others
  is one product and one sum. The folded model is applied with `train=False`.

  Args:
    model: of images.
    variables: its {"params": ..., "batch_stats": ...}. What only training runs stays as it is.
    size: of images on which to look for the norms, as of `init`; the folded model takes any other.
    channels: of those images.
    cpu_batch: how many of those images a CPU will see at once, for which kernels are packed: as
      dictionaries of arrays (`zoo.ops.packed`), of up to 16/9 the size, which is faster there. None
      packs nothing.
  """
  with traces.norm_calls() as calls, traces.kernel_calls() as kernels:
    shapes(model, size=size, channels=channels)
  behind = traces.behind(calls)
  taken = {norm for norm, _ in behind.values()}
  others = {norm: eps for norm, eps, _ in calls if norm not in taken}
  flat = engine.fold(traverse_util.flatten_dict(dict(variables), sep="/"), behind, others)
  for path, of in kernels.items() if cpu_batch else ():
    if layout := packed.layout(of, cpu_batch):
      flat[f"params/{path}/kernel"] = packed.pack(flat[f"params/{path}/kernel"], layout)
  return _with_fields(model, {"folded": True}), traverse_util.unflatten_dict(flat, sep="/")


def info(name: str) -> Info:
  """Costs, end points and published weights of a variant."""
  catalog.lookup(name, catalog.VARIANTS, "variant")
  rows = {w: row for w, row in catalog.WEIGHTS.items() if row.variant == name}
  pixels = preprocess(name)
  channels = weights.in_channels(pixels)
  found = listing.known(name, pixels.size) or listing.measure(create(name), pixels.size, channels)
  params, multiply_adds, features = found
  return Info(name, params, multiply_adds, pixels.size, features, rows)


def feature_info(name: str, **fields: Any) -> tuple[Feature, ...]:
  """Strides and channels of the end points of a variant or checkpoint, without running it.

  Args:
    name: see `names()`.
    **fields: as for `create`, such as `output_stride`.
  """
  row = catalog.WEIGHTS.get(name)
  pixels = preprocess(row.variant if row else name)
  model = create(name, **{"num_classes": None, **fields})
  return listing.measure(model, pixels.size, weights.in_channels(pixels))[2]


def record(name_or_file: str | Path) -> Record:
  """What is known of a checkpoint `variant.tag`, or of a file that flaxzoo wrote."""
  if _is_file(name_or_file):
    return store.read_record(_file(name_or_file))
  row = catalog.WEIGHTS.get(str(name_or_file))
  if row is None:
    variant = str(name_or_file).partition(".")[0]
    tags = [w for w in catalog.WEIGHTS if w.partition(".")[0] == variant]
    hint = f"; {variant} has {', '.join(tags) or 'none'}" if variant in catalog.VARIANTS else (
      catalog.suggest(str(name_or_file), catalog.WEIGHTS)
    )  # fmt: skip
    raise ValueError(f"no weights and no file named {str(name_or_file)!r}{hint}")
  return Record(
    variant=row.variant, weights=str(name_or_file), preprocess=row.preprocess,
    in_channels=weights.in_channels(row.preprocess), classes=row.classes,
    provenance={"where": row.where, "sha256": row.sha256, "license": row.license},
  )  # fmt: skip


def preprocess(name_or_file: str | Path) -> Preprocess | Line:
  """How the pixels of a checkpoint are prepared, for use outside the trainer.

  Of a variant those of its first published weights, else what its family says in UNPUBLISHED.
  """
  if name_or_file not in catalog.VARIANTS:
    return record(name_or_file).preprocess
  rows = (row for row in catalog.WEIGHTS.values() if row.variant == name_or_file)
  own = getattr(catalog.FAMILY[name_or_file], "UNPUBLISHED", {}).get(name_or_file, Preprocess())
  return next((row.preprocess for row in rows), own)


def load(
  name_or_file: str | Path, *, in_channels: int | None = None, seed: int = 0, **fields: Any
) -> tuple[nn.Module, dict]:
  """A model and its pretrained variables, with a fresh head where yours differs.

  Args:
    name_or_file: `variant.tag` (fetched on first use, then cached), or a file written by flaxzoo.
    in_channels: of your images; another number than the checkpoint's changes the first kernel.
    seed: of the fresh head.
    **fields: as for `create`, `head` too; `num_classes=None` drops the head.

  Raises:
    ValueError: an unknown name or field, or arrays that do not fit.
    FileNotFoundError: the weights are neither cached nor within reach; says what to put where.
  """
  info = record(name_or_file)
  if _is_file(name_or_file):
    path = _file(name_or_file)
  else:
    path = _cached(str(name_or_file))
  model = create(info.weights or info.variant, **{**info.fields, **fields})
  channels = info.in_channels if in_channels is None else in_channels
  size = info.preprocess.size
  target = shapes(model, size=size, channels=channels)

  def fresh(paths):
    made = init(model, jax.random.key(seed), size=size, channels=channels, paths=paths)
    return traverse_util.flatten_dict(made, sep="/")

  head = f"{stages(info.variant)[-1]}|{heads.MODULES}"
  variables = store.read_variables(path)
  return model, weights.graft(variables, target, fresh, head, (info.in_channels, channels))


def _is_file(name_or_file: str | Path) -> bool:
  return isinstance(name_or_file, Path) or Path(name_or_file).exists() or (
    str(name_or_file).endswith(".safetensors")
  )  # fmt: skip


def _file(name_or_file: str | Path) -> Path:
  """A weight file, or the one inside a training folder."""
  path = Path(name_or_file)
  path = path / "model.safetensors" if path.is_dir() else path
  if not path.exists():
    raise FileNotFoundError(f"no weights at {path}; a training run writes model.safetensors there")
  return path


def _cached(name: str) -> Path:
  """The converted checkpoint in the cache; fetches and converts it on first use."""
  row = catalog.WEIGHTS[name]
  path = converted_path(name)
  if not path.exists():
    source = fetch.fetch(row.where, row.sha256, row.beside)
    store.save(path, *from_foreign(name, source))
  return path


def converted_path(name: str) -> Path:
  """Where `load` looks for the converted checkpoint `variant.tag`."""
  digest = catalog.WEIGHTS[name].sha256[:8]
  return fetch.cache_dir() / "weights" / f"{name}-{digest}.safetensors"


def rules_of(name: str) -> engine.Rules:
  """How the foreign file of checkpoint `variant.tag` names and lays out its arrays."""
  row = catalog.WEIGHTS[name]
  family = catalog.FAMILY[row.variant].__name__.rpartition(".")[2]
  return rules.of(family, row.dialect, row.variant)


def from_foreign(name: str, source: Path) -> tuple[dict, Record]:
  """Variables of checkpoint `name` out of a foreign file in its dialect, and what they are."""
  arrays = readers.read(source)
  pixels = catalog.WEIGHTS[name].preprocess
  model, channels = create(name), weights.in_channels(pixels)
  with traces.norms_behind() as norms:
    target = shapes(model, size=pixels.size, channels=channels)
  rule, known = rules_of(name), record(name)
  folded = engine.folded(arrays, target, rule, norms)
  variables = engine.convert(arrays, target, rule, folded)
  if folded:
    note = f"{len(folded)} batch norms came folded into their convolutions; here they do nothing"
    known = dataclasses.replace(known, provenance={**known.provenance, "norms": note})
  foreign = {name: array.shape for name, array in arrays.items()}
  return variables, dataclasses.replace(known, foreign=foreign)
