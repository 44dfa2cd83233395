"""What XLA's CPU backend is slow at is in no program of ours: grouped convolutions and windows."""

from functools import partial
import re

import jax
import numpy as np
import pytest

from tests import cases, test_contract
import zoo

# Of few blocks, with every kind of convolution that has a form of its own.
LEARN = {"resnet": ("resnext50_32x4d", {"depths": (1, 1, 1, 1)})} | {
  family: cases.smallest()[family] for family in ("mobilenet_v1", "shufflenet", "googlenet")
}


def lowered(name, fields, run) -> str:
  model = zoo.create(name, **{**fields, "plain": False})
  image = jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32)
  traced = jax.jit(partial(run, model)).trace(zoo.shapes(model, size=96), image)
  return traced.lower(lowering_platforms=("cpu",)).as_text()


def slow(text: str) -> list[str]:
  """The operations that took 10 to 100 times too long (BUILD.md, "Speed"), each once."""
  found = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
  grouped = [f"{n} groups" for n in set(found) - {"1"}]
  return grouped + re.findall("stablehlo.reduce_window|stablehlo.select_and_scatter", text)


@pytest.mark.parametrize(("name", "fields"), cases.smallest().values(), ids=cases.smallest())
def test_nothing_slow_computes_the_logits(name, fields):
  text = lowered(name, fields, lambda model, *inputs: model.apply(*inputs, train=False)["logits"])
  assert "stablehlo.convolution" in text and slow(text) == []


@pytest.mark.parametrize(("name", "fields"), LEARN.values(), ids=LEARN)
def test_nothing_slow_computes_the_gradients(name, fields):
  def gradients(model, variables, image):
    def loss(params):
      ends, _ = test_contract.train(model, {**variables, "params": params}, image)
      return (ends["logits"] ** 2).mean()

    return jax.grad(loss)(variables["params"])

  text = lowered(name, fields, gradients)
  assert "stablehlo.convolution" in text and slow(text) == []


def test_the_plain_forms_are_seen():
  name, fields = cases.smallest()["mobilenet_v1"]
  model = zoo.create(name, **{**fields, "plain": True})
  image = jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32)
  run = jax.jit(partial(model.apply, train=False))
  assert slow(run.lower(zoo.shapes(model, size=96), image).as_text())
