"""A small folder of photographs that a network learns in a few updates, and how to train on it."""

import os
from pathlib import Path
import sys

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def make(folder: Path, each: int = 12, side: int = 48) -> Path:
  """folder/colour/*.jpg: noise of three colours."""
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (folder / name).mkdir(parents=True)
    for i in range(each):
      pixels = np.array(colour) + rng.normal(0, 60, (side, side, 3))
      Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:02}.jpg")
  return folder


def command(*flags: str) -> list[str]:
  """Trains the fastest real network on 29 photographs in batches of 4: 7 updates an epoch."""
  return [
    sys.executable, "-m", "train.classify", "--model=resnet18", "--size=32", "--batch=4",
    "--optimizer=sgd", "--lr=0.002", "--head_lr=1", "--log_every=1", "--noreport", *flags,
  ]  # fmt: skip


def environment(cache: Path) -> dict[str, str]:
  """Of such a process; `cache` keeps what XLA compiles, so that only the first is slow."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  return kept | {"PYTHONPATH": str(ROOT), "FLAXZOO_CACHE": str(cache)}
