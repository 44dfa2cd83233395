"""What was found in photographs, for people and for programs: the folder of train.find --out."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import io
import json
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
from pycocotools import mask as packed

from train import figures, output, page
from train.predict import readable
from zoo.detect.found import Found


class Answer(NamedTuple):
  name: Path | int  # of a photograph, or of a frame
  image: np.ndarray  # [h w 3] uint8
  found: Found
  maps: Sequence[np.ndarray] = ()  # [h' w'] of each detection, over the picture


def labelled(one: Found) -> list[tuple]:
  """(box, text, color) of each detection, as `figures.boxes` takes them."""
  return [
    (box, f"{figures.shorten(name)} {score:.2f}", figures.COLORS[label % len(figures.COLORS)])
    for box, name, score, label in zip(one.boxes, one.names, one.scores, one.labels)
  ]


def drawn(answer: Answer) -> np.ndarray:
  """The picture with masks and boxes over it, the surest on top."""
  rows, masks = labelled(answer.found), answer.found.masks
  tints = () if masks is None else zip(reversed(masks), reversed(rows))
  under = figures.tinted(answer.image, ((*_part(mask), row[2]) for mask, row in tints))
  return figures.boxes(under, rows[::-1], least=1)


def _part(mask: dict) -> tuple[np.ndarray, tuple[int, int]]:
  """(mask of 0 and 1 of the box around it, where that begins): pictures of a camera are large."""
  left, top, width, height = packed.toBbox(mask).astype(int)
  return packed.decode(mask)[top : top + height, left : left + width], (top, left)


def explained(image: np.ndarray, heat: np.ndarray, row: tuple) -> np.ndarray:
  """The picture under the map of one detection, and its box; `row` as of `labelled`."""
  return figures.boxes(figures.overlay(image, heat), [row], least=1)


class Album(output.Output):
  """Pictures with boxes, answers.json, answers.csv, coco.json and index.html.

  Pictures are drawn in `threads` of their own: one of a camera takes longer than to look at it.
  """

  def __init__(self, out: Path, title: str, threads: int):
    super().__init__(out)
    self._title, self._answers, self._cards = title, [], []
    self._threads, self._pool, self._drawing = threads, ThreadPoolExecutor(threads), deque()

  def __exit__(self, *error) -> None:
    self._pool.shutdown(cancel_futures=True)
    super().__exit__(*error)

  def add(self, answer: Answer) -> None:
    text, one = readable(answer.name), answer.found
    number = len(self._cards) + 1
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", answer.name.stem)[:40]
    file = f"{number:04d}_{stem}.png"
    rows = labelled(one)
    self._draw(file, drawn, answer)
    views = [page.figure(file, alt=f"boxes in {text}", lazy=True)]
    for i, (heat, row) in enumerate(zip(answer.maps, rows), start=1):
      file = f"{number:04d}_{stem}_{i:02d}_grad_cam.png"
      self._draw(file, explained, answer.image, heat, row)
      views.append(page.figure(file, alt=f"where {row[1]} comes from", lazy=True))
    bars = page.bars(zip(one.names, map(float, one.scores), [""] * len(one)))
    self._cards.append(page.card(views, f"{len(one)} found", [text], bars))
    self._answers.append((text, one))

  def finish(self, failures: Sequence[str]) -> None:
    while self._drawing:
      self._drawing.popleft().result()
    answers = [{"path": path, **one.as_dict()} for path, one in self._answers]
    self._write("answers.json", json.dumps(answers, indent=2) + "\n")
    self._write("coco.json", json.dumps(coco(self._answers)) + "\n")
    table = io.StringIO(newline="")
    rows = [
      (path, name, f"{score:.6f}", *(f"{v:.2f}" for v in box))
      for path, one in self._answers for name, score, box in zip(one.names, one.scores, one.boxes)
    ]  # fmt: skip
    csv.writer(table).writerows([("path", "class", "score", "x0", "y0", "x1", "y1"), *rows])
    self._write("answers.csv", table.getvalue())
    body = [f"<h1>{page.escape(self._title)}</h1>"]
    body.append(page.paragraph(f"{len(self._cards)} photographs", soft=True))
    body.append(page.cards(self._cards, large=True))
    if failures:
      body.append(page.section("Not read", page.bullets(failures)))
    self._write("index.html", page.page(self._title, body))
    self.appear()

  def _draw(self, file: str, make: Callable[..., np.ndarray], *given) -> None:
    write = lambda: (self.part / file).write_bytes(figures.png(make(*given)))
    self._drawing.append(self._pool.submit(write))
    if len(self._drawing) > self._threads:
      self._drawing.popleft().result()  # or the picture's fault

  def _write(self, name: str, text: str) -> None:
    (self.part / name).write_text(text, "utf-8", newline="")


def coco(answers: Sequence[tuple[str, Found]]) -> dict:
  """COCO's form: annotations with a score; classes count from 1."""
  images, marks = [], []
  for number, (path, one) in enumerate(answers, start=1):
    images.append({"id": number, "file_name": path, "height": one.height, "width": one.width})
    told = one.as_dict()["found"]
    for i, (label, box) in enumerate(zip(one.labels, one.boxes_xywh)):
      x, y, w, h = (round(float(v), 2) for v in box)
      marks.append({
        "id": len(marks) + 1, "image_id": number, "category_id": int(label) + 1,
        "bbox": [x, y, w, h], "area": round(w * h, 2), "iscrowd": 0, "score": told[i]["score"],
      })  # fmt: skip
      if one.masks is not None:
        area = int(packed.area(one.masks[i]))
        marks[-1] |= {"area": area, "segmentation": told[i]["mask"]}
  classes = answers[0][1].classes if answers else ()
  kinds = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
  return {"images": images, "annotations": marks, "categories": kinds}
