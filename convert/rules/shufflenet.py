"""How pytorchcv names a ShuffleNet's arrays; torchvision's names are ours."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

FRAME = (
  (r"^features\.init_block\.conv\.conv\.|^features\.init_block\.conv\.(?=weight)", "conv1_0."),
  (r"^features\.init_block\.(conv\.)?bn\.", "conv1_1."),
  (r"^features\.stage(\d)\.unit(\d)", lambda m: f"stage{int(m[1]) + 1}.{int(m[2]) - 1}"),
  (r"^features\.final_block\.conv\.", "conv5.0."),
  (r"^features\.final_block\.bn\.", "conv5.1."),
  (r"^output\.", "fc."),
)
UNIT2 = (
  (r"\.compress_conv1\.", ".branch2.0."), (r"\.compress_bn1\.", ".branch2.1."),
  (r"\.dw_conv2\.", ".branch2.3."), (r"\.dw_bn2\.", ".branch2.4."),
  (r"\.expand_conv3\.", ".branch2.5."), (r"\.expand_bn3\.", ".branch2.6."),
  (r"\.dw_conv4\.", ".branch1.0."), (r"\.dw_bn4\.", ".branch1.1."),
  (r"\.expand_conv5\.", ".branch1.2."), (r"\.expand_bn5\.", ".branch1.3."),
)  # fmt: skip
UNIT2B = (
  (r"\.shortcut_dconv\.conv\.", ".branch1.0."), (r"\.shortcut_dconv\.bn\.", ".branch1.1."),
  (r"\.shortcut_conv\.conv\.", ".branch1.2."), (r"\.shortcut_conv\.bn\.", ".branch1.3."),
  (r"(?<=\d)\.conv1\.conv\.", ".branch2.0."), (r"(?<=\d)\.conv1\.bn\.", ".branch2.1."),
  (r"\.dconv\.conv\.", ".branch2.3."), (r"\.dconv\.bn\.", ".branch2.4."),
  (r"\.conv2\.conv\.", ".branch2.5."), (r"\.conv2\.bn\.", ".branch2.6."),
)  # fmt: skip
RULES = {
  "pytorchcv": Rules((*FRAME, *TORCH_RENAMES)),
  "pytorchcv:shufflenet_v2_x1_0": Rules((*FRAME, *UNIT2, *TORCH_RENAMES)),
  "pytorchcv:shufflenetv2b_w1": Rules((*FRAME, *UNIT2B, *TORCH_RENAMES)),
}
