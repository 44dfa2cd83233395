"""Batch norms that an exporter folded into convolutions: found, made identities, folded again."""

from functools import partial
import re

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import engine, rules
from train import loop
from zoo import traces
from zoo.layers import Numerics

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 9, 8, 3)).astype(np.float32)


class Net(nn.Module):
  """Norms behind convolutions of every kind, one before an activation only, one nowhere."""

  numerics: Numerics = Numerics(eps=1e-3)
  bias: bool = False

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    norm = partial(n.norm, train)
    x = nn.relu(norm(name="bn1")(n.conv(8, 3, 2, bias=self.bias, name="conv1")(x)))
    x = norm(name="bn2")(n.conv(8, 3, groups=8, bias=self.bias, name="conv2")(x))
    x = n.conv(4, bias=True, name="plain")(nn.relu(x))
    return n.dense(5, name="fc")(x.mean((1, 2)))


def flat(tree) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(tree, sep="/")


def random(model):
  variables = model.init(jax.random.key(0), IMAGE, train=False)
  draw = lambda a: RNG.uniform(0.2, 2, a.shape).astype(np.float32)
  return jax.tree.map(draw, variables)


def traced(model):
  with traces.norms_behind() as norms:
    target = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGE)
  return target, norms


def exported(variables, eps: float, bias: bool) -> dict[str, np.ndarray]:
  """A torch-like state dict in which, in float64, the norms are part of the convolutions."""
  have = {path: a.astype(np.float64) for path, a in flat(variables).items()}
  for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
    factor = have[f"params/{norm}/scale"] / np.sqrt(have[f"batch_stats/{norm}/var"] + eps)
    before = have.get(f"params/{conv}/bias", 0)
    have[f"params/{conv}/kernel"] *= factor
    have[f"params/{conv}/bias"] = (
      (before - have[f"batch_stats/{norm}/mean"]) * factor + have[f"params/{norm}/bias"]
    )  # fmt: skip
  out = {}
  for path, array in have.items():
    if "/bn" not in path:
      axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
      name = path.removeprefix("params/").replace("/", ".").replace("kernel", "weight")
      out[name] = np.ascontiguousarray(array.astype(np.float32).transpose(axes))
  return out


@pytest.mark.parametrize("bias", [False, True])
def test_an_equal_model_comes_of_a_folded_one_and_back(bias):
  model = Net(bias=bias)
  variables = random(model)
  target, norms = traced(model)
  assert norms == {"conv1": ("bn1", 1e-3), "conv2": ("bn2", 1e-3)}
  state = exported(variables, 1e-3, bias)
  found = engine.folded(state, target, rules.TORCH, norms)
  assert found == norms
  got = engine.convert(state, target, rules.TORCH, found)
  want = model.apply(variables, IMAGE, train=False)
  np.testing.assert_allclose(model.apply(got, IMAGE, train=False), want, rtol=1e-5)
  shapes = {name: a.shape for name, a in state.items()}
  back = engine.back(got, shapes, rules.TORCH, found)
  for name, array in state.items():
    np.testing.assert_array_equal(back[name], array)
  # Norms that were trained since are folded into what goes back.
  back = engine.back(variables, shapes, rules.TORCH, found)
  for name, array in state.items():
    np.testing.assert_allclose(back[name], array, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1.001e-5, 1e-12, 0.0, 0.1])
def test_the_identity_changes_no_bit(eps):
  paths = ("params/bn/scale", "params/bn/bias", "batch_stats/bn/mean", "batch_stats/bn/var")
  want = {path: np.zeros(3) for path in paths}
  arrays = engine.identity("bn", eps, want)
  assert arrays.keys() == want.keys()
  norm = nn.BatchNorm(True, epsilon=eps)
  variables = {
    kind: {path.rpartition("/")[2]: a for path, a in arrays.items() if path.startswith(kind)}
    for kind in ("params", "batch_stats")
  }
  x = RNG.normal(size=(4, 3)).astype(np.float32)
  np.testing.assert_array_equal(norm.apply(variables, jnp.asarray(x)), x)


def test_norms_that_do_nothing_are_told_from_new_ones():
  """train.loop warns of them where batches' statistics would take their place."""
  kept = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
  want = {f"batch_stats/bn/{name}": kept[name] for name in kept}
  arrays = engine.identity("bn", 1e-5, want)
  folded = {name: arrays[f"batch_stats/bn/{name}"] for name in kept}
  learned = {"mean": np.ones(4, np.float32), "var": np.full(4, 0.5, np.float32)}
  stats = {"stem": folded, "body": {"a": folded, "b": learned}, "head": kept}
  assert loop.folded_norms({"batch_stats": stats}, "") == 2
  assert loop.folded_norms({"batch_stats": stats}, "stem|x") == 1
  assert loop.folded_norms({"params": {}}, "") == 0


def test_only_what_is_folded_is_taken_for_it():
  model = Net()
  variables, (target, norms) = random(model), traced(model)
  state = exported(variables, 1e-3, False)
  whole = {k: v for k, v in state.items() if not re.fullmatch(r"conv\d\.bias", k)}
  assert engine.folded(whole, target, rules.TORCH, norms) == {}
  with pytest.raises(ValueError, match="missing batch_stats/bn1/mean"):
    engine.convert(whole, target, rules.TORCH)
  # One norm that is there, and a bias that has no place beside it.
  half = state | {f"bn1.{leaf}": np.ones(8, np.float32)
                  for leaf in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
  found = engine.folded(half, target, rules.TORCH, norms)
  assert found == {"conv2": norms["conv2"]}
  with pytest.raises(ValueError, match="unused +conv1.bias"):
    engine.convert(half, target, rules.TORCH, found)
  # A norm of which something is left was not folded.
  rest = state | {"bn1.running_mean": np.ones(8, np.float32)}
  with pytest.raises(ValueError, match="missing batch_stats/bn1/var"):
    engine.convert(rest, target, rules.TORCH, engine.folded(rest, target, rules.TORCH, norms))
