"""Answers each photograph that is put into a folder: python -m train.predict --watch.

The network is compiled before the first comes.  A photograph is read when it has kept its size and
time between two looks; one that cannot be decoded may still be on its way, so it is tried again
until it has been still for SETTLED seconds, and then named.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from pathlib import Path
import signal
import sys
import threading
import time

import numpy as np
from PIL import Image

from train import predict
from train.data import transforms
import zoo

LOOK = 0.2  # seconds between two looks into the folders
SETTLED = 3.0  # seconds without a change after which a file is what it is

Stamp = tuple[int, int]  # bytes and time of a file


def arrivals(
  folders: Sequence[Path],
  done: dict[Path, Stamp],
  stopped: threading.Event,
  failed: Callable[[str], None],
) -> Iterator[tuple[Path, np.ndarray]]:
  """(path, [h w 3] uint8) of each photograph that is not as in `done`, until `stopped`."""
  seen: dict[Path, tuple[Stamp, float]] = {}  # and since when it has been so
  while not stopped.wait(LOOK):
    now = look(folders)
    seen = {path: known for path, known in seen.items() if path in now}
    done = {path: stamp for path, stamp in done.items() if path in now}
    for path, stamp in now.items():
      if done.get(path) == stamp or stopped.is_set():
        continue
      before, since = seen.get(path, (None, 0.0))
      if stamp != before:
        seen[path] = stamp, time.monotonic()
        continue
      try:
        pixels = transforms.decode(path.read_bytes())
      except (transforms.UnreadableImage, OSError) as error:
        if time.monotonic() - since >= SETTLED:
          done[path] = stamp
          why = error.strerror if isinstance(error, OSError) else error
          failed(f"{path}: {why}")
      else:
        done[path] = stamp
        yield path, pixels


def look(folders: Sequence[Path]) -> dict[Path, Stamp]:
  """The photographs that are there; one that goes while this looks is not."""
  found = {}
  for folder in folders:
    with contextlib.suppress(FileNotFoundError):
      for path in predict.below(folder):
        with contextlib.suppress(FileNotFoundError):
          known = path.stat()
          found[path] = known.st_size, known.st_mtime_ns
  return found


def demand(argv: Sequence[str], config: predict.Config) -> list[Path]:
  """The folders to watch. Raises ValueError: all that is wrong, before anything is loaded."""
  folders = [Path(word) for word in argv[1:]]
  faults = [f"{folder}: --watch wants folders that are there" for folder in folders
            if not folder.is_dir()]  # fmt: skip
  if config.out:
    faults.append("--watch prints its answers; leave --out away")
  if zoo.record(config.model).outputs:
    faults.append(f"--watch names classes; {config.model} answers something else")
  if faults:
    raise ValueError("\n".join(faults))
  return folders


def main(argv: Sequence[str], config: predict.Config) -> int:
  """Answers until SIGINT or SIGTERM; the exit status is 1 if something could not be read."""
  folders = demand(argv, config)
  record, begin = predict.answerer(
    config.model, top=config.top, batch=1, target=config.target, by=config.runtime
  )
  side, stopped, failures = record.preprocess.size, threading.Event(), []

  def failed(sentence):
    failures.append(sentence)
    print(f"not answered: {predict.readable(sentence)}", file=sys.stderr, flush=True)

  begin([Path()], np.zeros((1, side, side, 3), np.uint8))()  # compiles
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.set())
  there = look(folders)
  print(f"watching {', '.join(argv[1:])}; Ctrl-C ends it", flush=True)
  for path, pixels in arrivals(folders, there, stopped, failed):
    view = record.preprocess.crop(Image.fromarray(pixels))
    print(predict.show(begin([path], view[None])()[0]), flush=True)
  print("no longer watching", flush=True)
  return int(bool(failures))
