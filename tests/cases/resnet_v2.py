from functools import partial

from tests.parity import Case

UNITS = {f"stage{i}": f"features.stage{i}" for i in range(1, 5)}
STAGES = {f"stage{i}": f"stages.{i - 1}" for i in range(1, 5)}
BLOCKS = {"stem": "conv1_conv", "stage4": "conv5_block3_out"}
ODD = ((97, 131),)

preres = partial(Case, taps=UNITS, dialect="pytorchcv")
timm = partial(Case, taps={"stem": "stem.conv", **STAGES}, dialect="timm")
keras = partial(Case, taps=BLOCKS, dialect="keras", sizes=((64, 64), *ODD))
FIRST = {"stride_first": True}
# fmt: off
CASES = [
  preres("preresnet18", "pytorchcv.models.preresnet:preresnet18"),
  preres("preresnet34", "pytorchcv.models.preresnet:preresnet34"),
  preres("preresnet50", "pytorchcv.models.preresnet:preresnet50b"),
  preres("preresnet50", "pytorchcv.models.preresnet:preresnet50", fields=FIRST, sizes=ODD),
  preres("preresnet101", "pytorchcv.models.preresnet:preresnet101b"),
  preres("preresnet152", "pytorchcv.models.preresnet:preresnet152b"),
  preres("preresnet200", "pytorchcv.models.preresnet:preresnet200b"),
  preres("preresnet269", "pytorchcv.models.preresnet:preresnet269b"),
  timm("resnetv2_50", "timm.models.resnetv2:resnetv2_50"),
  timm("resnetv2_101", "timm.models.resnetv2:resnetv2_101"),
  timm("resnetv2_152", "timm.models.resnetv2:resnetv2_152"),
  timm("resnetv2_50", "timm.models.resnetv2:resnetv2_50", args={"output_stride": 8},
       fields={"output_stride": 8}),
  keras("resnet50v2", "keras.applications:ResNet50V2"),
  keras("resnet101v2", "keras.applications:ResNet101V2"),
  keras("resnet152v2", "keras.applications:ResNet152V2"),
]  # fmt: on
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("preresnet50", {"depths": (1, 1, 1, 1)})
GRADIENTS = preres("preresnet18", "pytorchcv.models.preresnet:preresnet18")
