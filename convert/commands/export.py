"""A model of ours as a file of others: state dicts, Keras weights, ONNX graphs, StableHLO."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import re

from flax import traverse_util
import jax
import numpy as np

from convert import engine, onnx_graph, rules, writers
from convert.commands import originals
import zoo
from zoo import catalog, layers, store, traces

# Format -> end of the file's name.
FORMATS = {
  "torch": ".pth", "safetensors": ".safetensors", "keras": ".h5", "onnx": ".onnx",
  "stablehlo": ".stablehlo",
}  # fmt: skip
ANSWERS = r"logits|deltas|anchors|canvas|size|raw\d+"  # of heads, and what belongs to them
PLATFORMS = ("cpu", "cuda", "tpu")  # that an exported StableHLO program runs on


def export(name_or_file: str, to: str, out: str | None, dialect: str | None) -> Path:
  """Writes a checkpoint, a file of ours or a run's folder in format `to`; returns where."""
  if to not in FORMATS:
    raise ValueError(f"--to is one of {', '.join(FORMATS)}; found {to!r}")
  record = known(name_or_file)
  if to in ("onnx", "stablehlo") and zoo.task(record.variant) == "text":
    raise ValueError(f"{name_or_file} is no model of one picture, so it is not written to {to}")
  model, variables = zoo.load(name_or_file)
  if to in ("onnx", "stablehlo"):
    path = _place(name_or_file, FORMATS[to], out)
    with writers.writing(path) as part:
      if to == "onnx":
        part.write_bytes(onnx_model(model, variables, record).SerializeToString())
      else:
        part.write_bytes(stablehlo(model, variables, record).serialize())
    return path
  dialect = dialect or own_dialect(record, to)
  if not writes(record.variant, dialect, to):
    raise ValueError(f"the names of {dialect} in {record.variant} are not written to {to}")
  arrays = foreign(variables, record, dialect)
  path = _place(name_or_file, f".{dialect}{FORMATS[to]}", out)
  if to == "torch":
    writers.torch_zip(path, arrays)
  elif to == "safetensors":
    writers.safetensors(path, arrays, {"format": "pt"})
  else:
    if path.name.endswith(".weights.h5"):
      raise ValueError(f"Keras takes {path.name} for its newer format; name it without .weights")
    writers.keras_h5(path, arrays)
  return path


def _place(name_or_file: str, end: str, out: str | None) -> Path:
  path = Path(name_or_file)
  stem = path.resolve().name.removesuffix(".safetensors") if path.exists() else name_or_file
  if out is None or Path(out).is_dir():
    return Path(out or "") / f"{stem}{end}"
  return Path(out)


def known(name_or_file: str) -> zoo.Record:
  """The record of a file; of a checkpoint, what its conversion in the cache adds to it."""
  record = zoo.record(name_or_file)
  if record.weights and not record.foreign:
    path = zoo.converted_path(record.weights)
    names = store.read_record(path).foreign if path.exists() else {}
    record = dataclasses.replace(record, foreign=names)
  return record


# Names and layouts of other libraries.


def own_dialect(record: zoo.Record, to: str) -> str:
  """The dialect of the checkpoint that a model descends from, else of any of its variant.

  Raises:
    ValueError: none of them is written in format `to`; lists those that are.
  """
  rows = catalog.WEIGHTS
  near = [rows[record.weights]] if record.weights in rows else []
  near += [row for row in rows.values() if row.variant == record.variant]
  fit = [row.dialect for row in near if writes(record.variant, row.dialect, to)]
  if not fit:
    raise ValueError(f"no dialect of {record.variant} is known that is written to {to}")
  return fit[0]


def writes(variant: str, dialect: str, to: str) -> bool:
  """Whether files of format `to` hold arrays named as in `dialect`."""
  leaves = rules_of(variant, dialect).leaves
  return leaves is (engine.KERAS_LEAVES if to == "keras" else engine.TORCH_LEAVES)


def rules_of(variant: str, dialect: str) -> engine.Rules:
  family = catalog.FAMILY[variant].__name__.rpartition(".")[2]
  return rules.of(family, dialect, variant)


def foreign(variables, record: zoo.Record, dialect: str, like=None) -> dict[str, np.ndarray]:
  """Our variables under the names and in the layouts of `dialect`.

  No rule says which names there are; they are those of `like`, {name: shape}, or of the first of
  these that fits: the file that the model descends from, converted checkpoints of its variant, the
  original library.

  Raises:
    ValueError: nowhere are there names that fit; says where they were looked for.
  """
  dialect_rules, faults = rules_of(record.variant, dialect), []
  for source, look in [("the original", lambda: like)] if like else _names(record, dialect):
    try:
      names = {name: tuple(shape) for name, shape in look().items()}
      if record.fields.get("num_classes", 0) is None:
        names = _without_head(names, variables, record.variant, dialect_rules)
      return engine.back(
        variables, names, dialect_rules, _folded(names, variables, record, dialect)
      )
    except ValueError as error:
      faults.append(f"{source}: {error}")
  raise ValueError(
    f"the names that {dialect} gives a {record.variant} are not known: convert one of its "
    "checkpoints first (python -m convert --list), or install the original library"
    + "".join(f"\n{fault}" for fault in faults)
  )


def _names(record: zoo.Record, dialect: str) -> Iterator[tuple[str, Callable[[], Mapping]]]:
  """(where from, what looks up {name: shape}) of files and networks of the variant there."""
  rows = catalog.WEIGHTS
  own = rows[record.weights].dialect if record.weights in rows else None
  if record.foreign and own == dialect:
    yield "the file that it was converted from", lambda: record.foreign
  for name, row in rows.items():
    path = zoo.converted_path(name)
    if (row.variant, row.dialect) == (record.variant, dialect) and path.exists():
      if names := store.read_record(path).foreign:
        yield name, lambda names=names: names
  classes = record.fields.get("num_classes") or None
  if original := originals.find(record.variant, dialect, record.weights):
    if originals.installed(original):
      yield originals.library(original), lambda: originals.names(original, classes)


def _folded(names, variables, record: zoo.Record, dialect: str) -> engine.Norms:
  """The norms that a file with these names has folded into its convolutions."""
  model = zoo.create(record.weights or record.variant, **record.fields)
  with traces.norms_behind() as norms:
    zoo.shapes(model, size=record.preprocess.size, channels=record.in_channels)
  return engine.folded(names, variables, rules_of(record.variant, dialect), norms)


def _without_head(names, variables, variant: str, dialect_rules) -> dict:
  """The names of a backbone alone."""
  have = traverse_util.flatten_dict(variables, sep="/")
  pattern = rf"(params/|batch_stats/)?({zoo.stages(variant)[-1]})/.*"
  return {
    name: shape for name, shape in names.items()
    if not re.fullmatch(pattern, dialect_rules.place(name, have)[0])
  }  # fmt: skip


# Programs.


def traced(model, record: zoo.Record, planes: bool = False):
  """(function of (flat variables, images [b h w c]) -> {end: array}, images with a free b).

  The ends are what `detect` and its like take of a network with a head, else all. With `planes`
  images are [b c h w].
  """
  plain = model.clone(numerics=dataclasses.replace(model.numerics, plain=True))

  def run(flat, image):
    image = image.transpose(0, 2, 3, 1) if planes else image
    ends = plain.apply(traverse_util.unflatten_dict(flat, sep="/"), image, train=False)
    answers = {name: end for name, end in ends.items() if re.fullmatch(ANSWERS, name)}
    return dict(sorted((answers or ends).items()))

  [batch] = jax.export.symbolic_shape("batch")
  size, channels = layers.pair(record.preprocess.size), record.in_channels
  shape = (batch, channels, *size) if planes else (batch, *size, channels)
  image = jax.ShapeDtypeStruct(shape, np.float32)
  return run, image


def onnx_model(model, variables, record: zoo.Record, *, planes: bool = False):
  """Normalised images [batch h w c] to the heads' answers, or to all end points of a backbone.

  Batch norms are folded into the convolutions before them. With `planes` images are [batch c h w],
  as runtimes want them for convolutions: what makes images can write them so, at no cost.
  """
  model, variables = zoo.fold(
    model, variables, size=record.preprocess.size, channels=record.in_channels
  )
  flat = traverse_util.flatten_dict(variables, sep="/")
  run, image = traced(model, record, planes)
  program, ends = jax.make_jaxpr(run, return_shape=True)(flat, image)
  facts = {"flaxzoo": json.dumps(dataclasses.asdict(dataclasses.replace(record, foreign={})))}
  return onnx_graph.model(program, [*sorted(flat), "image"], list(ends), flat, facts)


def stablehlo(model, variables, record: zoo.Record):
  """As `onnx_model`, a `jax.export.Exported`; its file is read by `jax.export.deserialize`."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  run, image = traced(model, record)
  return jax.export.export(jax.jit(lambda x: run(flat, x)), platforms=PLATFORMS)(image)
