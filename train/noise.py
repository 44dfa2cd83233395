"""What training does by chance, to a picture and within the network: flags of several scripts."""

import dataclasses

from train.data.transforms import Augment
from train.mix import Mix
from train.options import option
import zoo

CROP = "A random crop has at least this share of the picture's area."


@dataclasses.dataclass(frozen=True)
class Noise:
  augment: bool = option(
    True, "Random crops and flips; without, the middle square, or the whole picture where there is "
    "a box.",
  )  # fmt: skip
  crop: float = option(0.5, CROP, lower_bound=0.0, upper_bound=1.0)
  flip: float = option(0.5, "Probability of left for right.", lower_bound=0.0, upper_bound=1.0)
  mixup: float = option(
    0.0, "Alpha of mixup's beta distribution, such as 0.2; 0 for none.", lower_bound=0.0
  )
  cutmix: float = option(
    0.0, "Alpha of cutmix's, such as 1; with both, each has half of the batches.", lower_bound=0.0
  )
  randaugment: int = option(
    0, "Operations of RandAugment on each picture, such as 2.", lower_bound=0
  )
  magnitude: float = option(9.0, "Of these operations.", lower_bound=0.0, upper_bound=30.0)
  erase: float = option(
    0.0, "Probability that a random box is filled with noise.", lower_bound=0.0, upper_bound=1.0
  )
  dropout: float = option(
    0.0, "Share of features that the head does not see, where the model has such a layer.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  drop_path: float = option(
    0.0, "Stochastic depth: share of residual branches left out, where the model has them "
    "(arXiv:1603.09382).", lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip

  @property
  def views(self) -> Augment | None:
    return Augment(
      scale=(self.crop, 1.0), flip=self.flip, operations=self.randaugment,
      magnitude=self.magnitude, erase=self.erase,
    ) if self.augment else None  # fmt: skip

  @property
  def mix(self) -> Mix:
    return Mix(self.mixup, self.cutmix)

  def fields(self, variant: str) -> dict[str, float]:
    """The model's, of --dropout and --drop_path. Raises ValueError if it has no such layers."""
    wanted = {name: getattr(self, name) for name in ("dropout", "drop_path") if getattr(self, name)}
    known = {f.name for f in dataclasses.fields(zoo.create(variant))}
    if lost := [name for name in wanted if name not in known]:
      raise ValueError("\n".join(f"--{name}: {variant} has no such layers" for name in lost))
    return wanted
