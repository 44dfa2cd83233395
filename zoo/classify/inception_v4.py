"""Inception v4.  Szegedy et al. 2016, arXiv:1602.07261.

Submodules carry timm's names, one flat list `features_0` to `features_21`. Average pools leave
padding out of the count, as in TensorFlow.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Chains, Mixed, Numerics
from zoo.weights import Preprocess, Weights

DOWN = (3, 2, "VALID")


class Mixed3a(nn.Module):
  """The stem's parallel pool and convolution: [b h w c] -> [b h/2 w/2 c + features]."""

  features: int
  pool_first: bool
  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    y = Chains(self.numerics, train)(x, "conv", (self.features, *DOWN))
    pooled = self.numerics.max_pool(x, 3, 2, padding="VALID")
    return jnp.concatenate([pooled, y] if self.pool_first else [y, pooled], axis=-1)


class Mixed4a(nn.Module):
  """[b h w c] -> [b h-2 w-2 192]."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    chain = Chains(self.numerics, train)
    last = (96, 3, 1, "VALID")
    return jnp.concatenate([
      chain(x, "branch0", (64,), last),
      chain(x, "branch1", (64,), (64, (1, 7)), (64, (7, 1)), last),
    ], axis=-1)  # fmt: skip


class InceptionC(nn.Module):
  """Two branches end in a 1x3 and a 3x1 side by side: [b h w c] -> [b h w 1536]."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, chain = self.numerics, Chains(self.numerics, train)
    y = chain(x, "branch1_0", (384,))
    z = chain(x, "branch2_0", (384,))
    z = chain(chain(z, "branch2_1", (448, (3, 1))), "branch2_2", (512, (1, 3)))
    return jnp.concatenate([
      chain(x, "branch0", (256,)),
      chain(y, "branch1_1a", (256, (1, 3))),
      chain(y, "branch1_1b", (256, (3, 1))),
      chain(z, "branch2_3a", (256, (1, 3))),
      chain(z, "branch2_3b", (256, (3, 1))),
      chain(n.avg_pool(x, 3, 1, count_pad=False), "branch3_1", (256,)),
    ], axis=-1)  # fmt: skip


class InceptionV4(nn.Module):
  """[b h w c] -> "stem" "stage1".."stage4" "pooled" and, given num_classes, "logits"."""

  num_classes: int | None = 1000
  depths: tuple[int, int, int] = (4, 7, 3)
  dropout: float = 0.0
  numerics: Numerics = Numerics(eps=1e-3)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, ends = self.numerics, {}
    chain = Chains(n, train)
    x = chain(image, "features_0", (32, *DOWN))
    x = chain(x, "features_1", (32, 3, 1, "VALID"))
    x = ends["stem"] = chain(x, "features_2", (64, 3))
    a, b, c = self.depths
    stages = (
      [partial(Mixed3a, 96, True)],
      [Mixed4a, partial(Mixed3a, 192, False), *[INCEPTION_A] * a],
      [REDUCTION_A, *[INCEPTION_B] * b],
      [REDUCTION_B, *[InceptionC] * c],
    )
    i = 3
    for s, blocks in enumerate(stages, start=1):
      for block in blocks:
        x = block(numerics=n, name=f"features_{i}")(x, train=train)
        i += 1
      ends[f"stage{s}"] = x
    ends["pooled"] = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(ends["pooled"])
      ends["logits"] = n.dense(self.num_classes, name="last_linear")(x)
    return ends


INCEPTION_A = partial(Mixed, (((96,),), ((64,), (96, 3)), ((64,), (96, 3), (96, 3))), 96)
REDUCTION_A = partial(Mixed, (((384, *DOWN),), ((192,), (224, 3), (256, *DOWN))))
_COLUMN = ((192,), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7)))
INCEPTION_B = partial(
  Mixed, (((384,),), ((192,), (224, (1, 7)), (256, (7, 1))), _COLUMN), 128
)  # fmt: skip
REDUCTION_B = partial(
  Mixed,
  (((192,), (192, *DOWN)), ((256,), (256, (1, 7)), (320, (7, 1)), (320, *DOWN))),
)
VARIANTS = {"inception_v4": partial(InceptionV4)}
STAGES = (
  "features_[012]", "features_3", "features_[4-9]", "features_1[0-7]", "features_(18|19|2.)",
  "last_linear",
)  # fmt: skip
# fmt: off
PIXELS = Preprocess(299, 341, (0.5,) * 3, (0.5,) * 3, "bicubic")
WEIGHTS = {
  "inception_v4.tf_in1k": Weights(
    "inception_v4", "timm", "hf:timm/inception_v4.tf_in1k/model.safetensors", "", "Apache-2.0",
    PIXELS, 80.144, 94.982),
  "inception_v4.cadene": Weights(
    "inception_v4", "cadene",
    "https://data.lip6.fr/cadene/pretrainedmodels/inceptionv4-8e4777a0.pth", "8e4777a0",
    "not stated", Preprocess(299, 341, (0.5,) * 3, (0.5,) * 3), 80.062, 94.926),
  "inception_v4.slim": Weights(  # no hash is published
    "inception_v4", "slim", "https://download.tensorflow.org/models/"
    "inception_v4_2016_09_09.tar.gz#inception_v4.ckpt", "", "Apache-2.0",
    Preprocess(299, 342, (0.5,) * 3, (0.5,) * 3), 80.2, 95.2,
    fields={"norm_scale": False, "num_classes": 1001}),
}
# fmt: on
