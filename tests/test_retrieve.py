"""Search against brute force in float64; codes and colours by hand; measures by scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
import zoo
from zoo import retrieve


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
  x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
  return np.asarray(retrieve.normalized(x))


@pytest.fixture(scope="module")
def vectors():
  return unit(5, 24, seed=1), unit(1000, 24)


def brute(queries, index, k, exclude=None):
  scores = np.asarray(queries, np.float64) @ np.asarray(index, np.float64).T
  if exclude is not None:
    scores[np.arange(len(queries)), exclude] = -np.inf
  rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("block", [None, 7, 64, 1000, 5000])
def test_exact_search_equals_brute_force_in_float64(block, vectors):
  queries, index = vectors
  rows, scores = retrieve.nearest(queries, index, 10, block=block)
  want, close = brute(queries, index, 10)
  np.testing.assert_array_equal(rows, want)
  np.testing.assert_allclose(scores, close, atol=1e-6)


def test_a_row_does_not_find_itself(vectors):
  _, index = vectors
  own = np.arange(300)
  rows, _ = retrieve.nearest(index[:300], index, 3, exclude=own, block=128)
  np.testing.assert_array_equal(rows, brute(index[:300], index, 3, own)[0])
  assert (retrieve.nearest(index[:300], index, 1)[0][:, 0] == own).all()


def test_of_equals_the_first_come_first():
  index = np.tile(unit(1, 8), (50, 1))
  rows, scores = retrieve.nearest(index[:1], index, 20, block=16)
  assert rows[0].tolist() == list(range(20)) and np.ptp(scores) == 0


@pytest.mark.parametrize("values", [3, 40, 10**6])
def test_chunks_are_no_other_order(values):
  """Among many equals, and rows that are hidden, beside the plain operation."""
  rng = np.random.default_rng(0)
  scores = rng.integers(0, values, (5, 20 * retrieve.CHUNK)).astype(np.float32)
  scores[:, rng.integers(0, scores.shape[1], 900)] = -np.inf
  scores[4, 3:] = -np.inf
  for k in (1, 7, 19):
    for ours, theirs in zip(retrieve._highest(scores, k), jax.lax.top_k(scores, k)):
      np.testing.assert_array_equal(ours, theirs)


def test_fewer_rows_than_wanted_are_filled():
  rows, scores = retrieve.nearest(unit(2, 4), unit(3, 4), 5, exclude=np.array([0, -1]))
  assert rows[0, 2:].tolist() == [-1] * 3 and rows[1, 3:].tolist() == [-1] * 2
  assert np.isneginf(scores[rows == -1]).all() and np.isfinite(scores[rows >= 0]).all()


def test_codes_by_hand():
  vectors = np.array([[1, -1, 2, 0, -3, 5, 1, 1, -1, 4], [-1, -1, 2, 0, -3, 5, 1, 1, -1, 4.0]])
  codes = np.asarray(retrieve.codes(vectors))
  assert codes.tolist() == [[0b10100111, 0b01000000], [0b00100111, 0b01000000]]
  index = np.array([[0xFF, 0x00], [0b10100111, 0b01000001], [0b10100111, 0b01000000]], np.uint8)
  rows, scores = retrieve.nearest(codes[:1], index, 3)
  assert rows.tolist() == [[2, 1, 0]] and scores.tolist() == [[0, -1, -4]]


def test_codes_equal_numpy_bit_by_bit(vectors):
  queries, index = (np.asarray(retrieve.codes(x)) for x in vectors)
  apart = np.unpackbits(queries[:, None] ^ index, axis=-1).sum(-1)
  rows, scores = retrieve.nearest(queries, index, 20, block=100)
  np.testing.assert_array_equal(rows, np.argsort(apart, 1, kind="stable")[:, :20])
  np.testing.assert_array_equal(-scores, np.sort(apart, 1)[:, :20])


@pytest.mark.parametrize(
  "queries, index, k, words",
  [
    (unit(2, 4), unit(3, 5), 1, ["wanted [q d] and [n d]", "[2, 4]", "[3, 5]"]),
    (unit(2, 4), np.zeros((3, 4), np.uint8), 0, ["codes are found among codes", "k is at least 1"]),
    (unit(2, 4)[0], unit(3, 4), 1, ["wanted [q d]", "[4]"]),
  ],
)
def test_what_does_not_go_together_is_a_sentence(queries, index, k, words):
  with pytest.raises(ValueError) as error:
    retrieve.nearest(queries, index, k)
  assert all(word in str(error.value) for word in words), error.value


def test_near_duplicates_are_found_once(vectors):
  index = vectors[1][:200].copy()
  index[150] = index[3]
  index[60] = np.asarray(retrieve.normalized(index[7] + 0.01 * index[8]))
  pairs = retrieve.duplicates(index, 0.99)
  assert [pair[:2] for pair in pairs] == [(3, 150), (7, 60)] and pairs[0][2] > pairs[1][2]


def test_measures_by_hand():
  labels = np.array([0, 0, 1, 1, 1, 2])
  found = np.array([[0, 2, 1, -1], [5, 2, 3, 4], [0, 1, 2, 3]])
  got = retrieve.measures(found, np.array([0, 1, 7]), labels, ks=(1, 2))  # none has label 7
  assert got["recall@1"] == 0.5 and got["recall@2"] == 1
  assert got["precision@1"] == 0.5 and got["precision@2"] == 0.5
  want = ((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3 + 3 / 4) / 3) / 2
  assert got["map"] == pytest.approx(want)


def test_leave_one_out_equals_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn's")
  index, labels = unit(120, 6), np.random.default_rng(3).integers(0, 4, 120)
  labels[0] = 9  # alone, so no query
  got = retrieve.leave_one_out(index, labels, ks=(1, 5))
  scores = np.asarray(index, np.float64) @ index.T
  each, first = [], []
  for i in range(1, 120):
    others = np.delete(np.arange(120), i)
    right = labels[others] == labels[i]
    each.append(metrics.average_precision_score(right, scores[i, others]))
    first.append(right[scores[i, others].argmax()])
  assert got["queries"] == 119
  assert got["map"] == pytest.approx(np.mean(each), abs=1e-6)
  assert got["recall@1"] == got["precision@1"] == pytest.approx(np.mean(first))
  with pytest.raises(ValueError, match="no class has two"):
    retrieve.leave_one_out(index[:3], np.arange(3))


def test_lab_of_known_colours():
  """Lindbloom's values of sRGB primaries and greys."""
  pixels = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [128, 128, 128]], "u1")
  want = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.59, 0, 0]]
  np.testing.assert_allclose(retrieve.lab(pixels), want, atol=0.02)


def test_dominant_colours_of_a_flag():
  flag = np.zeros((40, 40, 3), np.uint8)
  flag[:24], flag[24:36], flag[36:] = (200, 30, 30), (240, 240, 240), (20, 20, 160)
  found = np.asarray(retrieve.signature(flag, colors=3))
  np.testing.assert_allclose(found[:, 3], [0.6, 0.3, 0.1], atol=1e-5)
  np.testing.assert_allclose(found[:, :3], retrieve.lab(flag[[0, 30, 39], 0]), atol=0.05)
  only = np.zeros((40, 40))
  only[36:] = 2
  one = np.asarray(retrieve.signature(flag, only, colors=3))
  np.testing.assert_allclose(one[0], [*retrieve.lab(flag[39, 0]), 1], atol=0.05)


def test_what_stands_out_is_salient():
  picture = np.full((30, 30, 3), 120, np.uint8)
  picture[10:20, 10:20] = (220, 30, 30)
  found = np.asarray(retrieve.salience(picture))
  assert found[15, 15] > 5 * found[2, 2]


def test_likeness_of_colours_falls_with_their_distance():
  colors = np.array([[50, 0, 0], [50, 20, 0], [50, 0, 60], [90, -60, 60]], np.float32)
  signatures = np.concatenate([colors, np.ones((4, 1), np.float32)], 1)[:, None]
  vectors = np.asarray(retrieve.color_vectors(signatures))
  want = np.exp(-np.square(colors[:, None] - colors).sum(-1) / (2 * retrieve.BELL**2))
  np.testing.assert_allclose(vectors @ vectors.T, want, atol=0.04)


def test_features_and_colours_have_their_weights(vectors):
  features = vectors[1][:30]
  rng = np.random.default_rng(0)
  signatures = np.concatenate([rng.uniform(20, 80, (30, 2, 3)), np.full((30, 2, 1), 0.5)], -1)
  index = retrieve.Joined(features, signatures.astype(np.float32), 0.25)
  rows, scores = retrieve.nearest(index[:4], index, 30, block=8)
  colors = np.asarray(retrieve.color_vectors(signatures), np.float64)
  both = 0.75 * features[:4].astype(float) @ features.T + 0.25 * colors[:4] @ colors.T
  np.testing.assert_allclose(scores, -np.sort(-both, 1), atol=1e-5)
  assert (rows[:, 0] == np.arange(4)).all()
  every = np.triu(0.75 * features.astype(float) @ features.T + 0.25 * colors @ colors.T, 1)
  [pair] = retrieve.duplicates(index, every.max() - 1e-5)
  assert pair[:2] == np.unravel_index(every.argmax(), every.shape)
  with pytest.raises(ValueError, match="weight of colours within 0..1"):
    retrieve.Joined(features, signatures[:3], 2.0)


def test_any_end_point_is_a_vector():
  model = zoo.create("resnet18", depths=(1, 1, 1, 1), num_classes=4)
  variables = runs.untrained(model, 64)
  image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  for layer, width in {"pooled": 512, "stage3": 256, "logits": 4}.items():
    run = lambda v, x, layer=layer: retrieve.embed(model, v, x, layer)
    assert jax.eval_shape(run, variables, image).shape == (2, width)
  with pytest.raises(ValueError, match="no end point 'pool'; it has stem, stage1"):
    jax.eval_shape(lambda v, x: retrieve.embed(model, v, x, "pool"), variables, image)
