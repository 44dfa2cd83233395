"""Lines of text: folders with a gt.txt, and lines that are rendered as they are asked for."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from train.data import threaded, transforms
from zoo.text import charset


class Lines(Protocol):
  keys: Sequence[str]  # a name for each line
  texts: Sequence[str]

  def picture(self, index: int) -> Image.Image:
    """Of one line."""


@dataclasses.dataclass(frozen=True)
class Folder:
  """Pictures and what is written on them."""

  root: Path
  keys: tuple[str, ...]
  texts: tuple[str, ...]

  def picture(self, index: int) -> Image.Image:
    path = self.root / self.keys[index]
    try:
      return Image.fromarray(transforms.decode(path.read_bytes()))
    except ValueError as error:
      raise ValueError(f"cannot read {path}: {error}") from error


def folder(root: Path, known: Sequence[str]) -> Folder:
  """The lines of `root`/gt.txt, each "FILE<tab>TEXT" (or a space, where there is no tab).

  Raises:
    ValueError: lists lines without a text, pictures that are not there, and characters that are
      not among the classes `known`.
    FileNotFoundError: there is no gt.txt.
  """
  index, keys, texts, faults = Path(root) / "gt.txt", [], [], []
  if not index.exists():
    raise FileNotFoundError(f"no {index}; it has a line FILE<tab>TEXT for each picture of {root}")
  for number, line in enumerate(index.read_text("utf-8-sig").splitlines(), start=1):
    if not line.strip():
      continue
    key, _, text = line.partition("\t" if "\t" in line else " ")
    strange = sorted(set(text) - set(known))
    if not text:
      faults.append(f"line {number} has no text: {line[:60]!r}")
    elif not (index.parent / key).exists():
      faults.append(f"line {number}: there is no {index.parent / key}")
    elif strange:
      faults.append(f"line {number}: no class for {' '.join(map(repr, strange))} (--characters)")
    keys.append(key)
    texts.append(text)
  if faults:
    more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
    raise ValueError(f"{index} cannot be used:\n  " + "\n  ".join(faults[:20]) + more)
  return Folder(index.parent, tuple(keys), tuple(texts))


@dataclasses.dataclass(frozen=True)
class Rendered:
  """Lines that are drawn when they are asked for; the same seed draws the same ones."""

  fonts: tuple[Path, ...]
  words: tuple[str, ...]
  count: int
  seed: int
  degrees: float = 2.0  # of rotation, at most
  blur: float = 1.2  # pixels, at most
  noise: float = 12.0  # grey levels, at most

  @cached_property
  def keys(self) -> tuple[str, ...]:
    return tuple(f"{i}" for i in range(self.count))

  @cached_property
  def texts(self) -> tuple[str, ...]:
    places = np.random.default_rng((self.seed, 0)).integers(len(self.words), size=self.count)
    return tuple(self.words[i] for i in places)

  def picture(self, index: int) -> Image.Image:
    rng = np.random.default_rng((self.seed, 1, index))
    path = self.fonts[rng.integers(len(self.fonts))]
    font = ImageFont.truetype(str(path), int(rng.integers(20, 44)))
    text, margin = self.texts[index], rng.integers(2, 9, 4)
    left, top, right, bottom = font.getbbox(text)
    paper, ink = rng.integers(130, 256), rng.integers(0, 90)
    size = (int(right - left + margin[0] + margin[2]), int(bottom - top + margin[1] + margin[3]))
    image = Image.new("L", size, int(paper))
    place = (int(margin[0] - left), int(margin[1] - top))
    ImageDraw.Draw(image).text(place, text, int(ink), font)
    degrees = rng.uniform(-self.degrees, self.degrees)
    image = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=int(paper))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, self.blur)))
    pixels = np.asarray(image, np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, self.noise), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def made_up(characters: str, count: int, seed: int) -> tuple[str, ...]:
  """So many words of 3 to 9 characters, of no language."""
  rng = np.random.default_rng((seed, 2))
  letters = np.array(list(characters))
  return tuple("".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(count))


def train_batches(
  lines: Lines, view: Callable, classes: Sequence[str], *, batch: int, seed: int, start_step: int,
  threads: int, process_index: int, process_count: int,
) -> Iterator[dict]:  # fmt: skip
  """Batches of step `start_step`, `start_step` + 1 ... without end; each epoch in a new order.

  Args:
    view: of a picture, such as `zoo.Line.crop`; of the same shape for all.
    batch: lines in all processes together.
  """
  rows = threaded.train_rows(
    len(lines.keys), batch=batch, seed=seed, start_step=start_step, process_index=process_index,
    process_count=process_count,
  )  # fmt: skip
  numbers = ([index for index, _ in some] for some in rows)
  return threaded.batches(numbers, _row(lines, view, classes), threads)


def eval_batches(
  lines: Lines, view: Callable, classes: Sequence[str], *, batch: int, threads: int,
  process_index: int, process_count: int,
) -> Iterator[dict]:  # fmt: skip
  """All lines once; the last batch is filled with rows of index -1 that are not real."""
  numbers = threaded.eval_rows(
    len(lines.keys), batch=batch, process_index=process_index, process_count=process_count
  )
  return threaded.batches(numbers, _row(lines, view, classes), threads)


def _row(lines, view, classes) -> Callable[[int], threaded.Row]:
  longest = max(map(len, lines.texts)) + 1  # so that every text ends in the blank
  blank = charset.blank_of(classes)

  def make(index):
    line = max(index, 0)  # a filling row repeats the first
    tokens, _ = charset.encode([lines.texts[line]], classes)
    text = np.full(longest, blank, np.int32)
    text[: tokens.shape[1]] = tokens[0]
    return {
      "image": view(lines.picture(line)), "text": text, "index": np.int32(index),
      "real": np.float32(index >= 0),
    }  # fmt: skip

  return make
