from flax import linen as nn

from tests.parity import Case

TIMM = {"stem": "blocks.0"} | {f"stage{i}": f"blocks.{i}" for i in range(1, 5)}
KERAS = {
  "stem": "conv_pw_1_relu", "stage1": "conv_pw_3_relu", "stage2": "conv_pw_5_relu",
  "stage3": "conv_pw_11_relu", "stage4": "conv_pw_13_relu",
}  # fmt: skip
PCV = {"stem": "features.stage1"} | {f"stage{i}": f"features.stage{i + 1}" for i in range(1, 5)}
AS_KERAS = {"eps": 1e-3, "padding": "tf", "pad_after": True}


def keras(variant, alpha):
  return Case(
    variant, "keras.applications:MobileNet", KERAS, "keras", {"alpha": alpha}, fields=AS_KERAS
  )


def pcv(variant, name):
  return Case(
    variant, f"pytorchcv.models.mobilenet:{name}", PCV, "pytorchcv", fields={"act": nn.relu}
  )


CASES = [
  Case("mobilenetv1_100", "timm:create_model", TIMM, "timm", positional=("mobilenetv1_100",),
       args={"output_stride": 8}, fields={"output_stride": 8}, sizes=((64, 64), (97, 131))),
  Case("mobilenetv1_100", "timm:create_model", TIMM, "timm", positional=("mobilenetv1_100",)),
  Case("mobilenetv1_125", "timm:create_model", TIMM, "timm", positional=("mobilenetv1_125",)),
  keras("mobilenetv1_100", 1.0),
  keras("mobilenetv1_025", 0.25),
  keras("mobilenetv1_050", 0.5),
  keras("mobilenetv1_075", 0.75),
  pcv("mobilenetv1_100", "mobilenet_w1"),
]  # fmt: skip
GRADIENTS = Case("mobilenetv1_100", "timm:create_model", {}, "timm",
                 positional=("mobilenetv1_100",))  # fmt: skip
