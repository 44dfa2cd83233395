"""Suppression against greedy NumPy, and by properties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import nms


def crowd(n: int, seed: int = 0, spread: float = 100.0):
  """Boxes that overlap a lot, scores without ties."""
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, spread, (n, 2))
  boxes = np.concatenate([low, low + rng.uniform(5, 40, (n, 2))], 1).astype(np.float32)
  return boxes, rng.permutation(n).astype(np.float32) / n + 0.001


def overlap(a, b):
  side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  inside = side.clip(0).prod()
  return inside / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inside)


def greedy(boxes, scores, iou, group=None):
  kept = []
  for i in np.argsort(-scores, kind="stable"):
    if scores[i] > -np.inf and not any(
      overlap(boxes[i], boxes[j]) > iou and (group is None or group[i] == group[j]) for j in kept
    ):
      kept.append(int(i))
  return kept


@pytest.mark.parametrize(
  ("n", "tile", "limit"), [(300, 512, 300), (300, 64, 300), (300, 64, 40), (130, 64, 5), (1, 64, 3)]
)
def test_equals_greedy(n, tile, limit):
  boxes, scores = crowd(n)
  scores[n // 2 :: 9] = -np.inf
  run = jax.jit(partial(nms.nms_padded, iou=0.5, limit=limit, tile=tile))
  index, real = map(np.asarray, run(boxes, scores))
  want = greedy(boxes, scores, 0.5)[:limit]
  assert index[real].tolist() == want and real[: len(want)].all() and real.sum() == len(want)


def test_groups_do_not_see_each_other():
  boxes, scores = crowd(200)
  group = np.random.default_rng(1).integers(0, 3, 200)
  run = jax.jit(lambda *args: nms.nms_padded(*args[:2], 0.4, 200, group=args[2], tile=64))
  index, real = run(boxes, scores, group)
  assert np.asarray(index)[np.asarray(real)].tolist() == greedy(boxes, scores, 0.4, group)


def test_order_and_padding_change_nothing():
  boxes, scores = crowd(150)
  rows = np.random.default_rng(2).permutation(150)
  run = jax.jit(partial(nms.nms_padded, iou=0.5, limit=150, tile=64))
  index, real = map(np.asarray, run(boxes, scores))
  mixed = np.concatenate([boxes[rows], boxes[:70]])
  padded = np.concatenate([scores[rows], np.full(70, -np.inf, np.float32)])
  other, there = map(np.asarray, run(mixed, padded))
  assert rows[other[there]].tolist() == index[real].tolist()


def test_the_threshold_itself_does_not_suppress():
  boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 0.5
  run = jax.jit(lambda iou: nms.nms_padded(boxes, jnp.array([0.9, 0.8]), iou, 2)[1])
  assert run(0.5).tolist() == [True, True] and run(0.49).tolist() == [True, False]


def test_nothing_there():
  run = jax.jit(partial(nms.nms_padded, iou=0.5, limit=3))
  for n in (0, 5):
    assert not np.any(run(np.zeros((n, 4), "f"), np.full(n, -np.inf, "f"))[1])


def test_vmap_and_grad():
  batch = [crowd(100, seed) for seed in range(3)]
  boxes, scores = (np.stack(part) for part in zip(*batch))
  run = partial(nms.nms_padded, iou=0.5, limit=100, tile=32)
  index, real = map(np.asarray, jax.jit(jax.vmap(run))(boxes, scores))
  for i in range(3):
    assert index[i][real[i]].tolist() == greedy(boxes[i], scores[i], 0.5)

  def loss(boxes, scores):
    index, real = run(boxes, scores)
    return jnp.sum(jnp.where(real, scores[index], 0))

  by_boxes, by_scores = jax.jit(jax.grad(loss, (0, 1)))(boxes[0], scores[0])
  assert not np.any(by_boxes)
  assert np.flatnonzero(by_scores).tolist() == sorted(greedy(boxes[0], scores[0], 0.5))


@pytest.mark.parametrize("own_boxes", [False, True])
def test_detections_are_greedy_in_each_class(own_boxes):
  rng = np.random.default_rng(3)
  boxes, _ = crowd(80)
  scores = rng.permutation(80 * 4).reshape(80, 4).astype(np.float32) / 320
  each = boxes[:, None] + rng.uniform(0, 3, (80, 4, 4)).astype("f") if own_boxes else None
  given = each if own_boxes else boxes
  run = jax.jit(partial(nms.detections, score=0.3, iou=0.45, limit=300, candidates=320))
  found = jax.device_get(run(given, scores))
  want = []
  for c in range(4):
    own = each[:, c] if own_boxes else boxes
    masked = np.where(scores[:, c] > 0.3, scores[:, c], -np.inf)
    want += [(scores[i, c], c, *own[i]) for i in greedy(own, masked, 0.45)]
  n = len(want)
  got = [found["scores"][:n], found["box_label"][:n], *found["boxes"][:n].T]
  np.testing.assert_allclose(np.stack(got, 1), sorted(want, reverse=True), rtol=1e-6)
  assert (found["box_label"][n:] == -1).all() and not found["scores"][n:].any()


@pytest.mark.parametrize("sigma", [0.5, None])
def test_soft_nms(sigma):
  boxes, scores = crowd(60)
  run = partial(nms.soft_nms, limit=60, sigma=sigma)
  index, lowered = map(np.asarray, jax.jit(run)(boxes, scores))
  left, want = scores.astype(np.float64), []
  open_rows = set(range(60))
  while open_rows:
    best = max(open_rows, key=lambda i: left[i])
    want.append((best, left[best]))
    open_rows.remove(best)
    for i in open_rows:
      near = overlap(boxes[best], boxes[i])
      left[i] *= np.exp(-(near**2) / sigma) if sigma else (1 - near if near > 0.3 else 1)
  np.testing.assert_allclose(lowered, [s for _, s in want], rtol=1e-4)
  assert index[:30].tolist() == [i for i, _ in want][:30]
  assert np.any(jax.jit(jax.grad(lambda s: run(boxes, s)[1].sum()))(scores))
