"""How timm, pytorchcv and Keras name the arrays of a pre-activation ResNet."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout, squeeze
from convert.rules import PYTORCHCV_RENAMES, TORCH_RENAMES

KERAS_PARTS = {"preact_bn": "bn1", "1_bn": "bn2", "2_bn": "bn3", "0_conv": "downsample_0",
               "1_conv": "conv1", "2_conv": "conv2", "3_conv": "conv3"}  # fmt: skip
RULES = {
  "pytorchcv": Rules(((r"^features\.post_activ\.bn\.", "norm."), *PYTORCHCV_RENAMES)),
  "timm": Rules(
    (
      (r"^stem\.conv\.", "conv1."),
      (r"^stages\.(\d)\.blocks\.", lambda m: f"layer{int(m[1]) + 1}."),
      (r"\.norm(\d)\.", r".bn\1."),
      (r"\.downsample\.conv\.", ".downsample.0."),
      (r"^head\.fc\.", "fc."),
      *TORCH_RENAMES,
    ),
    operations=((r"params/fc/kernel", squeeze),),
  ),
  "keras": Rules(
    (
      (r"^conv1_conv/", "conv1/"),
      (r"^post_bn/", "norm/"),
      (r"^predictions/", "fc/"),
      (
        r"^conv(\d)_block(\d+)_(\w+)/",
        lambda m: f"layer{int(m[1]) - 1}_{int(m[2]) - 1}/{KERAS_PARTS[m[3]]}/",
      ),
    ),
    KERAS_LEAVES,
    keras_layout,
  ),
}
