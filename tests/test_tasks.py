"""Tasks of reading, segmentation and captions: definitions by hand; the one step learns them."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.step import make_state, make_train_step
from train.tasks.caption import Caption
from train.tasks.read import Read, Spell
from train.tasks.segment import Segment
import zoo
from zoo.layers import Numerics
from zoo.ops import edit
from zoo.segment import unet
from zoo.text import attention_ocr, caption, crnn, decode


def naive_distance(a, b):
  table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
  for i, x in enumerate(a, start=1):
    for j, y in enumerate(b, start=1):
      table[i, j] = min(
        table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y)
      )  # fmt: skip
  return table[-1, -1]


def test_edit_distance():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 3, (40, 7)), rng.integers(0, 3, (40, 5))
  n, m = rng.integers(0, 8, 40), rng.integers(0, 6, 40)
  got = jax.jit(edit.distance)(a, n, b, m)
  want = [naive_distance(x[:i], y[:j]) for x, i, y, j in zip(a, n, b, m)]
  assert got.tolist() == want


def ratios(terms):
  return {name: float(jnp.sum(a) / jnp.sum(b)) for name, (a, b) in terms.items()}


def test_reading_is_measured_in_letters():
  """Frames that spell "ab" and "b": asked for "ab" and "cc", which needs three frames of two."""
  logits = 20 * jax.nn.one_hot(jnp.array([[1, 2], [2, 2]]), 4)
  measured = ratios(Read().terms({"logits": logits}, {"text": jnp.array([[1, 2], [3, 3]])}))
  assert measured["loss"] == pytest.approx(0, abs=1e-4), "what cannot be read is no loss"
  assert measured["cer"] == 0.5 and measured["line"] == 0.5 and measured["infeasible"] == 0.5
  read = Read().predict({"logits": logits})
  assert read["tokens"].tolist() == [[1, 2], [2, 0]] and read["lengths"].tolist() == [2, 1]


def test_spelling_is_measured_in_letters():
  """Steps that say "ab" and "b": asked for "ab" and, which is longer than they are, "cccc"."""
  logits = jnp.log(0.97 * jax.nn.one_hot(jnp.array([[1, 2, 0], [2, 0, 1]]), 4) + 0.0075)
  text = jnp.array([[1, 2, 0, 0, 0], [3, 3, 3, 3, 0]])
  task = Spell(smoothing=0.1)
  measured = ratios(task.terms({"logits": logits}, {"text": text}))
  each = -(0.925 * np.log(0.9775) + 0.075 * np.log(0.0075))
  assert measured["loss"] == pytest.approx(3 * each, rel=1e-5), "the first's, its end as well"
  assert measured["infeasible"] == 0.5 and measured["line"] == 0.5
  assert measured["cer"] == pytest.approx(4 / 6)
  read = task.predict({"logits": logits})
  assert read["tokens"].tolist() == [[1, 2, 0], [2, 0, 0]] and read["lengths"].tolist() == [2, 1]


def test_segmentation_by_hand():
  mask = jnp.array([[[0, 1], [1, 255]]])
  logits = jnp.log(jnp.array([[[[0.5, 0.5, 0], [0.2, 0.8, 0]], [[0.6, 0.4, 0], [1, 0, 0]]]]) + 1e-9)
  measured = ratios(Segment().terms({"logits": logits}, {"mask": mask}))
  assert measured["loss"] == pytest.approx(-np.log([0.5, 0.8, 0.4]).mean(), rel=1e-5)
  assert measured["pixel"] == pytest.approx(2 / 3)
  assert measured["iou/0"] == 0.5 and measured["iou/1"] == 0.5 and np.isnan(measured["iou/2"])
  assert Segment().rank(measured) == (0.5,)
  focal = ratios(Segment(focal=2).terms({"logits": logits}, {"mask": mask}))["loss"]
  p = np.array([0.5, 0.8, 0.4])
  assert focal == pytest.approx((-np.log(p) * (1 - p) ** 2).mean(), rel=1e-5)
  heavy = ratios(Segment(weights=(3, 1, 1)).terms({"logits": logits}, {"mask": mask}))["loss"]
  assert heavy == pytest.approx((-np.log(p) * [3, 1, 1]).sum() / 5, rel=1e-5)
  borders = {"mask": mask, "weight": jnp.array([[[1.0, 2.0], [0.0, 9.0]]])}
  assert ratios(Segment().terms({"logits": logits}, borders))["loss"] == pytest.approx(
    (-np.log(p) * [1, 2, 0]).sum() / 3, rel=1e-5
  )
  dice = ratios(Segment(dice=1).terms({"logits": logits}, {"mask": mask}))["loss"]
  both, sums = np.array([0.5, 1.2, 0]), np.array([1.3 + 1, 1.7 + 2, 0])
  assert dice - measured["loss"] == pytest.approx(
    1 - ((2 * both + 1) / (sums + 1)).mean(), rel=1e-4
  )


def test_intersections_add_up_as_scikit_learn_has_them():
  metrics = pytest.importorskip("sklearn.metrics", reason="pip install flaxzoo[references]")
  rng = np.random.default_rng(0)
  mask, logits = rng.integers(0, 4, (3, 9, 9)), rng.normal(size=(3, 9, 9, 4))
  measured = ratios(Segment().terms({"logits": jnp.asarray(logits)}, {"mask": jnp.asarray(mask)}))
  want = metrics.jaccard_score(mask.ravel(), logits.argmax(-1).ravel(), average=None)
  np.testing.assert_allclose([measured[f"iou/{k}"] for k in range(4)], want, rtol=1e-6)


def test_captions_by_hand():
  tokens = jnp.array([[decode.START, 4, decode.END, 0]])
  probs = jnp.array([[[0.1, 0.1, 0.1, 0.1, 0.6], [0.1, 0.1, 0.5, 0.1, 0.2]] + [[0.2] * 5] * 2])
  attention = jnp.array([[[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]]])
  out = {"logits": jnp.log(probs)}
  measured = ratios(Caption().terms(out, {"tokens": tokens}))
  nats = -np.log([0.6, 0.5]).mean()
  assert measured["loss"] == pytest.approx(nats, rel=1e-5) == measured["nats"]
  assert measured["word"] == 1
  soft = ratios(Caption().terms(out | {"attention": attention}, {"tokens": tokens}))
  penalty = (1 - 1.2) ** 2 + (1 - 0.8) ** 2
  assert soft["loss"] == pytest.approx(nats + penalty / 2, rel=1e-5)
  assert soft["nats"] == pytest.approx(nats, rel=1e-5)


class Given(nn.Module):
  """A backbone of one layer."""

  num_classes: None = None
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    x = self.numerics.conv(16, 4, 4, padding=0, name="conv")(image)
    x = nn.relu(x)
    return {"stage4": x, "pooled": x.mean((1, 2))}


def narrow_reader():
  rows = (crnn.conv(16), crnn.HALVE, crnn.conv(16), ((4, 1), (4, 1), 0))
  return crnn.CRNN(partial(crnn.ConvNet, rows), 24, (None,), num_classes=6), (8, 24)


def narrow_speller():
  trunk, size = partial(crnn.ConvNet, (crnn.conv(16), crnn.HALVE)), (8, 24)
  return attention_ocr.AttentionOCR(trunk, hidden=24, steps=5, num_classes=6), size


RNG = np.random.default_rng(0)
LEARNERS = {
  "spell": (
    narrow_speller, Spell(), {"text": np.array([[1, 2, 2, 3, 0], [5, 4, 0, 0, 0]], np.int32)}
  ),
  "read": (narrow_reader, Read(), {"text": np.array([[1, 2, 2, 3], [5, 4, 0, 0]], np.int32)}),
  "segment": (
    lambda: (unet.UNet((6, 12), 3, padded=True), (8, 24)),
    Segment(dice=0.5),
    {"mask": RNG.integers(0, 3, (2, 8, 24)).astype(np.int32)},
  ),
  "soft": (
    lambda: (caption.ShowAttendTell(Given, hidden=24, num_classes=8, dropout=0.0), (8, 24)),
    Caption(),
    {"tokens": np.array([[1, 4, 5, 2, 0], [1, 6, 7, 4, 2]], np.int32)},
  ),
  "hard": (
    lambda: (
      caption.ShowAttendTell(Given, hard=True, hidden=24, num_classes=8, dropout=0.0), (8, 24)
    ),
    Caption(),
    {"tokens": np.array([[1, 4, 5, 2, 0], [1, 6, 7, 4, 2]], np.int32)},
  ),
}  # fmt: skip
SURE = {
  "spell": ("cer", 0.0),
  "read": ("cer", 0.0),
  "segment": ("pixel", 0.9),
  "soft": ("word", 1.0),
  "hard": ("word", 1.0),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_step_learns_two_examples(kind):
  make, task, asked = LEARNERS[kind]
  model, size = make()
  preprocess = zoo.Preprocess(8, 8, (0.5,), (0.25,))
  images = RNG.integers(0, 256, (2, *size, 1), dtype=np.uint8)
  batch = asked | {"image": images, "real": np.ones(2, np.float32)}
  variables = zoo.init(model, jax.random.key(0), size=size, channels=1)
  tx = optax.adam(0.01)
  step = make_train_step(model, task, tx, jax.random.key(0), preprocess)
  state = make_state(variables, tx)
  for _ in range(100):
    state, measured = step(state, batch)
  name, goal = SURE[kind]
  value = float(measured[name][0] / measured[name][1])
  assert value == goal if name == "cer" else value >= goal
