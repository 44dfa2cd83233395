from functools import partial

from tests.parity import Case

UNITS = {f"stage{i}": f"features.stage{i}" for i in range(1, 5)}
# The original's masks are made for the maps of one size; the odd one has the same maps.
PIXELS = {"in_size": (96, 96)}
case = partial(Case, taps=UNITS, dialect="pytorchcv", args=PIXELS, sizes=((96, 96), (93, 95)))


def ceil_pools(constructor: str, in_size):
  """pytorchcv's net with the masks' pools of the authors' prototxt."""
  from pytorchcv.models import resattnet

  model = getattr(resattnet, constructor)(in_size=in_size)
  for name, module in model.named_modules():
    if ".hg." in name and name.endswith(".pool"):
      module.padding, module.ceil_mode = 0, True
  return model


CASES = [
  case("attention56", "pytorchcv.models.resattnet:resattnet56"),
  case("attention92", "pytorchcv.models.resattnet:resattnet92"),
  case(
    "attention56", "tests.cases.attention:ceil_pools", positional=("resattnet56",),
    fields={"ceil_pool": True},
    instead="pytorchcv's net, its masks' pools as the authors' prototxt has them (Caffe's: no "
    "padding, ceil mode); the prototxt's count is ours",
  ),
]  # fmt: skip
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("attention56", {"attentions": (1, 1, 1)})
GRADIENTS = case(
  "attention56", "pytorchcv.models.resattnet:resattnet56", args={"in_size": (64, 64)}
)
