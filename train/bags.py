"""Trains a network on bags of pictures: what is said of a bag is said of none of its pictures.

  python -m train.bags --data=listing.csv --model=resnet18.tv1 --pool=attention --workdir=runs/bags
  python -m train.bags --task=multilabel --pool=max --instances=16 ...

--data is a listing with the columns image, bag, and label (one class of each bag) or, with
--task=multilabel, labels: see train/data/listing.py.  What such a run leaves is what train.label's
leaves; train.predict takes a folder for a bag, and says how much each of its pictures counted.
"""

import dataclasses

from train import label, loop, optim, options, startup
from train.data import listing
from train.noise import Noise
from train.options import option
from train.tasks.bags import Bags
from train.tasks.classify import Classify


@dataclasses.dataclass(frozen=True)
class Config(Noise):
  task: str = option(
    "classify", "What is asked of a bag: one class, or any labels.",
    choices=("classify", "multilabel"),
  )  # fmt: skip
  pool: str = option(
    "attention", "How a bag's answer comes from its pictures': the largest, their mean, or their "
    "mean by attention, plain or gated (arXiv:1802.04712).",
    choices=("max", "mean", "attention", "gated"),
  )  # fmt: skip
  instances: int = option(
    8, "Pictures of a bag at once; of more, training draws some anew each time, and evaluation "
    "takes evenly spread ones.", lower_bound=1,
  )  # fmt: skip
  loss: str = option("", "Of labels: sigmoid, focal or asymmetric; sigmoid if not given.")
  balance: bool = option(
    False, "Weigh what is rarer, yes or no, by the share of the other, for each label."
  )
  smoothing: float = option(0.0, "Label smoothing of one class.", lower_bound=0.0, upper_bound=1.0)
  report: bool = option(True, "Write report.html at the end.", free=True)


def prepare(
  config: loop.Config, optimizer: optim.Config, own: Config
) -> tuple[loop.Job, label.Plan]:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  label.demand(config)
  if own.loss and own.task == "classify":
    raise ValueError(f"--loss={own.loss} is of labels; --task=classify has softmax")
  data = listing.load(
    config.data, own.task, bags=True, seed=config.seed, max_bad=config.max_bad
  )  # fmt: skip
  if own.task == "multilabel":
    loss = label.chosen_loss("multilabel", own.loss)
    of = label.multilabel(loss, own.balance, data.splits["train"].targets["labels"])
  else:
    of = Classify(smoothing=own.smoothing)
  outputs = {"task": own.task, "instances": own.instances}
  plan = label.Plan(
    own.task, Bags(of), data, head=f"bag_{own.pool}", outputs=outputs, instances=own.instances
  )
  return label.job(config, optimizer, own, plan), plan


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  made, plan = prepare(config, optimizer, own)
  label.train(config, made, plan)
  if own.report:
    label.report(config, plan)


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
