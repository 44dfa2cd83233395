"""Files of torch before 0.2 (2017): a tar of four pickled or plain parts.

  sys_info   the version and the byte order
  storages   a count; for each a pickle (key, device, class), its length and its elements; then
             the list of storages that are parts of others
  tensors    a count; for each a pickle (key, storage, class), its rank, shape, strides and offset
  pickle     the object, which refers to tensors and storages by their keys

Read where they stand in the mapped file, as `convert.torch_file` does.
"""

import struct

import numpy as np

from convert import plain_objects, torch_file
from convert.files import UnsafeFile, short
from convert.pickle_data import Budget, Cursor, Global, Machine
from convert.torch_file import STORAGES, Storage

BLOCK = 512  # bytes: a header takes one, contents whole ones
VERSION = 1000
PARTS = ("sys_info", "storages", "tensors", "pickle")
MEMBER_LIMIT = 64
RANK_LIMIT = 32
AGAIN = "it was cut off or damaged; download it again"
TENSORS = {name.replace("Storage", "Tensor") for name in STORAGES}
NAMES = frozenset(
  (module, name) for module in ("torch", "torch.cuda") for name in (*STORAGES, *TENSORS)
)


def matches(data: np.ndarray, _=None) -> bool:
  return data[257:262].tobytes() == b"ustar" and b"sys_info" in data[: 3 * BLOCK].tobytes()


def tree(data: np.ndarray):
  """The object that `torch.save` wrote, with `Tensor` in the place of tensors."""
  parts = _members(data)
  if missing := [name for name in PARTS if name not in parts]:
    raise UnsafeFile(f"its archive has no {', '.join(missing)}; {AGAIN}")
  budget = Budget.of(data)
  system = Machine({}, frozenset(), budget).run(Cursor(parts["sys_info"], budget))
  if type(system) is not dict or system.get("protocol_version") != VERSION:
    raise UnsafeFile(f"its sys_info is {short(system)}, wanted protocol_version {VERSION}")
  if system.get("little_endian") is not True:
    raise UnsafeFile("it was written on a big-endian machine; save it again on another")
  known = _tensors(parts["tensors"], _storages(parts["storages"], budget), budget)

  def find(token):
    if type(token) is tuple and token:  # a module, beside where its source stood
      token = token[0]
    return known[_key(token, known)]

  table = plain_objects.calls(budget) | torch_file.TORCH_CALLS
  names = plain_objects.NAMES | torch_file.NAMES | NAMES
  return Machine(table, names, budget, find).run(Cursor(parts["pickle"], budget))


def _members(data: np.ndarray) -> dict[str, np.ndarray]:
  """The bytes of each file in a tar by its name, as views."""
  found, at = {}, 0
  while at + BLOCK <= len(data) and data[at]:
    head = data[at : at + BLOCK].tobytes()
    size, begin = _octal(head[124:136]), at + BLOCK
    if _octal(head[148:156]) != sum(head) - sum(head[148:156]) + 8 * ord(" "):
      raise UnsafeFile(f"a header of its archive has a wrong checksum; {AGAIN}")
    if begin + size > len(data):
      raise UnsafeFile(f"a part of its archive is longer than the file; {AGAIN}")
    kind, name = head[156:157], head[:100].rstrip(b"\0").decode("latin-1")
    if kind in (b"0", b"\0"):
      if name in found or len(found) == MEMBER_LIMIT:
        raise UnsafeFile(f"its archive holds {short(name)} twice or too many parts; refused")
      found[name] = data[begin : begin + size]
    elif kind != b"x" or any(sign in data[begin : begin + size].tobytes() for sign in (
      b" size=", b" path=", b" GNU.sparse")):  # fmt: skip
      raise UnsafeFile(f"{short(name)} is no plain file in its archive; refused")
    at = begin + -(-size // BLOCK) * BLOCK
  return found


def _octal(field: bytes) -> int:
  digits = field.strip(b"\0 ")
  if digits.strip(b"01234567"):
    raise UnsafeFile(f"a header of its archive has the number {short(field)}; {AGAIN}")
  return int(digits or b"0", 8)


def _storages(data: np.ndarray, budget: Budget) -> dict[int, Storage]:
  """Every storage by its key."""
  cursor, found = Cursor(data, budget), {}
  machine = Machine({}, NAMES, budget)
  for _ in range(_count(machine.run(cursor))):
    row = machine.run(cursor)
    kind = row[2] if type(row) is tuple and len(row) == 3 else None
    if type(kind) is not Global or kind.name not in STORAGES:
      raise UnsafeFile(f"a storage of it is described by {short(row)}; refused")
    dtype, size = np.dtype(STORAGES[kind.name]), _count(*_numbers(cursor, 1))
    end = cursor.at + size * dtype.itemsize
    if end > len(data):
      raise UnsafeFile(f"a storage of it of {size} elements is longer than the file; {AGAIN}")
    key = _new_key(row[0], found)
    found[key] = Storage(str(key), dtype, size)
    found[key].data = torch_file.aligned(data[cursor.at : end], dtype)
    cursor.at = end
  views = machine.run(cursor)
  for row in views if type(views) is list else [views]:
    if type(row) is not tuple or len(row) != 4:
      raise UnsafeFile(f"a part of a storage of it is described by {short(row)}; refused")
    root, offset, size = found[_key(row[1], found)], _count(row[2]), _count(row[3])
    if offset + size > root.size:
      raise UnsafeFile("a part of a storage of it reaches beyond it; refused")
    width = root.dtype.itemsize
    key = _new_key(row[0], found)
    found[key] = Storage(str(key), root.dtype, size)
    found[key].data = root.data[offset * width : (offset + size) * width]
  return found


def _tensors(data: np.ndarray, storages: dict[int, Storage], budget: Budget) -> dict:
  """Every tensor, and every storage, by its key."""
  cursor, found = Cursor(data, budget), dict(storages)
  machine = Machine({}, NAMES, budget)
  for _ in range(_count(machine.run(cursor))):
    row = machine.run(cursor)
    if type(row) is not tuple or len(row) != 3:
      raise UnsafeFile(f"a tensor of it is described by {short(row)}; refused")
    rank = int.from_bytes(cursor.read(8)[:4], "little")  # four bytes that mean nothing follow
    if rank > RANK_LIMIT:
      raise UnsafeFile(f"a tensor of it has {rank} axes; refused")
    numbers = _numbers(cursor, 2 * rank + 1)
    storage = storages[_key(row[1], storages)]
    found[_new_key(row[0], found)] = torch_file.tensor(
      storage, numbers[-1], numbers[:rank], numbers[rank:-1]
    )
  return found


def _numbers(cursor: Cursor, count: int) -> tuple[int, ...]:
  return struct.unpack(f"<{count}q", cursor.read(8 * count))


def _count(value) -> int:
  if type(value) is not int or not 0 <= value < torch_file.SIZE_LIMIT:
    raise UnsafeFile(f"it claims {short(value)} elements or parts; refused")
  return value


def _key(value, known: dict) -> int:
  """A key as the pickle writes it, in digits or as a number, that must be known."""
  text = value.decode("latin-1") if type(value) is bytes else value
  if type(text) is str and text.isdecimal() and len(text) < 20:
    text = int(text)
  if type(text) is not int or text not in known:
    raise UnsafeFile(f"it refers to {short(value)}, which is no tensor or storage of it; {AGAIN}")
  return text


def _new_key(value, known: dict) -> int:
  if type(value) is not int or value in known:
    raise UnsafeFile(f"it describes {short(value)} twice or as no number; refused")
  return value
