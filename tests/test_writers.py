"""Foreign files that we write, read by those whose formats they are."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convert import engine, readers, writers

RNG = np.random.default_rng(0)
ARRAYS = {
  "stem.weight": RNG.normal(size=(4, 3, 5, 2)).astype(np.float32),
  "stem.scale": RNG.normal(size=7).astype(np.float16),
  "head.weight": RNG.normal(size=(6, 9)).astype(np.float32).T,  # not contiguous
  "head.half": RNG.normal(size=3).astype(ml_dtypes.bfloat16),
  "head.count": np.array(5, np.int64),
  "empty": np.zeros((0, 3), np.float32),
}


def same(got, want):
  assert list(got) == list(want)
  for name in want:
    assert got[name].dtype == want[name].dtype
    np.testing.assert_array_equal(got[name], want[name])


def test_safetensors_are_as_the_library_writes_them(tmp_path):
  path = tmp_path / "ours.safetensors"
  writers.safetensors(path, ARRAYS, {"who": "we"})
  theirs = safetensors.numpy.save(
    {name: np.asarray(array, order="C") for name, array in ARRAYS.items()}, {"who": "we"}
  )
  ours = path.read_bytes()
  length = int.from_bytes(ours[:8], "little")
  assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])
  assert ours[8 + length :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]


def test_torch_loads_what_is_written_without_it(tmp_path):
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  path = tmp_path / "ours.pth"
  writers.torch_zip(path, ARRAYS)
  for mapped in (False, True):
    state = torch.load(path, weights_only=True, mmap=mapped)
    assert list(state) == list(ARRAYS)
    for name, array in ARRAYS.items():
      tensor = state[name]
      assert tuple(tensor.shape) == array.shape and tensor.is_contiguous()
      np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))
      assert str(tensor.dtype) == f"torch.{array.dtype}"
      assert array.size == 0 or tensor.data_ptr() % 64 == 0
  same(readers.read(path), ARRAYS)


def test_a_whole_torch_module_takes_its_state_back(tmp_path):
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  state = {k: v.numpy() + 1 for k, v in net.state_dict().items() if "tracked" not in k}
  writers.torch_zip(tmp_path / "net.pt", state)
  net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))  # strict
  np.testing.assert_array_equal(net[1].running_var.numpy(), state["1.running_var"])


def test_the_same_arrays_make_the_same_file(tmp_path):
  for name in ("a.pth", "b.pth"):
    writers.torch_zip(tmp_path / name, ARRAYS)
  assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_keras_layers_come_in_order_with_all_their_weights(tmp_path):
  h5py = pytest.importorskip("h5py", reason="pip install flaxzoo[keras]")
  many = {f"{'scope' * 9}_{i}/{leaf}": np.full(2, i, np.float32)
          for i in range(2000) for leaf in ("kernel", "bias")}  # fmt: skip
  writers.keras_h5(tmp_path / "w.h5", {f"model/{name}": a for name, a in many.items()})
  with h5py.File(tmp_path / "w.h5") as file:
    parts = [file.attrs[f"layer_names{i}"] for i in range(2)]  # too long for one attribute
    layers = [name.decode() for part in parts for name in part]
    assert layers == [f"{'scope' * 9}_{i}" for i in range(2000)]
    group = file[layers[1234]]
    names = [name.decode() for name in group.attrs["weight_names"]]
    assert names == [f"model/{layers[1234]}/{leaf}:0" for leaf in ("kernel", "bias")]
    assert list(group[names[0]]) == [1234, 1234]


@pytest.mark.parametrize("write", [writers.safetensors, writers.torch_zip, writers.keras_h5])
def test_a_file_is_whole_or_absent(write, tmp_path):
  pytest.importorskip("h5py", reason="pip install flaxzoo[keras]")
  path = tmp_path / "there"
  path.write_text("before")
  with pytest.raises((KeyError, TypeError)):
    write(path, {"a/fine": np.zeros(3, np.float32), "b/odd": np.array([object()])})
  assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
  path.unlink()
  (path / "below").mkdir(parents=True)
  with pytest.raises(OSError, match="cannot write .*there"):
    write(path, {"a/fine": np.zeros(3, np.float32)})


def chain(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
  ("operation", "shape"),
  [
    (engine.chw_to_hwc(3, 4, 5), (7, 60)),
    (engine.chw_to_hwc(3, 4, 5), (7, 3, 4, 5)),
    (engine.squeeze, (7, 3, 1, 1)),
    (engine.squeeze_keras, (1, 1, 7, 3)),
    (engine.squeeze_keras, (7, 3)),
    (engine.flatten_conv, (7, 3, 4, 5)),
    (engine.flatten_conv, (7, 3)),
    (engine.depthwise, (3, 3, 4, 2)),
  ],
)
def test_every_operation_is_undone(operation, shape):
  array = chain(*shape)
  np.testing.assert_array_equal(operation.back(operation(array), shape), array)


@pytest.mark.parametrize(
  ("layout", "leaf", "shape"),
  [
    (engine.torch_layout, "weight", (5, 4, 3, 2)),
    (engine.torch_layout, "weight", (5, 4)),
    (engine.torch_layout, "weight", (5,)),
    (engine.torch_layout, "bias", (5, 4)),
    (engine.keras_layout, "kernel", (3, 2, 4, 5)),
    (engine.keras_layout, "depthwise_kernel", (3, 2, 4, 2)),
  ],
)
def test_every_layout_is_undone(layout, leaf, shape):
  array = chain(*shape)
  np.testing.assert_array_equal(layout.back(layout(array, leaf), leaf, shape), array)


def test_a_dense_layer_of_other_classes_goes_back():
  """The original's shape says which axes there were, not how many classes ours has."""
  for operation, shape, mine in (
    (engine.chw_to_hwc(3, 4, 5), (7, 60), (60, 2)),
    (engine.squeeze, (7, 3, 1, 1), (3, 2)),
    (engine.squeeze_keras, (1, 1, 3, 7), (3, 2)),
    (engine.flatten_conv, (7, 3, 4, 5), (60, 2)),
  ):
    ours = chain(*mine)
    np.testing.assert_array_equal(operation(operation.back(ours, shape)), ours)
