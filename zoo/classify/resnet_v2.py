"""ResNet v2: residual networks with identity shortcuts and pre-activation.

He et al. 2016, arXiv:1603.05027.  Four published nets share the name. `preresnet*` (pytorchcv)
normalise the stem; `resnetv2_*` (timm) do not; `resnet*v2` (Keras) do not either, have biases where
no norm follows, stride in a stage's last block and pool the stem's output padded with zeros, which
TF-slim's, otherwise the same, do not.
Submodules carry torchvision's names of ResNet; the last norm is `norm`.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics, dilate
from zoo.ops.forms import every
from zoo.weights import Preprocess, Weights


class Block(nn.Module):
  """shortcut(x) + residual(relu(norm(x))), [b h w c] -> [b h/stride w/stride out]."""

  width: int
  stride: int = 1
  bottleneck: bool = True  # 1x1, 3x3, 1x1 with 4x expansion; else 3x3, 3x3
  stride_first: bool = False  # in the first 1x1, as in the paper, not in the 3x3
  bias: bool = False  # of the convolutions that no norm follows
  dilation: tuple[int, int] = (1, 1)  # of the strided convolution, and of a basic block's second
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    conv, out = n.conv, self.width * (4 if self.bottleneck else 1)

    def pre(i, x):
      return n.act(n.norm(train, name=f"bn{i}")(x))

    y = active = pre(1, x)
    if self.bottleneck:
      first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
      y = conv(self.width, 1, first, name="conv1")(y)
      y = conv(self.width, 3, second, dilation=self.dilation[0], name="conv2")(pre(2, y))
      y = conv(out, bias=self.bias, name="conv3")(pre(3, y))
    else:
      y = conv(self.width, 3, self.stride, dilation=self.dilation[0], name="conv1")(y)
      y = conv(out, 3, dilation=self.dilation[1], bias=self.bias, name="conv2")(pre(2, y))
    if x.shape[-1] != out:
      x = conv(out, 1, self.stride, bias=self.bias, name="downsample_0")(active)
    elif self.stride > 1:
      x = every(x, (self.stride, self.stride))
    return n.materialized(x + y)


class ResNetV2(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  Stages end in plain sums; what follows normalises them.
  """

  depths: tuple[int, ...]
  num_classes: int | None = 1000
  block: partial = partial(Block)
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  stride_first: bool = False
  stride_last: bool = False  # in a stage's last block, not in the next stage's first
  stem_norm: bool = True
  zero_pool: bool = False  # the stem's pool sees zeros around its input, not minus infinity
  same_pool: bool = False  # it pads as TensorFlow does, where the rest pads as torch does
  bias: bool = False
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, last = self.numerics, {}, len(self.depths)
    x = n.conv(64, 7, 2, padding=3, bias=self.bias, name="conv1")(image)
    if self.stem_norm:
      x = n.act(n.norm(train, name="bn1")(x))
    ends["stem"] = x
    if self.zero_pool:
      x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    padding = "SAME" if self.same_pool else 0 if self.zero_pool else 1
    x = n.max_pool(x, 3, 2, padding=padding)
    block = partial(self.block, stride_first=self.stride_first, bias=self.bias, numerics=n)
    strides = (2, 2, 2, 1) if self.stride_last else (1, 2, 2, 2)
    plan = dilate(strides, self.output_stride, 4)
    for s, (depth, (stride, before, dilation)) in enumerate(zip(self.depths, plan), start=1):
      turn = depth - 1 if self.stride_last else 0  # the block that strides
      for i in range(depth):
        if i == turn and strides[s - 1] == 2:
          ends[f"stage{s if self.stride_last else s - 1}"] = x
        x = block(
          32 * 2**s, stride if i == turn else 1, name=f"layer{s}_{i}",
          dilation=(before if i <= turn else dilation, before if i < turn else dilation),
        )(x, train=train)  # fmt: skip
    ends[f"stage{last}"] = x
    x = n.act(n.norm(train, name="norm")(x))
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


BASIC = partial(Block, bottleneck=False)
TIMM = partial(ResNetV2, stem_norm=False)
KERAS = partial(
  TIMM, stride_last=True, zero_pool=True, bias=True, numerics=Numerics(eps=1.001e-5)
)  # fmt: skip
VARIANTS = {
  "preresnet18": partial(ResNetV2, (2, 2, 2, 2), block=BASIC),
  "preresnet34": partial(ResNetV2, (3, 4, 6, 3), block=BASIC),
  "preresnet50": partial(ResNetV2, (3, 4, 6, 3)),
  "preresnet101": partial(ResNetV2, (3, 4, 23, 3)),
  "preresnet152": partial(ResNetV2, (3, 8, 36, 3)),
  "preresnet200": partial(ResNetV2, (3, 24, 36, 3)),
  "preresnet269": partial(ResNetV2, (3, 30, 48, 8)),
  "resnetv2_50": partial(TIMM, (3, 4, 6, 3)),
  "resnetv2_101": partial(TIMM, (3, 4, 23, 3)),
  "resnetv2_152": partial(TIMM, (3, 8, 36, 3)),
  "resnet50v2": partial(KERAS, (3, 4, 6, 3)),
  "resnet101v2": partial(KERAS, (3, 4, 23, 3)),
  "resnet152v2": partial(KERAS, (3, 8, 36, 3)),
}
_ENDS = ("layer1_.*", "layer2_.*", "layer3_.*", "layer4_.*|norm", "fc")
STAGES = {
  name: ("conv1|bn1" if name.startswith("pre") else "conv1", *_ENDS) for name in VARIANTS
}  # fmt: skip

# fmt: off
PYTORCHCV = "https://github.com/osmr/imgclsmob/releases/download/"
KERAS_FILES = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
FIRST = {"stride_first": True}
A1H = Preprocess(224, 235, (0.5,) * 3, (0.5,) * 3, "bicubic")  # 224 is 0.95 of it
KERAS_PIXELS = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
SLIM = {"same_pool": True, "zero_pool": False, "eps": 1e-5, "num_classes": 1001}
_SLIM = {
  f"{v}.slim": Weights(
    v, "slim", "https://download.tensorflow.org/models/"
    f"resnet_v2_{v[6:-2]}_2017_04_14.tar.gz#resnet_v2_{v[6:-2]}.ckpt", "", "Apache-2.0",
    Preprocess(299, 342, (0.5,) * 3, (0.5,) * 3), top1, top5, fields=SLIM)
  for v, top1, top5 in (
    ("resnet50v2", 75.6, 92.8), ("resnet101v2", 77.0, 93.7), ("resnet152v2", 77.8, 94.1),
  )
}
WEIGHTS = _SLIM | {
  "preresnet18.pcv": Weights(
    "preresnet18", "pytorchcv", PYTORCHCV + "v0.0.140/preresnet18-0972-5651bc2d.pth.zip", "",
    "not stated", top1=71.57, top5=90.28),
  "preresnet34.pcv": Weights(
    "preresnet34", "pytorchcv", PYTORCHCV + "v0.0.300/preresnet34-0774-fd5bd1e8.pth.zip", "",
    "not stated", top1=75.11, top5=92.26),
  "preresnet50.pcv_a": Weights(
    "preresnet50", "pytorchcv", PYTORCHCV + "v0.0.330/preresnet50-0647-222ca73b.pth.zip", "",
    "not stated", top1=77.6, top5=93.53, fields=FIRST),
  "preresnet50.pcv": Weights(
    "preresnet50", "pytorchcv", PYTORCHCV + "v0.0.307/preresnet50b-0655-8b60378e.pth.zip", "",
    "not stated", top1=77.49, top5=93.45),
  "preresnet101.pcv_a": Weights(
    "preresnet101", "pytorchcv", PYTORCHCV + "v0.0.504/preresnet101-0563-8ec82f7d.pth.zip", "",
    "not stated", top1=79.19, top5=94.37, fields=FIRST),
  "preresnet101.pcv": Weights(
    "preresnet101", "pytorchcv", PYTORCHCV + "v0.0.351/preresnet101b-0556-76bfe6d0.pth.zip", "",
    "not stated", top1=78.96, top5=94.44),
  "preresnet152.pcv_a": Weights(
    "preresnet152", "pytorchcv", PYTORCHCV + "v0.0.510/preresnet152-0464-baeb6c52.pth.zip", "",
    "not stated", top1=80.64, top5=95.36, fields=FIRST),
  "preresnet152.pcv": Weights(
    "preresnet152", "pytorchcv", PYTORCHCV + "v0.0.523/preresnet152b-0459-42c9fbcf.pth.zip", "",
    "not stated", top1=80.77, top5=95.41),
  "preresnet200.pcv": Weights(
    "preresnet200", "pytorchcv", PYTORCHCV + "v0.0.529/preresnet200b-0468-f82215f3.pth.zip", "",
    "not stated", top1=80.93, top5=95.32),
  "preresnet269.pcv": Weights(
    "preresnet269", "pytorchcv", PYTORCHCV + "v0.0.545/preresnet269b-0527-f38eca01.pth.zip", "",
    "not stated", top1=79.65, top5=94.73),
  "resnetv2_50.a1h_in1k": Weights(
    "resnetv2_50", "timm", "hf:timm/resnetv2_50.a1h_in1k/model.safetensors", "", "Apache-2.0",
    A1H, top1=80.41, top5=95.082),
  "resnetv2_101.a1h_in1k": Weights(
    "resnetv2_101", "timm", "hf:timm/resnetv2_101.a1h_in1k/model.safetensors", "", "Apache-2.0",
    A1H, top1=82.042, top5=95.866),
  "resnet50v2.keras": Weights(
    "resnet50v2", "keras", KERAS_FILES + "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5", "",
    "Apache-2.0", KERAS_PIXELS, top1=76.0, top5=93.0),
  "resnet101v2.keras": Weights(
    "resnet101v2", "keras", KERAS_FILES + "resnet101v2_weights_tf_dim_ordering_tf_kernels.h5", "",
    "Apache-2.0", KERAS_PIXELS, top1=77.2, top5=93.8),
  "resnet152v2.keras": Weights(
    "resnet152v2", "keras", KERAS_FILES + "resnet152v2_weights_tf_dim_ordering_tf_kernels.h5", "",
    "Apache-2.0", KERAS_PIXELS, top1=78.0, top5=94.2),
}  # fmt: on
