"""What the objects of Python and NumPy that stand in pickled checkpoints mean, as plain data."""

from collections.abc import Callable
import math
import re

import numpy as np

from convert.files import UnsafeFile, short
from convert.pickle_data import Budget, Call, Global, Name, Opaque, check_key

RANK_LIMIT = 32
SIZE_LIMIT = 1 << 48  # elements; numpy multiplies the other axes of empty arrays too
NUMERIC = re.compile(r"[<>|=]?([?bB]|b1|[iu][1248]|f[248]|c8|c16)")
BLANKS = (  # harmless, and never weights
  ("argparse", "Namespace"), ("datetime", "date"), ("datetime", "datetime"),
  ("datetime", "timedelta"), ("types", "SimpleNamespace"),
  ("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"),
  ("pathlib._local", "Path"), ("pathlib._local", "PosixPath"), ("pathlib._local", "WindowsPath"),
  ("torch", "device"), ("torch", "Generator"), ("uuid", "UUID"),
)  # fmt: skip
TYPES = ("bool", "bytes", "dict", "float", "int", "list", "object", "set", "str", "tuple")


def shape_of(value) -> tuple[int, ...]:
  """A shape out of a file, checked. Raises UnsafeFile."""
  value = tuple(value) if type(value) in (list, tuple) and len(value) <= RANK_LIMIT else None
  size = 1
  for n in value or ():
    size = size * (n or 1) if type(n) is int and 0 <= n < SIZE_LIMIT else SIZE_LIMIT
  if value is None or size >= SIZE_LIMIT:
    raise UnsafeFile(f"an array of it has the shape {short(value)}; refused")
  return value


class NumpyType:
  """A pickled numpy.dtype; `dtype` is None where it is not numeric."""

  def __init__(self, code, align=False, copy=True):
    numeric = type(code) is str and NUMERIC.fullmatch(code)
    self.dtype = np.dtype(code) if numeric else None

  def build(self, state) -> None:
    order = state[1] if type(state) is tuple and len(state) > 1 else None
    if type(order) is not str or order not in tuple("<>|="):
      raise UnsafeFile(f"a NumPy type of it has the state {short(state)}; refused")
    if self.dtype is not None:
      self.dtype = self.dtype.newbyteorder(order)


class NumpyArray:
  """A pickled numpy.ndarray: its parts, until somebody asks for the array."""

  def __init__(self):
    self.shape, self.dtype, self.order, self.data = (0,), np.dtype(np.uint8), "C", b""

  def build(self, state) -> None:
    if type(state) is not tuple or len(state) != 5 or type(state[2]) is not NumpyType:
      raise UnsafeFile(f"a NumPy array of it has the state {short(state)}; refused")
    _, shape, kind, fortran, data = state
    self.fill(shape, kind, "F" if fortran else "C", data)

  def fill(self, shape, kind: NumpyType, order: str, data) -> None:
    self.shape, self.dtype, self.order, self.data = shape_of(shape), kind.dtype, order, data
    if self.dtype is None:
      return  # of objects or texts: no weights
    if type(data) is str:
      self.data = data = data.encode("latin-1")  # pickled by Python 2
    if type(data) not in (bytes, bytearray) or len(data) != self.nbytes:
      raise UnsafeFile(f"a NumPy array of shape {self.shape} needs {self.nbytes} bytes, has others")

  @property
  def nbytes(self) -> int:
    return 0 if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize

  def array(self) -> np.ndarray:
    array = np.frombuffer(self.data, self.dtype).reshape(self.shape, order=self.order)
    return array.astype(self.dtype.newbyteorder("="), copy=False)


def _blank(*_) -> Opaque:
  return Opaque()


def _mapping(budget: Budget, skip: int = 0) -> Callable:
  """dict(), of nothing, of a mapping or of pairs; the first `skip` arguments are dropped."""

  def call(*arguments):
    made = {}
    for source in arguments[skip:]:
      pairs = source.items() if type(source) is dict else source
      if type(pairs) not in (list, tuple, type({}.items())):
        raise UnsafeFile(f"a dictionary of it is made of {short(type(source).__name__)}; refused")
      budget.spend(operations=len(pairs))
      for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
          raise UnsafeFile("a dictionary of it is made of things that are no pairs; refused")
        check_key(pair[0])
        made[pair[0]] = pair[1]
    return made

  return call


def _sequence(budget: Budget) -> Callable:
  def call(items=()):
    if type(items) not in (list, tuple):
      raise UnsafeFile(f"a list of it is made of a {type(items).__name__}; refused")
    budget.spend(operations=len(items))
    return list(items)

  return call


def _octets(budget: Budget) -> Callable:
  """bytes, as Python 3 writes them for the older protocols: (text, "latin1") or (list,)."""

  def call(text="", encoding="latin1"):
    if type(text) in (bytes, bytearray):
      return text
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
      raise UnsafeFile(f"bytes of it are written as {short(encoding)}; refused")
    budget.spend(size=len(text))
    return text.encode("latin-1")

  return call


def _reconstruct(kind, shape, code) -> NumpyArray:
  if kind != Global("numpy", "ndarray"):
    raise UnsafeFile(f"an array of it is of the type {short(str(kind))}; refused")
  return NumpyArray()


def _from_buffer(data, kind, shape, order) -> NumpyArray:
  """As NumPy writes arrays with protocol 5."""
  if type(kind) is not NumpyType or order not in ("C", "F"):
    raise UnsafeFile(f"an array of it has the type {short(kind)}; refused")
  array = NumpyArray()
  array.fill(shape, kind, order, data)
  return array


def calls(budget: Budget) -> dict[Name, Call]:
  """Meanings for `pickle_data.Machine`."""
  table: dict[Name, Call] = dict.fromkeys(BLANKS, _blank)
  table |= {
    ("collections", "OrderedDict"): _mapping(budget),
    ("collections", "Counter"): _mapping(budget),
    ("collections", "defaultdict"): _mapping(budget, skip=1),
    ("collections", "deque"): lambda items=(), limit=None: _sequence(budget)(items),
    ("_codecs", "encode"): _octets(budget),
    ("numpy", "dtype"): NumpyType,
  }
  for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    table[f"{core}.multiarray", "_reconstruct"] = _reconstruct
    table[f"{core}.multiarray", "scalar"] = _blank
    table[f"{core}.numeric", "_frombuffer"] = _from_buffer
  for builtins in ("builtins", "__builtin__"):  # Python 3 and 2
    table |= {
      (builtins, "set"): _sequence(budget),
      (builtins, "frozenset"): _sequence(budget),
      (builtins, "bytearray"): _octets(budget),
      (builtins, "bytes"): _octets(budget),
      (builtins, "complex"): _blank,
      (builtins, "slice"): _blank,
    }
  return table


NAMES = frozenset(
  [("numpy", "ndarray")]
  + [(builtins, name) for builtins in ("builtins", "__builtin__") for name in TYPES]
)
