"""Checkpoints of TensorFlow: an index that it wrote, and tables that are none."""

from pathlib import Path
import random
import struct

import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile
from tests.graphs import INDEX, varint

WANT = {
  "net/bn/mean": np.arange(4),
  "net/half": np.array(1.5, np.float16),
  "net/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
}
DATA = WANT["net/kernel"].tobytes() + WANT["net/half"].tobytes() + WANT["net/bn/mean"].tobytes()
DATA += bytes(291)  # the object graph


def write(folder: Path, index: bytes = INDEX, data: bytes = DATA) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "x.data-00000-of-00001").write_bytes(data)
  path = folder / "x.index"
  path.write_bytes(index)
  return path


def test_variables_of_a_checkpoint_and_of_a_folder(tmp_path):
  path = write(tmp_path)
  for place in (path, tmp_path):
    got = readers.read(place)
    assert list(got) == list(WANT)
    for name, want in WANT.items():
      assert got[name].dtype == want.dtype and not got[name].flags.owndata
      np.testing.assert_array_equal(got[name], want)
  model = tmp_path / "model"
  (model / "variables").mkdir(parents=True)
  (model / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
  (model / "variables" / "variables.index").write_bytes(INDEX)
  (model / "variables" / "variables.data-00000-of-00001").write_bytes(DATA)
  assert list(readers.read(model)) == list(WANT)
  with pytest.raises(UnsafeFile, match="name its folder"):
    readers.read(model / "saved_model.pb")


def block(*rows: tuple[bytes, bytes], compression: int = 0, restarts: int = 0) -> bytes:
  """Rows without anything in common, and the trailer."""
  body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in rows)
  return body + struct.pack("<IB4x", restarts, compression)


def table(*rows: tuple[bytes, bytes], repeat: int = 1, **fields) -> bytes:
  inner = block(*rows, **fields)
  place = b"\0" + varint(len(inner) - 5)
  outer = block(*[(b"%c" % (i + 1), place) for i in range(repeat)])
  handles = b"\0\0" + varint(len(inner)) + varint(len(outer) - 5)
  return inner + outer + handles.ljust(40, b"\0") + INDEX[-8:]


HEADER = (b"", b"\x08\x01")
ENTRY = b"\x08\x01\x12\x04\x12\x02\x08\x06\x28\x18"  # six floats from byte 0


def test_tables_of_other_writers(tmp_path):
  got = readers.read(write(tmp_path, table(HEADER, (b"a", ENTRY), (b"b", ENTRY))))
  np.testing.assert_array_equal(got["b"], np.arange(6))


BAD = {
  "no header": (table((b"a", HEADER[1])), "does not begin with a header"),
  "no shards": (table((b"", b"")), "does not begin with a header"),
  "a million shards": (table((b"", b"\x08" + varint(10**6))), "does not begin with a header"),
  "big-endian": (table((b"", b"\x08\x01\x10\x01")), "does not begin with a header"),
  "two shards": (table((b"", b"\x08\x02")), "not beside"),
  "nothing": (table(HEADER), "no arrays"),
  "key twice": (table(HEADER, (b"a", ENTRY), (b"a", ENTRY)), "out of order"),
  "keys out of order": (table(HEADER, (b"b", ENTRY), (b"a", ENTRY)), "out of order"),
  "one block over and over": (table(HEADER, (b"a", ENTRY), repeat=100), "out of order"),
  "compressed": (table(HEADER, compression=1), "compressed"),
  "more restarts than bytes": (table(HEADER, restarts=1 << 30), "restarts"),
  "key that is no text": (table(HEADER, (b"\xff", ENTRY)), "by the name"),
  "key of a megabyte": (table(HEADER, (b"a" * (1 << 20), ENTRY)), "cannot be"),
  "other shard": (table(HEADER, (b"a", ENTRY + b"\x18\x07")), "shard 7"),
  "other type": (table(HEADER, (b"a", b"\x08\x63" + ENTRY[2:])), "type 99"),
  "beyond the shard": (table(HEADER, (b"a", ENTRY + b"\x20" + varint(1 << 40))), "ends at byte"),
  "before the shard": (table(HEADER, (b"a", ENTRY + b"\x20" + b"\xff" * 9 + b"\x01")), "ends at"),
  "slices": (table(HEADER, (b"a", ENTRY + b"\x3a\x00")), "in slices"),
  "other size": (table(HEADER, (b"a", ENTRY[:-1] + b"\x19")), "needs 24 bytes"),
  "footer alone": (INDEX[-48:], "cut off"),
  "half a footer": (INDEX[-24:], "has 24 bytes"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(tmp_path, what):
  index, sentence = BAD[what]
  with pytest.raises(UnsafeFile, match=sentence) as error:
    readers.read(write(tmp_path, index))
  assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_flipped_bits(tmp_path):
  rng, refused = random.Random(0), 0
  for _ in range(300):
    bad = bytearray(INDEX)
    for _ in range(rng.choice((1, 1, 4))):
      bad[rng.randrange(len(bad) - 8)] ^= 1 << rng.randrange(8)
    try:
      assert sum(a.nbytes for a in readers.read(write(tmp_path, bytes(bad))).values()) < 1 << 20
    except UnsafeFile:
      refused += 1
  assert 30 < refused < 300
