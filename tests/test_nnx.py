"""The NNX adapter: equal to Linen, and a training step in NNX's graph and tree modes."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import optax
import pytest

import zoo

RATE = 0.1
MODES = {
  "graph": {"graph": True, "graph_updates": True},
  "tree": {"graph": False, "graph_updates": False},
}


class Small(nn.Module):
  """A network by the zoo's contract, with all that NNX has to carry: statistics, dropout."""

  dropout: float = 0.0
  numerics: zoo.Numerics = zoo.Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    x = n.act(n.norm(train, name="bn1")(n.conv(8, 3, 2, name="conv1")(image)))
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
    return {"pooled": x, "logits": n.dense(5, name="fc")(x)}


@pytest.fixture(scope="module")
def batch():
  return jax.random.normal(jax.random.key(1), (4, 9, 9, 3)), jnp.arange(4)


@pytest.fixture(scope="module")
def linen():
  return Small(), zoo.init(Small(), jax.random.key(0), size=9)


@pytest.fixture(scope="module")
def wanted(linen, batch):
  """(loss, variables) after one step by Linen alone."""
  model, variables = linen

  def run(params):
    image, label = batch
    out, changed = model.apply(
      {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
    )
    return loss_of(out, label), changed["batch_stats"]

  (loss, stats), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
  params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads)
  return loss, {"params": params, "batch_stats": stats}


def loss_of(out, label):
  return optax.softmax_cross_entropy_with_integer_labels(out["logits"], label).mean()


def difference(a, b) -> float:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def nnx_step(mode):
  @nnx.jit(**mode)
  def step(model, optimizer, image, label):
    def run(model):
      return loss_of(model(image), label)

    which = nnx.DiffState(0, nnx.Param) if mode["graph"] else 0
    loss, grads = nnx.value_and_grad(run, argnums=which, **mode)(model)
    grads = grads if mode["graph"] else nnx.state(grads, nnx.Param, graph=False)
    optimizer.update(model, grads)
    return loss

  return step


@pytest.mark.parametrize("mode", MODES)
def test_a_training_step_equals_linens(mode, linen, batch, wanted):
  mode = MODES[mode]
  model = zoo.to_nnx(*linen)
  optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param, graph=mode["graph"])
  model.train()
  loss = nnx_step(mode)(model, optimizer, *batch)
  assert abs(loss - wanted[0]) < 1e-5
  assert difference(model.variables(), wanted[1]) < 1e-5
  assert difference(linen[1]["batch_stats"], wanted[1]["batch_stats"]) > 1e-3  # they did move


def test_evaluates_at_first_and_again_after_eval(linen, batch):
  model, variables = linen
  want = model.apply(variables, batch[0], train=False)["logits"]
  module = zoo.to_nnx(model, variables)
  assert difference(module(batch[0])["logits"], want) == 0
  module.train()
  module.eval()
  assert difference(module(batch[0])["logits"], want) == 0
  assert difference(module.variables(), variables) == 0


def test_freezing_and_dropout(linen, batch):
  module = zoo.to_nnx(Small(dropout=0.5), linen[1])
  module.train()
  rngs = nnx.Rngs(dropout=0)
  first, second = (module(batch[0], rngs=rngs)["logits"] for _ in range(2))
  assert difference(first, second) > 0
  head = nnx.state(module, nnx.All(nnx.Param, nnx.PathContains("fc")))
  assert len(jax.tree.leaves(head)) == 2
