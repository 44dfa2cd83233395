"""CTC against torch, against the sum over all paths, and against fast-ctc-decode."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import ctc


def collapse(path, blank):
  return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def texts_of(logits, blank) -> dict[tuple, float]:
  """{text: probability} of one [t c], over every path that there is."""
  probs = np.asarray(jax.nn.softmax(logits), np.float64)
  total = {}
  for path in itertools.product(range(probs.shape[1]), repeat=len(probs)):
    text = collapse(path, blank)
    total[text] = total.get(text, 0) + np.prod([probs[t, k] for t, k in enumerate(path)])
  return total


def random_logits(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 1.5


def padded(texts, size, fill):
  tokens = np.full((len(texts), size), fill, np.int32)
  for row, text in zip(tokens, texts):
    row[: len(text)] = text
  return tokens, np.array([len(text) for text in texts], np.int32)


def test_likelihood_is_the_sum_over_all_paths():
  logits, blank = random_logits(2, 5, 3), 1
  for row in logits:
    texts = texts_of(row, blank)
    words = sorted(texts, key=len)
    labels, lengths = padded(words, 5, fill=2)
    got = ctc.log_likelihood(row[None], labels, lengths, blank=blank)[0]
    np.testing.assert_allclose(got, np.log([texts[w] for w in words]), rtol=1e-5)
    impossible, length = padded([(0, 0, 0, 2)], 4, fill=0)  # needs six frames
    assert ctc.log_likelihood(row[None], impossible, length, blank=blank)[0, 0] < ctc.NEVER / 2


@pytest.mark.parametrize("blank", [0, 6])
def test_loss_equals_torch(blank):
  """Values and gradients: an empty text, repeats, a short row, and one that does not fit."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  texts = [(), (1, 1, 2), (3,), (5, 4, 3, 2, 1), (2, 2, 2, 2), (4, 4)]
  labels, lengths = padded(texts, 6, fill=1)
  frames = np.array([9, 9, 4, 9, 6, 3], np.int32)  # 2 2 2 2 needs seven frames, 4 4 three
  logits = random_logits(len(texts), 9, 7)

  def mean(logits):
    value, fits = ctc.loss(logits, labels, lengths, frames, blank=blank)
    return value.sum() / fits.sum(), (value, fits)

  (_, (value, fits)), grad = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
  assert fits.tolist() == [True, True, True, True, False, True]
  x = torch.tensor(logits, requires_grad=True)
  want = torch.nn.functional.ctc_loss(
    x.log_softmax(-1).transpose(0, 1), torch.from_numpy(labels), torch.from_numpy(frames),
    torch.from_numpy(lengths), blank, reduction="none", zero_infinity=True,
  )  # fmt: skip
  (want.sum() / 5).backward()
  np.testing.assert_allclose(value, want.detach(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(grad, x.grad, atol=2e-6)
  assert not np.any(grad[4]), "what does not fit teaches nothing"


def test_texts_of_no_label():
  logits = random_logits(2, 4, 3)
  value, fits = ctc.loss(logits, np.zeros((2, 0), np.int32), np.zeros(2, np.int32))
  want = -np.asarray(jax.nn.log_softmax(logits))[..., 0].sum(1)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  assert fits.all()


@pytest.mark.parametrize("blank", [0, 3])
def test_greedy(blank):
  logits = random_logits(8, 12, 4, seed=3)
  frames = np.array([12, 12, 12, 7, 5, 1, 0, 12], np.int32)
  got = jax.jit(partial(ctc.greedy, blank=blank))(logits, frames)
  probs = np.asarray(jax.nn.softmax(logits))
  for row, n, tokens, length, confidence in zip(probs, frames, *got):
    path = row[:n].argmax(-1)
    text, peaks, t = [], [], 0
    for k, run in itertools.groupby(path):
      size = len(list(run))
      if k != blank:
        text.append(k)
        peaks.append(row[t : t + size].max())
      t += size
    assert tokens[:length].tolist() == text and (tokens[length:] == blank).all()
    np.testing.assert_allclose(confidence[:length], peaks, rtol=1e-6)
    assert not confidence[length:].any()


def as_dict(beams, row):
  found = zip(beams.tokens[row], beams.lengths[row], beams.log_probs[row])
  return {tuple(t[:n].tolist()): float(p) for t, n, p in found if np.isfinite(p)}


@pytest.mark.parametrize("blank", [0, 2])
def test_beam_search_finds_everything_where_everything_fits(blank):
  logits = random_logits(3, 5, 3, seed=5)
  got = jax.jit(partial(ctc.beam_search, width=64, blank=blank))(logits)
  for row in range(3):
    texts, found = texts_of(logits[row], blank), as_dict(got, row)
    assert found.keys() == texts.keys()
    np.testing.assert_allclose([found[t] for t in texts], np.log(list(texts.values())), rtol=1e-5)
    first = max(texts, key=texts.get)
    assert tuple(got.tokens[row, 0, : got.lengths[row, 0]].tolist()) == first
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_beam_search_stops_with_the_frames():
  logits = random_logits(2, 6, 4, seed=6)
  some = ctc.beam_search(logits, 8, np.array([6, 3]))
  short = ctc.beam_search(logits[1:, :3], 8)
  np.testing.assert_array_equal(some.tokens[1, :, :3], short.tokens[0])
  np.testing.assert_allclose(some.log_probs[1], short.log_probs[0], rtol=1e-6)


def test_beam_search_with_few_candidates():
  """All but the candidates of a frame may end no text there."""
  logits = random_logits(1, 4, 6, seed=7)
  got = as_dict(ctc.beam_search(logits, 200, candidates=2), 0)
  shown = [set(np.argsort(-frame)[:3]) - {0} for frame in logits[0]]
  assert all(set(text) <= set().union(*shown) for text in got)
  assert got.keys() < texts_of(logits[0], 0).keys()


@pytest.mark.parametrize("width", [1, 12])
def test_beam_search_equals_fast_ctc_decode(width):
  fast = pytest.importorskip("fast_ctc_decode", reason="pip install flaxzoo[references]")
  alphabet = "-abcdefghi"
  logits = random_logits(20, 30, len(alphabet), seed=8) * 1.5
  got = jax.jit(partial(ctc.beam_search, width=width))(logits)
  for row, probs in enumerate(np.asarray(jax.nn.softmax(logits))):
    text, _ = fast.beam_search(probs, alphabet, beam_size=width, beam_cut_threshold=0.0)
    ours = "".join(alphabet[k] for k in got.tokens[row, 0, : got.lengths[row, 0]])
    assert ours == text


def test_lexicon_chooses_the_likeliest_word():
  logits = random_logits(6, 5, 4, seed=9)
  words = [(1,), (2, 3), (3, 3), (1, 2, 3), (), (2, 1, 2, 1)]
  labels, lengths = padded(words, 4, fill=0)
  best, scores = jax.jit(ctc.lexicon)(logits, labels, lengths)
  for row in range(6):
    texts = texts_of(logits[row], 0)
    want = [texts[w] for w in words]
    np.testing.assert_allclose(np.exp(scores[row]), want, rtol=1e-4)
    assert best[row] == np.argmax(want)


def test_repeats_are_told_from_one_long_letter():
  labels, lengths = jnp.array([[1, 1], [1, 2]]), jnp.array([2, 2])
  assert ctc.feasible(labels, lengths, jnp.array([2, 2])).tolist() == [False, True]
