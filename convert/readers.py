"""Foreign files to {name: array}, without their frameworks; nothing in a file is ever executed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from convert import (
  caffe_file,
  darknet_file,
  keras_file,
  msgpack_file,
  numpy_file,
  onnx_file,
  safetensors_file,
  sharded,
  state_dict,
  tensorflow_checkpoint,
  tensorflow_graph,
  tfjs_file,
  tflite_file,
  torch_file,
  torch_tar,
  zip_file,
)
from convert.files import UnsafeFile, mapped, reading
from convert.safetensors_file import safetensors, safetensors_metadata

__all__ = ["UnsafeFile", "read", "safetensors", "safetensors_metadata"]

Arrays = dict[str, np.ndarray]


def _named(tree: Callable[[np.ndarray], object]) -> Callable[[np.ndarray, Path], Arrays]:
  """The reader of a format whose files hold one object, out of what finds the object."""
  return lambda data, path: state_dict.arrays(tree(data), len(data))


def _sharded(data: np.ndarray, path: Path) -> Arrays:
  wanted = sharded.shards(data, path)
  return sharded.joined({shard: _shard(shard) for shard in wanted}, wanted)


def _shard(path: Path) -> Arrays:
  with reading(path):
    data = mapped(path)
    if safetensors_file.matches(data):
      return safetensors_file.arrays(data)
    return _named(torch_file.tree)(data, path)


# What a sentence calls the format, whether a file is of it, its reader: functions of the mapped
# bytes and the path. The first row that matches is meant, so formats with a sign of their own come
# first and those that only the file's name tells last.
Row = tuple[str, Callable[[np.ndarray, Path], bool], Callable[[np.ndarray, Path], Arrays]]
FORMATS: tuple[Row, ...] = (
  ("safetensors", safetensors_file.matches, safetensors_file.arrays),
  ("NumPy's .npz or .npy", numpy_file.matches, numpy_file.arrays),
  ("Keras's .h5 or .keras", keras_file.matches, keras_file.arrays),
  (
    "a file of torch.save (zip, legacy or plain pickle)",
    torch_file.matches,
    _named(torch_file.tree),
  ),
  ("a msgpack of Flax", msgpack_file.matches, _named(msgpack_file.tree)),
  ("an index of sharded files", sharded.matches, _sharded),
  ("the tar of torch before 0.2", torch_tar.matches, _named(torch_tar.tree)),
  ("TensorFlow.js's model.json", tfjs_file.matches, tfjs_file.arrays),
  ("TensorFlow Lite", tflite_file.matches, tflite_file.arrays),
  ("ONNX", onnx_file.matches, onnx_file.arrays),
  ("Caffe's .caffemodel", caffe_file.matches, caffe_file.arrays),
  ("a checkpoint of TensorFlow", tensorflow_checkpoint.matches, tensorflow_checkpoint.arrays),
  ("a frozen graph of TensorFlow", tensorflow_graph.matches, tensorflow_graph.arrays),
  ("darknet's .weights", darknet_file.matches, darknet_file.arrays),
)
# What to read of a folder: the one file whose name matches the first of these that any matches.
INDEXES: tuple[str, ...] = (*sharded.INDEXES, *tfjs_file.INDEXES, *tensorflow_checkpoint.INDEXES)
KINDS = (  # how the files begin that people mistake for weights
  (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run git lfs pull"),
  (b"\x08\x01\x12", "a SavedModel's graph; name its folder, whose variables/ hold the weights"),
  (b"<", "a web page; the download was answered by something else"),
  (b"\x1f\x8b", "compressed by gzip; unpack it first"),
  (b"{", "JSON"),
)


def read(path: Path) -> Arrays:
  """Every array of a file whose format is recognised by its content.

  Arrays are read-only and, where the file allows it, memory-mapped.

  Args:
    path: a file, or a folder that holds the index of a checkpoint in several files.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafeFile: of another format, damaged, or not to be trusted; says which.
    ValueError: a library for this format is not installed; says which.
  """
  path = Path(path)
  with reading(path):
    path = _index(path) if path.is_dir() else path
    data = mapped(path)
    inner = zip_file.only_member(data) if zip_file.looks_like_zip(data) else None
    data = data if inner is None else inner
    for _, matches, reader in FORMATS:
      if matches(data, path):
        return reader(data, path)
    raise UnsafeFile(_unknown(data[:64].tobytes()))


def _index(folder: Path) -> Path:
  """The file in a folder that says what is in the others."""
  for pattern in INDEXES:
    if found := sorted(folder.glob(pattern)):
      if len(found) > 1:
        raise UnsafeFile(f"the folder has {len(found)} of {pattern}; name one of them")
      return found[0]
  wanted = f" and has no {' or '.join(INDEXES)}" if INDEXES else ""
  raise UnsafeFile(f"it is a folder{wanted}; name one of the files in it")


def _unknown(start: bytes) -> str:
  kind = next((kind for sign, kind in KINDS if start.startswith(sign)), None)
  found = f"it is {kind}" if kind else f"it begins with {start[:8]!r}"
  return f"wanted {', '.join(name for name, _, _ in FORMATS)}; {found}"
