"""SqueezeNet: positions in `nn.Sequential` to the paper's names."""

from convert.engine import Rules
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES

# Positions of fire2 to fire9 among torchvision's features.
POSITIONS = {
  "squeezenet1_0": (3, 4, 5, 7, 8, 9, 10, 12),
  "squeezenet1_1": (3, 4, 6, 7, 9, 10, 11, 12),
}


def _torchvision(positions) -> Rules:
  fires = {position: f"fire{i}" for i, position in enumerate(positions, start=2)} | {0: "conv1"}
  return Rules((
    (r"^features\.(\d+)\.", lambda m: f"{fires[int(m[1])]}."),
    (r"^classifier\.1\.", "conv10."),
    *TORCH_RENAMES,
  ))  # fmt: skip


STARTS = {"1": 1, "2": 4, "3": 8}  # pytorchcv's stages of 1.0 go on from these modules
PYTORCHCV = Rules((
  (r"^features\.init_block\.conv\.", "conv1."),
  (r"^features\.stage(\d)\.unit(\d)\.", lambda m: f"fire{STARTS[m[1]] + int(m[2])}."),
  (r"\.(squeeze|expand1x1|expand3x3)\.conv\.", r".\1."),
  (r"^output\.final_conv\.", "conv10."),
  *TORCH_RENAMES,
))  # fmt: skip
# Gluon's, as exported to ONNX: 26 convolutions, three of them a fire module.
LAYERS = ["conv1", *(f"fire{i}/{part}" for i in range(2, 10)
                     for part in ("squeeze", "expand1x1", "expand3x3")), "conv10"]  # fmt: skip
ONNX = Rules((
  (r"^reshape_attr_.*", ""),
  (r"^squeezenet0_conv(\d+)_", lambda m: f"{LAYERS[int(m[1])]}/"),
))  # fmt: skip
CAFFE = Rules(((r"/squeeze1x1/", "/squeeze/"), *CAFFE_BLOBS))  # the authors' release
RULES = {f"torchvision:{v}": _torchvision(p) for v, p in POSITIONS.items()} | {
  "pytorchcv:squeezenet1_0": PYTORCHCV,
  "caffe": CAFFE,
  "onnx": ONNX,
}
