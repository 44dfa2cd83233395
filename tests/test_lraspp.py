"""LR-ASPP and its dilated backbone beside torchvision's."""

import pytest

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")

from convert import rules  # noqa: E402
from tests import beside, parity  # noqa: E402
import zoo  # noqa: E402


def test_torchvision():
  """Random arrays, an even and an odd picture; stage2 ends behind the map that the head reads."""
  make = parity.import_torchvision().models.segmentation.lraspp_mobilenet_v3_large
  original = make(weights=None, weights_backbone=None, num_classes=5)
  model = zoo.create("lraspp_mobilenet_v3_large", num_classes=5)
  images = beside.random_images((2, 64, 64, 3), (1, 65, 97, 3))
  taps = {"stage4": "backbone.16", "first2": "backbone.4", "stage2": "backbone.6",
          "stem": "backbone.1", "stage3": "backbone.12"}  # fmt: skip
  found = beside.errors(
    original, model, rules.of("lraspp", "torchvision"), images, taps,
    lambda y: {"logits": y["out"]},
  )  # fmt: skip
  assert max(found.values()) < 1e-4, found


def test_count():
  assert zoo.info("lraspp_mobilenet_v3_large").params == 3_221_538  # torchvision's own number
