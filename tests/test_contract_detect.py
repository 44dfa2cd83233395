"""What every detector of the zoo promises; a new variant is tested by being in the catalog."""

from functools import cache, partial
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import pytest

from tests import cases
import zoo


@cache
def trace(name: str, **fields):
  """(model, end points, variables), as shapes."""
  model = zoo.create(name, plain=True, **fields)
  size = zoo.preprocess(name).size
  image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  run = partial(model.init_with_output, train=False)
  return model, *jax.eval_shape(run, jax.random.key(0), image)


def modules_of(variables) -> set[str]:
  return {path.split("/")[1] for path in traverse_util.flatten_dict(variables, sep="/")}


@pytest.mark.parametrize("name", zoo.names(task="detect"))
def test_contract(name):
  model, ends, variables = trace(name)
  sizes = [array.size for array in jax.tree.leaves(variables["params"])]
  assert sum(sizes) == cases.PARAMS.get(name, "a line in tests/references.csv")
  assert {"params"} <= variables.keys() <= {"params", "batch_stats"}

  stages = sorted((e for e in ends if e.startswith("stage")), key=lambda e: int(e[5:]))
  assert stages == [f"stage{i}" for i in range(1, len(stages) + 1)]
  heights = [ends[e].shape[1] for e in stages]
  assert heights == sorted(heights, reverse=True), "stages only get coarser"

  found = jax.eval_shape(partial(model.detect, limit=7), ends)
  assert found["boxes"].shape == (2, 7, 4)
  assert found["scores"].shape == found["box_label"].shape == (2, 7)
  assert found["box_label"].dtype == jnp.int32

  patterns, modules = zoo.stages(name), modules_of(variables)
  covered = {m: [p for p in patterns if re.fullmatch(p, m)] for m in modules}
  assert {m: p for m, p in covered.items() if len(p) != 1} == {}, "each in exactly one stage"
  assert not [p for p in patterns if not any(re.fullmatch(p, m) for m in modules)]

  _, bare, without = trace(name, num_classes=None)
  gone = modules - modules_of(without)
  assert gone and all(re.fullmatch(patterns[-1], m) for m in gone), "the head, and only that"
  assert {e for e in bare if e.startswith("stage")} == set(stages)


@pytest.mark.parametrize("name", zoo.names(task="detect"))
def test_other_classes(name):
  """Another number of classes changes the head alone, and labels stay below it."""
  _, _, variables = trace(name)
  _, _, other = trace(name, num_classes=3)
  flat = [traverse_util.flatten_dict(v["params"], sep="/") for v in (variables, other)]
  changed = {p.split("/")[0] for p in flat[0] if flat[0][p].shape != flat[1][p].shape}
  assert changed and all(re.fullmatch(zoo.stages(name)[-1], m) for m in changed)
