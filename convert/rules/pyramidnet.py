"""How pytorchcv names the arrays of a PyramidNet: a bottleneck's last norm stands beside it."""

from convert.engine import Rules
from convert.rules import PYTORCHCV_RENAMES

RULES = {
  "pytorchcv": Rules((
    (r"^features\.post_activ\.bn\.", "norm."),
    (r"^(features\.stage.*)\.bn\.(?=\w+$)(?<!conv\d\.bn\.)", r"\1.bn4."),
    *PYTORCHCV_RENAMES,
  )),
}  # fmt: skip
