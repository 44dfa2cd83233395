"""Readers against the libraries that write the files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convert import readers
from convert.files import UnsafeFile
from zoo import store

ARRAYS = {
  "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "a/half": np.linspace(-1, 1, 7).astype(np.float16),
  "a/brain": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
  "b/count": np.array(7, np.int64),
  "b/mask": np.array([[True, False, True]]),
  "b/none": np.zeros((0, 3), np.float64),
  "b/byte": np.arange(3, dtype=np.uint8),
}


def same(got: dict, want: dict) -> None:
  """Names, shapes, types and bits."""
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
    assert np.ascontiguousarray(got[name]).tobytes() == array.tobytes(), name


def raw_safetensors(header, body: bytes = b"") -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + body


def test_safetensors_equal_to_what_the_library_wrote(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(ARRAYS, path, metadata={"who": "we"})
  got = readers.safetensors(path)
  same(got, ARRAYS)
  same(readers.read(path), ARRAYS)
  assert readers.safetensors_metadata(path) == {"who": "we"}
  assert not any(a.flags.writeable or a.flags.owndata for a in got.values())  # mapped, not read


def test_our_own_files_come_back(tmp_path):
  path = tmp_path / "model.safetensors"
  record = store.Record("resnet18", classes=("a", "b"), provenance={"license": "MIT"})
  store.save(path, {"params": {"fc": {"kernel": ARRAYS["a/kernel"]}}}, record)
  assert store.read_record(path) == record
  same(store.read_variables(path)["params"]["fc"], {"kernel": ARRAYS["a/kernel"]})


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_SAFETENSORS = {
  "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
  "header of 2**63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
  "no JSON": raw_safetensors(b"{nothing}"),
  "no UTF-8": raw_safetensors(b'{"\xff": 1}'),
  "nested": raw_safetensors(b'{"a":' * 100_000),
  "a list": raw_safetensors(b"[]  "),
  "row of text": raw_safetensors({"a": "F32"}),
  "no shape": raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
  "three offsets": raw_safetensors({"a": {**ROW, "data_offsets": [0, 8, 8]}}, bytes(8)),
  "unknown dtype": raw_safetensors({"a": {**ROW, "dtype": "O"}}, bytes(8)),
  "dtype a list": raw_safetensors({"a": {**ROW, "dtype": ["F32"]}}, bytes(8)),
  "negative shape": raw_safetensors({"a": {**ROW, "shape": [-2]}}, bytes(8)),
  "fractional shape": raw_safetensors({"a": {**ROW, "shape": [2.0]}}, bytes(8)),
  "huge shape": raw_safetensors({"a": {**ROW, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
  "empty and huge": raw_safetensors(
    {"a": {**ROW, "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}
  ),
  "long number": raw_safetensors(b'{"a":' + b"9" * 5000 + b"}"),
  "100 axes": raw_safetensors({"a": {**ROW, "shape": [2] + [1] * 100}}, bytes(8)),
  "out of the file": raw_safetensors({"a": {**ROW, "data_offsets": [8, 16]}}, bytes(8)),
  "overlap": raw_safetensors({"a": ROW, "b": ROW}, bytes(8)),
  "hole": raw_safetensors({"a": ROW, "b": {**ROW, "data_offsets": [12, 20]}}, bytes(20)),
  "cut": raw_safetensors({"a": ROW}, bytes(7)),
  "appended": raw_safetensors({"a": ROW}, bytes(9)),
  "twice": raw_safetensors(
    b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    bytes(8),
  ),
}


@pytest.mark.parametrize("what", BAD_SAFETENSORS)
def test_bad_safetensors_are_refused_with_a_sentence(tmp_path, what):
  path = tmp_path / "bad.safetensors"
  path.write_bytes(BAD_SAFETENSORS[what])
  with pytest.raises(UnsafeFile, match="cannot read .*bad.safetensors: .{20}"):
    readers.safetensors(path)


@pytest.mark.parametrize("text", ['"text"', '{"a": 1}', "[1]"])
def test_bad_metadata_is_refused(tmp_path, text):
  path = tmp_path / "bad.safetensors"
  path.write_bytes(raw_safetensors(f'{{"__metadata__":{text}}}'.encode()))
  with pytest.raises(UnsafeFile, match="__metadata__"):
    readers.safetensors_metadata(path)


def write_shards(folder, library=safetensors.numpy.save_file, end="safetensors") -> dict:
  """ARRAYS in two files; returns the index."""
  names = list(ARRAYS)
  files = {f"model-{i}-of-2.{end}": names[i - 1 :: 2] for i in (1, 2)}
  for file, part in files.items():
    library({name: ARRAYS[name] for name in part}, folder / file)
  return {"metadata": {}, "weight_map": {n: file for file, part in files.items() for n in part}}


def test_sharded_by_index_and_by_folder(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps(write_shards(tmp_path)))
  same(readers.read(index), ARRAYS)
  same(readers.read(tmp_path), ARRAYS)
  index.rename(tmp_path / "other.index.json")  # not by its name alone
  same(readers.read(tmp_path / "other.index.json"), ARRAYS)


def other(index: dict, **changes) -> dict:
  return index | {"weight_map": index["weight_map"] | changes}


FIRST, SECOND = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
BAD_INDEXES = {
  "path": (lambda i: other(i, x="../x.safetensors"), "a file beside it"),
  "root": (lambda i: other(i, x="/etc/passwd"), "a file beside it"),
  "other system's path": (lambda i: other(i, x="..\\x"), "a file beside it"),
  "parent": (lambda i: other(i, x=".."), "a file beside it"),
  "a long name": (lambda i: other(i, x="x" * 300), "a file beside it"),
  "no name": (lambda i: other(i, x=""), "a file beside it"),
  "number": (lambda i: other(i, x=1), "a file beside it"),
  "a list": (lambda i: other(i, x=[FIRST]), "a file beside it"),
  "itself": (lambda i: {"weight_map": {"x": "x.safetensors.index.json"}}, "no arrays|cannot read"),
  "missing file": (lambda i: other(i, x="model-3-of-2.safetensors"), "are not beside it"),
  "missing array": (lambda i: other(i, x=FIRST), "x' is not in model-1"),
  "unlisted": (lambda i: {"weight_map": {"a/half": SECOND}}, "not in the index"),
  "in the other file": (lambda i: other(i, **{"a/half": FIRST}), "'a/half' is not in.*not in"),
  "no map": (lambda i: {"weight_map": {}}, "weight_map must"),
  "a list of maps": (lambda i: {"weight_map": []}, "weight_map must"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_INDEXES)
def test_bad_indexes_are_refused_with_a_sentence(tmp_path, what):
  edit, sentence = BAD_INDEXES[what]
  index = tmp_path / "x.safetensors.index.json"
  index.write_text(json.dumps(edit(write_shards(tmp_path))))
  with pytest.raises(UnsafeFile, match=f"cannot read .*x.safetensors.index.json: .*({sentence})"):
    readers.read(index)


@pytest.mark.parametrize("text", ['{"weight_map": {"a": "b", "a": "c"}}', '{"weight_map": {"a"',
                                  '{"weight_map":' * 100_000])  # fmt: skip
def test_bad_json_of_indexes(tmp_path, text):
  (tmp_path / "x.index.json").write_text(text)
  with pytest.raises(UnsafeFile, match="its index (is no JSON|repeats)"):
    readers.read(tmp_path / "x.index.json")


def test_two_indexes_in_a_folder(tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
  with pytest.raises(UnsafeFile, match="2 of .*index.json; name one"):
    readers.read(tmp_path)


def test_missing_empty_and_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="no weight file"):
    readers.read(tmp_path / "absent")
  (tmp_path / "empty").touch()
  with pytest.raises(UnsafeFile, match="empty"):
    readers.read(tmp_path / "empty")
  with pytest.raises(UnsafeFile, match="folder"):
    readers.read(tmp_path)
