"""Lite R-ASPP on MobileNet v3.  Howard et al. 2019, arXiv:1905.02244, section 6.4.

Departs as torchvision does: the gate comes from the mean of the whole map, and the coarse map has a
stride of 16.  Logits are enlarged bilinearly to the size of the picture.  Submodules carry
torchvision's names, the backbone's are those of `zoo.classify.mobilenet_v3`.
"""

from collections.abc import Callable
import dataclasses
from functools import partial

from flax import linen as nn

from zoo.classify import mobilenet_v3
from zoo.layers import Numerics
from zoo.ops.resize import bilinear
from zoo.weights import VOC, Preprocess, Weights


class Head(nn.Module):
  """A fine map [b h w c] and a coarse one [b h/2 w/2 d] -> [b h w classes]."""

  num_classes: int
  hidden: int = 128
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, fine, coarse, *, train: bool):
    n = self.numerics
    x = n.act(n.norm(train, name="cbr_1")(n.conv(self.hidden, name="cbr_0")(coarse)))
    gate = n.conv(self.hidden, name="scale_1")(coarse.mean((1, 2), keepdims=True))
    x = bilinear(x * nn.sigmoid(gate), fine.shape[1:3])
    low = n.conv(self.num_classes, bias=True, name="low_classifier")(fine)
    return low + n.conv(self.num_classes, bias=True, name="high_classifier")(x)


class LRASPP(nn.Module):
  """The backbone's end points and, given num_classes, "logits" [b h w classes]."""

  backbone: Callable[..., nn.Module]  # takes num_classes, numerics and name
  num_classes: int | None = 21
  numerics: Numerics = Numerics(eps=1e-3, momentum=0.99)  # of torchvision's MobileNet v3

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = self.backbone(num_classes=None, numerics=n, name="backbone")(image, train=train)
    if self.num_classes is not None:
      # The head's own norm has torch's constants.
      own = dataclasses.replace(n, eps=1e-5, momentum=0.9)
      head = Head(self.num_classes, numerics=own, name="classifier")
      logits = head(ends["first2"], ends["stage4"], train=train)
      ends["logits"] = bilinear(logits, image.shape[1:3])
    return ends


BACKBONE = partial(mobilenet_v3.VARIANTS["mobilenet_v3_large"], output_stride=16, firsts=True)
VARIANTS = {"lraspp_mobilenet_v3_large": partial(LRASPP, BACKBONE)}
STAGES = ("backbone", "classifier")
HAKAI = "pypi:hakai-segmentation==0.4.0/hakai_segmentation/data/LRASPP_MobileNetV3_"
TILE = Preprocess(512, 512)  # 256 pixels of an aerial picture and 128 around them


def _hakai(file: str, sha256: str, *classes: str) -> Weights:
  return Weights(
    "lraspp_mobilenet_v3_large", "torchvision", HAKAI + file, sha256, "MIT", TILE,
    fields={"num_classes": len(classes)}, classes=classes,
  )  # fmt: skip


WEIGHTS = {
  "lraspp_mobilenet_v3_large.tv1": Weights(
    "lraspp_mobilenet_v3_large", "torchvision",
    "https://download.pytorch.org/models/lraspp_mobilenet_v3_large-d234d4ea.pth", "d234d4ea",
    "BSD-3-Clause", Preprocess(520, 520), classes=VOC,
  ),
  "lraspp_mobilenet_v3_large.hakai_kelp": _hakai(
    "kelp_presence_jit.pt", "052cce5365d62563cba11ad9e0d64dbd1fa964ebe316e3f88b4726f1c162dc9b",
    "background", "kelp",
  ),
  "lraspp_mobilenet_v3_large.hakai_species": _hakai(
    "kelp_species_jit_miou=0.9634.pt",
    "7239ec87e6efa1fe10fe0d169e15ce5833a2ca5cb3836e7c40368c109666ed5b",
    "macrocystis", "nereocystis",
  ),
  "lraspp_mobilenet_v3_large.hakai_mussels": _hakai(
    "mussel_presence_jit_v2.pt",
    "040d0ecd21d1b5d82696704f37aa1414411997a23c218f48cb5d292e72a787f8", "background", "mussels",
  ),
}  # fmt: skip
