"""How timm, pytorchcv, Keras and TF-slim name the arrays of a pre-activation ResNet."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout, squeeze
from convert.rules import PYTORCHCV_RENAMES, TORCH_RENAMES, slim

KERAS_PARTS = {"preact_bn": "bn1", "1_bn": "bn2", "2_bn": "bn3", "0_conv": "downsample_0",
               "1_conv": "conv1", "2_conv": "conv2", "3_conv": "conv3"}  # fmt: skip
SLIM = slim(
  (r"^resnet_v2_\d+/block(\d)/unit_(\d+)/bottleneck_v2/",
   lambda m: f"layer{m[1]}_{int(m[2]) - 1}/"),
  (r"^resnet_v2_\d+/(?=conv1/)", ""),
  (r"^resnet_v2_\d+/logits/", "fc/"),
  (r"^resnet_v2_\d+/postnorm/", "norm/"),
  (r"/preact/", "/bn1/"),
  (r"/conv(\d)/BatchNorm/", lambda m: f"/bn{int(m[1]) + 1}/"),
  (r"/shortcut/", "/downsample_0/"),
)  # fmt: skip
RULES = {
  "slim": SLIM,
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
