"""How Keras, TF-slim, Caffe and pretrainedmodels name a ResNet's arrays; ResNeXts go by place."""

from convert.engine import KERAS_LEAVES, ONNX_LEAVES, Rules, keras_layout
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES, slim

PARTS = {
  "0.0.0": "conv1", "0.0.1": "bn1", "0.0.3": "conv2", "0.0.4": "bn2", "0.1": "conv3", "0.2": "bn3",
  "1.0": "downsample.0", "1.1": "downsample.1",
}  # fmt: skip
CADENE = Rules((
  (r"^features\.0\.", "conv1."),
  (r"^features\.1\.", "bn1."),
  (
    r"^features\.(\d)\.(\d+)\.0\.([\d.]+)\.(?=[a-z])",
    lambda m: f"layer{int(m[1]) - 3}.{m[2]}.{PARTS[m[3]]}.",
  ),
  (r"^last_linear\.", "fc."),
  *TORCH_RENAMES,
))  # fmt: skip
PLAIN = Rules(((r"^last_linear\.", "fc."), *TORCH_RENAMES))
KERAS = Rules(
  (
    (r"^conv1_(conv|bn)/", r"\g<1>1/"),
    (r"^predictions/", "fc/"),
    (r"^conv(\d)_block(\d+)_", lambda m: f"layer{int(m[1]) - 1}_{int(m[2]) - 1}/"),
    (r"/0_conv/", "/downsample_0/"),
    (r"/0_bn/", "/downsample_1/"),
    (r"/(\d)_(conv|bn)/", r"/\2\1/"),
  ),
  KERAS_LEAVES,
  keras_layout,
)
# Yahoo's thin ResNet-50 in Caffe, each norm a layer of statistics and one of scales.
BRANCHES = {
  "proj_shortcut": ("downsample_0", "downsample_1"), "branch2a": ("conv1", "bn1"),
  "branch2b": ("conv2", "bn2"), "branch2c": ("conv3", "bn3"),
}  # fmt: skip
BLOBS = {"bn": ("running_mean", "running_var")}
BLOBS |= dict.fromkeys(("conv", "fc", "res", "scale"), ("weight", "bias"))


def _caffe(m) -> str:
  kind, place, block, branch, blob = m.groups()
  if kind == "fc":
    return f"fc/{BLOBS[kind][int(blob)]}"
  inner = BRANCHES[branch] if branch else ("conv1", "bn1")
  stem = f"layer{int(place) + 1}_{block}/" if branch else ""
  return f"{stem}{inner[kind != 'conv']}/{BLOBS[kind][int(blob)]}"


CAFFE = Rules((
  (r"^(conv|bn|scale|fc)_(?:1|nsfw|stage(\d)_block(\d)_(\w+))/(\d)$", _caffe),
))  # fmt: skip
# He's own names: blocks are a, b, c.. where they are few, else a, b1, b2..
HIS = {"1": ("downsample_0", "downsample_1"), **{
  f"2{letter}": (f"conv{i}", f"bn{i}") for i, letter in enumerate("abc", start=1)}}  # fmt: skip


def _he(m) -> str:
  kind, stage, letter, number, branch, blob = m.groups()
  part = HIS[branch][kind != "res"]
  block = number or ord(letter) - ord("a")
  return f"layer{int(stage) - 1}_{block}/{part}/{BLOBS[kind][int(blob)]}"


HE = Rules((
  (r"^(res|bn|scale)(\d)([a-z])(\d*)_branch(\w+)/(\d)$", _he),
  (r"^(bn|scale)_conv1/(\d)$", lambda m: f"bn1/{BLOBS[m[1]][int(m[2])]}"),
  (r"^fc1000(?=/)", "fc"),
  *CAFFE_BLOBS,
))  # fmt: skip
# The same with norms folded, by order: in a first block, the shortcut's convolution comes first.
CONVOLUTIONS = ["conv1", *(
  f"layer{s}_{i}/{part}" for s, depth in enumerate((3, 4, 6, 3), start=1) for i in range(depth)
  for part in (("downsample_0",) if i == 0 else ()) + ("conv1", "conv2", "conv3"))]  # fmt: skip
ONNX = Rules(
  (
    (r"^(?!Conv_|MatMul_).*", ""),  # shapes
    (r"^Conv_(\d+)\.", lambda m: f"{CONVOLUTIONS[int(m[1])]}/"),
    (r"^MatMul_0\.", "fc/"),
  ),
  ONNX_LEAVES,
)
SLIM = slim(
  (r"^resnet_v1_\d+/block(\d)/unit_(\d+)/bottleneck_v1/",
   lambda m: f"layer{m[1]}_{int(m[2]) - 1}/"),
  (r"^resnet_v1_\d+/(?=conv1/)", ""),
  (r"^resnet_v1_\d+/logits/", "fc/"),
  (r"\bconv(\d)/BatchNorm/", r"bn\1/"),
  (r"/shortcut/BatchNorm/", "/downsample_1/"),
  (r"/shortcut/", "/downsample_0/"),
)  # fmt: skip
RULES = {
  "caffe": HE, "caffe:resnet50_1by2": CAFFE, "onnx": ONNX, "slim": SLIM,
  "cadene": CADENE, "cadene:resnet101": PLAIN, "cadene:resnet152": PLAIN, "keras": KERAS,
}  # fmt: skip
