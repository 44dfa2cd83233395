"""Inception v4: Cadene's names and timm's are ours."""

from convert.rules import TORCH

RULES = {"cadene": TORCH}
