from functools import partial

from tests.parity import Case


def shallow():
  """The first block of each stage; the original drops out of its own accord."""
  from timm.models import senet

  net = senet.legacy_seresnext50_32x4d(drop_rate=0.0)
  for stage in range(1, 5):
    setattr(net, f"layer{stage}", getattr(net, f"layer{stage}")[:1])
  return net


STAGES = {f"stage{i}": f"layer{i}" for i in range(1, 5)}
UNITS = {f"stage{i}": f"features.stage{i}" for i in range(1, 5)}
ODD = ((97, 131),)  # one size will do for another source of a variant that runs at both

legacy = partial(Case, taps={"stem": "layer0", **STAGES}, dialect="cadene")
timm = partial(Case, taps=STAGES, dialect="timm")
pytorchcv = partial(Case, taps=UNITS, dialect="pytorchcv", sizes=ODD)
FIRST = {"stride_first": True}
# Deep and grouped: plain forms compile faster.
legacy_grouped = partial(legacy, fields={"plain": True})
timm_grouped = partial(timm, fields={"plain": True})
# fmt: off
CASES = [
  legacy("legacy_seresnet50", "timm.models.senet:legacy_seresnet50"),
  legacy("legacy_seresnet101", "timm.models.senet:legacy_seresnet101"),
  legacy("legacy_seresnet152", "timm.models.senet:legacy_seresnet152"),
  legacy("legacy_seresnext50_32x4d", "timm.models.senet:legacy_seresnext50_32x4d"),
  legacy_grouped("legacy_seresnext101_32x4d", "timm.models.senet:legacy_seresnext101_32x4d"),
  legacy_grouped("legacy_senet154", "timm.models.senet:legacy_senet154"),
  timm("seresnet50", "timm.models.resnet:seresnet50"),
  timm("seresnet101", "timm.models.resnet:seresnet101"),
  timm("seresnet152", "timm.models.resnet:seresnet152"),
  timm("seresnext50_32x4d", "timm.models.resnet:seresnext50_32x4d"),
  timm_grouped("seresnext101_32x4d", "timm.models.resnet:seresnext101_32x4d"),
  timm_grouped("senet154", "timm.models.resnet:senet154"),
  timm("seresnet50", "timm.models.resnet:seresnet50", args={"output_stride": 8},
       fields={"output_stride": 8}),
  pytorchcv("seresnet50", "pytorchcv.models.seresnet:seresnet50", fields=FIRST),
  pytorchcv("senet154", "pytorchcv.models.senet:senet154", fields={"plain": True}),
]  # fmt: on
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("legacy_senet154", {"depths": (1, 1, 1, 1)})
GRADIENTS = legacy(
  "legacy_seresnext50_32x4d", "tests.cases.senet:shallow", fields={"depths": (1, 1, 1, 1)}
)
