"""From a photograph to a network's input, beside the libraries that published the checkpoints."""

import collections
import functools
import importlib

import numpy as np
from PIL import Image
import pytest

from convert.commands import originals
from tests import parity
import zoo
from zoo import catalog

LEVEL = 1.01 / 255  # one of grey, and rounding


@functools.cache
def pictures() -> tuple[Image.Image, ...]:
  """A wide and a high one of odd sides, coarse and fine at once, and one smaller than the crops."""
  made = []
  for height, width in ((333, 501), (487, 300), (150, 170)):
    y, x, c = np.indices((height, width, 3))
    waves = 127 + 60 * np.sin(x / 17 + c) + 60 * np.cos(y / (9 + c) + x * y / 9000)
    noise = np.random.default_rng(0).normal(0, 25, waves.shape)
    made.append(Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8)))
  return tuple(made)


def groups(dialect: str, kind) -> dict:
  """{(pixels, kind of the checkpoint): its names}, of checkpoints prepared alike."""
  found = collections.defaultdict(list)
  for name, row in catalog.WEIGHTS.items():
    if row.dialect == dialect and catalog.task(row.variant) == "classify":
      if (key := kind(name, row)) is not None:
        found[repr(row.preprocess), key].append(name)
  return found


def difference(name: str, theirs, mean, std) -> float:
  """In pixels of 0..1; `theirs` gives [3 h w] normalised by its own mean and std."""
  worst, pixels = 0.0, zoo.preprocess(name)
  for picture in pictures():
    want = np.asarray(theirs(picture)).transpose(1, 2, 0) * std + mean
    got = np.asarray(pixels.normalize(pixels.crop(picture)[None]))[0] * pixels.std + pixels.mean
    got = got[..., ::-1] if pixels.channels == "BGR" else got
    assert got.shape == want.shape, name
    worst = max(worst, float(np.abs(got - want).max()))
  return worst


@functools.cache
def presets() -> dict:
  """Address of a file of torchvision's -> the function that makes its transforms."""
  models = parity.import_torchvision().models
  found = {}
  for name in models.list_models():
    for weights in models.get_model_weights(name):
      found[weights.url] = weights.transforms
  return found


def test_as_torchvision_does():
  pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  rows = groups("torchvision", lambda name, row: presets().get(row.where) and
                repr(presets()[row.where]()))  # fmt: skip
  assert sum(map(len, rows.values())) > 30 and len(rows) >= 4
  errors = {}
  for names in rows.values():
    own = presets()[catalog.WEIGHTS[names[0]].where]()
    mean, std = own.mean, own.std
    # Networks that shift their input themselves are handed it as they shift it.
    errors[names[0]] = difference(names[0], own, mean, std)
  assert max(errors.values()) < LEVEL, errors


def test_as_timm_does():
  parity.import_torchvision()
  timm = pytest.importorskip("timm")

  def config(row):
    return timm.get_pretrained_cfg(row.where.split("/")[1])

  rows = groups("timm", lambda name, row: "" if "hf:timm/" in row.where else None)
  assert sum(map(len, rows.values())) > 60 and len(rows) > 10
  errors = {}
  for names in rows.values():
    facts = timm.data.resolve_data_config({}, pretrained_cfg=config(catalog.WEIGHTS[names[0]]).
                                          to_dict())  # fmt: skip
    transform = timm.data.create_transform(**facts, is_training=False)
    errors[names[0]] = difference(names[0], transform, facts["mean"], facts["std"])
  assert max(errors.values()) < LEVEL, errors


def test_as_keras_does():
  """Keras prepares arrays, whoever cut them."""
  keras = pytest.importorskip("keras", reason="pip install flaxzoo[references]")

  made = vars(importlib.import_module("keras.applications"))
  known = {name.lower(): thing for name, thing in made.items() if callable(thing)}

  def kind(name, row):
    original = originals.find(row.variant, "keras", name)
    function = known.get(original.reference.partition(":")[2].lower())
    return function and function.__module__

  rows = groups("keras", kind)
  assert sum(map(len, rows.values())) > 20 and len(rows) > 6
  errors = {}
  for (_, module), names in rows.items():
    pixels = zoo.preprocess(names[0])
    prepare = importlib.import_module(module).preprocess_input
    picture = pixels.crop(pictures()[0])[None]
    got = np.asarray(pixels.normalize(picture)) * pixels.std
    want = np.asarray(prepare(picture.astype(np.float32), data_format="channels_last"))
    if module.endswith("mobilenet_v3"):  # the network's first layer does it there
      want = np.asarray(keras.layers.Rescaling(1 / 127.5, -1)(want))
    errors[names[0]] = float(np.abs(got - want * pixels.std).max())
  assert max(errors.values()) < LEVEL, errors
