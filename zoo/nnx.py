"""A model of the zoo as an NNX module.

model = zoo.to_nnx(*zoo.load("resnet50.tv1", num_classes=67))
model.train()  # a new module evaluates
logits = model(images, rngs=nnx.Rngs(dropout=0))["logits"]

Flax's own bridge loses batch-norm statistics in tree mode (`nnx.jit(..., graph=False)`) and does
not obey `train()` and `eval()`; this module holds plain variables and calls the Linen module, so
that both modes agree.
"""

from collections.abc import Mapping

from flax import linen as nn
from flax import nnx
import jax


class Model(nnx.Module):
  """[b h w c] -> the same end points as the Linen module's."""

  def __init__(self, model: nn.Module, variables: Mapping):
    self.linen = nnx.static(model)
    self.params = _wrap(variables["params"], nnx.Param)
    self.batch_stats = _wrap(variables.get("batch_stats", {}), nnx.BatchStat)
    self.deterministic = True  # set by `train()` and `eval()`

  def __call__(self, image: jax.Array, *, rngs: nnx.Rngs | jax.Array | None = None) -> dict:
    """Runs the network; when training, also moves `batch_stats`.

    Args:
      image: [b h w c].
      rngs: for dropout while training; a key, or `nnx.Rngs` with a stream "dropout".
    """
    variables = {"params": _values(self.params), "batch_stats": _values(self.batch_stats)}
    if self.deterministic:
      return self.linen.apply(variables, image, train=False)
    key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
    out, changed = self.linen.apply(
      variables, image, train=True, mutable=["batch_stats"],
      rngs=None if key is None else {"dropout": key},
    )  # fmt: skip
    jax.tree.map(_set, self.batch_stats, changed.get("batch_stats", {}), is_leaf=_is_variable)
    return out

  def variables(self) -> dict:
    """{"params": ..., "batch_stats": ...} for the Linen module, and for `zoo.store.save`."""
    values = {"params": _values(self.params), "batch_stats": _values(self.batch_stats)}
    return {name: tree for name, tree in values.items() if tree}


def to_nnx(model: nn.Module, variables: Mapping) -> Model:
  """`model` with `variables` as an NNX module, in evaluation mode; see `Model`."""
  return Model(model, variables)


def _is_variable(x) -> bool:
  return isinstance(x, nnx.Variable)


def _wrap(tree: Mapping, kind: type[nnx.Variable]):
  return nnx.data(jax.tree.map(lambda x: kind(jax.numpy.asarray(x)), dict(tree)))


def _values(tree) -> dict:
  return jax.tree.map(lambda v: v[...], tree, is_leaf=_is_variable)


def _set(variable: nnx.Variable, value) -> None:
  variable[...] = value
