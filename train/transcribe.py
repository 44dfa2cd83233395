"""What is written in pictures: lines of text, or with a text detector whole pages.

  python -m train.transcribe --model=crnn_easyocr.english_g2 line.png another.png
  python -m train.transcribe --model=crnn_easyocr.english_g2 --detector=craft.mlt_25k page.jpg \\
    --out=answers

Prints the text of each picture, a line for each line. --out writes answers.json (boxes and
confidence of words and characters) and one .hocr of each picture. What cannot be read is named at
the end, and makes the exit status 1; the other pictures are read all the same.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
import dataclasses
import html
import json
from pathlib import Path
import sys

import cv2
import jax
import numpy as np
from PIL import Image

from train import options, startup
from train.data import transforms
from train.options import option
import zoo
from zoo.segment import craft
from zoo.text import charset

LONGEST = 1280  # pixels of a page's longer side, as the detector sees it
STEP = 32  # its canvas is a multiple of so many pixels
MARGIN = 0.1  # of a word's height, on each side of its box


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Reader: variant.tag, the folder of a run, or a .safetensors file.")
  detector: str = option("", "Finds words on pages, such as craft.mlt_25k; without, lines come.")
  out: str = option("", "Folder to write answers.json and .hocr files to; must be new.")


@dataclasses.dataclass(frozen=True)
class Word:
  text: str
  box: np.ndarray  # [4 2] x y in pixels of the picture, clockwise from the text's top left
  confidence: tuple[float, ...]  # of each character

  @property
  def sure(self) -> float:
    """That of the least sure character."""
    return min(self.confidence, default=0.0)


def reader(model: str | Path) -> Callable[[Sequence[Image.Image]], list[tuple[str, tuple]]]:
  """Reads pictures of one line each: [(text, confidence of each character)].

  Lines of one width are computed together, so that a text never depends on its neighbours.

  Raises:
    ValueError, FileNotFoundError: there is no such model, or it reads no lines.
  """
  record = zoo.record(model)
  pixels, classes = record.preprocess, record.classes
  if not isinstance(pixels, zoo.Line):
    raise ValueError(f"{model} is no reader of lines; python -m zoo --filter=crnn lists some")
  blank = charset.blank_of(classes)
  network, variables = zoo.load(model)

  @jax.jit
  def run(variables, image):
    out = network.apply(variables, pixels.normalize(image), train=False)
    return network.read(out, blank)

  def read(pictures):
    widths, answers = defaultdict(list), {}
    for i, picture in enumerate(pictures):
      line = pixels.stack([pixels.crop(picture)])[0]
      widths[line.shape[1]].append((i, line))
    for some in widths.values():
      found = jax.device_get(run(variables, np.stack([line for _, line in some])))
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


def main(argv: Sequence[str], config: Config) -> int:
  startup.set_up_compilation()
  if not config.model or not argv[1:]:
    raise ValueError("wanted --model=READER and pictures, such as page.png")
  out = Path(config.out) if config.out else None
  if out and out.exists():
    raise ValueError(f"--out={out} exists already; name a new folder")
  read, find = reader(config.model), detector(config.detector) if config.detector else None
  answers, failed, several = [], [], len(argv) > 2
  for path in map(Path, argv[1:]):
    try:
      picture = transforms.decode(path.read_bytes())
    except (OSError, ValueError) as error:
      failed.append(f"{path}: {error}")
      continue
    lines = transcribe(picture, read, find)
    size = picture.shape[1::-1]
    answers.append((path, size, lines))
    if several:
      print(f"{path}:")
    print("\n".join(line["text"] for line in as_json(lines)))
  if out:
    out.mkdir(parents=True)
    pages = [
      {"image": str(path), "size": list(size), "lines": as_json(lines)}
      for path, size, lines in answers
    ]
    text = json.dumps(pages, ensure_ascii=False, indent=1)
    (out / "answers.json").write_text(text + "\n", "utf-8")
    for i, (path, size, lines) in enumerate(answers, start=1):
      (out / f"{i}-{path.stem}.hocr").write_text(as_hocr(str(path), size, lines), "utf-8")
  for sentence in failed:
    print(f"cannot read {sentence}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  options.run(main, Config, arguments=True)
