"""Files that attack the readers of TorchScript, torch's tar, NumPy, Flax and Keras.

As `tests/test_hostile_files.py` does: arrays or a sentence, nothing run, nothing grown.
"""

import io
import pickle
import random
import re
import struct
import time
import tracemalloc
import zipfile
import zlib

from flax import serialization
import msgpack
import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile
from tests import pickles as p
from tests.attacks import commands, doubled
from tests.test_hostile_files import refused

SCRIPT = "__torch__.net"


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
  """Everything that reading imports is imported before events are counted."""
  path = tmp_path_factory.mktemp("warm") / "x"
  for data in base_files().values():
    path.write_bytes(data)
    assert len(readers.read(path)) == 2


def scripted(body: bytes, edit=None) -> bytes:
  """A TorchScript archive with `body` as its module."""

  def add(archive):
    archive.writestr("x/constants.pkl", p.whole(b")"))
    archive.writestr("x/code/__torch__/net.py", "def f():\n  pass\n" * 99, zipfile.ZIP_DEFLATED)
    if edit:
      edit(archive)

  return p.in_zip(body, edit=add)


def module(**fields: bytes) -> bytes:
  return p.name(SCRIPT, "Net") + b")\x81" + p.table(**fields) + b"b"


def tar(names=None, tensors=None, storages=None, views=(), edit=None) -> bytes:
  numbers = np.arange(4, dtype="<f4").tobytes()
  return p.in_tar(
    names or {"a": 1, "b": 2},
    {1: (7, (4,), (1,), 0), 2: (8, (2,), (1,), 0)} if tensors is None else tensors,
    storages or {7: ("FloatStorage", numbers, 4)}, views or [(8, 7, 1, 3)], edit,
  )  # fmt: skip


def npz(write=np.savez, **arrays) -> bytes:
  out = io.BytesIO()
  write(out, **arrays or {"a": np.arange(4.0), "b": np.eye(2)})
  return out.getvalue()


def base_files() -> dict[str, bytes]:
  return {
    "TorchScript": scripted(module(a=p.tensor(), inner=module(b=p.tensor(shape=(2,))))),
    "tar": tar(),
    "npz": npz(),
    "npz compressed": npz(np.savez_compressed),
    "msgpack": serialization.to_bytes({"a": np.arange(4.0), "b": {"c": np.eye(2)}, "d": [1, "x"]}),
  }


# The tar ends with blocks of zeros that nobody needs.
NEEDED = {"tar": lambda data: len(data.rstrip(b"\0"))}


@pytest.mark.parametrize("kind", base_files())
def test_cut_anywhere(tmp_path, kind):
  data, path = base_files()[kind], tmp_path / "x"
  end = NEEDED.get(kind, len)(data)
  for size in range(1, end - 600 * (kind == "tar"), 11 if kind == "tar" else 3):
    path.write_bytes(data[:size])
    with pytest.raises(UnsafeFile, match="cannot read"):
      readers.read(path)


@pytest.mark.parametrize("kind", base_files())
def test_flipped_bits_and_shuffled_bytes(tmp_path, kind):
  rng, good, path = random.Random(0), base_files()[kind], tmp_path / "x"
  refusals, total = 0, 300
  tracemalloc.start()
  try:
    for trial in range(total):
      data = bytearray(good)
      for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        data[at] = rng.randrange(256) if trial % 3 == 0 else data[at] ^ 1 << rng.randrange(8)
      path.write_bytes(data)
      try:
        assert sum(array.nbytes for array in readers.read(path).values()) < 1 << 27
      except UnsafeFile:
        refusals += 1
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 8 << 20 and refusals > total // 20


WAYS = commands("")


@pytest.mark.parametrize("way", WAYS)
def test_commands_do_not_run(tmp_path, way):
  marker = tmp_path / "ran"
  body = commands(f"touch {marker}")[way]
  refused(tmp_path / "x.pt", scripted(module(a=p.tensor(), b=body)))
  for part in ("sys_info", "pickle", "storages", "tensors"):
    bad = tar(edit=lambda parts, part=part: parts.update({part: p.whole(body)}))
    refused(tmp_path / "x.pth", bad)
  time.sleep(0.02)
  assert not marker.exists()


def packed(value: bytes) -> bytes:
  return b"\x81\xa1a" + value


def flax_array(shape, dtype="float32", data=bytes(16)) -> bytes:
  inner = msgpack.packb((shape, dtype, data), use_bin_type=True)
  return b"\xc9" + struct.pack(">Ib", len(inner), 1) + inner


def split(**changes) -> bytes:
  whole = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": 1}} | changes
  return msgpack.packb({"a": whole})


def npy(header: str, data: bytes = b"", version=(1, 0)) -> bytes:
  raw = header.encode() + b"\n"
  size = struct.pack("<H" if version == (1, 0) else "<I", len(raw))
  return b"\x93NUMPY" + bytes(version) + size + raw + data


def npy_of(shape, descr="'<f4'", order="False", data=bytes(16)) -> bytes:
  return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}", data)


def zipped(name: str, data: bytes, method=zipfile.ZIP_STORED) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", method) as archive:
    archive.writestr(name, data)
  return out.getvalue()


CYCLE = p.name(SCRIPT, "Net") + b")\x81q\x00" + p.table(a=b"h\x00") + b"b"
ATTACKS = {
  "module in itself": scripted(CYCLE),
  "module of shared modules": scripted(module(a=doubled(60))),
  "deep modules": scripted(b"".join(p.name(SCRIPT, "Net") + b")\x81}" + p.text("a")
                                    for _ in range(9000)) + p.tensor() + b"sb" * 9000),
  "state that is a number": scripted(p.name(SCRIPT, "Net") + b")\x81K\x01b"),
  "module without TorchScript": p.in_zip(module(a=p.tensor())),
  "two programs": scripted(module(a=p.tensor()), lambda a: a.writestr("y/data.pkl", b"x")),
  "tensor beyond in a module": scripted(module(a=p.tensor(shape=(5,)))),
  "tar: shape beyond": tar(tensors={1: (7, (5,), (1,), 0), 2: (8, (2,), (1,), 0)}),
  "tar: offset beyond": tar(tensors={1: (7, (1,), (1,), 4), 2: (8, (2,), (1,), 0)}),
  "tar: negative offset": tar(tensors={1: (7, (1,), (1,), -1), 2: (8, (2,), (1,), 0)}),
  "tar: negative shape": tar(tensors={1: (7, (-1,), (1,), 0), 2: (8, (2,), (1,), 0)}),
  "tar: strides that overflow": tar(tensors={1: (7, (3, 3), (1 << 62, 1 << 62), 0),
                                             2: (8, (2,), (1,), 0)}),
  "tar: spread": tar(tensors={1: (7, (1 << 20, 1 << 20), (0, 0), 0), 2: (8, (2,), (1,), 0)}),
  "tar: 100 axes": tar(tensors={1: (7, (1,) * 100, (1,) * 100, 0), 2: (8, (2,), (1,), 0)}),
  "tar: no such storage": tar(tensors={1: (9, (4,), (1,), 0), 2: (8, (2,), (1,), 0)}),
  "tar: a tensor as a storage": tar(tensors={1: (7, (4,), (1,), 0), 2: (1, (2,), (1,), 0)}),
  "tar: no such tensor": tar(names={"a": 3}),
  "tar: view beyond": tar(views=[(8, 7, 2, 3)]),
  "tar: view negative": tar(views=[(8, 7, -1, 3)]),
  "tar: view of itself": tar(views=[(8, 8, 0, 1)]),
  "tar: view twice": tar(views=[(8, 7, 0, 2), (8, 7, 0, 2)]),
  "tar: storage of no class": tar(storages={7: ("Storage", bytes(16), 4)}),
  "tar: 2**40 storages": tar(edit=lambda x: x.update(storages=pickle.dumps(1 << 40, 2))),
  "tar: 2**40 tensors": tar(edit=lambda x: x.update(tensors=pickle.dumps(1 << 40, 2))),
  "tar: storage of 2**40": tar(edit=lambda x: x.update(storages=x["storages"].replace(
    struct.pack("<q", 4) + bytes(4), struct.pack("<q", 1 << 40) + bytes(4)))),
  "tar: a part is missing": tar(edit=lambda x: x.pop("tensors")),
  "tar: another version": tar(edit=lambda x: x.update(sys_info=pickle.dumps(
    {"protocol_version": 1001, "little_endian": True}, 2))),
  "tar: big-endian": tar(edit=lambda x: x.update(sys_info=pickle.dumps(
    {"protocol_version": 1000, "little_endian": False}, 2))),
  "npy: objects": npy_of((2,), "'|O'", data=pickle.dumps([1, 2])),
  "npy: a structure": npy_of((2,), "[('a', '<f4'), ('b', '<f4')]"),
  "npy: texts": npy_of((2,), "'<U2'"),
  "npy: 2**60": npy_of((1 << 60,)),
  "npy: 2**60 and none": npy_of((1 << 40, 1 << 40, 0), data=b""),
  "npy: negative": npy_of((-4,)),
  "npy: fraction": npy_of((4.0,)),
  "npy: too short": npy_of((5,)),
  "npy: too long": npy_of((3,)),
  "npy: 100 axes": npy_of((1,) * 100, data=bytes(4)),
  "npy: code": npy("{'descr': __import__('os').system('id'), 'shape': (1,)}", bytes(4)),
  "npy: nested": npy("(" * 5000),
  "npy: long": npy("{" + " " * 60_000),
  "npy: longer": npy("{" + " " * (1 << 20), version=(2, 0)),
  "npy: another version": npy_of((4,)).replace(b"\x01\x00", b"\x09\x00", 1),
  "npy: key missing": npy("{'descr': '<f4'}"),
  "npz: bomb": zipped("a.npy", npy_of((20 << 20,), data=bytes(80 << 20)), zipfile.ZIP_DEFLATED),
  "npz: another method": zipped("a.npy", npy_of((4,)), zipfile.ZIP_LZMA),
  "npz: path": zipped("../a.npy", npy_of((4,))),
  "npz: no array": zipped("a.npy", b"text"),
  "msgpack: deep": packed(b"\x91" * 100_000),
  "msgpack: deep maps": b"\x81\xa1a" * 50_000,
  "msgpack: 2**32 entries": packed(b"\xdf\xff\xff\xff\xff"),
  "msgpack: 2**32 items": packed(b"\xdd\xff\xff\xff\xff"),
  "msgpack: 2**32 bytes": packed(b"\xc6\xff\xff\xff\xff"),
  "msgpack: extension of 2**32": packed(b"\xc9\xff\xff\xff\xff\x01"),
  "msgpack: many nils": packed(b"\xdd" + struct.pack(">I", 310_000) + b"\xc0" * 310_000),
  "msgpack: byte without a meaning": packed(b"\xc1"),
  "msgpack: key of a list": b"\x82\xa1a\x01\x90\x01",
  "msgpack: key twice": b"\x82\xa1a\x01\xa1a\x02",
  "msgpack: no UTF-8": packed(b"\xa1\xff"),
  "msgpack: appended": packed(flax_array((4,))) + b"x",
  "msgpack: nothing in it": packed(b"\x01"),
  "msgpack: shape too large": packed(flax_array((5,))),
  "msgpack: shape of 2**60": packed(flax_array((1 << 60,))),
  "msgpack: negative shape": packed(flax_array((-4,))),
  "msgpack: shape of texts": packed(flax_array(("4",))),
  "msgpack: empty of 2**80": packed(flax_array((0, 1 << 40, 1 << 40), data=b"")),
  "msgpack: objects": packed(flax_array((4,), "object", bytes(32))),
  "msgpack: type a number": packed(flax_array((4,), 7)),
  "msgpack: no row": packed(b"\xc7\x02\x01\x01\x02"),
  "msgpack: split into numbers": split(),
  "msgpack: split without pieces": split(chunks={}),
  "msgpack: split of 2**60": split(shape={"0": 1 << 60}),
  "msgpack: split, a hole": split(chunks={"1": 1}),
  "msgpack: name of a newline": b"\x81\xa3a\nb" + flax_array((4,)),
}  # fmt: skip


@pytest.mark.parametrize("what", ATTACKS)
def test_attacks(tmp_path, what):
  path = tmp_path / "x.bin"
  path.write_bytes(ATTACKS[what])
  size = len(ATTACKS[what])
  tracemalloc.start()
  try:
    refused(path, ATTACKS[what])
    assert tracemalloc.get_traced_memory()[1] < (50 << 20) + 20 * size
  finally:
    tracemalloc.stop()


# Keras

h5py = pytest.importorskip("h5py", reason="pip install flaxzoo[keras]")


def h5(make) -> bytes:
  out = io.BytesIO()
  with h5py.File(out, "w") as file:
    file["model_weights/a/kernel"] = np.ones((3, 4), np.float32)
    file["model_weights"].attrs["layer_names"] = [b"a"]
    file["model_weights/a"].attrs["weight_names"] = [b"kernel"]
    make(file)
  return out.getvalue()


def in_pieces(file, shape=(16, 16), chunks=(16, 16), raw=None, mask=0, **more):
  made = file.create_dataset("big", shape, "f4", chunks=chunks, compression="gzip", **more)
  if raw is not None:
    made.id.write_direct_chunk((0,) * len(shape), raw, mask)


def external(file):
  file.create_dataset("outside", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual(file):
  layout = h5py.VirtualLayout((4,), "f4")
  layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
  file.create_virtual_dataset("outside", layout)


def loop(file):
  file["model_weights/a/again"] = file["model_weights"]


BOMB = zlib.compress(bytes(300 << 20), 9)
H5_ATTACKS = {
  "external link": (lambda f: f.update(x=h5py.ExternalLink("/etc/passwd", "/")), "a link"),
  "soft link": (lambda f: f.update(x=h5py.SoftLink("/model_weights")), "a link"),
  "soft link to itself": (lambda f: f.update(x=h5py.SoftLink("/x")), "a link"),
  "group in itself": (loop, "inside itself"),
  "external storage": (external, "another file"),
  "virtual": (virtual, "another file"),
  "2**50 bytes, never written": (lambda f: f.create_dataset("x", (1 << 48,), "f4"), "claim|shape"),
  "never written": (lambda f: f.create_dataset("x", (9,), "f4"), "never written"),
  "pieces missing": (in_pieces, "0 of 1 pieces"),
  "piece that is a bomb": (lambda f: in_pieces(f, raw=BOMB), "unpacks to more"),
  "piece that is no stream": (lambda f: in_pieces(f, raw=b"x" * 99), "cannot be unpacked"),
  "piece too short": (lambda f: in_pieces(f, raw=zlib.compress(bytes(9))), "has 9 bytes"),
  "huge pieces": (lambda f: in_pieces(f, (4, 4), (1 << 13, 1 << 13), zlib.compress(bytes(9)),
                                      maxshape=(None, None)), "far larger than itself"),
  "another filter": (lambda f: f.create_dataset("x", data=np.ones((9, 9)), compression="lzf"),
                     "filter 32000"),
  "a name that climbs": (lambda f: f["model_weights/a"].attrs.update(weight_names=[b"../b"]),
                         "missing"),
  "names that are numbers": (lambda f: f["model_weights"].attrs.update(layer_names=[1, 2]),
                             "no names"),
  "no numbers": (lambda f: f.pop("model_weights") and f.update(x="text"), "without arrays"),
}  # fmt: skip


def refused_here(path, data: bytes) -> str:
  """As `refused`, for a reader that starts a process of its own."""
  path.write_bytes(data)
  begin = time.monotonic()
  tracemalloc.start()
  try:
    with pytest.raises(UnsafeFile) as error:
      readers.read(path)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
  finally:
    tracemalloc.stop()
  assert time.monotonic() - begin < 60
  assert str(error.value).startswith(f"cannot read {path}: ") and len(str(error.value)) < 600
  return str(error.value)


@pytest.mark.parametrize("what", H5_ATTACKS)
def test_hdf5_that_reaches_out_or_grows(tmp_path, what):
  make, sentence = H5_ATTACKS[what]
  assert re.search(sentence, refused_here(tmp_path / "x.h5", h5(make)))


def test_keras_archives(tmp_path):
  good = h5(lambda f: None)
  path = tmp_path / "x.keras"
  path.write_bytes(zipped("model.weights.h5", good))
  assert list(readers.read(path)) == ["a/kernel"]
  refused_here(path, zipped("model.weights.h5", good + bytes(90 << 20), zipfile.ZIP_DEFLATED))
  for config in ("[" * 100_000, "[]", '{"config": {"layers": [1]}}'):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
      archive.writestr("model.weights.h5", h5(lambda f: f["model_weights"].attrs.clear()))
      archive.writestr("config.json", config)
    refused_here(path, out.getvalue())


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_hdf5_cut_or_flipped(tmp_path, version):
  """Where the library crashes or does not end, a sentence says so."""
  path, rng = tmp_path / "x.h5", random.Random(0)
  with h5py.File(path, "w", libver=version) as file:
    file["a/kernel"] = np.ones((3, 4), np.float32)
    file.create_dataset("b", data=np.ones((9, 9)), chunks=(4, 4), compression="gzip")
  good = path.read_bytes()
  for size in range(9, len(good), len(good) // 5):
    refused_here(path, good[:size])
  for _ in range(8):
    data = bytearray(good)
    for _ in range(8):
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    try:
      assert sum(array.nbytes for array in readers.read(path).values()) < 1 << 27
    except UnsafeFile:
      pass
