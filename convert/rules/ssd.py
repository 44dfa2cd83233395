"""SSD of torchvision and Caffe's MobileNet-SSD, whose trunks are classifiers of the zoo."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES, mobilenet_v1, mobilenet_v3, vgg

HEADS = (r"^head\.", "")


def on_vgg(depths=vgg.DEPTHS["16"]) -> Rules:
  """torchvision counts the places of VGG's layers; those from the fourth pool on begin anew."""
  names = vgg.positions(depths, False)
  fourth = sum(2 * depth + 1 for depth in depths[:4]) - 1
  # behind the last convolution and its ReLU the two dense layers stand in a list of their own
  dense = 1 + 2 * depths[4]
  return Rules((
    HEADS,
    (r"^backbone\.scale_weight$", "backbone.rescale.weight"),
    (r"^backbone\.features\.(\d+)\.", lambda m: f"backbone.features.{names[int(m[1])]}."),
    (rf"^backbone\.extra\.0\.{dense}\.1\.", "backbone.fc6."),
    (rf"^backbone\.extra\.0\.{dense}\.3\.", "backbone.fc7."),
    (r"^backbone\.extra\.0\.(\d+)\.", lambda m: f"backbone.features.{names[fourth + int(m[1])]}."),
    *TORCH_RENAMES,
  ))  # fmt: skip


def _whole(m) -> str:
  """features.0 holds all before the expansion of block 13, and that; features.1 the rest."""
  half, place, rest = int(m[1]), int(m[2]), m[3]
  if half == 1:
    return f"features.{13 + place}.{rest}" if place else f"features.13.block.{rest}"
  return f"features.13.block.0.{rest}" if place == 13 else f"features.{place}.{rest}"


ON_MOBILENET_V3 = Rules((
  HEADS,
  (r"^backbone\.features\.([01])\.(\d+)\.(.*)$", _whole),
  *mobilenet_v3.torchvision("large").renames[: -len(TORCH_RENAMES)],
  (r"^(?=conv_stem|bn1|blocks_)", "backbone.features."),
  *TORCH_RENAMES,
))  # fmt: skip

LEAVES = ("weight", "bias")


def _trunk(m) -> str:
  block, depthwise, blob = int(m[1]), m[2], LEAVES[int(m[3])]
  if block == 0:
    return f"backbone/features/conv_stem/{blob}"
  part = "conv_dw" if depthwise else "conv_pw"
  return f"backbone/features/{mobilenet_v1.place(block)}/{part}/{blob}"


SOURCES = ("11", "13", "14_2", "15_2", "16_2", "17_2")  # of the maps
CAFFE = Rules((
  (r"^conv(1[4-7])_([12])/(\d)$", lambda m: (
    f"backbone/extra_{int(m[1]) - 14}_{2 * (int(m[2]) - 1)}/{LEAVES[int(m[3])]}")),
  (r"^conv(\d+(?:_2)?)_mbox_(loc|conf)/(\d)$", lambda m: (
    f"{'regression' if m[2] == 'loc' else 'classification'}_head/"
    f"module_list_{SOURCES.index(m[1])}/{LEAVES[int(m[3])]}")),
  (r"^conv(\d+)(/dw)?/(\d)$", _trunk),
))  # fmt: skip
RULES = {
  "caffe": CAFFE, "torchvision": on_vgg(),
  "torchvision:ssdlite320_mobilenet_v3_large": ON_MOBILENET_V3,
}  # fmt: skip
