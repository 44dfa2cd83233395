"""How Keras, pytorchcv, TF-slim and TFLite name a MobileNet's arrays; timm's names are ours."""

from convert.engine import (
  KERAS_LEAVES,
  TFLITE_LEAVES,
  Rules,
  depthwise,
  keras_layout,
  squeeze,
  squeeze_keras,
  squeeze_tflite,
  tflite_layout,
)
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

FIRST = (1, 2, 4, 6, 12)  # Keras counts blocks from 1; these begin our stacks


def place(block: int) -> str:
  stack = max(s for s, first in enumerate(FIRST) if first <= block)
  return f"blocks_{stack}_{block - FIRST[stack]}"


KERAS = Rules(
  (
    (r"^.*/(?=[^/]+/[^/]+$)", ""),
    (r"^conv1/", "conv_stem/"),
    (r"^conv1_bn/", "bn1/"),
    (r"^conv_(dw|pw)_(\d+)/", lambda m: f"{place(int(m[2]))}/conv_{m[1]}/"),
    (r"^conv_dw_(\d+)_bn/", lambda m: f"{place(int(m[1]))}/bn1/"),
    (r"^conv_pw_(\d+)_bn/", lambda m: f"{place(int(m[1]))}/bn2/"),
    (r"^conv_preds/", "classifier/"),
  ),
  KERAS_LEAVES,
  keras_layout,
  operations=(
    ("params/classifier/kernel", squeeze_keras),
    (".*/conv_dw/kernel", depthwise),
  ),
)
PYTORCHCV = Rules((
  (r"^features\.init_block\.conv\.", "conv_stem."),
  (r"^features\.init_block\.bn\.", "bn1."),
  (r"^features\.stage(\d)\.unit(\d)\.", lambda m: f"blocks_{int(m[1]) - 1}_{int(m[2]) - 1}."),
  (r"(?<=\d)\.dw_conv\.conv\.", ".conv_dw."), (r"(?<=\d)\.dw_conv\.bn\.", ".bn1."),
  (r"(?<=\d)\.pw_conv\.conv\.", ".conv_pw."), (r"(?<=\d)\.pw_conv\.bn\.", ".bn2."),
  (r"^output\.", "classifier."),
  *TORCH_RENAMES,
))  # fmt: skip
# By the order of operations: the stem, 13 blocks of a depthwise and a 1x1 convolution, the head.
TFLITE = Rules(
  (
    (r"^(?!CONV_2D_|DEPTHWISE_CONV_2D_).*", ""),  # shapes
    (r"^CONV_2D_0\.", "conv_stem/"),
    (r"^CONV_2D_14\.", "classifier/"),
    (r"^CONV_2D_(\d+)\.", lambda m: f"{place(int(m[1]))}/conv_pw/"),
    (r"^DEPTHWISE_CONV_2D_(\d+)\.", lambda m: f"{place(int(m[1]) + 1)}/conv_dw/"),
  ),
  TFLITE_LEAVES,
  tflite_layout,
  operations=(("params/classifier/kernel", squeeze_tflite),),
)


# In Caffe the blocks of a width share a number; both convolutions of a block have a norm.
CAFFE_BLOCKS = dict(zip(
  ("2_1", "2_2", "3_1", "3_2", "4_1", "4_2", *(f"5_{i}" for i in range(1, 7)), "6"), range(1, 14)
))  # fmt: skip


def _caffe(m) -> str:
  block, part, norm = m.groups()
  name = {"dw": ("conv_dw", "bn1"), "sep": ("conv_pw", "bn2")}[part][norm is not None]
  return f"{place(CAFFE_BLOCKS[block])}/{name}/"


CAFFE = Rules((
  *CAFFE_BLOBS,
  (r"^conv1/bn/", "bn1/"),
  (r"^conv1/", "conv_stem/"),
  (r"^conv(\d(?:_\d)?)/(dw|sep)/(bn/)?", _caffe),
  (r"^fc7/", "classifier/"),
), operations=(("params/classifier/kernel", squeeze),))  # fmt: skip
SLIM_PARTS = {"depthwise": ("conv_dw", "bn1"), "pointwise": ("conv_pw", "bn2")}


def _slim(m) -> str:
  return f"{place(int(m[1]))}/{SLIM_PARTS[m[2]][bool(m[3])]}/"


SLIM = slim(
  (r"^MobilenetV1/Conv2d_0/BatchNorm/", "bn1/"),
  (r"^MobilenetV1/Conv2d_0/", "conv_stem/"),
  (r"^MobilenetV1/Conv2d_(\d+)_(depthwise|pointwise)/(BatchNorm/)?", _slim),
  (r"^MobilenetV1/Logits/Conv2d_1c_1x1/", "classifier/"),
  heads="classifier",
)
RULES = {
  "caffe": CAFFE, "keras": KERAS, "pytorchcv": PYTORCHCV, "slim": SLIM, "tflite": TFLITE,
}  # fmt: skip
