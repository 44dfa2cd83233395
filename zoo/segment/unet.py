"""U-Net.  Ronneberger et al. 2015, arXiv:1505.04597.

`UNet` is the paper's: valid convolutions on a picture whose border is mirrored, so that logits come
at the size of the input (its overlap-tile strategy, on one tile), or, `padded`, the form that later
ports agree on.  `BackboneUNet` puts a decoder on any classifier of the zoo, after
segmentation_models_pytorch.  Submodules of `UNet` carry the names of its one published checkpoint.
"""

from collections.abc import Callable, Mapping
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.classify import densenet, mobilenet_v2, resnet, vgg
from zoo.layers import Numerics
from zoo.ops import resize
from zoo.weights import Preprocess, Weights


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, [b h w c] -> [b h w features], 4 pixels smaller where not `padded`."""

  features: int
  padded: bool = True
  batch_norm: bool = True
  bias: bool = False
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, x, *, train: bool):
    n, padding = self.numerics, 1 if self.padded else 0
    for i in range(2):
      x = n.conv(self.features, 3, padding=padding, bias=self.bias, name=f"conv{i}")(x)
      x = n.act(n.norm(train, name=f"bn{i}")(x) if self.batch_norm else x)
    return x


class UNet(nn.Module):
  """[b h w c] -> "stage1".. down to the centre, "features" [b h w n], "logits" [b h w classes]."""

  widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
  num_classes: int | None = 2
  padded: bool = False
  batch_norm: bool = False
  bias: bool = True  # of the convolutions
  learned: bool = True  # 2x2 transposed convolutions on the way up; else bilinear, corners kept
  dropout: float = 0.0  # at the end of the way down
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n, depth = self.numerics, len(self.widths) - 1
    height, width = image.shape[1:3]
    block = partial(
      DoubleConv, padded=self.padded, batch_norm=self.batch_norm, bias=self.bias, numerics=n
    )
    x, ends = (fill if self.padded else mirror)(image, depth), {}
    for i, features in enumerate(self.widths[:-1], start=1):
      x = ends[f"stage{i}"] = block(features, name=f"enc{i}")(x, train=train)
      x = n.max_pool(x, 2, 2, padding=0)
    x = block(self.widths[-1], name="center")(x, train=train)
    x = ends[f"stage{depth + 1}"] = nn.Dropout(self.dropout, deterministic=not train)(x)
    for i in range(depth, 0, -1):
      skip, features = ends[f"stage{i}"], self.widths[i - 1]
      if self.learned:
        x = n.deconv(features, 2, 2, name=f"up{i}")(x)
      else:
        x = resize.bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), corners=True)
      # What came across stands first in the paper, and second in the one bilinear checkpoint.
      parts = (cut(skip, x.shape[1:3]), x) if self.learned else (x, skip)
      x = block(features, name=f"dec{i}")(jnp.concatenate(parts, axis=-1), train=train)
    ends["features"] = x[:, :height, :width]
    if self.num_classes is not None:
      ends["logits"] = n.conv(self.num_classes, bias=True, name="final")(ends["features"])
    return ends


def mirror(image: jax.Array, depth: int) -> jax.Array:
  """The input of valid convolutions whose output begins at the image's first pixel and covers it.

  The last size, h, comes out of a centre of m pixels as 2**depth * m - 4 * (2**depth - 1), and
  needs 6 * 2**depth - 4 pixels more on each side (572 for 388 at depth 4).
  """
  step = 2**depth
  pads = []
  for size in image.shape[1:3]:
    if size < 2:
      raise ValueError(f"an image {size} pixel wide has no border to mirror; fill it up first")
    centre = -((size + 4 * (step - 1)) // -step)
    pads.append((6 * step - 4, step * centre + 2 * step - size))
  return jnp.pad(image, ((0, 0), *pads, (0, 0)), mode="reflect")


def fill(image: jax.Array, depth: int) -> jax.Array:
  """Zeros below and to the right, up to a multiple of 2**depth."""
  pads = [(0, -size % 2**depth) for size in image.shape[1:3]]
  return jnp.pad(image, ((0, 0), *pads, (0, 0)))


def cut(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The middle of a map."""
  top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size))
  return x[:, top : top + size[0], left : left + size[1]]


class BackboneUNet(nn.Module):
  """A decoder on a classifier: its end points, "features" [b h w n], "logits" [b h w classes]."""

  backbone: Callable[..., nn.Module]  # a variant of the zoo: takes num_classes, numerics and name
  widths: tuple[int, ...] = (256, 128, 64, 32, 16)  # of the decoder, from the coarsest map up
  num_classes: int | None = 21
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = self.backbone(num_classes=None, numerics=n, name="backbone")(image, train=train)
    x, *skips = pyramid(ends, image.shape[1])
    for i, width in enumerate(self.widths):
      skip = skips[i] if i < len(skips) else None
      x = resize.nearest(x, (image if skip is None else skip).shape[1:3])
      x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
      x = DoubleConv(width, numerics=n, name=f"blocks_{i}")(x, train=train)
      if skip is None:
        break
    ends = dict(ends, features=x)
    if self.num_classes is not None:
      ends["logits"] = n.conv(self.num_classes, 3, bias=True, name="final")(x)
    return ends


def pyramid(ends: Mapping[str, jax.Array], height: int) -> list[jax.Array]:
  """The last end point of every size below the image's, the coarsest first."""
  maps = {x.shape[1:3]: x for end, x in ends.items() if end == "stem" or end.startswith("stage")}
  return [maps[size] for size in sorted(maps) if size[0] < height]


LEAKY = Numerics(act=partial(nn.leaky_relu, negative_slope=0.1))
VARIANTS = {
  "unet": UNet,
  "unet_padded": partial(UNet, padded=True, batch_norm=True, bias=False),
  "unet_bilinear": partial(
    UNet, num_classes=1, padded=True, batch_norm=True, bias=False, learned=False, numerics=LEAKY
  ),
} | {
  f"unet_{name}": partial(BackboneUNet, backbone, numerics=backbone().numerics)
  for name, backbone in (
    ("resnet18", resnet.VARIANTS["resnet18"]),
    ("resnet34", resnet.VARIANTS["resnet34"]),
    ("resnet50", resnet.VARIANTS["resnet50"]),
    ("vgg16_bn", partial(vgg.VARIANTS["vgg16_bn"], hidden=None)),
    ("densenet121", densenet.VARIANTS["densenet121"]),
    ("mobilenet_v2", mobilenet_v2.VARIANTS["mobilenet_v2"]),
  )
}  # fmt: skip
PLAIN = ("enc1", "enc2", "enc3", "enc4", "center", "dec.*|up.*", "final")
STAGES = {
  name: PLAIN if model is UNet or model.func is UNet else ("backbone", "blocks_.*", "final")
  for name, model in VARIANTS.items()
}
WEIGHTS = {
  "unet_bilinear.shiftlab": Weights(  # finds lines of handwriting
    "unet_bilinear", "shiftlab", "pypi:shiftlab-ocr==0.3.1/shiftlab_ocr/weights/unet.pth",
    "de4604b408bb90cdab9450cc430ee49341af0d1dcd612208f2c49cd196990b17", "MIT",
    Preprocess(512, 512, (0.0,) * 3, (1.0,) * 3, squash=True),
    fields={"widths": (32, 64, 128, 256, 512)}, classes=("text",),
  ),
}  # fmt: skip
