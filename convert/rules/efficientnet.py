"""How efficientnet_lite_pytorch names an EfficientNet-Lite's arrays; timm's names are ours."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

# Blocks of each stack of Lite0 to Lite4; the package counts them through.
DEPTHS = (
  (1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 5, 5, 6, 1),
  (1, 4, 4, 6, 6, 8, 1),
)  # fmt: skip
# Its name of a part -> ours, in the first block, which has no expansion, and in the others.
PARTS = {
  "_expand_conv": (None, "conv_pw"), "_bn0": (None, "bn1"),
  "_depthwise_conv": ("conv_dw", "conv_dw"), "_bn1": ("bn1", "bn2"),
  "_project_conv": ("conv_pw", "conv_pwl"), "_bn2": ("bn2", "bn3"),
}  # fmt: skip


def _elp(depths) -> Rules:
  blocks = [(s, i) for s, depth in enumerate(depths) for i in range(depth)]

  def part(m):
    s, i = blocks[int(m[1])]
    return f"blocks_{s}_{i}.{PARTS[m[2]][m[1] != '0']}."

  return Rules((
    (r"^_blocks\.(\d+)\.(\w+)\.", part),
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
    *TORCH_RENAMES,
  ))  # fmt: skip


RULES = {f"elp:tf_efficientnet_lite{i}": _elp(depths) for i, depths in enumerate(DEPTHS)}
