"""Lines of text in an LMDB database, as the sets of text recognition are passed around.

  num-samples, then image-000000001 (an encoded picture) and label-000000001 (UTF-8), from 1 on

The keys are those of Shi's CRNN, which later benchmarks kept.
"""

from collections.abc import Sequence
import dataclasses
from functools import cache
from pathlib import Path

from PIL import Image

from train.data import transforms

FILE = "data.mdb"
LISTED = 20  # faults named in one message; of the others the number is told


@dataclasses.dataclass(frozen=True)
class Database:
  """Pictures and what is written on them; read from several threads at once."""

  root: Path
  keys: tuple[str, ...]
  texts: tuple[str, ...]

  def picture(self, index: int) -> Image.Image:
    key = self.keys[index]
    with _open(self.root).begin() as view:
      data = view.get(key.encode())
    try:
      return Image.fromarray(transforms.decode(data))
    except ValueError as error:
      raise ValueError(f"cannot read {key} of {self.root}: {error}") from error


@cache  # a process may open a database once
def _open(root: Path):
  try:
    import lmdb
  except ImportError as error:
    raise ValueError(f"{root} is an LMDB database; to read it: pip install lmdb") from error
  try:
    # Without a lock: nobody writes, and the folder may be one that nobody may write to.
    return lmdb.open(str(root), readonly=True, lock=False, readahead=False)
  except lmdb.Error as error:
    raise ValueError(f"{root / FILE} is no LMDB database: {error}") from error


def load(root: Path, known: Sequence[str]) -> Database:
  """The lines of the database in the folder `root`.

  Raises:
    ValueError: it is no such database, or lists rows that are not there, without a text, or with
      characters that are not among the classes `known`.
  """
  root, known, keys, texts, faults = Path(root), set(known), [], [], []
  with _open(root).begin() as view:
    count = view.get(b"num-samples")
    if count is None or not count.isdigit():
      raise ValueError(
        f"{root} has no num-samples; wanted the keys num-samples, image-000000001, label-000000001"
      )
    for number in range(1, int(count) + 1):
      key, label = f"image-{number:09d}", view.get(f"label-{number:09d}".encode())
      text = None if label is None else label.decode("utf-8", "replace")
      if view.get(key.encode()) is None:
        faults.append(f"there is no {key}")
      if not text:
        faults.append(f"{key} has no text")
      elif strange := sorted(set(text) - known):
        faults.append(f"{key}: no class for {' '.join(map(repr, strange))} (--characters)")
      keys.append(key)
      texts.append(text or "")
  if faults:
    more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    raise ValueError(f"{root} cannot be used:\n  " + "\n  ".join(faults[:LISTED]) + more)
  return Database(root, tuple(keys), tuple(texts))
