"""The reader of Keras's files against Keras, and against h5py for older layouts."""

import io
import os
import zipfile

import numpy as np
import pytest

from convert import readers
from convert.files import UnsafeFile
from convert.keras_file import listed_name, snake_case

h5py = pytest.importorskip("h5py", reason="pip install flaxzoo[keras]")
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
  """Every kind of layer that a convolutional net has, a model inside, random values."""
  os.environ.setdefault("KERAS_BACKEND", "jax")
  keras = pytest.importorskip("keras", reason="Keras writes the files: flaxzoo[references]")
  layers = keras.layers
  x = image = keras.Input((8, 8, 3))
  x = layers.Conv2D(4, 3, name="first")(x)
  x = layers.BatchNormalization(name="first_bn", scale=False)(x)
  x = layers.BatchNormalization(name="second_bn", center=False)(x)
  x = layers.DepthwiseConv2D(3, name="deep")(x)
  x = layers.BatchNormalization()(layers.SeparableConv2D(5, 3)(x))
  x = layers.Conv2DTranspose(3, 2, name="up")(layers.PReLU(name="slope")(x))
  inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="hidden"),
                            layers.Dropout(0.1)], name="inner")  # fmt: skip
  x = inner(layers.GlobalAveragePooling2D()(x))
  made = keras.Model(image, layers.Dense(2, name="last")(x))
  made.compile("adam", "mse")
  for weight in made.weights:
    weight.assign(rng.normal(size=weight.shape))
  return made


@pytest.mark.parametrize("file", ["m.h5", "m.keras", "m.weights.h5", "older.keras"])
def test_equals_what_keras_wrote(tmp_path, model, file):
  path = tmp_path / file
  if file == "older.keras":  # of the first Keras 3: groups do not say the layers' names
    model.save(tmp_path / "new.keras")
    unnamed(tmp_path / "new.keras", path)
  elif file == "m.weights.h5":
    model.save_weights(path)
  else:
    model.save(path)
  got = readers.read(path)
  want = {weight.path: np.asarray(weight) for weight in model.weights}
  if file == "m.weights.h5":  # says of a layer with three arrays not which they are
    want["second_bn/beta"] = want.pop("second_bn/gamma")
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


def unnamed(source, target):
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
    new.writestr("config.json", old.read("config.json"))
    part = io.BytesIO(old.read("model.weights.h5"))
    with h5py.File(part, "a") as file:
      file.visititems(lambda name, node: node.attrs.pop("name", None) and None)
    new.writestr("model.weights.h5", part.getvalue())


ARRAYS = {
  "plain": rng.normal(size=(3, 4)).astype("f4"),
  "big endian": np.arange(6, dtype=">f8"),
  "half": np.arange(6, dtype="f2").reshape(3, 2),
  "yes": np.array([True, False]),
  "none": np.zeros((0, 3)),
  "number": np.int64(7),
}


def same(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    array = np.asarray(array)
    assert got[name].dtype == array.dtype.newbyteorder("=") and got[name].shape == array.shape
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("user_block", [0, 512])
def test_every_way_of_storing(tmp_path, version, user_block):
  """Plain, in pieces, compressed, shuffled, with checksums, among the structure."""
  path, want = tmp_path / "x.h5", dict(ARRAYS)
  with h5py.File(path, "w", libver=version, userblock_size=user_block) as file:
    for name, array in ARRAYS.items():
      file[name] = array
    ways = [{"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True},
            {"shuffle": True}, {"chunks": (5, 7)},
            {"chunks": (64, 64), "maxshape": (None, None)}]  # fmt: skip
    for i, way in enumerate(ways):
      want[f"pieces{i}"] = rng.normal(size=(30, 20)).astype("f4")
      file.create_dataset(f"pieces{i}", data=want[f"pieces{i}"], **{"chunks": (16, 16), **way})
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    made = h5py.h5d.create(file.id, b"inline", h5py.h5t.IEEE_F32LE, space, plan)
    want["inline"] = np.arange(4, dtype="f4")
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, want["inline"])
    file["text"] = "no weights"
  got = readers.read(path)
  same(got, want)
  assert not got["plain"].flags.writeable and not got["plain"].flags.owndata  # mapped


@pytest.mark.parametrize("layer, weight, name", [
  ("convolution2d_1", "convolution2d_1_W", "convolution2d_1/kernel"),
  ("block1_conv1", "block1_conv1_W_1:0", "block1_conv1/kernel"),
  ("block1_conv1", "block1_conv1_b_1:0", "block1_conv1/bias"),
  ("bn1", "bn1_running_std", "bn1/moving_variance"),
  ("bn1", "bn1_gamma", "bn1/gamma"),
  ("conv2d_1", "conv2d_1_1/kernel:0", "conv2d_1/kernel"),
  ("conv1/bn", "conv1/bn/moving_mean:0", "conv1/bn/moving_mean"),
  ("model_1", "conv/kernel:0", "model_1/conv/kernel"),
  ("both", "both/forward_lstm/kernel:0", "both/forward_lstm/kernel"),
])  # fmt: skip
def test_names_of_older_layouts(layer, weight, name):
  assert listed_name(layer, weight) == name


@pytest.mark.parametrize("nested", [True, False])
def test_names_in_the_order_of_the_lists(tmp_path, nested):
  """Weights alone and whole models; lists of names that Keras cut into several attributes."""
  layers = [f"conv_{i}" for i in (2, 10, 1)]
  with h5py.File(tmp_path / "x.h5", "w") as file:
    root = file.create_group("model_weights") if nested else file
    root.attrs["layer_names0"] = [name.encode() for name in layers[:2]]
    root.attrs["layer_names1"] = [layers[2].encode()]
    for i, name in enumerate(layers):
      root.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
      root[f"{name}/{name}/kernel:0"] = np.full(2, i)
    file["optimizer_weights/x"] = np.ones(3)
  got = readers.read(tmp_path / "x.h5")
  assert {name: a[0] for name, a in got.items()} == {f"{n}/kernel": i for i, n in enumerate(layers)}
  assert list(got) == [f"{n}/kernel" for n in layers]


def test_a_name_without_its_array(tmp_path):
  with h5py.File(tmp_path / "x.h5", "w") as file:
    file.attrs["layer_names"] = [b"a"]
    file.create_group("a").attrs["weight_names"] = [b"a/kernel:0"]
  with pytest.raises(UnsafeFile, match="disagree: 'a/kernel' is missing"):
    readers.read(tmp_path / "x.h5")


def test_classes_as_keras_counts_them():
  for name, want in (("Conv2D", "conv2d"), ("PReLU", "p_re_lu"), ("LSTMCell", "lstm_cell"),
                     ("Conv2DTranspose", "conv2d_transpose"), ("Dense", "dense")):  # fmt: skip
    assert snake_case(name) == want
