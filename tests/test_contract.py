"""What every classifier of the zoo promises; a new variant is tested by being in the catalog.

Counts, end points and stages are tested of every variant; what takes longer, of the smallest one of
each family, or of all with `pytest tests/test_contract.py --all-variants`.
"""

import dataclasses
from functools import partial
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.commands import identify
from tests import cases, parity
import zoo
from zoo import catalog

SIZE = 224


def trace(model):
  """(end points, variables) as shapes, nothing computed."""
  model = model.clone(numerics=dataclasses.replace(model.numerics, plain=True))  # traces sooner
  image = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32)
  return jax.eval_shape(
    partial(model.init_with_output, train=False), jax.random.key(0), image
  )  # fmt: skip


def modules_of(variables) -> set[str]:
  return {path.split("/")[1] for path in traverse_util.flatten_dict(variables, sep="/")}


@pytest.mark.parametrize("name", zoo.names(task="classify"))
def test_contract(name):
  model = zoo.create(name, plain=True)  # traced in half the time
  ends, variables = trace(model)

  sizes = [array.size for array in jax.tree.leaves(variables["params"])]
  assert sum(sizes) == cases.PARAMS.get(name, "a line in tests/references.csv")
  assert {"params"} <= variables.keys() <= {"params", "batch_stats"}

  stages = sorted((e for e in ends if e.startswith("stage")), key=lambda e: int(e[5:]))
  assert stages == [f"stage{i}" for i in range(1, len(stages) + 1)]
  assert ends.keys() - set(stages) == {"stem", "pooled", "logits"}
  heights = [ends[e].shape[1] for e in ("stem", *stages)]
  assert heights == sorted(heights, reverse=True), "stages only get coarser"
  assert all(ends[e].ndim == 4 and ends[e].shape[0] == 2 for e in ("stem", *stages))
  assert ends["pooled"].ndim == 2 and ends["logits"].shape == (2, model.num_classes)

  patterns, modules = zoo.stages(name), modules_of(variables)
  covered = {m: [p for p in patterns if re.fullmatch(p, m)] for m in modules}
  assert {m: p for m, p in covered.items() if len(p) != 1} == {}, "each in exactly one stage"
  assert not [p for p in patterns if not any(re.fullmatch(p, m) for m in modules)]
  flat = traverse_util.flatten_dict(variables, sep="/")
  body = [a.size for path, a in flat.items() if not re.fullmatch(patterns[-1], path.split("/")[1])]
  row = f"a line in convert/commands/sizes.csv: {name},{len(body)},{sum(body)}"
  assert identify.SIZES.get(name, row) == (len(body), sum(body))


def pytest_generate_tests(metafunc):
  every = zoo.names(task="classify") if metafunc.config.getoption("--all-variants") else None
  if "backbone" in metafunc.fixturenames:
    metafunc.parametrize("backbone", every or _lightest())
  if "fields" in metafunc.fixturenames:
    some = dict.fromkeys(every, {}) if every else dict(cases.smallest().values())
    metafunc.parametrize(("name", "fields"), some.items(), ids=some)


def _lightest() -> list[str]:
  """Of each module class its variant of fewest parameters."""
  names = sorted(zoo.names(task="classify"), key=lambda name: -cases.PARAMS.get(name, 0))
  return list({type(zoo.create(name)).__name__: name for name in names}.values())


def test_without_classes_it_is_the_backbone(backbone):
  head = zoo.stages(backbone)[-1]
  (ends, variables), (bare, without) = (
    trace(zoo.create(backbone, **fields, plain=True)) for fields in ({}, {"num_classes": None})
  )
  gone = modules_of(variables) - modules_of(without)
  assert gone and all(re.fullmatch(head, m) for m in gone), "the head, and only that"
  assert bare.keys() == ends.keys() - {"logits"}


def test_no_count_without_a_variant():
  assert cases.PARAMS.keys() <= set(zoo.names())


def test_every_parameter_learns(name, fields):
  """In bfloat16, on small pictures that are not square, with the stored statistics.

  In plain forms, which compile much sooner; the others' gradients are those of test_conv and
  test_parity_gradients.
  """
  fields = {**fields, "num_classes": 7, "plain": True, "dtype": jnp.bfloat16}
  model = zoo.create(name, **fields, freeze_norm=True)
  # The norms do nothing here: fifty blocks on, a gate must not have come to its end.
  gain = 0.8 if catalog.FAMILY[name].__name__.endswith(".senet") else 1.0
  variables = parity.fresh(model, size=96, gain=gain)
  image = np.random.default_rng(0).normal(size=(2, 96, 128, 3)).astype(np.float32)

  @partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
  def learn(params, stats, image):
    def loss(params):
      ends, _ = train(model, {"params": params, **stats}, image)
      # Auxiliary heads learn too.
      heads = [e for end, e in ends.items() if end.endswith("logits")]
      return sum((e.astype(jnp.float32) ** 2).mean() for e in heads), ends

    return jax.grad(loss, has_aux=True)(params)

  params = variables.pop("params")
  grads, ends = jax.device_get(learn(params, variables, image))
  flat = traverse_util.flatten_dict(grads, sep="/")
  assert [path for path, g in flat.items() if not np.isfinite(g).all()] == []
  assert [path for path, g in flat.items() if not np.any(g)] == [], "every parameter learns"
  assert [e for e, x in ends.items() if not np.isfinite(np.asarray(x, np.float32)).all()] == []
  stage = max(e for e in ends if e.startswith("stage"))
  assert ends[stage].dtype == jnp.bfloat16 and ends["logits"].shape == (2, 7)


def train(model, variables, image):
  return model.apply(
    variables, image, train=True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
  )


@pytest.mark.parametrize("freeze", [False, True], ids=["free", "frozen"])
def test_training_moves_the_statistics_unless_they_are_frozen(name, fields, freeze):
  """Read in the traced program: what it returns is what came in, or is computed, in float32."""
  fields = {**fields, "plain": True, "dtype": jnp.bfloat16, "freeze_norm": freeze}
  model = zoo.create(name, **fields)
  image = jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32)
  variables = zoo.shapes(model, size=96)
  stats = {"batch_stats": variables.get("batch_stats", {})}
  run = lambda stats, params, image: train(model, {**params, **stats}, image)[1]
  program = jax.make_jaxpr(run)(stats, {"params": variables["params"]}, image)
  came = program.jaxpr.invars[: len(jax.tree.leaves(stats))]
  left = program.jaxpr.outvars
  assert len(left) == len(came)
  for old, new in zip(came, left):
    assert new.aval.shape == old.aval.shape and new.aval.dtype == jnp.float32
  moved = [old is not new for old, new in zip(came, left)]
  assert not any(moved) if freeze else all(moved)
