from functools import partial

from tests.parity import Case


def taps(*depths):
  ends = {f"stage{i}": f"features.conv{i + 1}_{d}" for i, d in enumerate(depths, start=1)}
  return {"stem": "features.conv1_1", **ends}


timm = partial(Case, dialect="timm")
# These differ from DPN-92 by widths and depths alone; plain forms compile faster.
deep = partial(timm, fields={"plain": True})
CASES = [
  timm("dpn68", "timm.models.dpn:dpn68", taps(3, 4, 12, 3)),
  timm("dpn68b", "timm.models.dpn:dpn68b", taps(3, 4, 12, 3)),
  timm("dpn92", "timm.models.dpn:dpn92", taps(3, 4, 20, 3)),
  deep("dpn98", "timm.models.dpn:dpn98", taps(3, 6, 20, 3)),
  deep("dpn107", "timm.models.dpn:dpn107", taps(4, 8, 20, 3)),
  deep("dpn131", "timm.models.dpn:dpn131", taps(4, 8, 28, 3)),
  Case(
    "dpn68", "pretrainedmodels.models.dpn:dpn68", {}, "cadene",
    {"pretrained": None}, sizes=((224, 224),),  # it ends in a window of 7x7
  ),
]  # fmt: skip
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("dpn68b", {"depths": (1, 1, 1, 1)})
GRADIENTS = timm(
  "dpn68b", "timm.models.dpn:dpn68b", {}, args={"k_sec": (1, 1, 1, 1)}, fields=SMALLEST[1]
)
