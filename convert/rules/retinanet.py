"""RetinaNet of torchvision, and its feature pyramid; published files have older names."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

PYRAMID = (
  (r"^backbone\.(?=body\.|fpn\.)", ""),
  (r"^fpn\.extra_blocks\.", "fpn."),
  (r"^(fpn\.(?:inner|layer)_blocks\.\d)\.(?=weight$|bias$)", r"\1.0."),
)
RULES = {
  "torchvision": Rules((
    *PYRAMID,
    (r"^head\.", ""),
    # one convolution and its activation took two places
    (r"^(\w+_head\.conv)\.(\d)\.(?=weight$|bias$)", lambda m: f"{m[1]}.{int(m[2]) // 2}.0."),
    *TORCH_RENAMES,
  ))
}  # fmt: skip
