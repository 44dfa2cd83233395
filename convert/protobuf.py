"""Protocol buffers: the wire format, read with a table of the few fields that are wanted.

ONNX, Caffe's models and TensorFlow's graphs are protocol buffers. A schema is a table {number of
the field: (name, kind)}; a kind is "int", "text", "bytes", the schema of a message within, or for
repeated numbers "ints", "floats", "doubles"; other fields are skipped. Strings of bytes and packed
floats stay where they are in the file, whole numbers are unpacked when they are asked for. Nesting
goes as deep as the schema and no deeper.
"""

from collections.abc import Iterator, Mapping
import dataclasses

import numpy as np

from convert.files import UnsafeFile, short

Kind = str | Mapping[int, tuple[str, "Kind"]]
Schema = Mapping[int, tuple[str, Kind]]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are of another age
WIRES = (VARINT, FIXED64, BYTES, FIXED32)
WIDTHS = {FIXED64: 8, FIXED32: 4}
NUMBERS = {"int": VARINT, "ints": VARINT, "floats": FIXED32, "doubles": FIXED64}  # each by itself
PACKED = {"ints": np.dtype("u1"), "floats": np.dtype("<f4"), "doubles": np.dtype("<f8")}
FIELD_LIMIT = 1_000_000  # of a file
NUMBER_LIMIT = 1 << 23  # packed whole numbers of one field; each takes 8 bytes
OUTLINE_LIMIT = 10_000
AGAIN = "it was cut off or damaged; download it again"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
  """What a message holds, by the names of its schema."""

  fields: Mapping[str, list]

  def all(self, name: str) -> list:
    return self.fields.get(name, [])

  def one(self, name: str, default=None):
    """The value of a field that stands once at most. Raises UnsafeFile."""
    values = self.all(name)
    if len(values) > 1:
      raise UnsafeFile(f"it says {len(values)} things of a {name}; {AGAIN}")
    return values[0] if values else default

  def numbers(self, name: str, dtype) -> np.ndarray:
    """Repeated numbers, packed or not, as [n]; a view where the file has them in one piece."""
    parts = [_unpacked(part) for part in self.all(name)]
    if len(parts) == 1:
      return parts[0].astype(dtype, copy=False)
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


@dataclasses.dataclass
class Reader:
  """The bytes of a file, and how many fields may still come."""

  bytes: memoryview
  array: np.ndarray
  fields: int = dataclasses.field(default_factory=lambda: FIELD_LIMIT)

  def message(self, begin: int, end: int, schema: Schema) -> Message:
    found: dict[str, list] = {}
    for number, wire, value, at in self.walk(begin, end):
      if number not in schema:
        continue
      name, kind = schema[number]
      found.setdefault(name, []).append(self.value(name, kind, wire, value, at))
    return Message(found)

  def walk(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, number or length, where its bytes begin) of each field."""
    at = begin
    while at < end:
      number, wire, value, at = self.field(at, end)
      yield number, wire, value, at
      at += 0 if wire == VARINT else value

  def field(self, at: int, end: int) -> tuple[int, int, int, int]:
    self.fields -= 1
    if self.fields < 0:
      raise UnsafeFile(f"it has more than {FIELD_LIMIT} fields, no model needs so many; refused")
    key, at = self.varint(at, end)
    number, wire = key >> 3, key & 7
    if not number or wire not in WIRES:
      raise UnsafeFile(f"it has field {number} of the unknown kind {wire} at byte {at}; {AGAIN}")
    if wire == VARINT:
      return number, wire, *self.varint(at, end)
    size, at = self.varint(at, end) if wire == BYTES else (WIDTHS[wire], at)
    if size > end - at:
      raise UnsafeFile(
        f"field {number} at byte {at} claims {size} bytes, {end - at} are left; {AGAIN}"
      )
    return number, wire, size, at

  def varint(self, at: int, end: int) -> tuple[int, int]:
    """(a number of 64 bits, where the next byte is)."""
    if at < end and self.bytes[at] < 128:  # most are short
      return self.bytes[at], at + 1
    value = 0
    for i in range(10):
      if at + i >= end:
        break
      byte = self.bytes[at + i]
      value |= (byte & 127) << 7 * i
      if byte < 128:
        return value & (1 << 64) - 1, at + i + 1
    raise UnsafeFile(f"a number at byte {at} does not end; {AGAIN}")

  def value(self, name: str, kind: Kind, wire: int, value: int, at: int):
    """A field's value; packed numbers as an array."""
    if isinstance(kind, str) and NUMBERS.get(kind) == wire:
      if wire != VARINT:
        return self.array[at : at + value].view(PACKED[kind])[0]
      return value - (1 << 64) if value >> 63 else value
    if wire != BYTES or kind == "int":
      raise UnsafeFile(f"its field {name} is of the wrong kind {wire}; {AGAIN}")
    if not isinstance(kind, str):
      return self.message(at, at + value, kind)
    raw = self.array[at : at + value]
    if kind in ("bytes", "text"):
      return _text(raw) if kind == "text" else raw
    if len(raw) % PACKED[kind].itemsize:
      raise UnsafeFile(f"its field {name} of {len(raw)} bytes holds no whole number of {kind}")
    return raw.view(PACKED[kind])


def parse(data: np.ndarray, schema: Schema) -> Message:
  """The message that [n] uint8 `data` is. Raises UnsafeFile."""
  return Reader(memoryview(data), data).message(0, len(data), schema)


def outline(data: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
  """(number, wire type, bytes) of the first fields, up to whatever is none or is cut off."""
  found = []
  reader, at = Reader(memoryview(data), data, OUTLINE_LIMIT), 0
  try:
    while at < len(data):
      key, begin = reader.varint(at, len(data))
      if not key >> 3 or key & 7 not in WIRES:
        break
      found.append((key >> 3, key & 7, data[begin:]))
      number, wire, value, begin = reader.field(at, len(data))
      at = begin + (0 if wire == VARINT else value)
      found[-1] = (number, wire, data[begin:at])
  except UnsafeFile:  # cut off; what came before tells what it is
    pass
  return found


def varints(raw: np.ndarray) -> np.ndarray:
  """[n] uint8 of whole numbers, seven bits a byte, lowest first -> [m] int64."""
  ends = np.flatnonzero(raw < 128) + 1
  if len(raw) and (not len(ends) or ends[-1] != len(raw)):
    raise UnsafeFile(f"the last of its packed numbers does not end; {AGAIN}")
  if len(ends) > NUMBER_LIMIT:
    raise UnsafeFile(f"it has {len(ends)} packed whole numbers in one field; refused")
  begins = np.concatenate(([0], ends[:-1])).astype(np.int64)
  sizes = ends - begins
  if len(raw) and sizes.max() > 10:
    raise UnsafeFile(f"one of its packed numbers has {sizes.max()} bytes; {AGAIN}")
  out = np.zeros(len(ends), np.uint64)
  for i in range(sizes.max() if len(raw) else 0):
    more = sizes > i
    out[more] |= (raw[begins[more] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
  return out.view(np.int64)


def _unpacked(part) -> np.ndarray:
  """[n] of one number, or of packed ones."""
  if isinstance(part, np.ndarray) and part.dtype == np.uint8:
    return varints(part)
  return np.atleast_1d(np.asarray(part))


def _text(raw: np.ndarray) -> str:
  try:
    return raw.tobytes().decode()
  except UnicodeDecodeError:
    raise UnsafeFile(f"a text of it is {short(raw[:40].tobytes())}; {AGAIN}") from None
