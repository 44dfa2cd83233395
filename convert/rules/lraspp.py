"""LR-ASPP of torchvision: a MobileNet v3 as the backbone, and the head's own names."""

from convert.engine import Rules
from convert.rules import mobilenet_v3

RULES = {
  "torchvision": Rules((
    (r"^(model\.)?backbone\.", "features."),  # some wrapped the whole in a module of training
    (r"^model\.", ""),
    (r"^\w+_(metric|loss)\..*", ""),  # counters of such a module
    *mobilenet_v3.torchvision("large").renames,
    (r"^(?!classifier)(?=.)", "backbone/"),
  ))
}  # fmt: skip
