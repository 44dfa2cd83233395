"""Texts to classes of a reader and back.  `classes` are in order of the logits, the blank is ""."""

from collections.abc import Sequence

import numpy as np


def of(characters: str, blank: str = "first") -> tuple[str, ...]:
  """The classes of a reader of these characters; its blank is the "first" class or the "last"."""
  return ("", *characters) if blank == "first" else (*characters, "")


def blank_of(classes: Sequence[str]) -> int:
  """Raises ValueError unless exactly one class is the blank."""
  places = [i for i, name in enumerate(classes) if name == ""]
  if len(places) != 1:
    raise ValueError(
      f'a reader has one class "", its blank; these {len(classes)} have {len(places)}'
    )
  return places[0]


def encode(texts: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [b l] int32, filled up with the blank, lengths [b] int32).

  Raises:
    ValueError: names every character that the reader does not know.
  """
  places = {name: i for i, name in enumerate(classes)}
  if strange := sorted({c for text in texts for c in text if c not in places}):
    raise ValueError(
      f"the reader knows {len(classes) - 1} characters, not {' '.join(map(repr, strange))}; leave "
      "such texts out, or train a reader whose classes have them"
    )
  lengths = np.array([len(text) for text in texts], np.int32)
  tokens = np.full((len(texts), max(lengths, default=0)), blank_of(classes), np.int32)
  for row, text in zip(tokens, texts):
    row[: len(text)] = [places[c] for c in text]
  return tokens, lengths


def decode(tokens, lengths, classes: Sequence[str]) -> list[str]:
  """Texts of [b t] tokens, as `zoo.ops.ctc` decodes them."""
  return ["".join(classes[k] for k in row[:n]) for row, n in zip(np.asarray(tokens), lengths)]
