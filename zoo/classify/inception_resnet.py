"""Inception-ResNet v2, and v1 as FaceNet has it.

Szegedy et al. 2016, arXiv:1602.07261; Schroff et al. 2015, arXiv:1503.03832. Submodules carry the
names of timm (v2) and of the PyTorch FaceNet (v1), which ends in an embedding of 512 numbers
before the classes. Both follow the TensorFlow implementation: residuals are scaled, the last block
is neither scaled nor activated, and convolutions that rejoin the trunk have a bias and no norm.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Chains, Mixed, Numerics
from zoo.weights import Preprocess, Weights

DOWN = (3, 2, "VALID")
Branches = tuple[tuple[tuple, ...], ...]  # chains of `ConvNorm`'s first arguments


class Residual(nn.Module):
  """act(x + scale * rejoin(branches(x))): [b h w c] -> the same."""

  branches: Branches
  scale: float
  activate: bool = True
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    ys = [chain(x, f"branch{i}", *layers) for i, layers in enumerate(self.branches)]
    y = n.conv(x.shape[-1], bias=True, name="conv2d")(jnp.concatenate(ys, axis=-1))
    x = x + self.scale * y
    return n.materialized(n.act(x)) if self.activate else x


def stem(image, ends, chain: Chains):
  """Both versions' first layers, [b h w c] -> [b h/4 w/4 192]; fills in two end points."""
  x = chain(image, "conv2d_1a", (32, *DOWN))
  x = chain(x, "conv2d_2a", (32, 3, 1, "VALID"))
  x = ends["stem"] = chain(x, "conv2d_2b", (64, 3))
  x = chain(chain.numerics.max_pool(x, 3, 2, padding="VALID"), "conv2d_3b", (80,))
  x = ends["stage1"] = chain(x, "conv2d_4a", (192, 3, 1, "VALID"))
  return x


class InceptionResNetV2(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  num_classes: int | None = 1000
  depths: tuple[int, int, int] = (10, 20, 9)
  dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    chain = Chains(n, train)
    x = n.max_pool(stem(image, ends, chain), 3, 2, padding="VALID")
    x = MIXED_5B(numerics=n, name="mixed_5b")(x, train=train)
    for i in range(self.depths[0]):
      x = BLOCK35(numerics=n, name=f"repeat_{i}")(x, train=train)
    ends["stage2"] = x
    x = MIXED_6A(numerics=n, name="mixed_6a")(x, train=train)
    for i in range(self.depths[1]):
      x = BLOCK17(numerics=n, name=f"repeat_1_{i}")(x, train=train)
    ends["stage3"] = x
    x = MIXED_7A(numerics=n, name="mixed_7a")(x, train=train)
    for i in range(self.depths[2]):
      x = BLOCK8(numerics=n, name=f"repeat_2_{i}")(x, train=train)
    x = BLOCK8(scale=1.0, activate=False, numerics=n, name="block8")(x, train=train)
    x = ends["stage4"] = chain(x, "conv2d_7b", (1536,))
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="classif")(x)
    return ends


class InceptionResNetV1(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  "pooled" is [b 512]: divided by its length it is FaceNet's embedding.
  """

  num_classes: int | None = 1000
  depths: tuple[int, int, int] = (5, 10, 5)
  embedding: int = 512
  dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    chain = Chains(n, train)
    x = chain(stem(image, ends, chain), "conv2d_4b", (256, *DOWN))
    for i in range(self.depths[0]):
      x = FACE35(numerics=n, name=f"repeat_1_{i}")(x, train=train)
    ends["stage2"] = x
    x = FACE_6A(numerics=n, name="mixed_6a")(x, train=train)
    for i in range(self.depths[1]):
      x = FACE17(numerics=n, name=f"repeat_2_{i}")(x, train=train)
    ends["stage3"] = x
    x = FACE_7A(numerics=n, name="mixed_7a")(x, train=train)
    for i in range(self.depths[2]):
      x = FACE8(numerics=n, name=f"repeat_3_{i}")(x, train=train)
    x = ends["stage4"] = FACE8(scale=1.0, activate=False, numerics=n, name="block8")(x, train=train)
    x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(jnp.mean(x, axis=(1, 2)))
    x = n.dense(self.embedding, bias=False, name="last_linear")(x)
    ends["pooled"] = n.norm(train, name="last_bn")(x)
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="logits")(ends["pooled"])
    return ends


# fmt: off
BLOCK35 = partial(Residual, (((32,),), ((32,), (32, 3)), ((32,), (48, 3), (64, 3))), scale=0.17)
BLOCK17 = partial(Residual, (((192,),), ((128,), (160, (1, 7)), (192, (7, 1)))), scale=0.10)
BLOCK8 = partial(Residual, (((192,),), ((192,), (224, (1, 3)), (256, (3, 1)))), scale=0.20)
MIXED_5B = partial(Mixed, (((96,),), ((48,), (64, 5)), ((64,), (96, 3), (96, 3))), 64)
MIXED_6A = partial(Mixed, (((384, *DOWN),), ((256,), (256, 3), (384, *DOWN))))
MIXED_7A = partial(Mixed, (((256,), (384, *DOWN)), ((256,), (288, *DOWN)),
                           ((256,), (288, 3), (320, *DOWN))))
FACE35 = partial(Residual, (((32,),), ((32,), (32, 3)), ((32,), (32, 3), (32, 3))), scale=0.17)
FACE17 = partial(Residual, (((128,),), ((128,), (128, (1, 7)), (128, (7, 1)))), scale=0.10)
FACE8 = partial(Residual, (((192,),), ((192,), (192, (1, 3)), (192, (3, 1)))), scale=0.20)
FACE_6A = partial(Mixed, (((384, *DOWN),), ((192,), (192, 3), (256, *DOWN))))
FACE_7A = partial(Mixed, (((256,), (384, *DOWN)), ((256,), (256, *DOWN)),
                          ((256,), (256, 3), (256, *DOWN))))
VARIANTS = {
  "inception_resnet_v2": partial(InceptionResNetV2),
  "inception_resnet_v1": partial(InceptionResNetV1),
}
STAGES = {
  "inception_resnet_v2": (
    "conv2d_[12].", "conv2d_(3b|4a)", r"mixed_5b|repeat_\d+", r"mixed_6a|repeat_1_\d+",
    r"mixed_7a|repeat_2_\d+|block8|conv2d_7b", "classif"),
  "inception_resnet_v1": (
    "conv2d_[12].", "conv2d_(3b|4a)", r"conv2d_4b|repeat_1_\d+", r"mixed_6a|repeat_2_\d+",
    r"mixed_7a|repeat_3_\d+|block8|last_.*", "logits"),
}
PIXELS = Preprocess(299, 333, (0.5,) * 3, (0.5,) * 3, "bicubic")
FACES = Preprocess(160, 160, (0.5,) * 3, (128 / 255,) * 3)  # of a face that fills the picture
FACENET = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
WEIGHTS = {
  "inception_resnet_v2.tf_in1k": Weights(
    "inception_resnet_v2", "timm", "hf:timm/inception_resnet_v2.tf_in1k/model.safetensors", "",
    "Apache-2.0", PIXELS, 80.434, 95.312),
  "inception_resnet_v2.tf_ens_adv_in1k": Weights(
    "inception_resnet_v2", "timm", "hf:timm/inception_resnet_v2.tf_ens_adv_in1k/model.safetensors",
    "", "Apache-2.0", PIXELS, 79.998, 94.94),
  "inception_resnet_v2.cadene": Weights(
    "inception_resnet_v2", "cadene",
    "https://data.lip6.fr/cadene/pretrainedmodels/inceptionresnetv2-520b38e4.pth", "520b38e4",
    "not stated", Preprocess(299, 341, (0.5,) * 3, (0.5,) * 3), 80.17, 95.234),
  "inception_resnet_v2.keras": Weights(
    "inception_resnet_v2", "keras",
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_resnet_v2/"
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5", "", "Apache-2.0",
    Preprocess(299, 342, (0.5,) * 3, (0.5,) * 3), 80.3, 95.3, fields={"norm_scale": False}),
  "inception_resnet_v2.slim": Weights(  # no hash is published
    "inception_resnet_v2", "slim", "https://download.tensorflow.org/models/"
    "inception_resnet_v2_2016_08_30.tar.gz#inception_resnet_v2_2016_08_30.ckpt", "", "Apache-2.0",
    Preprocess(299, 342, (0.5,) * 3, (0.5,) * 3), 80.4, 95.3,
    fields={"norm_scale": False, "num_classes": 1001}),
  "inception_resnet_v1.vggface2": Weights(
    "inception_resnet_v1", "facenet", f"{FACENET}20180402-114759-vggface2.pt", "", "MIT", FACES,
    fields={"num_classes": 8631}),
  "inception_resnet_v1.casia": Weights(
    "inception_resnet_v1", "facenet", f"{FACENET}20180408-102900-casia-webface.pt", "", "MIT",
    FACES, fields={"num_classes": 10575}),
  "inception_resnet_v1.pcv": Weights(
    "inception_resnet_v1", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.552/"
    "inceptionresnetv1-0480-f8b3e9e3.pth.zip", "", "MIT",
    Preprocess(299, 342), 80.37, 95.2),
}
# fmt: on
