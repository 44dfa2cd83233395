"""Small sets for tasks that ask more than a class, cut out of two photographs of scikit-learn's.

A flower and a temple in China; what is asked can be seen, and learned in a few updates.
"""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image
import pytest

SIDE = 48


def part(i: int) -> str:
  """The split of row `i`: a third is for the test."""
  return "test" if i % 3 == 0 else "val" if i % 10 == 1 else "train"


def photographs() -> dict[str, np.ndarray]:
  datasets = pytest.importorskip("sklearn.datasets")
  images = datasets.load_sample_images().images
  return dict(zip(("temple", "flower"), (np.asarray(image) for image in images)))


def patch(image: np.ndarray, rng, side: int = SIDE) -> np.ndarray:
  """A random square of the middle, where the flower is."""
  size = int(rng.integers(120, 220))
  top, left = int(rng.integers(60, 380 - size)), int(rng.integers(160, 560 - size))
  small = Image.fromarray(image[top : top + size, left : left + size]).resize((side, side))
  return np.asarray(small)


def labels(folder: Path, count: int = 72) -> Path:
  """A listing of pictures with a flower in one half, a temple in the other, or grey in either."""
  images, rng, rows = photographs(), np.random.default_rng(0), []
  for i in range(count):
    yes = {name: bool(rng.integers(2)) for name in images}
    halves = [patch(image, rng)[:, : SIDE // 2] if yes[name] else np.full((SIDE, SIDE // 2, 3), 127)
              for name, image in images.items()]  # fmt: skip
    rng.shuffle(halves)
    save(folder / f"{i}.png", np.concatenate(halves, 1))
    rows.append({"image": f"{i}.png", "labels": "|".join(n for n in images if yes[n]),
                 "split": part(i)})  # fmt: skip
  return _write(folder, rows)


def numbers(folder: Path, count: int = 72) -> Path:
  """Of pictures of different brightness: that, in percent, and its opposite in no unit."""
  images, rng, rows = photographs(), np.random.default_rng(0), []
  for i in range(count):
    share = rng.uniform(0.1, 1)
    save(folder / f"{i}.png", patch(images["flower"], rng) * share)
    rows.append({"image": f"{i}.png", "percent": f"{100 * share:.3f}",
                 "dark": "" if i % 5 == 0 else f"{1 - share:.4f}",
                 "split": part(i)})  # fmt: skip
  return _write(folder, rows)


def places(folder: Path, count: int = 72) -> Path:
  """A listing in JSON of temples or flowers on a dark photograph of the other."""
  images, rng, rows = photographs(), np.random.default_rng(0), []
  for i in range(count):
    name, other = rng.permutation(list(images))
    side = int(rng.integers(16, 30))
    canvas = patch(images[other], rng) * 0.15
    top, left = (int(rng.integers(SIDE - side)) for _ in range(2))
    canvas[top : top + side, left : left + side] = patch(images[name], rng, side)
    save(folder / f"{i}.png", canvas)
    rows.append({"image": f"{i}.png", "label": str(name),
                 "box": [left, top, left + side, top + side], "split": part(i)})  # fmt: skip
  (folder / "listing.json").write_text(json.dumps(rows))
  return folder / "listing.json"


def bags(folder: Path, count: int = 72) -> Path:
  """Bags of 2 to 5 pictures; those called flower have one of a flower among temples."""
  images, rng, rows = photographs(), np.random.default_rng(0), []
  for i in range(count):
    some, label = int(rng.integers(2, 6)), ("temple", "flower")[i % 2]
    key = int(rng.integers(some))
    for k in range(some):
      name = label if k == key else "temple"
      save(folder / f"{i}_{k}.png", patch(images[name], rng, 32))
      rows.append({"image": f"{i}_{k}.png", "bag": f"bag {i}", "label": label, "split": part(i)})
  return _write(folder, rows)


def save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels.astype(np.uint8)).save(path)


def _write(folder: Path, rows: list[dict]) -> Path:
  with open(folder / "listing.csv", "w", newline="") as file:
    table = csv.DictWriter(file, rows[0])
    table.writeheader()
    table.writerows(rows)
  return folder / "listing.csv"
