"""From a source to batches, by Grain in threads.

A training batch is a function of (seed, step) alone: the order of an epoch is a permutation
computed from seed and epoch, and the random numbers of a picture are computed from seed and its
running number. So the number of threads and of processes changes nothing, and resuming at a step
needs that step and no state of an iterator.

Threads, not processes: decoding and resizing release the interpreter's lock, and a killed run
leaves nothing behind. Grain is imported when the first batch is asked for; it takes two seconds.
"""

from collections.abc import Callable, Iterator
from functools import partial
import itertools
import sys

import cv2
import numpy as np
from PIL import Image

from train.data import transforms
from train.data.sources import Source
from train.data.threaded import permutation, share
from train.data.transforms import Augment

Batch = dict[str, np.ndarray]


def steps_per_epoch(source: Source, batch: int) -> int:
  """Full batches in one pass; the rest of it is another rest in each epoch.

  Raises:
    ValueError: there are fewer images than one batch holds.
  """
  if batch < 1:
    raise ValueError(f"a batch holds at least one image, not {batch}")
  if len(source) < batch:
    raise ValueError(
      f"there are {len(source)} training images, fewer than one batch of {batch}; "
      f"set the batch to {len(source)} or less"
    )
  return len(source) // batch


def train_batches(
  source: Source,
  *,
  batch: int,
  size: int,
  seed: int,
  start_step: int = 0,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
  repeat: int = 1,
  balance: bool = False,
  augment: Augment | None = Augment(),  # noqa: B008 (frozen)
) -> Iterator[Batch]:
  """Batches of step `start_step`, `start_step` + 1, ... without end.

  Each epoch shows `steps_per_epoch * batch` different images in a new order.

  Args:
    batch: images in all processes together.
    size: pixels of the network's square input.
    process_index, process_count: which part of each batch this process makes.
    balance: each picture is of a class drawn from all alike, and drawn from that class; an epoch
      then has as many as it would have, but not each once.
    repeat: views of each picture, one after the other; an epoch then shows fewer pictures.
    augment: None shows the middle square of each picture.

  Yields:
    {"image": [b size size 3] uint8, "label": [b] int32, "real": [b] float32 of ones}, where b is
    batch / process_count.

  Raises:
    ValueError: fewer images than one batch; a file that cannot be decoded, by name.
  """
  rows_of = _order(source, batch, seed, repeat, balance)
  count = _rows_of_a_process(batch, process_count)

  # Whole batches go through Grain: a tenth of the time went into its steps for each row.
  def made(step: int) -> Batch:
    numbers = share(range(step * batch, (step + 1) * batch), process_index, process_count)
    rows = share(rows_of(step), process_index, process_count).tolist()
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    for i, (number, index) in enumerate(zip(numbers, rows, strict=True)):
      row = source[index]
      # The counter's highest word: each row has 2**192 blocks of noise for itself.
      rng = np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 0, number)))
      try:
        images[i] = transforms.train_view(row["image"], rng, size, augment)
      except transforms.UnreadableImage as error:
        raise _named(source, index, error) from error
      labels[i] = row["label"]
    return {"image": images, "label": labels, "real": np.ones(count, np.float32)}

  grain = _grain()
  return _iterate(grain, grain.MapDataset.range(start_step, sys.maxsize).map(made), threads)


def train_rows(
  source: Source, *, batch: int, seed: int, start_step: int = 0, balance: bool = False
) -> Iterator[np.ndarray]:
  """The rows [b] of the source whose pictures `train_batches` shows, in the same steps."""
  return map(_order(source, batch, seed, 1, balance), itertools.count(start_step))


def eval_batches(
  source: Source,
  *,
  batch: int,
  view: Callable[[Image.Image], np.ndarray],
  limit: int | None = None,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """All rows once, in the source's order; the last batch is filled with rows that are not real.

  Args:
    batch: images in all processes together.
    view: of a picture in mode RGB, such as `Preprocess.crop`; of the same shape for all.
    limit: rows at most, spread evenly over the source.

  Yields:
    as `train_batches`, and "index": [b] int32, the row in the source. Filling rows are black, with
    label 0, real 0 and index -1.

  Raises:
    ValueError: a file that cannot be decoded, by name.
  """
  rows = _rows_of_a_process(batch, process_count)
  count = len(source) if limit is None else min(limit, len(source))
  index = np.arange(count, dtype=np.int64) * len(source) // max(count, 1)
  index = np.pad(index, (0, -count % batch), constant_values=-1).reshape(-1, batch)
  index = share(index.T, process_index, process_count).T.ravel()
  blank = np.zeros_like(view(Image.new("RGB", (64, 64))))
  grain = _grain()
  data = grain.MapDataset.source(index).map(partial(_eval_row, source, view, blank))
  return _iterate(grain, data.batch(rows), threads)


def _grain():
  import grain

  cv2.setNumThreads(0)  # the threads here are busy already
  return grain


def _order(
  source: Source, batch: int, seed: int, repeat: int, balance: bool
) -> Callable[[int], np.ndarray]:
  """From a step to the rows [batch] of the source that it shows."""
  if not 0 <= seed < 2**32:
    raise ValueError(f"the seed must be within 0..2**32-1, not {seed}")
  steps = steps_per_epoch(source, batch)
  groups = []  # the rows of each class
  if balance:
    labels = np.asarray(source.labels)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)

  def rows(step: int) -> np.ndarray:
    if balance:
      drawn = range(step * batch, (step + 1) * batch)
      return np.array([_balanced(groups, seed, number // repeat) for number in drawn])
    epoch, step = divmod(step, steps)
    places = np.arange(step * batch, (step + 1) * batch) // repeat
    return permutation(len(source), seed, epoch)[places]

  return rows


def _rows_of_a_process(batch: int, process_count: int) -> int:
  if batch < 1 or batch % process_count:
    raise ValueError(f"a batch of {batch} cannot be shared by {process_count} processes evenly")
  return batch // process_count


def _iterate(grain, data, threads: int) -> Iterator[Batch]:
  # Grain's own defaults are 16 threads and 500 *batches* ahead: 2 GB of pictures at batch 32.
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
  iterator = iter(data.to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()


def _balanced(groups: list[np.ndarray], seed: int, number: int) -> int:
  """The row that is drawn as the `number`-th of all epochs together."""
  rng = np.random.default_rng((seed, number))
  return int(rng.choice(groups[rng.integers(len(groups))]))


def _eval_row(source: Source, view: Callable, blank: np.ndarray, index: int):
  index = int(index)
  if index < 0:
    image, label = blank, 0
  else:
    row = source[index]
    try:
      pixels = transforms.decode(row["image"])
    except transforms.UnreadableImage as error:
      raise _named(source, index, error) from error
    image, label = view(Image.fromarray(pixels)), row["label"]
  return {
    "image": image,
    "label": np.int32(label),
    "real": np.float32(index >= 0),
    "index": np.int32(index),
  }


def _named(source: Source, index: int, error: ValueError) -> ValueError:
  return ValueError(
    f"cannot decode {source.keys[index]}: {error}. Mend it or take it out of the data, and run "
    "again"
  )
