"""Non-maximum suppression with static shapes: of boxes that overlap, the best scored stays.

All forms are greedy and exact, run under jit and vmap, and pass no gradient (soft-NMS passes one to
the scores).  Boxes scored -inf are padding.  A box goes if its IoU with a better one that stays is
*above* the threshold; of equal scores the first counts as better.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from zoo.ops import boxes as box_ops

TILE = 128  # boxes compared at once; fewer are quicker still on a CPU, more on accelerators


class _Tiles(NamedTuple):
  """What the loop over tiles carries."""

  tile: jax.Array  # [] the next one
  found: jax.Array  # [] boxes kept so far
  boxes: jax.Array  # [slots 4] those, best first; then zeros
  group: jax.Array  # [slots]
  index: jax.Array  # [slots] their rows in sorted order


def nms_padded(
  boxes: jax.Array,
  scores: jax.Array,
  iou: float,
  limit: int,
  *,
  group: jax.Array | None = None,
  tile: int = TILE,
) -> tuple[jax.Array, jax.Array]:
  """(index [limit] int32 of the kept boxes, best first; real [limit] bool, False is padding).

  Sorted boxes come a tile at a time: those that overlap an earlier kept box go, then the rest of
  the tile is settled among itself.  It ends once `limit` are kept or only padding is left.

  Args:
    boxes: [n 4].
    scores: [n], -inf where there is no box.
    iou: above which the worse box goes.
    limit: kept at most.
    group: [n] int32; boxes of different groups do not see each other (per-class NMS).
    tile: boxes compared at once.
  """
  boxes, scores = lax.stop_gradient((boxes.astype(jnp.float32), scores))
  n = boxes.shape[0]
  if n == 0:
    return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
  tile = max(1, min(tile, n))
  group = jnp.zeros(n, jnp.int32) if group is None else group.astype(jnp.int32)
  order = jnp.argsort(-scores, stable=True)
  tiles = -(-n // tile)
  spare = tiles * tile - n
  there = jnp.pad(scores[order] > -jnp.inf, (0, spare))
  boxes_in = jnp.pad(boxes[order], ((0, spare), (0, 0)))
  group_in = jnp.pad(group[order], (0, spare))
  slots = -(-limit // tile) * tile + tile  # the last tile may overshoot

  def going_on(state):
    more = state.tile * tile < jnp.sum(there)
    return (state.tile < tiles) & (state.found < limit) & more

  def step(state):
    cut = lambda x: lax.dynamic_slice_in_dim(x, state.tile * tile, tile)
    own, own_group, keep = cut(boxes_in), cut(group_in), cut(there)
    keep = _clear_of_kept(own, own_group, keep, state, iou, tile)
    keep = _settle(own, own_group, keep, iou)
    rows = state.tile * tile + jnp.arange(tile)
    place = jnp.where(keep, state.found + jnp.cumsum(keep) - 1, slots)
    put = lambda old, new: old.at[place].set(new, mode="drop")
    return _Tiles(
      state.tile + 1, state.found + jnp.sum(keep, dtype=jnp.int32), put(state.boxes, own),
      put(state.group, own_group), put(state.index, rows),
    )  # fmt: skip

  zero = jnp.int32(0)
  empty = jnp.zeros(slots, jnp.int32)
  state = lax.while_loop(
    going_on, step, _Tiles(zero, zero, jnp.zeros((slots, 4)), empty, empty)
  )  # fmt: skip
  real = jnp.arange(limit) < state.found
  return jnp.where(real, order[state.index[:limit]], 0).astype(jnp.int32), real


def _clear_of_kept(own, own_group, keep, state, iou, tile):
  """`keep` without the boxes that overlap one kept from an earlier tile."""

  def step(carry):
    start, keep = carry
    kept = lax.dynamic_slice_in_dim(state.boxes, start, tile)
    group = lax.dynamic_slice_in_dim(state.group, start, tile)
    near = (box_ops.pairwise_iou(kept, own) > iou) & (group[:, None] == own_group[None])
    near &= (start + jnp.arange(tile) < state.found)[:, None]
    return start + tile, keep & ~near.any(0)

  return lax.while_loop(lambda c: c[0] < state.found, step, (jnp.int32(0), keep))[1]


def _settle(own, group, keep, iou):
  """Greedy suppression within one sorted tile, as the fixed point of one parallel step.

  A box stays unless a better one that stays overlaps it.  After k steps the first k are right, so
  the fixed point is the greedy answer; a handful of steps reach it.
  """
  n = own.shape[0]
  better = jnp.arange(n)[:, None] < jnp.arange(n)[None]
  near = (box_ops.pairwise_iou(own, own) > iou) & (group[:, None] == group[None]) & better

  def step(carry):
    _, now = carry
    return now, keep & ~(near & now[:, None]).any(0)

  return lax.while_loop(lambda c: (c[0] != c[1]).any(), step, step((keep, keep)))[1]


def detections(
  boxes: jax.Array,
  scores: jax.Array,
  *,
  score: float,
  iou: float,
  limit: int,
  candidates: int = 1000,
  per_class: bool = False,
  agnostic: bool = False,
) -> dict[str, jax.Array]:
  """The best detections of one picture, one for each (box, class) that passes.

  A box may be reported as several classes, and each class is suppressed by itself: darknet's rule,
  and torchvision's.  Returns "boxes" [limit 4], "scores" [limit] and "box_label" [limit] int32,
  best first; label -1 is padding.

  Args:
    boxes: [n 4], or [n classes 4] where each class has its own.
    scores: [n classes] probabilities.
    score: pairs must lie above.
    iou: see `nms_padded`.
    limit: detections at most.
    candidates: best pairs that suppression looks at; exact while no more than these pass `score`.
    per_class: so many of each class.
    agnostic: classes suppress each other.
  """
  n, classes = scores.shape
  passing = jnp.where(scores > score, scores, -jnp.inf)
  if per_class:
    best, row = lax.top_k(passing.T, min(candidates, n))
    label = jnp.broadcast_to(jnp.arange(classes)[:, None], row.shape)
    best, row, label = (x.reshape(-1) for x in (best, row, label))
  else:
    best, pair = lax.top_k(passing.reshape(-1), min(candidates, passing.size))
    row, label = pair // classes, pair % classes
  chosen = boxes[row] if boxes.ndim == 2 else boxes[row, label]
  index, real = nms_padded(chosen, best, iou, limit, group=None if agnostic else label)
  return {
    "boxes": jnp.where(real[:, None], chosen[index], 0),
    "scores": jnp.where(real, best[index], 0),
    "box_label": jnp.where(real, label[index], -1).astype(jnp.int32),
  }


def soft_nms(
  boxes: jax.Array, scores: jax.Array, limit: int, *, sigma: float | None = 0.5, iou: float = 0.3
) -> tuple[jax.Array, jax.Array]:
  """(index [limit] int32, lowered scores [limit]), best first.  arXiv:1704.04503.

  Overlap lowers a score instead of removing the box; where scores run out (0 or -inf), the rest
  repeats the last box with that score.

  Args:
    boxes: [n 4].
    scores: [n], 0 or -inf where there is no box.
    limit: boxes returned.
    sigma: scores times exp(-iou**2 / sigma); None lowers linearly, by 1 - iou.
    iou: above which the linear form lowers.
  """
  boxes, scores = lax.stop_gradient(jnp.asarray(boxes)), jnp.asarray(scores)

  def step(left, _):
    best = jnp.argmax(left)
    top = left[best]
    near = box_ops.iou(boxes[best], boxes)
    decay = jnp.where(near > iou, 1 - near, 1) if sigma is None else jnp.exp(-(near**2) / sigma)
    lower = jnp.where(left > 0, left * decay, left)
    return lower.at[best].set(-jnp.inf), (best.astype(jnp.int32), top)

  return lax.scan(step, scores, length=limit)[1]
