"""Checkpoints of TensorFlow: an index that it wrote, and tables that are none."""

from pathlib import Path
import random
import struct

import numpy as np
import pytest

from convert import readers, snappy as unpacker
from convert.files import UnsafeFile
from tests.graphs import INDEX, OLD, field, snappy, varint

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


def block(*rows: tuple[bytes, bytes], compression: int = 0, restarts: int = 0, pack=None) -> bytes:
  """Rows without anything in common, and the trailer."""
  body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in rows)
  body += struct.pack("<I", restarts)
  return (pack(body) if pack else body) + struct.pack("<B4x", compression)


def table(*rows: tuple[bytes, bytes], repeat: int = 1, **fields) -> bytes:
  inner = block(*rows, **fields)
  place = b"\0" + varint(len(inner) - 5)
  outer = block(*[(b"%c" % (i + 1), place) for i in range(repeat)])
  handles = b"\0\0" + varint(len(inner)) + varint(len(outer) - 5)
  return inner + outer + handles.ljust(40, b"\0") + INDEX[-8:]


HEADER = (b"", b"\x08\x01")
ENTRY = b"\x08\x01\x12\x04\x12\x02\x08\x06\x28\x18"  # six floats from byte 0
AVERAGE = b"/ExponentialMovingAverage"


def test_tables_of_other_writers(tmp_path):
  got = readers.read(write(tmp_path, table(HEADER, (b"a", ENTRY), (b"b", ENTRY))))
  np.testing.assert_array_equal(got["b"], np.arange(6))


def test_a_moving_average_is_read_in_its_variables_place(tmp_path):
  average, last = ENTRY, ENTRY[:-2] + b"\x20\x18\x28\x18"
  rows = ((b"a", last), (b"a" + AVERAGE, average), (b"b", average), (b"b/Momentum", last))
  data = np.arange(12, dtype="<f4").tobytes()
  got = readers.read(write(tmp_path, table(HEADER, *rows), data))
  assert list(got) == ["a", "b", "b/Momentum"]
  np.testing.assert_array_equal(got["a"], np.arange(6))
  np.testing.assert_array_equal(got["b/Momentum"], np.arange(6, 12))


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


def test_the_form_of_2016(tmp_path):
  path = tmp_path / "x.ckpt"
  path.write_bytes(OLD)
  got = readers.read(path)
  assert list(got) == list(WANT)
  for name, want in WANT.items():
    assert got[name].dtype == want.dtype
    np.testing.assert_array_equal(got[name], want)


def stored(name: bytes, numbers: bytes) -> bytes:
  return field(2, field(1, name) + field(2, b"") + field(3, field(5, numbers)))


def known(name: bytes, slices: int = 1) -> bytes:
  row = field(1, name) + field(2, field(2, field(1, 6))) + field(3, 1) + field(4, b"") * slices
  return field(1, field(1, row))


FLOATS = np.arange(6, dtype="<f4").tobytes()
OLD_ROWS = ((b"", known(b"w")), (b"\0w", stored(b"w", FLOATS)))


def test_compressed_blocks(tmp_path):
  """As of 2016, and in today's form too."""
  path = tmp_path / "x.ckpt"
  path.write_bytes(table(*OLD_ROWS, compression=1, pack=snappy))
  np.testing.assert_array_equal(readers.read(path)["w"], np.arange(6))
  rows = table(HEADER, (b"a", ENTRY), compression=1, pack=snappy)
  np.testing.assert_array_equal(readers.read(write(tmp_path, rows))["a"], np.arange(6))


def unpacked(data: bytes) -> bytes:
  return unpacker.unpacked(np.frombuffer(data, np.uint8)).tobytes()


def test_snappy_copies():
  """Of one, two and four bytes of distance; those that reach into what they make repeat it."""
  assert unpacked(snappy(b"abcd", b"\x01\x04", size=8)) == b"abcdabcd"
  assert unpacked(snappy(b"abcd", b"\x3e\x04\0", size=20)) == b"abcd" * 5
  assert unpacked(snappy(b"abcd", b"\x0b\x02\0\0\0", size=7)) == b"abcdcdc"
  pa = pytest.importorskip("pyarrow")
  rng = np.random.default_rng(0)
  for high in (3, 256):
    data = rng.integers(0, high, 100_000, dtype=np.uint8).tobytes() + bytes(70_000)
    assert unpacked(pa.compress(data, "snappy", asbytes=True)) == data


PACKED = {
  "nothing": b"",
  "size without end": b"\xff" * 6,
  "size of 2**32": b"\xff\xff\xff\xff\x0f\0a",
  "a gigabyte of copies": varint(1 << 30) + b"\0a" + b"\xfe\1\0" * (1 << 16),
  "more than its size": snappy(b"abcd", size=3),
  "less than its size": snappy(b"abcd", size=5),
  "literal beyond the end": b"\x04\xf0\x09abc",
  "number beyond the end": b"\x04\xf8\x09",
  "copy of nothing": b"\x04\x02\x01\x00",
  "copy from before": snappy(b"abcd", b"\x0e\x05\0", size=8),
  "copy from here": snappy(b"abcd", b"\x0e\0\0", size=8),
}


@pytest.mark.parametrize("what", PACKED)
def test_bad_compression_is_said(what):
  with pytest.raises(UnsafeFile, match="block") as error:
    unpacked(PACKED[what])
  assert len(str(error.value)) < 200


OLD_BAD = {
  "announced and not there": (OLD_ROWS[:1], "are not in it"),
  "there and not announced": ((OLD_ROWS[0], (b"\0x", stored(b"x", FLOATS))), "announces"),
  "there twice": ((*OLD_ROWS, (b"\1w", OLD_ROWS[1][1])), "announces"),
  "in slices": (((b"", known(b"w", 2)), OLD_ROWS[1]), "in slices"),
  "nothing in it": ((OLD_ROWS[0], (b"\0w", field(2, field(1, b"w")))), "announces"),
  "too many numbers": ((OLD_ROWS[0], (b"\0w", stored(b"w", FLOATS * 2))), "needs 24 bytes"),
  "no variables": (((b"", field(1, b"")),), "no arrays"),
}


@pytest.mark.parametrize("what", OLD_BAD)
def test_old_files_that_lie(tmp_path, what):
  rows, sentence = OLD_BAD[what]
  path = tmp_path / "x.ckpt"
  path.write_bytes(table(*rows))
  with pytest.raises(UnsafeFile, match=sentence):
    readers.read(path)


def test_old_files_cut_anywhere(tmp_path):
  path = tmp_path / "x.ckpt"
  for size in range(1, len(OLD), 3):
    path.write_bytes(OLD[:size])
    with pytest.raises(UnsafeFile):
      readers.read(path)


@pytest.mark.parametrize("good", [INDEX, OLD])
def test_flipped_bits(tmp_path, good):
  rng, refused = random.Random(0), 0
  for _ in range(300):
    bad = bytearray(good)
    for _ in range(rng.choice((1, 1, 4))):
      bad[rng.randrange(len(bad) - 8)] ^= 1 << rng.randrange(8)
    try:
      assert sum(a.nbytes for a in readers.read(write(tmp_path, bytes(bad))).values()) < 1 << 20
    except UnsafeFile:
      refused += 1
  assert 30 < refused < 300
