"""BN-Inception, also called Inception v2.  Ioffe and Szegedy 2015, arXiv:1502.03167.

Layers carry the names of the Caffe model that everybody's weights descend from, by way of Cadene's
port: one flat list. Convolutions have biases although a norm follows. Departs in that maps of odd
size fit too (there the original's pools and convolutions of stride 2 disagree by one). TF-slim's
form has a separable stem without a norm, no other biases, and two narrower blocks.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


class BNInception(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  num_classes: int | None = 1000
  bias: bool = True  # of convolutions in front of a norm
  separable: int = 0  # maps that a depthwise stem makes of each channel; 0: it is not depthwise
  narrow: int = 128  # channels after the pools of 4c and 4d
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}

    def unit(x, name, features, kernel=1, stride=1):
      x = n.conv(features, kernel, stride, bias=self.bias, name=name)(x)
      return n.act(n.norm(train, name=f"{name}_bn")(x))

    def stem(x, name):
      if not self.separable:
        return unit(x, name, 64, 7, 2)
      c = x.shape[-1]
      x = n.conv(self.separable * c, 7, 2, groups=c, name=f"{name}_depthwise")(x)
      return n.act(n.conv(64, bias=True, name=name)(x))

    def pool(x, padding="VALID"):
      if n.padding == "tf":
        return n.max_pool(x, 3, 2)
      return n.max_pool(x, 3, 2, padding=padding, ceil=True)

    def inception(x, name, plain, single, double, pooled):
      """1x1; 3x3; two 3x3; a pool: without `plain` the block has stride 2 and keeps the pool."""
      at, stride = f"inception_{name}_", 1 if plain else 2
      y3 = unit(x, f"{at}3x3_reduce", single[0])
      y5 = unit(x, f"{at}double_3x3_reduce", double[0])
      y5 = unit(y5, f"{at}double_3x3_1", double[1], 3)
      out = [
        unit(y3, f"{at}3x3", single[1], 3, stride),
        unit(y5, f"{at}double_3x3_2", double[1], 3, stride),
      ]
      if not plain:
        return jnp.concatenate([*out, pool(x, ((0, 1), (0, 1)))], axis=-1)
      # The last block's pool takes the maximum (Table 1 of the technical report's model).
      spread = n.max_pool if name == "5b" else n.avg_pool
      pooled = self.narrow if name in NARROW else pooled
      last = unit(spread(x, 3, 1, padding=1), f"{at}pool_proj", pooled)
      return jnp.concatenate([unit(x, f"{at}1x1", plain), *out, last], axis=-1)

    x = ends["stem"] = stem(image, "conv1_7x7_s2")
    x = unit(pool(x), "conv2_3x3_reduce", 64)
    x = ends["stage1"] = unit(x, "conv2_3x3", 192, 3)
    x = pool(x)
    for name, *widths in BLOCKS:
      x = inception(x, name, *widths)
      if name in ENDS:
        ends[ENDS[name]] = x
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="last_linear")(x)
    return ends


# fmt: off
BLOCKS = (  # 1x1; reduction and 3x3; reduction and double 3x3; after the pool
  ("3a", 64, (64, 64), (64, 96), 32),
  ("3b", 64, (64, 96), (64, 96), 64),
  ("3c", 0, (128, 160), (64, 96), 0),
  ("4a", 224, (64, 96), (96, 128), 128),
  ("4b", 192, (96, 128), (96, 128), 128),
  ("4c", 160, (128, 160), (128, 160), 128),
  ("4d", 96, (128, 192), (160, 192), 128),
  ("4e", 0, (128, 192), (192, 256), 0),
  ("5a", 352, (192, 320), (160, 224), 128),
  ("5b", 352, (192, 320), (192, 224), 128),
)
NARROW = ("4c", "4d")
ENDS = {"3b": "stage2", "4d": "stage3", "5b": "stage4"}
VARIANTS = {"bn_inception": partial(BNInception)}
STAGES = ("conv1_.*", "conv2_.*", "inception_3[ab]_.*", "inception_(3c|4[abcd])_.*",
          "inception_(4e|5[ab])_.*", "last_linear")
CAFFE_PIXELS = Preprocess.caffe(104, 117, 128)
WEIGHTS = {
  "bn_inception.cadene": Weights(
    "bn_inception", "cadene",
    "https://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth", "52deb4733",
    "not stated", CAFFE_PIXELS, 73.524, 91.562),
  "bn_inception.pcv": Weights(
    "bn_inception", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.405/"
    "bninception-0774-d79ba5f5.pth.zip", "", "MIT", Preprocess(), 74.63, 92.26),
  "bn_inception.slim": Weights(
    "bn_inception", "slim", "https://download.tensorflow.org/models/"
    "inception_v2_2016_08_28.tar.gz#inception_v2.ckpt", "", "Apache-2.0",
    Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), 73.9, 91.8,
    fields={"bias": False, "separable": 8, "narrow": 96, "eps": 1e-3, "padding": "tf",
            "norm_scale": False, "num_classes": 1001}),
}
# fmt: on
