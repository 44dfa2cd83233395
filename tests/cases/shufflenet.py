from tests.parity import Case

TV = {
  "stem": "conv1", "stage1": "maxpool", "stage2": "stage2", "stage3": "stage3", "stage4": "conv5",
}  # fmt: skip
PCV = {"stage1": "features.init_block", "stage2": "features.stage1", "stage3": "features.stage2"}
PCV1, PCV2 = PCV | {"stage4": "features.stage3"}, PCV | {"stage4": "features.final_block"}


def pcv(variant, name, taps, **fields):
  return Case(
    variant, "pytorchcv.model_provider:get_model", taps, "pytorchcv", positional=(name,),
    fields=fields,
  )  # fmt: skip


CASES = [
  Case("shufflenet_v2_x0_5", "torchvision.models:shufflenet_v2_x0_5", TV),
  Case("shufflenet_v2_x1_0", "torchvision.models:shufflenet_v2_x1_0", TV),
  Case("shufflenet_v2_x1_5", "torchvision.models:shufflenet_v2_x1_5", TV),
  Case("shufflenet_v2_x2_0", "torchvision.models:shufflenet_v2_x2_0", TV),
  pcv("shufflenet_v2_x1_0", "shufflenetv2_w1", PCV2, ceil_pool=True),
  pcv("shufflenetv2b_w1", "shufflenetv2b_w1", PCV2),
  *(
    pcv(name, name, PCV1)
    for name in (
      "shufflenet_g1_w1", "shufflenet_g2_w1", "shufflenet_g3_w1", "shufflenet_g4_w1",
      "shufflenet_g8_w1", "shufflenet_g1_wd4", "shufflenet_g1_wd2", "shufflenet_g1_w3d4",
      "shufflenet_g3_wd4", "shufflenet_g3_wd2", "shufflenet_g3_w3d4",
    )
  ),
  Case(
    "shufflenet_g3_w2", "pytorchcv.models.shufflenet:get_shufflenet", PCV1, "pytorchcv",
    args={"groups": 3, "width_scale": 2.0},
  ),
]  # fmt: skip
GRADIENTS = Case("shufflenet_v2_x0_5", "torchvision.models:shufflenet_v2_x0_5", {})
