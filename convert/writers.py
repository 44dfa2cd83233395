"""{name: array} to foreign files, one array in memory at a time; a file is whole or absent."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
import struct
import tempfile
import zipfile

import numpy as np

from convert.files import forget
from convert.safetensors_file import DTYPES, METADATA
from convert.torch_file import STORAGES

ALIGNMENT = 64  # bytes, of the arrays in a file of torch.save
ATTRIBUTE_LIMIT = 64_000  # bytes, of one attribute in HDF5
STAMP = (1980, 1, 1, 0, 0, 0)  # the same arrays make the same file


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
  """A file beside `path` to write to, which takes its name when the block ends well."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
  os.close(handle)
  try:
    yield Path(part)
    os.chmod(part, 0o644)
    os.replace(part, path)
  except OSError as error:
    raise type(error)(f"cannot write {path}: {error}") from error
  finally:
    Path(part).unlink(missing_ok=True)


def safetensors(
  path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes the format of the safetensors library, sorted as it sorts them."""
  kinds = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}
  order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  header, at = {METADATA: dict(metadata)} if metadata else {}, 0
  for name in order:
    end = at + arrays[name].nbytes
    kind = kinds[arrays[name].dtype]
    header[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": [at, end]}
    at = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with writing(path) as part, open(part, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
      file.write(_bytes(arrays[name]))
      forget(arrays[name])


def torch_zip(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict as `torch.save` does; loads with `weights_only=True`."""
  with writing(path) as part, zipfile.ZipFile(part, "w") as archive:
    archive.writestr(zipfile.ZipInfo("archive/data.pkl", STAMP), _pickled(arrays))
    archive.writestr(zipfile.ZipInfo("archive/byteorder", STAMP), b"little")
    for i, array in enumerate(arrays.values()):
      info = zipfile.ZipInfo(f"archive/data/{i}", STAMP)
      info.file_size = array.nbytes
      # An unknown extra field, as torch does, so that the array can be mapped where it stands.
      room = -(archive.fp.tell() + 30 + len(info.filename) + 4) % ALIGNMENT
      info.extra = struct.pack("<2sH", b"FB", room) + b"Z" * room
      with archive.open(info, "w") as file:
        file.write(_bytes(array))
      forget(array)
    archive.writestr(zipfile.ZipInfo("archive/version", STAMP), b"3\n")


def keras_h5(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the weights-only HDF5 file of Keras 1 and 2, which Keras 3 reads too.

  Names are "layer/weight", or have scopes before the layer, as Keras gives them.
  """
  import h5py

  layers: dict[str, dict[str, np.ndarray]] = {}
  for name, array in arrays.items():
    layers.setdefault(name.rpartition("/")[0], {})[f"{name}:0"] = array
  with writing(path) as part, h5py.File(part, "w") as file:
    _attribute(file, "layer_names", [layer.rpartition("/")[2] for layer in layers])
    file.attrs["backend"], file.attrs["keras_version"] = b"jax", b"2.0.0"
    for layer, weights in layers.items():
      group = file.create_group(layer.rpartition("/")[2])
      _attribute(group, "weight_names", list(weights))
      for name, array in weights.items():
        group.create_dataset(name, data=array)


def _attribute(group, name: str, texts: list[str]) -> None:
  """As Keras does, cut into name0, name1 ... where HDF5 takes no longer one."""
  raw = np.array([text.encode() for text in texts])
  parts = np.array_split(raw, -(-raw.nbytes // ATTRIBUTE_LIMIT))
  for i, part in enumerate(parts):
    group.attrs[name if len(parts) == 1 else f"{name}{i}"] = part


def _bytes(array: np.ndarray) -> memoryview:
  little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
  return little.reshape(-1).view(np.uint8).data


# The few opcodes of pickle's protocol 2 that a state dict takes.
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # GLOBAL, the empty tuple, REDUCE
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
  """An OrderedDict of tensors; the i-th lies whole in the member data/i."""
  storages = {np.dtype(dtype): name for name, dtype in STORAGES.items() if name[0] != "U"}
  out = [b"\x80\2", ORDERED_DICT, b"("]
  for i, (name, array) in enumerate(arrays.items()):
    strides, step = [], 1
    for length in reversed(array.shape):
      strides.append(step)
      step *= max(length, 1)
    kind = f"ctorch\n{storages[array.dtype]}\n".encode()
    place = _tuple([_text("storage"), kind, _text(str(i)), _text("cpu"), _whole(array.size)])
    shape = _tuple(map(_whole, array.shape))
    strides = _tuple(map(_whole, reversed(strides)))
    window = [place + b"Q", _whole(0), shape, strides, b"\x89", ORDERED_DICT]
    out += [_text(name), REBUILD, _tuple(window), b"R"]
  return b"".join([*out, b"u."])


def _text(text: str) -> bytes:
  raw = text.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def _whole(number: int) -> bytes:
  if number < 1 << 31:
    return b"J" + struct.pack("<i", number)
  return b"\x8a\x08" + struct.pack("<q", number)


def _tuple(items) -> bytes:
  return b"(" + b"".join(items) + b"t"
