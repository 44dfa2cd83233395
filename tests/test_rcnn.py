"""Faster and Mask R-CNN beside torchvision's."""

import dataclasses
from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import rules
from convert.rules import rcnn as rcnn_rules
from tests import cases, detectors, parity
from tests.detectors import detection  # noqa: F401 (a fixture)
import zoo
from zoo.classify.resnet import Block, ResNet
from zoo.detect import rcnn
from zoo.detect.fpn import FPN
from zoo.ops.roi import paste_masks

SIZES = ((90, 120), (128, 100))
WIDTH, HIDDEN = 16, 64  # of the pyramid, and of the regions' dense layers


def small(detection, kind: str):  # noqa: F811
  """(torchvision's, ours, rules) on four blocks of a ResNet or a MobileNet, with narrow maps."""
  from torch import nn
  import torchvision
  from torchvision.models.detection.backbone_utils import BackboneWithFPN

  name = {
    "v1": "maskrcnn_resnet50_fpn", "v2": "maskrcnn_resnet50_fpn_v2",
    "mobile": "fasterrcnn_mobilenet_v3_large_320_fpn",
  }[kind]  # fmt: skip
  second, mobile, norm = kind == "v2", kind == "mobile", nn.BatchNorm2d
  of = detection.faster_rcnn
  if mobile:
    body = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=norm).features
    layers, channels = {"13": "0", "16": "1"}, [160, 960]
  else:
    body = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    layers = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
    channels = [256, 512, 1024, 2048]
  backbone = BackboneWithFPN(body, layers, channels, WIDTH, norm_layer=norm if second else None)
  sizes = ((32, 64, 128, 256, 512),) * 3 if mobile else ((32,), (64,), (128,), (256,), (512,))
  anchors = of.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
  heads = {
    "box_head": of.FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 4, [HIDDEN], norm_layer=norm)
    if second else of.TwoMLPHead(WIDTH * 49, HIDDEN),
    "box_predictor": of.FastRCNNPredictor(HIDDEN, 4),
  }  # fmt: skip
  if not mobile:
    of_masks = detection.mask_rcnn
    heads |= {
      "mask_head": of_masks.MaskRCNNHeads(
        WIDTH, [WIDTH] * 4, 1, norm_layer=norm if second else None
      ),
      "mask_predictor": of_masks.MaskRCNNPredictor(WIDTH, WIDTH, 4),
    }
  make = of.FasterRCNN if mobile else detection.MaskRCNN
  before, after, least = (60, 60, 0.05) if mobile else (100, 80, 0.0)
  original = make(
    backbone, rpn_anchor_generator=anchors, min_size=96, max_size=128,
    rpn_head=detection.rpn.RPNHead(WIDTH, 3 * len(sizes[0]), conv_depth=1 + second),
    rpn_pre_nms_top_n_test=before, rpn_post_nms_top_n_test=after, rpn_score_thresh=least, **heads,
  )  # fmt: skip
  model = zoo.create(name, num_classes=3, plain=True)
  model = model.clone(
    pyramid=partial(model.pyramid, WIDTH), head=partial(model.head, HIDDEN),
    before=(before, 0), after=(after, 0),
    trunk=model.trunk if mobile else partial(ResNet, (1, 1, 1, 1)),
  )  # fmt: skip
  names = rcnn_rules.torchvision(WIDTH, rcnn_rules.ON_MOBILENET if mobile else ())
  return original.eval(), model, names


def on_vgg(detection, sizes, hidden: int, classes: int, **fields):  # noqa: F811
  """torchvision's class on VGG-16 up to conv5_3: one map, nine anchors in a cell."""
  import torchvision

  body = torchvision.models.vgg16(weights=None).features[:-1]
  body.out_channels = 512
  of = detection.faster_rcnn
  return of.FasterRCNN(
    body, rpn_anchor_generator=of.AnchorGenerator((sizes,), ((0.5, 1.0, 2.0),)),
    box_roi_pool=of.MultiScaleRoIAlign(["0"], 7, 2), box_head=of.TwoMLPHead(512 * 49, hidden),
    box_predictor=of.FastRCNNPredictor(hidden, 1 + classes), **fields,
  )  # fmt: skip


def small_vgg(detection):  # noqa: F811
  """As `small`: the whole trunk, anchors that fit the pictures, a narrow head."""
  sizes = (16, 32, 64)
  original = on_vgg(
    detection, sizes, HIDDEN, 3, min_size=96, max_size=128, rpn_pre_nms_top_n_test=100,
    rpn_post_nms_top_n_test=80,
  )  # fmt: skip
  model = zoo.create("fasterrcnn_vgg16", num_classes=3, plain=True).clone(
    sizes=(sizes,), head=partial(rcnn.TwoDense, HIDDEN), before=(100, 0), after=(80, 0)
  )
  return original.eval(), model, rules.of("rcnn", "torchvision", "fasterrcnn_vgg16")


@pytest.mark.parametrize("kind", ["v1", "v2", "mobile", "vgg"])
def test_equals_torchvision(kind, detection):  # noqa: F811
  """Both stages, the detections and, where there are any, their masks in the pictures."""
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(1)
  original, model, names = small_vgg(detection) if kind == "vgg" else small(detection, kind)
  images = detectors.tensors(detectors.pictures(*SIZES))
  batch = original.transform(images)[0]
  parity.randomize(original, images)
  seen = {}
  for path in ("rpn.head", "rpn", "roi_heads.box_predictor"):
    original.get_submodule(path).register_forward_hook(
      lambda module, inputs, out, path=path: seen.__setitem__(path, out)
    )
  with torch.no_grad():
    original.rpn.head.cls_logits.weight.mul_(8)  # scores that stand out
    original.roi_heads.box_predictor.cls_score.weight.mul_(2)
    wanted = original(images)
  image = batch.tensors.permute(0, 2, 3, 1).numpy()
  variables = detectors.variables_of(original, model, names, image)
  size = np.array(batch.image_sizes)
  ends = detectors.quick(partial(model.apply, train=False))(variables, image, size=size)
  flat = lambda maps, columns: np.concatenate(
    [x.permute(0, 2, 3, 1).reshape(2, -1, columns).numpy() for x in maps], 1
  )
  logits, deltas = seen["rpn.head"]
  assert detectors.difference(ends["rpn_logits"], flat(logits, 1)[..., 0]) < 1e-4
  assert detectors.difference(ends["rpn_deltas"], flat(deltas, 4)) < 1e-4
  real = np.asarray(ends["real"])
  proposals = torch.cat(seen["rpn"][0]).numpy()
  np.testing.assert_allclose(np.asarray(ends["proposals"])[real], proposals, atol=1e-2)
  logits, deltas = (x.numpy() for x in seen["roi_heads.box_predictor"])
  assert detectors.difference(np.asarray(ends["logits"])[real], logits) < 1e-4
  ours = np.asarray(ends["deltas"])[real]
  assert detectors.difference(ours.reshape(len(ours), -1), deltas) < 1e-4
  found = jax.device_get(detectors.quick(model.detect)(ends))
  masks = None
  if model.mask is not None:
    run = detectors.quick(partial(model.apply, method="masks"))
    masks = run(variables, ends, found)
  for i in range(2):
    mine = {key: value[i] for key, value in found.items()}
    mine["boxes"] = mine["boxes"] * np.tile(np.array(SIZES[i])[::-1] / size[i][::-1], 2)
    detectors.check_same(mine, wanted[i], first_label=1, at_least=20)
    if masks is not None:
      pasted = np.asarray(paste_masks(masks[i], mine["boxes"], SIZES[i]))
      theirs = wanted[i]["masks"][:, 0].numpy()
      off = np.abs(pasted[: len(theirs)] - theirs).max((1, 2))
      assert np.mean(off < 1e-3) > 0.9, off  # a corner near a whole pixel may be cut to another


def older(name: str) -> str:
  """The published files' name."""
  name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
  name = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
  return re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)


@pytest.mark.parametrize("name", [
  name for name in rcnn.VARIANTS if not any(part in name for part in ("320", "vgg", "resnet18"))
])  # fmt: skip
def test_names(name, detection):  # noqa: F811
  """The whole networks, by name and shape; of first versions also by the files' older names."""
  make = partial(getattr(detection, name), weights=None, weights_backbone=None)
  ours = rules.of("rcnn", "torchvision", name)
  renamed = (lambda name: name) if name.endswith("v2") else older
  detectors.check_names(make, zoo.create(name), ours, 64, renamed)


@pytest.mark.parametrize("kind", ["FasterRCNN", "MaskRCNN"])
def test_names_on_resnet18(kind, detection):  # noqa: F811
  name, make = f"{kind.lower()}_resnet18_fpn", partial(detectors.on_resnet18, detection, kind)
  ours = rules.of("rcnn", "torchvision", name)
  assert detectors.check_names(make, zoo.create(name), ours, 64) == cases.PARAMS[name]


def test_names_on_vgg(detection):  # noqa: F811
  make = partial(on_vgg, detection, (128, 256, 512), 4096, 90)
  names = rules.of("rcnn", "torchvision", "fasterrcnn_vgg16")
  counted = detectors.check_names(make, zoo.create("fasterrcnn_vgg16"), names, 64)
  assert counted == cases.PARAMS["fasterrcnn_vgg16"]


def test_sampled_regions():
  """The heads see what the caller chooses, here the picture's own boxes."""
  model = zoo.create("fasterrcnn_resnet50_fpn", num_classes=3).clone(
    trunk=partial(ResNet, (1, 1, 1, 1)),
    pyramid=partial(FPN, 8),
    head=partial(rcnn.TwoDense, 8),
    before=(20, 20),
    after=(20, 20),
  )
  image = np.zeros((1, 64, 64, 3), np.float32)
  chosen = np.array([[[4, 4, 40, 50], [10, 2, 60, 20]]], np.float32)

  def run(key):
    variables = model.init(key, image, train=False)
    return model.apply(variables, image, lambda proposals, real: chosen, train=False)

  ends = jax.eval_shape(run, jax.random.key(0))
  assert ends["rois"].shape == (1, 2, 4)
  assert ends["logits"].shape == (1, 2, 4) and ends["proposals"].shape == (1, 20, 4)


@pytest.mark.parametrize("counts", [(3, 1), (0, 0), (7, 4)])
def test_masks_in_parts(counts, monkeypatch):
  """Behind the last region that is there are zeros, else what is computed all at once."""
  monkeypatch.setattr(rcnn, "MASKS", 2)
  make = partial(
    zoo.create("maskrcnn_resnet50_fpn", num_classes=3).clone,
    trunk=partial(ResNet, (1, 1, 1, 1), block=partial(Block, bottleneck=False), width=8),
    pyramid=partial(FPN, 8), head=partial(rcnn.TwoDense, 8), before=(20, 20), after=(20, 20),
  )  # fmt: skip
  model = make()
  image = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
  variables = detectors.quick(partial(model.init, train=False))(jax.random.key(0), image)
  low = np.random.default_rng(0).uniform(0, 30, (2, 7, 2))
  rois = np.concatenate([low, low + 30], -1).astype(np.float32)
  there = np.arange(7) < np.array(counts)[:, None]

  def loss(model, variables):
    ends = model.apply(variables, image, train=False)
    logits = model.apply(variables, ends, rois, there, train=True, method="mask_logits")
    return jnp.sum(jnp.where(there[..., None, None, None], logits, 0) ** 2), logits

  (got, want), (grads, wanted) = zip(*[
    (logits, grads)
    for one in (model, make(numerics=dataclasses.replace(model.numerics, plain=True)))
    for grads, logits in [jax.jit(jax.grad(partial(loss, one), has_aux=True))(variables)]
  ])  # fmt: skip
  computed = 2 if max(counts) <= 2 else 4 if max(counts) <= 4 else 7
  assert not np.asarray(got)[:, computed:].any() and np.asarray(want).all((2, 3, 4)).any()
  np.testing.assert_allclose(got[:, :computed], want[:, :computed], rtol=1e-4, atol=1e-6)
  for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())
