"""A label, or any labels, for each bag of images."""

import dataclasses


from train.tasks.classify import Classify
from train.tasks.multilabel import Multilabel


@dataclasses.dataclass(frozen=True)
class Bags:
  """Multiple-instance learning: what `of` asks of an image, asked of the bags of a `MultiInstance`.

  batch["image"] is [b i h w c]; batch["bag_real"] [b i] bool says which of its images a bag has.
  Answers also have each image's own, "instance_probs" [b i n], and its share in its bag's,
  "attention" [b i].
  """

  of: Classify | Multilabel = Classify()
  inputs: tuple[str, ...] = ("image", "bag_real")

  @property
  def target(self) -> str:
    return self.of.target

  def terms(self, out, batch):
    return self.of.terms(out, batch)

  def predict(self, out):
    each = self.of.predict({"logits": out["instance_logits"]})["probs"]
    return {**self.of.predict(out), "instance_probs": each, "attention": out["attention"]}

  def rank(self, measured):
    return self.of.rank(measured)
