"""Captions to words' classes and back.  The first four classes are those of `zoo.text.decode`."""

from collections import Counter
from collections.abc import Iterable, Sequence
import re

import numpy as np

from zoo.text import decode

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(caption: str) -> list[str]:
  """Its words in lower case, without punctuation."""
  return WORD.findall(caption.lower())


def build(captions: Iterable[str], least: int = 5) -> tuple[str, ...]:
  """The classes of captions: words that occur `least` times or more, the most frequent first."""
  counts = Counter(word for caption in captions for word in words(caption))
  kept = sorted((-count, word) for word, count in counts.items() if count >= least)
  return (*SPECIAL, *(word for _, word in kept))


def encode(captions: Sequence[str], classes: Sequence[str], length: int) -> np.ndarray:
  """[b length+2] int32: start, at most `length` words, end, padding; strange words are unknown."""
  places = {word: i for i, word in enumerate(classes)}
  tokens = np.full((len(captions), length + 2), decode.PAD, np.int32)
  for row, caption in zip(tokens, captions):
    found = [places.get(word, decode.UNKNOWN) for word in words(caption)[:length]]
    row[: len(found) + 2] = [decode.START, *found, decode.END]
  return tokens


def caption(tokens: Sequence[int], classes: Sequence[str]) -> str:
  """The words of one row, up to its end."""
  found = []
  for token in tokens:
    if token == decode.END:
      break
    if token not in (decode.PAD, decode.START):
      found.append(classes[token])
  return " ".join(found)
