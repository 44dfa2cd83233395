"""A published network as the trunk of one that has no checkpoint of its own."""

from collections.abc import Mapping, Sequence
import re

from flax import linen as nn
from flax import traverse_util
import jax

import zoo


def under(module: str, classifier: str) -> dict:
  """Variables of the checkpoint `classifier`, all in one module of that name."""
  return {name: {module: tree} for name, tree in zoo.load(classifier)[1].items()}


def planted(
  model: nn.Module, backbone: str, known: Mapping, trunk: Sequence[str], *, size: zoo.Size,
  seed: int,
) -> dict:  # fmt: skip
  """Fresh variables of a model of images, but `known` ones in the modules of its trunk.

  Args:
    backbone: the checkpoint that `known` is of; what the model has no place for stays out.
    trunk: regular expressions of top-level modules.

  Raises:
    ValueError: the model has no such module, or arrays of another shape there.
  """
  have = traverse_util.flatten_dict(dict(known), sep="/")
  want = traverse_util.flatten_dict(zoo.shapes(model, size=size), sep="/")
  held = [p for p in want if any(re.fullmatch(stage, p.split("/")[1]) for stage in trunk)]
  if not held:
    raise ValueError(f"--backbone={backbone} is a classifier, and the network stands on none")
  if wrong := [p for p in held if p not in have or have[p].shape != want[p].shape]:
    raise ValueError(
      f"--backbone={backbone} has another trunk: {len(wrong)} of {len(held)} arrays do not fit, "
      f"such as {wrong[0]}"
    )
  key = jax.random.key(seed, impl="rbg")  # quicker to compile on a CPU than the default
  fresh = zoo.init(model, key, size=size, paths=sorted(want.keys() - held))
  out = traverse_util.flatten_dict(jax.device_get(fresh), sep="/")
  return traverse_util.unflatten_dict(out | {path: have[path] for path in held}, sep="/")
