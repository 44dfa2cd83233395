"""DeepLabv3 and FCN on dilated ResNets, as torchvision has them.

Chen et al. 2017, arXiv:1706.05587 (atrous spatial pyramid pooling at output stride 8, its rates
doubled for that); the FCN is the head of Long et al. on the same backbone.  Logits are enlarged
bilinearly to the size of the picture.  Submodules carry torchvision's names.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.classify import resnet
from zoo.layers import Numerics
from zoo.ops.resize import bilinear
from zoo.weights import VOC, Preprocess, Weights


class FCNHead(nn.Module):
  """A quarter of the channels by 3x3, then classes by 1x1: [b h w c] -> [b h w classes]."""

  num_classes: int
  dropout: float = 0.1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.act(n.norm(train, name="1")(n.conv(x.shape[-1] // 4, 3, name="0")(x)))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return n.conv(self.num_classes, bias=True, name="4")(x)


class ASPP(nn.Module):
  """1x1, three dilated 3x3 and the mean of the map, side by side: [b h w c] -> [b h w width]."""

  width: int = 256
  rates: tuple[int, ...] = (12, 24, 36)
  dropout: float = 0.5
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, ys = self.numerics, []

    def layer(x, name, kernel=1, rate=1):
      conv = n.conv(self.width, kernel, dilation=rate, name=f"{name}_conv")
      return n.act(n.norm(train, name=f"{name}_bn")(conv(x)))

    ys = [layer(x, "convs_0")]
    ys += [layer(x, f"convs_{i}", 3, rate) for i, rate in enumerate(self.rates, start=1)]
    mean = layer(x.mean((1, 2), keepdims=True), f"convs_{len(ys)}")
    ys.append(jnp.broadcast_to(mean, ys[0].shape))
    x = layer(jnp.concatenate(ys, axis=-1), "project")
    return nn.Dropout(self.dropout, deterministic=not train)(x)


class DeepLabHead(nn.Module):
  """ASPP, 3x3, classes by 1x1: [b h w c] -> [b h w classes]."""

  num_classes: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = ASPP(numerics=n, name="0")(x, train=train)
    x = n.act(n.norm(train, name="2")(n.conv(x.shape[-1], 3, name="1")(x)))
    return n.conv(self.num_classes, bias=True, name="4")(x)


class Dilated(nn.Module):
  """A head on a dilated backbone: its end points, "logits" and "aux_logits" [b h w classes]."""

  backbone: Callable[..., nn.Module]  # a variant of the zoo: takes num_classes, numerics and name
  head: Callable[..., nn.Module] = FCNHead
  num_classes: int | None = 21
  aux: bool = True  # a second head, on the last stage but one
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, size = self.numerics, image.shape[1:3]
    ends = self.backbone(num_classes=None, numerics=n, name="backbone")(image, train=train)
    if self.num_classes is None:
      return ends
    head = self.head(self.num_classes, numerics=n, name="classifier")
    ends["logits"] = bilinear(head(ends["stage4"], train=train), size)
    if self.aux:
      head = FCNHead(self.num_classes, numerics=n, name="aux_classifier")
      ends["aux_logits"] = bilinear(head(ends["stage3"], train=train), size)
    return ends


def _on(name: str, head) -> partial:
  return partial(Dilated, partial(resnet.VARIANTS[name], output_stride=8), head)


VARIANTS = {
  "fcn_resnet18": _on("resnet18", FCNHead),
  "fcn_resnet50": _on("resnet50", FCNHead),
  "fcn_resnet101": _on("resnet101", FCNHead),
  "deeplabv3_resnet50": _on("resnet50", DeepLabHead),
  "deeplabv3_resnet101": _on("resnet101", DeepLabHead),
}
STAGES = ("backbone", "classifier|aux_classifier")


PIXELS = Preprocess(520, 520)  # of the shorter side; the longer one is not cut
UNPUBLISHED = {"fcn_resnet18": PIXELS}


def _torchvision(variant: str, digest: str) -> Weights:
  where = f"https://download.pytorch.org/models/{variant}_coco-{digest}.pth"
  return Weights(variant, "torchvision", where, digest, "BSD-3-Clause", PIXELS, classes=VOC)


WEIGHTS = {  # trained on the pictures of COCO, for the classes of VOC
  f"{variant}.tv1": _torchvision(variant, digest)
  for variant, digest in (
    ("fcn_resnet50", "1167a1af"), ("fcn_resnet101", "7ecb50ca"),
    ("deeplabv3_resnet50", "cd0a2569"), ("deeplabv3_resnet101", "586e9e4e"),
  )
}  # fmt: skip
