"""FCNs beside the authors' prototxt, said once more in torch, and torchvision's dilated nets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import engine, rules
from tests import beside, parity
import zoo
from zoo.ops.conv import conv_transpose
from zoo.segment import deeplabv3, fcn

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
nn = torch.nn
NARROW = {"widths": (4, 6, 8, 10, 12), "hidden": 16, "num_classes": 5}


class Prototxt(nn.Module):
  """voc-fcn32s, 16s or 8s, layer by layer, narrower."""

  def __init__(self, stride, widths=(64, 128, 256, 512, 512), hidden=4096, num_classes=21):
    super().__init__()
    self.stride, channels = stride, 3
    for s, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), widths), start=1):
      for i in range(1, depth + 1):
        pad = 100 if s == i == 1 else 1
        self.add_module(f"conv{s}_{i}", nn.Conv2d(channels, width, 3, padding=pad))
        channels = width
    self.fc6, self.fc7 = nn.Conv2d(channels, hidden, 7), nn.Conv2d(hidden, hidden, 1)
    self.score_fr = nn.Conv2d(hidden, num_classes, 1)
    ups = {32: {"upscore": 32}, 16: {"upscore2": 2, "upscore16": 16},
           8: {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}}[stride]  # fmt: skip
    for name, s in ups.items():
      deconv = nn.ConvTranspose2d(num_classes, num_classes, 2 * s, s, bias=False)
      self.add_module(name, deconv)
    if stride < 32:
      self.score_pool4 = nn.Conv2d(widths[3], num_classes, 1)
    if stride < 16:
      self.score_pool3 = nn.Conv2d(widths[2], num_classes, 1)

  def forward(self, data):
    x, pools = data, {}
    for s, depth in enumerate((2, 2, 3, 3, 3), start=1):
      for i in range(1, depth + 1):
        x = self.get_submodule(f"conv{s}_{i}")(x).relu()
      x = pools[s] = nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
    x = self.score_fr(self.fc7(self.fc6(x).relu()).relu())

    def crop(x, like, offset):
      return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    if self.stride == 32:
      return crop(self.upscore(x), data, 19)
    upscore2 = self.upscore2(x)
    fuse_pool4 = upscore2 + crop(self.score_pool4(pools[4]), upscore2, 5)
    if self.stride == 16:
      return crop(self.upscore16(fuse_pool4), data, 27)
    upscore_pool4 = self.upscore_pool4(fuse_pool4)
    fuse_pool3 = upscore_pool4 + crop(self.score_pool3(pools[3]), upscore_pool4, 9)
    return crop(self.upscore8(fuse_pool3), data, 31)


def assert_close(found):
  worst = max(found, key=found.get)
  assert found[worst] < 1e-4, f"{worst}: {found[worst]:.1e}"


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_authors(stride):
  original, model = Prototxt(stride, **NARROW), zoo.create(f"fcn{stride}s_vgg16", **NARROW)
  images = beside.random_images((1, 64, 96, 3), (1, 61, 75, 3))
  assert_close(beside.errors(original, model, rules.of("fcn", "plain"), images, {}))


def test_enlarging_begins_as_bilinear_interpolation():
  """A ramp stays a ramp, but for the border that is cut off."""
  kernel = fcn._bilinear(None, (8, 8, 2, 2))
  ramp = jnp.arange(6.0)[None, :, None, None] * jnp.array([1.0, -2.0])
  y = conv_transpose(jnp.broadcast_to(ramp, (1, 6, 6, 2)), kernel, stride=(4, 4))
  inner = np.asarray(y[0, 6:-6, 12, :])
  np.testing.assert_allclose(np.diff(inner, axis=0), [[0.25, -0.5]] * (len(inner) - 1), atol=1e-6)


def test_surgery_keeps_what_vgg_learned():
  widths = {"widths": (2, 2, 3, 3, 4), "hidden": 6}
  vgg, model = zoo.create("vgg16", **widths), zoo.create("fcn32s_vgg16", **widths)
  rng = np.random.default_rng(0)

  def drawn(model):
    return jax.tree.map(lambda a: rng.normal(size=a.shape), zoo.shapes(model, size=32))

  old, fresh = drawn(vgg), drawn(model)
  new = fcn.transplant(old, fresh)
  seven = rng.normal(size=(1, 7, 7, 4))
  kernel = new["params"]["fc6"]["kernel"]
  dense = seven.reshape(1, -1) @ old["params"]["fc6"]["kernel"]
  np.testing.assert_allclose(np.tensordot(seven, kernel, 3), dense, rtol=1e-5)
  np.testing.assert_array_equal(
    new["params"]["conv1_1"]["kernel"], old["params"]["conv1_1"]["kernel"]
  )
  np.testing.assert_array_equal(
    new["params"]["score_fr"]["kernel"], fresh["params"]["score_fr"]["kernel"]
  )


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_torchvision(name):
  segmentation = parity.import_torchvision().models.segmentation
  make = getattr(segmentation, name)
  original = make(weights=None, weights_backbone=None, aux_loss=True, num_classes=5)

  def outputs(y):
    return {"logits": y["out"], "aux_logits": y["aux"]}

  taps = {"stage4": "backbone.layer4"}
  images = beside.random_images((2, 64, 64, 3), (1, 65, 97, 3))
  model = zoo.create(name, num_classes=5)
  found = beside.errors(
    original, model, rules.of("deeplabv3", "torchvision"), images, taps, outputs
  )
  assert_close(found)


def test_on_resnet18():
  """torchvision's head on timm's dilated network, for torchvision dilates no such blocks."""
  fcn_of = parity.import_torchvision().models.segmentation.fcn
  timm = pytest.importorskip("timm", reason="pip install flaxzoo[references]")

  class Original(nn.Module):
    def __init__(self):
      super().__init__()
      self.backbone = timm.create_model("resnet18", output_stride=8)
      del self.backbone.fc
      self.classifier, self.aux_classifier = fcn_of.FCNHead(512, 5), fcn_of.FCNHead(256, 5)

    def forward(self, x):
      size, body, seen = x.shape[-2:], self.backbone, {}
      x = body.maxpool(body.act1(body.bn1(body.conv1(x))))
      for i in range(1, 5):
        x = seen[i] = getattr(body, f"layer{i}")(x)
      maps = self.classifier(seen[4]), self.aux_classifier(seen[3])
      return [nn.functional.interpolate(y, size, mode="bilinear") for y in maps]

  taps = {f"stage{i}": f"backbone.layer{i}" for i in range(1, 5)}
  images = beside.random_images((2, 64, 64, 3), (1, 65, 97, 3))
  found = beside.errors(
    Original(), zoo.create("fcn_resnet18", num_classes=5), rules.of("deeplabv3", "torchvision"),
    images, taps, lambda y: dict(zip(("logits", "aux_logits"), y)),
  )  # fmt: skip
  assert_close(found)


@pytest.mark.parametrize("name", [name for name in deeplabv3.VARIANTS if name != "fcn_resnet18"])
def test_names_of_torchvision(name):
  """Every array of the published files has its place."""
  make = getattr(parity.import_torchvision().models.segmentation, name)
  with torch.device("meta"):
    state = make(weights=None, weights_backbone=None, aux_loss=True).state_dict()
  arrays = {k: np.broadcast_to(np.float32(0), tuple(v.shape)) for k, v in state.items()}
  target = zoo.shapes(zoo.create(name), size=64)
  variables = engine.convert(arrays, target, zoo.rules_of(f"{name}.tv1"))
  assert variables.keys() == {"params", "batch_stats"}
