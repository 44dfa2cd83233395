"""U-Nets beside the paper's in torch, a published checkpoint's class and a decoder's original."""

import jax
import numpy as np
from PIL import Image, ImageDraw
import pytest

from convert import rules
from tests import beside, lines, parity, wheels
import zoo
from zoo import catalog
from zoo.segment import unet

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
nn = torch.nn


class Paper(nn.Module):
  """Figure 1 of the paper, narrower, on a picture that is mirrored at its border."""

  def __init__(self, widths, classes):
    super().__init__()
    channels = (1, *widths)
    for i, (c, f) in enumerate(zip(channels, widths), start=1):
      name = "center" if i == len(widths) else f"enc{i}"
      self.add_module(
        name, nn.ModuleDict({"conv0": nn.Conv2d(c, f, 3), "conv1": nn.Conv2d(f, f, 3)})
      )
    for i, f in enumerate(widths[:-1], start=1):
      self.add_module(f"up{i}", nn.ConvTranspose2d(2 * f, f, 2, 2))
      self.add_module(
        f"dec{i}", nn.ModuleDict({"conv0": nn.Conv2d(2 * f, f, 3), "conv1": nn.Conv2d(f, f, 3)})
      )
    self.final = nn.Conv2d(widths[0], classes, 1)
    self.depth = len(widths) - 1

  def double(self, name, x):
    block = self.get_submodule(name)
    return block["conv1"](block["conv0"](x).relu()).relu()

  def forward(self, x):
    skips = []
    for i in range(1, self.depth + 1):
      x = self.double(f"enc{i}", x)
      skips.append(x)
      x = nn.functional.max_pool2d(x, 2)
    x = self.double("center", x)
    for i in range(self.depth, 0, -1):
      x = self.get_submodule(f"up{i}")(x)
      skip = skips.pop()
      spare = (skip.shape[2] - x.shape[2]) // 2
      skip = skip[:, :, spare : skip.shape[2] - spare, spare : skip.shape[3] - spare]
      x = self.double(f"dec{i}", torch.cat([skip, x], 1))
    return self.final(x)


class Mirrored(Paper):
  """On 388 pixels, 92 mirrored ones at each side, the sizes in the paper's figure: 572 and 388."""

  def forward(self, x):
    y = super().forward(nn.functional.pad(x, (92,) * 4, mode="reflect"))
    assert y.shape[2:] == x.shape[2:]
    return y


def assert_close(found, tolerance=1e-4):
  worst = max(found, key=found.get)
  assert found[worst] < tolerance, f"{worst}: {found[worst]:.1e}"


def test_the_papers():
  """Sizes that its pools allow; 100 and 116 are 4 more than a multiple of 16, as 388 is."""
  widths = (4, 8, 16, 32, 64)
  original, model = Mirrored(widths, 3), unet.UNet(widths, 3)
  found = beside.errors(
    original, model, rules.of("unet", "plain"),
    beside.random_images((1, 100, 116, 1)), {},
  )  # fmt: skip
  assert_close(found)


def test_any_size_comes_back():
  model = unet.UNet((2, 3, 4), 2)
  image = beside.random_images((1, 37, 50, 1))[0]
  variables = parity.fresh(model, size=(37, 50), channels=1)
  run = beside.apply(model)
  ends = run(variables, image)
  assert ends["logits"].shape == (1, 37, 50, 2)
  # A tile of the middle sees the same pixels wherever its border is mirrored further away.
  tile = run(variables, image[:, :, :49])["logits"]
  np.testing.assert_allclose(ends["logits"][:, :, :20], tile[:, :, :20], atol=1e-5)
  with pytest.raises(ValueError, match="an image 1 pixel wide has no border to mirror"):
    model.init(jax.random.key(0), image[:, :1], train=False)


def shiftlab(filters):
  module = wheels.load(
    "shiftlab", ["shiftlab_ocr.segmentation"], {"shiftlab_ocr.paths": {}}
  )  # fmt: skip
  return module.UNet(n_filters=filters)


def test_bilinear_equals_shiftlabs():
  parity.import_torchvision()
  model = zoo.create("unet_bilinear", widths=(8, 16, 32, 64, 128))
  taps = {"stage1": "enc1.conv_block", "stage5": "center", "features": "dec1"}
  images = beside.random_images((2, 48, 64, 3))
  assert_close(beside.errors(shiftlab(8), model, rules.of("unet", "shiftlab"), images, taps))


def test_published_weights_find_the_same_text():
  parity.import_torchvision()
  name = "unet_bilinear.shiftlab"
  row = catalog.WEIGHTS[name]
  file = wheels.reachable(row.where, row.sha256)
  original = shiftlab(32)
  original.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
  pixels = zoo.preprocess(name).at(256)
  image = np.asarray(pixels.normalize(pixels.crop(page())[None]))
  model, variables = zoo.load(name)

  def run(variables, image, train):
    return model.apply(variables, image, train=train, mutable=["batch_stats"])[0]["logits"]

  for train in (False, True):  # its package never leaves training mode: statistics of the page
    got = jax.jit(run, static_argnums=2)(variables, image, train)
    with torch.no_grad():
      want = original.train(train)(beside.nchw(image)).permute(0, 2, 3, 1).numpy()
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-4
  assert ((got > 0) == (want > 0)).all() and 0.02 < (want > 0).mean() < 0.5


def page():
  """A white page with two lines of writing."""
  image = Image.new("RGB", (300, 200), (235, 235, 230))
  draw, face = ImageDraw.Draw(image), lines.font("DejaVuSerif-Italic", 26)
  draw.text((20, 40), "mountain harbour", (30, 30, 60), face)
  draw.text((30, 110), "quick market", (20, 20, 40), face)
  return image


class OnResNet(nn.Module):
  """segmentation_models_pytorch's decoder and head on torchvision's ResNet-18."""

  def __init__(self, widths):
    super().__init__()
    package = "segmentation_models_pytorch"
    code = wheels.load(
      "smp",
      [f"{package}.base.modules", f"{package}.base.heads", f"{package}.decoders.unet.decoder"],
    )
    heads = wheels.load("smp", [f"{package}.base.modules", f"{package}.base.heads"])
    self.encoder = parity.import_torchvision().models.resnet18()
    del self.encoder.fc
    self.decoder = code.UnetDecoder((3, 64, 64, 128, 256, 512), widths)
    self.segmentation_head = heads.SegmentationHead(widths[-1], 5)

  def forward(self, x):
    e, maps = self.encoder, [x]
    maps.append(e.relu(e.bn1(e.conv1(x))))
    maps.append(e.layer1(e.maxpool(maps[-1])))
    for layer in (e.layer2, e.layer3, e.layer4):
      maps.append(layer(maps[-1]))
    return self.segmentation_head(self.decoder(maps))


def test_a_decoder_on_a_classifier():
  widths = (32, 24, 16, 12, 8)
  model = zoo.create("unet_resnet18", widths=widths, num_classes=5)
  images = beside.random_images((2, 64, 64, 3), (1, 65, 97, 3))
  taps = {"features": "decoder", "stage2": "encoder.layer2"}
  assert_close(beside.errors(OnResNet(widths), model, rules.of("unet", "smp"), images, taps))


@pytest.mark.parametrize("name", [n for n in unet.VARIANTS if n != "unet_resnet18"])
def test_every_variant_answers_at_the_size_of_its_image(name):
  model = zoo.create(name, num_classes=3, plain=True)
  image = jax.ShapeDtypeStruct((1, 70, 90, 3), np.float32)
  ends, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), image
  )
  assert ends["logits"].shape == (1, 70, 90, 3) and ends["features"].shape[:3] == (1, 70, 90)
