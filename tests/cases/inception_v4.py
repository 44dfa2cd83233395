from tests.parity import Case


def shallow():
  """One block of each kind."""
  import timm

  net = timm.create_model("inception_v4")
  net.features = net.features[:7] + net.features[10:12] + net.features[18:20]
  return net


TAPS = {"stem": "features.2", "stage1": "features.3", "stage2": "features.9",
        "stage3": "features.17", "stage4": "features.21"}  # fmt: skip
CASES = [
  Case("inception_v4", "timm:create_model", TAPS, "timm", positional=("inception_v4",),
       sizes=((128, 128), (97, 131))),
]  # fmt: skip
NAMES = [
  Case("inception_v4", "pretrainedmodels:inceptionv4", {}, "cadene", positional=(1000, None)),
]
SMALLEST = ("inception_v4", {"depths": (1, 1, 1)})
GRADIENTS = Case("inception_v4", "tests.cases.inception_v4:shallow", {}, "timm",
                 fields={"depths": (1, 1, 1)})  # fmt: skip
