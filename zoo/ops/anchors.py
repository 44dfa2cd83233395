"""Prior boxes of detectors, laid out on a grid: x0 y0 x1 y1 in pixels, as NumPy constants.

The order is that of a head's map read row by row: y, then x, then the anchors of one cell.
"""

from collections.abc import Sequence
import math

import numpy as np


def centred(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
  """[len(ratios)*len(sizes) 4], ratio by ratio, around 0; a ratio is height over width.

  Each has the area size**2.  Rounded to whole pixels (halves to even), as the original code does.
  """
  tall = np.sqrt(np.asarray(ratios, np.float32))
  sizes = np.asarray(sizes, np.float32)
  heights = (tall[:, None] * sizes[None]).ravel()
  widths = ((1 / tall)[:, None] * sizes[None]).ravel()
  return np.round(np.stack([-widths, -heights, widths, heights], -1) / 2)


def on_grid(boxes: np.ndarray, grid: tuple[int, int], stride: tuple[float, float], offset=0.0):
  """`boxes` [a 4] repeated at every cell's place: [grid_h*grid_w*a 4].

  Args:
    boxes: around 0.
    grid: cells (down, across).
    stride: pixels between cells (down, across).
    offset: of the first cell's place, in strides: 0 its corner, 0.5 its middle.
  """
  y, x = ((np.arange(n, dtype=np.float32) + offset) * s for n, s in zip(grid, stride))
  y, x = np.meshgrid(y, x, indexing="ij")
  shift = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
  return (shift + boxes[None]).reshape(-1, 4).astype(np.float32)


def default_shapes(small: float, large: float, ratios: Sequence[float]) -> np.ndarray:
  """[2+2*len(ratios) 2] (width, height) of SSD's boxes of one map, in the unit of `small`.

  Liu et al. 2015, arXiv:1512.02325: a square of the map's scale, one between it and the next map's
  `large`, then each ratio and its inverse.
  """
  between = math.sqrt(small * large)
  shapes = [(small, small), (between, between)]
  for ratio in ratios:
    wide, narrow = small * math.sqrt(ratio), small / math.sqrt(ratio)
    shapes += [(wide, narrow), (narrow, wide)]
  return np.array(shapes, np.float64)
