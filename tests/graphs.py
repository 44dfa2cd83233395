"""Small models in the formats of runtimes, assembled by hand."""

import base64
import json
import struct

import numpy as np


def varint(n: int) -> bytes:
  out = b""
  while n > 127:
    out, n = out + bytes((n & 127 | 128,)), n >> 7
  return out + bytes((n,))


def field(number: int, value) -> bytes:
  """Of a protocol buffer: an int as it is, bytes behind their length."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


FLOATS = np.arange(6, dtype="<f4").tobytes()


def tensor(name=b"w", dims=(2, 3), raw=FLOATS, kind=1, more=b"") -> bytes:
  shape = b"".join(field(1, n) for n in dims)
  return shape + field(2, kind) + field(8, name) + (field(9, raw) if raw else b"") + more


def onnx(*tensors: bytes, nodes=(), more=b"") -> bytes:
  rows = b"".join(field(1, node) for node in nodes) + b"".join(field(5, t) for t in tensors)
  return field(1, 8) + field(2, b"maker") + field(7, rows + more) + field(8, field(2, 13))


def node(kind: bytes, *inputs: bytes, output=b"y") -> bytes:
  return b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, kind)


def blob(values=FLOATS, dims=(2, 3)) -> bytes:
  return field(5, values) + field(7, field(1, b"".join(varint(n) for n in dims)))


def layer(*blobs: bytes, name=b"conv1", kind=b"Convolution") -> bytes:
  return field(100, field(1, name) + field(2, kind) + b"".join(field(7, b) for b in blobs))


def caffe(*layers: bytes) -> bytes:
  return field(1, b"net") + b"".join(layers)


CONTENT = field(4, FLOATS)


def value(shape=(2, 3), kind=1, content=CONTENT) -> bytes:
  dims = b"".join(field(2, field(1, n)) for n in shape)
  return field(1, kind) + field(2, dims) + content


def const(tensor: bytes, name=b"w") -> bytes:
  attr = field(5, field(1, b"value") + field(2, field(8, tensor)))
  return field(1, field(1, name) + field(2, b"Const") + attr)


def graph(*nodes: bytes) -> bytes:
  return field(1, field(1, b"input") + field(2, b"Placeholder")) + b"".join(nodes)


def tfjs(weights=None, shards=("s.bin",), **row) -> bytes:
  rows = [{"name": "w", "shape": [2, 3], "dtype": "float32"} | row]
  manifest = [{"paths": list(shards), "weights": rows if weights is None else weights}]
  return json.dumps({"weightsManifest": manifest}).encode()


U4 = struct.Struct("<I").pack


def lay(out: bytearray, item) -> int:
  """Appends a part of a flatbuffer and what it refers to, behind it; returns where it stands.

  bytes and lists of ints are vectors, tuples vectors of tables, {field: value} is a table.
  """
  out.extend(bytes(-len(out) % 4))
  begin = len(out)
  if isinstance(item, bytes):
    out.extend(U4(len(item)) + item)
  elif isinstance(item, list):
    out.extend(U4(len(item)) + struct.pack(f"<{len(item)}i", *item))
  elif isinstance(item, tuple):
    out.extend(U4(len(item)) + bytes(4 * len(item)))
    for i, inner in enumerate(item):
      at = begin + 4 + 4 * i
      out[at : at + 4] = U4(lay(out, inner) - at)
  else:
    places = dict.fromkeys(range(max(item, default=-1) + 1), 0)
    places |= {f: 4 + 4 * i for i, f in enumerate(item)}
    sizes = (4 + 2 * len(places), 4 + 4 * len(item))
    row = struct.pack(f"<{2 + len(places)}H", *sizes, *places.values())
    row += bytes(-len(row) % 4)
    out.extend(row + U4(len(row)) + bytes(4 * len(item)))
    begin += len(row)
    for f, inner in item.items():
      at = begin + places[f]
      out[at : at + 4] = U4(inner if isinstance(inner, int) else lay(out, inner) - at)
  return begin


def flat(model: dict) -> bytes:
  out = bytearray(b"\0\0\0\0TFL3")
  out[:4] = U4(lay(out, model))
  return bytes(out)


def tflite(inputs=(0, 1), code=0, more=(), **fields) -> bytes:
  """A convolution (operator 3) of an image and one constant, tensor 1 in buffer 1."""
  row = {"shape": [2, 3], "type": 0, "buffer": 1, "name": b"w"} | fields
  tensors = {0: [1]}, dict(enumerate(row.values())), *more
  operation = {0: code, 1: list(inputs), 2: [0]}
  graphs = {0: tensors, 1: [0], 2: [0], 3: (operation,)}
  return flat({0: 3, 1: ({0: 3},), 2: (graphs,), 4: ({}, {0: FLOATS})})


CFG = (
  b"[net]\nchannels=3\nheight=8\nwidth=8\n[convolutional]\nbatch_normalize=1\nfilters=2\nsize=3\n"
)
WEIGHTS = struct.pack("<3iq", 0, 2, 0, 0) + np.ones(62, "<f4").tobytes()
GOOD = {  # kind -> (file, content, other files)
  "onnx": (
    "x.onnx", onnx(tensor(), tensor(b"b", (6,)), nodes=[node(b"Conv", b"x", b"w", b"b")]), {}),
  "caffe": ("x.caffemodel", caffe(layer(blob(), blob(dims=(6,))), layer(blob(), name=b"fc")), {}),
  "graph": ("x.pb", graph(const(value()), const(value((), 1, field(5, b"abcd")), b"s")), {}),
  "tflite": ("x.tflite", tflite(), {}),
  "tfjs": ("model.json", tfjs(), {"s.bin": FLOATS}),
  "darknet": ("x.weights", WEIGHTS, {"x.cfg": CFG}),
  "cfg": ("x.cfg", CFG, {"x.weights": WEIGHTS}),
}  # fmt: skip
INDEX = base64.b64decode("""
AAAGCAEaAggBABwOX0NIRUNLUE9JTlRBQkxFX09CSkVDVF9HUkFQSAgHEgAgOiijAjXlzhQDACYRbmV0L2JuL21lYW4v
LkFUVFJJQlVURVMvVkFSSUFCTEVfVkFMVUUICRIEEgIIBCAaKCA1tP8C3wQfDWhhbGYvLkFUVFJJQlVURVMvVkFSSUFC
TEVfVkFMVUUIExIAIBgoAjXNxgulBCETa2VybmVsLy5BVFRSSUJVVEVTL1ZBUklBQkxFX1ZBTFVFCAESCBICCAISAggD
KBg1wNs9FwAAAAABAAAAAJ8KIDQAAAAAAQAAAADA8qGwAAEDbwDeAQAAAAABAAAAAHA+ofXjAQjwAQ8AAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAV/uAiyR1R9s=
""")  # of TensorFlow 2.21: tf.train.Checkpoint(net=module).write("x"), three variables, their graph
OLD = base64.b64decode("""
AABTClEKGQoLbmV0L2JuL21lYW4SBBICCAQYCSICCgAKEAoIbmV0L2hhbGYSABgTIgAKHgoKbmV0L2tlcm5lbBIIEgIIAhIC
CAMYASIECgAKABICCAEAEhsAbmV0L2JuL21lYW4AAQEBgH8SGQoLbmV0L2JuL21lYW4SAgoAGgZSBAABAgMFBxRoYWxmAAEA
EhIKCG5ldC9oYWxmEgAaBGoCgHwFDjBrZXJuZWwAAQECgH+AfxIuCgpuZXQva2VybmVsEgQKAAoAGhoqGAAAAAAAAIA/AAAA
QAAAQEAAAIBAAACgQAAAAAABAAAAAEFnixAAAAAAAQAAAADA8qGwAAEDAQDtAQAAAAABAAAAAJmcmXnyAQj/AQ8AAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAV/uAiyR1R9s=
""")  # of the same: tf.compat.v1.train.Saver(write_version=1), all in one file


def snappy(data: bytes, copies: bytes = b"", size: int | None = None) -> bytes:
  """`data` as one literal of Snappy's, and what follows it."""
  size, length = len(data) if size is None else size, len(data) - 1
  return varint(size) + b"\xf8" + length.to_bytes(3, "little") + data + copies


BESIDE = {"x.cfg": CFG, "s.bin": FLOATS, "x.bin.data-00000-of-00001": bytes(349)}  # of x.bin
