"""Other ends for any classifier of the zoo: for bags of images, and for one box.

  zoo.create("resnet18", head="bag_attention", num_classes=5)
  zoo.load("resnet18.tv1", head="box", num_classes=5)         # pretrained, with a fresh head

Attention is Ilse et al. 2018's, arXiv:1802.04712.  A head shares the scope of its backbone: the
backbone's arrays keep their names, so that its checkpoints, its STAGES and `zoo.explain` serve as
they are.  The head's own modules begin with `head_`; `head` is a field of `zoo.Record`'s fields.
"""

from collections.abc import Callable, Sequence
import dataclasses
from functools import partial

from flax import linen as nn
import jax.numpy as jnp

from zoo.layers import Numerics
from zoo.ops import boxes
from zoo.ops.conv import adaptive_avg_pool

MODULES = "head_.*"  # names of a head's modules
GRID = (7, 7)  # what a box is read from, whatever the size of the image


class MultiInstance(nn.Module):
  """Bags [b i h w c], real [b i] -> the bags' "logits" [b n], "instance_logits" [b i n].

  One dense layer scores each image.  A bag has the maximum of its images' scores, or their mean,
  weighted by "attention" [b i]; behind a linear layer that is the score of the mean embedding too.
  An image [b h w c] is a bag of one.  End points of the backbone have b * i rows, "pooled" has b.
  """

  backbone: Callable[..., nn.Module]  # takes num_classes and numerics
  pool: str = "attention"  # "max", "mean", "attention" or "gated" (the paper's equations 8 and 9)
  hidden: int = 128  # of attention, as in the paper's experiments
  num_classes: int | None = 1000
  numerics: Numerics = Numerics()

  def setup(self):
    self.body = self.backbone(num_classes=None, numerics=self.numerics)
    nn.share_scope(self, self.body)

  @nn.compact
  def __call__(self, image, bag_real=None, *, train: bool):
    bags = image[:, None] if image.ndim == 4 else image
    real = jnp.ones(bags.shape[:2], bool) if bag_real is None else bag_real
    ends = dict(self.body(bags.reshape(-1, *bags.shape[2:]), train=train))
    x = ends["pooled"].reshape(*bags.shape[:2], -1)
    attention = ends["attention"] = self._attention(x, real)
    ends["pooled"] = jnp.einsum("bi,bic->bc", attention, x.astype(jnp.float32))
    if self.num_classes is not None:
      scores = self.numerics.dense(self.num_classes, name="head_logits")(x).astype(jnp.float32)
      ends["instance_logits"] = scores
      if self.pool == "max":
        ends["logits"] = jnp.where(real[..., None], scores, -jnp.inf).max(1)
      else:
        ends["logits"] = jnp.einsum("bi,bin->bn", attention, scores)
    return ends

  def _attention(self, x, real):
    """[b i] float32, adding up to 1 over the images that are real; alike for max and mean."""
    n = self.numerics
    scores = jnp.zeros(real.shape)
    if self.pool in ("attention", "gated"):
      y = jnp.tanh(n.dense(self.hidden, name="head_attend")(x))
      if self.pool == "gated":
        y = y * nn.sigmoid(n.dense(self.hidden, name="head_gate")(x))
      scores = n.dense(1, bias=False, name="head_weight")(y)[..., 0].astype(jnp.float32)
    return nn.softmax(jnp.where(real, scores, -jnp.inf), axis=-1)


class Localizer(nn.Module):
  """[b h w c] -> "logits" [b n] and "box" [b 4]: x0 y0 x1 y1 in pixels of the image.

  The box is read from the backbone's last map, averaged to 7x7: its mean, "pooled", no longer knows
  where things are.  Sigmoids of centre, width and height keep it a box, with its centre inside.
  """

  backbone: Callable[..., nn.Module]  # takes num_classes and numerics
  channels: int = 64  # of each place, before all are joined
  hidden: int = 256
  num_classes: int | None = 1000
  numerics: Numerics = Numerics()

  def setup(self):
    self.body = self.backbone(num_classes=None, numerics=self.numerics)
    nn.share_scope(self, self.body)

  @nn.compact
  def __call__(self, image, *, train: bool):
    n = self.numerics
    ends = dict(self.body(image, train=train))
    x = ends[max((e for e in ends if e.startswith("stage")), key=lambda e: int(e[5:]))]
    x = n.act(n.dense(self.channels, name="head_reduce")(x))  # of each place
    x = adaptive_avg_pool(x, GRID).reshape(x.shape[0], -1)
    x = n.act(n.dense(self.hidden, name="head_place")(x))
    # A fresh one answers the middle half, where no sigmoid is flat.
    last = nn.Dense(4, kernel_init=nn.initializers.zeros, dtype=n.dtype, name="head_box")
    place = nn.sigmoid(last(x).astype(jnp.float32))
    height, width = image.shape[1:3]
    ends["box"] = boxes.from_cxcywh(place) * jnp.array([width, height, width, height], jnp.float32)
    if self.num_classes is not None:
      ends["logits"] = n.dense(self.num_classes, name="head_logits")(ends["pooled"])
    return ends


HEADS = {
  "bag_max": partial(MultiInstance, pool="max"),
  "bag_mean": partial(MultiInstance, pool="mean"),
  "bag_attention": MultiInstance,
  "bag_gated": partial(MultiInstance, pool="gated"),
  "box": Localizer,
}


def on(model: nn.Module, head: str) -> nn.Module:
  """`model`, a classifier of the zoo, ending in one of HEADS.

  Raises:
    ValueError: there is no such head.
  """
  if head not in HEADS:
    raise ValueError(f"unknown head {head!r}; there are {', '.join(HEADS)}")
  ours = ("num_classes", "numerics", "parent", "name")
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ours}
  return HEADS[head](
    partial(type(model), **fields), num_classes=model.num_classes, numerics=model.numerics
  )


def stages(of_backbone: Sequence[str]) -> tuple[str, ...]:
  """STAGES of a model with a head: the backbone's, which loses its own head."""
  return (*of_backbone[:-1], MODULES)
