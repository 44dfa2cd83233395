"""Inception v3.  Szegedy et al. 2015, arXiv:1512.00567.

Submodules carry torchvision's names. With `padding="tf"` the average pools leave padding out of the
count, as TensorFlow and Keras do; torchvision and timm count it, also where their weights come from
TensorFlow, and publish the accuracy of that.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Chains, ConvNorm, Numerics
from zoo.ops.conv import adaptive_avg_pool
from zoo.weights import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Weights

DOWN = (3, 2, "VALID")


class InceptionA(nn.Module):
  """[b h w c] -> [b h w 224+pooled]."""

  pooled: int  # channels after the pool
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    y5 = chain(x, "branch5x5_1", (48,))
    y3 = chain(chain(x, "branch3x3dbl_1", (64,)), "branch3x3dbl_2", (96, 3))
    return jnp.concatenate([
      chain(x, "branch1x1", (64,)),
      chain(y5, "branch5x5_2", (64, 5)),
      chain(y3, "branch3x3dbl_3", (96, 3)),
      chain(n.avg_pool(x, 3, 1), "branch_pool", (self.pooled,)),
    ], axis=-1)  # fmt: skip


class InceptionB(nn.Module):
  """[b h w c] -> [b h/2 w/2 480+c]."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    y3 = chain(chain(x, "branch3x3dbl_1", (64,)), "branch3x3dbl_2", (96, 3))
    return jnp.concatenate([
      chain(x, "branch3x3", (384, *DOWN)),
      chain(y3, "branch3x3dbl_3", (96, *DOWN)),
      n.max_pool(x, 3, 2, padding="VALID"),
    ], axis=-1)  # fmt: skip


class InceptionC(nn.Module):
  """[b h w c] -> [b h w 768]."""

  width: int  # of the factorised 7x7 branches
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain, c = self.numerics, Chains(self.numerics, train), self.width
    y = z = x
    for i, layer in enumerate(((c,), (c, (1, 7)), (192, (7, 1))), start=1):
      y = chain(y, f"branch7x7_{i}", layer)
    layers = ((c,), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7)))
    for i, layer in enumerate(layers, start=1):
      z = chain(z, f"branch7x7dbl_{i}", layer)
    pooled = chain(n.avg_pool(x, 3, 1), "branch_pool", (192,))
    return jnp.concatenate([chain(x, "branch1x1", (192,)), y, z, pooled], axis=-1)


class InceptionD(nn.Module):
  """[b h w c] -> [b h/2 w/2 512+c]."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    y = chain(chain(x, "branch3x3_1", (192,)), "branch3x3_2", (320, *DOWN))
    z = x
    for i, layer in enumerate(((192,), (192, (1, 7)), (192, (7, 1)), (192, *DOWN)), start=1):
      z = chain(z, f"branch7x7x3_{i}", layer)
    return jnp.concatenate([y, z, n.max_pool(x, 3, 2, padding="VALID")], axis=-1)


class InceptionE(nn.Module):
  """[b h w c] -> [b h w 2048]; two branches end in a 1x3 and a 3x1 side by side."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    y = chain(x, "branch3x3_1", (384,))
    z = chain(chain(x, "branch3x3dbl_1", (448,)), "branch3x3dbl_2", (384, 3))
    return jnp.concatenate([
      chain(x, "branch1x1", (320,)),
      chain(y, "branch3x3_2a", (384, (1, 3))),
      chain(y, "branch3x3_2b", (384, (3, 1))),
      chain(z, "branch3x3dbl_3a", (384, (1, 3))),
      chain(z, "branch3x3dbl_3b", (384, (3, 1))),
      chain(n.avg_pool(x, 3, 1), "branch_pool", (192,)),
    ], axis=-1)  # fmt: skip


class Auxiliary(nn.Module):
  """A second classifier on the 17x17 map: [b h w c] -> [b num_classes].

  Maps too small for its pool and its 5x5 kernel are averaged to 5x5.
  """

  num_classes: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    if min(x.shape[1:3]) >= 17:
      x = n.avg_pool(x, 5, 3, padding="VALID")
    else:
      x = adaptive_avg_pool(x, (5, 5))
    x = ConvNorm(128, numerics=n, name="conv0")(x, train=train)
    x = ConvNorm(768, 5, 1, "VALID", numerics=n, name="conv1")(x, train=train)
    return n.dense(self.num_classes, name="fc")(jnp.mean(x, axis=(1, 2)))


class InceptionV3(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  When training also "aux_logits".
  """

  num_classes: int | None = 1000
  aux: bool = True
  last: str = "stage4"  # a backbone that ends earlier has no more arrays than that
  dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    chain = Chains(n, train)
    x = chain(image, "Conv2d_1a_3x3", (32, *DOWN))
    x = chain(x, "Conv2d_2a_3x3", (32, 3, 1, "VALID"))
    x = ends["stem"] = chain(x, "Conv2d_2b_3x3", (64, 3))
    x = chain(n.max_pool(x, 3, 2, padding="VALID"), "Conv2d_3b_1x1", (80,))
    x = ends["stage1"] = chain(x, "Conv2d_4a_3x3", (192, 3, 1, "VALID"))
    x = n.max_pool(x, 3, 2, padding="VALID")
    for name, block in (
      ("5b", InceptionA(32, n, name="Mixed_5b")),
      ("5c", InceptionA(64, n, name="Mixed_5c")),
      ("stage2", InceptionA(64, n, name="Mixed_5d")),
      ("6a", InceptionB(n, name="Mixed_6a")),
      ("6b", InceptionC(128, n, name="Mixed_6b")),
      ("6c", InceptionC(160, n, name="Mixed_6c")),
      ("6d", InceptionC(160, n, name="Mixed_6d")),
      ("stage3", InceptionC(192, n, name="Mixed_6e")),
      ("7a", InceptionD(n, name="Mixed_7a")),
      ("7b", InceptionE(n, name="Mixed_7b")),
      ("stage4", InceptionE(n, name="Mixed_7c")),
    ):
      x = block(x, train=train)
      if name.startswith("stage"):
        ends[name] = x
      if name == self.last != "stage4":
        return ends
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      if self.aux and (train or self.is_initializing()):
        logits = Auxiliary(self.num_classes, n, name="AuxLogits")(ends["stage3"], train=train)
        ends |= {"aux_logits": logits} if train else {}
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


VARIANTS = {"inception_v3": partial(InceptionV3)}
STAGES = (
  "Conv2d_[12].*", "Conv2d_[34].*", "Mixed_5.", "Mixed_6.", "Mixed_7.", "fc|AuxLogits",
)  # fmt: skip


def _pixels(resize, interpolation, mean=(0.5,) * 3, std=(0.5,) * 3):
  return Preprocess(299, resize, mean, std, interpolation)


# fmt: off
TIMM = _pixels(341, "bicubic")
WEIGHTS = {
  "inception_v3.tv1": Weights(  # torchvision feeds it pixels in -1..1
    "inception_v3", "torchvision",
    "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth", "0cc3c7bd",
    "BSD-3-Clause", _pixels(342, "bilinear"), 77.294, 93.45),
  "inception_v3.tv_in1k": Weights(
    "inception_v3", "timm", "hf:timm/inception_v3.tv_in1k/model.safetensors", "", "Apache-2.0",
    TIMM, 77.472, 93.468, fields={"aux": False}),
  "inception_v3.gluon_in1k": Weights(
    "inception_v3", "timm", "hf:timm/inception_v3.gluon_in1k/model.safetensors", "", "Apache-2.0",
    _pixels(341, "bicubic", IMAGENET_MEAN, IMAGENET_STD), 78.806, 94.372, fields={"aux": False}),
  "inception_v3.tf_in1k": Weights(
    "inception_v3", "timm", "hf:timm/inception_v3.tf_in1k/model.safetensors", "", "Apache-2.0",
    TIMM, 77.866, 93.644, fields={"aux": False}),
  "inception_v3.tf_adv_in1k": Weights(
    "inception_v3", "timm", "hf:timm/inception_v3.tf_adv_in1k/model.safetensors", "",
    "Apache-2.0", TIMM, 77.598, 93.726, fields={"aux": False}),
  "inception_v3.keras": Weights(
    "inception_v3", "keras",
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5", "", "Apache-2.0",
    _pixels(342, "bilinear"), 77.9, 93.7,
    fields={"aux": False, "padding": "tf", "norm_scale": False}),
  "inception_v3.slim": Weights(
    "inception_v3", "slim", "https://download.tensorflow.org/models/"
    "inception_v3_2016_08_28.tar.gz#inception_v3.ckpt", "", "Apache-2.0",
    _pixels(342, "bilinear"), 78.0, 93.9,
    fields={"padding": "tf", "norm_scale": False, "num_classes": 1001}),
  "inception_v3.pcv": Weights(
    "inception_v3", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.552/"
    "inceptionv3-0533-025fb71c.pth.zip", "", "not stated",
    _pixels(342, "bilinear", IMAGENET_MEAN, IMAGENET_STD), 79.56, 94.67, fields={"aux": False}),
}
# fmt: on
