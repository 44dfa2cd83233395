"""Readers on 500 rendered lines beside their originals: python -m bench.read [CHECKPOINT ...]

Prints for each how many lines both read alike, the word accuracy of both, the largest relative
difference of logits, and seconds a line.
"""

import sys
import time

import numpy as np

from tests import lines, original_readers, test_reading

LINES = 500


def words(count: int) -> list[str]:
  """Words and numbers of 3 to 10 characters."""
  rng = np.random.default_rng(0)
  known = lines.words(count // 2)
  letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
  drawn = ["".join(rng.choice(letters, rng.integers(3, 11))) for _ in range(count - len(known))]
  return known + drawn


def main(names: list[str]) -> None:
  for name in names or original_readers.READERS:
    ours, theirs = test_reading.reader(name), original_readers.READERS[name]()
    alike, right, worst, seconds = 0, [0, 0], 0.0, [0.0, 0.0]
    for seed, word in enumerate(words(LINES)):
      image, found = lines.render(word, seed), []
      for i, read in enumerate((ours, theirs)):
        start = time.perf_counter()
        found.append(read(image))
        seconds[i] += time.perf_counter() - start
        right[i] += found[i][1].lower() == word
      (got, text), (want, original) = found
      alike += text == original
      worst = max(worst, np.abs(got - want).max() / np.abs(want).max())
    print(
      f"{name}: {alike}/{LINES} alike; right {right[0]} and {right[1]}; logits differ by "
      f"{worst:.1e}; {seconds[0] / LINES:.3f} and {seconds[1] / LINES:.3f} s a line, "
      "compilation included",
      flush=True,
    )


if __name__ == "__main__":
  main(sys.argv[1:])
