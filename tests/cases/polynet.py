from tests.parity import Case

TAPS = {"stem": "stem.conv1", "stage2": "stage_a", "stage3": "stage_b", "stage4": "stage_c"}
# One block of each kind, with the scales of a network of five blocks: 1 at the first, 0.7 last.
SHALLOW = Case(
  "polynet", "pytorchcv.models.polynet:PolyNet", {}, "pytorchcv",
  {"two_way_scales": [[1.0], [0, 0.85], [0, 0.7]], "poly_scales": [[0], [0, 0.925], [0, 0.775]]},
  fields={"depths": (1, 2, 2)},
)  # fmt: skip
CASES = [
  Case("polynet", "pretrainedmodels:polynet", TAPS, "cadene", {"pretrained": None}),
  SHALLOW,
]
NAMES = [Case("polynet", "pytorchcv.model_provider:get_model", {}, "pytorchcv",
              positional=("polynet",))]  # fmt: skip
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("polynet", {"depths": (1, 2, 2)})
GRADIENTS = SHALLOW
