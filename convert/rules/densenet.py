"""DenseNet: torchvision's published files say `denselayer1.norm.1` where its code says `norm1`."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout, squeeze
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES

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
CAFFE = Rules((
  *CAFFE_BLOBS,
  (r"^conv1/(bn/)?", lambda m: f"{'norm' if m[1] else 'conv'}0/"),
  (r"^conv(\d)_(\d+)/x(\d)/(bn/)?",
   lambda m: f"denseblock{int(m[1]) - 1}/denselayer{m[2]}/{'norm' if m[4] else 'conv'}{m[3]}/"),
  (r"^conv5_blk/bn/", "norm5/"),
  (r"^conv(\d)_blk/(bn/)?", lambda m: f"transition{int(m[1]) - 1}/{'norm' if m[2] else 'conv'}/"),
  (r"^fc6/", "classifier/"),
), operations=(("params/classifier/kernel", squeeze),))  # fmt: skip
RULES = {
  "torchvision": TORCHVISION, "timm": TORCHVISION, "keras": KERAS, "caffe": CAFFE,
  "arnoweng": ARNOWENG,
}  # fmt: skip
