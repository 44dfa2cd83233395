"""FlatBuffers: tables and vectors in mapped bytes, every offset checked where it is followed.

A table begins with the distance to its vtable, which says where each field stands or that it has
its default. A reader asks for fields by their number in the schema.
"""

from collections.abc import Iterator
import dataclasses
import struct

import numpy as np

from convert.files import UnsafeFile, short, view

PART_LIMIT = 4_000_000  # tables and numbers that are looked at; several places may share them
TEXT_LIMIT = 4096  # bytes
AGAIN = "it was cut off or damaged; download it again"


@dataclasses.dataclass
class Buffer:
  """The bytes of a file, and how many of its parts may still be looked at."""

  data: np.ndarray
  parts: int = PART_LIMIT

  def root(self) -> "Table":
    return self.table(self.offset(0))

  def spend(self, parts: int) -> None:
    self.parts -= parts
    if self.parts < 0:
      raise UnsafeFile(f"it has more than {PART_LIMIT} parts, no model needs so many; refused")

  def number(self, form: str, at: int) -> int:
    if not 0 <= at <= len(self.data) - struct.calcsize(form):
      raise UnsafeFile(f"it refers to byte {at}, the file has {len(self.data)}; {AGAIN}")
    return struct.unpack_from(form, self.data, at)[0]

  def offset(self, at: int) -> int:
    """Where the offset at `at` leads."""
    return at + self.number("<I", at)

  def table(self, at: int) -> "Table":
    self.spend(1)
    places = at - self.number("<i", at)
    return Table(self, at, places, self.number("<H", places))

  def vector(self, at: int, dtype) -> np.ndarray:
    """[n] of `dtype`, a view; the length stands at `at`."""
    count, dtype = self.number("<I", at), np.dtype(dtype)
    if count * dtype.itemsize > len(self.data) - at - 4:
      raise UnsafeFile(f"a vector at byte {at} claims {count} elements, past the end; {AGAIN}")
    self.spend(0 if dtype.itemsize == 1 else count)  # bytes are only looked at where they lie
    return view(self.data, at + 4, (count,), dtype) if count else np.zeros(0, dtype)


@dataclasses.dataclass(frozen=True)
class Table:
  buffer: Buffer
  at: int
  places: int  # of its vtable
  size: int  # bytes of the vtable

  def place(self, field: int) -> int | None:
    """Where a field stands; None where it has its default."""
    row = 4 + 2 * field
    offset = self.buffer.number("<H", self.places + row) if row + 2 <= self.size else 0
    return self.at + offset if offset else None

  def scalar(self, field: int, form: str, default: int = 0) -> int:
    at = self.place(field)
    return default if at is None else self.buffer.number(form, at)

  def vector(self, field: int, dtype) -> np.ndarray:
    at = self.place(field)
    return np.zeros(0, dtype) if at is None else self.buffer.vector(self.buffer.offset(at), dtype)

  def text(self, field: int) -> str:
    raw = self.vector(field, np.uint8)
    if len(raw) > TEXT_LIMIT:
      raise UnsafeFile(f"a text of it has {len(raw)} bytes; refused")
    try:
      return raw.tobytes().decode()
    except UnicodeDecodeError:
      raise UnsafeFile(f"a text of it is {short(raw[:40].tobytes())}; {AGAIN}") from None

  def table(self, field: int) -> "Table | None":
    at = self.place(field)
    return None if at is None else self.buffer.table(self.buffer.offset(at))

  def tables(self, field: int) -> Iterator["Table"]:
    at = self.place(field)
    if at is not None:
      start = self.buffer.offset(at)
      for i, offset in enumerate(self.buffer.vector(start, "<u4")):
        yield self.buffer.table(start + 4 + 4 * i + int(offset))
