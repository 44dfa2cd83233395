"""Published ImageNet weights, from their own files, on real photographs.

Both come out of Python packages, so that this runs wherever pip does; labels are in the names of
the photographs. The originals read the same files by torch and prepare the pixels themselves.
"""

from collections.abc import Callable
import dataclasses
import importlib.util
import pickle
import re
import zipfile

import jax
import numpy as np
from PIL import Image
import pytest

from tests import parity
import zoo
from zoo import catalog
from zoo.fetch import fetch

PHOTOGRAPHS = "pypi:foolbox==3.3.4"
SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"


def reachable(where: str, sha256: str):
  """The file, or a skipped test where there is neither a network nor a cached one."""
  try:
    return fetch(where, sha256)
  except FileNotFoundError as error:
    pytest.skip(str(error))


@pytest.fixture(scope="module")
def photographs():
  """(20 pictures, their classes)."""
  pictures, labels = [], []
  with zipfile.ZipFile(reachable(PHOTOGRAPHS, SHA256)) as wheel:
    for name in sorted(wheel.namelist()):
      if found := re.fullmatch(r"foolbox/data/imagenet_\d+_(\d+)\.jpg", name):
        with wheel.open(name) as file:
          pictures.append(Image.open(file).convert("RGB"))
        labels.append(int(found[1]))
  assert len(labels) == 20
  return pictures, np.array(labels)


def torchvision_transforms(name: str):
  weights = parity.import_torchvision().models.get_model_weights(name)
  return weights.IMAGENET1K_V1.transforms()


def lite_transforms(size: int):
  """Of EfficientNet-Lite: TensorFlow leaves 32 pixels out, in all, of each side."""

  def transforms(name: str):
    from torchvision import transforms as T

    return T.Compose((
      T.Resize(size + 32, T.InterpolationMode.BICUBIC), T.CenterCrop(size), T.ToTensor(),
      T.Normalize((127 / 255,) * 3, (128 / 255,) * 3),
    ))  # fmt: skip

  return transforms


def unpickle(path):
  """A plain pickle of tensors; its hash is pinned, or pickle would not be let near it."""
  with open(path, "rb") as file:
    return pickle.load(file)


def torch_load(path):
  import torch

  return torch.load(path, weights_only=True)


@dataclasses.dataclass(frozen=True)
class Real:
  """A checkpoint of the catalog, what it scores on the photographs, and its original."""

  weights: str
  top1: int  # of 20
  top5: int
  reference: str  # as in `parity.Case`
  transforms: Callable
  read: Callable = torch_load
  positional: tuple = ()


# fmt: off
REAL = [
  Real("resnet18.broccoli", 18, 19, "torchvision.models:resnet18", torchvision_transforms,
       unpickle),
  Real("mobilenet_v2.fdet", 18, 20, "torchvision.models:mobilenet_v2", torchvision_transforms),
  *(Real(f"tf_efficientnet_lite{i}.elp", top1, top5,
         "efficientnet_lite_pytorch:EfficientNet.from_name", lite_transforms(size),
         positional=(f"efficientnet-lite{i}",))
    for i, size, top1, top5 in ((0, 224, 18, 19), (1, 240, 18, 20), (2, 260, 18, 20))),
]
# fmt: on


@pytest.fixture(scope="module")
def logits(photographs):
  """name -> [20 1000], each network run once."""
  done = {}

  def of(name):
    if name not in done:
      row = catalog.WEIGHTS[name]
      reachable(row.where, row.sha256)
      model, variables = zoo.load(name)
      pixels = zoo.preprocess(name)
      images = np.stack([pixels.crop(picture) for picture in photographs[0]])

      def run(variables, images):
        return model.apply(variables, pixels.normalize(images), train=False)["logits"]

      options = parity.QUICK_COMPILATION
      done[name] = np.asarray(jax.jit(run, compiler_options=options)(variables, images))
    return done[name]

  return of


@pytest.mark.parametrize("real", REAL, ids=lambda real: real.weights)
def test_names_what_is_in_the_photographs(real, logits, photographs):
  labels = photographs[1][:, None]
  order = np.argsort(-logits(real.weights), axis=1)
  top1, top5 = ((order[:, :k] == labels).any(1).sum() for k in (1, 5))
  assert (top1, top5) == (real.top1, real.top5)


@pytest.mark.parametrize("real", REAL, ids=lambda real: real.weights)
def test_equals_the_original_with_the_same_file(real, logits, photographs):
  """From the photograph to the logits, each with its own pixels, reader and network."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  library, _, name = real.reference.partition(":")
  if importlib.util.find_spec(library.partition(".")[0]) is None:
    pytest.skip(f"the original needs {library}: pip install flaxzoo[references]")
  row = catalog.WEIGHTS[real.weights]
  original = parity.build(
    parity.Case(row.variant, real.reference, {}, positional=real.positional)
  )  # fmt: skip
  original.load_state_dict(real.read(reachable(row.where, row.sha256)))
  transforms = real.transforms(name)
  with torch.no_grad():
    want = original(torch.stack([transforms(picture) for picture in photographs[0]])).numpy()
  assert np.abs(logits(real.weights) - want).max() / np.abs(want).max() < 1e-4
