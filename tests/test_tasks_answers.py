"""Tasks of many labels, numbers, bags and places: by hand on small numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.tasks.bags import Bags
from train.tasks.classify import Classify
from train.tasks.localize import Localize
from train.tasks.multilabel import Multilabel
from train.tasks.regress import Regress


def ratios(terms):
  return {name: float(jnp.sum(a) / jnp.sum(b)) for name, (a, b) in terms.items()}


P = np.array([[0.9, 0.2, 0.6], [0.3, 0.6, 0.5]])
LOGITS = jnp.log(P / (1 - P))
LABELS = jnp.array([[1, 0, -1], [1, 0, 0]], jnp.int8)
RIGHT = np.array([0.9, 0.8, 0.3, 0.4, 0.5])  # probabilities of what is right


def multilabel(task):
  return ratios(task.terms({"logits": LOGITS}, {"labels": LABELS}))


def test_many_labels_by_hand():
  measured = multilabel(Multilabel())
  assert measured["loss"] == pytest.approx(-np.log(RIGHT).mean(), rel=1e-5)
  assert measured["right"] == pytest.approx(2 / 5)
  assert measured["f1"] == pytest.approx(2 / (2 + 3))  # one hit, two false, one missed
  assert Multilabel().rank(measured) > Multilabel().rank({"loss": float("nan")})
  probs = Multilabel().predict({"logits": LOGITS})["probs"]
  np.testing.assert_allclose(probs, P, rtol=1e-5)


@pytest.mark.parametrize("task", [Multilabel(), Multilabel(gamma_no=4, margin=0.05)])
def test_a_mixture_teaches_the_labels_of_both_by_their_shares(task):
  """What is measured beside the loss is of the first picture alone, as for one class."""
  logits, share = jnp.tile(LOGITS[:1], (2, 1)), jnp.array([0.7, 0.7])
  batch = {"labels": LABELS, "other": LABELS[::-1], "share": share}
  mixed = task.terms({"logits": logits}, batch)
  alone = task.terms({"logits": logits}, {"labels": LABELS})
  for mine, own in zip(mixed["loss"], alone["loss"]):
    np.testing.assert_allclose(mine, 0.7 * own + 0.3 * own[::-1], rtol=1e-6)
  np.testing.assert_array_equal(mixed["f1"], alone["f1"])
  np.testing.assert_array_equal(mixed["right"], alone["right"])


def test_focal_asymmetric_and_weighted_loss_by_hand():
  focal = multilabel(Multilabel(gamma_yes=2, gamma_no=2))["loss"]
  assert focal == pytest.approx((-np.log(RIGHT) * (1 - RIGHT) ** 2).mean(), rel=1e-5)
  shifted = np.maximum(np.array([0.2, 0.6, 0.5]) - 0.25, 0)
  no = (-np.log(1 - shifted) * shifted**4).sum()
  yes = -np.log([0.9, 0.3]).sum()
  asymmetric = multilabel(Multilabel(gamma_no=4, margin=0.25))["loss"]
  assert asymmetric == pytest.approx((yes + no) / 5, rel=1e-5)
  heavy = multilabel(Multilabel(yes=(3.0, 1.0, 1.0), no=(1.0, 0.5, 1.0)))["loss"]
  weights = np.array([3, 0.5, 3, 0.5, 1])
  assert heavy == pytest.approx((-np.log(RIGHT) * weights).sum() / 5, rel=1e-5)


def test_below_the_margin_nothing_is_learned_and_what_is_unknown_has_no_gradient():
  task = Multilabel(gamma_no=0.5, margin=0.25)
  loss = lambda logits: task.terms({"logits": logits}, {"labels": LABELS})["loss"][0].sum()
  grad = np.asarray(jax.grad(loss)(LOGITS))
  assert np.isfinite(grad).all() and grad[0, 1] == 0 and grad[0, 2] == 0
  assert (grad[:, 0] < 0).all() and (grad[1, 1:] > 0).all()


def test_numbers_by_hand():
  mean, std = (10.0, 0.0), (2.0, 1.0)
  out = {"logits": jnp.array([[1.0, 0.0], [0.0, 3.0]])}  # 12, 0 and 10, 3
  value = jnp.array([[11.0, jnp.nan], [10.0, 0.0]])
  off = np.array([0.5, 0, 3])  # standardised
  for loss, want in (("l1", off), ("l2", off**2), ("huber", [0.125, 0, 2.5])):
    task = Regress(mean, std, loss=loss)
    measured = ratios(task.terms(out, {"value": value}))
    assert measured["loss"] == pytest.approx(np.mean(want))
    assert measured["mae/0"] == pytest.approx(0.5) and measured["mae/1"] == pytest.approx(3)
  np.testing.assert_allclose(task.predict(out)["value"], [[12, 0], [10, 3]])
  narrow = Regress(mean, std, loss="huber", delta=2.0).terms(out, {"value": value})
  assert ratios(narrow)["loss"] == pytest.approx((0.5**2 / 2 + 2 * (3 - 1)) / 3)
  grad = jax.grad(lambda x: task.terms({"logits": x}, {"value": value})["loss"][0].sum())
  assert np.isfinite(grad(out["logits"])).all() and grad(out["logits"])[0, 1] == 0


def test_bounded_numbers_stay_within():
  task = Regress((5.0, 0.0), (1.0, 1.0), low=(0.0, -1.0), high=(10.0, 1.0))
  value = task.value(jnp.array([[0.0, 0.0], [99.0, -99.0]]))
  np.testing.assert_allclose(value, [[5, 0], [10, -1]])


BOX = jnp.array([[10.0, 20, 50, 60], [0, 0, 0, 0], [0, 0, 50, 50]])
FOUND = jnp.array([[10.0, 20, 50, 50], [3, 3, 9, 9], [40, 40, 90, 90]])
SURE = 20 * jax.nn.one_hot(jnp.array([1, 0, 0]), 3)
WHERE = {"label": jnp.array([1, 0, 2]), "box": BOX, "image": jnp.zeros((3, 100, 200, 3))}


def test_places_by_hand():
  off = np.array([[0, 0, 0, 0.1], [0] * 4, [0.2, 0.4, 0.2, 0.4]])
  iou = np.array([0.75, 100 / 4900])
  smooth = np.where(off < 0.1, off**2 / 0.2, off - 0.05)
  hull = 1 - np.array([iou[0], iou[1] - (8100 - 4900) / 8100])
  class_loss = np.array([0, 0, 20])
  cases = {"l2": (off**2).sum(), "smooth_l1": smooth.sum(), "giou": hull.sum()}
  for loss, want in cases.items():
    task = Localize(loss, weight=2.0)
    measured = ratios(task.terms({"logits": SURE, "box": FOUND}, WHERE))
    assert measured["loss"] == pytest.approx((class_loss.sum() + 2 * want) / 3, rel=1e-4)
    assert measured["iou"] == pytest.approx(iou.mean(), rel=1e-5)
    assert measured["box"] == measured["found"] == 0.5
    assert measured["top1"] == pytest.approx(2 / 3)
  assert task.rank(measured) > task.rank(measured | {"found": 0.25})
  wrong = SURE[::-1]  # of the right place the wrong class is not found
  assert ratios(task.terms({"logits": wrong, "box": FOUND}, WHERE))["found"] == 0


@pytest.mark.parametrize("of", [Classify(), Multilabel()], ids=["class", "labels"])
def test_bags_are_measured_as_images_are(of):
  logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
  each = jnp.stack([logits, -logits], 1)
  out = {"logits": logits, "instance_logits": each, "attention": jnp.full((2, 2), 0.5)}
  batch = {"label": jnp.array([0, 1]), "labels": jnp.array([[1, 0], [-1, 1]])}
  task = Bags(of)
  assert ratios(task.terms(out, batch)) == ratios(of.terms(out, batch))
  predicted = task.predict(out)
  np.testing.assert_allclose(predicted["instance_probs"][:, 0], predicted["probs"], rtol=1e-6)
  assert predicted["instance_probs"].shape == (2, 2, 2) and task.target in batch


PERFECT = {
  "labels": (Multilabel(gamma_no=4, margin=0.05), {"logits": 30 * (2.0 * LABELS - 1)},
             {"labels": LABELS}),
  "value": (Regress((1.0,), (2.0,)), {"logits": jnp.array([[0.5], [-1.0]])},
            {"value": jnp.array([[2.0], [-1.0]])}),
  "place": (Localize("giou"), {"logits": 30 * jax.nn.one_hot(WHERE["label"], 3), "box": BOX},
            WHERE),
}  # fmt: skip


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_prediction_has_the_least_loss(name):
  task, out, batch = PERFECT[name]
  loss = lambda out: ratios(task.terms(out, batch))["loss"]
  least = loss(out)
  assert least == pytest.approx(0, abs=1e-5)
  rng = np.random.default_rng(0)
  for end, array in out.items():
    noisy = [loss(out | {end: array + rng.normal(0, 40, array.shape)}) for _ in range(5)]
    assert min(noisy) > least - 1e-6  # noise may leave a prediction right, and then only rounding
    assert max(noisy) > least + 0.1


def test_the_losses_are_optax_where_it_has_them():
  plain = partial(optax.sigmoid_binary_cross_entropy, LOGITS, LABELS.clip(0))
  known = LABELS >= 0
  terms = Multilabel().terms({"logits": LOGITS}, {"labels": LABELS})
  np.testing.assert_allclose(terms["loss"][0], (plain() * known).sum(1), rtol=1e-5)
  logits, value = jnp.linspace(-3, 3, 7)[:, None], jnp.zeros((7, 1))
  got = Regress((0.0,), (1.0,), delta=0.7).terms({"logits": logits}, {"value": value})["loss"][0]
  np.testing.assert_allclose(got, optax.huber_loss(logits[:, 0], delta=0.7), rtol=1e-5)
