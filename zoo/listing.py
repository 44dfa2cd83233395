"""What a model costs and what it gives, found by tracing it; nothing is computed."""

from collections.abc import Mapping
import dataclasses
import json
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo import fetch
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
  image = jax.ShapeDtypeStruct((1, *pair(size), channels), jnp.float32)

  def run(key, image):
    return plain.init_with_output(key, image, train=False)

  program, (ends, variables) = jax.make_jaxpr(run, return_shape=True)(jax.random.key(0), image)
  features = [
    Feature(name, 2 ** round(math.log2(pair(size)[1] / end.shape[2])), end.shape[3])
    for name, end in ends.items() if end.ndim == 4
  ]  # fmt: skip
  features.sort(key=lambda f: (f.name != "stem", f.stride, f.name))
  params = sum(array.size for array in jax.tree.leaves(variables["params"]))
  return params, _multiply_adds(program.jaxpr), tuple(features)


def measure_once(model: nn.Module, variant: str, size: Size, channels: int = 3):
  """`measure`, remembered on disk for as long as the sources and libraries are the same."""
  height, width = pair(size)
  path = fetch.cache_dir() / "info" / f"{variant}-{height}x{width}-{fetch.version()}.json"
  if path.exists():
    params, multiply_adds, features = json.loads(path.read_text())
    return params, multiply_adds, tuple(Feature(*f) for f in features)
  found = measure(model, size, channels)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps([*found[:2], [dataclasses.astuple(f) for f in found[2]]]))
  return found


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
