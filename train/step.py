"""The one train step and the one evaluation step; every task uses these."""

import contextlib
import dataclasses
import re
from typing import Any

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from train.mix import Mix
from train.tasks import Batch, Task
from zoo.weights import Preprocess


@flax.struct.dataclass
class State:
  step: jax.Array  # [] int32, updates done
  params: Any
  stats: Any  # the mutable collections, {"batch_stats": ...} or {}
  opt: Any
  ema: Any = dataclasses.field(default_factory=dict)  # averages of the variables, or {}

  @property
  def variables(self):
    return {"params": self.params, **self.stats}


def make_state(variables, tx: optax.GradientTransformation, *, ema: bool = False) -> State:
  """The state before the first update; with averages of the variables if `ema`."""
  stats = {name: tree for name, tree in variables.items() if name != "params"}
  params = variables["params"]
  averages = jax.tree.map(jnp.copy, dict(variables)) if ema else {}
  return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params), averages)


def make_train_step(
  model: nn.Module,
  task: Task,
  tx: optax.GradientTransformation,
  key: jax.Array,
  preprocess: Preprocess,
  *,
  frozen: str = "",
  skip: bool = False,
  ema: float = 0.0,
  mix: Mix = Mix(),  # noqa: B008 (frozen)
  remat: bool = False,
  shardings=None,
):
  """Returns jitted (state, batch) -> (state, {name: (sum, weight)}); `state` is donated.

  Args:
    key: of the noise; each step folds its number in, so a resumed run draws the same.
    preprocess: how uint8 pixels become the network's input; applied on the device.
    frozen: regular expression of top-level modules that run as in evaluation and have gradients of
      zero, which XLA does not compute. That weight decay leaves them alone is the business of `tx`.
    skip: an update whose loss or gradient is not finite leaves all but the step's number as it was;
      `measured` then counts nothing but {"skipped": (1, 1)}.
    ema: how much of the averages an update keeps; less at first, (1 + t) / (10 + t) after update t.
      The state must have been made with averages.
    mix: of pictures, with the same noise.
    remat: of each block (a top-level module with a `train` argument) only the input is kept for the
      gradient, and the rest computed again: less memory for a third more work.
    shardings: (of the new state, of what was measured); None leaves them to XLA.
  """

  def step(state: State, batch: Batch):
    noise = jax.random.fold_in(key, state.step)
    inputs = _inputs(task, batch, preprocess)
    if mix:
      inputs[0], batch = mix(jax.random.fold_in(noise, 1), inputs[0], batch, task.target)

    def loss(params):
      with nn.intercept_methods(_as_in_evaluation(frozen)), _rematerialized(remat):
        out, stats = model.apply(
          {"params": params, **state.stats}, *inputs,
          train=True, rngs={"dropout": noise}, mutable=list(state.stats),
        )  # fmt: skip
      measured = sums(task, out, batch)
      total, weight = measured["loss"]
      return total / jnp.maximum(weight, 1), (stats, measured)

    (value, (stats, measured)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    grads = {
      name: jax.tree.map(jnp.zeros_like, tree) if re.fullmatch(frozen, name) else tree
      for name, tree in grads.items()
    }
    updates, opt = optax.with_extra_args_support(tx).update(
      grads, state.opt, state.params, value=value
    )
    if plateau := _plateau(opt):
      measured |= {"rate_scale": (plateau.scale, jnp.ones(()))}
    params = optax.apply_updates(state.params, updates)
    new = State(state.step + 1, params, stats, opt, state.ema)
    if ema:
      new = new.replace(ema=_averaged(state.ema, new.variables, state.step, ema))
    if skip:
      new, measured = _unless_broken(state, new, measured, optax.global_norm(grads))
    return new, measured

  return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def make_eval_step(model: nn.Module, task: Task, preprocess: Preprocess, *, sharding=None):
  """Returns jitted (variables, batch) -> ({name: (sum, weight)}, predictions, asked).

  Sums add up over batches and are divided at the end. Predictions have a row for each image, and
  so has what was asked: "index" and the task's target, as in the batch.

  Args:
    sharding: of all results; None leaves it to XLA.
  """

  def step(variables, batch: Batch):
    out = model.apply(variables, *_inputs(task, batch, preprocess), train=False)
    asked = {name: batch[name] for name in ("index", task.target)}
    return sums(task, out, batch), task.predict(out), asked

  return jax.jit(step, out_shardings=sharding)


def sums(task: Task, out, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
  """{name: (numerator [], denominator [])} over the real rows of the batch."""
  real = batch["real"]  # [b], 0 where a row only fills up the last batch
  return {
    name: (jnp.sum(a * real), jnp.sum(b * real)) for name, (a, b) in task.terms(out, batch).items()
  }


def _averaged(old, new, step: jax.Array, decay: float):
  """Averages of variables after the update that follows `step` others."""
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def _unless_broken(old: State, new: State, measured, norm):
  """(state, measured) of an update, or of its being left out if a number in it is not finite."""
  good = jnp.isfinite(norm) & jnp.isfinite(measured["loss"][0])
  kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old).replace(step=new.step)
  counted = jax.tree.map(lambda x: jnp.where(good, x, 0.0), measured)
  return kept, counted | {"skipped": (1.0 - good, jnp.ones(()))}


def _plateau(opt) -> optax.contrib.ReduceLROnPlateauState | None:
  """What the optimizer knows of a plateau of the loss, if it looks for one."""
  kind = optax.contrib.ReduceLROnPlateauState
  found = jax.tree.leaves(opt, is_leaf=lambda part: isinstance(part, kind))
  return next((part for part in found if isinstance(part, kind)), None)


def _inputs(task: Task, batch: Batch, preprocess: Preprocess):
  return [preprocess.normalize(batch[k]) if k == "image" else batch[k] for k in task.inputs]


def _as_in_evaluation(frozen: str):
  """An interceptor: modules under a top-level one that `frozen` matches use stored statistics."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__" or not module.path:
      return call(*args, **kwargs)
    if not re.fullmatch(frozen, module.path[0]):
      return call(*args, **kwargs)
    if "train" in kwargs:
      return call(*args, **kwargs | {"train": False})
    if isinstance(module, nn.BatchNorm):  # a norm without a block around it, such as a stem's
      stored = module.clone(parent=None, name=None, use_running_average=True)
      return stored.apply(module.variables, *args)
    return call(*args, **kwargs)

  return intercept


@contextlib.contextmanager
def _rematerialized(on: bool):
  """Blocks that are called within keep their input alone for the gradient, if `on`."""
  inside = []

  def intercept(call, args, kwargs, context):
    module = context.module
    block = context.method_name == "__call__" and len(module.path) == 1 and "train" in kwargs
    if inside or not block:
      return call(*args, **kwargs)

    def again(block, *args):
      inside.append(block)
      try:
        return type(block).__call__(block, *args, **kwargs)
      finally:
        inside.pop()

    return nn.remat(again)(module, *args)

  with nn.intercept_methods(intercept) if on else contextlib.nullcontext():
    yield
