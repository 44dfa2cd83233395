"""What a model costs and what it gives, found by tracing it; nothing is computed."""

from collections.abc import Mapping
import csv
import dataclasses
import functools
import math
from pathlib import Path

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Size, pair
from zoo.weights import Weights


@dataclasses.dataclass(frozen=True)
class Feature:
  """An end point [b h/stride w/stride channels]."""

  name: str
  stride: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Info:
  """What is known of a variant."""

  variant: str
  params: int
  multiply_adds: int  # of convolutions and dense layers, for one image of `size`
  size: Size  # pixels of a side, or of (height, width), those of its published weights
  features: tuple[Feature, ...]  # "stem" first, then coarser and coarser
  weights: Mapping[str, Weights]  # by "variant.tag"


def measure(
  model: nn.Module, size: Size, channels: int = 3
) -> tuple[int, int, tuple[Feature, ...]]:
  """(parameters, multiply-adds for one image, spatial end points) of a model of images."""
  plain = model.clone(numerics=dataclasses.replace(model.numerics, plain=True))
  height, width = pair(size)
  image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)

  def run(key, image):
    return plain.init_with_output(key, image, train=False)

  program, (ends, variables) = jax.make_jaxpr(run, return_shape=True)(jax.random.key(0), image)
  maps = {name: end for name, end in ends.items() if end.ndim == 4}
  strides = {name: 2 ** round(math.log2(width / end.shape[2])) for name, end in maps.items()}
  if any(end.shape[2] > width for end in maps.values()):  # what is put around it counts too
    image = jax.ShapeDtypeStruct((1, height, width + 64, channels), jnp.float32)
    wider, _ = jax.eval_shape(run, jax.random.key(0), image)
    strides = {name: 64 // (wider[name].shape[2] - end.shape[2]) for name, end in maps.items()}
  features = [Feature(name, strides[name], end.shape[3]) for name, end in maps.items()]
  features.sort(key=lambda f: (f.name != "stem", f.stride, f.name))
  params = sum(array.size for array in jax.tree.leaves(variables["params"]))
  return params, _multiply_adds(program.jaxpr), tuple(features)


def known(variant: str, size: Size) -> tuple[int, int, tuple[Feature, ...]] | None:
  """What `measure` says of a variant of `size`, where measured.csv has it: that takes no time."""
  row = _measured().get(variant)
  if not row or row["size"] != _written(size):
    return None
  features = (feature.split("/") for feature in row["features"].split())
  return (
    int(row["params"]), int(row["multiply_adds"]),
    tuple(Feature(name, int(stride), int(channels)) for name, stride, channels in features),
  )  # fmt: skip


def line(variant: str, size: Size, params: int, multiply_adds: int, features) -> str:
  """As measured.csv has it."""
  ends = " ".join(f"{f.name}/{f.stride}/{f.channels}" for f in features)
  return f"{variant},{_written(size)},{params},{multiply_adds},{ends}"


def _written(size: Size) -> str:
  return "x".join(map(str, pair(size)))


@functools.cache
def _measured() -> dict[str, dict[str, str]]:
  """tests/test_listing.py compares them with what tracing says."""
  with open(Path(__file__).with_name("measured.csv"), encoding="utf-8", newline="") as file:
    return {row["variant"]: row for row in csv.DictReader(file)}


def _multiply_adds(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    if equation.primitive.name == "conv_general_dilated":
      out = equation.outvars[0].aval
      kernel = equation.invars[1].aval
      features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
      total += out.size * kernel.size // features
    elif equation.primitive.name == "dot_general":
      out = equation.outvars[0].aval
      (contracted, _), _ = equation.params["dimension_numbers"]
      total += out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        part = getattr(part, "jaxpr", part)
        if hasattr(part, "eqns"):
          total += times * _multiply_adds(part)
  return total
