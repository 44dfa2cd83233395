"""TensorFlow.js: manifests and shards as its converter writes them."""

import json

import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile

RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(3, 4)).astype(np.float32)
BYTES = RNG.integers(0, 256, (2, 5)).astype(np.uint8)
SHORTS = RNG.integers(0, 65536, (7,)).astype(np.uint16)
WEIGHTS = [  # what stands in the manifest, what is stored
  ({"name": "a/kernel", "shape": [3, 4], "dtype": "float32"}, FLOATS),
  ({"name": "a/bias", "shape": [2, 5], "dtype": "float32",
    "quantization": {"dtype": "uint8", "scale": 0.01, "min": -1.5, "original_dtype": "float32"}},
   BYTES),
  ({"name": "none", "shape": [0, 3], "dtype": "float32"}, np.zeros((0, 3), np.float32)),
  ({"name": "b", "shape": [7], "dtype": "float32",
    "quantization": {"dtype": "uint16", "scale": 0.5, "min": 0}}, SHORTS),
  ({"name": "c", "shape": [3, 4], "dtype": "float32", "quantization": {"dtype": "float16"}},
   FLOATS.astype(np.float16)),
  ({"name": "d", "shape": [], "dtype": "int32"}, np.array(7, np.int32)),
]  # fmt: skip
WANT = {
  "a/kernel": FLOATS, "a/bias": BYTES * 0.01 - 1.5, "none": np.zeros((0, 3)), "b": SHORTS * 0.5,
  "c": FLOATS.astype(np.float16), "d": np.array(7),
}  # fmt: skip


def write(folder, rows=None, borders=(), paths=None, **fields):
  """model.json, and its bytes cut at `borders` into shards."""
  body = b"".join(stored.tobytes() for _, stored in WEIGHTS)
  cuts = [0, *borders, len(body)]
  names = [f"group1-shard{i}of{len(cuts) - 1}.bin" for i in range(1, len(cuts))]
  for name, begin, end in zip(names, cuts, cuts[1:]):
    (folder / name).write_bytes(body[begin:end])
  rows = [row for row, _ in WEIGHTS] if rows is None else rows
  manifest = [{"paths": names if paths is None else paths, "weights": rows}]
  model = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest} | fields
  (folder / "model.json").write_text(json.dumps(model))
  return folder / "model.json"


@pytest.mark.parametrize("borders", [(), (4,), (48, 60), (1, 2, 3, 50, 77), (60, 60 + 14)])
def test_weights_of_every_kind_however_they_are_cut(tmp_path, borders):
  path = write(tmp_path, borders=borders)
  got = readers.read(path)
  assert list(got) == list(WANT)
  for name, want in WANT.items():
    assert got[name].shape == want.shape
    np.testing.assert_allclose(got[name], want, rtol=1e-6, atol=1e-6)
  assert got["c"].dtype == np.float16 and got["a/bias"].dtype == np.float32
  assert readers.read(tmp_path).keys() == got.keys()  # the folder will do


def changed(index: int, **fields):
  return [{**row, **fields} if i == index else row for i, (row, _) in enumerate(WEIGHTS)]


BAD = {
  "no list": ({"weightsManifest": {}}, "must be a list"),
  "group of text": ({"weightsManifest": ["a"]}, "a group"),
  "no paths": ({"weightsManifest": [{"weights": []}]}, "the paths"),
  "no weights": ({"weightsManifest": [{"paths": []}]}, "the weights"),
  "nothing": ({"weightsManifest": []}, "no arrays"),
  "outside": ({"paths": ["../x.bin"]}, "outside its folder"),
  "absolute": ({"paths": ["/etc/passwd"]}, "outside its folder"),
  "no text": ({"paths": [7]}, "outside its folder"),
  "missing": ({"paths": ["x.bin"]}, "not beside model.json"),
  "row of text": ({"rows": ["a"]}, "needs name, shape and dtype"),
  "no name": ({"rows": changed(0, name=None)}, "needs name"),
  "no shape": ({"rows": changed(0, shape=4)}, "needs name"),
  "type": ({"rows": changed(0, dtype="string")}, "of type 'string'"),
  "negative": ({"rows": changed(0, shape=[-3, -4])}, "impossible shape"),
  "huge": ({"rows": changed(0, shape=[1 << 40, 1 << 40])}, "impossible shape"),
  "large": ({"rows": changed(0, shape=[1 << 20])}, "ends at byte"),
  "small": ({"rows": changed(0, shape=[3, 3])}, "their shards have"),
  "twice": ({"rows": changed(0, name="b")}, "two arrays"),
  "quantised": ({"rows": changed(1, quantization=[1])}, "needs name"),
  "scale": ({"rows": changed(1, quantization={"dtype": "uint8", "scale": "1", "min": 0})}, "scale"),
  "digits": (
    {"rows": changed(1, quantization={"dtype": "uint8", "scale": 10**400, "min": 0})}, "scale"),
  "infinite": (
    {"rows": changed(1, quantization={"dtype": "uint8", "scale": 1e999, "min": 0})}, "scale"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(tmp_path, what):
  fields, sentence = BAD[what]
  with pytest.raises(UnsafeFile, match=sentence):
    readers.read(write(tmp_path, **fields))


def test_shards_that_were_cut_off(tmp_path):
  path = write(tmp_path, borders=(60,))
  shard = tmp_path / "group1-shard2of2.bin"
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(UnsafeFile, match="download them again"):
    readers.read(path)
