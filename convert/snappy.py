"""Snappy, which compresses LevelDB's blocks: literals and copies of what came before, by bytes."""

import numpy as np

from convert.files import ALLOWANCE, EXPANSION, UnsafeFile

AGAIN = "it was cut off or damaged; download it again"


def unpacked(data: np.ndarray) -> np.ndarray:
  """[n] uint8 -> [m] uint8. Raises UnsafeFile."""
  raw, size, at = memoryview(data), 0, 0
  for shift in range(0, 35, 7):
    if at >= len(raw):
      raise UnsafeFile(f"a compressed block of it has no size; {AGAIN}")
    byte, at = raw[at], at + 1
    size |= (byte & 127) << shift
    if byte < 128:
      break
  if size > EXPANSION * len(raw) + ALLOWANCE:
    raise UnsafeFile(f"a block of {len(raw)} bytes claims to unpack to {size}; refused")
  out, end = bytearray(), len(raw)
  while at < end:
    tag, at = raw[at], at + 1
    kind, length = tag & 3, (tag >> 2) + 1
    width = max(length - 60, 0) if kind == 0 else (1, 2, 4)[kind - 1]  # bytes of number behind
    if at + width > end:
      raise UnsafeFile(f"a compressed block of it ends within a number; {AGAIN}")
    number, at = int.from_bytes(raw[at : at + width], "little"), at + width
    if kind == 0:
      length = number + 1 if width else length
      if at + length > end:
        raise UnsafeFile(f"a compressed block of it ends within {length} bytes; {AGAIN}")
      out += raw[at : at + length]
      at += length
    else:
      if kind == 1:
        length, number = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | number
      if not 0 < number <= len(out):
        raise UnsafeFile(f"a compressed block of it copies from {number} bytes back; {AGAIN}")
      piece = out[-number:][:length]
      out += (piece * (length // len(piece) + 1))[:length]  # may reach into what it makes
    if len(out) > size:
      break
  if len(out) != size:
    raise UnsafeFile(f"a compressed block of {size} bytes has {len(out)}; {AGAIN}")
  array = np.frombuffer(out, np.uint8)
  array.flags.writeable = False
  return array
