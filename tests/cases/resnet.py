from tests.parity import Case

# fmt: off
TORCHVISION = (
  "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
  "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)
# fmt: on
STAGES = {f"stage{i}": f"layer{i}" for i in range(1, 5)}
TAPS = {"stem": "relu", "pooled": "avgpool", **STAGES}
TIMM = {"stem": "act1", "pooled": "global_pool", **STAGES}
PCV = {f"stage{i}": f"features.stage{i}" for i in range(1, 5)}
CADENE = {f"stage{i}": f"features.{i + 3}" for i in range(1, 5)}
# The authors' form, and other libraries'.
KERAS_FORM = {"stride_first": True, "bias": True, "eps": 1.001e-5}
KERAS = {"stem": "conv1_relu", "stage4": "conv5_block3_out"}
KERAS_CASE = {"dialect": "keras", "fields": KERAS_FORM, "sizes": ((64, 64),)}
CADENE_CASE = {"dialect": "cadene", "args": {"pretrained": None}}
OTHER_FORMS = [
  Case("resnet50", "keras.applications:ResNet50", KERAS, "keras", fields=KERAS_FORM,
       sizes=((64, 64), (97, 131))),
  Case("resnet101", "keras.applications:ResNet101", KERAS, **KERAS_CASE),
  Case("resnet152", "keras.applications:ResNet152", KERAS, **KERAS_CASE),
  Case("resnet50", "pytorchcv.models.resnet:resnet50", {}, "pytorchcv",
       fields={"stride_first": True}),
  Case("resnet101", "pretrainedmodels.models.cafferesnet:cafferesnet101", STAGES,
       fields={"stride_first": True, "ceil_pool": True}, **CADENE_CASE),
  Case("resnet152", "pretrainedmodels.models.fbresnet:fbresnet152", STAGES,
       fields={"bias": True}, **CADENE_CASE),
]  # fmt: skip


def thin():
  """timm's with half the channels; its stem keeps 64."""
  from timm.models.resnet import Bottleneck, ResNet

  return ResNet(Bottleneck, (3, 4, 6, 3), channels=(32, 64, 128, 256))


CASES = [
  *OTHER_FORMS,
  Case("resnet50_1by2", "tests.cases.resnet:thin", TIMM, "timm", sizes=((97, 131),)),
  *(Case(name, f"torchvision.models:{name}", TAPS) for name in TORCHVISION),
  *(
    Case(name, "timm:create_model", TIMM, "timm", positional=(name,))
    for name in ("resnet200", "resnext101_32x4d")
  ),
  Case("wide_resnet50_2", "pytorchcv.models.wrn:wrn50_2", PCV, "pytorchcv", sizes=((97, 131),)),
  Case("resnet50", "pytorchcv.models.resnet:resnet50b", PCV, "pytorchcv", sizes=((97, 131),)),
  Case(
    "resnext101_32x4d", "pretrainedmodels:resnext101_32x4d", CADENE, "cadene",
    args={"pretrained": None}, sizes=((97, 131),),
  ),
  # Dilated instead of strided: torchvision's rule, and timm's for basic blocks.
  Case(
    "resnet50", "torchvision.models:resnet50", TAPS, fields={"output_stride": 8},
    args={"replace_stride_with_dilation": (False, True, True)}, sizes=((64, 64), (97, 131)),
  ),
  Case(
    "resnet18", "timm:create_model", TIMM, "timm", positional=("resnet18",),
    fields={"output_stride": 16}, args={"output_stride": 16}, sizes=((64, 64), (97, 131)),
  ),
]  # fmt: skip
SMALLEST = ("resnet50", {"depths": (1, 1, 1, 1)})
GRADIENTS = Case("resnet18", "torchvision.models:resnet18", {})
