"""GoogLeNet, the first Inception.  Szegedy et al. 2014, arXiv:1409.4842.

Departs as torchvision does, whose names the submodules carry: batch norm instead of local response
normalisation (`lrn`), 3x3 kernels where the paper has 5x5 (`third`), and a last pool of 2x2 instead
of 3x3 (`last_pool`). Caffe's file is of the paper's form.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Chains, ConvNorm, Numerics
from zoo.ops.conv import adaptive_avg_pool
from zoo.ops.norm import local_response_norm
from zoo.weights import Preprocess, Weights


class Inception(nn.Module):
  """Four branches side by side: [b h w c] -> [b h w w0+w2+w4+w5]."""

  widths: tuple[int, ...]  # 1x1; reduction, 3x3; reduction, third; after the pool
  third: int = 3  # kernel of the third branch
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    w = self.widths
    pooled = n.max_pool(x, 3, 1, padding=1)
    return jnp.concatenate([
      chain(x, "branch1", (w[0],)),
      chain(x, "branch2", (w[1],), (w[2], 3)),
      chain(x, "branch3", (w[3],), (w[4], self.third)),
      chain(pooled, "branch4_1", (w[5],)),
    ], axis=-1)  # fmt: skip


class Auxiliary(nn.Module):
  """A second classifier on an earlier map: [b h w c] -> [b num_classes]."""

  num_classes: int
  dropout: float
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n = self.numerics
    x = ConvNorm(128, numerics=n, name="conv")(adaptive_avg_pool(x, (4, 4)), train=train)
    x = n.act(n.dense(1024, name="fc1")(x.reshape(x.shape[0], -1)))
    x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
    return n.dense(self.num_classes, name="fc2")(x)


class GoogLeNet(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits".

  When training also "aux_logits", [b 2 num_classes]: of the heads on inception4a and inception4d.
  """

  num_classes: int | None = 1000
  aux: bool = True
  third: int = 3  # 5 in the paper
  last_pool: int = 2  # 3 in the paper
  lrn: bool = False  # behind the first pool and before the second
  dropout: float = 0.0
  aux_dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    chain = Chains(n, train)

    def pool(x, kernel=3):
      if n.padding == "tf":
        return n.max_pool(x, kernel, 2)
      return n.max_pool(x, kernel, 2, padding="VALID", ceil=True)

    x = ends["stem"] = chain(image, "conv1", (64, 7, 2))
    lrn = local_response_norm if self.lrn else lambda x: x
    x = ends["stage1"] = chain(chain(lrn(pool(x)), "conv2", (64,)), "conv3", (192, 3))
    x = lrn(x)
    for stage, names in enumerate(("3a 3b", "4a 4b 4c 4d 4e", "5a 5b"), start=2):
      x = pool(x, self.last_pool if stage == 4 else 3)
      for name in names.split():
        block = Inception(WIDTHS[name], self.third, n, name=f"inception{name}")
        x = ends[name] = block(x, train=train)
      ends[f"stage{stage}"] = x
    at4a, at4d = ends["4a"], ends["4d"]
    ends = {end: y for end, y in ends.items() if end not in WIDTHS}
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      if self.aux and (train or self.is_initializing()):
        heads = [
          Auxiliary(self.num_classes, self.aux_dropout, n, name=name)(y, train=train)
          for name, y in (("aux1", at4a), ("aux2", at4d))
        ]
        ends |= {"aux_logits": jnp.stack(heads, axis=1)} if train else {}
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="fc")(x)
    return ends


# fmt: off
WIDTHS = {  # Table 1
  "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
  "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
  "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128),
  "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}
VARIANTS = {"googlenet": partial(GoogLeNet)}
STAGES = ("conv1", "conv2|conv3", "inception3.", "inception4.", "inception5.", "fc|aux[12]")
# torchvision feeds this checkpoint pixels in -1..1, whatever normalisation it is handed.
SYMMETRIC = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
WEIGHTS = {
  "googlenet.tv1": Weights(
    "googlenet", "torchvision", "https://download.pytorch.org/models/googlenet-1378be20.pth",
    "1378be20", "BSD-3-Clause", SYMMETRIC, 69.778, 89.53),
  "googlenet.slim": Weights(
    "googlenet", "slim", "https://download.tensorflow.org/models/"
    "inception_v1_2016_08_28.tar.gz#inception_v1.ckpt", "", "Apache-2.0", SYMMETRIC, 69.8, 89.6,
    fields={"aux": False, "padding": "tf", "norm_scale": False, "num_classes": 1001}),
  "googlenet.bvlc": Weights(  # published over an open line, too, which nothing vouches for
    "googlenet", "caffe", "https://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel", "",
    "unrestricted", Preprocess.caffe(), 68.7, 88.9,
    fields={"aux": False, "third": 5, "last_pool": 3, "lrn": True}),
}
# fmt: on
