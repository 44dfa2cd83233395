"""Caffe's models, TensorFlow's graphs, as the protobuf library writes them; the wire format."""

import ml_dtypes
import numpy as np
import pytest

from convert import protobuf, readers
from convert.files import UnsafeFile

pool = pytest.importorskip("google.protobuf.descriptor_pool", reason="writes the files")
from google.protobuf import descriptor_pb2, message_factory  # noqa: E402
from tensorboardX.proto import graph_pb2, types_pb2  # noqa: E402

RNG = np.random.default_rng(0)
FIELD = descriptor_pb2.FieldDescriptorProto


def caffe() -> dict:
  """Classes of Caffe's messages as far as they hold weights, from its caffe.proto."""
  file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
  blob = [("num", 1, "int32"), ("channels", 2, "int32"), ("height", 3, "int32"),
          ("width", 4, "int32"), ("data", 5, "float*"), ("diff", 6, "float*"),
          ("shape", 7, "BlobShape"), ("double_data", 8, "double*")]  # fmt: skip
  messages = {
    "BlobShape": [("dim", 1, "int64*")],
    "BlobProto": blob,
    "LayerParameter": [("name", 1, "string"), ("type", 2, "string"), ("bottom", 3, "string*"),
                       ("blobs", 7, "BlobProto*")],
    "V1LayerParameter": [("bottom", 2, "string*"), ("name", 4, "string"), ("type", 5, "int32"),
                         ("blobs", 6, "BlobProto*")],
    "NetParameter": [("name", 1, "string"), ("layers", 2, "V1LayerParameter*"),
                     ("layer", 100, "LayerParameter*")],
  }  # fmt: skip
  for name, fields in messages.items():
    message = file.message_type.add(name=name)
    for field, number, kind in fields:
      plain = kind.rstrip("*")
      row = message.field.add(name=field, number=number, label=3 if kind != plain else 1)
      if plain in messages:
        row.type, row.type_name = FIELD.TYPE_MESSAGE, f".caffe.{plain}"
      else:
        row.type = getattr(FIELD, f"TYPE_{plain.upper()}")
        row.options.packed = kind != plain and plain != "string"
  classes = message_factory.GetMessages([file])
  return {name: classes[f"caffe.{name}"] for name in messages}


CAFFE = caffe()


def array(*shape) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def fill(blob, values: np.ndarray, axes=None, double=False):
  (blob.double_data if double else blob.data).extend(values.ravel().tolist())
  blob.diff.extend([1.0] * 3)
  if axes is None:
    blob.shape.dim.extend(values.shape)
  else:
    blob.num, blob.channels, blob.height, blob.width = axes


def net(layers, form="layer"):
  """A NetParameter of (name, type, [(values, legacy axes), ...])."""
  model = CAFFE["NetParameter"](name="MobileNet-SSD")
  for name, kind, blobs in layers:
    layer = getattr(model, form).add(name=name, type=kind, bottom=["data"])
    for values, axes in blobs:
      fill(layer.blobs.add(), values, axes)
  return model


def write(folder, message) -> str:
  path = folder / "x.bin"
  path.write_bytes(message.SerializeToString())
  return path


WEIGHT, BIAS, DENSE = array(4, 3, 2, 5), array(4), array(6, 7)


@pytest.mark.parametrize("form, conv, dense", [("layer", "Convolution", "InnerProduct"),
                                               ("layers", 4, 14)])  # fmt: skip
@pytest.mark.parametrize("legacy", [True, False])
def test_both_forms_of_caffe_and_both_of_blobs(tmp_path, form, conv, dense, legacy):
  layers = [
    ("conv/dw", conv, [(WEIGHT, (4, 3, 2, 5)), (BIAS, (1, 1, 1, 4))]),
    ("fc", dense, [(DENSE, (1, 1, 6, 7)), (BIAS, (1, 4, 1, 1))]),
  ]
  if not legacy:
    layers = [(name, kind, [(v, None) for v, _ in blobs]) for name, kind, blobs in layers]
  got = readers.read(write(tmp_path, net(layers, form)))
  want = {"conv/dw/0": WEIGHT, "conv/dw/1": BIAS, "fc/0": DENSE, "fc/1": BIAS}
  assert list(got) == list(want)
  for name, values in want.items():
    np.testing.assert_array_equal(got[name], values)
    assert not got[name].flags.owndata


def test_sums_of_a_norm_are_divided_by_their_factor(tmp_path):
  mean, var = array(4), array(4) ** 2
  for factor in (999.5, 0.0):
    blobs = [(mean, None), (var, None), (np.array([factor], np.float32), None)]
    got = readers.read(write(tmp_path, net([("bn", "BatchNorm", blobs)])))
    assert list(got) == ["bn/0", "bn/1"]
    for name, sums in (("bn/0", mean), ("bn/1", var)):
      want = sums / np.float32(factor) if factor else np.zeros(4)
      np.testing.assert_allclose(got[name], want, rtol=1e-6)


def test_doubles_and_what_is_wrong_with_a_caffemodel(tmp_path):
  model = net([])
  fill(model.layer.add(name="a", type="Scale").blobs.add(), BIAS, double=True)
  np.testing.assert_array_equal(readers.read(write(tmp_path, model))["a/0"], BIAS)
  for layers, sentence in (
    ([("a", "Scale", [(BIAS, None)])] * 2, "two arrays by the name 'a/0'"),
    ([("a", "Convolution", [(BIAS, (2, 3, 4, 5))])], "needs 480 bytes"),
    ([("a", "Convolution", [(BIAS, (-2, 1, 1, -2))])], "impossible shape"),
    ([("a", "BatchNorm", [(BIAS, None)] * 3)], "4 scale factors"),
    ([("a", "ReLU", [])], "holds no arrays"),
    ([("a\n", "Scale", [(BIAS, None)])], "by the name"),
  ):
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(write(tmp_path, net(layers)))


def graph(*rows):
  """A GraphDef with a placeholder and Const nodes (name, fields of its tensor)."""
  out = graph_pb2.GraphDef()
  out.node.add(name="input", op="Placeholder")
  for name, shape, fields in rows:
    node = out.node.add(name=name, op="Const")
    node.attr["dtype"].type = fields["dtype"]
    tensor = node.attr["value"].tensor
    for n in shape:
      tensor.tensor_shape.dim.add(size=n)
    for field, value in fields.items():
      if isinstance(value, list):
        getattr(tensor, field).extend(value)
      else:
        setattr(tensor, field, value)
  out.versions.producer = 24
  return out


KINDS = {  # the types of TensorFlow, and where their numbers stand
  "DT_FLOAT": ("<f4", "float_val"), "DT_DOUBLE": ("<f8", "double_val"),
  "DT_INT32": ("<i4", "int_val"), "DT_UINT8": ("u1", "int_val"), "DT_INT8": ("i1", "int_val"),
  "DT_INT64": ("<i8", "int64_val"), "DT_BOOL": ("?", "bool_val"), "DT_HALF": ("<f2", "half_val"),
  "DT_BFLOAT16": (ml_dtypes.bfloat16, "half_val"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_constants_of_a_frozen_graph(tmp_path, kind):
  dtype, field = KINDS[kind]
  want = (array(2, 3) * 50).astype(dtype)
  number = types_pb2.DataType.Value(kind)
  values = want.ravel().view("<u2") if field == "half_val" else want.ravel()
  rows = [
    ("conv/weights", want.shape, {"dtype": number, "tensor_content": want.tobytes()}),
    ("values", want.shape, {"dtype": number, field: values.tolist()}),
    ("cut", (7,), {"dtype": number, field: values[:3].tolist()}),
    ("one", (2, 2), {"dtype": number, field: values[:1].tolist()}),
    ("scalar", (), {"dtype": number, field: values[:1].tolist()}),
    ("zeros", (3,), {"dtype": number}),
    ("text", (1,), {"dtype": types_pb2.DT_STRING, "string_val": [b"x"]}),
  ]
  got = readers.read(write(tmp_path, graph(*rows)))
  flat = want.ravel()
  expected = {
    "conv/weights": want, "values": want, "cut": flat[[0, 1, 2, 2, 2, 2, 2]],
    "one": flat[[0, 0, 0, 0]].reshape(2, 2), "scalar": flat[0], "zeros": np.zeros(3, dtype),
  }  # fmt: skip
  assert list(got) == list(expected)
  for name, values in expected.items():
    assert got[name].dtype == dtype and got[name].shape == values.shape
    np.testing.assert_array_equal(got[name].astype(float), np.asarray(values).astype(float))


def test_what_is_wrong_with_a_graph(tmp_path):
  huge = {"dtype": 1, "float_val": [1.0]}
  for rows, sentence in (
    ([("a", (1 << 20, 1 << 10), huge)], "claims .* bytes in a file"),
    ([("a", (-1,), huge)], "impossible shape"),
    ([("a", (2,), {"dtype": 1, "float_val": [1.0] * 3})], "needs 8 bytes"),
    ([("a", (2,), {"dtype": 77})], "unknown type 77"),
    ([("a", (), huge)] * 2, "two arrays"),
    ([], "holds no arrays"),
  ):
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(write(tmp_path, graph(*rows)))
  loose = graph(("a", (), huge))
  loose.node.add(name="conv/weights", op="VariableV2")
  with pytest.raises(UnsafeFile, match="1 variables such as 'conv/weights'"):
    readers.read(write(tmp_path, loose))


def test_whole_numbers_of_every_length():
  values = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]
  model = CAFFE["BlobShape"](dim=values)
  schema = {1: ("dim", "ints")}
  data = np.frombuffer(model.SerializeToString(), np.uint8)
  assert protobuf.parse(data, schema).numbers("dim", np.int64).tolist() == values
  apart = b"".join(
    CAFFE["BlobProto"](num=v % 2**31).SerializeToString() or b"\x08\0" for v in values
  )
  assert protobuf.parse(np.frombuffer(apart, np.uint8), schema).numbers(
    "dim", np.int64
  ).tolist() == [v % 2**31 for v in values]


BAD = {  # of a message whose field 1 is packed whole numbers and field 2 packed floats
  "number that does not end": b"\x0a\x02\x01\x80",
  "key that does not end": b"\x80",
  "number of 11 bytes": b"\x0a\x0b" + b"\xff" * 10 + b"\x01",
  "length beyond the end": b"\x0a\x05\x01",
  "length of 2**64 - 1": b"\x0a" + b"\xff" * 9 + b"\x01",
  "group": b"\x0b\x0c",
  "field 0": b"\x02\x00",
  "floats of five bytes": b"\x12\x05abcde",
  "text for a number": b"\x15abcd\x11abcdefgh",
  "half a float": b"\x15ab",
}


@pytest.mark.parametrize("what", BAD)
def test_bytes_that_are_no_message(what):
  schema = {1: ("dim", "ints"), 2: ("data", "floats")}
  with pytest.raises(UnsafeFile):
    protobuf.parse(np.frombuffer(BAD[what], np.uint8), schema).numbers("dim", np.int64)
