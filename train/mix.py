"""Mixed pictures: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899), on the device.

A batch is mixed with itself in reverse order, one share for all of its rows, as timm does.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from train.tasks import Batch


@dataclasses.dataclass(frozen=True)
class Mix:
  """Which of the two, and how: alpha of the beta distribution of the share, 0 for never."""

  mixup: float = 0.0
  cutmix: float = 0.0

  def __bool__(self) -> bool:
    return bool(self.mixup or self.cutmix)

  def __call__(
    self, key: jax.Array, image: jax.Array, batch: Batch, target: str
  ) -> tuple[jax.Array, Batch]:
    """(image, batch) with rows mixed; where both kinds are asked for, each has half of the batches.

    Args:
      image: [b h w c] float32, normalised.
      target: name of what is right in the batch.

    Returns:
      the batch also has "other", a second target for each row, and "share" [b] float32, how much of
      the first it still shows.
    """
    which, beta, place = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(which, 0.5) if self.mixup and self.cutmix else bool(self.cutmix)
    alpha = jnp.where(cuts, self.cutmix or 1.0, self.mixup or 1.0)
    share = jax.random.beta(beta, alpha, alpha)
    own = jnp.where(cuts, outside_of_a_box(place, *image.shape[1:3], share), share)
    other = image[::-1]
    image = image * own + other * (1 - own)
    shown = jnp.full(len(image), jnp.mean(own), jnp.float32)
    return image, {**batch, "other": batch[target][::-1], "share": shown}


def taught(batch: Batch, target: str, form: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """[... b n]: what `form` makes of the target [b ...]; of mixed rows both, by their shares."""
  wanted = form(batch[target])
  if "other" in batch:
    share = batch["share"][:, None]
    wanted = share * wanted + (1 - share) * form(batch["other"])
  return wanted


def outside_of_a_box(key: jax.Array, height: int, width: int, share: jax.Array) -> jax.Array:
  """[h w 1] float32: 0 in a random box of the area 1 - share, cut off at the borders; else 1."""
  side = jnp.sqrt(1 - share)
  middle = jax.random.uniform(key, (2,)) * jnp.array([height, width])
  rows = jnp.abs(jnp.arange(height) + 0.5 - middle[0]) < side * height / 2
  columns = jnp.abs(jnp.arange(width) + 0.5 - middle[1]) < side * width / 2
  return 1.0 - (rows[:, None] & columns[None, :])[..., None].astype(jnp.float32)
