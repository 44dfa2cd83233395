"""Files of `torch.save`, and plain pickles of tensors, read without torch and without running them.

Three containers:
  zip      since torch 1.6: data.pkl and one member for the bytes of each storage
  legacy   before: a magic number, the object's pickle, the keys of the storages, their bytes
  plain    pickle.dump(model.state_dict()): every storage is a legacy file inside the pickle
In all of them a tensor is a window (offset, shape, strides) on a storage. What is stored plainly in
the file stays there, memory-mapped.

TorchScript (torch.jit.save) writes the zip too, with modules in the place of dictionaries and a
program beside them. Tensors are read under the paths of their modules, the program is not.
"""

import dataclasses
import math
import re

import ml_dtypes
import numpy as np

from convert import plain_objects, zip_file
from convert.files import UnsafeFile, short
from convert.pickle_data import Budget, Call, Cursor, Global, Machine, Name
from convert.plain_objects import SIZE_LIMIT, shape_of

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")
STORAGES = {  # the names of torch's storage classes
  "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2",
  "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": "<i8", "IntStorage": "<i4",
  "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
  "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16", "UntypedStorage": "u1",
}  # fmt: skip
DTYPES = {  # the names of torch's types
  "float64": "<f8", "double": "<f8", "float32": "<f4", "float": "<f4", "float16": "<f2",
  "half": "<f2", "bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2, "int64": "<i8", "long": "<i8", "int32": "<i4",
  "int": "<i4", "int16": "<i2", "short": "<i2", "int8": "i1", "uint8": "u1", "uint16": "<u2",
  "uint32": "<u4", "uint64": "<u8", "bool": "?", "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip
PROGRAM = re.compile(r"[^/]+/(code|extra)/.*")  # members of TorchScript beside its arrays
NAMES = plain_objects.NAMES | {
  *[(module, name) for module in ("torch", "torch.cuda", "torch.storage") for name in STORAGES],
  *[("torch", name) for name in DTYPES],
  *[("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer")],
}


@dataclasses.dataclass
class Storage:
  """A run of elements; the bytes are found after the pickle was read."""

  key: str
  dtype: np.dtype
  size: int  # elements
  offset: int = 0  # elements, where it is a part of the storage `key`
  data: np.ndarray | None = dataclasses.field(default=None, repr=False)  # its bytes


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A window on a storage."""

  storage: Storage
  offset: int  # elements
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # elements
  dtype: np.dtype

  def build(self, state) -> None:
    """Attributes that somebody hung on a tensor are dropped."""

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def array(self) -> np.ndarray:
    if not self.nbytes:
      return np.zeros(self.shape, self.dtype)
    size = self.dtype.itemsize
    strides = tuple(stride * size for stride in self.strides)
    return np.ndarray(self.shape, self.dtype, self.storage.data, self.offset * size, strides)


def looks_like_pickle(data: np.ndarray) -> bool:
  """A pickle of protocol 2 or later, or one of the openings of the older ones."""
  first = data[:2].tobytes()
  return first[:1] == b"\x80" and first[1:] in PROTOCOLS or first[:1] in (b"(", b"]", b"}", b"c")


class Scripted:
  """A module of a TorchScript program: what hangs on it; its code is not read."""

  def __init__(self, *fields):
    self.fields = dict(enumerate(fields))  # of a named tuple

  def build(self, state) -> None:
    self.fields = state if type(state) is dict else {"state": state}


def matches(data: np.ndarray, _=None) -> bool:
  return zip_file.looks_like_zip(data) or looks_like_pickle(data)


def tree(data: np.ndarray):
  """The object in a file of any of the formats, with `Tensor` in the place of tensors."""
  return from_zip(data) if zip_file.looks_like_zip(data) else from_pickle(data)


def from_zip(data: np.ndarray):
  """The object that `torch.save` wrote, with `Tensor` in the place of tensors."""
  members = zip_file.members(data, PROGRAM)
  roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise UnsafeFile("it is a zip archive, but none of torch.save (it has no data.pkl)")
  [root] = roots
  if root + "byteorder" in members and members[root + "byteorder"].tobytes() != b"little":
    raise UnsafeFile("it was written on a big-endian machine; save it again on another")
  storages: dict[str, Storage] = {}
  budget = Budget.of(data)
  machine = _machine(budget, storages)
  if root + "constants.pkl" in members:  # of TorchScript: modules, of classes in its own code
    machine.calls, machine.packages = machine.calls | SCRIPT_CALLS, (("__torch__", Scripted),)
  pickle = Cursor(members[root + "data.pkl"], budget)
  tree = machine.run(pickle)
  for storage in storages.values():
    part = members.get(f"{root}data/{storage.key}")
    wanted = storage.size * storage.dtype.itemsize
    if part is None or len(part) != wanted:
      found = "none" if part is None else len(part)
      raise UnsafeFile(
        f"storage {short(storage.key)} needs {wanted} bytes, the file has {found}; "
        "it was damaged, download it again"
      )
    storage.data = aligned(part, storage.dtype)
  return tree


def from_pickle(data: np.ndarray):
  """The object of a legacy file or of a plain pickle, with `Tensor` in the place of tensors."""
  budget = Budget.of(data)
  if _is_legacy(data):
    return _legacy(data, budget)[0]
  return _machine(budget, None).run(Cursor(data, budget))


def _is_legacy(data: np.ndarray) -> bool:
  """A pickle of the magic number comes first: LONG1, its ten bytes."""
  return b"\x8a\x0a" + MAGIC.to_bytes(10, "little") in data[:32].tobytes()


def _legacy(data: np.ndarray, budget: Budget, nested: bool = False):
  """(the object of a legacy file, byte after it)."""
  cursor = Cursor(data, budget)
  plain = Machine({}, frozenset(), budget)
  magic, version, system = (plain.run(cursor) for _ in range(3))
  if magic != MAGIC or version != LEGACY_VERSION or type(system) is not dict:
    raise UnsafeFile(f"it is of version {short(version)} of torch's old format, wanted 1001")
  if system.get("little_endian") is not True:
    raise UnsafeFile("it was written on a big-endian machine; save it again on another")
  storages: dict[str, Storage] = {}
  parts: list[Storage] = []
  tree = _machine(budget, storages, parts, nested).run(cursor)
  keys = plain.run(cursor)
  texts = [str(key) for key in keys if type(key) in (str, int)] if type(keys) is list else None
  if texts is None or len(texts) != len(keys) or sorted(texts) != sorted(storages):
    raise UnsafeFile("its list of storages is not the one that its tensors need; it was damaged")
  for key in keys:
    storage = storages[str(key)]
    size = int.from_bytes(cursor.read(8), "little")
    end = cursor.at + size * storage.dtype.itemsize
    if size != storage.size or end > len(data):
      raise UnsafeFile(
        f"storage {short(key)} of {storage.size} elements is cut off or damaged; download it again"
      )
    storage.data = aligned(data[cursor.at : end], storage.dtype)
    cursor.at = end
  for part in parts:
    begin, end = part.offset * part.dtype.itemsize, (part.offset + part.size) * part.dtype.itemsize
    part.data = storages[part.key].data[begin:end]
  if cursor.at != len(data):
    raise UnsafeFile(f"something of {len(data) - cursor.at} bytes was appended to it; refused")
  return tree, cursor.at


def aligned(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """[n] uint8, copied only where its elements lie askew."""
  return data.copy() if data.ctypes.data % dtype.alignment else data


def _machine(
  budget: Budget,
  storages: dict[str, Storage] | None,
  parts: list[Storage] | None = None,
  nested: bool = False,
) -> Machine:
  """A machine that knows torch; collects the storages that the pickle refers to."""
  table = plain_objects.calls(budget) | TORCH_CALLS

  def subclass(function, kind, arguments, state):
    if type(arguments) is not tuple or function == Global("torch._tensor", "_rebuild_from_type_v2"):
      raise UnsafeFile("a tensor of it is made in an unknown way; refused")
    return machine.meaning(function, arguments)

  def storage_of_bytes(data):
    if type(data) not in (bytes, bytearray):
      raise UnsafeFile(f"a storage of it is made of a {type(data).__name__}; refused")
    array = np.frombuffer(data, np.uint8)
    if nested or not _is_legacy(array):
      raise UnsafeFile("a storage of it is written in an unknown way; refused")
    budget.spend(size=len(data))
    storage, _ = _legacy(array, budget, nested=True)
    return _checked(storage, Storage)

  table["torch._tensor", "_rebuild_from_type_v2"] = subclass
  table["torch.storage", "_load_from_bytes"] = storage_of_bytes
  if storages is None:
    machine = Machine(table, NAMES, budget)
  else:
    machine = Machine(table, NAMES, budget, lambda token: _refer(token, storages, parts))
  return machine


def _refer(token, storages: dict[str, Storage], parts: list[Storage] | None) -> Storage:
  """The storage of a persistent identifier ("storage", class, key, device, size[, part])."""
  if type(token) is not tuple or len(token) not in (5, 6) or token[0] != "storage":
    raise UnsafeFile(f"its pickle refers to {short(token)}, wanted a storage; it holds no weights")
  _, kind, key, _, size, *part = token
  known = type(kind) is Global and kind.module.startswith("torch") and kind.name in STORAGES
  if not known or type(key) not in (str, int) or not _is_count(size):
    raise UnsafeFile(f"its pickle refers to an impossible storage {short(token)}; refused")
  made = Storage(str(key), np.dtype(STORAGES[kind.name]), size)
  have = storages.setdefault(made.key, made)
  if (have.dtype, have.size) != (made.dtype, made.size):
    raise UnsafeFile(f"its pickle says two things of storage {short(key)}; it was damaged")
  if not part or part[0] is None:
    return have
  if parts is None or type(part[0]) is not tuple or len(part[0]) != 3:
    raise UnsafeFile(f"its pickle refers to an impossible storage {short(token)}; refused")
  _, offset, length = part[0]
  if not _is_count(offset) or not _is_count(length) or offset + length > size:
    raise UnsafeFile(f"a part of storage {short(key)} reaches beyond it; refused")
  parts.append(Storage(made.key, made.dtype, length, offset))
  return parts[-1]


def _checked(value, kind: type):
  if type(value) is not kind:
    raise UnsafeFile(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
  return value


def _is_count(value) -> bool:
  return type(value) is int and 0 <= value < SIZE_LIMIT


def tensor(storage, offset, shape, strides, *_, dtype=None) -> Tensor:
  """Of torch._utils._rebuild_tensor and _v2: every element must lie in the storage."""
  storage = _checked(storage, Storage)
  dtype = dtype or storage.dtype
  shape, strides = shape_of(shape), shape_of(strides)
  size = storage.size * storage.dtype.itemsize // dtype.itemsize
  if len(shape) != len(strides) or not _is_count(offset):
    raise UnsafeFile(f"a tensor of it has shape {shape}, strides {strides}, offset {short(offset)}")
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
  if 0 not in shape and last >= size:
    raise UnsafeFile(
      f"a tensor of shape {shape} reaches element {last} of a storage of {size}; refused"
    )
  return Tensor(storage, offset, shape, strides, dtype)


def _tensor_of_type(storage, offset, shape, strides, grad, hooks, dtype, *_) -> Tensor:
  """Of torch._utils._rebuild_tensor_v3: the type stands beside an untyped storage."""
  if type(dtype) is not Global or dtype.module != "torch" or dtype.name not in DTYPES:
    raise UnsafeFile(f"a tensor of it is of the type {short(str(dtype))}; refused")
  if (
    _checked(storage, Storage).size * storage.dtype.itemsize % np.dtype(DTYPES[dtype.name]).itemsize
  ):
    raise UnsafeFile(f"a storage of {storage.size} bytes holds no whole number of {dtype.name}")
  return tensor(storage, offset, shape, strides, dtype=np.dtype(DTYPES[dtype.name]))


TORCH_CALLS: dict[Name, Call] = {
  ("torch._utils", "_rebuild_tensor"): tensor,
  ("torch._utils", "_rebuild_tensor_v2"): tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
  ("torch._utils", "_rebuild_parameter"): lambda data, *_: _checked(data, Tensor),
  ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: _checked(data, Tensor),
  ("torch", "Size"): lambda shape=(): shape_of(shape),
}
SCRIPT_CALLS: dict[Name, Call] = {
  ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
  **{
    ("torch.jit._pickle", f"build_{kind}list"): lambda items: items
    for kind in ("int", "double", "bool", "tensor")
  },
}
