"""How torchvision, Keras, TF-slim and Caffe name a MobileNetV2's arrays; timm's names are ours."""

from convert.engine import KERAS_LEAVES, Rules, depthwise, keras_layout, squeeze
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

# Both count the blocks through, across stacks of these depths.
BLOCKS = [(s, i) for s, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(depth)]
# The parts of a block in order of computation; the first block has no expansion.
FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")
OTHER = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")


def torchvision_part(m) -> str:
  """features.7.conv.1.0 -> blocks_3_0.conv_dw; its last convolution and norm stand unnested."""
  (s, i), parts = BLOCKS[int(m[1]) - 1], OTHER if int(m[1]) > 1 else FIRST
  index = int(m[2]) * 2 + int(m[3]) if m[3] else len(parts) // 2 - 1 + int(m[2])
  return f"blocks_{s}_{i}.{parts[index]}."


def keras_part(m) -> str:
  """block_6_depthwise_BN -> blocks_3_0/bn2; the first is called expanded_conv."""
  (s, i), parts = BLOCKS[int(m[1] or 0)], OTHER if m[1] else FIRST
  steps = ("expand", "depthwise", "project") if m[1] else ("depthwise", "project")
  return f"blocks_{s}_{i}/{parts[2 * steps.index(m[2]) + (m[3] is not None)]}/"


TORCHVISION = Rules((
  (r"^features\.0\.0\.", "conv_stem."),
  (r"^features\.0\.1\.", "bn1."),
  (r"^features\.18\.0\.", "conv_head."),
  (r"^features\.18\.1\.", "bn2."),
  (r"^features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?", torchvision_part),
  (r"^classifier\.1\.", "classifier."),
  *TORCH_RENAMES,
))  # fmt: skip
KERAS = Rules(
  (
    (r"^.*/(?=[^/]+/[^/]+$)", ""),
    (r"^Conv1/", "conv_stem/"),
    (r"^bn_Conv1/", "bn1/"),
    (r"^(?:block_(\d+)|expanded_conv)_([a-z]+)(_BN)?/", keras_part),
    (r"^Conv_1/", "conv_head/"),
    (r"^Conv_1_bn/", "bn2/"),
    (r"^(predictions|Logits)/", "classifier/"),
  ),
  KERAS_LEAVES,
  keras_layout,
  operations=((".*/conv_dw/kernel", depthwise),),
)
SLIM = slim(
  (r"^MobilenetV2/Conv/BatchNorm/", "bn1/"),
  (r"^MobilenetV2/Conv/", "conv_stem/"),
  (r"^MobilenetV2/Conv_1/BatchNorm/", "bn2/"),
  (r"^MobilenetV2/Conv_1/", "conv_head/"),
  (r"^MobilenetV2/expanded_conv(?:_(\d+))?/([a-z]+)/(BatchNorm/)?", keras_part),
  (r"^MobilenetV2/Logits/Conv2d_1c_1x1/", "classifier/"),
  heads="classifier",
)
# In Caffe the blocks between two strides share a number, and the first is expanded, too.
CAFFE_BLOCKS = [
  f"{s}_{i}" for s, depth in ((2, 2), (3, 2), (4, 7), (5, 3), (6, 3)) for i in range(1, depth + 1)
]


def _caffe(m) -> str:
  s, i = BLOCKS[CAFFE_BLOCKS.index(m[1])]
  part = ("expand", "dwise", "linear").index(m[2])
  return f"blocks_{s}_{i}/{OTHER[2 * part + (m[3] is not None)]}/"


CAFFE = Rules((
  *CAFFE_BLOBS,
  (r"^conv1/bn/", "bn1/"),
  (r"^conv1/", "conv_stem/"),
  (r"^conv6_4/bn/", "bn2/"),
  (r"^conv6_4/", "conv_head/"),
  (r"^conv(\d_\d)/(expand|dwise|linear)/(bn/)?", _caffe),
  (r"^fc7/", "classifier/"),
), operations=(("params/classifier/kernel", squeeze),))  # fmt: skip
RULES = {"caffe": CAFFE, "torchvision": TORCHVISION, "keras": KERAS, "slim": SLIM}
