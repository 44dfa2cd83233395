"""Drawn cut-outs and backgrounds in the layout of the packages that `train.scenes` reads."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from train.data import scenes


def make(root: Path) -> tuple[Path, Path]:
  """(stamps, backgrounds): three discs of a colour for each class, three noisy photographs."""
  rng = np.random.default_rng(0)
  for label, places in enumerate(scenes.CLASSES.values()):
    folder = root / "stamps" / places[0]
    folder.mkdir(parents=True)
    for i in range(3):
      image = Image.new("RGBA", (50 + 4 * i, 40))
      ImageDraw.Draw(image).ellipse((4, 4, 45, 35), fill=(20 * label, 250 - 20 * label, 90, 255))
      image.save(folder / f"thing{label}{i}.png")
      (folder / f"thing{label}{i}.txt").write_text(f"A fine thing.\nde.utf8=Ding {i}\n")
    (folder / "thing.dat").write_text("nomirror")
  (root / "backgrounds").mkdir()
  for i in range(3):
    pixels = rng.integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(root / f"backgrounds/{i}.jpg")
  return root / "stamps", root / "backgrounds"


def write(root: Path, *, size: int = 64, counts=(("train", 8), ("val", 4), ("test", 4))) -> Path:
  """A set of scenes of such pictures."""
  composers = scenes.composers(*make(root / "drawn"), size)
  folder = root / "scenes"
  folder.mkdir()
  scenes.write(folder, composers, dict(counts), seed=3)
  return folder
