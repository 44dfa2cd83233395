"""YOLO v1, v2 and v3 as darknet trains them, over padded boxes.

A batch has "boxes" [b n 4] in pixels of the network's input and "box_label" [b n], -1 for padding;
the number of objects changes no shape.  What is minimised has darknet's own gradients, at every
head: "printed" is what darknet prints instead, the squared gradients of a picture, which for v3 is
the mean over the heads.  v2 is trained as on a GPU: darknet's CPU code does not pass gradients.
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp
import optax

from zoo.detect.yolo import YOLO, Dense, Head
from zoo.ops import boxes as box_ops

WARM = 12800  # pictures that v2 first pulls all boxes towards their anchors for


@dataclasses.dataclass(frozen=True)
class Yolo:
  """Losses of the raw maps, and detections; of a picture each, summed as darknet sums them."""

  model: YOLO
  rescore: bool = True  # v1, v2: a box is as sure as it overlaps; darknet's v2-tiny of COCO has 1
  score: float = 0.005  # of detections, as darknet's `detector valid` has it
  iou: float = 0.45
  limit: int = 100
  inputs: tuple[str, ...] = ("image",)
  target: str = "index"  # annotations stay on the host, which scores detections

  def terms(self, out, batch):
    heads = [row for row in self.model.neck if isinstance(row, Head | Dense)]
    raws = [out[f"raw{i}"].astype(jnp.float32) for i in range(1, len(heads) + 1)]
    boxes, label = batch["boxes"], batch["box_label"]
    one = jnp.ones(len(label), jnp.float32)
    if isinstance(heads[0], Dense):
      cells = jax.vmap(lambda raw, b, k: self._cells(raw, heads[0].boxes, b, k))
      loss, printed, overlap, count = cells(raws[0], boxes, label)
    else:
      warm = jnp.asarray(batch["seen"] < WARM, jnp.float32) if "seen" in batch else 0 * one
      shapes = jnp.array([anchor for head in reversed(heads) for anchor in head.anchors])
      parts, before = [], len(shapes)
      for head, raw in zip(heads, raws):
        before -= len(head.anchors)
        own = slice(before, before + len(head.anchors))
        level = self._softmax_level if head.softmax else self._level
        level = jax.vmap(lambda *a, f=level, h=head, o=own: f(h, shapes, o, *a))
        parts.append(level(raw, boxes, label, warm))
      loss, printed, overlap, count = (sum(part) for part in zip(*parts))
      printed = printed / len(heads)
    return {"loss": (loss, one), "printed": (printed, one), "iou": (overlap, count)}

  def _level(self, head: Head, shapes, own: slice, raw, boxes, label, warm):
    """v3: [h w a 5+c] of one picture -> (loss, squared gradients, sum of IoUs, their count)."""
    found = _assign(head, shapes, own, raw, boxes, label)
    flat = raw.reshape(-1, raw.shape[-1])
    size = raw.shape[1] * head.stride, raw.shape[0] * head.stride
    predicted = lax.stop_gradient(_decoded(head, raw)).reshape(-1, 4)
    nearest = jnp.where(label >= 0, box_ops.pairwise_iou(predicted, boxes), 0).max(-1, initial=0)
    background = ~found.taken & (nearest <= 0.7)  # ignore_thresh
    objectness = flat[:, 4]
    loss = _sum(background, jax.nn.softplus(objectness))
    printed = _sum(background, jnp.square(jax.nn.sigmoid(objectness)))
    rows, last = flat[found.slot], found.last  # [n 5+c] of each object
    weight = found.weight(size)
    miss = jnp.square(found.growth - rows[:, 2:4])
    entropy = optax.sigmoid_binary_cross_entropy
    shift = jnp.square(found.shift - jax.nn.sigmoid(rows[:, :2]))
    each = weight[:, None] * (entropy(rows[:, :2], found.shift) + miss / 2)
    kinds = found.kinds(label, self.model.num_classes)
    loss += _sum(last, each.sum(1) + jax.nn.softplus(-rows[:, 4]))
    loss += _sum(last, entropy(rows[:, 5:], kinds).sum(1))
    printed += _sum(last, jnp.square(weight) * (shift + miss).sum(1))
    printed += _sum(last, jnp.square(jax.nn.sigmoid(-rows[:, 4])))
    printed += _sum(last, jnp.square(kinds - jax.nn.sigmoid(rows[:, 5:])).sum(1))
    overlap = box_ops.iou(predicted[found.slot], boxes)
    return loss, printed, _sum(found.owned, overlap), found.owned.sum().astype(jnp.float32)

  def _softmax_level(self, head: Head, shapes, own: slice, raw, boxes, label, warm):
    """v2: the same; squares of sigmoids, and classes exclude each other."""
    found = _assign(head, shapes, own, raw, boxes, label)
    flat = raw.reshape(-1, raw.shape[-1])
    size = raw.shape[1] * head.stride, raw.shape[0] * head.stride
    predicted = lax.stop_gradient(_decoded(head, raw)).reshape(-1, 4)
    nearest = jnp.where(label >= 0, box_ops.pairwise_iou(predicted, boxes), 0).max(-1, initial=0)
    place, sure = jax.nn.sigmoid(flat[:, :2]), jax.nn.sigmoid(flat[:, 4])
    background = ~found.taken & (nearest <= 0.6)
    loss, printed = (_sum(background, jnp.square(sure)) * k for k in (0.5, 1.0))
    # all other boxes stay at their anchors for a while
    drift = (jnp.square(place - 0.5) + jnp.square(flat[:, 2:4])).sum(1)
    loss += 0.01 / 2 * warm * _sum(~found.taken, drift)
    printed += 0.01**2 * warm * _sum(~found.taken, drift)
    rows, last, weight = flat[found.slot], found.last, found.weight(size)
    overlap = box_ops.iou(predicted[found.slot], boxes)
    miss = jnp.square(found.shift - place[found.slot]) + jnp.square(found.growth - rows[:, 2:4])
    unsure = jnp.square((overlap if self.rescore else 1) - sure[found.slot])
    kinds = jax.nn.one_hot(label, self.model.num_classes)
    loss += _sum(last, weight * miss.sum(1) / 2 + 5 * unsure / 2)  # object_scale
    loss += _sum(last, optax.softmax_cross_entropy(rows[:, 5:], kinds))
    printed += _sum(last, jnp.square(weight) * miss.sum(1) + 25 * unsure)
    printed += _sum(last, jnp.square(kinds - jax.nn.softmax(rows[:, 5:])).sum(1))
    return loss, printed, _sum(found.owned, overlap), found.owned.sum().astype(jnp.float32)

  def _cells(self, raw, count: int, boxes, label):
    """v1: [cells*(c+5*boxes)] of one picture; a cell has the first object whose middle it holds."""
    c = self.model.num_classes
    cells = raw.shape[0] // (c + 5 * count)
    side = round(cells**0.5)
    classes, sure, form = jnp.split(raw, (cells * c, cells * (c + count)))
    classes, sure = classes.reshape(cells, c), sure.reshape(cells, count)
    form = form.reshape(cells, count, 4)  # place in the cell, roots of the sides
    share = box_ops.to_cxcywh(boxes) / (64 * side)  # of the picture: 64 pixels a cell
    cell = jnp.clip((share[:, :2] * side).astype(jnp.int32), 0, side - 1)
    slot, real = cell[:, 1] * side + cell[:, 0], label >= 0
    same = (slot[:, None] == slot[None]) & real[:, None] & real[None]
    first = real & ~jnp.tril(same, -1).any(1)
    place = share[:, :2] * side - cell
    truth = jnp.concatenate([place / side, share[:, 2:]], 1)
    rows = form[slot]  # [n count 4]
    ours = jnp.concatenate([rows[..., :2] / side, jnp.square(rows[..., 2:])], -1)
    ours = lax.stop_gradient(ours)
    overlap = box_ops.iou(box_ops.from_cxcywh(ours), box_ops.from_cxcywh(truth)[:, None])
    apart = jnp.square(ours - truth[:, None]).sum(-1)
    best = jnp.where(overlap.max(1) > 0, overlap.argmax(1), apart.argmin(1))
    chosen = lambda x: jnp.take_along_axis(x, best[:, None], 1)[:, 0]
    overlap = chosen(overlap)
    there = jnp.zeros((cells, count), bool)
    there = there.at[jnp.where(first, slot, cells), best].set(True, mode="drop")
    wanted = jnp.concatenate([place, jnp.sqrt(share[:, 2:])], 1)
    own = jnp.take_along_axis(rows, best[:, None, None], 1)[:, 0]
    miss = jnp.square(wanted - own).sum(1)
    unsure = jnp.square((overlap if self.rescore else 1) - chosen(sure[slot]))
    wrong = jnp.square(jax.nn.one_hot(label, c) - classes[slot]).sum(1)
    idle = _sum(~there, jnp.square(sure))
    loss = idle * 0.5 / 2 + _sum(first, 5 * miss + unsure + wrong) / 2
    printed = idle * 0.5**2 + _sum(first, 25 * miss + unsure + wrong)
    return loss, printed, _sum(first, overlap), first.sum().astype(jnp.float32)

  def predict(self, out):
    return self.model.detect(out, score=self.score, iou=self.iou, limit=self.limit)

  def rank(self, measured):
    ap, loss = measured.get("ap", 0.0), measured["loss"]
    return tuple(-math.inf if math.isnan(v) else v for v in (ap, -loss))


@dataclasses.dataclass(frozen=True)
class _Assigned:
  """Which anchor of a map answers for each of n objects."""

  slot: jax.Array  # [n] int32: cell by cell, then anchor
  owned: jax.Array  # [n] bool: an anchor of this map is the best of all
  last: jax.Array  # [n] bool: owned, and no later object wants the same
  same: jax.Array  # [n n] bool: both owned and in one slot
  taken: jax.Array  # [slots] bool
  shift: jax.Array  # [n 2] from the cell's corner, in cells
  growth: jax.Array  # [n 2] log of the sides over the anchor's
  sides: jax.Array  # [n 2] pixels

  def weight(self, size):
    """Small boxes count up to twice."""
    return 2 - (self.sides / jnp.array(size, jnp.float32)).prod(-1)

  def kinds(self, label, classes: int):
    """[n c]: the classes of all objects in one's slot."""
    return jnp.minimum(self.same.astype(jnp.float32) @ jax.nn.one_hot(label, classes), 1)


def _assign(head: Head, shapes, own: slice, raw, boxes, label) -> _Assigned:
  h, w, a, _ = raw.shape
  middle, sides = jnp.split(box_ops.to_cxcywh(boxes), 2, -1)
  real = label >= 0
  cell = jnp.clip((middle / head.stride).astype(jnp.int32), 0, jnp.array([w - 1, h - 1]))
  both = lambda x: jnp.concatenate([-x, x], -1) / 2  # boxes around 0
  best = box_ops.pairwise_iou(both(sides), both(shapes)).argmax(1)
  owned = real & (best >= own.start) & (best < own.stop)
  anchor = jnp.clip(best - own.start, 0, a - 1)
  slot = (cell[:, 1] * w + cell[:, 0]) * a + anchor
  same = (slot[:, None] == slot[None]) & owned[:, None] & owned[None]
  taken = jnp.zeros(h * w * a, bool).at[jnp.where(owned, slot, h * w * a)].set(True, mode="drop")
  sides = jnp.where(real[:, None], sides, 1)  # whose logarithm padding could not have
  return _Assigned(
    slot, owned, owned & ~jnp.triu(same, 1).any(1), same, taken, middle / head.stride - cell,
    jnp.log(sides / shapes[own][anchor]), sides,
  )  # fmt: skip


def _decoded(head: Head, raw):
  """[h w a 4] boxes in pixels."""
  h, w = raw.shape[:2]
  y, x = jnp.mgrid[:h, :w]
  middle = (jax.nn.sigmoid(raw[..., :2]) + jnp.stack([x, y], -1)[:, :, None]) * head.stride
  sides = jnp.exp(raw[..., 2:4]) * jnp.array(head.anchors)
  return box_ops.from_cxcywh(jnp.concatenate([middle, sides], -1))


def _sum(mask, values):
  """Over the places of a mask."""
  return jnp.where(mask, values, 0).sum()
