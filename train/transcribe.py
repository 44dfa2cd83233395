"""What is written in pictures: lines of text, or with a text detector whole pages.

  python -m train.transcribe --model=crnn_easyocr.english_g2 line.png another.png
  python -m train.transcribe --model=crnn_easyocr.english_g2 --detector=craft.mlt_25k page.jpg \\
    --out=answers

Prints the text of each picture, a line for each line; pictures in folders are found at any depth.
--out writes a folder: answers.json (boxes and confidence of words and characters), one .hocr of
each picture, and index.html, the pictures with the words' boxes drawn over them beside their text.
What cannot be read is named at the end, and makes the exit status 1; the other pictures are read
all the same.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import html
import json
from pathlib import Path

import cv2
import jax
import numpy as np
from PIL import Image, ImageColor

from train import batches, figures, options, output, page, predict, startup
from train.options import option
import zoo
from zoo.segment import craft
from zoo.text import charset

LONGEST = 1280  # pixels of a page's longer side, as the detector sees it
STEP = 32  # its canvas is a multiple of so many pixels
MARGIN = 0.1  # of a word's height, on each side of its box
UNSURE = 0.5  # the confidence below which a word is shown as unsure
SHOWN = 1280  # pixels of the longer side of pictures on the page, at most


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Reader: variant.tag, the folder of a run, or a .safetensors file.")
  detector: str = option("", "Finds words on pages, such as craft.mlt_25k; without, lines come.")
  out: str = option("", "Folder to write answers and index.html to; must be new.")
  batch: int = option(32, "Lines computed at once.", lower_bound=1)
  threads: int = option(4, "Threads that read pictures.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Word:
  text: str
  box: np.ndarray  # [4 2] x y in pixels of the picture, clockwise from the text's top left
  confidence: tuple[float, ...]  # of each character

  @property
  def sure(self) -> float:
    """That of the least sure character."""
    return min(self.confidence, default=0.0)


def reader(
  model: str | Path, batch: int = 32
) -> Callable[[Sequence[Image.Image]], list[tuple[str, tuple]]]:
  """Reads pictures of one line each: [(text, confidence of each character)].

  Lines of one width are computed together, at most `batch`, so that a text never depends on its
  neighbours.

  Raises:
    ValueError, FileNotFoundError: there is no such model, or it reads no lines.
  """
  record = zoo.record(model)
  pixels, classes = record.preprocess, record.classes
  if not isinstance(pixels, zoo.Line):
    raise ValueError(f"{model} is no reader of lines; python -m zoo --filter=crnn lists some")
  blank = charset.blank_of(classes)
  network, variables = zoo.load(model)
  variables, compiled = jax.device_put(variables), defaultdict(set)  # of each width

  @jax.jit
  def run(variables, image):
    out = network.apply(variables, pixels.normalize(image), train=False)
    return network.read(out, blank)

  def read(pictures):
    widths, answers = defaultdict(list), {}
    for i, picture in enumerate(pictures):
      line = pixels.stack([pixels.crop(picture)])[0]
      widths[line.shape[1]].append((i, line))
    for width, lines in widths.items():
      for some in batches.chunks(lines, batch):
        rows = batches.filled(some, batches.at_once(len(some), compiled[width], batch))
        found = jax.device_get(run(variables, np.stack([line for _, line in rows])))
        texts = charset.decode(found.tokens, found.lengths, classes)
        for (i, _), text, sure, n in zip(some, texts, found.confidence, found.lengths):
          answers[i] = text, tuple(map(float, sure[:n]))
    return [answers[i] for i in range(len(pictures))]

  return read


def detector(model: str | Path) -> Callable[[np.ndarray], np.ndarray]:
  """Finds words in a picture [h w 3] uint8: quadrilaterals [n 4 2], x y in its pixels."""
  record = zoo.record(model)
  if record.variant not in craft.VARIANTS:
    raise ValueError(f"{model} finds no words; python -m zoo --filter=craft lists what does")
  network, variables = zoo.load(model)
  variables = jax.device_put(variables)

  @jax.jit
  def run(variables, image):
    return network.apply(variables, record.preprocess.normalize(image), train=False)["scores"]

  def find(picture):
    height, width = picture.shape[:2]
    ratio = min(1.0, LONGEST / max(height, width))
    h, w = max(1, int(height * ratio)), max(1, int(width * ratio))
    canvas = np.zeros((1, h + -h % STEP, w + -w % STEP, 3), np.uint8)
    canvas[0, :h, :w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    scores = np.asarray(run(variables, canvas))[0]
    return craft.words(scores) * (canvas.shape[1] / scores.shape[0] / ratio)

  return find


def upright(picture: np.ndarray, box: np.ndarray) -> Image.Image:
  """The picture inside a quadrilateral [4 2] and a margin around it, laid straight."""
  across, down = box[1] - box[0], box[3] - box[0]
  width, height = np.linalg.norm(across), np.linalg.norm(down)
  margin = MARGIN * min(width, height)
  x, y = across / max(width, 1e-6) * margin, down / max(height, 1e-6) * margin
  corners = (box + [-x - y, x - y, x + y, y - x]).astype(np.float32)
  w, h = max(1, round(width + 2 * margin)), max(1, round(height + 2 * margin))
  goal = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
  warp = cv2.getPerspectiveTransform(corners, goal)
  flat = cv2.warpPerspective(picture, warp, (w, h), borderMode=cv2.BORDER_REPLICATE)
  return Image.fromarray(flat)


def in_lines(boxes: np.ndarray) -> list[list[int]]:
  """Indices of boxes [n 4 2], from left to right in lines from top to bottom.

  A word belongs to the line above it if its middle lies within half a height of that line's.
  """
  middle, height = boxes.mean(1)[:, 1], np.ptp(boxes[..., 1], axis=1)
  lines: list[list[int]] = []
  for i in np.argsort(middle):
    if lines:
      last = lines[-1]
      near = np.mean(height[last]) / 2
      if middle[i] - np.mean(middle[last]) < near:
        last.append(int(i))
        continue
    lines.append([int(i)])
  return [sorted(line, key=lambda i: boxes[i, :, 0].min()) for line in lines]


def transcribe(picture: np.ndarray, read, find=None) -> list[list[Word]]:
  """The words [h w 3] uint8 holds, line by line; all of it is one line if nothing finds words."""
  height, width = picture.shape[:2]
  whole = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float32)
  boxes = find(picture) if find else whole
  pictures = [upright(picture, box) for box in boxes] if find else [Image.fromarray(picture)]
  found = [Word(text, box, sure) for (text, sure), box in zip(read(pictures), boxes)]
  return [[found[i] for i in line] for line in in_lines(boxes)]


def as_json(lines: list[list[Word]]) -> list[dict]:
  return [
    {
      "text": " ".join(word.text for word in line),
      "words": [
        {"text": word.text, "box": np.round(word.box, 1).tolist(),
         "confidence": round(word.sure, 4),
         "characters": [round(value, 4) for value in word.confidence]}
        for word in line
      ],
    }
    for line in lines
  ]  # fmt: skip


def as_hocr(name: str, size: tuple[int, int], lines: list[list[Word]]) -> str:
  """One page of hOCR 1.2; `size` is (width, height)."""

  def box(*boxes):
    points = np.concatenate(boxes)
    return "bbox " + " ".join(str(round(v)) for v in (*points.min(0), *points.max(0)))

  rows = []
  for i, line in enumerate(lines, start=1):
    words = " ".join(
      f"<span class='ocrx_word' id='word_{i}_{j}' title='{box(word.box)}; "
      f"x_wconf {round(100 * word.sure)}'>{html.escape(word.text)}</span>"
      for j, word in enumerate(line, start=1)
    )
    title = box(*(word.box for word in line))
    rows.append(f"<span class='ocr_line' id='line_{i}' title='{title}'>{words}</span><br/>")
  shown = html.escape(name, quote=True).replace("'", "&#39;")
  return (
    '<?xml version="1.0" encoding="UTF-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><head>'
    f"<title>{shown}</title><meta name='ocr-system' content='flaxzoo'/>"
    "<meta name='ocr-capabilities' content='ocr_page ocr_line ocrx_word'/></head>\n<body>"
    f"<div class='ocr_page' id='page_1' title='image \"{shown}\"; bbox 0 0 {size[0]} {size[1]}'>\n"
    + "\n".join(rows)
    + "\n</div></body></html>\n"
  )


def drawn(picture: np.ndarray, lines: list[list[Word]]) -> np.ndarray:
  """The picture, at most `SHOWN` pixels long, with the words' boxes; who is unsure is orange."""
  scale = min(1.0, SHOWN / max(picture.shape))
  size = tuple(max(1, round(n * scale)) for n in picture.shape[1::-1])
  small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
  for word in (word for line in lines for word in line):
    color = ImageColor.getrgb(figures.COLORS[2 if word.sure >= UNSURE else 1])
    cv2.polylines(small, [np.rint(word.box * scale).astype(np.int32)], True, color, 2, cv2.LINE_AA)
  return small


class Folder(output.Output):
  """Pictures with boxes, .hocr files, answers.json and index.html."""

  def __init__(self, out: Path, title: str):
    super().__init__(out)
    self._title, self._answers, self._cards = title, [], []

  def add(self, path: Path, picture: np.ndarray, lines: list[list[Word]]) -> None:
    size, text, found = picture.shape[1::-1], predict.readable(path), as_json(lines)
    number = len(self._answers) + 1
    (self.part / f"{number}-{path.stem}.hocr").write_text(as_hocr(text, size, lines), "utf-8")
    (self.part / f"{number}.png").write_bytes(figures.png(drawn(picture, lines)))
    self._answers.append({"image": text, "size": list(size), "lines": found})
    view = page.figure(f"{number}.png", alt=f"words of {text}", lazy=True)
    words = page.code("\n".join(line["text"] for line in found))
    self._cards.append(page.card([view], path.name, [text], words))

  def finish(self, failures: Sequence[str]) -> bool:
    """Puts the folder in its place, unless nothing was added."""
    if not self._answers:
      return False
    text = json.dumps(self._answers, ensure_ascii=False, indent=1)
    (self.part / "answers.json").write_text(text + "\n", "utf-8")
    said = f"Orange: a character of the word is less sure than {100 * UNSURE:.0f} %."
    body = [f"<h1>{page.escape(self._title)}</h1>", page.paragraph(said, soft=True)]
    body.append(page.cards(self._cards, large=True))
    if failures:
      body.append(page.section("Not read", page.bullets(failures)))
    page.write(self.part / "index.html", page.page(self._title, body))
    self.appear()
    return True


def main(argv: Sequence[str], config: Config) -> int:
  if not config.model or not argv[1:]:
    raise ValueError(
      "name a reader and pictures: python -m train.transcribe --model=crnn_easyocr.english_g2 "
      "--detector=craft.mlt_25k page.png"
    )
  startup.set_up_compilation()
  failures = []
  failed = lambda sentence: failures.append(predict.readable(sentence))
  paths = predict.find(argv[1:], failed)
  with contextlib.ExitStack() as stack:
    folder = None
    if config.out:
      title = f"Read by {Path(config.model).name}"
      folder = stack.enter_context(Folder(Path(config.out), title))
    read = reader(config.model, config.batch)
    find = detector(config.detector) if config.detector else None
    for path, picture in predict.read(paths, config.threads, failed):
      lines = transcribe(picture, read, find)
      if len(paths) > 1:
        print(f"{predict.readable(path)}:")
      print("\n".join(line["text"] for line in as_json(lines)), flush=True)
      if folder:
        folder.add(path, picture, lines)
    if folder and folder.finish(failures):
      print(f"pictures: {(Path(config.out) / 'index.html').resolve()}")
  return predict.unanswered(failures)


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
