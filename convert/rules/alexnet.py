"""AlexNet: positions in `nn.Sequential` to the 2012 names."""

from convert.engine import KERAS_LEAVES, Rules, chw_to_hwc, keras_layout
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

TORCHVISION = (
  ("features.0", "conv1"), ("features.3", "conv2"), ("features.6", "conv3"),
  ("features.8", "conv4"), ("features.10", "conv5"),
  ("classifier.1", "fc6"), ("classifier.4", "fc7"), ("classifier.6", "fc8"),
)  # fmt: skip
PYTORCHCV = (
  ("features.stage1.unit1.conv", "conv1"), ("features.stage2.unit1.conv", "conv2"),
  ("features.stage3.unit1.conv", "conv3"), ("features.stage3.unit2.conv", "conv4"),
  ("features.stage3.unit3.conv", "conv5"),
  ("output.fc1.fc", "fc6"), ("output.fc2.fc", "fc7"), ("output.fc3", "fc8"),
)  # fmt: skip
FLATTEN = (("params/fc6/kernel", chw_to_hwc(256, 6, 6)),)


def _rules(names) -> Rules:
  renames = tuple((rf"^{theirs}\.(?=[wb])", rf"{ours}/") for theirs, ours in names)
  return Rules(renames + TORCH_RENAMES, operations=FLATTEN)


LPIPS = Rules(  # Flax's own counting; the metric's weights on top are dropped
  (
    (r"^NetLinLayer_\d\..*", ""),
    (r"^AlexNet_0\.Conv_(\d)\.", lambda m: f"conv{int(m[1]) + 1}/"),
  ),
  KERAS_LEAVES,
  keras_layout,
)
SLIM = slim((r"^alexnet_v2/", ""), heads="fc[678]")
RULES = {
  "caffe": Rules(CAFFE_BLOBS, operations=FLATTEN),
  "slim": SLIM,
  "lpips": LPIPS,
  "torchvision": _rules(TORCHVISION),
  "pytorchcv": _rules(PYTORCHCV),
}
