"""Boxes [... 4] as x0 y0 x1 y1 in pixels: areas, overlaps, other forms, and what networks regress.

Overlaps broadcast over the leading axes: `iou(a[:, None], b[None])` compares every pair.  They are
0, and so are their gradients, where both boxes are empty.
"""

import math

import jax
import jax.numpy as jnp

# Widths may grow by this factor at most: of 1000 pixels from the smallest stride of 16.
MAX_LOG_GROWTH = math.log(1000 / 16)


def area(boxes: jax.Array) -> jax.Array:
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Area of the intersection over that of the union, in 0..1."""
  inside, union = _overlap(a, b)
  return _ratio(inside, union)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """[... n 4], [... m 4] -> [... n m]."""
  return iou(a[..., :, None, :], b[..., None, :, :])


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU minus the share of the hull that is in neither, in -1..1.  arXiv:1902.09630."""
  inside, union = _overlap(a, b)
  hull = area(_hull(a, b))
  return _ratio(inside, union) - _ratio(hull - union, hull)


def distance_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU minus the squared distance of the centres over the hull's diagonal.  arXiv:1911.08287."""
  gap = to_cxcywh(a)[..., :2] - to_cxcywh(b)[..., :2]
  hull = _hull(a, b)
  diagonal = jnp.square(hull[..., 2:] - hull[..., :2]).sum(-1)
  return iou(a, b) - _ratio(jnp.square(gap).sum(-1), diagonal)


def complete_iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Distance IoU minus a term for unlike aspect ratios.  arXiv:1911.08287."""
  angles = []
  for boxes in (a, b):
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    angles.append(jnp.arctan(_ratio(width, height)))
  unlike = 4 / math.pi**2 * jnp.square(angles[0] - angles[1])
  # As published, the trade-off is a constant for the gradient.
  weight = jax.lax.stop_gradient(_ratio(unlike, 1 - iou(a, b) + unlike))
  return distance_iou(a, b) - weight * unlike


def _overlap(a, b):
  """Areas of the intersection and of the union."""
  low = jnp.maximum(a[..., :2], b[..., :2])
  high = jnp.minimum(a[..., 2:], b[..., 2:])
  inside = jnp.maximum(high - low, 0).prod(-1)
  return inside, area(a) + area(b) - inside


def _hull(a, b):
  low = jnp.minimum(a[..., :2], b[..., :2])
  return jnp.concatenate([low, jnp.maximum(a[..., 2:], b[..., 2:])], -1)


def _ratio(above, below):
  """above / below, 0 with a gradient of 0 where `below` is not positive."""
  some = below > 0
  return jnp.where(some, above / jnp.where(some, below, 1), 0)


def to_cxcywh(boxes: jax.Array) -> jax.Array:
  """Centre, width and height."""
  low, high = boxes[..., :2], boxes[..., 2:]
  return jnp.concatenate([(low + high) / 2, high - low], -1)


def from_cxcywh(boxes_cxcywh: jax.Array) -> jax.Array:
  centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
  return jnp.concatenate([centre - half, centre + half], -1)


def to_xywh(boxes: jax.Array) -> jax.Array:
  """Left, top, width and height, as COCO writes them."""
  return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def from_xywh(boxes_xywh: jax.Array) -> jax.Array:
  return jnp.concatenate([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], -1)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
  """Boxes cut to a picture; `size` is [... 2] (height, width), broadcast against [... n 4]."""
  height, width = (jnp.asarray(size)[..., None, i] for i in (0, 1))
  return jnp.clip(boxes, 0, jnp.stack([width, height, width, height], -1))


def encode(boxes: jax.Array, anchors: jax.Array, weights=(1.0, 1.0, 1.0, 1.0)) -> jax.Array:
  """What a head regresses: shift over the anchor's size, log growth, each times its weight.

  Ren et al. 2015, arXiv:1506.01497, equation 2.  Boxes and anchors have positive sizes.
  """
  box, anchor = to_cxcywh(boxes), to_cxcywh(anchors)
  shift = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
  growth = jnp.log(box[..., 2:] / anchor[..., 2:])
  return jnp.concatenate([shift, growth], -1) * jnp.asarray(weights, box.dtype)


def decode(deltas: jax.Array, anchors: jax.Array, weights=(1.0, 1.0, 1.0, 1.0)) -> jax.Array:
  """The inverse of `encode`; growth ends at `MAX_LOG_GROWTH`."""
  anchor = to_cxcywh(anchors)
  deltas = deltas / jnp.asarray(weights, deltas.dtype)
  centre = deltas[..., :2] * anchor[..., 2:] + anchor[..., :2]
  size = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_GROWTH)) * anchor[..., 2:]
  return from_cxcywh(jnp.concatenate([centre, size], -1))
