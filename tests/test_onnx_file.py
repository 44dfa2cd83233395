"""ONNX: against the library that writes it; names where the exporter gave none; files beside."""

import ml_dtypes
import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile

onnx = pytest.importorskip("onnx", reason="writes the files: pip install flaxzoo[references]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)


def model(nodes=(), initializers=(), **fields) -> "onnx.ModelProto":
  return helper.make_model(helper.make_graph(nodes, "g", [], [], initializers), **fields)


def write(folder, *args, **fields):
  path = folder / "x.onnx"
  path.write_bytes(model(*args, **fields).SerializeToString())
  return path


def array(*shape) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def tensor(name: str, *shape):
  return numpy_helper.from_array(array(*shape), name)


RAW = [
  np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.uint16,
  np.int32, np.int64, np.uint32, np.uint64, np.bool_, np.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", RAW)
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_in_both_forms(tmp_path, dtype, raw):
  want = (RNG.normal(size=(3, 2)) * 90).astype(np.float32).astype(dtype)
  if raw:
    row = numpy_helper.from_array(want, "a")
  else:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    row = helper.make_tensor("a", kind, want.shape, want.ravel())
  assert bool(row.raw_data) == raw
  got = readers.read(write(tmp_path, (), [row]))["a"]
  assert got.dtype == want.dtype and got.shape == want.shape
  assert got.tobytes() == want.tobytes()


def test_scalars_empty_arrays_and_constant_nodes(tmp_path):
  rows = [tensor("scalar"), tensor("none", 0, 3)]
  node = helper.make_node("Constant", [], ["constant"], value=tensor("inside", 2, 2))
  text = helper.make_tensor("text", TensorProto.STRING, (1,), [b"x"])
  got = readers.read(write(tmp_path, [node], [*rows, text]))
  assert {name: a.shape for name, a in got.items()} == {
    "scalar": (), "none": (0, 3), "constant": (2, 2)
  }  # fmt: skip
  np.testing.assert_array_equal(got["scalar"], numpy_helper.to_array(rows[0]))


NODES = [  # two convolutions, a bias apart, a norm, both ways of Gemm, an LSTM
  helper.make_node("Conv", ["x", "11"], ["a"], "Conv_3"),
  helper.make_node("Add", ["12", "a"], ["b"]),
  helper.make_node("Relu", ["b"], ["c"]),
  helper.make_node("Conv", ["c", "13", "14"], ["d"], "Conv_9"),
  helper.make_node("BatchNormalization", ["d", "14", "14", "bn.mean", "bn.var"], ["e"]),
  helper.make_node("Gemm", ["e", "15", "14"], ["f"], transB=1),
  helper.make_node("Gemm", ["f", "15"], ["h"], transB=0),
  helper.make_node("LSTM", ["h", "16", "17", ""], ["i"]),
  helper.make_node("Mul", ["i", "18"], ["j"]),
]
SHAPES = {
  "11": (4, 3, 1, 1), "12": (4,), "13": (5, 4, 3, 3), "14": (5,), "bn.mean": (5,), "bn.var": (5,),
  "15": (5, 5), "16": (1, 8, 5), "17": (1, 8, 2), "18": (2,),
}  # fmt: skip


def test_numbers_for_names_give_way_to_the_order_of_the_graph(tmp_path):
  rows = {name: tensor(name, *shape) for name, shape in SHAPES.items()}
  got = readers.read(write(tmp_path, NODES, reversed(rows.values())))
  want = {
    "Conv_0.weight": "11", "Conv_0.bias": "12", "Conv_1.weight": "13", "Conv_1.bias": "14",
    "BatchNormalization_0.weight": "14", "BatchNormalization_0.bias": "14",
    "BatchNormalization_0.running_mean": "bn.mean", "BatchNormalization_0.running_var": "bn.var",
    "Gemm_0.weight": "15", "Gemm_0.bias": "14", "Gemm_1.kernel": "15", "LSTM_0.W": "16",
    "LSTM_0.R": "17", "18": "18",
  }  # fmt: skip
  assert list(got) == list(want)
  for name, source in want.items():
    np.testing.assert_array_equal(got[name], numpy_helper.to_array(rows[source]))


def test_paths_of_modules_name_what_torch_folded(tmp_path):
  nodes = [
    helper.make_node("Conv", ["x", "onnx::Conv_9", "onnx::Conv_10"], ["a"],
                     "/layer1/layer1.0/conv1/Conv"),
    helper.make_node("Conv", ["a", "onnx::Conv_9", "onnx::Conv_10"], ["b"],
                     "/layer1/layer1.0/conv2/Conv"),
    helper.make_node("Identity", ["fc.bias"], ["head.bias"]),
    helper.make_node("Gemm", ["b", "fc.weight", "head.bias"], ["c"], "/fc/Gemm", transB=1),
  ]  # fmt: skip
  rows = [tensor(n, 2) for n in ("onnx::Conv_9", "onnx::Conv_10", "fc.weight", "fc.bias")]
  got = readers.read(write(tmp_path, nodes, rows))
  assert set(got) == {
    "layer1.0.conv1.weight", "layer1.0.conv1.bias", "layer1.0.conv2.weight",
    "layer1.0.conv2.bias", "fc.weight", "fc.bias", "head.bias",
  }  # fmt: skip
  assert got["fc.bias"] is got["head.bias"]


def test_names_of_tf2onnx_mean_nothing_where_it_folded(tmp_path):
  nodes = [
    helper.make_node("Conv", ["x", "Conv__450_weights_fused_bn"], ["a"]),
    helper.make_node("MatMul", ["a", "fc/MatMul/ReadVariableOp:0"], ["b"]),
    helper.make_node("Add", ["b", "fc/BiasAdd/ReadVariableOp:0"], ["c"]),
  ]
  names = [n for node in nodes for n in node.input if len(n) > 1]
  got = readers.read(write(tmp_path, nodes, [tensor(n, 2) for n in names]))
  assert list(got) == ["Conv_0.weight", "MatMul_0.kernel", "MatMul_0.bias"]


def outside(folder, **rows):
  """A model whose one array [2 3] lies in another file."""
  row = TensorProto(name="a", data_type=1, dims=(2, 3), data_location=TensorProto.EXTERNAL)
  for key, value in rows.items():
    row.external_data.add(key=key, value=value)
  return write(folder, (), [row])


def test_arrays_in_files_beside_the_model(tmp_path):
  folder = tmp_path / "model"
  (folder / "data").mkdir(parents=True)
  want = array(2, 3)
  (folder / "data" / "w.bin").write_bytes(bytes(8) + want.tobytes() + bytes(3))
  got = readers.read(outside(folder, location="data/w.bin", offset="8", length="24"))["a"]
  np.testing.assert_array_equal(got, want)
  assert not got.flags.owndata
  (tmp_path / "secret").write_bytes(bytes(24))
  (folder / "link").symlink_to(tmp_path / "secret")
  bad = [
    ({"location": "../secret"}, "outside its folder"),
    ({"location": "data/../../secret"}, "outside its folder"),
    ({"location": str(tmp_path / "secret")}, "outside its folder"),
    ({"location": "..\\secret"}, "outside its folder"),
    ({"location": "c:secret"}, "outside its folder"),
    ({"location": ""}, "outside its folder"),
    ({"location": "link"}, "a link out of it"),
    ({"location": "none"}, "not beside x.onnx"),
    ({"location": "data"}, "not beside x.onnx"),
    ({"location": "data/w.bin"}, "needs 24 bytes"),
    ({"location": "data/w.bin", "offset": "12", "length": "24"}, "which has 35"),
    ({"location": "data/w.bin", "offset": "-8", "length": "24"}, "impossible place"),
    ({"location": "data/w.bin", "offset": "9" * 30}, "impossible place"),
  ]
  for rows, sentence in bad:
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(outside(folder, **rows))


def test_what_is_wrong_is_said(tmp_path):
  two = [tensor("a", 2), tensor("a", 2)]
  with pytest.raises(UnsafeFile, match="two arrays by the name 'a'"):
    readers.read(write(tmp_path, (), two))
  row = tensor("a", 2)
  dimensions = {(3,): "needs 12 bytes", (-2,): "impossible shape", (1,) * 40: "impossible shape",
                (1 << 40, 1 << 40): "impossible shape"}  # fmt: skip
  for dims, sentence in dimensions.items():
    row.ClearField("dims")
    row.dims.extend(dims)
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(write(tmp_path, (), [row]))
  with pytest.raises(UnsafeFile, match="unknown type 99"):
    readers.read(write(tmp_path, (), [TensorProto(name="a", data_type=99)]))
  with pytest.raises(UnsafeFile, match="holds no arrays"):
    readers.read(write(tmp_path))
