"""The train and evaluation steps, tasks and optimizers."""

import dataclasses
from functools import partial
import math
import re

from flax import linen as nn
import jax
from jax.ad_checkpoint import print_saved_residuals
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import parity, runs
from train import mesh, metrics, optim
from train import step as steps
from train.mix import Mix
from train.step import make_eval_step, make_state, make_train_step
from train.tasks.classify import Classify
import zoo
from zoo import layers

STAGES = zoo.stages("resnet18")
PREPROCESS = zoo.Preprocess(size=32, resize=32)


class Toy(nn.Module):
  """A ResNet's modules in small: a stem without a block around its norm, two blocks, a head."""

  numerics: zoo.Numerics = zoo.Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    n = self.numerics
    x = n.act(n.norm(train, name="bn1")(n.conv(8, 3, 4, name="conv1")(image)))
    for name in ("layer1_0", "layer2_0"):
      x = ToyBlock(n, name=name)(x, train=train)
    return {"logits": n.dense(4, name="fc")(x.mean((1, 2)))}


class ToyBlock(nn.Module):
  numerics: zoo.Numerics

  @nn.compact
  def __call__(self, x, *, train):
    n = self.numerics
    return n.act(n.norm(train, name="bn1")(n.conv(16, 3, 2, name="conv1")(x)))


def model(**numerics):
  return Toy(zoo.Numerics(**numerics))


variables = partial(parity.fresh, size=32)


def batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
    "label": np.arange(rows, dtype=np.int32) % 4,
    "real": np.ones(rows, np.float32),
    "index": np.arange(rows, dtype=np.int32),
  }


def start(model, config, total=100, warmup=0):
  """(state, train step, the rate) from variables that are the same at each call."""
  rate = optim.schedule(config, total=total, warmup=warmup)
  tx = optim.make(config, STAGES, rate)
  state = make_state(jax.device_put(variables(model)), tx)
  step = make_train_step(
    model, Classify(), tx, jax.random.key(1), PREPROCESS,
    frozen=optim.frozen(STAGES, config.freeze),
  )  # fmt: skip
  return state, step, rate


def modules(tree):
  return {name: jax.device_get(part) for name, part in tree["params"].items()}


def same(a, b):
  return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_overfits_eight_images():
  net = model()
  state, step, _ = start(net, optim.Config(lr=2e-2, head_lr=1.0), total=100)
  for _ in range(100):
    state, measured = step(state, batch())
  measured = jax.device_get(measured)
  assert measured["loss"][0] / measured["loss"][1] < 0.01
  assert measured["top1"] == (8, 8)
  assert int(state.step) == 100


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_stages_are_untouched(optimizer):
  net = model()
  config = optim.Config(optimizer=optimizer, freeze=2, wd=0.1)
  state, step, _ = start(net, config)
  before = jax.device_get(state.variables)
  sizes = [leaf.size for leaf in jax.tree.leaves(state.opt)]
  trained = sum(p.size for k in ("layer2_0", "fc") for p in jax.tree.leaves(before["params"][k]))
  assert sum(sizes) <= (2 if optimizer == "adamw" else 1) * trained + 6  # counters besides
  for _ in range(2):
    state, _ = step(state, batch())
  after = jax.device_get(state.variables)
  for name in ("conv1", "bn1", "layer1_0"):
    assert same(before["params"][name], after["params"][name])
    if name != "conv1":
      assert same(before["batch_stats"][name], after["batch_stats"][name])
  for name in ("layer2_0", "fc"):
    assert not same(before["params"][name], after["params"][name])
  assert not same(before["batch_stats"]["layer2_0"], after["batch_stats"]["layer2_0"])


def test_frozen_stages_cost_no_gradient():
  net = model()
  flops = []
  for freeze in (0, 2):
    state, step, _ = start(net, optim.Config(freeze=freeze))
    flops.append(step.lower(state, batch()).compile().cost_analysis()["flops"])
  assert flops[1] < 0.6 * flops[0]


def test_frozen_negative_zero_stays():
  tx = optim.make(optim.Config(freeze=1), STAGES, optax.constant_schedule(0.1))
  params = {"conv1": {"kernel": jnp.array([-0.0, 1.0])}, "fc": {"kernel": jnp.ones((1, 2))}}
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  after = optax.apply_updates(params, updates)
  assert np.signbit(after["conv1"]["kernel"][0])
  assert (after["fc"]["kernel"] != 1).all()


def test_head_lr_scales_the_heads_update():
  net, moved = model(), []
  for head_lr in (1.0, 10.0):
    config = optim.Config(optimizer="sgd", head_lr=head_lr, wd=0.0, lr=1e-3)
    state, step, _ = start(net, config)
    before = modules(state.variables)
    state, _ = step(state, batch())
    after = modules(state.variables)
    moved.append({
      name: jax.tree.map(lambda a, b: a - b, after[name], before[name]) for name in ("fc", "conv1")
    })  # fmt: skip
  close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)  # differences of float32
  close(moved[1]["fc"]["kernel"], 10 * moved[0]["fc"]["kernel"])
  close(moved[1]["conv1"]["kernel"], moved[0]["conv1"]["kernel"])


def test_decay_only_of_kernels():
  config = optim.Config(wd=0.5, lr=0.1, head_lr=1.0)
  tx = optim.make(config, STAGES, optax.constant_schedule(0.1))
  params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates["fc"]["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["fc"]["bias"], 0)


def test_schedule():
  config = optim.Config(lr=0.8)
  rate = optim.schedule(config, total=13, warmup=3)
  np.testing.assert_allclose([rate(i) for i in range(4)], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
  for i in range(3, 13):  # update 3 is the first of ten on the cosine
    np.testing.assert_allclose(rate(i), 0.4 * (1 + math.cos(math.pi * (i - 3) / 10)), rtol=1e-5)
  constant = optim.schedule(dataclasses.replace(config, schedule="constant"), total=9, warmup=1)
  np.testing.assert_allclose([constant(i) for i in (0, 1, 8)], [0.4, 0.8, 0.8], rtol=1e-6)
  np.testing.assert_allclose(optim.schedule(config, total=1, warmup=5)(0), 0.8, rtol=1e-6)


def test_freezing_everything_is_refused():
  with pytest.raises(ValueError, match="nothing to train.*at most 5"):
    optim.frozen(STAGES, 6)


def test_freeze_norm_keeps_statistics():
  state, step, _ = start(model(freeze_norm=True), optim.Config())
  before = jax.device_get(state.stats)
  state, _ = step(state, batch())
  assert same(before, jax.device_get(state.stats))


def test_bfloat16():
  net = model(dtype=jnp.bfloat16)
  state, step, _ = start(net, optim.Config(lr=1e-2, head_lr=1.0), total=40)
  first = None
  for _ in range(20):
    state, measured = step(state, batch())
    first = first or float(measured["loss"][0])
  assert measured["loss"][0].dtype == jnp.float32
  assert float(measured["loss"][0]) < 0.5 * first
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(state.params))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_left_out(broken):
  net = model()
  tx = optim.make(optim.Config(), STAGES, lambda step: 0.1)
  state = make_state(jax.device_put(variables(net)), tx)
  if broken == "gradient":  # sqrt(0) has a finite value and an infinite slope
    task = Steep()
  else:
    task = Classify()
  step = make_train_step(net, task, tx, jax.random.key(1), PREPROCESS, skip=True)
  before = jax.device_get(state)
  bad = batch()
  if broken == "loss":
    bad["real"][3] = np.inf
  state, measured = step(state, bad)
  assert measured["skipped"] == (1, 1) and measured["loss"] == (0, 0)
  assert same(jax.device_get(state).replace(step=before.step), before) and int(state.step) == 1
  good = Classify()
  step = make_train_step(net, good, tx, jax.random.key(1), PREPROCESS, skip=True)
  plain = make_train_step(net, good, tx, jax.random.key(1), PREPROCESS)
  a, measured = step(jax.device_put(before), batch())
  b, _ = plain(jax.device_put(before), batch())
  assert measured["skipped"] == (0, 1)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), a, b)


class Steep(Classify):
  def terms(self, out, batch):
    terms = super().terms(out, batch)
    zero = 0 * out["logits"][:, 0]
    return terms | {"loss": (terms["loss"][0] + jnp.sqrt(zero), terms["loss"][1])}


def test_padding_rows_change_nothing():
  net = model()
  made = variables(net)
  step = make_eval_step(net, Classify(), PREPROCESS)
  padded = batch(8)
  padded["real"][5:] = 0
  other = {**padded, "image": padded["image"].copy()}
  other["image"][5:] = 0
  a, b = step(made, padded)[0], step(made, other)[0]
  assert jax.device_get(a) == jax.device_get(b)
  assert float(a["loss"][1]) == 5
  assert step(made, padded)[1]["probs"].shape == (8, 4)


def test_averages_follow_the_formula():
  net, tx = model(), optax.sgd(0.1)
  state = make_state(jax.device_put(variables(net)), tx, ema=True)
  step = make_train_step(net, Classify(), tx, jax.random.key(1), PREPROCESS, ema=0.5)
  want = jax.device_get(state.variables)
  for i in range(8):
    state, _ = step(state, batch(seed=i))
    keep = min(0.5, (1 + i) / (10 + i))
    want = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, want, state.variables)  # noqa: B023
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.ema, want)
  assert not same(jax.device_get(state.ema), jax.device_get(state.variables))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_changes_pictures_and_targets_alike(kind):
  image = jnp.stack([jnp.full((40, 60, 3), i, jnp.float32) for i in range(4)])
  rows = {"label": jnp.arange(4), "real": jnp.ones(4)}
  shares = []
  for i in range(20):
    mixed, out = Mix(**{kind: 1.0})(jax.random.key(i), image, rows, "label")
    share = float(out["share"][0])
    shares.append(share)
    np.testing.assert_array_equal(out["other"], [3, 2, 1, 0])
    np.testing.assert_array_equal(out["label"], rows["label"])
    # The mean of each picture is that of its labels, because picture i is all i.
    want = share * np.arange(4) + (1 - share) * np.arange(4)[::-1]
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), want, atol=1e-4)
    pure = np.isclose(mixed[0], 0) | np.isclose(mixed[0], 3)
    assert pure.all() == (kind == "cutmix")
    loss = Classify().terms({"logits": jnp.log(jnp.eye(4) * 0.6 + 0.1)}, out)["loss"][0]
    by_hand = -share * np.log(0.7) - (1 - share) * np.log(0.1)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-4)
  assert np.ptp(shares) > 0.5


def test_a_mixed_batch_trains_on_the_mixture():
  net, tx = model(), optax.sgd(0.1)
  losses = []
  for mix in (Mix(), Mix(mixup=1.0), Mix(mixup=1.0, cutmix=1.0)):
    state = make_state(jax.device_put(variables(net)), tx)
    step = make_train_step(net, Classify(), tx, jax.random.key(1), PREPROCESS, mix=mix)
    losses.append(float(step(state, batch())[1]["loss"][0]))
  assert len(set(losses)) == 3


def updated(config, batches, total=100):
  """Parameters after plain gradients of a net without norms, and what each stage moved."""
  params = {name: {"kernel": jnp.ones((2, 2))} for name in ("conv1", "layer1_0", "layer2_0", "fc")}
  tx = optim.make(config, STAGES, optim.schedule(config, total=total, warmup=0))
  opt, start = tx.init(params), params
  for scale in batches:
    grads = jax.tree.map(lambda p: jnp.full_like(p, scale), params)  # noqa: B023
    updates, opt = tx.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
  names = ("conv1", "layer1_0", "layer2_0", "fc")  # in the order of the stages
  return {k: float((params[k]["kernel"] - start[k]["kernel"]).mean()) for k in names}


PLAIN = optim.Config(optimizer="sgd", momentum=0.0, wd=0.0, schedule="constant", lr=1.0, head_lr=1)


def test_layer_decay_follows_the_stages():
  moved = updated(dataclasses.replace(PLAIN, layer_decay=0.5, head_lr=3.0), [1.0])
  stages = [next(i for i, s in enumerate(STAGES) if re.fullmatch(s, k)) for k in moved]
  last = len(STAGES) - 2
  want = [-(0.5 ** (last - s)) for s in stages[:-1]] + [-3.0]
  np.testing.assert_allclose(list(moved.values()), want)
  assert len(set(want)) == 4


def test_clipping_bounds_the_whole_gradient_but_not_that_of_frozen_stages():
  moved = updated(dataclasses.replace(PLAIN, clip=1.0), [5.0])  # 16 numbers: norm 20
  np.testing.assert_allclose(list(moved.values()), [-0.25] * 4, rtol=1e-6)
  moved = updated(dataclasses.replace(PLAIN, clip=1.0, freeze=len(STAGES) - 1), [5.0])
  np.testing.assert_allclose(list(moved.values()), [0, 0, 0, -0.5], rtol=1e-6)


def test_accumulation_equals_the_large_batch():
  accumulated = updated(dataclasses.replace(PLAIN, accumulate=2), [1.0, 3.0, 2.0, 4.0])
  assert accumulated == updated(PLAIN, [2.0, 3.0])
  half = updated(dataclasses.replace(PLAIN, accumulate=2), [1.0])
  assert set(half.values()) == {0.0}
  # The rate follows the batches that were seen, not the updates.
  falling = dataclasses.replace(PLAIN, schedule="linear", accumulate=2)
  moved = updated(falling, [1.0] * 4, total=4)
  np.testing.assert_allclose(list(moved.values()), [-1.5] * 4, rtol=1e-6)


def test_accumulation_over_images_equals_the_large_batch():
  """Of a net without norms: a batch of 8 in two updates' halves, and at once."""
  net, whole = Plain(), batch(8)
  halves = [{name: rows[i::2] for name, rows in whole.items()} for i in range(2)]
  states = []
  for every, parts in ((2, halves), (1, [whole])):
    tx = optim.make(
      dataclasses.replace(PLAIN, accumulate=every, momentum=0.9), ("conv1", "fc"), lambda step: 0.1
    )
    state = make_state(jax.device_put(variables(net)), tx)
    step = make_train_step(net, Classify(), tx, jax.random.key(1), PREPROCESS)
    for _ in range(3):
      for part in parts:
        state, _ = step(state, part)
    states.append(state.params)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *states)


class Plain(nn.Module):
  """A convolution and a head, without norms."""

  numerics: zoo.Numerics = zoo.Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    x = nn.relu(self.numerics.conv(8, 3, 4, name="conv1")(image))
    return {"logits": self.numerics.dense(4, name="fc")(x.mean((1, 2)))}


def test_stochastic_depth_leaves_branches_of_some_images_out():
  x, branch = jnp.ones((4000, 2, 2, 3)), layers.DropPath(0.25)
  drop = partial(branch.apply, {}, x, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(drop(train=False), x)
  y = np.asarray(drop(train=True))
  kept = y[:, 0, 0, 0] > 0
  assert kept.mean() == pytest.approx(0.75, abs=0.03)
  np.testing.assert_allclose(y, kept[:, None, None, None] * np.full_like(x, 1 / 0.75), rtol=1e-6)


def test_released_stages_begin_where_the_schedule_is():
  """Stage 0 and 1 are held; 1 begins after two batches, 0 after four; the rate falls to 0 by 8."""
  config = dataclasses.replace(PLAIN, freeze=2, unfreeze=1.0, schedule="linear", momentum=0.9)
  rate = optim.schedule(config, total=8, warmup=0)
  tx = optim.make(config, STAGES, rate, per_epoch=2)
  params = {name: {"kernel": jnp.zeros((2, 2))} for name in ("conv1", "layer1_0", "layer2_0", "fc")}
  opt, moves = tx.init(params), []
  for _ in range(6):
    updates, opt = tx.update(jax.tree.map(jnp.ones_like, params), opt, params)
    moves.append([float(updates[name]["kernel"][0, 0]) for name in params])
  moves = np.array(moves)
  assert [np.flatnonzero(moves[:, i])[0] for i in range(4)] == [4, 2, 0, 0]
  # Its momentum is empty when a stage begins: the step of Nesterov's first update.
  assert moves[0, 3] == pytest.approx(-1.9) and moves[2, 1] == pytest.approx(-1.9 * rate(2))
  assert moves[4, 0] == pytest.approx(-1.9 * rate(4))
  assert optim.phases(config, STAGES, 2) == (
    (0, optim.frozen(STAGES, 2)), (2, optim.frozen(STAGES, 1)), (4, "")
  )  # fmt: skip
  with pytest.raises(ValueError, match="of python -m train.classify alone"):
    optim.make(config, STAGES, rate)


def test_a_plateau_lowers_the_rate():
  config = dataclasses.replace(PLAIN, plateau=2, drop=0.5)
  tx = optax.with_extra_args_support(optim.make(config, STAGES, lambda step: 1.0, per_epoch=2))
  params = {"fc": {"kernel": jnp.zeros((2, 2))}}
  opt, moves = tx.init(params), []
  for loss in (4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 1, 1):  # epochs of two updates
    updates, opt = tx.update(jax.tree.map(jnp.ones_like, params), opt, params, value=float(loss))
    moves.append(float(updates["fc"]["kernel"][0, 0]))
  assert moves[:7] == [-1.0] * 7 and moves[-1] == -0.5


def test_a_plateau_of_evaluations_lowers_the_rate():
  config = dataclasses.replace(PLAIN, plateau=1, drop=0.5, plateau_of="val")
  tx = optax.with_extra_args_support(optim.make(config, STAGES, lambda step: 1.0, per_epoch=2))
  params = {"fc": {"kernel": jnp.zeros((2, 2))}}
  opt, moves = tx.init(params), []
  for loss in (4, 5, 3, 2, 2, 2):  # of evaluations, two updates before each
    for training in (1.0, 9.0):  # which nobody asks for
      updates, opt = tx.update(jax.tree.map(jnp.ones_like, params), opt, params, value=training)
    moves.append(float(updates["fc"]["kernel"][0, 0]))
    opt = optim.heard(config, opt, {"loss": float(loss)})
  assert moves == [-1.0, -1.0, -0.5, -0.5, -0.5, -0.25]
  assert optim.heard(dataclasses.replace(config, plateau_of="train"), opt, {}) is opt


def test_the_step_tells_the_optimizer_of_the_loss():
  net = model()
  config = optim.Config(optimizer="sgd", lr=0.0, plateau=1, drop=0.5, schedule="constant")
  tx = optim.make(config, STAGES, optim.schedule(config, total=9, warmup=0), per_epoch=1)
  state = make_state(jax.device_put(variables(net)), tx)
  step = make_train_step(net, Classify(), tx, jax.random.key(1), PREPROCESS)
  scales = []
  for _ in range(4):
    state, measured = step(state, batch())
    scales.append(float(measured["rate_scale"][0]))
  assert scales[0] == 1 and scales[-1] < 1 and scales == sorted(scales, reverse=True)


def test_rematerialized_blocks_keep_their_input_alone(capsys):
  net = model()
  tx = optim.make(PLAIN, STAGES, lambda step: 0.1)
  start, stepped, kept = variables(net), [], []
  image = PREPROCESS.normalize(batch()["image"])
  for remat in (False, True):
    state = make_state(jax.device_put(start), tx)
    step = make_train_step(net, Classify(), tx, jax.random.key(1), PREPROCESS, remat=remat)
    stepped.append(jax.device_get(step(state, batch())[0].variables))

    def loss(params):
      with steps._rematerialized(remat):  # noqa: B023
        out, _ = net.apply({**start, "params": params}, image, train=True, mutable=["batch_stats"])
      return out["logits"].sum()

    print_saved_residuals(loss, start["params"])
    kept.append(capsys.readouterr().out.count("f32[8,4,4,16]"))  # of the first block
  for a, b in zip(*map(jax.tree.leaves, stepped)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert kept[0] > kept[1] == 1  # the second block's input


def test_classes_weigh_as_told():
  logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  picked = {"label": jnp.array([0, 1, 1]), "real": jnp.ones(3)}
  plain, _ = Classify().terms({"logits": logits}, picked)["loss"]
  loss, weight = Classify(weights=(0.5, 2.0)).terms({"logits": logits}, picked)["loss"]
  np.testing.assert_allclose(weight, [0.5, 2, 2])
  np.testing.assert_allclose(loss, plain * jnp.array([0.5, 2, 2]), rtol=1e-6)
  mixed = picked | {"other": jnp.array([1, 1, 0]), "share": jnp.full(3, 0.75)}
  _, weight = Classify(weights=(0.5, 2.0)).terms({"logits": logits}, mixed)["loss"]
  np.testing.assert_allclose(weight, [0.875, 2, 1.625])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "rmsprop"])
def test_optimizers_lower_the_loss(optimizer):
  net = model()
  rate = {"sgd": 2e-2, "rmsprop": 2e-3}.get(optimizer, 1e-2)
  state, step, _ = start(net, optim.Config(optimizer=optimizer, lr=rate, head_lr=1.0))
  losses = []
  for _ in range(20):
    state, measured = step(state, batch())
    losses.append(float(measured["loss"][0]))
  assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_lamb_moves_in_proportion_to_the_weights(weight):
  params = {"fc": {"kernel": jnp.full((2, 2), weight)}}
  moved = {}
  for optimizer in ("adamw", "lamb"):
    config = dataclasses.replace(PLAIN, optimizer=optimizer)
    tx = optim.make(config, STAGES, optax.constant_schedule(0.1))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved[optimizer] = float(updates["fc"]["kernel"].mean())
  assert moved == pytest.approx({"adamw": -0.1, "lamb": -0.1 * weight}, rel=1e-4)


def test_rmsprop_is_tensorflows():
  """One update by hand: ms = 0.9 + 0.1 g^2, step = lr g / sqrt(ms + 1e-3)."""
  for eps in (1e-3, 1.0):
    moved = updated(dataclasses.replace(PLAIN, optimizer="rmsprop", eps=eps), [2.0])
    np.testing.assert_allclose(
      list(moved.values()), [-2 / math.sqrt(0.9 + 0.4 + eps)] * 4, rtol=1e-6
    )


def test_step_and_linear_schedules():
  config = optim.Config(lr=1.0, schedule="step", drop_at=("0.25", "0.75"), drop=0.1)
  rate = optim.schedule(config, total=8, warmup=1)
  np.testing.assert_allclose([rate(i) for i in range(8)], [0.5, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
  rate = optim.schedule(dataclasses.replace(config, schedule="linear"), total=5, warmup=1)
  np.testing.assert_allclose([rate(i) for i in range(5)], [0.5, 1, 0.75, 0.5, 0.25])
  exponential = dataclasses.replace(config, schedule="exponential", drop=0.01)
  rate = optim.schedule(exponential, total=5, warmup=1)
  np.testing.assert_allclose([rate(1), rate(3), rate(5)], [1, 0.1, 0.01], rtol=1e-5)
  for bad in (("0.5", "0.2"), ("x",), ("1.5",), ("0",)):
    with pytest.raises(ValueError, match="wanted rising shares"):
      optim.schedule(dataclasses.replace(config, drop_at=bad), total=5, warmup=1)


def test_terms_by_hand():
  logits = jnp.log(jnp.array([[0.7, 0.1, 0.2], [0.7, 0.1, 0.2]]))
  rows = {"label": jnp.array([0, 2])}
  terms = jax.device_get(Classify().terms({"logits": logits}, rows))
  np.testing.assert_allclose(terms["loss"][0], [-math.log(0.7), -math.log(0.2)], rtol=1e-6)
  np.testing.assert_array_equal(terms["top1"][0], [1, 0])
  np.testing.assert_array_equal(terms["top5"][0], [1, 1])
  assert all((weight == 1).all() for _, weight in terms.values())


def test_each_class_for_itself():
  logits, rows = jnp.array([[0.0, 2.0, -1.0]]), {"label": jnp.array([1])}
  loss = lambda rows: float(Classify("sigmoid").terms({"logits": logits}, rows)["loss"][0][0])
  sigmoid = 1 / (1 + np.exp(-np.array([0.0, 2.0, -1.0])))
  by_hand = lambda t: -np.mean(t * np.log(sigmoid) + (1 - t) * np.log(1 - sigmoid))
  assert loss(rows) == pytest.approx(by_hand(np.array([0, 1, 0])), rel=1e-5)
  mixed = rows | {"other": jnp.array([0]), "share": jnp.array([0.7])}
  assert loss(mixed) == pytest.approx(by_hand(np.array([1, 1, 0])), rel=1e-5)
  mixed = rows | {"other": jnp.array([0]), "share": jnp.array([0.9])}
  assert loss(mixed) == pytest.approx(by_hand(np.array([0, 1, 0])), rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_auxiliary_heads_add_to_the_loss(kind):
  logits = jnp.array(np.random.default_rng(0).normal(size=(3, 2, 5)), jnp.float32)
  rows = {"label": jnp.array([0, 4, 2]), "other": jnp.array([1, 4, 0]), "share": jnp.full(3, 0.7)}
  loss = lambda aux=0.0, **out: Classify(kind, 0.1, aux=aux).terms(out, rows)["loss"][0]
  first, second = (loss(logits=logits[:, i]) for i in range(2))
  of_two = loss(0.3, logits=logits[:, 0], aux_logits=logits)
  np.testing.assert_allclose(of_two, 1.3 * first + 0.3 * second, rtol=1e-5)
  of_one = loss(0.4, logits=logits[:, 0], aux_logits=logits[:, 1])
  np.testing.assert_allclose(of_one, first + 0.4 * second, rtol=1e-5)
  np.testing.assert_array_equal(loss(logits=logits[:, 0], aux_logits=logits), first)
  np.testing.assert_array_equal(loss(0.4, logits=logits[:, 0]), first)


def test_label_smoothing():
  probs = np.array([[0.7, 0.1, 0.2]])
  rows = {"label": jnp.array([0])}
  loss = Classify(smoothing=0.3).terms({"logits": jnp.log(probs)}, rows)["loss"][0]
  want = -(0.8 * math.log(0.7) + 0.1 * math.log(0.1) + 0.1 * math.log(0.2))
  np.testing.assert_allclose(loss, [want], rtol=1e-6)


def test_top5_counts_ties_as_argmax_does():
  logits = jnp.zeros((3, 8))
  terms = Classify().terms({"logits": logits}, {"label": jnp.array([0, 4, 5])})
  np.testing.assert_array_equal(terms["top1"][0], [1, 0, 0])
  np.testing.assert_array_equal(terms["top5"][0], [1, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_perfect_prediction_has_the_least_loss(smoothing):
  task, rows = Classify(smoothing=smoothing), {"label": jnp.arange(100) % 4}
  target = optax.smooth_labels(jax.nn.one_hot(rows["label"], 4), smoothing)
  perfect = jnp.log(target + 1e-6)
  least = task.terms({"logits": perfect}, rows)["loss"][0]
  noise = np.random.default_rng(0).uniform(0.5, 1, perfect.shape)
  worse = perfect - noise * perfect  # every logit nearer to uniform, by unequal shares
  assert (task.terms({"logits": worse}, rows)["loss"][0] > least).all()
  assert (least < (1e-4 if smoothing == 0 else 0.4)).all()


def test_rank():
  task = Classify()
  ranks = [
    task.rank({"top1": top1, "loss": loss})
    for top1, loss in [(0.5, math.nan), (0.5, 2.0), (0.5, 1.0), (0.6, 9.0)]
  ]
  assert ranks == sorted(ranks) and len(set(ranks)) == 4
  by_loss = Classify(best="loss")
  ranks = [
    by_loss.rank({"top1": top1, "loss": loss})
    for top1, loss in [(0.9, math.nan), (0.6, 2.0), (0.5, 1.0), (0.6, 1.0)]
  ]
  assert ranks == sorted(ranks) and len(set(ranks)) == 4


def test_meter_adds_ratios():
  meter = metrics.Meter()
  meter.add({"loss": (6.0, 3.0)})
  meter.add({"loss": (1.0, 1.0), "empty": (0.0, 0.0)})
  means = meter.means()
  assert means["loss"] == 7 / 4 and math.isnan(means["empty"])


def devices_run():
  """Losses of three steps and a checksum of the parameters, on all devices there are."""
  place = mesh.make()
  state, _, rate = start(model(), optim.Config(optimizer="sgd", lr=1e-2, head_lr=1.0))
  state = jax.device_put(state, mesh.replicated(place))
  tx = optim.make(optim.Config(optimizer="sgd", lr=1e-2, head_lr=1.0), STAGES, rate)
  step = make_train_step(
    model(), Classify(), tx, jax.random.key(1), PREPROCESS, shardings=(mesh.replicated(place),) * 2
  )
  losses = []
  for i in range(3):
    rows = mesh.put_batch(batch(8, seed=i), place)
    state, measured = step(state, rows)
    losses.append(float(measured["loss"][0]))
  sums = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(state.variables)]
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
  return {"devices": place.size, "losses": losses, "sums": sums}


def test_one_device_equals_four():
  four, one = runs.on_devices(4, "test_step.devices_run()"), devices_run()
  assert (one["devices"], four["devices"]) == (1, 4)
  np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-4)
  np.testing.assert_allclose(four["sums"], one["sums"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stochastic_depth_rises_as_in_timm(name):
  parity.import_torchvision()  # before timm, which imports it
  timm = pytest.importorskip("timm", reason="timm is not installed (pip install .[references])")
  parts = timm.create_model(name, drop_path_rate=0.3).modules()
  theirs = [m.drop_prob for m in parts if type(m).__name__ == "DropPath" and m.drop_prob]
  ours = []

  def watch(call, args, kwargs, context):
    if isinstance(context.module, layers.DropPath) and context.module.rate:
      ours.append(context.module.rate)
    return call(*args, **kwargs)

  with nn.intercept_methods(watch):
    zoo.shapes(zoo.create(name, drop_path=0.3), size=64)
  assert theirs and ours == pytest.approx(theirs)
