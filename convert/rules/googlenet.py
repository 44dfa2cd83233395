"""GoogLeNet: torchvision's names; its auxiliary heads flatten a map of 128 channels."""

from convert.engine import Rules, chw_to_hwc
from convert.rules import TORCH_RENAMES

FLATTEN = (("params/aux[12]/fc1/kernel", chw_to_hwc(128, 4, 4)),)
RULES = {"torchvision": Rules(TORCH_RENAMES, operations=FLATTEN)}
