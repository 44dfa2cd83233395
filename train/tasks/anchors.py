"""What the losses of detectors with anchors share, for one picture's padded boxes.

"boxes" is [n 4] in pixels of the network's input and "box_label" [n], -1 for padding; the number of
objects changes no shape.
"""

import math

import jax
import jax.numpy as jnp

from zoo.ops import boxes as box_ops


def overlap(objects: jax.Array, places: jax.Array):
  """What `zoo.ops.match` asks: the IoU of an object, by its number, with every place [n]."""
  objects = jnp.asarray(objects)
  return lambda i: box_ops.iou(objects[i], places)


def matched(index: jax.Array, objects: jax.Array, anchors: jax.Array, coder=(1.0,) * 4):
  """[n 4]: what a head should regress for anchors that answer for `index` of `objects`.

  Where `index` is negative it is 0.
  """
  positive = index >= 0
  own = jnp.where(positive[:, None], objects[jnp.maximum(index, 0)], anchors)
  some = (anchors[:, 2:] > anchors[:, :2]).all(-1, keepdims=True)
  square = jnp.array([0.0, 0.0, 1.0, 1.0])  # for padding, which has no logarithm
  wanted = box_ops.encode(jnp.where(some, own, square), jnp.where(some, anchors, square), coder)
  return jnp.where(positive[:, None], wanted, 0)


def labels(index: jax.Array, label: jax.Array) -> jax.Array:
  """[n] the class of each anchor's object counted from 1, 0 where it has none."""
  return jnp.where(index >= 0, label[jnp.maximum(index, 0)] + 1, 0)


def smooth_l1(ours: jax.Array, theirs: jax.Array, beta: float) -> jax.Array:
  """|x| - beta/2, and x**2 / (2 beta) below beta."""
  gap = jnp.abs(ours - theirs)
  return jnp.where(gap < beta, gap**2 / (2 * beta), gap - beta / 2)


def over(mask: jax.Array, values: jax.Array) -> jax.Array:
  """The sum over the rows of a mask; others pass no gradient, whatever they hold."""
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  return jnp.where(mask, values, 0).sum()


def rank(measured) -> tuple[float, float]:
  """Average precision first, where it was measured, then the loss."""
  found = measured.get("ap", 0.0), -measured["loss"]
  return tuple(-math.inf if math.isnan(value) else value for value in found)
