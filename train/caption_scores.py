"""How close captions are to people's: BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr-D.

Equal to COCO's evaluation, pycocoevalcap 1.2, on the same words: BLEU is of the whole set, with the
reference of the closest length; ROUGE-L has beta 1.2 and takes precision and recall from whichever
references have the most; CIDEr-D (Vedantam et al. 2014, arXiv:1411.5726) takes its document
frequencies from the references that it is given and counts lengths in pairs of words.  Words are
those of `zoo.text.vocabulary`; where its tokenizer, which needs Java, splits otherwise, figures
differ.
"""

from collections import Counter
from collections.abc import Sequence
import math

import numpy as np

from zoo.text import vocabulary

LONGEST = 4  # words of an n-gram
BETA = 1.2  # how much more ROUGE-L minds recall
SIGMA = 6.0  # of CIDEr-D's Gaussian over differences of length
SMALL, TINY = 1e-9, 1e-15  # that keep BLEU from 0 / 0, as there

Words = Sequence[str]


def score(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
  """All of them, of one caption for each picture, by several references each."""
  if len(found) != len(wanted) or not found or not all(wanted):
    raise ValueError(
      f"wanted a caption and at least one reference for each picture, not {len(found)} captions "
      f"and {len(wanted)} pictures"
    )
  answers = [vocabulary.words(caption) for caption in found]
  truths = [[vocabulary.words(caption) for caption in some] for some in wanted]
  blue = bleu(answers, truths)
  return {
    **{f"BLEU-{n}": value for n, value in enumerate(blue, start=1)},
    "ROUGE-L": float(np.mean([rouge_l(a, t) for a, t in zip(answers, truths)])),
    "CIDEr-D": float(np.mean(cider_d(answers, truths))),
  }


def grams(words: Words, n: int) -> Counter:
  return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(answers: Sequence[Words], truths: Sequence[Sequence[Words]]) -> list[float]:
  """BLEU-1 .. BLEU-4 of a whole set."""
  said = sum(map(len, answers))
  asked = sum(
    min((abs(len(t) - len(a)), len(t)) for t in some)[1] for a, some in zip(answers, truths)
  )
  product, values = 1.0, []
  for n in range(1, LONGEST + 1):
    right = tried = 0
    for answer, some in zip(answers, truths):
      own, most = grams(answer, n), Counter()
      for truth in some:
        most |= grams(truth, n)
      right += (own & most).total()
      tried += own.total()
    product *= (right + TINY) / (tried + SMALL)
    values.append(product ** (1 / n))
  ratio = (said + TINY) / (asked + SMALL)
  return [value * min(1.0, math.exp(1 - 1 / ratio)) for value in values]


def rouge_l(answer: Words, truths: Sequence[Words]) -> float:
  # No words count as one that is empty, there.
  common = [in_order(answer, truth) for truth in truths]
  precision = max(common) / max(len(answer), 1)
  recall = max(c / max(len(truth), 1) for c, truth in zip(common, truths))
  if not precision or not recall:
    return 0.0
  return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def in_order(a: Words, b: Words) -> int:
  """Words of the longest sequence that both have, in order, perhaps with others between."""
  row = [0] * (len(b) + 1)
  for word in a:
    last = 0  # of the row above, one to the left
    for i, other in enumerate(b, start=1):
      last, row[i] = row[i], last + 1 if word == other else max(row[i], row[i - 1])
  return row[-1]


def cider_d(answers: Sequence[Words], truths: Sequence[Sequence[Words]]) -> list[float]:
  """Of each picture, 0..10."""
  seen = Counter()  # in how many pictures' references an n-gram is
  for some in truths:
    seen.update({g for truth in some for n in range(1, LONGEST + 1) for g in grams(truth, n)})
  pictures = math.log(len(truths))

  def weighed(words):
    """For each n, {n-gram: tf * idf}."""
    return [
      {g: count * (pictures - math.log(max(seen[g], 1))) for g, count in grams(words, n).items()}
      for n in range(1, LONGEST + 1)
    ]

  scores = []
  for answer, some in zip(answers, truths):
    own = weighed(answer)
    total = sum(_alike(own, weighed(truth), _pairs(answer) - _pairs(truth)) for truth in some)
    scores.append(10 * total / len(some))
  return scores


def _pairs(words: Words) -> int:
  return max(len(words) - 1, 0)


def _alike(own: list[dict], other: list[dict], longer: int) -> float:
  """Mean over n of the cosine between two, where no n-gram of `own` counts more than in `other`."""
  cosines = []
  for a, b in zip(own, other):
    both = sum(min(weight, b[g]) * b[g] for g, weight in a.items() if g in b)
    norm = math.hypot(*a.values()) * math.hypot(*b.values())
    cosines.append(both / norm if norm else 0.0)
  return math.exp(-(longer**2) / (2 * SIGMA**2)) * sum(cosines) / LONGEST
