"""Batches made by threads, where rows are more than a picture and a class.

What a training batch holds is a function of (seed, step) alone, as in `pipeline`: an epoch's order
is drawn from seed and epoch, the noise of a row from seed and its running number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

AHEAD = 4  # batches that are prepared while the device works
Row = dict[str, np.ndarray]


@lru_cache(maxsize=2)
def permutation(count: int, *key: int) -> np.ndarray:
  """[count] int64: all rows in the order that `key` draws, of seed and epoch; threads share it."""
  order = np.random.default_rng(key).permutation(count)
  order.flags.writeable = False
  return order


def share(rows: Sequence, process_index: int, process_count: int) -> Sequence:
  """Of a batch's rows, those that this process makes: some that follow each other.

  Devices of one process follow each other too (`train.mesh`), so the whole batch has the same rows
  in the same order however many processes there are: dropout and mixup fall alike on them.
  """
  count = len(rows) // process_count
  return rows[process_index * count : (process_index + 1) * count]


def train_rows(
  count: int, *, batch: int, seed: int, start_step: int, process_index: int, process_count: int
) -> Iterator[list[tuple[int, np.random.Generator]]]:
  """(number of a row, its noise) of the batches of step `start_step`, `start_step` + 1 ...

  Args:
    count: rows of an epoch; each has a new order, and drops what does not fill a batch.
    batch: rows in all processes together.
  """
  per_epoch, step = count // batch, start_step
  while True:
    epoch, place = divmod(step, per_epoch)
    order = permutation(count, seed, epoch)
    some = [
      (int(row), np.random.default_rng((seed, 1, step * batch + i)))
      for i, row in enumerate(order[place * batch : (place + 1) * batch])
    ]
    yield share(some, process_index, process_count)
    step += 1


def eval_rows(
  count: int, *, batch: int, process_index: int, process_count: int
) -> Iterator[list[int]]:
  """All rows once; the last batch is filled up with -1."""
  index = np.arange(count)
  index = np.pad(index, (0, -count % batch), constant_values=-1).reshape(-1, batch)
  yield from (share(some, process_index, process_count).tolist() for some in index)


def batches(rows: Iterable[list], make: Callable[..., Row], threads: int) -> Iterator[Row]:
  """Batches of what `make` makes of each of the rows, stacked; a few ahead of who asks."""

  def stacked(jobs):
    made = [job.result() for job in jobs]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}

  with ThreadPoolExecutor(threads) as pool:
    waiting = deque()
    try:
      for some in rows:
        waiting.append([pool.submit(make, row) for row in some])
        if len(waiting) > AHEAD:
          yield stacked(waiting.popleft())
      while waiting:
        yield stacked(waiting.popleft())
    finally:
      for jobs in waiting:
        for job in jobs:
          job.cancel()
