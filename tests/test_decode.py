"""Greedy and beam search against every sequence that there is."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.text import decode

CLASSES, STEPS = 5, 4  # pad, start, end and two more
RNG = np.random.default_rng(0)
# What comes next depends on the row, on how far it is, and on the two tokens before.
TABLE = jnp.asarray(RNG.normal(size=(3, STEPS, CLASSES, CLASSES, CLASSES)) * 2, jnp.float32)


def step(state, token):
  row, t, before = state
  return (row, t + 1, token), TABLE[row, t, before, token]


def start(rows=3):
  return jnp.arange(rows), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)


def every(row):
  """{sequence: log p} of all that end, and of all of STEPS tokens."""
  logits = np.asarray(jax.nn.log_softmax(TABLE[row]), np.float64)
  found = {}
  for size in range(1, STEPS + 1):
    for tokens in itertools.product(range(CLASSES), repeat=size):
      if decode.END in tokens[:-1] or (size < STEPS and tokens[-1] != decode.END):
        continue
      total, before, last = 0.0, 0, decode.START
      for t, token in enumerate(tokens):
        total += logits[t, before, last, token]
        before, last = last, token
      found[tokens] = total
  return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_the_best_of_all(penalty):
  width = CLASSES**STEPS
  got = jax.jit(lambda s: decode.beam(step, s, STEPS, width, penalty=penalty))(start())
  for row in range(3):
    all_ = every(row)
    ranked = sorted(all_, key=lambda s: -all_[s] / len(s) ** penalty)
    for k in range(20):
      n = got.lengths[row, k]
      assert tuple(got.tokens[row, k, :n].tolist()) == ranked[k]
      assert not got.tokens[row, k, n:].any()
      np.testing.assert_allclose(got.log_probs[row, k], all_[ranked[k]], rtol=1e-5)
    assert np.isfinite(got.log_probs[row]).sum() == len(all_)


def test_greedy_is_a_beam_of_one_without_the_race():
  got = jax.jit(lambda s: decode.greedy(step, s, STEPS))(start())
  for row in range(3):
    logits, before, last, tokens, total = jax.nn.log_softmax(TABLE[row]), 0, decode.START, [], 0.0
    for t in range(STEPS):
      token = int(np.argmax(logits[t, before, last]))
      total += logits[t, before, last, token]
      before, last = last, token
      tokens.append(token)
      if token == decode.END:
        break
    n = int(got.lengths[row])
    assert got.tokens[row, :n].tolist() == tokens and not got.tokens[row, n:].any()
    np.testing.assert_allclose(got.log_probs[row], total, rtol=1e-5)


def test_a_narrow_beam_is_not_worse_than_greedy():
  greedy = decode.greedy(step, start(), STEPS)
  run = jax.jit(partial(decode.beam, step, steps=STEPS, width=8))
  assert (run(start()).log_probs[:, 0] >= greedy.log_probs - 1e-5).all()
