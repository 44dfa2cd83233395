"""SSD beside torchvision's, and MobileNet-SSD beside OpenCV with its published weights."""

from collections import Counter
from functools import partial
import io
import zipfile

import jax
import numpy as np
from PIL import Image
import pytest

from convert import rules
from convert.rules import ssd as ssd_rules
from tests import detectors, opencv4, parity
from tests.detectors import detection  # noqa: F401 (a fixture)
from tests.test_yolo import PHOTOGRAPHS, PHOTOGRAPHS_SHA256
from tests.wheels import reachable
import zoo
from zoo import catalog
from zoo.classify.vgg import VGG
from zoo.detect import ssd

SIZES = ((90, 120), (128, 100))
DEPTHS, WIDTHS = (1, 1, 1, 1, 1), (8, 16, 32, 512, 512)  # a VGG for tests


def narrow_vgg(original):
  """Its features, flat, and thin as far as nothing behind them asks for 512 channels."""
  from torch import nn

  layers, c = [], 3
  for depth, width in zip(DEPTHS, WIDTHS):
    for _ in range(depth):
      layers += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU(inplace=True)]
      c = width
    layers.append(nn.MaxPool2d(2, 2))
  original.features = nn.Sequential(*layers)
  return original


def on_vgg(detection, size: int, variant: str):  # noqa: F811
  """(torchvision's of that size, ours), on thin VGGs."""
  import torchvision

  priors = zoo.create(variant).priors
  of = detection.ssd
  backbone = of._vgg_extractor(narrow_vgg(torchvision.models.vgg16(weights=None)), size == 512, 5)
  scales = {300: [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
            512: [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]}[size]  # fmt: skip
  ratios = [[2, 3][: len(shapes) // 2 - 1] for shapes in priors.shapes]
  boxes = of.DefaultBoxGenerator(ratios, scales=scales, steps=list(priors.steps))
  original = of.SSD(
    backbone, boxes, (size, size), 4,
    image_mean=[0.48235, 0.45882, 0.40784], image_std=[1 / 255.0] * 3,
  )  # fmt: skip
  model = zoo.create(variant, num_classes=3, plain=True)
  trunk = partial(VGG, DEPTHS, widths=WIDTHS, ceil_pools=(3,))
  extras = model.backbone.args[1]
  return original, model.clone(backbone=partial(ssd.OnVGG, trunk, extras))


def on_mobilenet(detection):  # noqa: F811
  original = detection.ssdlite320_mobilenet_v3_large(
    weights=None, weights_backbone=None, num_classes=4
  )
  return original, zoo.create("ssdlite320_mobilenet_v3_large", num_classes=3, plain=True)


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssd512_vgg16", "ssdlite320_mobilenet_v3_large"])
def test_equals_torchvision(name, detection):  # noqa: F811
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(1)
  lite = "lite" in name
  original, model = on_mobilenet(detection) if lite else on_vgg(detection, int(name[3:6]), name)
  original.eval()
  images = detectors.tensors(detectors.pictures(*SIZES))
  canvas = original.transform(images)[0].tensors
  seen = {}
  original.head.register_forward_hook(lambda module, inputs, out: seen.update(out))
  parity.randomize(original, images[:1])
  with torch.no_grad():
    for layer in original.head.classification_head.modules():
      if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
        layer.weight.mul_(6)  # classes that stand out
    wanted = original(images)
  image = canvas.permute(0, 2, 3, 1).numpy()
  names = rules.of("ssd", "torchvision", name) if lite else ssd_rules.on_vgg(DEPTHS)
  variables = detectors.variables_of(original, model, names, image)
  run = detectors.quick(partial(model.apply, train=False))
  ends = run(variables, image)
  assert detectors.difference(ends["logits"], seen["cls_logits"].numpy()) < 1e-4
  assert detectors.difference(ends["deltas"], seen["bbox_regression"].numpy()) < 1e-4
  found = jax.device_get(detectors.quick(model.detect)(ends))
  for i, (height, width) in enumerate(SIZES):
    mine = {key: value[i] for key, value in found.items()}
    side = canvas.shape[-1]
    mine["boxes"] = mine["boxes"] * np.array([width, height, width, height]) / side
    detectors.check_same(mine, wanted[i], first_label=1, at_least=100)


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssd512_vgg16", "ssdlite320_mobilenet_v3_large"])
def test_names(name, detection):  # noqa: F811
  """The whole networks, by name and shape."""
  import torchvision

  model = zoo.create(name)
  if name == "ssd512_vgg16":

    def make():
      backbone = detection.ssd._vgg_extractor(torchvision.models.vgg16(weights=None), True, 5)
      ratios = [[2, 3][: len(shapes) // 2 - 1] for shapes in model.priors.shapes]
      boxes = detection.ssd.DefaultBoxGenerator(ratios, steps=list(model.priors.steps))
      counts = [len(shapes) for shapes in model.priors.shapes]
      head = detection.ssd.SSDHead([512, 1024, 512, 256, 256, 256, 256], counts, 91)
      return detection.ssd.SSD(backbone, boxes, (512, 512), 91, head=head)

  else:
    make = partial(getattr(detection, name), weights=None, weights_backbone=None)
  detectors.check_names(make, model, rules.of("ssd", "torchvision", name), 512)


@pytest.fixture(scope="module")
def published():
  name = "ssd300_mobilenet_v1.caffe"
  row = catalog.WEIGHTS[name]
  file = reachable(row.where, row.sha256, row.beside)
  return (*zoo.load(name), file)


IN_THEM = {"bus": {"bus": 1, "person": 2}, "zidane": {"person": 2}}


@pytest.mark.parametrize("name", IN_THEM)
def test_equals_opencv_on_a_photograph(name, published, tmp_path):
  """MobileNet-SSD's published weights: every box and score, and what is left of them."""
  model, variables, file = published
  row = catalog.WEIGHTS["ssd300_mobilenet_v1.caffe"]
  with zipfile.ZipFile(reachable(PHOTOGRAPHS, PHOTOGRAPHS_SHA256)) as wheel:
    photograph = Image.open(io.BytesIO(wheel.read(f"ultralytics/assets/{name}.jpg")))
  image = np.asarray(row.preprocess.normalize(row.preprocess.crop(photograph)[None]))
  prototxt = next(file.parent.glob("*.txt"))
  there = partial(opencv4.forward, tmp_path, "readNetFromCaffe", (prototxt, file))
  ends = detectors.quick(partial(model.apply, train=False))(variables, image)
  x = image.transpose(0, 3, 1, 2)
  scores = there(x, "mbox_conf_softmax").reshape(1, -1, 21)
  assert detectors.difference(model.decode(ends)[1], scores[..., 1:]) < 1e-4
  wanted = there(x).reshape(-1, 7)  # picture, class, score, box as a share
  wanted = wanted[wanted[:, 2] > 0]
  found = {key: np.asarray(a[0]) for key, a in jax.jit(model.detect)(ends).items()}
  real = found["box_label"] >= 0
  assert list(found["box_label"][real] + 1) == list(wanted[:, 1])
  np.testing.assert_allclose(found["scores"][real], wanted[:, 2], atol=1e-4)
  np.testing.assert_allclose(found["boxes"][real], wanted[:, 3:].clip(0, 1) * 300, atol=0.05)
  sure = found["box_label"][found["scores"] > 0.5]
  assert Counter(row.classes[i] for i in sure) == IN_THEM[name]
