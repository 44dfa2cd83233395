"""TensorFlow's frozen graphs, `.pb`: the value of every Const node, by the node's name.

Kernels are [h w in out] and [in out], as Keras's. A graph that was not frozen holds its variables
in another file and is refused with that sentence.
"""

from collections.abc import Iterator
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from convert import protobuf
from convert.files import ALLOWANCE, EXPANSION, UnsafeFile, checked_shape, gathered, shaped, short
from convert.protobuf import BYTES, Message

TENSOR = {
  1: ("type", "int"), 2: ("shape", {2: ("dim", {1: ("size", "int")})}), 4: ("content", "bytes"),
  5: ("float_val", "floats"), 6: ("double_val", "doubles"), 7: ("int_val", "ints"),
  9: ("scomplex_val", "floats"), 10: ("int64_val", "ints"), 11: ("bool_val", "ints"),
  12: ("dcomplex_val", "doubles"), 13: ("half_val", "ints"), 16: ("uint32_val", "ints"),
  17: ("uint64_val", "ints"),
}  # fmt: skip
ATTRIBUTE = {1: ("key", "text"), 2: ("value", {8: ("tensor", TENSOR)})}
NODE = {1: ("name", "text"), 2: ("op", "text"), 5: ("attr", ATTRIBUTE)}
GRAPH = {1: ("node", NODE)}
TYPES = {  # DataType -> its numpy type, and the field that holds it where not as bytes
  1: ("<f4", "float_val"), 2: ("<f8", "double_val"), 3: ("<i4", "int_val"), 4: ("u1", "int_val"),
  5: ("<i2", "int_val"), 6: ("i1", "int_val"), 8: ("<c8", "scomplex_val"), 9: ("<i8", "int64_val"),
  10: ("?", "bool_val"), 14: (ml_dtypes.bfloat16, "half_val"), 17: ("<u2", "int_val"),
  18: ("<c16", "dcomplex_val"), 19: ("<f2", "half_val"), 22: ("<u4", "uint32_val"),
  23: ("<u8", "uint64_val"),
}  # fmt: skip
STORED = {"float_val": "<f4", "double_val": "<f8", "scomplex_val": "<c8", "dcomplex_val": "<c16"}
STRING = 7
VARIABLES = ("Variable", "VariableV2", "VarHandleOp")


def matches(data: np.ndarray, path: Path) -> bool:
  """A node comes first, and begins with its name and operation."""
  first = protobuf.outline(data)[:1]
  if not first or first[0][:2] != (1, BYTES):
    return False
  return [field[:2] for field in protobuf.outline(first[0][2])][:2] == [(1, BYTES), (2, BYTES)]


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every constant of the graph; views of the file where it keeps them as bytes."""
  nodes = protobuf.parse(data, GRAPH).all("node")
  if loose := [n.one("name", "") for n in nodes if n.one("op") in VARIABLES]:
    raise UnsafeFile(
      f"its graph is not frozen: the values of {len(loose)} variables such as {short(loose[0])} "
      "are in another file; freeze it in TensorFlow"
    )
  return gathered(_constants(nodes, len(data)), len(data))


def _constants(nodes: list[Message], size: int) -> Iterator[tuple[str, np.ndarray]]:
  for node in nodes:
    if node.one("op") != "Const":
      continue
    values = [a.one("value") for a in node.all("attr") if a.one("key") == "value"]
    if len(values) != 1 or not values[0] or not (tensor := values[0].one("tensor")):
      raise UnsafeFile(f"its constant {short(node.one('name', ''))} has no value")
    if tensor.one("type") != STRING:
      what = f"its constant {short(node.one('name', ''))}"
      yield node.one("name", ""), filled(what, tensor, tensor, size)


def filled(what: str, facts: Message, tensor: Message, size: int) -> np.ndarray:
  """The array of a tensor in a file of `size` bytes; `facts` has its type and shape."""
  kind = facts.one("type")
  if kind not in TYPES:
    raise UnsafeFile(f"{what} is of the unknown type {kind}")
  dtype, field = np.dtype(TYPES[kind][0]), TYPES[kind][1]
  shape = facts.one("shape")
  shape = [dim.one("size", 0) for dim in shape.all("dim")] if shape else []
  if tensor.all("content"):
    return shaped(tensor.one("content"), shape, dtype, what)
  numbers = tensor.numbers(field, np.dtype(STORED.get(field, "<i8")))
  if field == "half_val":  # its bits
    numbers = numbers.astype("<u2").view(dtype)
  numbers = numbers.astype(dtype, copy=False)
  count = math.prod(checked_shape(shape, what))
  if len(numbers) < count:  # the last one stands for all that follow; none for zeros
    rest = np.broadcast_to(
      numbers[-1] if len(numbers) else np.zeros((), dtype), count - len(numbers)
    )
    if rest.nbytes > EXPANSION * size + ALLOWANCE:
      raise UnsafeFile(f"{what} claims {rest.nbytes} bytes in a file of {size}; refused")
    numbers = np.concatenate([numbers, rest])
  return shaped(numbers.view(np.uint8), shape, dtype, what)
