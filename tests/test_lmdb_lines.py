"""Sets of lines in LMDB form."""

import io
import threading

import numpy as np
from PIL import Image
import pytest

from train import loop, read
from train.data import lmdb_lines
from zoo.text import charset

lmdb = pytest.importorskip("lmdb", reason="pip install lmdb")
CLASSES = charset.of("abc")


def png(width):
  out = io.BytesIO()
  Image.fromarray(np.full((12, width, 3), width, np.uint8)).save(out, "PNG")
  return out.getvalue()


def written(folder, rows, count=None):
  """rows: [(picture's bytes, text)]; None of either is left out."""
  folder.mkdir(parents=True)
  with (
    lmdb.open(str(folder), map_size=1 << 20) as environment,
    environment.begin(write=True) as view,
  ):
    view.put(b"num-samples", str(len(rows) if count is None else count).encode())
    for i, (data, text) in enumerate(rows, start=1):
      if data is not None:
        view.put(f"image-{i:09d}".encode(), data)
      if text is not None:
        view.put(f"label-{i:09d}".encode(), text.encode())
  return folder


def test_a_database_is_read_by_many_threads(tmp_path):
  for split, texts in (("train", ["ab", "c", "bca"]), ("val", ["a"])):
    written(tmp_path / split, [(png(20 + i), text) for i, text in enumerate(texts)])
  splits = read.folders(loop.Config(data=str(tmp_path)), CLASSES)
  some = splits["train"]
  assert isinstance(some, lmdb_lines.Database) and splits["val"].texts == ("a",)
  assert some.texts == ("ab", "c", "bca") and some.keys[2] == "image-000000003"
  widths = {}

  def look(i):
    widths[i] = some.picture(i % 3).size

  threads = [threading.Thread(target=look, args=(i,)) for i in range(12)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  assert widths == {i: (20 + i % 3, 12) for i in range(12)}


def test_all_that_is_wrong_is_said_at_once(tmp_path):
  rows = [(png(9), "ab"), (None, "c"), (png(9), None), (png(9), "xa"), (b"no picture", "b")]
  folder = written(tmp_path / "broken", rows)
  with pytest.raises(ValueError) as error:
    lmdb_lines.load(folder, CLASSES)
  for said in ("there is no image-000000002", "image-000000003 has no text",
               "image-000000004: no class for 'x' (--characters)"):  # fmt: skip
    assert said in str(error.value)
  some = lmdb_lines.load(written(tmp_path / "late", rows[4:]), CLASSES)
  with pytest.raises(ValueError, match="cannot read image-000000001 of .*it is text"):
    some.picture(0)
  with pytest.raises(ValueError, match="has no num-samples; wanted the keys"):
    lmdb_lines.load(written(tmp_path / "other", [], "many"), CLASSES)
  (tmp_path / "junk").mkdir()
  (tmp_path / "junk/data.mdb").write_bytes(b"x" * 9000)
  with pytest.raises(ValueError, match="is no LMDB database"):
    lmdb_lines.load(tmp_path / "junk", CLASSES)
