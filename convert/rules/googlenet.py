"""GoogLeNet of torchvision, whose auxiliary heads flatten 128 channels, of TF-slim and of Caffe."""

from convert.engine import Rules, chw_to_hwc
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

FLATTEN = (("params/aux[12]/fc1/kernel", chw_to_hwc(128, 4, 4)),)
STEM = {"1a_7x7": "conv1", "2b_1x1": "conv2", "2c_3x3": "conv3"}


def _slim(m) -> str:
  """TF-slim counts a stage's pool as its first block: 3b is the paper's 3a."""
  stage, letter, branch, kernel = m[1], chr(ord(m[2]) - 1), int(m[3]) + 1, m[4]
  part = {1: "", 4: "_1"}.get(branch, "_0" if kernel == "1x1" else "_1")
  return f"inception{stage}{letter}/branch{branch}{part}/"


SLIM = slim(
  (r"^InceptionV1/Mixed_(\d)(\w)/Branch_(\d)/Conv2d_0\w_(\dx\d)/", _slim),
  (r"^InceptionV1/Conv2d_(\w+)/", lambda m: f"{STEM[m[1]]}/"),
  (r"^InceptionV1/Logits/Conv2d_0c_1x1/", "fc/"),
  (r"/BatchNorm/", "/bn/"),
  (r"(?<!^fc)/(?=weights$)", "/conv/"),
)
CAFFE_STEM = {"1/7x7_s2": "conv1", "2/3x3_reduce": "conv2", "2/3x3": "conv3"}
CAFFE_PARTS = {"1x1": "branch1", "3x3_reduce": "branch2_0", "3x3": "branch2_1",
               "5x5_reduce": "branch3_0", "5x5": "branch3_1", "pool_proj": "branch4_1"}  # fmt: skip
# Without norms, so that biases become those of norms that change nothing.
CAFFE = Rules((
  (r"^loss[12]/.*", ""),  # the auxiliary heads
  (r"^conv([12]/\w+)/(?=\d$)", lambda m: f"{CAFFE_STEM[m[1]]}/conv/"),
  (r"^inception_(\d\w)/(\w+)/(?=\d$)", lambda m: f"inception{m[1]}/{CAFFE_PARTS[m[2]]}/conv/"),
  (r"^loss3/classifier/", "fc/"),
  *CAFFE_BLOBS,
))  # fmt: skip
RULES = {"caffe": CAFFE, "torchvision": Rules(TORCH_RENAMES, operations=FLATTEN), "slim": SLIM}
