"""Images a second and core of the training input, beside the usual ones: python -m bench.input

All read the same JPEG files and give batches of random resized crops with flips, each in a process
of its own: TensorFlow's threads took an eighth of the time of whatever ran beside them.

  flaxzoo      as train.classify does: uint8
  pillow       our pipeline, with Pillow's decoding and resizing in place of ours: uint8
  torch v1     torch's DataLoader over torchvision's transforms of Pillow's pictures, float32 as the
               usual recipe has them
  torch v2     the same with transforms.v2, uint8
  tf.data      decode_and_crop_jpeg and a bilinear resize without antialiasing, uint8
  tf.data area the same with a resize that averages what it shrinks, as all the others smooth it

The last four run where torch, torchvision and tensorflow are installed. Seconds are of the
processor, so other programs disturb little; all take turns, and the best of the rounds counts.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
import contextlib
import cProfile
from functools import partial
import io
import itertools
import multiprocessing
from pathlib import Path
import pstats
import tempfile
import time

import numpy as np
from PIL import Image

from train.data import pipeline, transforms
from train.data.sources import FolderSource

BATCH = 32


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


def ours(source: FolderSource, size: int) -> Iterator:
  return pipeline.train_batches(source, batch=BATCH, size=size, seed=0, threads=0)


def pillow_view(data, rng, size, augment):
  image = Image.open(io.BytesIO(data)).convert("RGB")
  top, left, height, width = transforms.crop_box(rng, image.height, image.width, augment)
  image = image.crop((left, top, left + width, top + height))
  image = image.resize((size, size), Image.Resampling.BILINEAR)
  if rng.random() < augment.flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image)


def torch_v1(source: FolderSource, size: int) -> Iterator:
  from torchvision import transforms as v1

  return _torch(source, v1.Compose([
    v1.RandomResizedCrop(size), v1.RandomHorizontalFlip(), v1.ToTensor(),
    v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  ]))  # fmt: skip


def torch_v2(source: FolderSource, size: int) -> Iterator:
  from torchvision.transforms import v2

  return _torch(source, v2.Compose([
    v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor(),
  ]))  # fmt: skip


def _torch(source: FolderSource, view: Callable) -> Iterator:
  import torch

  torch.set_num_threads(1)

  class Pictures(torch.utils.data.Dataset):
    def __len__(self):
      return len(source)

    def __getitem__(self, index):
      with Image.open(source.root / source.keys[index]) as image:
        return view(image.convert("RGB")), int(source.labels[index])

  while True:
    yield from torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True, drop_last=True)


def tf_data(source: FolderSource, size: int, method: str = "bilinear") -> Iterator:
  import tensorflow as tf

  def view(path, label):
    data = tf.io.read_file(path)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(data), tf.zeros((1, 0, 4)), area_range=(0.08, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3), use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    box = tf.concat([begin[:2], extent[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
    image = tf.image.resize(image, (size, size), method)
    return tf.cast(tf.image.random_flip_left_right(image), tf.uint8), label

  paths = [str(source.root / key) for key in source.keys]
  data = tf.data.Dataset.from_tensor_slices((paths, source.labels)).shuffle(len(source)).repeat()
  one = tf.data.Options()
  one.threading.private_threadpool_size = 1
  one.autotune.enabled = False  # else it works ahead while others are timed
  one.experimental_optimization.inject_prefetch = False
  return iter(data.map(view).batch(BATCH, drop_remainder=True).with_options(one))


COMPETITORS = {
  "flaxzoo": ours, "pillow": ours, "torch v1": torch_v1, "torch v2": torch_v2, "tf.data": tf_data,
  "tf.data area": partial(tf_data, method="area"),
}  # fmt: skip


def begin(name: str, source: FolderSource, size: int) -> None:
  """In a process of its own: imports, and the first touch of the files."""
  global _batches
  importable(name)
  if name == "pillow":
    transforms.train_view = pillow_view
  _batches = COMPETITORS[name](source, size)
  rate(1)


def rate(count: int, profile: bool = False) -> float:
  """Images a second of the process's time."""
  start = time.process_time()
  with cProfile.Profile() if profile else contextlib.nullcontext() as profiled:
    for _ in itertools.islice(_batches, count):
      pass
  if profile:
    pstats.Stats(profiled).sort_stats("tottime").print_stats(10)
  return BATCH * count / (time.process_time() - start)


def importable(name: str) -> bool:
  """Whether what a competitor is made of is here."""
  try:
    if name.startswith("torch"):
      from convert.commands.originals import import_torchvision

      import_torchvision()
    elif name.startswith("tf.data"):
      import tensorflow  # noqa: F401
  except (ImportError, RuntimeError, OSError, ValueError) as error:
    print(f"{name}: left out, {str(error).splitlines()[0]}")
    return False
  return True


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--count", type=int, default=1000)
  parser.add_argument("--height", type=int, default=375)
  parser.add_argument("--width", type=int, default=500)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rounds", type=int, default=4)
  parser.add_argument("--profile", action="store_true", help="where our seconds go")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    source = photographs(Path(folder), options.count, options.height, options.width)
    names = [name for name in COMPETITORS if importable(name)]
    count = max(1, min(options.count, 256) // BATCH)
    best = dict.fromkeys(names, 0.0)
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
      pools = {
        name: stack.enter_context(
          ProcessPoolExecutor(1, spawn, begin, (name, source, options.size))
        ) for name in names
      }  # fmt: skip
      for _ in range(options.rounds):
        for name, pool in pools.items():
          best[name] = max(best[name], pool.submit(rate, count).result())
      if options.profile:
        pools["flaxzoo"].submit(rate, max(1, options.count // BATCH), True).result()
  for name, images in best.items():
    print(
      f"{name:12} {images:6.0f} images a second and core, ours {best['flaxzoo'] / images:5.2f} x"
    )


if __name__ == "__main__":
  main()
