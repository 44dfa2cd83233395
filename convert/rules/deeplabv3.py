"""DeepLabv3 and FCN of torchvision: the five branches of its pyramid."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

RULES = {
  "torchvision": Rules((
    TORCH_RENAMES[0],  # before names get their slashes
    (r"\.convs\.4\.1\.", ".convs.4.0."),  # the pooled branch begins with the pool
    (r"\.convs\.4\.2\.", ".convs.4.1."),
    (r"\.(convs\.\d|project)\.0\.", r".\1_conv."),
    (r"\.(convs\.\d|project)\.1\.", r".\1_bn."),
    (r"\.convs\.(\d)_", r".convs_\1_"),
    *((rf"^(classifier|aux_classifier)\.{i}\.", rf"\1/{i}/") for i in range(5)),
    *TORCH_RENAMES[1:],
  ))
}  # fmt: skip
