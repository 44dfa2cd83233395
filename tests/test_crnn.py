"""Readers beside their originals, with random arrays."""

import pytest

from convert import rules
from tests import beside, parity, wheels
from zoo.text import crnn

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")


def compare(variant, dialect, original, shapes, taps, outputs=lambda y: {"logits": y}):
  found = beside.errors(
    original, crnn.VARIANTS[variant](), rules.of("crnn", dialect, variant),
    beside.random_images(*shapes), taps, outputs,
  )  # fmt: skip
  worst = max(found, key=found.get)
  assert found[worst] < 1e-4, f"{worst}: {found[worst]:.1e}"


def test_shi():
  original = wheels.load("crnn", ["tidkvideochange.crnnpytorch.crnn"]).CRNN(32, 1, 37, 256)
  taps = {"features": "cnn"}
  shapes = ((2, 32, 100, 1), (1, 32, 67, 1))
  compare("crnn", "crnn_pytorch", original, shapes, taps, lambda y: {"logits": y.transpose(0, 1)})


def test_easyocr():
  parity.import_torchvision()
  module = wheels.load("easyocr", ["easyocr.model.modules", "easyocr.model.vgg_model"])

  class WithoutText(module.Model):  # its forward asks for a text that it never reads
    def forward(self, image):
      return super().forward(image, None)

  original = WithoutText(1, 256, 256, 97)
  taps = {"features": "FeatureExtraction", "sequence": "SequenceModeling"}
  compare("crnn_easyocr", "easyocr", original, ((2, 64, 100, 1), (1, 32, 67, 1)), taps)


def test_easyocrs_first_generation():
  parity.import_torchvision()
  module = wheels.load("easyocr", ["easyocr.model.modules", "easyocr.model.model"])

  class WithoutText(module.Model):
    def forward(self, image):
      return super().forward(image, None)

  original = WithoutText(1, 512, 512, 168)
  taps = {"features": "FeatureExtraction", "sequence": "SequenceModeling"}
  compare("crnn_resnet", "easyocr", original, ((2, 64, 100, 1), (1, 48, 67, 1)), taps)


@pytest.mark.parametrize("backbone", ["vgg16_bn", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_doctr(backbone):
  parity.import_torchvision()
  module = wheels.load(
    "doctr",
    [
      "doctr.utils.repr", "doctr.datasets.vocabs", "doctr.models.classification.vgg.pytorch",
      "doctr.models.classification.mobilenet.pytorch", "doctr.models.recognition.core",
      "doctr.models.recognition.crnn.pytorch",
    ],
    {
      "doctr.models.utils": {"load_pretrained_params": None},
      "doctr.datasets": {"decode_sequence": None, "encode_sequences": None},
    },
  )  # fmt: skip
  name = f"crnn_{backbone}"
  original = getattr(module, name)(pretrained_backbone=False, exportable=True)
  shapes = ((2, 32, 64, 3), (1, 32, 90, 3))
  compare(name, "doctr", original, shapes, {"features": "feat_extractor"}, dict)
