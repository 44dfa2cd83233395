"""SENet: SE-ResNet, SE-ResNeXt and SENet-154.

Hu et al. 2017, arXiv:1709.01507.  Two forms of each net are published: the authors' own in Caffe
(`legacy_*`, after timm), whose first pool has no padding but keeps the last, partly outside, window
and whose SE-ResNets stride in the first 1x1; and later retrainings, with a padded pool and the
stride in the 3x3.  Submodules carry torchvision's and timm's names.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics, SqueezeExcite, dilate
from zoo.weights import Preprocess, Weights


class Block(nn.Module):
  """relu(shortcut(x) + gate(residual(x))), [b h w c] -> [b h/stride w/stride 4*width]."""

  width: int
  stride: int = 1
  stride_first: bool = False  # in the first 1x1, as Caffe has it, not in the 3x3
  groups: int = 1
  group_width: int = 64  # channels of one group where width is 64
  squeeze: int = 1  # the first 1x1 is so many times narrower than the 3x3
  down_kernel: int = 1  # of a shortcut that strides
  reduction: int = 16  # of the gate's hidden layer
  dilation: tuple[int, int] = (1, 1)  # of the block, and of those behind it in the stage
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    conv, norm = n.conv, partial(n.norm, train)
    inner, out = self.width * self.group_width // 64 * self.groups, 4 * self.width
    first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
    y = n.act(norm(name="bn1")(conv(inner // self.squeeze, 1, first, name="conv1")(x)))
    here, stage = self.dilation
    y = conv(inner, 3, second, dilation=here, groups=self.groups, name="conv2")(y)
    y = norm(name="bn3")(conv(out, name="conv3")(n.act(norm(name="bn2")(y))))
    y = SqueezeExcite(out // self.reduction, numerics=n, name="se")(y)
    if self.stride > 1 or x.shape[-1] != out:
      kernel = self.down_kernel if self.stride > 1 or stage > 1 else 1
      x = conv(out, kernel, self.stride, dilation=here, name="downsample_0")(x)
      x = norm(name="downsample_1")(x)
    return n.materialized(n.act(x + y))


class SENet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  depths: tuple[int, ...]
  num_classes: int | None = 1000
  block: partial = partial(Block)
  stride_first: bool = False
  deep_stem: bool = False  # three 3x3 instead of one 7x7
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  ceil_pool: bool = False  # the first pool as Caffe's: no padding, the last window kept
  dropout: float = 0.0  # before the head; SENet-154 was trained with 0.2
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x, stem = image, ((64, 3, 2), (64, 3, 1), (128, 3, 1)) if self.deep_stem else ((64, 7, 2),)
    for i, (width, kernel, stride) in enumerate(stem, start=1):
      x = n.conv(width, kernel, stride, name=f"conv{i}")(x)
      x = n.act(n.norm(train, name=f"bn{i}")(x))
    ends["stem"] = x
    x = n.max_pool(x, 3, 2, padding=0 if self.ceil_pool else None, ceil=self.ceil_pool)
    block = partial(self.block, stride_first=self.stride_first, numerics=n)
    plan = dilate((1, 2, 2, 2), self.output_stride, 4)
    for s, (depth, (stride, before, dilation)) in enumerate(zip(self.depths, plan), start=1):
      for i in range(depth):
        x = block(
          32 * 2**s, stride if i == 0 else 1, name=f"layer{s}_{i}",
          dilation=(before if i == 0 else dilation, dilation),
        )(x, train=train)  # fmt: skip
      ends[f"stage{s}"] = x
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


RESNEXT = partial(Block, groups=32, group_width=4)
WIDE = partial(Block, groups=64, group_width=4, squeeze=2, down_kernel=3)
CAFFE = {"stride_first": True, "ceil_pool": True}
# fmt: off
VARIANTS = {
  "legacy_seresnet50": partial(SENet, (3, 4, 6, 3), **CAFFE),
  "legacy_seresnet101": partial(SENet, (3, 4, 23, 3), **CAFFE),
  "legacy_seresnet152": partial(SENet, (3, 8, 36, 3), **CAFFE),
  "legacy_seresnext50_32x4d": partial(SENet, (3, 4, 6, 3), block=RESNEXT, ceil_pool=True),
  "legacy_seresnext101_32x4d": partial(SENet, (3, 4, 23, 3), block=RESNEXT, ceil_pool=True),
  "legacy_senet154": partial(SENet, (3, 8, 36, 3), block=WIDE, deep_stem=True, ceil_pool=True),
  "seresnet50": partial(SENet, (3, 4, 6, 3)),
  "seresnet101": partial(SENet, (3, 4, 23, 3)),
  "seresnet152": partial(SENet, (3, 8, 36, 3)),
  "seresnext50_32x4d": partial(SENet, (3, 4, 6, 3), block=RESNEXT),
  "seresnext101_32x4d": partial(SENet, (3, 4, 23, 3), block=RESNEXT),
  "senet154": partial(SENet, (3, 8, 36, 3), block=WIDE, deep_stem=True),
}
STAGES = ("conv[123]|bn[123]", "layer1_.*", "layer2_.*", "layer3_.*", "layer4_.*", "fc")

TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/"
CADENE = "http://data.lip6.fr/cadene/pretrainedmodels/"
PYTORCHCV = "https://github.com/osmr/imgclsmob/releases/download/"
BICUBIC = Preprocess(interpolation="bicubic")
RSB = Preprocess(resize=235, interpolation="bicubic")  # 224 is 0.95 of it
AUTHORS = "https://github.com/hujie-frank/SENet"  # links the files, which nothing vouches for
WEIGHTS = {
  # The authors' own: give the file by --file. Of one crop.
  **{f"{v}.caffe": Weights(
    v, "caffe", AUTHORS, "", "Apache-2.0", Preprocess.caffe(), top1, top5)
    for v, top1, top5 in (
      ("legacy_seresnet50", 77.63, 93.64), ("legacy_seresnet101", 78.25, 94.1),
      ("legacy_seresnet152", 78.66, 94.46), ("legacy_seresnext50_32x4d", 79.03, 94.46),
      ("legacy_seresnext101_32x4d", 80.19, 95.04), ("legacy_senet154", 81.32, 95.53),
    )},
  "legacy_seresnet50.in1k": Weights(
    "legacy_seresnet50", "cadene", TIMM + "v0.1-cadene/se_resnet50-ce0d4300.pth", "ce0d4300",
    "Apache-2.0", top1=77.65, top5=93.732),
  "legacy_seresnet101.in1k": Weights(
    "legacy_seresnet101", "cadene", TIMM + "v0.1-cadene/se_resnet101-7e38fcc6.pth", "7e38fcc6",
    "Apache-2.0", top1=78.37, top5=94.264),
  "legacy_seresnet152.in1k": Weights(
    "legacy_seresnet152", "cadene", TIMM + "v0.1-cadene/se_resnet152-d17c99b7.pth", "d17c99b7",
    "Apache-2.0", top1=78.662, top5=94.37),
  "legacy_seresnext50_32x4d.in1k": Weights(
    "legacy_seresnext50_32x4d", "cadene",
    TIMM + "v0.1-weights/legacy_se_resnext50_32x4d-f3651bad.pth", "f3651bad", "Apache-2.0",
    top1=79.08, top5=94.428),
  "legacy_seresnext50_32x4d.cad": Weights(
    "legacy_seresnext50_32x4d", "cadene", CADENE + "se_resnext50_32x4d-a260b3a4.pth", "a260b3a4",
    "not stated", top1=79.076, top5=94.434),
  "legacy_seresnext101_32x4d.in1k": Weights(
    "legacy_seresnext101_32x4d", "cadene",
    TIMM + "v0.1-weights/legacy_se_resnext101_32x4d-37725eac.pth", "37725eac", "Apache-2.0",
    top1=80.274, top5=95.032),
  "legacy_seresnext101_32x4d.cad": Weights(
    "legacy_seresnext101_32x4d", "cadene", CADENE + "se_resnext101_32x4d-3b2fe3d8.pth", "3b2fe3d8",
    "not stated", top1=80.236, top5=95.028),
  "legacy_senet154.in1k": Weights(
    "legacy_senet154", "cadene", TIMM + "v0.1-weights/legacy_senet154-e9eb9fe6.pth", "e9eb9fe6",
    "Apache-2.0", top1=81.32, top5=95.502),
  "legacy_senet154.cad": Weights(
    "legacy_senet154", "cadene", CADENE + "senet154-c7b49a05.pth", "c7b49a05", "not stated",
    top1=81.304, top5=95.498),
  "seresnet50.a1_in1k": Weights(
    "seresnet50", "timm", "hf:timm/seresnet50.a1_in1k/model.safetensors", "", "Apache-2.0", RSB,
    top1=80.012, top5=94.704),
  "seresnet50.a2_in1k": Weights(
    "seresnet50", "timm", "hf:timm/seresnet50.a2_in1k/model.safetensors", "", "Apache-2.0", RSB,
    top1=80.102, top5=94.72),
  "seresnet50.a3_in1k": Weights(
    "seresnet50", "timm", "hf:timm/seresnet50.a3_in1k/model.safetensors", "", "Apache-2.0",
    Preprocess(160, 168, interpolation="bicubic"), top1=75.104, top5=92.096),
  "seresnet50.ra2_in1k": Weights(
    "seresnet50", "timm", "hf:timm/seresnet50.ra2_in1k/model.safetensors", "", "Apache-2.0",
    BICUBIC, top1=80.26, top5=95.068),
  "seresnet50.pcv_a": Weights(
    "seresnet50", "pytorchcv", PYTORCHCV + "v0.0.441/seresnet50-0575-004bfde4.pth.zip", "",
    "not stated", top1=78.78, top5=94.25, fields={"stride_first": True}),
  "seresnet50.pcv": Weights(
    "seresnet50", "pytorchcv", PYTORCHCV + "v0.0.387/seresnet50b-0539-459e6871.pth.zip", "",
    "not stated", top1=79.21, top5=94.61),
  "seresnet101.pcv_a": Weights(
    "seresnet101", "pytorchcv", PYTORCHCV + "v0.0.533/seresnet101-0460-37851448.pth.zip", "",
    "not stated", top1=80.76, top5=95.4, fields={"stride_first": True}),
  "seresnet152.pcv_a": Weights(
    "seresnet152", "pytorchcv", PYTORCHCV + "v0.0.538/seresnet152-0439-7a6b02ac.pth.zip", "",
    "not stated", top1=81.28, top5=95.61, fields={"stride_first": True}),
  "seresnext50_32x4d.racm_in1k": Weights(
    "seresnext50_32x4d", "timm", "hf:timm/seresnext50_32x4d.racm_in1k/model.safetensors", "",
    "Apache-2.0", BICUBIC, top1=81.268, top5=95.624),
  "seresnext50_32x4d.gluon_in1k": Weights(
    "seresnext50_32x4d", "timm", "hf:timm/seresnext50_32x4d.gluon_in1k/model.safetensors", "",
    "Apache-2.0", BICUBIC, top1=79.916, top5=94.816),
  "seresnext50_32x4d.pcv": Weights(
    "seresnext50_32x4d", "pytorchcv",
    PYTORCHCV + "v0.0.505/seresnext50_32x4d-0451-52029a7f.pth.zip", "", "not stated",
    top1=81.06, top5=95.49),
  "seresnext101_32x4d.gluon_in1k": Weights(
    "seresnext101_32x4d", "timm", "hf:timm/seresnext101_32x4d.gluon_in1k/model.safetensors", "",
    "Apache-2.0", BICUBIC, top1=80.886, top5=95.268),
  "senet154.gluon_in1k": Weights(
    "senet154", "timm", "hf:timm/senet154.gluon_in1k/model.safetensors", "", "Apache-2.0",
    BICUBIC, top1=81.258, top5=95.358),
  "senet154.pcv": Weights(
    "senet154", "pytorchcv", PYTORCHCV + "v0.0.522/senet154-0455-95dbccbe.pth.zip", "",
    "not stated", top1=81.15, top5=95.45),
}  # fmt: on
