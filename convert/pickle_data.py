"""Reads a pickle as data: nothing that it names is ever imported, and nothing is ever called.

A pickle is a program for a small stack machine. `pickletools` splits it into instructions; the
machine here carries them out on plain values. Where a pickle would call a Python object, the name
is looked up in a table of harmless meanings that the caller gives; every other name is refused.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pickletools
from typing import Any

import numpy as np

from convert.files import UnsafeFile, short

Call = Callable[..., Any]
Name = tuple[str, str]  # module, object

OPERATION_LIMIT = 500_000  # a tensor takes about 40, three times that with an optimizer
LINE_LIMIT = 4096  # characters of a number or name in the text protocol
KEY_LIMIT = 1 << 60  # integers below have distinct hashes
CUT = "it was cut off or damaged; download it again"


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that the pickle mentions; only ever looked up in a table."""

  module: str
  name: str

  def __str__(self):
    return f"{self.module}.{self.name}"


class Opaque:
  """Something that is no array: known to be harmless, kept as a blank."""

  def build(self, state) -> None:
    """State is dropped."""


@dataclasses.dataclass
class Budget:
  """What the pickles of one file may cost together, so that none can be read over and over."""

  size: int  # bytes that may be copied
  operations: int

  @classmethod
  def of(cls, data: np.ndarray) -> "Budget":
    return cls(size=4 * len(data) + (1 << 20), operations=OPERATION_LIMIT)

  def spend(self, operations: int = 0, size: int = 0) -> None:
    self.operations -= operations
    self.size -= size
    if self.operations < 0 or self.size < 0:
      raise UnsafeFile("its pickle takes far more work than weights do; refused")


class Cursor:
  """A file for `pickletools` over bytes that are mapped; never reads more than there are."""

  def __init__(self, data: np.ndarray, budget: Budget):
    self.data, self.budget, self.at = memoryview(data), budget, 0

  def tell(self) -> int:
    return self.at

  def read(self, size: int) -> bytes:
    if size > len(self.data) - self.at:
      raise UnsafeFile(
        f"wanted {size} bytes at byte {self.at} of its pickle, there are "
        f"{len(self.data) - self.at}; {CUT}"
      )
    self.budget.spend(size=size)
    self.at += size
    return bytes(self.data[self.at - size : self.at])

  def readline(self) -> bytes:
    line = bytes(self.data[self.at : self.at + LINE_LIMIT])
    size = line.find(b"\n") + 1
    if not size:
      raise UnsafeFile(f"a line of its pickle does not end; {CUT}")
    return self.read(size)


class Machine:
  """Carries out pickles over plain values.

  Args:
    calls: what the objects that a pickle may call mean, as functions of the call's arguments.
    names: objects that a pickle may mention without calling them, such as types.
    persistent: meaning of a persistent identifier; None refuses them.
    budget: shared by all pickles of a file.
    packages: (beginning of a module's name, meaning) of packages whose every name may be called.
  """

  def __init__(
    self,
    calls: Mapping[Name, Call],
    names: frozenset[Name],
    budget: Budget,
    persistent: Call | None = None,
    packages: tuple[tuple[str, Call], ...] = (),
  ):
    self.calls, self.names, self.budget, self.persistent = calls, names, budget, persistent
    self.packages = packages

  def run(self, cursor: Cursor):
    """The object that the next pickle describes; leaves the cursor behind it."""
    self.stack, self.below, self.memo = [], [], {}
    try:
      for operation, argument, _ in pickletools.genops(cursor):
        self.budget.spend(operations=1)
        if operation.name == "STOP":
          break
        if operation.name in PUSH:
          self.stack.append(argument)
        else:
          act = ACTS.get(operation.name) or _refuse(operation.name)
          act(self, argument)
    except UnsafeFile:
      raise
    except ValueError as error:  # of pickletools: no such instruction, a number that is none
      raise UnsafeFile(f"its pickle is damaged ({short(str(error))}); download it again") from None
    return self.pop()

  def pop(self):
    if not self.stack:
      raise UnsafeFile(f"its pickle takes more from its stack than there is; {CUT}")
    return self.stack.pop()

  def top(self, *kinds: type):
    """The uppermost value, which must be one of `kinds`."""
    if not self.stack or (kinds and type(self.stack[-1]) not in kinds):
      wanted = " or ".join(kind.__name__ for kind in kinds) or "value"
      raise UnsafeFile(f"its pickle fills a {wanted} that is not there; {CUT}")
    return self.stack[-1]

  def mark(self, _=None) -> None:
    self.below.append(self.stack)
    self.stack = []

  def since_mark(self) -> list:
    if not self.below:
      raise UnsafeFile(f"its pickle goes back to a mark that it never set; {CUT}")
    items, self.stack = self.stack, self.below.pop()
    return items

  def gather(self, kind: type) -> None:
    """Puts everything since the mark on the stack as one list or tuple."""
    items = self.since_mark()
    self.stack.append(kind(items))

  def drop(self, _=None) -> None:
    """POP, which also takes a mark away."""
    if self.stack:
      self.stack.pop()
    else:
      self.since_mark()

  def push_tuple(self, size: int) -> None:
    items = [self.pop() for _ in range(size)]
    self.stack.append(tuple(reversed(items)))

  def push_dict(self, items: list) -> None:
    self.stack.append({})
    self.set_items(items)

  def set_items(self, items: list) -> None:
    target = self.top(dict, Opaque)
    if len(items) % 2:
      raise UnsafeFile(f"its pickle has a key without a value; {CUT}")
    for key, value in zip(items[::2], items[1::2]):
      check_key(key)
      if type(target) is dict:
        target[key] = value

  def set_item(self, _) -> None:
    value, key = self.pop(), self.pop()
    self.set_items([key, value])

  def append(self, items: list) -> None:
    target = self.top(list, Opaque)
    if type(target) is list:
      target.extend(items)

  def put(self, index: int | None) -> None:
    index = len(self.memo) if index is None else index
    if index < 0:
      raise UnsafeFile(f"its pickle remembers a value under {index}; {CUT}")
    self.memo[index] = self.top()

  def get(self, index: int) -> None:
    if index not in self.memo:
      raise UnsafeFile(f"its pickle recalls value {index} that it never made; {CUT}")
    self.stack.append(self.memo[index])

  def _call(self, module: str, name: str) -> Call | None:
    inside = (call for package, call in self.packages if module.startswith(package))
    return self.calls.get((module, name)) or next(inside, None)

  def mention(self, module, name) -> None:
    """Puts a name on the stack, if it is one that files of weights need."""
    if type(module) is not str or type(name) is not str:
      raise UnsafeFile(f"its pickle asks for {short((module, name))}, which is no name; refused")
    if self._call(module, name) is None and (module, name) not in self.names:
      raise UnsafeFile(
        f"its pickle asks for {short(f'{module}.{name}')}, which no file of weights needs; nothing "
        "was run. If you trust where it comes from, load it there and save model.state_dict() alone"
      )
    self.stack.append(Global(module, name))

  def mention_from_stack(self, _) -> None:
    name, module = self.pop(), self.pop()
    self.mention(module, name)

  def call(self, _=None) -> None:
    """REDUCE and NEWOBJ: the meaning of a call, out of the table."""
    arguments, function = self.pop(), self.pop()
    if type(arguments) is not tuple:
      raise UnsafeFile(f"its pickle calls {short(function)} without arguments; {CUT}")
    self.stack.append(self.meaning(function, arguments))

  def meaning(self, function, arguments: tuple):
    known = self._call(function.module, function.name) if type(function) is Global else None
    if known is None:
      raise UnsafeFile(f"its pickle calls {short(str(function))}, which is no function; refused")
    try:
      return known(*arguments)
    except UnsafeFile:
      raise
    except (TypeError, ValueError) as error:
      raise UnsafeFile(f"its pickle calls {function} with wrong arguments ({error})") from None

  def identify(self, _) -> None:
    if self.persistent is None:
      raise UnsafeFile("its pickle refers to something outside itself; refused")
    self.stack.append(self.persistent(self.pop()))

  def build(self, _) -> None:
    state = self.pop()
    target = self.top()
    if type(target) is not dict:  # the attributes of a dictionary, such as _metadata, are dropped
      if not hasattr(target, "build"):
        raise UnsafeFile(f"its pickle sets the attributes of a {type(target).__name__}; refused")
      target.build(state)


def check_key(key) -> None:
  """Refuses keys that take long to hash or that collide."""
  if type(key) not in (str, bytes, int, float, bool, type(None)):
    raise UnsafeFile(f"a dictionary of its pickle has a {type(key).__name__} as a key; refused")
  if type(key) is int and abs(key) >= KEY_LIMIT:
    raise UnsafeFile(f"a dictionary of its pickle has {short(key)} as a key; refused")


def _refuse(operation: str):
  raise UnsafeFile(f"its pickle holds the instruction {operation}, which weights do not need")


PUSH = frozenset(
  "NONE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING "
  "BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
  "SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
# Instruction -> what it does to the machine, given its argument. INST, OBJ, NEWOBJ_EX, EXT1..4,
# PERSID and out-of-band buffers are missing on purpose.
ACTS: dict[str, Callable[[Machine, Any], None]] = {
  "PROTO": lambda m, _: None,
  "FRAME": lambda m, _: None,
  "NEWTRUE": lambda m, _: m.stack.append(True),
  "NEWFALSE": lambda m, _: m.stack.append(False),
  "MARK": Machine.mark,
  "POP": Machine.drop,
  "POP_MARK": lambda m, _: m.since_mark() and None,
  "DUP": lambda m, _: m.stack.append(m.top()),
  "EMPTY_LIST": lambda m, _: m.stack.append([]),
  "EMPTY_SET": lambda m, _: m.stack.append([]),  # without hashing; nobody reads them
  "EMPTY_DICT": lambda m, _: m.stack.append({}),
  "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
  "LIST": lambda m, _: m.gather(list),
  "TUPLE": lambda m, _: m.gather(tuple),
  "FROZENSET": lambda m, _: m.gather(tuple),
  "DICT": lambda m, _: m.push_dict(m.since_mark()),
  "TUPLE1": lambda m, _: m.push_tuple(1),
  "TUPLE2": lambda m, _: m.push_tuple(2),
  "TUPLE3": lambda m, _: m.push_tuple(3),
  "APPEND": lambda m, _: m.append([m.pop()]),
  "APPENDS": lambda m, _: m.append(m.since_mark()),
  "ADDITEMS": lambda m, _: m.append(m.since_mark()),
  "SETITEM": Machine.set_item,
  "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
  "PUT": Machine.put,
  "BINPUT": Machine.put,
  "LONG_BINPUT": Machine.put,
  "MEMOIZE": Machine.put,
  "GET": Machine.get,
  "BINGET": Machine.get,
  "LONG_BINGET": Machine.get,
  "GLOBAL": lambda m, names: m.mention(*names.split(" ", 1)),
  "STACK_GLOBAL": Machine.mention_from_stack,
  "REDUCE": Machine.call,
  "NEWOBJ": Machine.call,
  "BINPERSID": Machine.identify,
  "BUILD": Machine.build,
}
