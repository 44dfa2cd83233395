"""BN-Inception: Cadene's names are ours; pytorchcv and TF-slim count branches."""

from convert.engine import Rules
from convert.rules import TORCH, TORCH_RENAMES, slim

BLOCKS = {"stage1": ("3a", "3b"), "stage2": ("3c", "4a", "4b", "4c", "4d"),
          "stage3": ("4e", "5a", "5b")}  # fmt: skip
PARTS = {
  "branch1": "1x1",
  "branch2.conv1": "3x3_reduce", "branch2.conv2": "3x3",
  "branch3.conv1": "double_3x3_reduce", "branch3.conv2": "double_3x3_1",
  "branch3.conv3": "double_3x3_2",
  "branch4.conv": "pool_proj",
}  # fmt: skip


def _part(m) -> str:
  block, part = BLOCKS[m[1]][int(m[2]) - 1], m[3]
  if block in ("3c", "4e"):  # without the 1x1 the others move up
    part = part.replace("branch2", "branch3").replace("branch1", "branch2")
  return f"inception_{block}_{PARTS[part]}{'_bn' if m[4] == 'bn' else ''}."


PYTORCHCV = Rules((
  (r"^features\.init_block\.conv1\.conv\.", "conv1_7x7_s2."),
  (r"^features\.init_block\.conv1\.bn\.", "conv1_7x7_s2_bn."),
  (r"^features\.init_block\.conv2\.conv1\.", "conv2_3x3_reduce."),
  (r"^features\.init_block\.conv2\.conv2\.", "conv2_3x3."),
  (r"^(conv2_\w+)\.conv\.", r"\1."),
  (r"^(conv2_\w+)\.bn\.", r"\1_bn."),
  (r"^features\.(stage\d)\.unit(\d)\.branches\.(branch\d(?:\.conv\d?(?=\.[cb]))?)\.(conv|bn)\.",
   _part),
  (r"^output\.", "last_linear."),
  *TORCH_RENAMES,
))  # fmt: skip
# TF-slim counts a stage's pool, or its block of stride 2, as the first: 3b is the paper's 3a.
SLIM_BLOCKS = dict(zip("3b 3c 4a 4b 4c 4d 4e 5a 5b 5c".split(), sum(BLOCKS.values(), ())))
BRANCHES = (("1x1",), ("3x3_reduce", "3x3"),
            ("double_3x3_reduce", "double_3x3_1", "double_3x3_2"), ("pool_proj",))  # fmt: skip
STEM = {"2b_1x1": "conv2_3x3_reduce", "2c_3x3": "conv2_3x3"}


def _slim(m) -> str:
  block, turn = SLIM_BLOCKS[m[1]], m[3]
  parts = BRANCHES[int(m[2]) + (block in ("3c", "4e"))]
  part = parts[-1] if turn == "1a" or len(parts) == 1 else parts["abc".index(turn[1])]
  return f"inception_{block}_{part}"


SLIM = slim(
  (r"^InceptionV2/Mixed_(\w\w)/Branch_(\d)/Conv2d_(\d\w)_\dx\d(?=/)", _slim),
  (r"^InceptionV2/Conv2d_1a_7x7/(?=depthwise_)", "conv1_7x7_s2_depthwise/"),
  (r"^InceptionV2/Conv2d_1a_7x7(?=/)", "conv1_7x7_s2"),
  (r"^InceptionV2/Conv2d_(2\w_\dx\d)(?=/)", lambda m: STEM[m[1]]),
  (r"^InceptionV2/Logits/Conv2d_1c_1x1/", "last_linear/"),
  (r"/BatchNorm/", "_bn/"),
  heads="last_linear",
)
RULES = {"cadene": TORCH, "pytorchcv": PYTORCHCV, "slim": SLIM}
