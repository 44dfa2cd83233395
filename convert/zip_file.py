"""Finds the members of a zip archive that stores them plainly, in mapped bytes.

Stricter than `zipfile`: what writers of weights leave and nothing else. Members are not encrypted,
names are unique and relative, members do not overlap, the directory is where it should be, local
headers agree with it. `members` are not compressed either, so nothing unpacks to more than the file
holds; `only_member` (an archive around one file of weights, as some publish them) and `unpacked`
(of NumPy) may be, if they do not grow by more than weights can.
"""

from collections.abc import Iterator
import dataclasses
import re
import stat
import struct
import zlib

import numpy as np

from convert.files import UnsafeFile, forget, short

END = struct.Struct("<4s4H2LH")  # end of central directory
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
PLAIN, DEFLATED = 0, 8  # methods
ENCRYPTED, STREAMED = 1, 8  # bits of a member's flags; streamed: sizes follow the data
MEMBER_LIMIT = 200_000
COMMENT_LIMIT = 0xFFFF
GROWTH_LIMIT = 10  # of a compressed file of weights; trained ones shrink by a tenth or so
ALLOWANCE = 64 << 20  # bytes that compressed arrays may take whatever the file
UNKNOWN = 0xFFFFFFFF  # see the zip64 record
AGAIN = "it was cut off or damaged; download it again"


@dataclasses.dataclass(frozen=True)
class Member:
  name: str
  header: int  # where its local header begins
  size: int
  packed: int  # bytes in the archive
  crc: int
  flags: int
  method: int


def looks_like_zip(data: np.ndarray) -> bool:
  return data[:4].tobytes() in (b"PK\x03\x04", b"PK\x05\x06")


def members(data: np.ndarray, aside: re.Pattern | None = None) -> dict[str, np.ndarray]:
  """The bytes of each member by its name, as views; without those that `aside` matches.

  Raises:
    UnsafeFile: damaged, compressed, or otherwise not what writers of weights leave.
  """
  found = _list(data)
  parts = [(member, part) for member, part in _parts(data, found)
           if not (aside and aside.fullmatch(member.name))]  # fmt: skip
  for member, _ in parts:
    if not _is_plain(member):
      raise UnsafeFile(
        f"{short(member.name)} is compressed in its archive, as no weights are: it was packed by "
        "another tool; torch.save model.state_dict()"
      )
  return {member.name: _checked(part, member) for member, part in parts}


def only_member(data: np.ndarray) -> np.ndarray | None:
  """The bytes of the one file of weights in an archive; None if it holds anything else."""
  found = _list(data)
  if len(found) != 1 or not found[0].name.endswith((".pth", ".pt", ".pkl")):
    return None
  [(member, part)] = _parts(data, found)
  if _is_plain(member):
    return _checked(part, member)
  if member.size > GROWTH_LIMIT * member.packed:
    raise UnsafeFile(
      f"{short(member.name)} unpacks from {member.packed} to {member.size} bytes, by more than "
      "weights do; refused"
    )
  return _inflated(part, member)


def names(data: np.ndarray) -> list[str]:
  """Of the members, in the order of their places."""
  return [member.name for member in _list(data)]


def unpacked(data: np.ndarray) -> dict[str, np.ndarray]:
  """The bytes of each member by its name, views or, where they are compressed, unpacked."""
  found = _list(data)
  size = sum(member.size for member in found)
  if size > GROWTH_LIMIT * len(data) + ALLOWANCE:
    raise UnsafeFile(
      f"it unpacks from {len(data)} to {size} bytes, by more than weights do; refused"
    )
  return {
    member.name: _checked(part, member) if _is_plain(member) else _inflated(part, member)
    for member, part in _parts(data, found)
  }


def _is_plain(member: Member) -> bool:
  return member.method == PLAIN and member.packed == member.size


def _inflated(part: np.ndarray, member: Member) -> np.ndarray:
  if member.method != DEFLATED:
    raise UnsafeFile(f"{short(member.name)} is packed by method {member.method}; unpack it first")
  machine = zlib.decompressobj(-zlib.MAX_WBITS)
  try:
    whole = machine.decompress(part, member.size) if member.size else b""
  except zlib.error as error:
    raise UnsafeFile(f"{short(member.name)} cannot be unpacked ({error}); {AGAIN}") from None
  return _checked(np.frombuffer(whole, np.uint8), member)


def _list(data: np.ndarray) -> list[Member]:
  """The members of the archive in the order of their places."""
  count, begin, end = _directory(data)
  found: dict[str, Member] = {}
  at = begin
  for _ in range(count):
    member, at = _central(data, at, end)
    if member.name in found:
      raise UnsafeFile(f"its archive holds {short(member.name)} twice; refused")
    found[member.name] = member
  if at != end:
    raise UnsafeFile(f"its archive's directory has {end - at} bytes too many; {AGAIN}")
  return sorted(found.values(), key=lambda m: m.header)


def _parts(data: np.ndarray, found: list[Member]) -> Iterator[tuple[Member, np.ndarray]]:
  """Each member and its bytes in the archive; refuses those that overlap."""
  free, limit = 0, _directory(data)[1]
  for member in found:
    start = _start(data, member, limit)
    if member.header < free:
      raise UnsafeFile(f"{short(member.name)} overlaps another member of its archive; refused")
    free = start + member.packed
    yield member, data[start:free]


def _checked(part: np.ndarray, member: Member) -> np.ndarray:
  if len(part) != member.size or zlib.crc32(part) != member.crc:
    raise UnsafeFile(
      f"the checksum of its member {short(member.name)} is wrong; {AGAIN} (where torch wrote it "
      "without checksums, save it again after torch.serialization.set_crc32_options(True))"
    )
  forget(part)
  return part


def _unpack(form: struct.Struct, data: np.ndarray, at: int, sign: bytes, what: str) -> tuple:
  """The fields at `at`, without the signature that must be there."""
  if not 0 <= at <= len(data) - form.size:
    raise UnsafeFile(f"its archive has no {what} at byte {at}; {AGAIN}")
  first, *fields = form.unpack(data[at : at + form.size].tobytes())
  if first != sign:
    raise UnsafeFile(f"its archive has no {what} at byte {at}; {AGAIN}")
  return tuple(fields)


def _directory(data: np.ndarray) -> tuple[int, int, int]:
  """(number of members, first byte of the directory, byte after it)."""
  tail = data[-(COMMENT_LIMIT + END.size) :].tobytes()
  at = len(data) - len(tail) + tail.rfind(b"PK\x05\x06")
  if b"PK\x05\x06" not in tail:
    raise UnsafeFile(f"its archive has no directory at the end; {AGAIN}")
  *disks, count, size, begin, comment = _unpack(END, data, at, b"PK\x05\x06", "end record")
  wide = 0xFFFF in (*disks, count) or UNKNOWN in (size, begin)
  if at + END.size + comment != len(data):
    raise UnsafeFile(f"its archive's last record does not end with the file; {AGAIN}")
  end = at
  locator = at - LOCATOR64.size
  if wide or data[max(locator, 0) : at][:4].tobytes() == b"PK\x06\x07":  # PyTorch always has it
    _, end, _ = _unpack(LOCATOR64, data, locator, b"PK\x06\x07", "zip64 locator")
    _, _, _, *disks, count, size, begin = _unpack(END64, data, end, b"PK\x06\x06", "zip64 record")
  if disks != [0, 0, count]:
    raise UnsafeFile("its archive is one of several parts; join them first")
  if begin + size != end:
    raise UnsafeFile(f"its archive's directory is not where it claims to be; {AGAIN}")
  if count > min(MEMBER_LIMIT, size // CENTRAL.size):
    raise UnsafeFile(f"its archive claims {count} members in {size} bytes; refused")
  return count, begin, end


def _central(data: np.ndarray, at: int, end: int) -> tuple[Member, int]:
  """(the member whose row of the directory begins at `at`, where the next row begins)."""
  row = _unpack(CENTRAL, data, at, b"PK\x01\x02", "member's row")
  _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, *rest = row
  _, _, attributes, header = rest
  at += CENTRAL.size
  stop = at + n_name + n_extra + n_comment
  if stop > end:
    raise UnsafeFile(f"its archive's directory is longer than it claims; {AGAIN}")
  name = _name(data[at : at + n_name].tobytes())
  extra = data[at + n_name : at + n_name + n_extra].tobytes()
  size, packed, header = _wide(extra, [size, packed, header])
  if flags & ENCRYPTED:
    raise UnsafeFile(f"{short(name)} is encrypted in its archive; unpack it first")
  if stat.S_ISLNK(attributes >> 16):
    raise UnsafeFile(f"{short(name)} is a link in its archive; refused")
  return Member(name, header, size, packed, crc, flags, method), stop


def _name(raw: bytes) -> str:
  try:
    name = raw.decode()
  except UnicodeDecodeError:
    raise UnsafeFile(f"its archive has a member with the name {short(raw)}; refused") from None
  if (
    not name.isprintable() or "\\" in name or name[1:2] == ":" or {"", ".."} & set(name.split("/"))
  ):
    raise UnsafeFile(f"its archive has a member with the path {short(name)}; refused")
  return name


def _wide(extra: bytes, values: list[int]) -> list[int]:
  """Replaces those of (size, packed size, header) that did not fit into 32 bits."""
  at = 0
  while at + 4 <= len(extra):
    kind, size = struct.unpack_from("<2H", extra, at)
    if kind == 1:
      wide = extra[at + 4 : at + 4 + size]
      wanted = [i for i, value in enumerate(values) if value == UNKNOWN]
      if len(wide) < 8 * len(wanted):
        raise UnsafeFile(f"a size in its archive is missing; {AGAIN}")
      for i, value in zip(wanted, struct.iter_unpack("<Q", wide[: 8 * len(wanted)])):
        values[i] = value[0]
    at += 4 + size
  return values


def _start(data: np.ndarray, member: Member, limit: int) -> int:
  """Where the bytes of a member begin, checked against its local header."""
  row = _unpack(LOCAL, data, member.header, b"PK\x03\x04", f"member {short(member.name)}")
  _, flags, method, _, _, crc, _, size, n_name, n_extra = row
  begin = member.header + LOCAL.size
  name = data[begin : begin + n_name].tobytes()
  told = flags & STREAMED or (crc == member.crc and size in (member.size, UNKNOWN))
  if name != member.name.encode() or method != member.method or flags != member.flags or not told:
    raise UnsafeFile(f"its archive says two things of {short(member.name)}; {AGAIN}")
  begin += n_name + n_extra
  if begin + member.packed > limit:
    raise UnsafeFile(f"{short(member.name)} is longer than its archive; {AGAIN}")
  return begin
