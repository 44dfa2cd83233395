"""DenseNet, and CheXNet.

Huang et al. 2016, arXiv:1608.06993; Rajpurkar et al. 2017, arXiv:1711.05225 (DenseNet-121 with 14
outputs, one for each finding in a chest radiograph; take the sigmoid of its logits). Submodules
carry torchvision's names. End points are the concatenated maps before the next stage's norm; only
the last is normalised and activated.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


class DenseLayer(nn.Module):
  """norm, act, 1x1, norm, act, 3x3: [b h w c] -> [b h w growth]."""

  growth: int
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.conv(4 * self.growth, name="conv1")(n.act(n.norm(train, name="norm1")(x)))
    x = n.conv(self.growth, 3, name="conv2")(n.act(n.norm(train, name="norm2")(x)))
    return nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)


class DenseBlock(nn.Module):
  """Every layer sees all before it: [b h w c] -> [b h w c + depth*growth]."""

  depth: int
  layer: partial  # of DenseLayer

  @nn.compact
  def __call__(self, x, *, train: bool):
    for i in range(1, self.depth + 1):
      y = self.layer(name=f"denselayer{i}")(x, train=train)
      x = jnp.concatenate([x, y], axis=-1)
    return x


class Transition(nn.Module):
  """Halves channels, height and width: [b h w c] -> [b h/2 w/2 c/2]."""

  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = n.conv(x.shape[-1] // 2, name="conv")(n.act(n.norm(train, name="norm")(x)))
    return n.avg_pool(x, 2, 2, padding="VALID")


class DenseNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  growth: int
  depths: tuple[int, ...]
  num_classes: int | None = 1000
  width: int | None = None  # of the stem; None is twice `growth`
  dropout: float = 0.0  # after each dense layer
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    layer = partial(DenseLayer, self.growth, self.dropout, n)
    x = n.conv(self.width or 2 * self.growth, 7, 2, padding=3, name="conv0")(image)
    x = ends["stem"] = n.act(n.norm(train, name="norm0")(x))
    x = n.max_pool(x, 3, 2, padding=1)
    for s, depth in enumerate(self.depths, start=1):
      x = ends[f"stage{s}"] = DenseBlock(depth, layer, name=f"denseblock{s}")(x, train=train)
      if s < len(self.depths):
        x = Transition(n, name=f"transition{s}")(x, train=train)
    x = ends[f"stage{len(self.depths)}"] = n.act(n.norm(train, name="norm5")(x))
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="classifier")(ends["pooled"])
    return ends


VARIANTS = {
  "densenet121": partial(DenseNet, 32, (6, 12, 24, 16)),
  "densenet161": partial(DenseNet, 48, (6, 12, 36, 24)),
  "densenet169": partial(DenseNet, 32, (6, 12, 32, 32)),
  "densenet201": partial(DenseNet, 32, (6, 12, 48, 32)),
  "densenet264": partial(DenseNet, 32, (6, 12, 64, 48)),
  "densenet264_k48": partial(DenseNet, 48, (6, 12, 64, 48)),
  "chexnet": partial(DenseNet, 32, (6, 12, 24, 16), num_classes=14),
}
STAGES = (
  "conv0|norm0", "denseblock1|transition1", "denseblock2|transition2", "denseblock3|transition3",
  "denseblock4|norm5", "classifier",
)  # fmt: skip

TORCH = "https://download.pytorch.org/models/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
BICUBIC = Preprocess(interpolation="bicubic")
CAFFE_PIXELS = Preprocess.caffe(103.94, 116.78, 123.68, scale=0.017)
# fmt: off
_TORCHVISION = (  # variant, hash, top1, top5; then timm's figures for the same arrays
  ("densenet121", "a639ec97", 74.434, 91.972, 74.764, 92.154),
  ("densenet161", "8d451a50", 77.138, 93.56, 77.358, 93.642),
  ("densenet169", "b2777c0a", 75.6, 92.806, 75.9, 93.028),
  ("densenet201", "c1103571", 76.896, 93.37, 77.286, 93.48),
)
WEIGHTS = {
  f"{v}.tv1": Weights(v, "torchvision", f"{TORCH}{v}-{sha}.pth", sha, "BSD-3-Clause", Preprocess(),
                      top1, top5)
  for v, sha, top1, top5, _, _ in _TORCHVISION
} | {
  f"{v}.tv_in1k": Weights(v, "timm", f"hf:timm/{v}.tv_in1k/model.safetensors", "", "Apache-2.0",
                          BICUBIC, top1, top5)
  for v, _, _, _, top1, top5 in _TORCHVISION
} | {
  "densenet121.ra_in1k": Weights(
    "densenet121", "timm", "hf:timm/densenet121.ra_in1k/model.safetensors", "", "Apache-2.0",
    BICUBIC),
  "chexnet.arnoweng": Weights(
    "chexnet", "arnoweng", "https://github.com/arnoweng/CheXNet/raw/master/model.pth.tar", "",
    "not stated", Preprocess()),
} | {
  # The authors' arrays in Caffe, linked there without a hash: give the file by --file.
  f"{v}.caffe": Weights(v, "caffe", "https://github.com/shicai/DenseNet-Caffe", "", "not stated",
                        CAFFE_PIXELS, top1, top5)
  for v, top1, top5 in (("densenet121", 74.91, 92.19), ("densenet169", 76.09, 93.14),
                        ("densenet201", 77.31, 93.64), ("densenet161", 77.64, 93.79))
} | {
  f"{v}.keras": Weights(v, "keras", f"{KERAS}{v}_weights_tf_dim_ordering_tf_kernels.h5", "",
                        "Apache-2.0", Preprocess(), top1, top5, fields={"eps": 1.001e-5})
  for v, top1, top5 in (("densenet121", 75.0, 92.3), ("densenet169", 76.2, 93.2),
                        ("densenet201", 77.3, 93.6))
}
# fmt: on
