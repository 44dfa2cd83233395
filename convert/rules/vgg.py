"""VGG: positions in `nn.Sequential` and Keras's blocks to the names of the authors, as in Caffe."""

from convert.engine import KERAS_LEAVES, Rules, chw_to_hwc, flatten_conv, keras_layout
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

DEPTHS = {"11": (1, 1, 2, 2, 2), "13": (2,) * 5, "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
FC6 = "params/fc6/kernel"


def positions(depths, batch_norm: bool) -> dict[int, str]:
  """Place among torchvision's features -> our name; activations and pools take places too."""
  names, place = {}, 0
  for s, depth in enumerate(depths, start=1):
    for i in range(1, depth + 1):
      names[place] = f"conv{s}_{i}"
      if batch_norm:
        names[place + 1] = f"bn{s}_{i}"
      place += 3 if batch_norm else 2
    place += 1
  return names


def _torch(depths, batch_norm: bool, denses: str, operation) -> Rules:
  names = positions(depths, batch_norm)
  fc6, fc7, fc8 = denses.split()
  return Rules(
    (
      (r"^features\.(\d+)\.", lambda m: f"{names[int(m[1])]}."),
      (rf"^{fc6}\.", "fc6."),
      (rf"^{fc7}\.", "fc7."),
      (rf"^{fc8}\.", "fc8."),
      *TORCH_RENAMES,
    ),
    operations=((FC6, operation), ("params/fc7/kernel", flatten_conv)),
  )


PYTORCHCV = Rules(
  (
    (r"^features\.stage(\d)\.unit(\d)\.(conv|bn)\.", r"\3\1_\2."),
    (r"^output\.fc(\d)(\.fc)?\.", lambda m: f"fc{int(m[1]) + 5}."),
    *TORCH_RENAMES,
  ),
  operations=((FC6, chw_to_hwc(512, 7, 7)),),
)
KERAS = Rules(
  (
    (r"^block(\d)_conv(\d)/", r"conv\1_\2/"),
    (r"^fc2/", "fc7/"),
    (r"^fc1/", "fc6/"),
    (r"^predictions/", "fc8/"),
  ),
  KERAS_LEAVES,
  keras_layout,
)
PLACES = [f"conv{s}_{i + 1}" for s, depth in enumerate(DEPTHS["16"], start=1) for i in range(depth)]
LPIPS = Rules(  # Flax's own counting; the metric's weights on top are dropped
  (
    (r"^NetLinLayer_\d\..*", ""),
    (r"^VGG16_0\.Conv_(\d+)\.", lambda m: f"{PLACES[int(m[1])]}/"),
  ),
  KERAS_LEAVES,
  keras_layout,
)
# Liu et al.'s for SSD, in torchvision's names; their classifier holds no numbers.
FEATURES = Rules((
  (r"^classifier\..*", ""),
  (r"^features\.(\d+)\.", lambda m: f"{positions(DEPTHS['16'], False)[int(m[1])]}."),
  *TORCH_RENAMES,
))  # fmt: skip
CAFFE = Rules(CAFFE_BLOBS, operations=((FC6, chw_to_hwc(512, 7, 7)),))
SLIM = slim((r"^vgg_(?:a|16|19)/(?:conv\d/)?", ""), heads="fc[678]")
RULES = {
  "caffe": CAFFE,
  "keras": KERAS,
  "pytorchcv": PYTORCHCV,
  "slim": SLIM,
  "lpips:vgg16": LPIPS,
  "features:vgg16": FEATURES,
} | {
  f"{dialect}:vgg{n}{'_bn' * bn}": _torch(depths, bn, *head)
  for n, depths in DEPTHS.items()
  for bn in (False, True)
  for dialect, head in (
    ("torchvision", (r"classifier\.0 classifier\.3 classifier\.6", chw_to_hwc(512, 7, 7))),
    ("timm", (r"pre_logits\.fc1 pre_logits\.fc2 head\.fc", flatten_conv)),
  )
}
