from tests.parity import Case

TORCHVISION = {
  "stem": "features.1", "stage1": "features.3", "stage2": "features.6", "stage3": "features.13",
  "stage4": "features.17",
}  # fmt: skip
TIMM = {
  "stem": "blocks.0", "stage1": "blocks.1", "stage2": "blocks.2", "stage3": "blocks.4",
  "stage4": "blocks.6", "pooled": "global_pool",
}  # fmt: skip
KERAS = {
  "stem": "expanded_conv_project_BN", "stage1": "block_2_add", "stage2": "block_5_add",
  "stage3": "block_12_add", "stage4": "block_16_project_BN", "pooled": "global_average_pooling2d",
}  # fmt: skip
EVEN, ODD = (96, 96), (97, 131)
SMALLEST = ("mobilenetv2_035", {"depth": 0.3})


def keras(name, alpha, *sizes):
  return Case(
    name, "keras.applications:MobileNetV2", KERAS, "keras", {"alpha": alpha},
    fields={"eps": 1e-3, "padding": "tf"}, sizes=sizes,
  )  # fmt: skip


# One size will do for another source of a variant that runs at both.
CASES = [
  Case("mobilenetv2_050", "timm:create_model", TIMM, "timm", positional=("mobilenetv2_050",),
       args={"output_stride": 16}, fields={"output_stride": 16}, sizes=((64, 64), (97, 131))),
  Case("mobilenet_v2", "torchvision.models:mobilenet_v2", TORCHVISION),
  *(
    Case(f"mobilenetv2_{v}", "timm:create_model", TIMM, "timm", positional=(f"mobilenetv2_{v}",))
    for v in ("035", "050", "075", "100", "110d", "120d", "140")
  ),
  keras("mobilenetv2_100", 1.0, EVEN, ODD),
  keras("mobilenetv2_035", 0.35, ODD),
  keras("mobilenetv2_050", 0.5, (96, 96)),
  keras("mobilenetv2_075", 0.75, ODD),
  keras("mobilenetv2_140", 1.4, (96, 96)),
]  # fmt: skip
GRADIENTS = Case("mobilenet_v2", "torchvision.models:mobilenet_v2", {})
