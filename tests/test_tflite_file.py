"""TensorFlow Lite: models written by its own schema, constants as its interpreter sees them."""

import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile

tfl = pytest.importorskip(
  "ai_edge_litert.schema_py_generated", reason="writes the files: pip install flaxzoo[references]"
)
import flatbuffers  # noqa: E402

RNG = np.random.default_rng(0)
KINDS = {"f4": 0, "f2": 1, "i4": 2, "u1": 3, "i8": 4, "b1": 6, "i2": 7, "i1": 9, "f8": 10}


class Model:
  """A graph to which tensors and operations are added, and its bytes."""

  def __init__(self):
    self.model, self.graph = tfl.ModelT(), tfl.SubGraphT()
    self.model.version, self.model.subgraphs = 3, [self.graph]
    self.model.buffers, self.model.operatorCodes = [tfl.BufferT()], []
    self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []

  def tensor(self, name, array=None, shape=(1,), **quantization) -> int:
    row = tfl.TensorT()
    row.name, row.shape, row.type, row.buffer = name, list(shape), 0, 0
    if array is not None:
      buffer = tfl.BufferT()
      buffer.data = np.frombuffer(array.tobytes(), np.uint8)
      row.shape, row.type = list(array.shape), KINDS[array.dtype.str[1:]]
      row.buffer = len(self.model.buffers)
      self.model.buffers.append(buffer)
    if quantization:
      row.quantization = tfl.QuantizationParametersT()
      for field, value in quantization.items():
        setattr(row.quantization, field, value)
    self.graph.tensors.append(row)
    return len(self.graph.tensors) - 1

  def operation(self, kind: str, *inputs: int) -> int:
    """Its output."""
    code, row = tfl.OperatorCodeT(), tfl.OperatorT()
    number = getattr(tfl.BuiltinOperator, kind)
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
    row.opcodeIndex, row.inputs = len(self.model.operatorCodes), list(inputs)
    row.outputs = [self.tensor("computed")]
    self.model.operatorCodes.append(code)
    self.graph.operators.append(row)
    return row.outputs[0]

  def write(self, folder):
    builder = flatbuffers.Builder(1024)
    builder.Finish(self.model.Pack(builder), b"TFL3")
    path = folder / "x.tflite"
    path.write_bytes(bytes(builder.Output()))
    return path


def array(*shape) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def test_weights_are_named_by_the_order_of_the_operations(tmp_path):
  m, want = Model(), {}

  def constant(name, *shape, key):
    want[key] = array(*shape)
    return m.tensor(name, want[key])

  late = constant("a", 5, 1, 1, 4, key="CONV_2D_1.filter")
  x = m.tensor("image", shape=(1, 8, 8, 3))
  x = m.operation("CONV_2D", x, constant("b", 4, 3, 3, 3, key="CONV_2D_0.filter"),
                  constant("b", 4, key="CONV_2D_0.bias"))  # fmt: skip
  x = m.operation(
    "DEPTHWISE_CONV_2D", x,
    constant("", 1, 3, 3, 4, key="DEPTHWISE_CONV_2D_0.depthwise_filter"), -1,
  )  # fmt: skip
  x = m.operation("MUL", constant("c", 4, key="MUL_0.value"), x)
  x = m.operation("ADD", x, x)
  x = m.operation("PRELU", x, constant("d", 1, 1, 4, key="PRELU_0.alpha"))
  x = m.operation("ADD", x, constant("e", 4, key="ADD_0.value"))
  x = m.operation("CONV_2D", x, late)
  shape = m.tensor("shape", np.array([1, 9], np.int32))
  x = m.operation("RESHAPE", x, shape)
  x = m.operation("FULLY_CONNECTED", x, constant("f", 2, 9, key="FULLY_CONNECTED_0.weights"),
                  constant("f", 2, key="FULLY_CONNECTED_0.bias"))  # fmt: skip
  x = m.operation("TRANSPOSE_CONV", shape, constant("g", 2, 3, 3, 2, key="TRANSPOSE_CONV_0.filter"),
                  x, constant("h", 2, key="TRANSPOSE_CONV_0.bias"))  # fmt: skip
  got = readers.read(m.write(tmp_path))
  assert set(got) == {*want, "shape"}
  assert list(got)[:3] == ["CONV_2D_0.filter", "CONV_2D_0.bias",
                           "DEPTHWISE_CONV_2D_0.depthwise_filter"]  # fmt: skip
  for name, values in want.items():
    np.testing.assert_array_equal(got[name], values)
    assert not got[name].flags.owndata


def test_other_constants_keep_their_names_and_twins_get_a_number(tmp_path):
  m = Model()
  for name in ("a", "a", ""):
    m.tensor(name, array(2))
  assert list(readers.read(m.write(tmp_path))) == ["a", "a#1", "tensor_2"]


def test_halves_behind_a_dequantize_and_quantised_constants(tmp_path):
  m = Model()
  half = array(2, 1, 1, 3).astype(np.float16)
  out = m.operation("DEQUANTIZE", m.tensor("half", half))
  whole = RNG.integers(-128, 128, (4, 2, 2, 3)).astype(np.int8)
  scale, zero = [0.5, 0.25, 0.125, 2.0], [0, 1, -2, 3]
  x = m.operation("CONV_2D", m.tensor("x"), out)
  x = m.operation("CONV_2D", x, m.tensor("q", whole, scale=scale, zeroPoint=zero,
                                         quantizedDimension=0))  # fmt: skip
  byte = RNG.integers(0, 256, (2, 3)).astype(np.uint8)
  m.operation("FULLY_CONNECTED", x, m.tensor("r", byte, scale=[0.1], zeroPoint=[128]),
              m.tensor("s", np.array([7, -7], np.int32), scale=[0.01]))  # fmt: skip
  got = readers.read(m.write(tmp_path))
  assert list(got) == ["CONV_2D_0.filter", "CONV_2D_1.filter", "FULLY_CONNECTED_0.weights",
                       "FULLY_CONNECTED_0.bias"]  # fmt: skip
  np.testing.assert_array_equal(got["CONV_2D_0.filter"], half)
  want = np.stack([(whole[i].astype(float) - zero[i]) * scale[i] for i in range(4)])
  np.testing.assert_allclose(got["CONV_2D_1.filter"], want, rtol=1e-6)
  np.testing.assert_allclose(got["FULLY_CONNECTED_0.weights"], (byte - 128.0) * 0.1, rtol=1e-6)
  np.testing.assert_allclose(got["FULLY_CONNECTED_0.bias"], [0.07, -0.07], rtol=1e-6)
  assert all(a.dtype == np.float32 for name, a in got.items() if "_1" in name)


def test_what_is_wrong_is_said(tmp_path):
  def refused(edit, sentence):
    m = Model()
    m.tensor("a", array(2, 3))
    m.operation("CONV_2D", 0, 0)
    edit(m)
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(m.write(tmp_path))

  def first(**fields):
    return lambda m: [setattr(m.graph.tensors[0], f, v) for f, v in fields.items()]

  refused(first(shape=[2, 4]), "needs 32 bytes")
  refused(first(shape=[-2, -3]), "impossible shape")
  refused(first(shape=[1] * 40), "impossible shape")
  refused(first(type=17), "of the type 17")
  refused(first(buffer=9), "buffer 9 of 2")
  refused(first(name="a" * 5000), "5000 bytes")
  refused(lambda m: m.operation("CONV_2D", 0, 99), "not there")
  refused(lambda m: setattr(m.graph.operators[0], "opcodeIndex", 5), "not there")
  refused(lambda m: m.model.subgraphs.clear(), "no graph")
  refused(lambda m: m.tensor("q", np.ones((2, 3), np.int8), scale=[1.0] * 3, quantizedDimension=0),
          "3 scales along axis 0")  # fmt: skip
  refused(lambda m: m.tensor("q", np.ones((2, 3), np.int8), scale=[1.0], zeroPoint=[0] * 2),
          "2 zero points")  # fmt: skip
