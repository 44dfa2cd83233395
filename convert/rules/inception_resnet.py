"""Inception-ResNet: timm's names (v2) and FaceNet's (v1) are ours; Keras counts layers.

TF-slim names blocks and branches.
"""

from convert.engine import KERAS_LEAVES, Rules, keras_layout
from convert.rules import TORCH, TORCH_RENAMES, slim
from convert.rules.inception_v4 import chained

CADENE = Rules(((r"^last_linear\.", "classif."), *TORCH_RENAMES))


def _order():
  """Our names in the order in which Keras builds convolutions that it does not name."""
  yield from ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a")
  three = ("branch0", "branch1_0", "branch1_1", "branch2_0", "branch2_1", "branch2_2")
  two = ("branch0", "branch1_0", "branch1_1", "branch1_2")
  yield from (f"mixed_5b/{part}" for part in (*three, "branch3_1"))
  yield from (f"repeat_{i}/{part}" for i in range(10) for part in three)
  yield from (f"mixed_6a/{part}" for part in two)
  yield from (f"repeat_1_{i}/{part}" for i in range(20) for part in two)
  parts = ("0_0", "0_1", "1_0", "1_1", "2_0", "2_1", "2_2")
  yield from (f"mixed_7a/branch{part}" for part in parts)
  blocks = (*(f"repeat_2_{i}" for i in range(9)), "block8")
  yield from (f"{block}/{part}" for block in blocks for part in two)


ORDER = tuple(_order())
KERAS_BLOCKS = {"35": "repeat_", "17": "repeat_1_", "8": "repeat_2_"}
KERAS = Rules(
  (
    (r"^conv2d_(\d+)/", lambda m: f"{ORDER[int(m[1])]}/conv/"),
    (r"^batch_normalization_(\d+)/", lambda m: f"{ORDER[int(m[1])]}/bn/"),
    (r"^block8_10_conv/", "block8/conv2d/"),
    (r"^block(35|17|8)_(\d+)_conv/",
     lambda m: f"{KERAS_BLOCKS[m[1]]}{int(m[2]) - 1}/conv2d/"),
    (r"^conv_7b/", "conv2d_7b/conv/"),
    (r"^conv_7b_bn/", "conv2d_7b/bn/"),
    (r"^predictions/", "classif/"),
  ),
  KERAS_LEAVES,
  keras_layout,
  counted=("conv2d", "batch_normalization"),
)  # fmt: skip

STEM = ("1a", "2a", "2b", "3b", "4a", "4b")


def _unit(m) -> str:
  stage, unit = int(m[1]), int(m[2])
  if stage > 1 and unit == 1:
    return f"mixed_{stage + 4}a."
  if (stage, unit) == (3, 7):
    return "block8."
  return f"repeat_{stage}.{unit - (1 if stage == 1 else 2)}."


PYTORCHCV = Rules((
  (r"^features\.init_block\.conv(\d)\.", lambda m: f"conv2d_{STEM[int(m[1]) - 1]}."),
  (r"^features\.stage(\d)\.unit(\d+)\.", _unit),
  (r"\.branches\.branch(\d)\.conv\.", lambda m: f".branch{int(m[1]) - 1}."),
  (r"^(mixed_6a)\.branches\.branch1\.conv_list\.conv1\.", r"\1.branch0."),
  (r"\.branches\.branch(\d)\.conv_list\.conv(\d)\.",
   lambda m: f".branch{int(m[1]) - 1}.{int(m[2]) - 1}."),
  (r"^(repeat_\d\.\d+|block8)\.conv\.", r"\1.conv2d."),
  (r"^output\.fc1\.", "last_linear."),
  (r"^output\.bn\.", "last_bn."),
  (r"^output\.fc2\.", "logits."),
  *TORCH_RENAMES,
))  # fmt: skip
CHAINS = {"mixed_5b": (1, 2, 3, 2), "mixed_6a": (1, 3), "mixed_7a": (2, 2, 3)}


def _branch(m) -> str:
  block, branch, turn = m[1], int(m[2]), m[3] or "0a"  # a branch of one has no turn
  length = CHAINS[block][branch] if block in CHAINS else 1 if not m[3] else 3
  return f"{block}/{chained(length, branch, turn)}/"


SLIM = slim(
  (r"^InceptionResnetV2/AuxLogits/.*", ""),  # the second classifier, which only training uses
  (r"^InceptionResnetV2/", ""),
  (r"^Logits/Logits/", "classif/"),
  (r"^Conv2d_(\d\w)_\dx\d/", r"conv2d_\1/"),
  (r"^Mixed_(?=\w\w/)", "mixed_"),
  (r"^Repeat(_\d)?/block\d+_(\d+)/", lambda m: f"repeat{m[1] or ''}_{int(m[2]) - 1}/"),
  (r"^Block8/", "block8/"),
  (r"^(\w+)/Branch_(\d)/Conv2d_(?:(\d\w)_)?\dx\d/", _branch),
  (r"/Conv2d_1x1/", "/conv2d/"),
  (r"/BatchNorm/", "/bn/"),
  (r"(?<!classif)(?<!/conv2d)/(?=weights$)", "/conv/"),
)
RULES = {
  "cadene": CADENE, "facenet": TORCH, "keras": KERAS, "pytorchcv": PYTORCHCV, "slim": SLIM,
}  # fmt: skip
