"""TensorFlow Lite models: the constants of the main graph.

Converters fold, split and rename, so that a tensor's name may say anything. Weights are named by
the order of the operations instead, each kind counted from 0, whatever wrote the file:

  CONV_2D_0.filter [out h w in]   DEPTHWISE_CONV_2D_0.depthwise_filter [1 h w c]   *.bias
  FULLY_CONNECTED_0.weights [out in]   PRELU_0.alpha   MUL_0.value, ADD_0.value (of a norm alone)

Other constants keep their names. What was quantised comes as float32, scale * (q - zero point);
float16 behind a DEQUANTIZE as it is.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.files import UnsafeFile, gathered, shaped, short
from convert.flatbuffer import Buffer, Table

SIGN = b"TFL3"
TYPES = {  # TensorType
  0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 6: "?", 7: "<i2", 8: "<c8", 9: "i1", 10: "<f8",
  11: "<c16", 12: "<u8", 15: "<u4", 16: "<u2", 18: ml_dtypes.bfloat16,
}  # fmt: skip
STRING = 5
DEQUANTIZE = 6
BIASED = {1: "filter", 2: "bias"}
OPERATIONS = {  # BuiltinOperator -> its name, which of its inputs are weights
  0: ("ADD", {0: "value", 1: "value"}), 3: ("CONV_2D", BIASED),
  4: ("DEPTHWISE_CONV_2D", {1: "depthwise_filter", 2: "bias"}),
  9: ("FULLY_CONNECTED", {1: "weights", 2: "bias"}), 18: ("MUL", {0: "value", 1: "value"}),
  54: ("PRELU", {1: "alpha"}), 67: ("TRANSPOSE_CONV", {1: "filter", 3: "bias"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Graph:
  """The main graph; its constants are made when they are asked for."""

  tensors: list[Table]
  buffers: list[Table]
  operators: list[tuple[int, list[int], list[int]]]  # kind, inputs (-1 is none), outputs
  data: np.ndarray

  def raw(self, index: int) -> np.ndarray | None:
    """The bytes of a constant of numbers; None of other tensors, and of none."""
    if index < 0 or self.tensors[index].scalar(1, "<b") == STRING:
      return None
    number = self.tensors[index].scalar(2, "<I")
    if number >= len(self.buffers):
      raise UnsafeFile(f"its tensor {index} is in buffer {number} of {len(self.buffers)}; refused")
    buffer = self.buffers[number]
    begin, size = buffer.scalar(1, "<Q"), buffer.scalar(2, "<Q")
    if begin > 1:  # behind the tables, of models above 2 GB
      if begin + size > len(self.data):
        raise UnsafeFile(f"its buffer {number} ends at byte {begin + size}; download it again")
      return self.data[begin : begin + size]
    raw = buffer.vector(0, np.uint8)
    return raw if len(raw) else None

  def constant(self, index: int) -> np.ndarray | None:
    tensor, raw = self.tensors[index], self.raw(index)
    kind = tensor.scalar(1, "<b")
    if raw is None:
      return None
    what = f"its tensor {short(tensor.text(3))}"
    if kind not in TYPES or tensor.table(6):
      raise UnsafeFile(f"{what} is of the type {kind}, which is not read here")
    array = shaped(raw, map(int, tensor.vector(0, "<i4")), TYPES[kind], what)
    quantized = tensor.table(4)
    return array if quantized is None else _dequantized(array, quantized, what)


def matches(data: np.ndarray, path: Path) -> bool:
  return data[4:8].tobytes() == SIGN


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every constant of the main graph by name. Raises UnsafeFile."""
  return gathered(_constants(_graph(data)), len(data))


def _graph(data: np.ndarray) -> Graph:
  model = Buffer(data).root()
  kinds = [max(code.scalar(0, "<b"), code.scalar(3, "<i")) for code in model.tables(1)]
  main = next(model.tables(2), None)
  if main is None:
    raise UnsafeFile("it holds no graph")
  tensors = list(main.tables(0))
  operators = []
  for operator in main.tables(3):
    code = operator.scalar(0, "<I")
    inputs, outputs = (operator.vector(f, "<i4").tolist() for f in (1, 2))
    known = all(-1 <= i < len(tensors) for i in (*inputs, *outputs))
    if code >= len(kinds) or not known:
      raise UnsafeFile("an operation of it refers to tensors or kinds that are not there; refused")
    operators.append((kinds[code], inputs, outputs))
  return Graph(tensors, list(model.tables(4)), operators, data)


def _constants(graph: Graph) -> Iterator[tuple[str, np.ndarray]]:
  """Weights in the order of the operations, then the others in that of the tensors."""
  source = {}  # tensor -> the constant that it is, perhaps dequantised on the way
  for kind, inputs, outputs in graph.operators:
    if kind == DEQUANTIZE and inputs and outputs and graph.raw(inputs[0]) is not None:
      source[outputs[0]] = inputs[0]
  counts: dict[str, int] = {}
  done = set()
  for kind, inputs, _ in graph.operators:
    name, slots = OPERATIONS.get(kind, ("", {}))
    found = [
      (slot, source.get(inputs[k], inputs[k])) for k, slot in slots.items() if k < len(inputs)
    ]
    found = [(slot, index) for slot, index in found if graph.raw(index) is not None]
    if not found:
      continue
    rank = counts[name] = counts.get(name, -1) + 1
    for slot, index in found:
      done.add(index)
      yield f"{name}_{rank}.{slot}", graph.constant(index)
  names = set()
  for index, tensor in enumerate(graph.tensors):
    if index not in done and (array := graph.constant(index)) is not None:
      name = tensor.text(3) or f"tensor_{index}"
      yield f"{name}#{index}" if name in names else name, array
      names.add(name)


def _dequantized(array: np.ndarray, row: Table, what: str) -> np.ndarray:
  """scale * (q - zero point), for all or along one axis; the array itself where there is none."""
  scale, zero = row.vector(2, "<f4"), row.vector(3, "<i8")
  axis = row.scalar(6, "<i")
  if not len(scale) or array.dtype.kind not in "iu":
    return array
  if len(scale) > 1 and not (0 <= axis < array.ndim and array.shape[axis] == len(scale)):
    raise UnsafeFile(f"{what} of shape {array.shape} has {len(scale)} scales along axis {axis}")
  if len(zero) not in (0, 1, len(scale)):
    raise UnsafeFile(f"{what} has {len(scale)} scales and {len(zero)} zero points; refused")
  along = [1] * array.ndim
  if len(scale) > 1:
    along[axis] = -1
  scale, zero = (
    v.reshape(along if len(v) > 1 else ()) for v in (scale, zero if len(zero) else np.zeros(1))
  )
  return (array.astype(np.float32) - zero.astype(np.float32)) * scale
