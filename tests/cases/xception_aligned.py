from functools import partial

from tests.parity import Case


def taps(entry: tuple[int, int, int], depth: int):
  """The last block of each stage, by how many blocks end stages 1, 2 and the whole entry."""
  first, second, whole = entry
  return {
    "stem": "stem.1", "stage1": f"blocks.{first - 1}", "stage2": f"blocks.{second - 1}",
    "stage3": f"blocks.{whole + depth - 1}", "stage4": f"blocks.{whole + depth + 1}",
  }  # fmt: skip


case = partial(Case, reference="timm:create_model", dialect="timm", sizes=((64, 64), (97, 131)))
CASES = [
  case("xception41", taps=taps((1, 2, 3), 8), positional=("xception41",)),
  case("xception65", taps=taps((1, 2, 3), 16), positional=("xception65",)),
  case("xception71", taps=taps((2, 4, 5), 16), positional=("xception71",)),
  case("xception41", taps=taps((1, 2, 3), 8), positional=("xception41",),
       args={"output_stride": 8}, fields={"output_stride": 8}, sizes=((97, 131),)),
]  # fmt: skip
SMALLEST = ("xception41", {"depth": 1})
GRADIENTS = Case("xception41", "timm:create_model", {}, "timm", positional=("xception41",))
