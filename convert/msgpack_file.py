"""Files of flax.serialization: nested maps of MessagePack, with arrays as its extension types.

Arrays stay where they are in the mapped file, save those that Flax splits because they are too
large for one piece (above 1 GB).
"""

import struct

import numpy as np

from convert.files import UnsafeFile, short, view
from convert.pickle_data import check_key
from convert.plain_objects import shape_of
from convert.torch_file import DTYPES

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # Flax's extension types
CHUNKED = "__msgpack_chunked_array__"
DEPTH_LIMIT = 64
VALUE_LIMIT = 300_000
AGAIN = "it was cut off or damaged; download it again"
SIZES = {1: "B", 2: "H", 4: "I"}
# First byte -> (kind, bytes of the length that follows).
LONG = {
  0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2),
  0xC9: ("ext", 4), 0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("list", 2),
  0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b",
           0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}  # fmt: skip
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def matches(data: np.ndarray, _=None) -> bool:
  """A map with a text of some length as its first key."""
  first = int(data[0])
  at = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first, len(data))
  return at < len(data) and (0xA1 <= data[at] <= 0xBF or 0xD9 <= data[at] <= 0xDB)


def tree(data: np.ndarray):
  """The object in the file, with arrays as they stand in it. Raises UnsafeFile."""
  parser = Parser(data)
  made = parser.value(0)
  if parser.at != len(data):
    raise UnsafeFile(f"something of {len(data) - parser.at} bytes was appended to it; refused")
  return made


class Parser:
  """Reads one value after another from mapped bytes."""

  def __init__(self, data: np.ndarray, budget: int = VALUE_LIMIT):
    self.data, self.at, self.budget = data, 0, budget

  def take(self, size: int) -> int:
    """Where the next `size` bytes begin."""
    if size > len(self.data) - self.at:
      raise UnsafeFile(
        f"wanted {size} bytes at byte {self.at}, there are {len(self.data) - self.at}; {AGAIN}"
      )
    self.at += size
    return self.at - size

  def bytes(self, size: int) -> bytes:
    return self.data[self.take(size) : self.at].tobytes()

  def value(self, depth: int):
    self.budget -= 1
    if depth > DEPTH_LIMIT or self.budget < 0:
      raise UnsafeFile("its values are nested without end or far too many; refused")
    first = self.bytes(1)[0]
    if first in CONSTANTS:
      return CONSTANTS[first]
    if first < 0x80 or first >= 0xE0:
      return first if first < 0x80 else first - 0x100
    if first in NUMBERS:
      return struct.unpack(NUMBERS[first], self.bytes(struct.calcsize(NUMBERS[first])))[0]
    return self.sized(first, depth)

  def sized(self, first: int, depth: int):
    """Texts, bytes, lists, maps and extensions."""
    if first in LONG:
      kind, width = LONG[first]
      size = struct.unpack(f">{SIZES[width]}", self.bytes(width))[0]
    elif 0xD4 <= first <= 0xD8:
      kind, size = "ext", 1 << (first - 0xD4)
    elif first == 0xC1:
      raise UnsafeFile(f"byte {self.at - 1} begins no value; {AGAIN}")
    else:
      kind = "str" if first >= 0xA0 else "list" if first >= 0x90 else "map"
      size = first & (0x1F if kind == "str" else 0x0F)
    if kind in ("list", "map") and size > len(self.data) - self.at:
      raise UnsafeFile(f"a {kind} of {size} entries at byte {self.at} is longer than the file")
    if kind == "list":
      return [self.value(depth + 1) for _ in range(size)]
    if kind == "map":
      return self.map(size, depth)
    if kind == "ext":
      return self.extension(struct.unpack("b", self.bytes(1))[0], size)
    raw = self.data[self.take(size) : self.at]
    return raw if kind == "bin" else _text(raw.tobytes())

  def map(self, size: int, depth: int):
    made = {}
    for _ in range(size):
      key = self.value(depth + 1)
      check_key(key)
      if key in made:
        raise UnsafeFile(f"a map of it has the key {short(key)} twice; refused")
      made[key] = self.value(depth + 1)
    return _joined(made) if CHUNKED in made else made

  def extension(self, code: int, size: int):
    begin = self.take(size)
    if code not in (ARRAY, SCALAR):
      return None  # of no array
    inner = Parser(self.data[begin : self.at], budget=100)
    row = inner.value(0)
    if type(row) is not list or len(row) != 3 or type(row[2]) is not np.ndarray:
      raise UnsafeFile(f"an array of it is described by {short(row)}; refused")
    shape, name, raw = row
    name = name.tobytes().decode("latin-1") if type(name) is np.ndarray else name
    if type(name) is not str or name not in DTYPES:
      raise UnsafeFile(f"an array of it is of type {short(name)}, which is no number; refused")
    shape, dtype = shape_of(shape), np.dtype(DTYPES[name])
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if wanted != len(raw):
      raise UnsafeFile(f"an array of shape {shape} needs {wanted} bytes, has {len(raw)}; {AGAIN}")
    return view(raw, 0, shape, dtype)


def _text(raw: bytes) -> str:
  try:
    return raw.decode()
  except UnicodeDecodeError:
    raise UnsafeFile(f"it has the text {short(raw)}, which is no UTF-8; {AGAIN}") from None


def _joined(parts: dict) -> np.ndarray:
  """An array that Flax wrote in pieces."""
  pieces, shape = (_in_order(parts.get(key)) for key in ("chunks", "shape"))
  if not pieces or shape is None or any(type(p) is not np.ndarray or p.ndim != 1 for p in pieces):
    raise UnsafeFile(f"a split array of it is described by {short(parts)}; refused")
  shape = shape_of(shape)
  whole = np.concatenate(pieces) if len({p.dtype for p in pieces}) == 1 else np.zeros(0)
  if whole.size != int(np.prod(shape, dtype=object)):
    raise UnsafeFile(f"the pieces of an array of shape {shape} have {whole.size} numbers; {AGAIN}")
  return whole.reshape(shape)


def _in_order(rows) -> list | None:
  """A list that Flax wrote as {"0": first, "1": second ...}."""
  keys = [str(i) for i in range(len(rows))] if type(rows) is dict else None
  return [rows[key] for key in keys] if keys is not None and all(k in rows for k in keys) else None
