"""Fixed-size pieces of feature maps under boxes (RoIAlign, RoIPool), and masks put back in place.

Boxes pass no gradient, as in the original detectors; the maps do.
"""

from collections.abc import Sequence
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp

from zoo.ops import boxes as box_ops

Pair = tuple[int, int]
BOXES = 16  # whose pieces are cut at once


def roi_align(
  features: Sequence[jax.Array],
  boxes: jax.Array,
  strides: Sequence[float],
  *,
  size: Pair,
  level: jax.Array | None = None,
  samples: int = 2,
  aligned: bool = False,
) -> jax.Array:
  """Bilinear samples averaged in each bin: [b r size_h size_w c].  He et al., arXiv:1703.06870.

  Args:
    features: one map [b h w c] for each stride.
    boxes: [b r 4] in pixels of the network's input.
    strides: pixels of one step in each map.
    size: bins (down, across).
    level: [b r] which map each box reads; None where there is one map.
    samples: along each side of a bin.
    aligned: pixel centres lie at half steps; torchvision's detectors put them at whole ones.
  """
  boxes = lax.stop_gradient(boxes.astype(jnp.float32))
  b, _, c = *boxes.shape[:2], features[0].shape[-1]
  table = jnp.concatenate([f.reshape(-1, c) for f in features])
  level = jnp.zeros(boxes.shape[:2], jnp.int32) if level is None else level
  start, rows = 0, []
  for f in features:
    rows.append((start, f.shape[1], f.shape[2]))
    start += f.shape[0] * f.shape[1] * f.shape[2]
  start, height, width = (jnp.array(column)[level] for column in zip(*rows))
  start = start + jnp.arange(b)[:, None] * height * width
  scaled = boxes / jnp.asarray(strides, jnp.float32)[level][..., None] - 0.5 * aligned
  y, down = _taps(scaled[..., 1], scaled[..., 3], height, size[0], samples, aligned)
  x, across = _taps(scaled[..., 0], scaled[..., 2], width, size[1], samples, aligned)
  y = start[..., None, None] + y * width[..., None, None]
  return _weighted(table, (y, down), (x, across))


@jax.custom_jvp
def _weighted(table, y, x):
  """Sums of the table's rows [cells c] under the taps of y and x, by both weights: [b r h w c].

  y and x are (index, weight) [b r bins taps]; a cell is at the sum of its indices.
  """
  return lax.platform_dependent(
    table, y, x, cpu=partial(_box_by_box, _added), default=partial(_box_by_box, _gathered)
  )


@_weighted.defjvp
def _(primals, tangents):
  _, y, x = primals
  return _weighted(*primals), _box_by_box(_gathered, tangents[0], y, x)


def _box_by_box(form, table, y, x):
  boxes = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (y, x))
  out = lax.map(partial(form, table), boxes, batch_size=BOXES)
  return out.reshape(*y[0].shape[:2], *out.shape[1:])


def _gathered(table, box):
  """One box: all rows under its taps, and what two products make of them."""
  (row, down), (column, across) = box
  near = table[row[:, :, None, None] + column]  # [h taps w taps c]
  down, across = down.astype(table.dtype), across.astype(table.dtype)
  return jnp.einsum("htwuc,ht,wu->hwc", near, down, across)


def _added(table, box):
  """The same tap by tap: XLA:CPU makes one loop of it, and copies no row."""
  (row, down), (column, across) = ([a.T for a in axis] for axis in box)  # taps first
  wide = jnp.promote_types(table.dtype, jnp.float32)  # sums of halves would be rounded
  terms = [
    table[row[t][:, None] + column[u]].astype(wide) * (down[t][:, None] * across[u])[..., None]
    for t in range(len(row))
    for u in range(len(column))
  ]
  return sum(terms).astype(table.dtype)


def _taps(low, high, length, bins: int, samples: int, aligned: bool):
  """Along one axis: (index, weight) [b r bins 2*samples] of the cells that each bin averages."""
  extent = high - low
  extent = extent if aligned else jnp.maximum(extent, 1)
  places = (jnp.arange(bins * samples) + 0.5) / samples  # in bins
  at = low[..., None] + places * (extent / bins)[..., None]
  length = length[..., None]
  inside = (at >= -1) & (at <= length)
  at = jnp.maximum(at, 0)
  first = jnp.minimum(jnp.floor(at).astype(jnp.int32), length - 1)
  second = jnp.minimum(first + 1, length - 1)
  part = jnp.where(first == length - 1, 0, at - first)
  weight = jnp.where(inside[..., None], jnp.stack([1 - part, part], -1), 0) / samples
  index = jnp.stack([first, second], -1)
  shape = (*low.shape, bins, 2 * samples)
  return index.reshape(shape), weight.reshape(shape)


def pyramid_level(boxes: jax.Array, lowest: int, highest: int) -> jax.Array:
  """[...] int32 from 0: which map of levels `lowest` to `highest` a box reads.

  Lin et al. 2016, arXiv:1612.03144, equation 1: a box of 224 pixels belongs to level 4.
  """
  side = jnp.sqrt(box_ops.area(boxes))
  level = jnp.floor(4 + jnp.log2(side / 224) + 1e-6)
  return jnp.clip(level, lowest, highest).astype(jnp.int32) - lowest


def roi_pool(features: jax.Array, boxes: jax.Array, stride: float, *, size: Pair) -> jax.Array:
  """The maximum of each bin, whose borders are whole cells: [b r size_h size_w c].

  Girshick 2015, arXiv:1504.08083.  Bins without a cell are 0.

  Args:
    features: [b h w c].
    boxes: [b r 4] in pixels of the network's input.
    stride: pixels of one step of the map.
    size: bins (down, across).
  """
  cells = jnp.floor(lax.stop_gradient(boxes) / stride + 0.5)
  low = jnp.finfo(features.dtype).min

  def one(args):
    which, cell = args
    rows = _bins(cell[1], cell[3], features.shape[1], size[0])
    columns = _bins(cell[0], cell[2], features.shape[2], size[1])
    image = features[which]
    by_row = jnp.where(rows[:, :, None, None], image, low).max(1)  # [size_h w c]
    out = jnp.where(columns[None, :, :, None], by_row[:, None], low).max(2)
    return jnp.where(rows.any(1)[:, None, None] & columns.any(1)[None, :, None], out, 0)

  which = jnp.repeat(jnp.arange(boxes.shape[0]), boxes.shape[1])
  out = lax.map(one, (which, cells.reshape(-1, 4)))
  return out.reshape(*boxes.shape[:2], *out.shape[1:])


def _bins(first, last, length: int, bins: int):
  """[bins length] bool: which cells each bin covers."""
  extent = jnp.maximum(last - first + 1, 1) / bins
  begin = first + jnp.floor(jnp.arange(bins) * extent)
  end = first + jnp.ceil(jnp.arange(1, bins + 1) * extent)
  cell = jnp.arange(length)
  return (cell >= begin[:, None]) & (cell < end[:, None])


def window(objects, cells: int):
  """Where bitmaps [cells cells] of objects lie: (first pixel, pixels of a cell), [... 2] of x, y.

  A cell is a pixel where the object fits into the bitmap; where it is larger along an axis, the
  bitmap spans the pixels that it touches.

  Args:
    objects: boxes [... 4] in pixels, of NumPy or JAX.
  """
  first = objects[..., :2] // 1
  return first, ((-(-objects[..., 2:] // 1) - first) / cells).clip(1)


def mask_targets(
  bitmaps: jax.Array, objects: jax.Array, boxes: jax.Array, *, size: int, canvas: Pair
) -> jax.Array:
  """What a mask's head should answer for boxes: [n size size] in 0..1.

  RoIAlign of each object's mask, as torchvision makes them: so many samples in a bin that none is
  farther than a pixel from the next.

  Args:
    bitmaps: [n c c] in 0..255, of each box's object, within its `window`; elsewhere it is not.
    objects: [n 4], in pixels.
    boxes: [n 4], in pixels.
    size: bins, down and across.
    canvas: (height, width) in pixels, which no box leaves.
  """
  cells = bitmaps.shape[-1]
  first, scale = window(objects, cells)
  y, x = (
    _shares(boxes[:, i], boxes[:, i + 2], first[:, i], scale[:, i], cells, size, canvas[1 - i])
    for i in (1, 0)
  )
  return jnp.einsum("nyi,nij,nxj->nyx", y, bitmaps.astype(jnp.float32) / 255, x)


def _shares(low, high, first, scale, cells: int, bins: int, length: int):
  """[n bins cells]: what each bin along one axis takes of a bitmap's cells."""
  extent = jnp.maximum(high - low, 1)[:, None, None]
  count = jnp.ceil(extent / bins - 1e-5)  # XLA multiplies by 1 / bins, and 42 / 7 is more than 6
  sample = jnp.arange(-(-length // bins))
  at = (jnp.arange(bins)[:, None] + (sample + 0.5) / count) * (extent / bins) + low[:, None, None]
  taken = (sample < count) & (at >= -1) & (at <= length)
  cell = (jnp.clip(at, 0, length - 1) - first[:, None, None] + 0.5) / scale[:, None, None] - 0.5
  weight = jnp.maximum(1 - jnp.abs(cell[..., None] - jnp.arange(cells)), 0)
  return jnp.where(taken[..., None], weight, 0).sum(2) / count


def paste_masks(masks: jax.Array, boxes: jax.Array, size: Pair) -> jax.Array:
  """Masks [n m m] of boxes [n 4] in a picture of `size`: [n size_h size_w], 0 outside.

  As torchvision pastes: a border of zeros, the box grown with it, its corners cut to whole pixels,
  bilinear between.
  """
  side = masks.shape[-1] + 2
  masks = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))
  form = box_ops.to_cxcywh(boxes)
  grown = box_ops.from_cxcywh(form.at[:, 2:].multiply(side / (side - 2)))
  corner = jnp.trunc(grown)
  y, x = (_spread(corner[:, i], corner[:, i + 2], side, size[1 - i]) for i in (1, 0))
  return jnp.einsum("nyi,nij,nxj->nyx", y, masks, x)


def _spread(low, high, side: int, length: int):
  """[n length side]: what each pixel along one axis takes of a mask's cells."""
  extent = jnp.maximum(high - low + 1, 1)
  at = jnp.arange(length) - low[:, None]
  inside = (at >= 0) & (at < extent[:, None])
  source = jnp.clip((at + 0.5) * side / extent[:, None] - 0.5, 0, side - 1)
  weight = jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(side)), 0)
  return jnp.where(inside[..., None], weight, 0)
