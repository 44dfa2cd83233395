"""Dual Path Networks: a residual path and a dense path carried side by side.

Chen et al. 2017, arXiv:1707.01629.  Submodules carry timm's names, the MXNet originals'; DPN-68b
departs from DPN-68 by two 1x1 convolutions at a block's end where the paper splits one's output.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


class PreConv(nn.Module):
  """conv(relu(norm(x))), [b h w c] -> [b h/stride w/stride features]."""

  features: int
  kernel: int = 1
  stride: int = 1
  groups: int = 1
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.act(n.norm(train, name="bn")(x))
    return n.conv(self.features, self.kernel, self.stride, groups=self.groups, name="conv")(x)


class Block(nn.Module):
  """[b h w c] -> [b h/stride w/stride c + dense]: adds to the first `residual` channels.

  A projecting block sets the channels anew, to residual + 3 * dense.
  """

  inner: int  # channels of the 3x3
  residual: int
  dense: int  # new channels on the dense path
  stride: int = 1
  project: bool = False
  groups: int = 32
  split: bool = True  # one 1x1 makes both paths' channels; DPN-68b has one for each
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, residual, dense = self.numerics, self.residual, self.dense

    def pre(name, features, x, **fields):
      return PreConv(features, **fields, numerics=n, name=name)(x, train=train)

    carried = x
    if self.project:
      name = f"c1x1_w_s{self.stride}"
      carried = pre(name, residual + 2 * dense, x, stride=self.stride)
    y = pre("c1x1_a", self.inner, x)
    y = pre("c3x3_b", self.inner, y, kernel=3, stride=self.stride, groups=self.groups)
    if self.split:
      y = pre("c1x1_c", residual + dense, y)
      added, new = y[..., :residual], y[..., residual:]
    else:
      y = Activation(n, name="c1x1_c")(y, train=train)
      added, new = n.conv(residual, name="c1x1_c1")(y), n.conv(dense, name="c1x1_c2")(y)
    return jnp.concatenate([carried[..., :residual] + added, carried[..., residual:], new], -1)


class Activation(nn.Module):
  """relu(norm(x)) under a name of its own."""

  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    return self.numerics.act(self.numerics.norm(train, name="bn")(x))


class DPN(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  stem: int  # channels
  inner: int  # channels of the first stage's 3x3; doubled at each stage
  groups: int
  depths: tuple[int, ...]
  dense: tuple[int, ...]  # new channels of each block on the dense path, by stage
  residual: int = 256  # channels of the first stage's residual path; doubled at each stage
  stem_kernel: int = 7
  split: bool = True
  num_classes: int | None = 1000
  dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    block = partial(Block, groups=self.groups, split=self.split, numerics=n)
    x = Stem(self.stem, self.stem_kernel, n, name="conv1_1")(image, train=train)
    ends["stem"], x = x, n.max_pool(x, 3, 2)
    for s, (depth, dense) in enumerate(zip(self.depths, self.dense)):
      for i in range(depth):
        stride = 2 if s > 0 and i == 0 else 1
        inner, residual = self.inner * 2**s, self.residual * 2**s
        name = f"conv{s + 2}_{i + 1}"
        x = block(inner, residual, dense, stride, i == 0, name=name)(x, train=train)
      ends[f"stage{s + 1}"] = x
    x = Activation(n, name="conv5_bn_ac")(x, train=train)
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends


class Stem(nn.Module):
  """relu(norm(conv(image))), [b h w c] -> [b h/2 w/2 features]."""

  features: int
  kernel: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    return n.act(n.norm(train, name="bn")(n.conv(self.features, self.kernel, 2, name="conv")(x)))


SMALL = partial(DPN, 10, 128, 32, (3, 4, 12, 3), (16, 32, 32, 64), residual=64, stem_kernel=3)
# fmt: off
VARIANTS = {
  "dpn68": SMALL,
  "dpn68b": partial(SMALL, split=False),
  "dpn92": partial(DPN, 64, 96, 32, (3, 4, 20, 3), (16, 32, 24, 128)),
  "dpn98": partial(DPN, 96, 160, 40, (3, 6, 20, 3), (16, 32, 32, 128)),
  "dpn107": partial(DPN, 128, 200, 50, (4, 8, 20, 3), (20, 64, 64, 128)),
  "dpn131": partial(DPN, 128, 160, 40, (4, 8, 28, 3), (16, 32, 32, 128)),
}
STAGES = ("conv1_1", "conv2_.*", "conv3_.*", "conv4_.*", "conv5_.*", "classifier")

CADENE = "http://data.lip6.fr/cadene/pretrainedmodels/"
MEAN, STD = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3  # the MXNet originals'
MX = Preprocess(mean=MEAN, std=STD, interpolation="bicubic")
PORTED = Preprocess(mean=MEAN, std=STD)
# The originals of 68b, 92 and 107 were first trained on 5000 classes of ImageNet.
WEIGHTS = {
  "dpn68.mx_in1k": Weights(
    "dpn68", "timm", "hf:timm/dpn68.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=76.304, top5=92.994),
  "dpn68.cad": Weights(
    "dpn68", "cadene", CADENE + "dpn68-4af7d88d2.pth", "4af7d88d2", "not stated", PORTED,
    top1=75.868, top5=92.774),
  "dpn68b.mx_in1k": Weights(
    "dpn68b", "timm", "hf:timm/dpn68b.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=77.494, top5=93.834),
  "dpn68b.ra_in1k": Weights(
    "dpn68b", "timm", "hf:timm/dpn68b.ra_in1k/model.safetensors", "", "Apache-2.0",
    Preprocess(resize=235, interpolation="bicubic"), top1=78.546, top5=93.982),
  "dpn92.mx_in1k": Weights(
    "dpn92", "timm", "hf:timm/dpn92.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=80.032, top5=94.876),
  "dpn92.cad": Weights(
    "dpn92", "cadene", CADENE + "dpn92_extra-fda993c95.pth", "fda993c95", "not stated", PORTED,
    top1=79.4, top5=94.62),
  "dpn98.mx_in1k": Weights(
    "dpn98", "timm", "hf:timm/dpn98.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=79.664, top5=94.644),
  "dpn131.mx_in1k": Weights(
    "dpn131", "timm", "hf:timm/dpn131.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=79.836, top5=94.708),
  "dpn107.mx_in1k": Weights(
    "dpn107", "timm", "hf:timm/dpn107.mx_in1k/model.safetensors", "", "Apache-2.0", MX,
    top1=80.166, top5=94.932),
  "dpn107.cad": Weights(
    "dpn107", "cadene", CADENE + "dpn107_extra-b7f9f4cc9.pth", "b7f9f4cc9", "not stated", PORTED,
    top1=79.746, top5=94.684),
}  # fmt: on
