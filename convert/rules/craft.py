"""CRAFT: slices of torchvision's VGG-16 with batch norm, by their places in it."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES, vgg

PLACES = vgg.positions(vgg.DEPTHS["16"], batch_norm=True)
PARTS = {"0": "conv0", "1": "bn0", "3": "conv1", "4": "bn1"}
RULES = {
  "craft": Rules((
    (r"^basenet\.slice5\.1\.", "fc6."),
    (r"^basenet\.slice5\.2\.", "fc7."),
    (r"^basenet\.slice\d\.(\d+)\.", lambda m: f"{PLACES[int(m[1])]}."),
    (r"^(upconv\d)\.conv\.(\d)\.", lambda m: f"{m[1]}.{PARTS[m[2]]}."),
    (r"^conv_cls\.(\d)\.", lambda m: f"cls{int(m[1]) // 2}."),
    *TORCH_RENAMES,
  ))
}  # fmt: skip
