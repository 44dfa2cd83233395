"""Renaming from foreign names to ours, one file a family where the common rules do not suffice.

A family's file holds RULES: dialect -> `Rules`. Submodules carry torchvision's or timm's names
wherever those have the family, so that most need no file at all.
"""

import importlib
import importlib.util

from convert.engine import KERAS_LEAVES, Operation, Rules, flatten_keras, keras_layout

TORCH_RENAMES = (
  (r".*\.num_batches_tracked$", ""),  # dropped
  # rnn.weight_ih_l0_reverse -> rnn.l0_reverse.ih.weight, cell.bias_hh -> cell.hh.bias
  (r"\b(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)$", r"\3.\2.\1"),
  (r"\b(weight|bias)_(ih|hh)$", r"\2.\1"),
  (r"\.(\d+)(?=\.)", r"_\1"),  # layer1.0.conv1.weight -> layer1_0.conv1.weight
  (r"\.", "/"),
)
TORCH = Rules(TORCH_RENAMES)
# pytorchcv's residual networks, towards torchvision's names.
PYTORCHCV_RENAMES = (
  (r"^features\.init_block\.conv(\d)\.(conv|bn)\.", r"\2\1."),
  (r"^features\.init_block(\.conv)?\.(conv|bn)\.", r"\g<2>1."),
  (r"^features\.stage(\d)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
  (r"\.body\.conv(\d)\.(conv|bn)\.", r".\2\1."),
  (r"\.se\.conv(\d)\.", r".se.fc\1."),
  (r"\.identity_conv\.(conv\.)?(?=weight|bias)", ".downsample.0."),
  (r"\.identity_conv\.bn\.", ".downsample.1."),
  (r"^output\.(fc\.)?", "fc."),
  *TORCH_RENAMES,
)
CAFFE_BLOBS = (  # what is a layer of statistics and one of scales in Caffe is one norm, /bn
  (r"/bn/0$", "/bn/running_mean"), (r"/bn/1$", "/bn/running_var"),
  (r"/(?:bn/)?scale/(?=\d$)", "/bn/"), (r"/0$", "/weight"), (r"/1$", "/bias"),
)  # fmt: skip
SLIM_LEAVES = dict(KERAS_LEAVES)  # a mapping of its own: Keras reads no file of these names
SLIM_ASIDE = (  # what training leaves beside the weights
  (r"^(global_step|.*/(Momentum|Adam(_1)?|RMSProp(_1)?))$", ""),
)
SLIM_ENDS = (
  (r"/depthwise_weights$", "/depthwise_kernel"),
  (r"/(pointwise_)?weights$", "/kernel"),
  (r"/biases$", "/bias"),
)


def slim(*renames, heads: str = "fc") -> Rules:
  """Of TF-slim: Keras's layouts under other names; dense layers are convolutions there."""
  flat: tuple[tuple[str, Operation], ...] = ((rf"params/({heads})/kernel", flatten_keras),)
  return Rules((*SLIM_ASIDE, *renames, *SLIM_ENDS), SLIM_LEAVES, keras_layout, flat)


COMMON = {"torchvision": TORCH, "timm": TORCH, "pytorchcv": Rules(PYTORCHCV_RENAMES)}


def of(family: str, dialect: str, variant: str = "") -> Rules:
  """The rules of a family (the name of its file in the zoo) for a dialect.

  Where a dialect counts layers, so that each variant has its own names (VGG, SqueezeNet), RULES has
  rows "dialect:variant", which come before "dialect".
  """
  name = f"convert.rules.{family}"
  known = dict(COMMON)
  if importlib.util.find_spec(name):
    known |= importlib.import_module(name).RULES
  if f"{dialect}:{variant}" in known:
    return known[f"{dialect}:{variant}"]
  if dialect not in known:
    raise ValueError(f"no rules for {family} in dialect {dialect!r}; there are {sorted(known)}")
  return known[dialect]
