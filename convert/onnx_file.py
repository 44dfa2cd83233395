"""ONNX models: the initialisers and constants of the main graph, by name.

Names are the exporter's where they mean something, which with torch's are those of the state dict;
otherwise they follow the graph (`convert.graph_names`), as Conv_0.weight, Gemm_0.bias, LSTM_0.W.
A "weight" of Gemm is [out in], a "kernel" [in out]. Recurrent layers keep ONNX's layout: W
[directions 4*hidden in] in the order i o f c, R, B [directions 8*hidden]. Constants within the
branches of If and Loop are no weights and are left out.
"""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from convert import graph_names, protobuf
from convert.files import UnsafeFile, beside, gathered, mapped, shaped, short
from convert.graph_names import Use
from convert.protobuf import BYTES, VARINT, Message

EXTERNAL = 1  # TensorProto.data_location
TENSOR = {
  1: ("dims", "ints"), 2: ("type", "int"), 3: ("segment", "bytes"), 4: ("float_data", "floats"),
  5: ("int32_data", "ints"), 7: ("int64_data", "ints"), 8: ("name", "text"),
  9: ("raw_data", "bytes"), 10: ("double_data", "doubles"), 11: ("uint64_data", "ints"),
  13: ("external_data", {1: ("key", "text"), 2: ("value", "text")}), 14: ("location", "int"),
}  # fmt: skip
ATTRIBUTE = {1: ("name", "text"), 3: ("i", "int"), 5: ("t", TENSOR)}
NODE = {
  1: ("input", "text"), 2: ("output", "text"), 3: ("name", "text"), 4: ("op", "text"),
  5: ("attribute", ATTRIBUTE),
}  # fmt: skip
MODEL = {7: ("graph", {1: ("node", NODE), 5: ("initializer", TENSOR)})}
TYPES = {  # TensorProto.DataType -> its numpy type, and the field that holds it where not raw
  1: ("<f4", "float_data"), 2: ("u1", "int32_data"), 3: ("i1", "int32_data"),
  4: ("<u2", "int32_data"), 5: ("<i2", "int32_data"), 6: ("<i4", "int32_data"),
  7: ("<i8", "int64_data"), 9: ("?", "int32_data"), 10: ("<f2", "int32_data"),
  11: ("<f8", "double_data"), 12: ("<u4", "uint64_data"), 13: ("<u8", "uint64_data"),
  14: ("<c8", "float_data"), 15: ("<c16", "double_data"), 16: (ml_dtypes.bfloat16, "int32_data"),
  17: (ml_dtypes.float8_e4m3fn, "int32_data"), 18: (ml_dtypes.float8_e4m3fnuz, "int32_data"),
  19: (ml_dtypes.float8_e5m2, "int32_data"), 20: (ml_dtypes.float8_e5m2fnuz, "int32_data"),
}  # fmt: skip
STRING = 8
FLOATS = ("float_data", "double_data")
RECURRENT = {1: "W", 2: "R", 3: "B"}
SLOTS = {  # which inputs of an operation are weights
  "Conv": {1: "weight", 2: "bias"}, "ConvTranspose": {1: "weight", 2: "bias"},
  "Gemm": {1: "kernel", 2: "bias"}, "MatMul": {0: "kernel", 1: "kernel"},
  "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
  "InstanceNormalization": {1: "weight", 2: "bias"}, "LayerNormalization": {1: "weight", 2: "bias"},
  "PRelu": {1: "weight"}, "LSTM": RECURRENT, "GRU": RECURRENT, "RNN": RECURRENT,
}  # fmt: skip


def matches(data: np.ndarray, path: Path) -> bool:
  """A version of the format comes first, and there is a graph."""
  fields = [field[:2] for field in protobuf.outline(data)]
  return fields[:1] == [(1, VARINT)] and (7, BYTES) in fields


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every constant of the graph by name; views of the file where it keeps them raw."""
  graph = protobuf.parse(data, MODEL).one("graph")
  if graph is None:
    raise UnsafeFile("it holds no graph")
  nodes = graph.all("node")
  constants: dict[str, np.ndarray] = {}
  others: dict[Path, np.ndarray] = {}
  for name, tensor in _tensors(graph, nodes):
    if name in constants:
      raise UnsafeFile(f"it holds two arrays by the name {short(name)}; refused")
    if tensor.one("type") != STRING:
      constants[name] = _array(name, tensor, path, others)
  for node in nodes:  # torch says with them that two modules share an array
    if node.one("op") == "Identity" and node.all("input")[:1] and node.all("output")[:1]:
      if (source := node.all("input")[0]) in constants:
        constants.setdefault(node.all("output")[0], constants[source])
  size = len(data) + sum(map(len, others.values()))
  names = {name: name for name in constants}
  return gathered(graph_names.name(_uses(nodes, constants), names, constants), size)


def _tensors(graph: Message, nodes: list[Message]) -> Iterator[tuple[str, Message]]:
  for tensor in graph.all("initializer"):
    yield tensor.one("name", ""), tensor
  for node in nodes:
    if node.one("op") == "Constant" and node.all("output"):
      for attribute in node.all("attribute"):
        if attribute.one("t"):
          yield node.all("output")[0], attribute.one("t")


def _array(name: str, tensor: Message, path: Path, others: dict[Path, np.ndarray]) -> np.ndarray:
  """The array of a tensor; `others` are the files beside the model that were opened."""
  what, kind = f"its array {short(name)}", tensor.one("type")
  if kind not in TYPES:
    raise UnsafeFile(f"{what} is of the unknown type {kind}")
  if tensor.all("segment"):
    raise UnsafeFile(f"{what} is in segments, which nothing ever wrote; refused")
  dtype, field = np.dtype(TYPES[kind][0]), TYPES[kind][1]
  shape = [int(n) for n in tensor.numbers("dims", np.int64)]
  if tensor.one("location", 0) == EXTERNAL:
    return shaped(_outside(what, tensor, path, others), shape, dtype, what)
  if tensor.all("raw_data"):
    return shaped(tensor.one("raw_data"), shape, dtype, what)
  if field in FLOATS:
    numbers = tensor.numbers(field, np.dtype("<f4" if field == "float_data" else "<f8"))
  else:  # of half types the bits, of others the numbers
    numbers = tensor.numbers(field, np.int64)
    whole = dtype.kind in "biu"
    numbers = numbers.astype(dtype if whole else f"<u{dtype.itemsize}")
  return shaped(numbers.view(np.uint8), shape, dtype, what)


def _outside(what: str, tensor: Message, path: Path, others: dict) -> np.ndarray:
  """The bytes of an array in another file, which must lie in the folder of the model."""
  rows = {row.one("key", ""): row.one("value", "") for row in tensor.all("external_data")}
  other = beside(path, rows.get("location", ""), what)
  data = others[other] if other in others else mapped(other)
  others[other] = data
  numbers = [rows.get("offset", "0"), rows.get("length", str(len(data)))]
  if not all(n.isascii() and n.isdigit() and len(n) < 20 for n in numbers):
    raise UnsafeFile(f"{what} has an impossible place in {short(other.name)}: {short(numbers)}")
  offset, length = map(int, numbers)
  length = length if "length" in rows else len(data) - offset
  if not 0 <= offset <= offset + length <= len(data):
    raise UnsafeFile(
      f"{what} takes bytes {offset} to {offset + length} of {short(other.name)}, which has "
      f"{len(data)}; download it again"
    )
  return data[offset : offset + length]


def _uses(nodes: list[Message], constants: dict[str, np.ndarray]) -> list[Use]:
  """The operations with weights in the order of the graph."""
  uses: dict[str, Use] = {}  # by their output
  for i, node in enumerate(nodes):
    kind, inputs = node.one("op", ""), node.all("input")
    slots = {
      _slot(node, slot): inputs[k]
      for k, slot in SLOTS.get(kind, {}).items()
      if k < len(inputs) and inputs[k] in constants
    }
    output = node.all("output")[0] if node.all("output") else f"{i} "
    if slots:
      uses[output] = Use(kind, node.one("name", ""), slots)
    elif kind == "Add" and len(inputs) == 2:  # a bias apart
      for bias, source in (inputs, inputs[::-1]):
        if bias in constants and constants[bias].ndim == 1 and source in uses:
          uses[source].slots.setdefault("bias", bias)
  return list(uses.values())


def _slot(node: Message, slot: str) -> str:
  """Gemm says with an attribute which way its weights lie."""
  turned = any(a.one("name") == "transB" and a.one("i") for a in node.all("attribute"))
  return "weight" if slot == "kernel" and turned else slot
