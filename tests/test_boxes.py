"""Boxes, anchors and matching against NumPy written out, torchvision's own, and by properties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from zoo.ops import anchors, boxes, match

RNG = np.random.default_rng(0)


def some_boxes(n: int, size: float = 100.0) -> np.ndarray:
  low = RNG.uniform(0, size, (n, 2))
  return np.concatenate([low, low + RNG.uniform(1, size / 2, (n, 2))], 1).astype(np.float32)


@pytest.fixture(scope="module")
def torchvision_ops():
  parity.import_torchvision()
  from torchvision import ops

  return ops


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [(boxes.iou, "box_iou"), (boxes.generalized_iou, "generalized_box_iou"),
   (boxes.distance_iou, "distance_box_iou"), (boxes.complete_iou, "complete_box_iou")],
)  # fmt: skip
def test_overlaps_equal_torchvisions(ours, theirs, torchvision_ops):
  import torch

  a, b = some_boxes(7), some_boxes(5)
  want = getattr(torchvision_ops, theirs)(torch.from_numpy(a), torch.from_numpy(b))
  np.testing.assert_allclose(jax.jit(ours)(a[:, None], b[None]), want, atol=1e-5)


def test_iou_of_known_boxes():
  a = jnp.array([[0, 0, 10, 10], [0, 0, 0, 0]], jnp.float32)
  b = jnp.array([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]], jnp.float32)
  np.testing.assert_allclose(boxes.pairwise_iou(a, b), [[1 / 3, 0, 0], [0, 0, 0]], rtol=1e-6)
  assert boxes.generalized_iou(a[0], b[1]) == pytest.approx(-1 + 200 / 900)


@pytest.mark.parametrize(
  "overlap", [boxes.iou, boxes.generalized_iou, boxes.distance_iou, boxes.complete_iou]
)
def test_gradients_are_finite(overlap):
  hard = np.array([[0, 0, 0, 0], [1, 1, 5, 5], [1, 1, 5, 5], [0, 0, 2, 2]], np.float32)
  other = np.array([[0, 0, 0, 0], [1, 1, 5, 5], [0, 0, 0, 0], [5, 5, 9, 9]], np.float32)
  total, grad = jax.jit(jax.value_and_grad(lambda x: overlap(x, other).sum()))(hard)
  assert np.isfinite(total) and np.isfinite(grad).all()


def test_forms_return():
  some = some_boxes(9)
  for there, back in ((boxes.to_cxcywh, boxes.from_cxcywh), (boxes.to_xywh, boxes.from_xywh)):
    np.testing.assert_allclose(back(there(some)), some, rtol=1e-5)
  np.testing.assert_array_equal(boxes.to_xywh(np.array([2.0, 3, 7, 9])), [2, 3, 5, 6])
  np.testing.assert_array_equal(boxes.to_cxcywh(np.array([2.0, 3, 7, 9])), [4.5, 6, 5, 6])


def test_clip_to_each_picture():
  some = jnp.array([[-5.0, -1, 50, 60]])
  got = boxes.clip(jnp.stack([some, some]), jnp.array([[20, 30], [70, 40]]))
  np.testing.assert_array_equal(got[:, 0], [[0, 0, 30, 20], [0, 0, 40, 60]])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coder_equals_torchvisions(weights, torchvision_ops):
  import torch
  from torchvision.models.detection._utils import BoxCoder

  coder, some, priors = BoxCoder(weights), some_boxes(6), some_boxes(6)
  deltas = boxes.encode(some, priors, weights)
  want = coder.encode([torch.from_numpy(some)], [torch.from_numpy(priors)])[0]
  np.testing.assert_allclose(deltas, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(boxes.decode(deltas, priors, weights), some, rtol=1e-4, atol=1e-3)
  wild = RNG.normal(size=(6, 4)).astype(np.float32) * 30  # growth beyond the limit
  want = coder.decode(torch.from_numpy(wild), [torch.from_numpy(priors)])[:, 0]
  np.testing.assert_allclose(boxes.decode(wild, priors, weights), want, rtol=1e-4, atol=1e-2)


def test_anchors_equal_torchvisions(torchvision_ops):
  import torch
  from torchvision.models.detection.anchor_utils import AnchorGenerator
  from torchvision.models.detection.image_list import ImageList

  sizes, ratios = ((32, 40), (64, 80)), (0.5, 1.0, 2.0)
  original = AnchorGenerator(sizes, (ratios,) * 2)
  maps = [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4)]
  [want] = original(ImageList(torch.zeros(1, 3, 40, 56), [(40, 56)]), maps)
  strides = ((8, 8), (13, 14))
  got = [
    anchors.on_grid(anchors.centred(s, ratios), grid, stride)
    for s, grid, stride in zip(sizes, ((5, 7), (3, 4)), strides)
  ]
  np.testing.assert_array_equal(np.concatenate(got), want)


def test_default_shapes_equal_torchvisions(torchvision_ops):
  from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

  original = DefaultBoxGenerator([[2], [2, 3]], scales=[0.1, 0.3, 0.7])
  for want, scales, ratios in zip(original._wh_pairs, ((0.1, 0.3), (0.3, 0.7)), ([2], [2, 3])):
    np.testing.assert_allclose(anchors.default_shapes(*scales, ratios), want, rtol=1e-6)


def overlaps(m: int = 6, n: int = 50) -> np.ndarray:
  return np.round(RNG.uniform(0, 1, (m, n)), 1).astype(np.float32)  # rounded: with ties


def matched(iou, real, rule) -> np.ndarray:
  run = jax.jit(lambda iou, real: rule(lambda i: iou[i], real))
  return np.asarray(run(iou, real))


@pytest.mark.parametrize("rescue", [False, True])
def test_match_equals_torchvisions(rescue, torchvision_ops):
  import torch
  from torchvision.models.detection._utils import Matcher

  iou = overlaps() * np.array([1, 1, 1, 0.3, 0.2, 1], np.float32)[:, None]
  iou[:, :15] *= 0.6
  want = Matcher(0.7, 0.4, rescue)(torch.from_numpy(iou[:5])).numpy()
  real = np.arange(6) < 5  # the last row is padding that would win
  got = matched(iou, real, partial(match.match, high=0.7, low=0.4, rescue=rescue))
  np.testing.assert_array_equal(got, want)
  assert {match.BACKGROUND, match.IGNORED} < set(want)


def test_match_each_equals_torchvisions(torchvision_ops):
  import torch
  from torchvision.models.detection._utils import SSDMatcher

  iou = overlaps() * 0.6
  iou[2:5, 7] = 0.61  # three objects want one anchor
  want = SSDMatcher(0.5)(torch.from_numpy(iou)).numpy()
  padded = np.concatenate([iou, np.ones((2, 50), np.float32)])
  got = matched(padded, np.arange(8) < 6, partial(match.match_each, high=0.5))
  np.testing.assert_array_equal(got, want)
  assert want[7] == 4


def test_without_objects_all_is_background():
  iou, real = overlaps(), np.zeros(6, bool)
  for rule in (
    partial(match.match, high=0.7, low=0.3, rescue=True), partial(match.match_each, high=0.5)
  ):  # fmt: skip
    assert (matched(iou, real, rule) == match.BACKGROUND).all()


@pytest.mark.parametrize(("objects", "free"), [(100, 900), (3, 900), (500, 20), (0, 5)])
def test_sample_counts(objects, free):
  """As many positives as there are up to the share, background for the rest, nothing twice."""
  matched = np.full(1000, match.IGNORED)
  rows = RNG.permutation(1000)
  matched[rows[:objects]] = RNG.integers(0, 4, objects)
  matched[rows[objects : objects + free]] = match.BACKGROUND
  draw = jax.jit(lambda key: match.sample(key, jnp.asarray(matched), 256, 0.25))
  index, positive, negative = map(np.asarray, draw(jax.random.key(0)))
  assert positive.sum() == min(objects, 64)
  assert negative.sum() == min(free, 256 - positive.sum())
  assert not (positive & negative).any() and np.diff(positive.astype(int)).max() <= 0
  assert (matched[index[positive]] >= 0).all()
  assert (matched[index[negative]] == match.BACKGROUND).all()
  assert len(set(index[positive | negative])) == (positive | negative).sum()
  again = np.asarray(draw(jax.random.key(1))[0])
  assert objects == 0 or (again != index).any()
