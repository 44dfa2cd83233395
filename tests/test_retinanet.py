"""RetinaNet beside torchvision's."""

from functools import partial
import re

import jax
import numpy as np
import pytest

from convert import rules
from tests import cases, detectors, parity
from tests.detectors import detection  # noqa: F401 (a fixture)
import zoo
from zoo.classify import mobilenet_v2
from zoo.classify.resnet import ResNet
from zoo.detect import fpn
from zoo.detect.fpn import FPN, Top

SIZES = ((90, 120), (128, 100))
NAMES = rules.of("retinanet", "torchvision")


def small(detection, version: int):  # noqa: F811
  """(torchvision's, ours) on a ResNet of four blocks and narrow maps; the first with frozen norms.

  Frozen norms are made of another network's statistics, with nothing added to their variance, as
  the published weights of the first version want it.
  """
  from torch import nn
  import torchvision
  from torchvision.models.detection.backbone_utils import BackboneWithFPN
  from torchvision.ops import misc
  from torchvision.ops.feature_pyramid_network import LastLevelP6P7

  width = 32
  first = version == 1
  norm = misc.FrozenBatchNorm2d if first else nn.BatchNorm2d
  body = torchvision.models.ResNet(
    torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], norm_layer=norm
  )
  top = LastLevelP6P7(width if first else 2048, width)
  backbone = BackboneWithFPN(
    body, {f"layer{i}": str(i - 2) for i in (2, 3, 4)}, [512, 1024, 2048], width, top
  )
  norm = None if first else partial(nn.GroupNorm, 8)
  head = detection.retinanet.RetinaNetHead(width, 9, 4, norm_layer=norm)
  if not first:
    head.regression_head._loss_type = "giou"
  original = detection.retinanet.RetinaNet(backbone, 4, head=head, min_size=96, max_size=128)
  if first:
    detection._utils.overwrite_eps(original, 0.0)
  model = zoo.create("retinanet_resnet50_fpn" + "_v2" * (not first), num_classes=4, plain=True)
  model = model.clone(
    trunk=partial(ResNet, (1, 1, 1, 1)), groups=None if first else 8,
    pyramid=partial(FPN, width, top=Top.P5 if first else Top.C5),
  )  # fmt: skip
  if first:
    model = zoo._with_fields(model, zoo.catalog.WEIGHTS["retinanet_resnet50_fpn.tv1"].fields)
  return original.eval(), model


@pytest.mark.parametrize("version", [1, 2])
def test_equals_torchvision(version, detection):  # noqa: F811
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(1)
  original, model = small(detection, version)
  images = detectors.tensors(detectors.pictures(*SIZES))
  batch = original.transform(images)[0]
  detectors.thaw(original)
  parity.randomize(original, images)
  detectors.freeze(original)
  seen = {}
  original.head.register_forward_hook(lambda module, inputs, out: seen.update(out))
  with torch.no_grad():
    original.head.classification_head.cls_logits.weight.mul_(8)  # classes that stand out
    wanted = original(images)
  image = batch.tensors.permute(0, 2, 3, 1).numpy()
  variables = detectors.variables_of(original, model, NAMES, image)
  size = np.array(batch.image_sizes)
  ends = detectors.quick(partial(model.apply, train=False))(variables, image, size=size)
  assert detectors.difference(ends["logits"], seen["cls_logits"].numpy()) < 1e-4
  assert detectors.difference(ends["deltas"], seen["bbox_regression"].numpy()) < 1e-4
  found = jax.device_get(detectors.quick(model.detect)(ends))
  for i in range(2):
    mine = {key: value[i] for key, value in found.items()}
    mine["boxes"] = mine["boxes"] * np.tile(np.array(SIZES[i])[::-1] / size[i][::-1], 2)
    detectors.check_same(mine, wanted[i], at_least=100)


def older(name: str) -> str:
  """The published files' name."""
  name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
  return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_names(name, detection):  # noqa: F811
  """The whole networks, by name and shape; of the first version also by the file's older names."""
  make = partial(getattr(detection, name), weights=None, weights_backbone=None)
  detectors.check_names(make, zoo.create(name), NAMES, 128)
  if name == "retinanet_resnet50_fpn":
    detectors.check_names(make, zoo.create(name), NAMES, 128, older)


def test_names_on_resnet18(detection):  # noqa: F811
  from torchvision.ops.feature_pyramid_network import LastLevelP6P7

  top = LastLevelP6P7(256, 256)
  make = partial(
    detectors.on_resnet18, detection, "RetinaNet", returned_layers=[2, 3, 4], extra_blocks=top
  )
  name = "retinanet_resnet18_fpn"
  counted = detectors.check_names(make, zoo.create(name), NAMES, 128)
  assert counted == cases.PARAMS[name]


def test_sizes():
  """Every size beside torch's own rule."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  for side in range(100, 1300, 61):
    for other in (side, 2 * side, side + 17):
      scale = min(800 / min(side, other), 1333 / max(side, other))
      x = torch.nn.functional.interpolate(
        torch.zeros(1, 1, side, other), scale_factor=scale, recompute_scale_factor=True
      )
      assert fpn.fitted((side, other)) == tuple(x.shape[2:]), (side, other)


def test_on_another_classifier():
  """A pyramid on a MobileNet v2: its maps, its anchors, its detections."""
  model = zoo.create("retinanet_resnet50_fpn", num_classes=2).clone(
    trunk=partial(mobilenet_v2.VARIANTS["mobilenetv2_100"]), pyramid=partial(FPN, 16, top=Top.P5)
  )
  image = np.zeros((1, 64, 96, 3), np.float32)
  ends, _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), image)
  assert fpn.grids(ends) == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
  assert ends["anchors"].shape == (9 * (96 + 24 + 6 + 2 + 1), 4)
  assert jax.eval_shape(model.detect, ends)["boxes"].shape == (1, 300, 4)
