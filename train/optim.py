"""Learning-rate schedules and optimizers, all as optax: frozen stages, rates by stage, decay."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from functools import partial
import math
import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from train.options import option


@dataclasses.dataclass(frozen=True)
class Config:
  optimizer: str = option(
    "adamw", "sgd is Nesterov's; rmsprop is TensorFlow's, with momentum.",
    choices=("adamw", "sgd", "lamb", "rmsprop"),
  )  # fmt: skip
  lr: float = option(3e-4, "Peak learning rate; not scaled by the batch.", lower_bound=0.0)
  head_lr: float = option(
    10.0, "The head learns at this multiple of --lr; 1 for the same rate.", lower_bound=0.0
  )
  wd: float = option(
    1e-4, "Weight decay of kernels (norms and biases have none): decoupled in adamw and lamb, L2 "
    "in sgd and rmsprop.",
    lower_bound=0.0,
  )  # fmt: skip
  momentum: float = option(
    0.9, "Of sgd and rmsprop; the first beta of adamw and lamb.", lower_bound=0.0, upper_bound=1.0
  )
  eps: float = option(
    1e-3, "Of rmsprop: added to the mean square of the gradients, under the root.", lower_bound=0.0
  )
  schedule: str = option(
    "cosine", "After the warm-up: cosine or linear to 0, steps at --drop_at, exponential to --drop "
    "of the peak, or constant.",
    choices=("cosine", "linear", "step", "exponential", "constant"),
  )  # fmt: skip
  drop_at: tuple[str, ...] = option(
    ("0.333", "0.667", "0.889"), "Shares of the run, rising, at which a step schedule drops."
  )
  drop: float = option(
    0.1, "What each step or plateau multiplies the rate by, or the whole exponential.",
    lower_bound=0.0,
  )  # fmt: skip
  plateau: int = option(
    0, "Multiply the rate by --drop after so many epochs whose mean training loss was no better "
    "than the best; 0 for never.",
    lower_bound=0,
  )  # fmt: skip
  plateau_of: str = option(
    "train", "Of val, a plateau is so many evaluations whose loss was no better.",
    choices=("train", "val"),
  )  # fmt: skip
  warmup: float = option(0.5, "Epochs of linear warm-up.", lower_bound=0.0)
  freeze: int = option(
    0, "Hold this many stages, from the input, as they were loaded (see the family's STAGES).",
    lower_bound=0,
  )  # fmt: skip
  unfreeze: float = option(
    0.0, "Epochs after which the last stage that --freeze holds learns too, and then one more each "
    "so many; 0 for never.",
    lower_bound=0.0,
  )  # fmt: skip
  layer_decay: float = option(
    1.0, "Each stage learns at this share of the rate of the one after it, up to the body's last.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  clip: float = option(0.0, "Largest norm of the whole gradient; 0 for any.", lower_bound=0.0)
  accumulate: int = option(
    1, "Batches whose mean gradient makes one update of the weights.", lower_bound=1
  )


def schedule(config: Config, *, total: int, warmup: int) -> Callable[[int], jax.Array]:
  """Learning rate of the update number 0 .. total - 1.

  Update i < warmup has lr * (i + 1) / (warmup + 1); the update after the warm-up has the peak.
  """
  warmup = min(warmup, total - 1)
  after = {
    "constant": lambda: optax.constant_schedule(config.lr),
    "cosine": lambda: optax.cosine_decay_schedule(config.lr, total - warmup),
    "linear": lambda: optax.linear_schedule(config.lr, 0.0, total - warmup),
    "exponential": lambda: optax.exponential_decay(config.lr, total - warmup, config.drop),
    "step": lambda: optax.piecewise_constant_schedule(config.lr, _drops(config, total, warmup)),
  }[config.schedule]()
  if not warmup:
    return after
  rise = optax.linear_schedule(config.lr / (warmup + 1), config.lr, warmup)
  return optax.join_schedules([rise, after], [warmup])


def _drops(config: Config, total: int, warmup: int) -> dict[int, float]:
  """{update number, counted from the end of the warm-up: factor}."""
  try:
    shares = [float(share) for share in config.drop_at]
  except ValueError:
    shares = [0.0]
  if not shares or not all(0 < a < b for a, b in zip(shares, [*shares[1:], 1.0])):
    raise ValueError(
      f"--drop_at={','.join(config.drop_at)}: wanted rising shares of the run within 0..1, such as "
      "0.333,0.667,0.889"
    )
  return {round(share * total) - warmup: config.drop for share in shares}


def frozen(stages: Sequence[str], count: int) -> str:
  """One regular expression of the top-level modules in the first `count` stages; "" for none."""
  if count >= len(stages):
    raise ValueError(
      f"--freeze={count} would leave nothing to train: the model has {len(stages)} stages with "
      f"its head, so at most {len(stages) - 1}"
    )
  return "|".join(f"(?:{stage})" for stage in stages[:count])


def phases(config: Config, stages: Sequence[str], per_epoch: int) -> tuple[tuple[int, str], ...]:
  """(batches seen, modules held from then on as `frozen` says it) of a run, in order."""
  found = [(0, frozen(stages, config.freeze))]
  if config.unfreeze:
    found += [
      (_release(config, count, per_epoch), frozen(stages, count))
      for count in reversed(range(config.freeze))
    ]
  return tuple(found)


def _release(config: Config, stage: int, per_epoch: int) -> int:
  """After how many batches a stage that --freeze holds begins to learn; a whole update's."""
  batches = (config.freeze - stage) * config.unfreeze * per_epoch
  return math.ceil(max(batches, config.freeze - stage) / config.accumulate) * config.accumulate


def make(
  config: Config, stages: Sequence[str], rate: Callable, *, per_epoch: int | None = None
) -> optax.GradientTransformation:
  """The optimizer of all parameters; frozen ones have no state and are never changed.

  Stages that are released later (--unfreeze) have a state from the start, which stays as it is
  until then.

  Args:
    stages: regular expressions of top-level modules; the last is the head.
    rate: learning rate as a function of the batch's number.
    per_epoch: batches; None where the script knows nothing of what is told in epochs here.
  """
  frozen(stages, config.freeze)
  if per_epoch is None and (config.unfreeze or config.plateau):
    raise ValueError("--unfreeze and --plateau are of python -m train.classify alone")
  last = len(stages) - 1
  factor = [config.layer_decay ** (last - 1 - i) for i in range(last)] + [config.head_lr]

  def group(path, _):
    stage = next(i for i, pattern in enumerate(stages) if re.fullmatch(pattern, path[0].key))
    if stage >= config.freeze:
      return f"{factor[stage]:g}"
    return f"stage {stage}" if config.unfreeze else "frozen"

  groups = {f"{f:g}": _one(config, _scaled(rate, f, config.accumulate)) for f in factor}
  groups["frozen"] = optax.stateless(_nothing)
  for stage in range(config.freeze if config.unfreeze else 0):
    start = _release(config, stage, per_epoch)
    own = _one(config, _scaled(rate, factor[stage], config.accumulate, start))
    groups[f"stage {stage}"] = _from(start // config.accumulate, own)
  tx = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(group, params))
  if config.clip:  # of what is learned
    held = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, p: group(path, p) == "frozen", params
    )
    unheld = optax.masked(optax.set_to_zero(), held)
    tx = optax.chain(unheld, optax.clip_by_global_norm(config.clip), tx)
  if config.accumulate > 1:
    tx = optax.MultiSteps(tx, config.accumulate).gradient_transformation()
  if config.plateau and config.plateau_of == "val":
    told = _plateau(config)
    scale = lambda updates, state, params=None: (
      jax.tree.map(lambda u: state.scale * u, updates), state
    )  # fmt: skip
    tx = optax.chain(tx, optax.GradientTransformation(told.init, scale))
  elif config.plateau:
    tx = optax.chain(tx, _plateau(config, per_epoch))
  return tx


def _plateau(config: Config, updates: int = 1) -> optax.GradientTransformationExtraArgs:
  return optax.contrib.reduce_on_plateau(config.drop, config.plateau, accumulation_size=updates)


def heard(config: Config, opt, measured: Mapping[str, float]):
  """The optimizer's state `opt` after an evaluation, of which --plateau_of=val wants the loss."""
  if config.plateau_of != "val":
    return opt
  kind = optax.contrib.ReduceLROnPlateauState

  def one(part):
    if not isinstance(part, kind):
      return part
    return jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding),
      _told(config, part, measured["loss"]),
      part,
    )

  return jax.tree.map(one, opt, is_leaf=lambda part: isinstance(part, kind))


@partial(jax.jit, static_argnums=0)
def _told(config: Config, state, loss):
  return _plateau(config).update((), state, value=loss)[1]


def _scaled(rate: Callable, factor: float, every: int, start: int = 0) -> Callable:
  """Of the update's number, which counts only every so many batches, the first of them `start`."""
  return lambda update: factor * rate(update * every + start)


def _from(update: int, own: optax.GradientTransformation) -> optax.GradientTransformation:
  """`own` from the update of that number on; before it nothing moves, its state neither."""
  return optax.conditionally_mask(own, lambda step: step >= update)


def _one(config: Config, rate: Callable) -> optax.GradientTransformation:
  def kernels(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)

  if config.optimizer == "adamw":
    return optax.adamw(rate, b1=config.momentum, weight_decay=config.wd, mask=kernels)
  if config.optimizer == "lamb":
    return optax.lamb(rate, b1=config.momentum, weight_decay=config.wd, mask=kernels)
  if config.optimizer == "rmsprop":  # of TensorFlow: the mean square begins at 1, eps in the root
    one = optax.rmsprop(
      rate, decay=0.9, eps=config.eps, initial_scale=1.0, eps_in_sqrt=True, momentum=config.momentum
    )
  else:
    one = optax.sgd(rate, momentum=config.momentum, nesterov=True)
  return optax.chain(optax.add_decayed_weights(config.wd, mask=kernels), one)


def _nothing(updates, params=None):
  # -0.0 is the one number that changes no float when it is added: -0.0 + 0.0 would be 0.0.
  return jax.tree.map(lambda g: jnp.full_like(g, -0.0), updates)
