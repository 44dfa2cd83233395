"""Inception v4: Cadene's names and timm's are ours; TF-slim names blocks and branches."""

from convert.rules import TORCH, slim

STEM = ("1a", "2a", "2b", "3a", "4a", "5a")
BLOCKS = (*STEM, *(f"5{c}" for c in "bcde"), *(f"6{c}" for c in "abcdefgh"),
          *(f"7{c}" for c in "abcd"))  # fmt: skip
CHAINS = {"4a": (2, 4), "5": (1, 2, 3, 2), "6a": (1, 3), "6": (1, 3, 5, 2), "7a": (2, 4)}
FORKS = (("branch0",), ("branch1_0", "branch1_1a", "branch1_1b"),
         ("branch2_0", "branch2_1", "branch2_2", "branch2_3a", "branch2_3b"),
         ("", "branch3_1"))  # fmt: skip


def chained(length: int, branch: int, turn: str) -> str:
  """The name of a branch's convolution; slim calls what strides, or what is behind all, 1a."""
  place = length - 1 if turn == "1a" else "abcde".index(turn[1])
  return f"branch{branch}" if length == 1 else f"branch{branch}_{place}"


def _slim(m) -> str:
  block, branch, turn = m[1], int(m[2]), m[3]
  if block in ("3a", "5a"):
    part = "conv"
  elif block in ("7b", "7c", "7d"):
    part = FORKS[branch]["abcde".index(turn[1])]
  else:
    part = chained(CHAINS.get(block, CHAINS.get(block[0], ()))[branch], branch, turn)
  return f"features_{BLOCKS.index(block)}/{part}/"


SLIM = slim(
  (r"^InceptionV4/AuxLogits/.*", ""),  # the second classifier, which only training uses
  (r"^InceptionV4/Mixed_(\w\w)/Branch_(\d)/Conv2d_(\d\w)_\dx\d/", _slim),
  (r"^InceptionV4/Conv2d_(\w\w)_3x3/", lambda m: f"features_{BLOCKS.index(m[1])}/"),
  (r"^InceptionV4/Logits/Logits/", "last_linear/"),
  (r"/BatchNorm/", "/bn/"),
  (r"(?<!last_linear)/(?=weights$)", "/conv/"),
)
RULES = {"cadene": TORCH, "slim": SLIM}
