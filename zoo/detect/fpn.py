"""Feature pyramid on any classifier of the zoo.  Lin et al. 2016, arXiv:1612.03144.

Submodules carry torchvision's names.  `BODIES` are the classifiers that its detectors stand on,
with the end points that the pyramid reads.
"""

from collections.abc import Sequence
import enum
from functools import partial
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.classify import mobilenet_v3, resnet
from zoo.layers import Numerics
from zoo.ops import anchors
from zoo.ops.resize import nearest

STAGES_OF_RESNET = ("stage1", "stage2", "stage3", "stage4")
# The first block of the last stage, and the last convolution: both of stride 32.
STAGES_OF_MOBILENET = ("first4", "stage4")
RESNET18, RESNET50 = (resnet.VARIANTS[name] for name in ("resnet18", "resnet50"))
MOBILENET_V3 = partial(mobilenet_v3.VARIANTS["mobilenet_v3_large"], firsts=True)


class Top(enum.Enum):
  """What lies above the body's maps."""

  POOL = "every second cell of the last map"
  P5 = "two maps by strided convolutions of the pyramid's last"
  C5 = "two maps by strided convolutions of the body's last"


class FPN(nn.Module):
  """Maps [b h w c], finest first -> as many of `width` channels, and those of `top`."""

  width: int = 256
  batch_norm: bool = False
  top: Top = Top.POOL
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
    n = self.numerics
    spread = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    conv = partial(n.conv, self.width, init=spread)

    def layer(x, kernel, name):
      x = conv(kernel, bias=not self.batch_norm, name=f"{name}_0")(x)
      return n.norm(train, name=f"{name}_1")(x) if self.batch_norm else x

    inner = [layer(x, 1, f"inner_blocks_{i}") for i, x in enumerate(maps)]
    for i in reversed(range(len(inner) - 1)):
      inner[i] += nearest(inner[i + 1], inner[i].shape[1:3])
    out = [layer(x, 3, f"layer_blocks_{i}") for i, x in enumerate(inner)]
    if self.top is Top.POOL:
      return [*out, out[-1][:, ::2, ::2]]
    x = maps[-1] if self.top is Top.C5 else out[-1]
    p6 = conv(3, 2, bias=True, name="p6")(x)
    p7 = conv(3, 2, bias=True, name="p7")(nn.relu(p6))
    return [*out, p6, p7]


def strides(grids: Sequence[tuple[int, int]], canvas: tuple[int, int]) -> list[tuple[int, int]]:
  """Pixels between the cells of each map, (down, across), whole as the original code has them."""
  return [(canvas[0] // grid[0], canvas[1] // grid[1]) for grid in grids]


def priors(
  sizes: Sequence[Sequence[float]], grids: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> np.ndarray:
  """[n 4]: anchors of `sizes`, each in three shapes, in all cells of all maps."""
  found = [
    anchors.on_grid(anchors.centred(own, (0.5, 1.0, 2.0)), grid, stride)
    for own, grid, stride in zip(sizes, grids, strides(grids, canvas), strict=True)
  ]
  return np.concatenate(found)


def extent(image: jax.Array, size: jax.Array | None) -> jax.Array:
  """[b 2], the height and width of each picture; without `size` each fills the canvas."""
  if size is not None:
    return jnp.asarray(size)
  return jnp.broadcast_to(jnp.array(image.shape[1:3], jnp.int32), (image.shape[0], 2))


def grids(ends) -> list[tuple[int, int]]:
  """Sizes of "map1", "map2" and so on."""
  count = sum(name.startswith("map") for name in ends)
  return [ends[f"map{i}"].shape[1:3] for i in range(1, count + 1)]


def fitted(size: tuple[int, int], shorter: int = 800, longer: int = 1333) -> tuple[int, int]:
  """The (height, width) at which torchvision's detectors see a picture of `size`.

  Sides are cut to whole pixels in double precision, as torch does: some get 799 instead of 800.
  A side that would vanish keeps one pixel; torch refuses such a picture.
  """
  scale = min(shorter / min(size), longer / max(size))
  return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def canvas(size: tuple[int, int], shorter: int = 800, longer: int = 1333) -> tuple[int, int]:
  """The (height, width) around a fitted picture of `size`: of five that there are, the least.

  torchvision pads to the next multiple of 32, of the largest picture of a batch; a canvas for each
  such multiple would be compiled for itself.
  """
  least, most = (-(-side // 32) * 32 for side in (shorter, longer))
  longest = (least, -(-(least + most) // 64) * 32, most)
  side = next(side for side in longest if side >= max(size))
  return (side, least) if size[0] > size[1] else (least, side)


def on_canvas(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
  """[*canvas c] float32: a picture [h w c] at the top left, zeros around it."""
  out = np.zeros((*canvas, image.shape[-1]), np.float32)
  out[: image.shape[0], : image.shape[1]] = image
  return out
