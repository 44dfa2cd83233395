"""Xception: timm's names are ours; those of Keras, which counts the shortcuts, and of pytorchcv."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout
from convert.rules import TORCH_RENAMES

SHORTCUTS = ("block1", "block2", "block3", "block12")


def _place(block: int, i: int) -> int:
  """Where the i-th convolution stands in a block's Sequential; only the first block omits an
  activation before it."""
  return 3 * (i - 1) + (block > 1)


def _keras(m) -> str:
  block, i, norm = int(m[1]) - 1, int(m[2]), m[3]
  if block == 13:
    return f"bn{i + 2}/" if norm else f"conv{i + 2}/"
  return f"block{block}/rep_{_place(block, i) + bool(norm)}/"


KERAS = Rules(
  (
    (r"^block1_conv(\d)_bn/", r"bn\1/"),
    (r"^block1_conv(\d)/", r"conv\1/"),
    (r"^block(\d+)_sepconv(\d)(_bn)?/", _keras),
    (r"/depthwise_kernel$", "/conv1/depthwise_kernel"),
    (r"/pointwise_kernel$", "/pointwise/pointwise_kernel"),
    (r"^conv2d_(\d)/", lambda m: f"{SHORTCUTS[int(m[1])]}/skip/"),
    (r"^batch_normalization_(\d)/", lambda m: f"{SHORTCUTS[int(m[1])]}/skipbn/"),
    (r"^predictions/", "fc/"),
  ),
  KERAS_LEAVES,
  keras_layout,
  counted=("conv2d", "batch_normalization"),
)


def _mini_conv(m) -> str:
  place = int(m[1])
  return {0: "conv1/", 1: "conv2/", 6: "conv3/"}.get(place, f"block{place - 1}/skip/")


def _mini_norm(m) -> str:
  block, i = divmod(int(m[1]) - 2, 3)
  return f"block{block + 1}/{('skipbn', 'rep_1', 'rep_4')[i]}/" if block >= 0 else f"bn{i}/"


def _mini_separable(m) -> str:
  block, i = divmod(int(m[1]), 2)
  return f"block{block + 1}/rep_{3 * i}/"


MINI = Rules(  # its authors left all names to Keras
  (
    (r"^conv2d_(\d)/", _mini_conv),
    (r"^batch_normalization_(\d+)/", _mini_norm),
    (r"^separable_conv2d_(\d)/", _mini_separable),
    (r"/depthwise_kernel$", "/conv1/depthwise_kernel"),
    (r"/pointwise_kernel$", "/pointwise/pointwise_kernel"),
  ),
  KERAS_LEAVES,
  keras_layout,
  counted=("conv2d", "batch_normalization", "separable_conv2d"),
)
FIRST = {"1": 1, "2": 2, "3": 3, "4": 12}  # block that each of pytorchcv's stages begins with


def _pytorchcv(m) -> str:
  block, i, norm = int(m[1]), int(m[2]), m[3] == "bn"
  return f"block{block}.rep.{_place(block, i) + norm}."


PYTORCHCV = Rules((
  (r"^features\.init_block\.conv(\d)\.(conv|bn)\.", r"\2\1."),
  (r"^features\.final_block\.conv(\d)\.(conv|bn)\.", lambda m: f"{m[2]}{int(m[1]) + 2}."),
  (r"^features\.stage(\d)\.unit(\d)\.", lambda m: f"block{FIRST[m[1]] + int(m[2]) - 1}."),
  (r"\.identity_conv\.conv\.", ".skip."),
  (r"\.identity_conv\.bn\.", ".skipbn."),
  (r"^block(\d+)\.body\.block(\d)\.(conv|bn)\.", _pytorchcv),
  (r"\.dw_conv\.", ".conv1."),
  (r"\.pw_conv\.", ".pointwise."),
  (r"^output\.", "fc."),
  *TORCH_RENAMES,
))  # fmt: skip
RULES = {"keras": KERAS, "keras:mini_xception": MINI, "pytorchcv": PYTORCHCV}
