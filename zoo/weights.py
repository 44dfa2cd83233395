"""Published checkpoints: what they are, how their pixels are prepared, how they enter a model."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VOC = (  # classes of its segmentation
  "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
  "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
  "train", "tvmonitor",
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # grey of RGB, ITU-R 601, as PIL's and OpenCV's


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """From a photograph to a network's input: resize, crop the middle, normalise."""

  size: int = 224  # pixels of the square crop
  resize: int = 256  # pixels of the shorter side before the crop
  mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels in 0..1, in `channels` order
  std: tuple[float, ...] = IMAGENET_STD
  interpolation: str = "bilinear"  # of PIL, antialiased: "bilinear" or "bicubic"
  channels: str = "RGB"  # or "BGR", or "L" for grey
  squash: bool = False  # resize both sides to `resize`, whatever the shape
  letterbox: bool = False  # fit the whole picture into the square; grey around it, as in darknet
  # Of a detector that sees whole pictures of any shape: their shorter side is `size`, or less where
  # the longer one would be more than this.  Such pictures are made by `zoo.detect.found.seen`.
  longest: int | None = None

  @classmethod
  def cropped(cls, size: int, share: float, interpolation="bilinear", **fields) -> "Preprocess":
    """As timm states it: the crop of `size` pixels is `share` of the shorter side."""
    return cls(size, int(size / share), interpolation=interpolation, **fields)

  @classmethod
  def caffe(cls, *mean: float, scale: float = 1.0, **fields) -> "Preprocess":
    """As Caffe states it: pixels of 0..255 in the order BGR, minus the mean, times `scale`."""
    mean = tuple(value / 255 for value in mean or (104, 117, 123))
    return cls(mean=mean, std=(1 / scale / 255,) * 3, channels="BGR", **fields)

  def crop(self, image) -> np.ndarray:
    """[size size 3] uint8 of a `PIL.Image` in mode RGB: the evaluation view."""
    image = self.resized(image)
    # A crop beyond the picture is filled with black; half pixels go where torchvision's CenterCrop
    # lets them go: to the even side when cutting, to the right and below when filling.
    spare = (side - self.size for side in image.size)
    return self.cut(image, *(round(n / 2) if n >= 0 else -(-n // 2) for n in spare))

  def corners(self, image) -> np.ndarray:
    """[5 size size 3] uint8: the four corners, as AlexNet's authors took them, and `crop`."""
    whole = self.resized(image)
    right, below = (max(side - self.size, 0) for side in whole.size)
    places = ((0, 0), (right, 0), (0, below), (right, below))
    return np.stack([*(self.cut(whole, *place) for place in places), self.crop(image)])

  def cut(self, image, left: int, top: int) -> np.ndarray:
    return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

  def resized(self, image):
    """The whole picture at the size that crops are taken from."""
    from PIL import Image

    if self.letterbox:
      return Image.fromarray(letterboxed(np.asarray(image), self.size))
    width, height = image.size
    if self.squash:
      shape = (self.resize, self.resize)
    elif width <= height:  # the longer side is cut, not rounded, as torchvision does
      shape = (self.resize, int(self.resize * height / width))
    else:
      shape = (int(self.resize * width / height), self.resize)
    if shape == image.size:
      return image
    return image.resize(shape, getattr(Image.Resampling, self.interpolation.upper()))

  def normalize(self, image, dtype=jnp.float32):
    """[b h w 3] uint8 RGB -> [b h w 3], or 1 if grey, as the network wants it, on the device."""
    if self.channels == "BGR":
      image = image[..., ::-1]
    elif self.channels == "L":
      image = jnp.round(image.astype(jnp.float32) @ jnp.asarray(LUMA))[..., None]
    mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)

  def at(self, size: int) -> "Preprocess":
    """The same for another input size, with the same share of the picture in the crop."""
    resize = round(self.resize * size / self.size)
    longest = self.longest and round(self.longest * size / self.size)
    return dataclasses.replace(self, size=size, resize=resize, longest=longest)


@dataclasses.dataclass(frozen=True)
class Line:
  """From a picture of one line of text to a reader's input, of a fixed height."""

  height: int = 32
  width: int | None = None  # of every line; None: as wide as the picture at that height
  mean: tuple[float, ...] = (0.5,)  # of pixels in 0..1; one value asks for grey, three for RGB
  std: tuple[float, ...] = (0.5,)
  interpolation: str = "bilinear"  # of PIL, antialiased
  round_up: bool = False  # a width that is no whole number of pixels; else it is cut
  multiple: int = 1  # lines are filled up to a multiple of so many pixels, with their last column

  @property
  def size(self) -> tuple[int, int]:
    """Of a line of ordinary length, to trace a model with."""
    return self.height, self.width or 4 * self.height

  def crop(self, image) -> np.ndarray:
    """[height w channels] uint8 of a `PIL.Image` of one line."""
    from PIL import Image

    wide = self.height * image.size[0] / image.size[1]
    width = self.width or max(1, math.ceil(wide) if self.round_up else int(wide))
    image = image.convert("L" if len(self.mean) == 1 else "RGB")
    image = image.resize(
      (width, self.height), getattr(Image.Resampling, self.interpolation.upper())
    )
    return np.asarray(image).reshape(self.height, width, len(self.mean))

  def stack(self, lines: Sequence[np.ndarray]) -> np.ndarray:
    """[b height w channels] of lines as `crop` gives them, each filled up to the widest."""
    width = -(max(line.shape[1] for line in lines) // -self.multiple) * self.multiple
    return np.stack([np.pad(a, ((0, 0), (0, width - a.shape[1]), (0, 0)), "edge") for a in lines])

  def normalize(self, image, dtype=jnp.float32):
    """[b h w c] uint8 -> [b h w c] as the network wants it. Runs on the device."""
    mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def letterboxed(image: np.ndarray, size: int) -> np.ndarray:
  """[size size 3] uint8: the picture, scaled by darknet's own rule, in the middle of grey.

  Its longer side becomes `size`; bilinear between corners that stay corners, never antialiased.
  """
  height, width = image.shape[:2]
  shape = (size, width * size // height) if width < height else (height * size // width, size)
  out, inner = np.full((size, size, 3), 255 / 2), image
  for axis, new in enumerate(shape):
    inner = between(inner, axis, np.arange(new) * ((inner.shape[axis] - 1) / max(new - 1, 1)))
  top, left = ((size - n) // 2 for n in shape)
  out[top : top + shape[0], left : left + shape[1]] = inner
  return np.round(out).astype(np.uint8)


def between(image: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
  """The picture [h w c] at places `at` [n] along an axis, linear between its pixels."""
  low = np.minimum(at.astype(int), image.shape[axis] - 2)
  part = (at - low).reshape((-1, *(1,) * (2 - axis)))
  return (1 - part) * image.take(low, axis) + part * image.take(low + 1, axis)


def in_channels(preprocess: Preprocess | Line) -> int:
  return len(preprocess.mean)


@dataclasses.dataclass(frozen=True)
class Weights:
  """One published checkpoint. Facts only; how its names map stands in `convert.rules`."""

  variant: str
  dialect: str  # which names and layouts the file speaks: "torchvision", "timm", "keras" ...
  where: str  # as in `zoo.fetch`
  sha256: str  # of the file, or its beginning as far as it is published
  license: str  # as published, or "not stated"
  preprocess: Preprocess | Line = Preprocess()
  top1: float | None = None  # published ImageNet accuracy in percent
  top5: float | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what it changes there
  classes: tuple[str, ...] = ()  # in order of the logits, where they are not ImageNet's
  # Files that the format wants in the same folder, such as darknet's cfg: where -> sha256.
  beside: Mapping[str, str] = dataclasses.field(default_factory=dict)


def imagenet_classes(num_classes: int = 1000) -> tuple[str, ...]:
  """Names of the ImageNet-1k classes in order of the logits; of 1001 the first is background.

  From torchvision 0.28, `ResNet18_Weights.IMAGENET1K_V1.meta["categories"]`; in that list "crane"
  and "maillot" are already told from their namesakes.
  """
  names = (Path(__file__).parent / "classify/imagenet.txt").read_text("utf-8").splitlines()
  return tuple(["background"] * (num_classes - len(names)) + names)


def not_finite(variables) -> list[str]:
  """Says of each array that holds NaN or infinite numbers how many they are."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  bad = {path: sum(map(_bad, np.atleast_2d(array))) for path, array in flat.items()}
  return [f"{count} in {path}" for path, count in bad.items() if count]


def _bad(row: np.ndarray) -> int:
  """Of a part at a time, as what is said of each number takes memory too."""
  return row.size - int(np.isfinite(row).sum())


def graft(variables, target, fresh, head: str, in_channels: tuple[int, int] = (3, 3)) -> dict:
  """Variables of `target`'s structure: `variables` where they fit, a fresh head where not.

  Args:
    variables: pretrained arrays.
    target: the new model's variables as ShapeDtypeStruct.
    fresh: function of no arguments returning fresh arrays for paths asked for, {path: array}.
    head: regular expression of the top-level modules that may be new.
    in_channels: of the images that `variables` were made for, and of those to come.

  Another number of input channels changes the first kernel: its input channels are summed to one,
  or repeated and rescaled so that a grey picture still gives the same sums.

  Raises:
    ValueError: lists every other array that does not fit.
  """
  have = traverse_util.flatten_dict(variables, sep="/")
  want = traverse_util.flatten_dict(target, sep="/")
  out, new, faults = {}, [], []
  for path, spec in want.items():
    array = have.get(path)
    is_head = re.fullmatch(head, path.split("/")[1]) is not None
    if array is not None and array.shape == spec.shape:
      out[path] = array
    elif is_head:
      new.append(path)
    elif array is None:
      faults.append(f"missing {path} {spec.shape}")
    elif array.ndim == 4 and (
      array.shape == (*spec.shape[:2], in_channels[0], spec.shape[3])
      and spec.shape[2] == in_channels[1]
    ):
      out[path] = adapt_channels(array, in_channels[1])
    else:
      faults.append(f"shape   {path} {spec.shape} <- {array.shape}")
  for path in have.keys() - want.keys():
    if re.fullmatch(head, path.split("/")[1]) is None:
      faults.append(f"unused  {path} {have[path].shape}")
  if faults:
    raise ValueError("the weights do not fit the model:\n  " + "\n  ".join(sorted(faults)))
  if new:
    arrays = fresh(new)
    out |= {path: arrays[path] for path in new}
  return traverse_util.unflatten_dict(out, sep="/")


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """[h w c f] -> [h w channels f]: summed to one, or repeated and rescaled."""
  have = kernel.shape[2]
  if channels == 1:
    return np.asarray(kernel).sum(2, keepdims=True)
  index = np.arange(channels) % have
  return np.asarray(kernel)[:, :, index] * (have / channels)
