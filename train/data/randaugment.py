"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on pixels, as torchvision states it.

One magnitude for all operations; uncovered pixels take ImageNet's mean colour, as in timm.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)
LEVELS = 30  # magnitudes are 0..30
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float):
  """Each pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""
  return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), fillcolor=FILL)


def _signed(largest: float, operation: Operation) -> tuple[bool, Operation]:
  """Of strength -1..1, both directions alike."""
  return True, lambda image, strength: operation(image, largest * strength)


def _plain(operation: Operation) -> tuple[bool, Operation]:
  """Of strength 0..1, or without any."""
  return False, operation


def _enhanced(kind) -> tuple[bool, Operation]:
  return _signed(0.9, lambda image, v: kind(image).enhance(1 + v))


# {name: (whether the sign of the strength is drawn, (image, strength) -> image)}
OPERATIONS: dict[str, tuple[bool, Operation]] = {
  "identity": _plain(lambda image, _: image),
  "shear_x": _signed(0.3, lambda image, v: _affine(image, 1, v, 0, 0, 1, 0)),
  "shear_y": _signed(0.3, lambda image, v: _affine(image, 1, 0, 0, v, 1, 0)),
  "translate_x": _signed(150 / 331, lambda image, v: _affine(
    image, 1, 0, -int(v * image.width), 0, 1, 0)),
  "translate_y": _signed(150 / 331, lambda image, v: _affine(
    image, 1, 0, 0, 0, 1, -int(v * image.height))),
  "rotate": _signed(30, lambda image, v: image.rotate(v, fillcolor=FILL)),
  "brightness": _enhanced(ImageEnhance.Brightness),
  "color": _enhanced(ImageEnhance.Color),
  "contrast": _enhanced(ImageEnhance.Contrast),
  "sharpness": _enhanced(ImageEnhance.Sharpness),
  "posterize": _plain(lambda image, v: ImageOps.posterize(image, 8 - round(4 * v))),
  "solarize": _plain(lambda image, v: ImageOps.solarize(image, 255 * (1 - v))),
  "autocontrast": _plain(lambda image, _: ImageOps.autocontrast(image)),
  "equalize": _plain(lambda image, _: ImageOps.equalize(image)),
}  # fmt: skip


def randaugment(
  pixels: np.ndarray, rng: np.random.Generator, *, count: int, magnitude: float
) -> np.ndarray:
  """[h w 3] uint8 after `count` operations, drawn with replacement, of `magnitude` 0..LEVELS."""
  image, names = Image.fromarray(pixels), list(OPERATIONS)
  for _ in range(count):
    signed, operation = OPERATIONS[names[rng.integers(len(names))]]
    strength = magnitude / LEVELS
    if signed and rng.random() < 0.5:
      strength = -strength
    image = operation(image, strength)
  return np.asarray(image)
