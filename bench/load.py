"""Loading beside the peers, in one run: python -m bench.load [--rounds=N]

A ResNet-152 of random numbers is written as torch, safetensors and flaxmodels store it; each way of
loading has a process of its own, so that its peak memory is its own. Prints the seconds until the
arrays are there, those until every number was also read, the peak above what the imports take, and
theirs over ours (medians of paired rounds). Then a file of half a gigabyte, VGG-16's, is converted.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
import importlib
import json
import os
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types

import numpy as np

NAME, BIG = "resnet152.tv1", "vgg16.tv1"
FLAXMODELS = (
  "pypi:flaxmodels==0.1.3",
  "fc560089f2dcc46e04c99f7e44619f532bb7a436ef29409b5a84a63074e445da",
)
WHEEL = "flaxmodels.whl"  # what it is called in the folder of the files
BOUND = 1.3, 200e6  # of the peak of converting: times the file, and bytes on top
Load = Callable[[], object]


# What writes the files.


def random_state(name: str) -> Mapping[str, np.ndarray]:
  """Arrays under the names and in the layout of torchvision, without torchvision."""
  from convert import engine
  import zoo
  from zoo import catalog

  rng = np.random.default_rng(0)
  target = zoo.shapes(zoo.create(name))
  state = {}
  for path, spec in _flat(target):
    module, _, leaf = path.partition("/")[2].rpartition("/")
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(spec.shape), (0,))
    shape = tuple(spec.shape[axis] for axis in axes)
    state[_torchs(name, module, leaf)] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
  rules = zoo.rules_of(name)
  engine.convert(state, target, rules)  # the names are right, or this says which are not
  assert catalog.WEIGHTS[name].dialect == "torchvision"
  return state


def _flat(tree) -> Iterator:
  from flax import traverse_util

  return traverse_util.flatten_dict(tree, sep="/").items()


def _torchs(name: str, module: str, leaf: str) -> str:
  from convert.rules import vgg

  if name == BIG:
    places = {ours: i for i, ours in vgg.positions(vgg.DEPTHS["16"], batch_norm=False).items()}
    dense = {"fc6": 0, "fc7": 3, "fc8": 6}
    module = f"classifier.{dense[module]}" if module in dense else f"features.{places[module]}"
  leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(
    leaf, leaf
  )
  head, _, tail = module.partition("/")
  parts = [head.replace("_", "."), tail.replace("_", ".")] if tail else [head]
  return ".".join([*parts, leaf])


def write(folder: Path) -> None:
  """Every file that a way of loading below reads."""
  import h5py

  from convert import writers
  import zoo
  from zoo import fetch, store

  (folder / WHEEL).symlink_to(fetch.fetch(*FLAXMODELS))
  os.environ["FLAXZOO_CACHE"] = str(folder)  # random numbers stay out of the real one
  state = random_state(NAME)
  writers.torch_zip(folder / "x.pth", state)
  writers.safetensors(folder / "x.safetensors", state)
  store.save(zoo.converted_path(NAME), *zoo.from_foreign(NAME, folder / "x.pth"))
  (folder / "flaxmodels").mkdir()
  with h5py.File(folder / "flaxmodels/resnet152_weights.h5", "w") as file:
    for path, array in _flat(zoo.from_foreign(NAME, folder / "x.pth")[0]):
      file[_flaxmodels(path)] = array
  writers.torch_zip(folder / "big.pth", random_state(BIG))


def _flaxmodels(path: str) -> str:
  """Where that library looks for an array of ours."""
  path = path.partition("/")[2].replace("kernel", "weight").replace("_", "/block", 1)
  return path.replace("downsample_0", "downsample/conv").replace("downsample_1", "downsample/bn")


# The ways of loading: each imports what it needs, and returns what is timed.


def ours_arrays(path: str) -> Load:
  from convert import readers

  return lambda: readers.read(Path(path))


def ours_variables(path: str) -> Load:
  import zoo

  return lambda: zoo.from_foreign(NAME, Path(path))[0]


def ours_cached(_: str) -> Load:
  import zoo

  return lambda: zoo.load(NAME)[1]


def torch_load(path: str, mmap: bool = False) -> Load:
  import torch

  torch.set_num_threads(1)
  return lambda: torch.load(path, weights_only=True, mmap=mmap)


def torch_mapped(path: str) -> Load:
  return torch_load(path, mmap=True)


def safetensors_numpy(path: str) -> Load:
  import safetensors.numpy

  return lambda: safetensors.numpy.load_file(path)


def safetensors_torch(path: str) -> Load:
  import safetensors.torch

  return lambda: safetensors.torch.load_file(path)


def flaxmodels(path: str) -> Load:
  """Its own code: `init` draws every parameter out of an open HDF5 file."""
  import jax

  package = sys.modules["flaxmodels"] = types.ModuleType("flaxmodels")
  # What is beside ResNets wants other libraries: the package is entered without its `__init__`.
  package.__path__ = [f"{path}/{WHEEL}/flaxmodels"]
  made = importlib.import_module("flaxmodels.resnet").ResNet152
  key, image = jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32)

  def load():
    model = made(output="logits", pretrained="imagenet", ckpt_dir=path)
    return model.init(key, image, train=False)

  return load


def convert_big(path: str) -> Load:
  """The whole command, a hash and a written file with it."""
  from convert import __main__ as command

  options = command.Options(file=path, out=f"{path}.converted.safetensors")
  return lambda: command.main(options, [BIG])


# What is shown, the function, its file; the first of a block is what the others are divided by.
Row = tuple[str, Callable[[str], Load], str]
BLOCKS: tuple[tuple[Row, ...], ...] = (
  (
    ("ours, .pth to arrays", ours_arrays, "x.pth"),
    ("torch.load", torch_load, "x.pth"),
    ("torch.load(mmap=True)", torch_mapped, "x.pth"),
  ),
  (
    ("ours, .safetensors to arrays", ours_arrays, "x.safetensors"),
    ("safetensors.numpy.load_file", safetensors_numpy, "x.safetensors"),
    ("safetensors.torch.load_file", safetensors_torch, "x.safetensors"),
  ),
  (
    ("ours, zoo.load the second time", ours_cached, ""),
    ("ours, .pth to variables", ours_variables, "x.pth"),
    ("ours, .safetensors to variables", ours_variables, "x.safetensors"),
    ("flaxmodels, .h5 to variables", flaxmodels, ""),
  ),
)
WAYS = {row[1].__name__: row[1] for block in BLOCKS for row in block} | {
  way.__name__: way for way in (convert_big, write)
}


def peak() -> int:
  """Bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def total(tree) -> float:
  """Reads every number."""
  return sum(map(total, tree.values())) if isinstance(tree, Mapping) else float(tree.sum())


def measured(way: str, path: str) -> dict[str, float]:
  """In this process: seconds to load, to read every number as well; bytes above the imports'."""
  load = WAYS[way](path)
  before, begin = peak(), time.perf_counter()
  tree = load()
  loaded, bytes_loaded = time.perf_counter() - begin, peak() - before
  if way != convert_big.__name__:
    total(tree)
  used = time.perf_counter() - begin
  return {"load": loaded, "used": used, "bytes loaded": bytes_loaded, "bytes": peak() - before}


def elsewhere(way: str, path: Path) -> dict[str, float]:
  """The same in a process of its own."""
  command = [sys.executable, "-m", "bench.load", f"--way={way}", f"--path={path}"]
  ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(ran.stdout.splitlines()[-1])


HEAD = (
  "| way | load | load and read all | peak after loading | after reading |\n|---|---|---|---|---|"
)
COLUMNS = (
  ("load", 1e3, "ms"), ("used", 1e3, "ms"), ("bytes loaded", 1e-6, "MB"), ("bytes", 1e-6, "MB"),
)  # fmt: skip


def compare(rows: tuple[Row, ...], folder: Path, rounds: int) -> None:
  found = [[elsewhere(way.__name__, folder / file) for _, way, file in rows] for _ in range(rounds)]
  for i, (label, _, _) in enumerate(rows):
    cells = []
    for key, scale, unit in COLUMNS:
      middle = statistics.median(round_[i][key] for round_ in found) * scale
      ratio = statistics.median(round_[i][key] / max(round_[0][key], 1e-9) for round_ in found)
      cells.append(f"{middle:,.0f} {unit} ({ratio:.2f})" if i else f"{middle:,.0f} {unit}")
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> int:
  options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  options.add_argument("--rounds", type=int, default=5)
  options.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
  options.add_argument("--path", help=argparse.SUPPRESS)
  asked = options.parse_args()
  if asked.way == write.__name__:
    write(Path(asked.path))
    return 0
  if asked.way:
    print(json.dumps(measured(asked.way, asked.path)))
    return 0
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    command = [sys.executable, "-m", "bench.load", f"--way={write.__name__}", f"--path={folder}"]
    subprocess.run(command, check=True)
    os.environ["FLAXZOO_CACHE"] = name
    print(HEAD)
    for rows in BLOCKS:
      compare(rows, folder, asked.rounds)
    size = (folder / "big.pth").stat().st_size
    found = elsewhere(convert_big.__name__, folder / "big.pth")
    bound = BOUND[0] * size + BOUND[1]
    print(
      f"\n{BIG} of {size / 1e6:.0f} MB converted in {found['load']:.1f} s, "
      f"peak {found['bytes'] / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB"
    )
  return 0 if found["bytes"] < bound else 1


if __name__ == "__main__":
  sys.exit(main())
