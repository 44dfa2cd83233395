"""Scores of captions, beside COCO's evaluation code on the same words."""

import numpy as np
import pytest

from train import caption_scores

NOUNS = "bird tree hat road fish".split()
VERBS = "sits above on near below".split()


def captions(seed, pictures):
  """(one caption each, one to five references each), some with words in common."""
  rng = np.random.default_rng(seed)

  def one():
    words = [str(rng.choice(NOUNS if i % 2 else VERBS)) for i in range(rng.integers(1, 12))]
    return " ".join(words)

  return [one() for _ in range(pictures)], [
    [one() for _ in range(rng.integers(1, 6))] for _ in range(pictures)
  ]


@pytest.mark.parametrize("pictures", (1, 2, 40))
def test_scores_equal_cocos(pictures):
  pytest.importorskip("pycocoevalcap", reason="pip install --no-deps pycocoevalcap")
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge

  found, wanted = captions(pictures, pictures)
  got = caption_scores.score(found, wanted)
  truths, answers = dict(enumerate(wanted)), {i: [c] for i, c in enumerate(found)}
  bleu, _ = Bleu(4).compute_score(truths, answers, verbose=0)
  theirs = {f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}
  theirs["ROUGE-L"] = Rouge().compute_score(truths, answers)[0]
  theirs["CIDEr-D"], each = Cider().compute_score(truths, answers)
  assert got.keys() == theirs.keys()
  for name, value in theirs.items():
    assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
  words = [[c.split() for c in some] for some in wanted]
  np.testing.assert_allclose(
    caption_scores.cider_d([c.split() for c in found], words), each, rtol=1e-9, atol=1e-12
  )


def test_the_truth_has_the_most_and_nonsense_nothing():
  _, wanted = captions(0, 12)
  wanted = [[some[0]] for some in wanted]
  best = caption_scores.score([some[0] for some in wanted], wanted)
  assert best["BLEU-1"] == pytest.approx(1) and best["ROUGE-L"] == pytest.approx(1)
  worst = caption_scores.score(["zebra"] * 12, wanted)
  assert worst["CIDEr-D"] == 0 and worst["ROUGE-L"] == 0 and worst["BLEU-4"] < 1e-6
  assert caption_scores.in_order("a b c d".split(), "a x c y d".split()) == 3


def test_captions_and_pictures_are_as_many():
  with pytest.raises(ValueError, match="not 1 captions and 2 pictures"):
    caption_scores.score(["a bird"], [["a"], ["b"]])
