"""Images a second and core of the training input, beside the usual one: python -m bench.input

Both read the same JPEG files and give the same batches of uint8 random resized crops with flips,
through Grain without threads; "pillow" decodes and resizes (antialiased bilinear) with Pillow as
torchvision's transforms do. Seconds are of the processor, so other programs disturb little; the
two take turns, and the best of the rounds counts.
"""

import argparse
from functools import partial
import io
import itertools
from pathlib import Path
import tempfile
import time

import numpy as np
from PIL import Image

from train.data import pipeline, transforms
from train.data.sources import FolderSource


def photographs(folder: Path, count: int, height: int, width: int) -> FolderSource:
  """Coloured clouds with the noise of a camera, 75 KB at 500x375."""
  rng = np.random.default_rng(0)
  for i in range(count):
    coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + rng.normal(0, 14, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(folder / f"{i}.jpg", quality=88)
  keys = tuple(f"{i}.jpg" for i in range(count))
  return FolderSource(folder, keys, np.zeros(count, np.int32))


def pillow_view(data, rng, size, augment):
  image = Image.open(io.BytesIO(data)).convert("RGB")
  top, left, height, width = transforms.crop_box(rng, image.height, image.width, augment)
  image = image.crop((left, top, left + width, top + height))
  image = image.resize((size, size), Image.Resampling.BILINEAR)
  if rng.random() < augment.flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image)


def rate(source, view, size: int, batches: int) -> float:
  """Images a second of processor time."""
  transforms.train_view = view
  start = time.process_time()
  for _ in itertools.islice(
    pipeline.train_batches(source, batch=32, size=size, seed=0, threads=0), batches
  ):
    pass
  return 32 * batches / (time.process_time() - start)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--height", type=int, default=375)
  parser.add_argument("--width", type=int, default=500)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rounds", type=int, default=4)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    source = photographs(Path(folder), options.count, options.height, options.width)
    views = {"flaxzoo": transforms.train_view, "pillow": pillow_view}
    run = partial(rate, size=options.size, batches=max(1, options.count // 32))
    for view in views.values():  # imports and the first touch of the files
      run(source, view, batches=1)
    best = dict.fromkeys(views, 0.0)
    for _ in range(options.rounds):
      for name, view in views.items():
        best[name] = max(best[name], run(source, view))
  for name, images in best.items():
    print(f"{name:8} {images:6.0f} images a second and core")
  print(f"ratio    {best['flaxzoo'] / best['pillow']:6.2f}")


if __name__ == "__main__":
  main()
