"""Readers of NumPy's and Flax's own files against the libraries that write them."""

from unittest import mock

from flax import serialization, traverse_util
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile
from tests.test_readers import ARRAYS, same

PLAIN = {name: array for name, array in ARRAYS.items() if array.dtype != ml_dtypes.bfloat16}
PLAIN |= {
  "c/kernel:0": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
  "c/big": np.arange(5, dtype=">i4"),
  "c/complex": np.array([1 + 2j]),
}  # fmt: skip


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_equals_what_numpy_wrote(tmp_path, write):
  path = tmp_path / "x.npz"
  write(path, **PLAIN)
  got = readers.read(path)
  same(got, {n: a.astype(a.dtype.newbyteorder("="), copy=False) for n, a in PLAIN.items()})
  if write is np.savez:
    assert not got["a/kernel"].flags.owndata and not got["a/kernel"].flags.writeable


def test_npy_is_named_by_its_file(tmp_path):
  for name in ("a/kernel", "c/kernel:0", "b/count"):
    np.save(tmp_path / "table.npy", PLAIN[name])
    same(readers.read(tmp_path / "table.npy"), {"table": PLAIN[name]})
  np.lib.format.write_array(open(tmp_path / "table.npy", "wb"), np.ones(3), version=(2, 0))
  same(readers.read(tmp_path / "table.npy"), {"table": np.ones(3)})


@pytest.mark.parametrize("array", [
  np.array([None]), np.array(["text"]), np.array([(1, 2.0)], "i4,f4"), np.array(["2000-01-01"],
  "M8[D]"),
])  # fmt: skip
def test_what_is_no_number_is_refused(tmp_path, array):
  np.savez(tmp_path / "x.npz", good=np.ones(2), bad=array)
  with pytest.raises(UnsafeFile, match="'bad.npy' is of type .*, no number"):
    readers.read(tmp_path / "x.npz")


def tree():
  return {
    "params": {"Conv_0": {"kernel": ARRAYS["a/kernel"], "half": ARRAYS["a/half"]},
               "Dense_0": {"bias": ARRAYS["a/brain"], "none": ARRAYS["b/none"]}},
    "batch_stats": {"BatchNorm_0": {"mean": np.ones(3, np.float32), "count": np.float32(3)}},
  }  # fmt: skip


def flat(variables) -> dict:
  return {n: np.asarray(a) for n, a in traverse_util.flatten_dict(variables, sep=".").items()}


def test_msgpack_equals_what_flax_wrote(tmp_path):
  path = tmp_path / "x.msgpack"
  path.write_bytes(serialization.to_bytes(tree()))
  got = readers.read(path)
  same(got, flat(serialization.msgpack_restore(path.read_bytes())))
  same(got, flat(tree()))
  assert not got["params.Conv_0.kernel"].flags.writeable


def test_msgpack_of_training_gives_its_weights(tmp_path):
  path = tmp_path / "x.msgpack"
  state = tree() | {"step": jnp.int32(7), "opt_state": {"0": {"mu": np.ones(3)}}, "note": "text",
                    "rate": 0.1, "more": [1, -1, -100, 1 << 40, True, None, 2.5, 1j]}  # fmt: skip
  path.write_bytes(serialization.to_bytes(state))
  same(readers.read(path), flat(tree()))
  del state["batch_stats"]
  path.write_bytes(serialization.to_bytes(state))
  same(readers.read(path), flat(tree()["params"]))


def test_msgpack_of_split_arrays(tmp_path):
  path, many = tmp_path / "x.msgpack", {f"a{i}": np.arange(i + 20.0) for i in range(20)}
  big = {"big": np.arange(60.0).reshape(12, 5), **many}
  with mock.patch.object(serialization, "MAX_CHUNK_SIZE", 96):
    path.write_bytes(serialization.to_bytes(big))
  assert b"__msgpack_chunked_array__" in path.read_bytes()
  same(readers.read(path), big)
