"""Pixels of lines, and texts as classes."""

import numpy as np
from PIL import Image
import pytest

from zoo import store
from zoo.text import charset
from zoo.weights import Line

CLASSES = charset.of("abc")


def test_a_line_keeps_its_shape_or_is_stretched():
  image = Image.new("RGB", (37, 11), (255, 0, 0))
  assert Line(32).crop(image).shape == (32, 107, 1)  # 107.6 pixels
  assert Line(32, round_up=True).crop(image).shape == (32, 108, 1)
  assert Line(32, 100, (0.5,) * 3, (0.5,) * 3).crop(image).shape == (32, 100, 3)
  assert Line(8).crop(Image.new("L", (1, 30))).shape == (8, 1, 1), "never narrower than a pixel"
  assert Line(8).crop(Image.new("L", (40, 1))).shape == (8, 320, 1), "a line one pixel high"


def test_lines_are_filled_up_with_their_last_column():
  short, long = (np.arange(n, dtype=np.uint8)[None, :, None] for n in (3, 5))
  got = Line(1, multiple=4).stack([short, long])
  assert got[..., 0].tolist() == [[[0, 1, 2, 2, 2, 2, 2, 2]], [[0, 1, 2, 3, 4, 4, 4, 4]]]


def test_pixels_are_normalised():
  got = Line(mean=(0.5,), std=(0.25,)).normalize(np.array([[[[0], [255]]]], np.uint8))
  np.testing.assert_allclose(got.ravel(), [-2, 2], rtol=1e-6)


def test_a_record_keeps_its_kind_of_pixels_and_its_blank(tmp_path):
  record = store.Record("crnn", preprocess=Line(48, None), in_channels=1, classes=CLASSES)
  store.save(tmp_path / "a.safetensors", {"params": {"a": np.zeros(1)}}, record)
  got = store.read_record(tmp_path / "a.safetensors")
  assert got.preprocess == record.preprocess and got.classes == ("", "a", "b", "c")


def test_texts_there_and_back():
  texts = ["abba", "", "c"]
  for classes in (CLASSES, charset.of("abc", "last")):
    tokens, lengths = charset.encode(texts, classes)
    assert tokens.shape == (3, 4) and lengths.tolist() == [4, 0, 1]
    assert (tokens[1] == charset.blank_of(classes)).all()
    assert charset.decode(tokens, lengths, classes) == texts


def test_strange_characters_and_lost_blanks_are_named():
  with pytest.raises(ValueError, match="knows 3 characters, not 'x' 'y'; leave such texts out"):
    charset.encode(["ax", "yb"], CLASSES)
  with pytest.raises(ValueError, match='one class "", its blank; these 3 have 0'):
    charset.blank_of("abc")
