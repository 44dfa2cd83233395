import re

from tests.parity import Case

TAPS = {"stem": "features.relu0"} | {f"stage{s}": f"features.denseblock{s}" for s in (1, 2, 3)}
TIMM = TAPS | {"stem": "features.norm0", "stage4": "features.norm5"}  # norms there activate too
KERAS = {"stem": "conv1_relu", "stage1": "conv2_block6_concat", "stage4": "relu"}
ODD = ((97, 131),)


def densenet264(growth=32):
  from torchvision.models import DenseNet

  return DenseNet(growth, (6, 12, 64, 48), 2 * growth)


def chexnet():
  import torch
  from torchvision.models import densenet121

  net = densenet121()
  net.classifier = torch.nn.Linear(1024, 14)  # the sigmoid is not part of our logits
  return net


def published(state):
  """The names of the 2017 files."""
  old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
  return {old.sub(r"\1.\2", name): value for name, value in state.items()}


def as_arnoweng(state):
  state = {name.replace("classifier.", "classifier.0."): v for name, v in published(state).items()}
  return {f"module.densenet121.{name}": value for name, value in state.items()}


PAPER = "torchvision's own class, with the depths of the paper's Table 1"
CASES = [
  Case("densenet121", "torchvision.models:densenet121", TAPS, edit=published),
  Case("densenet161", "torchvision.models:densenet161", TAPS, edit=published),
  Case("densenet169", "torchvision.models:densenet169", TAPS, edit=published),
  Case("densenet201", "torchvision.models:densenet201", TAPS, edit=published),
  Case("densenet264", "tests.cases.densenet:densenet264", TAPS, instead=PAPER),
  Case("densenet264_k48", "tests.cases.densenet:densenet264", TAPS, args={"growth": 48},
       instead=PAPER),
  Case("chexnet", "tests.cases.densenet:chexnet", TAPS, "arnoweng", edit=as_arnoweng,
       instead="torchvision's DenseNet-121 with the 14 outputs of the published file"),
  Case("densenet121", "timm:create_model", TIMM, "timm", positional=("densenet121",)),
  Case("densenet121", "keras.applications:DenseNet121", KERAS, "keras",
       fields={"eps": 1.001e-5}, sizes=ODD),
]  # fmt: skip
NAMES = [
  Case("densenet169", "keras.applications:DenseNet169", KERAS, "keras"),
  Case("densenet201", "keras.applications:DenseNet201", KERAS, "keras"),
]
SMALLEST = ("densenet121", {"depths": (1, 1, 1, 1)})
GRADIENTS = Case(
  "densenet121", "torchvision.models:DenseNet", {}, positional=(32, (2, 2, 2, 2), 64),
  fields={"depths": (2, 2, 2, 2)},
)  # fmt: skip
