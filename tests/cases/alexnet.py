from tests.cases.vgg import flax_names
from tests.parity import Case


def lpips():
  widths = (3, 64, 192, 384, 256, 256)
  shapes = [(k, k, a, b) for k, a, b in zip((11, 5, 3, 3, 3), widths, widths[1:])]
  return flax_names("AlexNet_0", shapes, widths[1:])


def two_groups():
  """The 2012 net as Caffe has it, out of pytorchcv's one-tower form."""
  import torch
  from torch.nn import functional as F
  from pytorchcv.models import alexnet

  class Unit(torch.nn.Module):  # pytorchcv fixes the constant of its normalisation to the paper's 2
    def __init__(self, unit, groups):
      super().__init__()
      old = unit.conv
      self.conv = torch.nn.Conv2d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, groups=groups
      )
      self.normalize = unit.use_lrn

    def forward(self, x):
      x = torch.relu(self.conv(x))
      return F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if self.normalize else x

  net = alexnet.alexnet()
  units = {"1.unit1": 1, "2.unit1": 2, "3.unit1": 1, "3.unit2": 2, "3.unit3": 2}
  for path, groups in units.items():
    stage, unit = path.split(".")
    parent = net.features.get_submodule(f"stage{stage}")
    setattr(parent, unit, Unit(parent.get_submodule(unit), groups))
  return net


TORCH = {"stem": "features.1", "stage1": "features.4", "stage2": "features.11",
         "stage3": "features.12", "pooled": "classifier.5"}  # fmt: skip
# pytorchcv normalises inside the unit, so that only what comes after is an end point of ours.
PCV = {"stage2": "features.stage3.unit3", "stage3": "features.stage3.pool3"}
WHOLE = ((224, 224), (227, 227))  # pytorchcv's flatten takes no map but 6x6
CASES = [
  Case("alexnet", "torchvision.models:alexnet", TORCH, sizes=((224, 224), (97, 131))),
  Case("alexnet", "pytorchcv.models.alexnet:alexnetb", PCV, "pytorchcv",
       fields={"ceil": True}, sizes=((224, 224), (223, 225))),
  Case("alexnet_lrn", "pytorchcv.models.alexnet:alexnet", PCV, "pytorchcv", sizes=WHOLE),
  Case("alexnet_caffe", "tests.cases.alexnet:two_groups", PCV, "pytorchcv",
       sizes=WHOLE, instead="pytorchcv's one-tower net with convolutions 2, 4 and 5 in two "
       "groups and the normalisation's constant 1, as in Caffe's prototxt; the count is its count"),
]  # fmt: skip
NAMES = [Case("alexnet", "tests.cases.alexnet:lpips", {}, "lpips")]
SMALLEST = ("alexnet", {"hidden": 16})
GRADIENTS = Case("alexnet", "torchvision.models:alexnet", {})
