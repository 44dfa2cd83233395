"""Aligned Xception: timm's names without its containers."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

RULES = {
  "timm": Rules((
    (r"\.stack\.", "."),
    (r"\.shortcut\.", ".shortcut_"),
    (r"^head\.", ""),
    *TORCH_RENAMES,
  )),
}  # fmt: skip
