"""timm's and Cadene's files of DPN: the classifier is a 1x1 convolution there."""

import dataclasses

from convert.engine import squeeze
from convert.rules import TORCH, TORCH_RENAMES

TIMM = dataclasses.replace(
  TORCH,
  renames=((r"^features\.", ""), (r"^last_linear\.", "classifier."), *TORCH_RENAMES),
  operations=((r"params/classifier/kernel", squeeze),),
)
RULES = {"timm": TIMM, "cadene": TIMM}
