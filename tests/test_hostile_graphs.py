"""Graphs that attack their reader: bombs, lies, cuts and flipped bits of ONNX, Caffe, TensorFlow,
TensorFlow Lite and .js, darknet. Whatever comes: arrays, or a sentence, in little memory."""

from pathlib import Path
import random
import time
import tracemalloc

import numpy as np
import pytest

from convert import flatbuffer, protobuf, readers
from convert.files import UnsafeFile
from tests.graphs import CFG, FLOATS, GOOD, U4, WEIGHTS
from tests.graphs import blob, caffe, const, field, flat, graph, lay, layer, node, onnx, tensor
from tests.graphs import tfjs, tflite, value
from tests.test_hostile_files import refused

MEMORY = 256 << 20  # bytes, for files below one megabyte
SECONDS = 30


def placed(folder: Path, kind: str) -> tuple[Path, Path, bytes]:
  """(what is read, what is damaged, its good content)."""
  name, data, others = GOOD[kind]
  for other, content in others.items():
    (folder / other).write_bytes(content)
  (folder / name).write_bytes(data)
  return folder / ("x.weights" if kind == "cfg" else name), folder / name, data


def survives(path: Path) -> bool:
  """Whether it is read; anything but arrays of modest size or a sentence fails."""
  try:
    arrays = readers.read(path)
  except UnsafeFile as error:
    assert str(error).isprintable() and 40 < len(str(error)) < 600
    return False
  assert sum(array.nbytes for array in arrays.values()) < 1 << 27
  return True


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
  """What reading imports is imported, before events are counted; and the good files are good."""
  for kind in GOOD:
    path, _, _ = placed(tmp_path_factory.mktemp(kind), kind)
    assert readers.read(path)


@pytest.mark.parametrize("kind", GOOD)
def test_cut_anywhere(tmp_path, kind):
  path, damaged, data = placed(tmp_path, kind)
  whole = 0
  for size in range(1, len(data)):
    damaged.write_bytes(data[:size])
    whole += survives(path)
  # Where a format says nowhere how long it is, a cut behind a layer or an option is no fault.
  assert whole < {"caffe": 3, "graph": 3, "cfg": 4, "darknet": 1, "onnx": 3}.get(kind, 1)


@pytest.mark.parametrize("kind", GOOD)
def test_flipped_bits_and_shuffled_bytes(tmp_path, kind):
  rng = random.Random(0)
  path, damaged, data = placed(tmp_path, kind)
  begin, read, total = time.monotonic(), 0, 300
  tracemalloc.start()
  try:
    for trial in range(total):
      bad = bytearray(data)
      for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(bad))
        bad[at] = bad[at] ^ 1 << rng.randrange(8) if trial % 3 else rng.randrange(256)
      damaged.write_bytes(bad)
      read += survives(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
  finally:
    tracemalloc.stop()
  assert time.monotonic() - begin < SECONDS and 0 < read < total


MANY = b"".join(tensor(b"%d" % i, (4,), None, more=field(4, bytes(16))) for i in range(3))
BOMBS = {  # what -> content, or its maker where that takes time
  "onnx: array of 2**62": onnx(tensor(dims=(1 << 31, 1 << 31))),
  "onnx: array of no elements and 2**60 others": onnx(tensor(dims=(0, 1 << 60), raw=None)),
  "onnx: negative axis": onnx(tensor(dims=((1 << 64) - 2, (1 << 64) - 3))),
  "onnx: 10000 axes": lambda: onnx(tensor(dims=(1,) * 10_000)),
  "onnx: fields without end": lambda: onnx(tensor(), more=field(3, b"") * 60_000),
  "onnx: whole numbers without end": lambda: onnx(
    tensor(dims=(1 << 24,), raw=None, kind=6, more=field(5, bytes(1 << 19)))),
  "onnx: graph twice": onnx(tensor()) + onnx(tensor()),
  "onnx: graph of 2**63 bytes": field(1, 8) + b"\x3a" + b"\xff" * 8 + b"\x7f" + bytes(30),
  "onnx: name twice": onnx(tensor(), tensor()),
  "onnx: name of terminal escapes": onnx(tensor(b"\x1b[31mred")),
  "onnx: name that is no text": onnx(tensor(b"\xff\xfe")),
  "onnx: name of a megabyte": lambda: onnx(tensor(b"a" * (1 << 20))),
  "onnx: raw of another length": onnx(tensor(raw=FLOATS[:-1])),
  "onnx: raw twice": onnx(tensor(more=field(9, FLOATS))),
  "onnx: unknown type": onnx(tensor(kind=99)),
  "onnx: type said twice": onnx(tensor(more=field(2, 1))),
  "onnx: type of several numbers": onnx(field(1, 2) + field(2, b"\1\1") + field(9, bytes(8))),
  "onnx: in segments": onnx(tensor(more=field(3, field(1, 0)))),
  "onnx: outside": onnx(tensor(raw=None, more=field(14, 1) + field(
    13, field(1, b"location") + field(2, b"../../../../etc/passwd")))),
  "onnx: outside of nothing": onnx(tensor(raw=None, more=field(14, 1))),
  "onnx: one array under many names": lambda: onnx(
    tensor(b"1", (250_000,), bytes(1_000_000)),
    nodes=[node(b"Conv", b"x", b"1", output=b"%d" % i) for i in range(5000)]),
  "onnx: chain of identities": lambda: onnx(tensor(b"0", (250_000,), bytes(1_000_000)), nodes=[
    node(b"Identity", b"%d" % i, output=b"%d" % (i + 1)) for i in range(5000)]),
  "onnx: nothing": onnx(),
  "onnx: group": field(1, 8) + field(7, b"\x0b\x0c"),
  "caffe: blob of 2**62": caffe(layer(blob(dims=(1 << 31, 1 << 31)))),
  "caffe: negative axis": caffe(layer(blob(dims=((1 << 64) - 1, 6)))),
  "caffe: shape that lies": caffe(layer(blob(dims=(2, 4)))),
  "caffe: two shapes": caffe(layer(blob() + field(7, field(1, b"\x06")))),
  "caffe: a tenth of a float": caffe(layer(field(5, b"abc"))),
  "caffe: layer twice": caffe(layer(blob()), layer(blob())),
  "caffe: no layers": caffe(layer()),
  "caffe: blob without numbers": caffe(layer(field(7, field(1, b"\x06")))),
  "caffe: norm of six factors": caffe(layer(blob(), blob(), blob(), kind=b"BatchNorm")),
  "caffe: old layers that end": field(1, b"net") + field(2, field(4, b"c") + field(5, 4) + b"\x32"),
  "graph: constant of 4 TB out of one number": graph(
    const(value((1 << 20, 1 << 20), 1, field(5, b"abcd")))),
  "graph: zeros of 2**40": graph(const(value((1 << 40,), 1, b""))),
  "graph: hundreds of fills": lambda: graph(*(
    const(value((1 << 24,), 1, field(5, b"abcd")), b"%d" % i) for i in range(500))),
  "graph: negative axis": graph(const(value(((1 << 64) - 1,)))),
  "graph: content of another length": graph(const(value((7,)))),
  "graph: constant without value": graph(field(1, field(1, b"w") + field(2, b"Const"))),
  "graph: two values": graph(field(1, field(1, b"w") + field(2, b"Const") + 2 * field(
    5, field(1, b"value") + field(2, field(8, value()))))),
  "graph: unknown type": graph(const(value(kind=99))),
  "graph: twice": graph(const(value()), const(value())),
  "graph: not frozen": graph(field(1, field(1, b"w") + field(2, b"VariableV2"))),
}  # fmt: skip


@pytest.fixture
def few_parts(monkeypatch):
  """A fraction of the real limits, for the sake of the suite's time."""
  monkeypatch.setattr(protobuf, "FIELD_LIMIT", 50_000)
  monkeypatch.setattr(protobuf, "NUMBER_LIMIT", 1 << 18)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("what", BOMBS)
def test_bombs_and_lies(tmp_path, what):
  data = BOMBS[what]() if callable(BOMBS[what]) else BOMBS[what]
  tracemalloc.start()
  try:
    refused(tmp_path / "x.bin", data)
    assert tracemalloc.get_traced_memory()[1] < MEMORY
  finally:
    tracemalloc.stop()


def edited(find: bytes, new: bytes) -> bytes:
  data = tflite()
  assert data.count(find) == 1 and len(new) == len(find)
  return data.replace(find, new)


LITE = {
  "root beyond the end": b"\xff\xff\xff\x7f" + tflite()[4:],
  "root of itself": U4(0) + tflite()[4:],
  "root on the sign": U4(4) + tflite()[4:],
  "nothing but the sign": U4(8) + b"TFL3",
  "shape that lies": tflite(shape=[2, 4]),
  "shape of 2**62": tflite(shape=[2**31 - 1] * 2),
  "negative shape": tflite(shape=[-2, -3]),
  "100000 axes": tflite(shape=[1] * 100_000),
  "vector of 2**32": edited(U4(2) + U4(2) + U4(3), b"\xff\xff\xff\xff" + U4(2) + U4(3)),
  "data of 2**32": edited(U4(24) + FLOATS, b"\xff\xff\xff\xff" + FLOATS),
  "input that is not there": tflite(inputs=(0, 2)),
  "input of -2": tflite(inputs=(0, -2)),
  "operation of no kind": tflite(code=1),
  "buffer that is not there": tflite(buffer=2),
  "type that is not there": tflite(type=99),
  "name of a megabyte": tflite(name=b"a" * (1 << 20)),
  "name that is no text": tflite(name=b"\xff\xfe"),
  "other name of escapes": tflite(more=({0: [6], 1: 0, 2: 1, 3: b"\x1b[31m"},)),
  "one buffer under many names": flat({0: 3, 4: ({}, {0: bytes(1 << 20)}), 2: ({0: tuple(
    {0: [1 << 18], 1: 0, 2: 1, 3: b"%d" % i} for i in range(100))},)}),
  "no graph": flat({0: 3, 1: (), 2: ()}),
  "no tensors": flat({0: 3, 2: ({},)}),
  "scales along no axis": tflite(type=9, shape=[24], quantization={2: [1] * 5}),
}  # fmt: skip


@pytest.mark.parametrize("what", LITE)
def test_flatbuffers_that_lie(tmp_path, what):
  refused(tmp_path / "x.tflite", LITE[what])


def test_tables_that_are_opened_without_end(tmp_path):
  """A vector of offsets that all lead to one table, and vectors that are one vector."""
  count = flatbuffer.PART_LIMIT + 1
  offsets = np.arange(4 * count, 0, -4, dtype="<u4")  # to what stands behind them
  data = bytearray(flat({0: 3, 1: ()}))
  data[-4:] = U4(count)
  data += offsets.tobytes()
  lay(data, {0: 3})
  tracemalloc.start()
  try:
    assert "parts" in refused(tmp_path / "x.tflite", bytes(data))
    assert tracemalloc.get_traced_memory()[1] < MEMORY
  finally:
    tracemalloc.stop()


MANIFESTS = {
  "deep": b'{"weightsManifest":' + b"[" * 100_000,
  "long": lambda: b'{"weightsManifest":' + b" " * (17 << 20) + b"[]}",
  "twice": b'{"weightsManifest":[], "weightsManifest":[]}',
  "shard outside": tfjs(shards=["../s.bin"]),
  "shard in the root": tfjs(shards=["/etc/passwd"]),
  "shard of a drive": tfjs(shards=["c:s.bin"]),
  "shard by backslash": tfjs(shards=["..\\s.bin"]),
  "shard of a null": tfjs(shards=["s\0.bin"]),
  "shard that is the folder": tfjs(shards=["."]),
  "shard twice": tfjs(shards=["s.bin", "s.bin"]),
  "shards without end": lambda: tfjs(shards=["s.bin"] * 2000),
  "huge": tfjs(shape=[1 << 62]),
  "negative": tfjs(shape=[-2, -3]),
  "fraction": tfjs(shape=[2.0, 3.0]),
  "true": tfjs(shape=[True, 6]),
  "deep shape": tfjs(shape=[[2, 3]]),
  "100000 axes": tfjs(shape=[1] * 100_000),
  "name of escapes": tfjs(name="\x1b[31m"),
  "name of a megabyte": tfjs(name="a" * (1 << 20)),
  "type": tfjs(dtype="object"),
  "scale": tfjs(quantization={"dtype": "uint8"}),
}  # fmt: skip


@pytest.mark.parametrize("what", MANIFESTS)
def test_manifests_that_lie(tmp_path, what):
  (tmp_path / "s.bin").write_bytes(FLOATS)
  data = MANIFESTS[what]() if callable(MANIFESTS[what]) else MANIFESTS[what]
  tracemalloc.start()
  try:
    refused(tmp_path / "model.json", data)
    assert tracemalloc.get_traced_memory()[1] < MEMORY
  finally:
    tracemalloc.stop()


CFGS = {
  "doubling": CFG + b"[route]\nlayers=-1,-1\n" * 40,
  "upsampling": CFG + b"[upsample]\nstride=1000\n" * 20,
  "of itself": CFG + b"[route]\nlayers=1\n",
  "digits": CFG + b"[convolutional]\nfilters=" + b"9" * 100_000,
  "kind of escapes": CFG + b"[\x1b[31mred]\n",
  "kind without end": CFG + b"[" + b"a" * 100_000,
  "no kind": CFG + b"[]\n",
  "many layers": CFG + b"[dropout]\n" * 10_000,
  "of zeros": b"\0" * 100,
}  # fmt: skip


@pytest.mark.parametrize("what", CFGS)
def test_cfgs_that_lie(tmp_path, what):
  (tmp_path / "x.cfg").write_bytes(CFGS[what])
  if what == "many layers":  # harmless: they carry no weights
    (tmp_path / "x.weights").write_bytes(WEIGHTS)
    assert len(readers.read(tmp_path / "x.weights")) == 5
  else:
    refused(tmp_path / "x.weights", WEIGHTS)
