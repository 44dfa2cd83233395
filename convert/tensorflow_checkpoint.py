"""TensorFlow's checkpoints, also those within a SavedModel: `.index` and its `.data-` shards.

The index is a sorted table of LevelDB: blocks of keys, each of which says what it has in common
with the one before, and a last block that says where they are. A value is a small message: type,
shape, place in a shard. Checksums are not looked at; shape and size must agree. Names lose what the
object graph appends to them. Where a moving average of a variable was kept beside it, that is what
was published, and it is read in its place. The form of 2015 and 2016, which TF-slim's checkpoints
have, is one `.ckpt`: the same table, compressed by Snappy, with the arrays in it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import protobuf, snappy
from convert.files import NAME_LIMIT, UnsafeFile, beside, gathered, mapped, shaped, short
from convert.protobuf import AGAIN, BYTES, Reader
from convert.tensorflow_graph import STRING, TENSOR, TYPES, filled

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes: two places, padding, the magic number
TRAILER = 5  # of each block: how it is compressed, a checksum
KEY_LIMIT = 1_000_000
SHARD_LIMIT = 10_000
HEADER = {1: ("shards", "int"), 2: ("big_endian", "int")}
ENTRY = {
  1: ("type", "int"), 2: ("shape", {2: ("dim", {1: ("size", "int")})}), 3: ("shard", "int"),
  4: ("offset", "int"), 5: ("size", "int"), 7: ("slices", "bytes"),
}  # fmt: skip
SHAPE = {2: ("dim", {1: ("size", "int")})}
OLD = {  # the first value has what is known of each, the others have one each
  1: ("known", {1: ("tensor", {
    1: ("name", "text"), 2: ("shape", SHAPE), 3: ("type", "int"), 4: ("slices", "bytes")})}),
  2: ("stored", {1: ("name", "text"), 3: ("tensor", TENSOR)}),
}  # fmt: skip
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
AVERAGE = "/ExponentialMovingAverage"
INDEXES = ("variables/variables.index", "*.index")


def matches(data: np.ndarray, path: Path) -> bool:
  return data[-8:].tobytes() == MAGIC


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every variable by name, as views of the shards. Raises UnsafeFile."""
  rows = _rows(data)
  name, value = next(rows, (b"", data[:0]))
  if not name and [field[:2] for field in protobuf.outline(value[:64])][:1] == [(1, BYTES)]:
    return _averaged(gathered(_old(value, rows, len(data)), len(data)))
  header = protobuf.parse(value, HEADER)
  count = header.one("shards", 0)
  if name or not 0 < count <= SHARD_LIMIT or header.one("big_endian", 0):
    raise UnsafeFile(
      f"its table does not begin with a header of 1 to {SHARD_LIMIT} shards; {AGAIN}"
    )
  stem = path.name.removesuffix(".index")
  places = [beside(path, f"{stem}.data-{i:05}-of-{count:05}", "a shard") for i in range(count)]
  shards = [mapped(place) for place in places]
  return _averaged(gathered(_variables(rows, shards), sum(map(len, shards))))


def _averaged(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  averages = {name.removesuffix(AVERAGE): name for name in found if name.endswith(AVERAGE)}
  return {
    name: found[averages.get(name, name)] for name in {**found, **averages}
    if not name.endswith(AVERAGE)
  }  # fmt: skip


def _variables(rows, shards: list[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  for key, value in rows:
    what, entry = f"its variable {short(key)}", protobuf.parse(value, ENTRY)
    kind, shard = entry.one("type", 0), entry.one("shard", 0)
    begin, size = entry.one("offset", 0), entry.one("size", 0)
    if kind == STRING:  # the object graph
      continue
    if entry.all("slices"):
      raise UnsafeFile(f"{what} is stored in slices; save it in one piece")
    if kind not in TYPES or not 0 <= shard < len(shards):
      raise UnsafeFile(f"{what} is of type {kind} in shard {shard}, which is not read here")
    if not 0 <= begin <= begin + size <= len(shards[shard]):
      raise UnsafeFile(f"{what} ends at byte {begin + size} of {len(shards[shard])}; {AGAIN}")
    shape = entry.one("shape")
    shape = [dim.one("size", 0) for dim in shape.all("dim")] if shape else []
    raw = shards[shard][begin : begin + size]
    yield _name(key), shaped(raw, shape, TYPES[kind][0], what)


def _old(first: np.ndarray, rows, size: int) -> Iterator[tuple[str, np.ndarray]]:
  known = protobuf.parse(first, OLD).one("known")
  facts = {row.one("name", ""): row for row in known.all("tensor")}
  for _, value in rows:
    stored = protobuf.parse(value, OLD).one("stored")
    name = stored.one("name", "") if stored else ""
    what, row = f"its variable {short(name)}", facts.pop(name, None)
    if row is None or not stored.one("tensor"):
      raise UnsafeFile(f"{what} is not as its table announces it; {AGAIN}")
    if len(row.all("slices")) > 1:
      raise UnsafeFile(f"{what} is stored in slices; save it in one piece")
    if row.one("type") != STRING:
      yield name, filled(what, row, stored.one("tensor"), size)
  if facts:
    raise UnsafeFile(f"{len(facts)} variables are not in it, {short(min(facts))} is one; {AGAIN}")


def _name(key: bytes) -> str:
  try:
    return key.decode().removesuffix(SUFFIX)
  except UnicodeDecodeError:
    raise UnsafeFile(f"it holds a variable by the name {short(key)}; refused") from None


def _rows(data: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
  """(key, value) in the order of the table, which is that of the keys."""
  if len(data) < FOOTER:
    raise UnsafeFile(f"its table has {len(data)} bytes; {AGAIN}")
  reader = Reader(memoryview(data), data)
  at, last, count = len(data) - FOOTER, None, 0
  for _ in range(2):  # what the first place leads to is not used
    at, *place = _place(reader, at, len(data))
  for _, where in _block(reader, *place):
    _, *inner = _place(Reader(memoryview(where), where), 0, len(where))
    for key, value in _block(reader, *inner):
      count += 1
      if count > KEY_LIMIT or (last is not None and key <= last):
        raise UnsafeFile(f"its table has keys out of order or more than {KEY_LIMIT}; {AGAIN}")
      last = key
      yield key, value


def _place(reader: Reader, at: int, end: int) -> tuple[int, int, int]:
  """(byte after it, offset, size) of a block's place."""
  offset, at = reader.varint(at, end)
  size, at = reader.varint(at, end)
  return at, offset, size


def _block(reader: Reader, offset: int, size: int) -> Iterator[tuple[bytes, np.ndarray]]:
  """(key, value) of a block."""
  data = reader.array
  if offset + size + TRAILER > len(data) or size < 4:
    raise UnsafeFile(f"a block of its table ends at byte {offset + size}; {AGAIN}")
  if data[offset + size] not in (0, 1):
    raise UnsafeFile(f"a block of its table is compressed in the unknown way {data[offset + size]}")
  if data[offset + size]:
    data = snappy.unpacked(data[offset : offset + size])
    reader, offset, size = Reader(memoryview(data), data), 0, len(data)
    if size < 4:
      raise UnsafeFile(f"a block of its table unpacks to {size} bytes; {AGAIN}")
  restarts = int.from_bytes(data[offset + size - 4 : offset + size].tobytes(), "little")
  at, end, key = offset, offset + size - 4 - 4 * restarts, b""
  if end < offset:
    raise UnsafeFile(f"a block of its table claims {restarts} restarts; {AGAIN}")
  while at < end:
    shared, at = reader.varint(at, end)
    own, at = reader.varint(at, end)
    length, at = reader.varint(at, end)
    if shared > len(key) or shared + own > NAME_LIMIT or own + length > end - at:
      raise UnsafeFile(f"a key of its table at byte {at} cannot be; {AGAIN}")
    key = key[:shared] + data[at : at + own].tobytes()
    yield key, data[at + own : at + own + length]
    at += own + length
