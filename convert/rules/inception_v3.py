"""Inception v3: torchvision's names are ours; Keras counts layers, pytorchcv branches."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout
from convert.rules import TORCH_RENAMES, slim

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
PARTS = {  # of each kind of block, in order of construction
  "A": "branch1x1 branch5x5_1 branch5x5_2 "
       "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool",
  "B": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
  "C": "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 "
       "branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool",
  "D": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
  "E": "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 "
       "branch3x3dbl_3a branch3x3dbl_3b branch_pool",
}  # fmt: skip
KINDS = {"5b": "A", "5c": "A", "5d": "A", "6a": "B", "6b": "C", "6c": "C", "6d": "C", "6e": "C",
         "7a": "D", "7b": "E", "7c": "E"}  # fmt: skip
ORDER = STEM + tuple(
  f"Mixed_{block}/{part}" for block, kind in KINDS.items() for part in PARTS[kind].split()
)
KERAS = Rules(
  (
    (r"^conv2d_(\d+)/", lambda m: f"{ORDER[int(m[1])]}/conv/"),
    (r"^batch_normalization_(\d+)/", lambda m: f"{ORDER[int(m[1])]}/bn/"),
    (r"^predictions/", "fc/"),
  ),
  KERAS_LEAVES,
  keras_layout,
  counted=("conv2d", "batch_normalization"),
)

BLOCKS = {"stage1": ("5b", "5c", "5d"), "stage2": ("6a", "6b", "6c", "6d", "6e"),
          "stage3": ("7a", "7b", "7c")}  # fmt: skip


def _part(m) -> str:
  stage, unit, branch, number, split = m[1], int(m[2]), int(m[3]), m[4], m[5]
  block = BLOCKS[stage][unit - 1]
  # Branches in order of construction, without the numbers of their layers.
  names = list(dict.fromkeys(p.rpartition("_")[0] if p[-1] in "12345ab" and "_" in p else p
                             for p in PARTS[KINDS[block]].split()))  # fmt: skip
  name = names[branch - 1]
  if split:  # a 1x3 and a 3x1 side by side
    number = f"{branch}{'a' if split == '1x3' else 'b'}"
  elif number is None and KINDS[block] == "E" and branch == 2:
    number = "1"
  numbered = number is not None and name not in ("branch1x1", "branch_pool") and not (
    KINDS[block] == "B" and branch == 1
  )  # fmt: skip
  return f"Mixed_{block}.{name}{f'_{number}' if numbered else ''}."


PYTORCHCV = Rules((
  (r"^features\.init_block\.conv(\d)\.", lambda m: f"{STEM[int(m[1]) - 1]}."),
  (r"^features\.(stage\d)\.unit(\d)\.branches\.branch(\d)\."
   r"(?:conv_list\.conv(\d)|conv(1x3|3x1)?)\.(?=conv|bn)", _part),
  (r"^output\.fc\.", "fc."),
  *TORCH_RENAMES,
))  # fmt: skip


def _branches(kind: str) -> tuple[list[str], ...]:
  """The parts of a kind of block, branch by branch."""
  branches: dict[str, list[str]] = {}
  for part in PARTS[kind].split():
    stem, _, number = part.rpartition("_")
    branches.setdefault(stem if number[:1].isdigit() else part, []).append(part)
  return tuple(branches.values())


BRANCHES = {kind: _branches(kind) for kind in PARTS}


def slim_branch(m) -> str:
  block, branch, turn, letter, kernel = m[1], int(m[2]), m[3], m[4], m[5]
  parts = BRANCHES[KINDS[block]][branch]
  i = -1 if turn == "1" or len(parts) == 1 else "abcde".index(letter)
  if (block, branch) == ("5c", 1):  # begins with b
    i -= 1
  elif (block, branch, kernel) == ("7b", 1, "3x1"):  # has two of b
    i = 2
  return f"Mixed_{block}/{parts[i]}/"


AUX = {"1b_1x1": "conv0", "2a_5x5": "conv1", "2b_1x1": "fc"}
SLIM_BRANCH = r"InceptionV3/Mixed_(\w\w)/Branch_(\d)/Conv(?:2d)?_(?:1_)?(\d)(\w)_(\dx\d)/"
SLIM = slim(
  (f"^{SLIM_BRANCH}", slim_branch),
  (r"^InceptionV3/Logits/Conv2d_1c_1x1/", "fc/"),
  (r"^InceptionV3/AuxLogits/Conv2d_(\w+)/", lambda m: f"AuxLogits/{AUX[m[1]]}/"),
  (r"^InceptionV3/", ""),
  (r"/BatchNorm/", "/bn/"),
  (r"(?<!fc)/(?=weights$)", "/conv/"),
  heads="fc|AuxLogits/fc",
)
RULES = {"keras": KERAS, "pytorchcv": PYTORCHCV, "slim": SLIM}
