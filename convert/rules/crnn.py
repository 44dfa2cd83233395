"""Readers: places in `nn.Sequential` to counted convolutions, LSTMs one by one."""

from convert.engine import Rules, chw_to_hwc, onnx_gates, transpose
from convert.rules import TORCH_RENAMES, mobilenet_v3


def _counted(prefix: str, convs: str, norms: str) -> tuple:
  """Renames places in a `nn.Sequential`: the conv at the i-th of `convs` is conv i; so for norms.

  A norm is given for each convolution, or "-".
  """
  names = {place: f"conv{i}" for i, place in enumerate(convs.split())}
  names |= {place: f"bn{i}" for i, place in enumerate(norms.split()) if place != "-"}
  return ((rf"^{prefix}\.(\d+)\.", lambda m: f"backbone.{names[m[1]]}."),)


def _vgg16() -> tuple[str, str]:
  """Places of torchvision's VGG-16 with batch norm."""
  convs, place = [], 0
  for depth in (2, 2, 3, 3, 3):
    convs += [place + 3 * i for i in range(depth)]
    place += 3 * depth + 1
  return " ".join(map(str, convs)), " ".join(str(p + 1) for p in convs)


SHI = (
  (r"^cnn\.conv", "backbone.conv"),
  (r"^cnn\.batchnorm", "backbone.bn"),
  (r"^rnn\.(\d)\.rnn\.", r"rnn\1."),
  (r"^rnn\.0\.embedding\.", "embedding0."),
  (r"^rnn\.1\.embedding\.", "classifier."),
)
EASYOCR = (
  *_counted(r"FeatureExtraction\.ConvNet", "0 3 6 8 11 14 18", "- - - - 12 15 -"),
  (r"^SequenceModeling\.(\d)\.rnn\.", r"rnn\1."),
  (r"^SequenceModeling\.(\d)\.linear\.", r"embedding\1."),
  (r"^Prediction\.", "classifier."),
)
DECODER = (
  (r"^decoder\.(\w+)_l(\d)(_reverse)?$", r"rnn\2.\1_l0\3"),
  (r"^linear\.", "classifier."),
)
FUSED = ("conv_stem", *(
  f"blocks_{s}_{i}_conv_{part}"
  for s, depth in enumerate((2, 4, 4)) for i in range(depth) for part in ("exp", "pwl")
))  # fmt: skip
# W and R of both directions; B holds both biases of both.
PLACES = {
  "W.0": "l0.ih.weight", "W.1": "l0_reverse.ih.weight", "R.0": "l0.hh.weight",
  "R.1": "l0_reverse.hh.weight", "B.0": "l0.ih.bias", "B.1": "l0.hh.bias",
  "B.2": "l0_reverse.ih.bias", "B.3": "l0_reverse.hh.bias",
}  # fmt: skip
DDDDOCR = Rules(
  (
    (r"^\d+$", ""),  # sizes, for the shapes of the graph
    (r"^Conv_(\d+)\.", lambda m: f"backbone.{FUSED[int(m[1])]}."),
    (r"^LSTM_0\.(.*)$", lambda m: f"rnn0.{PLACES[m[1]]}"),
    (r"^Gemm_0\.", "classifier."),
    *TORCH_RENAMES,
  ),
  operations=(
    (r"params/rnn0/l0(_reverse)?/ih/kernel", onnx_gates.then(chw_to_hwc(64, 8, 1))),
    (r"params/rnn0/l0(_reverse)?/hh/kernel", onnx_gates.then(transpose)),
    (r"params/rnn0/l0(_reverse)?/../bias", onnx_gates),
  ),
  stacked=((r"LSTM_0\.[WR]", 2), (r"LSTM_0\.B", 4)),
)
FIRST_EASYOCR = ((r"^FeatureExtraction\.ConvNet\.", "backbone."), *EASYOCR[1:])
RULES = {
  "easyocr:crnn_resnet": Rules((*FIRST_EASYOCR, *TORCH_RENAMES)),
  "ddddocr": DDDDOCR,
  "crnn_pytorch": Rules((*SHI, *TORCH_RENAMES)),
  "easyocr": Rules((*EASYOCR, *TORCH_RENAMES)),
  "doctr:crnn_vgg16_bn": Rules((*_counted("feat_extractor", *_vgg16()), *DECODER, *TORCH_RENAMES)),
} | {
  f"doctr:crnn_mobilenet_v3_{size}": Rules((
    *DECODER,
    (r"^feat_extractor\.", "features."),
    *mobilenet_v3.torchvision(size).renames,
    (r"^(?=conv_stem|bn1|blocks_)", "backbone/"),
  ))
  for size in ("small", "large")
}  # fmt: skip
