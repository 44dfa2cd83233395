"""PolyNet: Cadene's names are the zoo's; pytorchcv counts units, each a poly-3 and a 2-way."""

from convert.engine import Rules
from convert.rules import TORCH, TORCH_RENAMES

STEM = {"block2.branches.branch1": "conv2_short", "block2.branches.branch2": "conv2_long"}
KERNELS = {"b": ("1x1", "1x7", "7x1"), "c": ("1x1", "1x3", "3x1")}


def _block(m) -> str:
  stage, unit, kind = m[1], int(m[2]), m[3]
  if stage == "1":
    return f"stage_a.{unit - 1}."
  return f"stage_{'bc'[int(stage) - 2]}.{2 * (unit - 2) + (kind == 'twoway')}."  # behind unit1


PYTORCHCV = Rules((
  (r"^features\.init_block\.conv(\d)\.", lambda m: f"stem.conv1.{int(m[1]) - 1}."),
  (r"^features\.init_block\.block1\.branches\.branch2\.conv\.", "stem.conv1_branch."),
  (r"^features\.init_block\.block3\.branches\.branch2\.conv\.", "stem.conv2_branch."),
  (r"^features\.init_block\.(block2\.branches\.branch\d)\.conv_list\.conv(\d)\.",
   lambda m: f"stem.{STEM[m[1]]}.{int(m[2]) - 1}."),
  (r"^features\.stage([23])\.unit1\.", lambda m: f"reduction_{'ab'[int(m[1]) - 2]}."),
  (r"^(reduction_a)\.branches\.branch2\.conv_list\.conv1\.", r"\1.path1."),
  (r"^features\.stage(\d)\.unit(\d+)\.(poly|twoway)\.", _block),
  # A poly-3's branches share their kernels, each with norms of its own.
  (r"^(stage_([bc])\.\d+)\.pre_block\.branches\.branch1\.conv_list\.conv(\d)\.",
   lambda m: f"{m[1]}.path0_{KERNELS[m[2]][int(m[3]) - 1]}."),
  (r"\.pre_block\.branches\.branch2\.", ".path1."),
  (r"\.bns\.(\d)\.", r".bn_blocks.\1."),
  (r"\.res_blocks\.(\d)\.(?=(?:conv|bn)\.[^.]+$)", r".conv2d_blocks.\1."),
  (r"\.res_blocks\.(\d)\.conv\.", r".blocks.\1.conv2d."),
  (r"\.res_blocks\.(\d)\.", r".blocks.\1."),
  (r"\.branches\.branch(\d)\.conv_list\.conv(\d)\.",
   lambda m: f".path{int(m[1]) - 1}.{int(m[2]) - 1}."),
  (r"\.branches\.branch(\d)\.conv\.", lambda m: f".path{int(m[1]) - 1}."),
  (r"^output\.fc\.", "last_linear."),
  *TORCH_RENAMES,
))  # fmt: skip
RULES = {"cadene": TORCH, "pytorchcv": PYTORCHCV}
