from functools import partial

from tests.parity import Case

UNITS = {f"stage{i}": f"features.stage{i}" for i in range(1, 5)}
case = partial(Case, taps=UNITS, dialect="pytorchcv")
made = partial(
  case, reference="pytorchcv.models.pyramidnet:get_pyramidnet",
  instead="pytorchcv's builder with this depth and alpha; the count follows from the authors' Lua "
  "code, and is the paper's 62.1 and 116.4 million without the norms' scales and offsets",
)  # fmt: skip
CASES = [
  case("pyramidnet101_a360", "pytorchcv.models.pyramidnet:pyramidnet101_a360"),
  made("pyramidnet200_a300", args={"blocks": 200, "alpha": 300}),
  made("pyramidnet200_a450", args={"blocks": 200, "alpha": 450}),
]  # fmt: skip
# The family with little of everything, for tests that run real arrays.
SMALLEST = ("pyramidnet200_a300", {"depths": (1, 1, 1, 1), "widening": 16})
GRADIENTS = case(
  "pyramidnet200_a300", "pytorchcv.models.pyramidnet:PyramidNet", fields=SMALLEST[1],
  args={"channels": [[272], [288], [304], [320]], "init_block_channels": 64, "bottleneck": True},
)  # fmt: skip
