"""Pictures: from the bytes of a file to RGB pixels, and the two views of them.

`decode` reads what people keep in folders, whatever it is called. The usual case, a JPEG in YCbCr,
is decoded by libjpeg-turbo without Pillow between (1.4 times as fast, equal to the last bit); all
other files by Pillow.

`train_view` is the random resized crop of Szegedy et al. 2014 (arXiv:1409.4842, part 6) and a flip.
It departs from torchvision's in two ways, for speed: what is shrunk is smoothed by three pixels in
each direction and then interpolated, instead of by an antialiased triangle, and a photograph of
many more pixels than the network takes is decoded at a half, quarter or eighth of its size, which
the JPEG format allows. On photographs shrunk 1.2 to 2 times, the first differs from the triangle by
0.3 to 1 grey levels on average, where OpenCV's averages by area differ by 0.5 to 2 and take three
times as long.
The evaluation view is `zoo.Preprocess.crop`, which departs in nothing.
"""

import dataclasses
import io
import math

import cv2
import numpy as np
from PIL import Image
import simplejpeg

from train.data.randaugment import LEVELS, randaugment

MAX_PIXELS = 2 * 89_478_485  # where Pillow too refuses: 1/2 GB of RGB from a file of any size
WHITE = (255, 255, 255, 255)
# EXIF orientations by how a stored picture is made upright: rows and columns are swapped in the
# first, then rows reversed in the second, then columns in the third.
SIDEWAYS = (5, 6, 7, 8)
BOTTOM_UP = (3, 4, 7, 8)
RIGHT_TO_LEFT = (2, 3, 6, 7)
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers of a JPEG that say its size


class UnreadableImage(ValueError):
  """The bytes are no picture that can be shown; the text says why, without naming the file."""


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training does to a picture; `None` in its place takes the middle square, unflipped."""

  scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area in the crop
  ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
  flip: float = 0.5  # probability of left for right
  operations: int = 0  # of RandAugment
  magnitude: float = 9.0  # of these, 0..30
  erase: float = 0.0  # probability that a box is filled with noise (arXiv:1708.04896)

  def __post_init__(self):
    faults = []
    if not 0 < self.scale[0] <= self.scale[1] <= 1:
      faults.append(f"scale must rise within 0..1, not {self.scale}")
    if not 0 < self.ratio[0] <= self.ratio[1]:
      faults.append(f"ratio must be positive and rise, not {self.ratio}")
    for name in ("flip", "erase"):
      if not 0 <= getattr(self, name) <= 1:
        faults.append(f"{name} is a probability, not {getattr(self, name)}")
    if self.operations < 0 or not 0 <= self.magnitude <= LEVELS:
      faults.append(f"RandAugment has operations of magnitude 0..{LEVELS}, not {self.magnitude}")
    if faults:
      raise ValueError("augmentation: " + "; ".join(faults))


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """What the header of a JPEG in YCbCr says, as most photographs are."""

  height: int  # as stored, before turning
  width: int
  orientation: int  # the EXIF tag, 1..8
  height_at: int | None = None  # where the header says it; None but in a whole baseline file

  @property
  def upright(self) -> tuple[int, int]:
    """(height, width) as it is looked at."""
    shape = (self.height, self.width)
    return shape[::-1] if self.orientation in SIDEWAYS else shape

  def stored_box(self, top: int, left: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Where a box of the upright picture lies in the stored one."""
    if self.orientation in BOTTOM_UP:
      top = self.upright[0] - top - height
    if self.orientation in RIGHT_TO_LEFT:
      left = self.upright[1] - left - width
    if self.orientation in SIDEWAYS:
      return left, top, width, height
    return top, left, height, width


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """[h w 3] uint8 RGB of an encoded picture, upright as its EXIF tag asks.

  Transparent pixels are laid over white, 16-bit ones are rounded to 8, of an animation or a
  document the first frame is taken. Colour profiles are ignored, as torchvision and timm do.

  Raises:
    UnreadableImage: empty, not a picture, cut short, or of more than `max_pixels`.
  """
  if (jpeg := read_jpeg_header(data, max_pixels)) is not None:
    try:
      return np.ascontiguousarray(_upright(simplejpeg.decode_jpeg(data), jpeg.orientation))
    except ValueError:
      pass  # damaged somewhere: Pillow tells what can be borne from what cannot
  return np.ascontiguousarray(_upright(*_open(data, max_pixels)))


def read_jpeg_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Jpeg | None:
  """None where Pillow has to look: another format, other colours, damaged, too many pixels."""
  if data[:2] != b"\xff\xd8":
    return None
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if colorspace != "YCbCr" or height * width > max_pixels:
      return None
    pixels_begin, frame = _segments(data)
    # A progressive file's later scans refine the first; one without its end mark was cut short.
    height_at = frame + 5 if data[frame + 1] == 0xC0 and data[-2:] == b"\xff\xd9" else None
    head = data[:pixels_begin]
    if b"Exif\0\0" not in head and b"tiff:Orientation" not in head:  # the latter is of XMP
      return Jpeg(height, width, 1, height_at)
    with Image.open(io.BytesIO(data)) as image:
      return Jpeg(height, width, _orientation(image), height_at)
  except (ValueError, OSError):
    return None


def _segments(data: bytes) -> tuple[int, int]:
  """Where the segments of a JPEG end that stand before its pixels, and where its frame begins."""
  at, frame = 2, 0
  while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
    if data[at + 1] in FRAMES:
      frame = at
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
  return at, frame


def _open(data: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
  """Pixels as they are stored, [h w 3] uint8, and the EXIF orientation, 1..8."""
  if not data:
    raise UnreadableImage("the file is empty")
  try:
    with Image.open(io.BytesIO(data)) as image:
      if math.prod(image.size) > max_pixels:
        raise UnreadableImage(
          f"{image.width} x {image.height} pixels are more than the {max_pixels:,} that are read; "
          "make it smaller"
        )
      image.load()
      return np.asarray(_rgb(image)), _orientation(image)
  except UnreadableImage:
    raise
  # What Pillow's readers raise on broken files is not documented and differs by format: OSError,
  # SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError ...
  except Exception as error:
    raise UnreadableImage(_reason(data, error)) from error


def _rgb(image: Image.Image) -> Image.Image:
  """Any mode of Pillow to RGB."""
  if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
      raise UnreadableImage("its pixels are 32-bit integers; save it with 8 or 16 bits")
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise UnreadableImage("its pixels are floating point, of no known range; save it with 8 bits")
  if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
  return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
  """The EXIF tag, 1..8: how the camera was held. A broken EXIF block counts as upright."""
  try:
    return int(image.getexif().get(0x0112, 1))
  except Exception:  # as undocumented as what reading pixels raises; pixels matter, tags do not
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """A view of stored pixels as they are to be looked at."""
  if orientation in SIDEWAYS:
    pixels = pixels.transpose(1, 0, 2)
  if orientation in BOTTOM_UP:
    pixels = pixels[::-1]
  if orientation in RIGHT_TO_LEFT:
    pixels = pixels[:, ::-1]
  return pixels


def _reason(data: bytes, error: Exception) -> str:
  head = data[:64].lstrip(b"\xef\xbb\xbf")
  if isinstance(error, Image.DecompressionBombError):
    return f"it claims more than the {MAX_PIXELS:,} pixels that are read; make it smaller"
  if isinstance(error, Image.UnidentifiedImageError):
    if b"\0" not in head and head.isascii():
      return f"it is text, not a picture: it begins with {head[:32].decode('ascii')!r}"
    return "it is in no picture format that is known here, or its beginning is damaged or cut off"
  if data[:4] == b"RIFF" and len(data) < (size := int.from_bytes(data[4:8], "little") + 8):
    return f"it is cut short ({len(data):,} bytes of {size:,})"  # Pillow's words for it are cryptic
  if "truncated" in str(error).lower():
    return f"it is cut short ({error})"
  return f"it is damaged ({type(error).__name__}: {error})"


def crop_box(
  rng: np.random.Generator, height: int, width: int, augment: Augment | None
) -> tuple[int, int, int, int]:
  """(top, left, height, width) of a random crop as in the GoogLeNet paper, in whole pixels."""
  if augment is None:
    low = high = 1.0
  else:
    low, high = augment.ratio
    for _ in range(10):  # as many tries as torchvision's RandomResizedCrop makes
      area = height * width * rng.uniform(*augment.scale)
      ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
  # The largest in the middle whose ratio is allowed.
  w, h = min(width, max(1, round(height * high))), min(height, max(1, round(width / low)))
  return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """[h w 3] -> [size size 3] uint8: bilinear, of what is smoothed before where it shrinks.

  Smoothing by (w, 1 - 2w, w) adds 2w to the variance of a bilinear interpolation, 1/6 of a pixel;
  that of the triangle which spans as many pixels as become one, `ratio`, is ratio**2 / 6. Where
  three pixels are too few for that, pixels are averaged by area.
  """
  if image.shape[:2] == (size, size):
    return image
  ratios = [max(side / size, 1) for side in image.shape[:2]]
  if max(ratios) > 2:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
  if max(ratios) > 1:
    weights = [(ratio**2 - 1) / 12 for ratio in ratios]
    down, across = (np.array([w, 1 - 2 * w, w], np.float32) for w in weights)
    image = cv2.sepFilter2D(image, -1, across, down)
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def train_view(
  data: bytes, rng: np.random.Generator, size: int, augment: Augment | None
) -> np.ndarray:
  """[size size 3] uint8: a random crop of an encoded picture, resized, perhaps flipped.

  Raises:
    UnreadableImage: as `decode`.
  """
  jpeg = read_jpeg_header(data)
  if jpeg is None:
    image = decode(data)
    top, left, height, width = crop_box(rng, *image.shape[:2], augment)
    view = resize(image[top : top + height, left : left + width], size)
  else:  # cut and resized as it is stored; the crop moves to whole pixels of the reduced picture
    box = jpeg.stored_box(*crop_box(rng, *jpeg.upright, augment))
    image, factor = _decode_reduced(data, jpeg, min(box[2:]) / size, box[0] + box[2])
    top, left, height, width = (v // factor for v in box)
    view = resize(image[top : top + height, left : left + width], size)
    view = _upright(view, jpeg.orientation)
  if augment is not None:
    if rng.random() < augment.flip:
      view = cv2.flip(view, 1)
    if augment.operations:
      view = randaugment(
        np.ascontiguousarray(view), rng, count=augment.operations, magnitude=augment.magnitude
      )
    if augment.erase and rng.random() < augment.erase:
      view = erased(view, rng)
  return np.ascontiguousarray(view)


def erased(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """`view` with a box of 2 to 33 % of it, of a ratio of 0.3 to 3.3, filled with noise."""
  height, width = view.shape[:2]
  for _ in range(10):  # as many tries as torchvision's RandomErasing makes
    area = height * width * rng.uniform(0.02, 1 / 3)
    ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if h < height and w < width:
      top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
      view = view.copy()
      view[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
      return view
  return view


def _decode_reduced(data: bytes, jpeg: Jpeg, limit: float, bottom: int) -> tuple[np.ndarray, int]:
  """Stored pixels at 1/factor of the size, down to row `bottom` of the full size or further, and
  the factor: 1, 2, 4 or 8, `limit` at most.
  """
  factor = max(f for f in (1, 2, 4, 8) if f <= max(limit, 1))
  # Colour is interpolated between rows: the last one would miss the next.
  rows, shown, strict = bottom + 2 * factor, data, True
  if jpeg.height_at is not None and rows < jpeg.height:
    shown, strict = _cut(data, jpeg.height_at, rows), False
  else:
    rows = jpeg.height
  height, width = math.ceil(rows / factor), math.ceil(jpeg.width / factor)
  try:
    if factor == 1:
      return simplejpeg.decode_jpeg(shown, strict=strict), 1
    # Of the sizes that libjpeg offers, the least that is not below these: just these.
    image = simplejpeg.decode_jpeg(shown, min_height=height, min_width=width, strict=strict)
    return image, factor
  except ValueError:
    return _open(data, MAX_PIXELS)[0], 1  # damaged: see `decode`


def _cut(data: bytes, height_at: int, rows: int) -> bytes:
  """A JPEG that says to have `rows` rows: its decoder stops there, and what is more is a warning.

  Most of the time goes into the entropy code, which has to be read from the top.
  """
  return data[:height_at] + rows.to_bytes(2, "big") + data[height_at + 2 :]
