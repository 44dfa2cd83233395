"""How torchvision and Keras name a MobileNet v3's arrays; timm's names are ours."""

from convert.engine import KERAS_LEAVES, Rules, depthwise, keras_layout, squeeze, squeeze_keras
from convert.rules import TORCH_RENAMES

# Blocks of each stack.  torchvision and Keras count them through.
DEPTHS = {"large": (1, 2, 3, 4, 2, 3), "small": (1, 2, 3, 2, 3)}
# Whether a block squeezes, by stack.
SQUEEZES = {"large": "001011", "small": "10111"}


def places(size: str) -> list[tuple[int, int]]:
  """[(stack, place in it)] of all blocks in order, and of the last convolution."""
  depths = (*DEPTHS[size], 1)
  return [(s, i) for s, depth in enumerate(depths) for i in range(depth)]


def torchvision(size: str) -> Rules:
  """Its blocks count their parts, of which the first stack's have no expansion."""
  where = places(size)

  def part(m):
    (s, i), index = where[int(m[1]) - 1], int(m[2])
    squeezes = SQUEEZES[size][s] == "1"
    conv, norm = ("dw", "pw") if s == 0 else ("pw", "dw", "pwl"), ("bn1", "bn2", "bn3")
    if squeezes and index == len(conv) - 1:
      return f"blocks_{s}_{i}.se."
    index -= squeezes and index == len(conv)
    name = f"conv_{conv[index]}" if m[3] == "0." else norm[index]
    return f"blocks_{s}_{i}.{name}."

  return Rules((
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.(\d+)\.block\.(\d)\.([01]\.|)", part),
    (r"\.se\.fc1\.", ".se.conv_reduce."),
    (r"\.se\.fc2\.", ".se.conv_expand."),
    (rf"^features\.{len(where)}\.0\.", f"blocks_{len(DEPTHS[size])}_0.conv."),
    (rf"^features\.{len(where)}\.1\.", f"blocks_{len(DEPTHS[size])}_0.bn1."),
    (r"^classifier\.0\.", "conv_head."),
    (r"^classifier\.3\.", "classifier."),
    *TORCH_RENAMES,
  ))  # fmt: skip


def keras(size: str) -> Rules:
  where, last = places(size), len(DEPTHS[size])
  parts = {
    "expand": "conv_pw", "expand_bn": "bn1", "depthwise": "conv_dw", "depthwise_bn": "bn2",
    "project": "conv_pwl", "project_bn": "bn3",
    "squeeze_excite_conv": "se/conv_reduce", "squeeze_excite_conv_1": "se/conv_expand",
  }  # fmt: skip
  first = parts | {
    "depthwise_bn": "bn1", "project": "conv_pw", "project_bn": "bn2",
  }  # fmt: skip

  def part(m):
    s, i = where[int(m[1] or 0)]
    return f"blocks_{s}_{i}/{(parts if m[1] else first)[m[2]]}/"

  return Rules(
    (
      (r"^.*/(?=[^/]+/[^/]+$)", ""),
      (r"^conv/", "conv_stem/"), (r"^conv_bn/", "bn1/"),
      (r"^expanded_conv_(?:(\d+)_)?([a-z][^/]*)/", part),
      (r"^conv_1/", f"blocks_{last}_0/conv/"), (r"^conv_1_bn/", f"blocks_{last}_0/bn1/"),
      (r"^conv_2/", "conv_head/"), (r"^logits/", "classifier/"),
    ),
    KERAS_LEAVES,
    keras_layout,
    operations=(
      ("params/(conv_head|classifier)/kernel", squeeze_keras),
      (".*/conv_dw/kernel", depthwise),
    ),
  )  # fmt: skip


RULES = {"timm": Rules(TORCH_RENAMES, operations=(("params/conv_head/kernel", squeeze),))}
RULES |= {f"torchvision:mobilenet_v3_{size}": torchvision(size) for size in DEPTHS}
RULES |= {f"keras:mobilenet_v3_{size}": keras(size) for size in DEPTHS}
RULES |= {"keras:mobilenet_v3_large_minimal": keras("large")}
