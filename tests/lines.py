"""Lines of text, rendered."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif-Italic")
WORDS = (
  "available", "shakeshack", "london", "greenstead", "ballys", "coffee", "station", "2026",
  "exit42", "quick", "market", "velvet", "harbour", "jigsaw", "mountain", "north",
)  # fmt: skip


def font(name: str, size: int):
  """A font that comes with matplotlib."""
  from matplotlib import get_data_path

  return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}.ttf", size)


def render(text: str, seed: int) -> Image.Image:
  """A grey picture of the text, in a font, size and shade drawn by the seed, with noise."""
  rng = np.random.default_rng(seed)
  face = font(FONTS[rng.integers(len(FONTS))], int(rng.integers(22, 44)))
  left, top, right, bottom = face.getbbox(text)
  margin = int(rng.integers(3, 8))
  paper, ink = int(rng.integers(170, 256)), int(rng.integers(0, 70))
  image = Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
  ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, face)
  noise = rng.normal(0, 6, (image.height, image.width))
  return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def words(count: int) -> list[str]:
  """Rendered text is text: the words of WORDS, then pairs of them."""
  pairs = [a + b for a in WORDS for b in WORDS if a != b]
  return [*WORDS, *pairs][:count]
