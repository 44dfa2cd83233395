"""DenseNet: published files say `denselayer1.norm.1` where torchvision's code says `norm1`."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout
from convert.rules import TORCH_RENAMES

RENAMES = (
  (r"^features\.", ""),
  (r"\.(norm|conv)\.([12])\.", r".\1\2."),
  *TORCH_RENAMES,
)
KERAS = Rules(
  (
    (r"^conv1_conv/", "conv0/"),
    (r"^conv1_bn/", "norm0/"),
    (r"^conv(\d)_block(\d+)_", lambda m: f"denseblock{int(m[1]) - 1}/denselayer{m[2]}/"),
    (r"/0_bn/", "/norm1/"),
    (r"/1_conv/", "/conv1/"),
    (r"/1_bn/", "/norm2/"),
    (r"/2_conv/", "/conv2/"),
    (r"^pool(\d)_", lambda m: f"transition{int(m[1]) - 1}/"),
    (r"^(transition\d)/bn/", r"\1/norm/"),
    (r"^bn/", "norm5/"),
    (r"^predictions/", "classifier/"),
  ),
  KERAS_LEAVES,
  keras_layout,
)
TORCHVISION = Rules(RENAMES)
# DataParallel around a torchvision net whose classifier is Sequential(Linear, Sigmoid).
ARNOWENG = Rules(((r"^module\.densenet121\.", ""), (r"^classifier\.0\.", "classifier."), *RENAMES))
RULES = {"torchvision": TORCHVISION, "timm": TORCHVISION, "keras": KERAS, "arnoweng": ARNOWENG}
