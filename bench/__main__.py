"""Ours beside the peers, in one run: python -m bench inference|train|compile [--models=a,b]

  inference  the logits of a batch, or a detector's raw maps: jit with the norms folded; onnxruntime
             on our exported graph (train.predict --runtime=onnxruntime); torch eager,
             channels_last; torch.compile, frozen; onnxruntime on the graph that torch exports;
             plain Flax (XLA's own convolutions). The last two columns: the fastest peer beside jit
             and beside our graph
  train      one update, SGD with momentum: jit, torch eager, torch.compile, plain Flax
  compile    seconds to trace, lower and compile the forward pass and the gradients

All sides have the same weights and see the same images; that they agree is checked before anything
is timed. They take turns, round by round; a figure is the median over the rounds, with the
quartiles of the paired ratios peer / ours: above 1 ours is faster. The shares are of the largest
matrix product's rate and of the copy's, measured in the same run; the bytes are XLA's count, which
knows nothing of what cuDNN's calls move.
Float32, on the GPU where JAX has one; with --bfloat16 in that type, parameters and norms in float32
(torch's autocast): `python -m bench train --bfloat16 --batches=256 --profile=runs/profile` also
says which kernels an update of ours spends its time in. On a CPU, --tuned gives all sides the
allocator that our scripts choose: jemalloc where it is installed, else large pages. `python -m
bench.input` and `python -m bench.load` measure the training input and the loading of files.
"""

import argparse
from collections.abc import Mapping
import datetime
from importlib import metadata
import math
import os
from pathlib import Path
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers, profile
from tests import cases
import train
from train import startup
import zoo
from zoo import listing

MODELS = {
  "inference": (
    "alexnet-torchvision", "vgg16-torchvision", "resnet50-torchvision", "resnet152-torchvision",
    "resnext50_32x4d-torchvision", "seresnet50-timm", "densenet121-torchvision",
    "inception_v3-torchvision", "xception-timm", "mobilenetv1_100-timm", "mobilenet_v2-torchvision",
    "mobilenet_v3_large-torchvision", "shufflenet_v2_x1_0-torchvision", "efficientnet_lite0-timm",
    "nasnetamobile-pretrainedmodels", "yolov3_tiny-bench",
  ),
  "train": ("resnet50-torchvision", "mobilenet_v2-torchvision", "resnext50_32x4d-torchvision"),
  "compile": ("resnet50", "resnet152", "densenet264", "inception_resnet_v2", "nasnetalarge",
              "senet154"),
}  # fmt: skip
BATCHES = {"inference": "1,8", "train": "16", "compile": "16"}
SIDES = {"inference": peers.INFERENCE, "train": peers.TRAIN}
AGREE = 1e-3  # the largest difference, of the largest value
HALF = 30  # times that, with eight bits of mantissa
SPAN = 0.1  # seconds that a measurement takes at least


def case_of(name: str):
  """The comparison of that name, such as resnet50-torchvision, without special fields if it can."""
  found = [case for case in (*cases.all_cases(), *peers.CASES) if str(case) == name]
  if not found:
    raise SystemExit(f"no comparison {name!r}; such as {', '.join(MODELS['inference'])}")
  return min(found, key=lambda case: len(case.fields))


def seconds(run, times: int) -> float:
  """Of a call; a GPU is given all at once, as in training."""
  at_once = jax.default_backend() == "gpu"
  start = time.perf_counter()
  for left in reversed(range(times)):
    value = run()
    if not (at_once and left):
      peers.fetched(value)
  return (time.perf_counter() - start) / times


def taken(runs: Mapping[str, peers.Run], rounds: int) -> dict[str, np.ndarray]:
  """{side: seconds a call, one for each round}, all sides in turn."""
  times = {}
  for name, run in runs.items():
    run()  # what is made ready on first use is made ready
    times[name] = max(1, math.ceil(SPAN / seconds(run, 1)))
  rows = [{name: seconds(run, times[name]) for name, run in runs.items()} for _ in range(rounds)]
  return {name: np.array([row[name] for row in rows]) for name in runs}


def peak(half: bool) -> float:
  """Multiply-adds a second of a large matrix product, the best of ten."""
  n = 8192 if jax.default_backend() == "gpu" else 2048
  x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16 if half else jnp.float32)
  product = jax.jit(lambda x: (x @ x)[0, 0])
  run = lambda: product(x)
  seconds(run, 3)
  return n**3 / min(seconds(run, 3) for _ in range(10))


def bandwidth() -> float:
  """Bytes a second that are read and written by a sum of two large arrays."""
  x = jnp.ones(2**29 if jax.default_backend() == "gpu" else 2**26)
  add = jax.jit(lambda x: x + 1)

  def run():
    return add(x)[0]

  seconds(run, 3)
  return 2 * x.nbytes / min(seconds(run, 10) for _ in range(10))


def describe(half: bool, product: float, copy: float) -> str:
  names = ("jax", "torch", "onnxruntime")
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
  with open("/proc/cpuinfo") as file:
    models = [line.partition(": ")[2].strip() for line in file if line.startswith("model name")]
  machine = models[0] if models else platform.machine()
  allocator = " ".join(os.environ.get(k, "") for k in ("GLIBC_TUNABLES", "LD_PRELOAD")).strip()
  return (
    f"{datetime.date.today()}, {machine}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, "
    f"allocator {allocator or 'as it is'}; "
    f"{versions}; {'bfloat16' if half else 'float32'} product {2 * product / 1e9:.0f} GFLOP/s, "
    f"memory {copy / 1e9:.0f} GB/s"
  )


def compare(what: str, name: str, batch: int, sides, flags) -> tuple[dict, float]:
  """{side: seconds in each round} of one network, after all have agreed; the bytes ours moves."""
  shape = (batch, flags.size, flags.size, 3)
  images = np.random.default_rng(0).standard_normal(shape, np.float32)
  twin = peers.Twin(case_of(name), images, flags.bfloat16)
  tolerance = AGREE * (HALF if flags.bfloat16 else 1)
  runs, first = {}, {}
  for side in sides:
    runs[side] = SIDES[what][side](twin)
    first[side] = peers.fetched(runs[side]())
    error = np.abs(first[side] - first[sides[0]]).max() / np.abs(first[sides[0]]).max()
    if not error <= tolerance:
      raise SystemExit(f"{name}: {side}'s answer is {error:.1e} off {sides[0]}'s; nothing is timed")
  times = taken(runs, flags.rounds)
  if flags.profile:
    profile.write(runs[sides[0]], flags.profile / f"{what}-{name}-{batch}")
  return times, twin.traffic


def row(name: str, batch: int, times: dict, shares) -> tuple[str, list[float]]:
  """A line of the table, and the medians of its paired ratios from left to right."""
  own, *others = times
  taken = np.median(times[own])
  cells = [name, str(batch), f"{1e3 * taken:.1f}", f"{batch / taken:.0f}"]
  cells += [f"{share / taken:.0%}" for share in shares]
  medians = []
  for side in others:
    low, middle, high = np.percentile(times[side] / times[own], (25, 50, 75))
    medians.append(float(middle))
    cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
  for way, rivals in contests(times):
    ratios = {side: float(np.median(times[side] / times[way])) for side in rivals}
    fastest = min(ratios, key=ratios.get)
    medians.append(ratios[fastest])
    cells.append(f"{ratios[fastest]:.2f} {fastest}")
  return "| " + " | ".join(cells) + " |", medians


def contests(sides) -> list[tuple[str, list[str]]]:
  """Each way of ours, and the peers that it is beside."""
  rivals = [side for side in sides if side not in peers.OWN]
  return [(side, rivals) for side in sides if side in peers.OWN and rivals]


def measure(what: str, flags, product: float, copy: float) -> list[str]:
  sides = [name for name in flags.peers.split(",") if name]
  if unknown := set(sides) - set(SIDES[what]):
    raise SystemExit(f"no peer {', '.join(unknown)}; there are {', '.join(list(SIDES[what])[1:])}")
  sides = ["flaxzoo", *sides]
  heads = ["model", "batch", "ms", "images/s", "of the product", "of the memory", *sides[1:]]
  heads += [f"fastest peer / {way}" for way, _ in contests(sides)]
  lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
  print(*lines, sep="\n", flush=True)
  every = []
  for name in flags.models:
    work = listing.measure(zoo.create(case_of(name).variant), flags.size)[1]
    work *= 3 if what == "train" else 1
    for batch in map(int, flags.batches.split(",")):
      times, traffic = compare(what, name, batch, sides, flags)
      line, medians = row(name, batch, times, (work * batch / product, traffic / copy))
      every.append(medians)
      lines.append(line)
      print(line, flush=True)
      jax.clear_caches()
  if sides[1:]:
    mean = lambda values: math.exp(np.mean(np.log(values)))
    ends = [f"{mean(column):.2f}" for column in zip(*every)]
    lines.append(f"| geometric mean | | | | | | {' | '.join(ends)} |")
    print(lines[-1])
  return lines


def compilation(flags) -> list[str]:
  lines = ["| model | forward, s | gradients, s | plain forms | |", "|---|---|---|---|---|"]
  print(*lines, sep="\n", flush=True)
  for name in flags.models:
    cells = [
      f"{value:.1f}"
      for plain in (False, True)
      for value in peers.compile_seconds(name, plain, flags.size, int(flags.batches))
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
    print(lines[-1], flush=True)
  return lines


def main():
  parser = argparse.ArgumentParser(
    prog="python -m bench", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("what", choices=MODELS)
  parser.add_argument("--models", help="names separated by commas")
  parser.add_argument("--batches", help="such as 1,8")
  parser.add_argument("--peers", help="of the table's columns, separated by commas; '' is none")
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is its own choice")
  parser.add_argument("--bfloat16", action="store_true", help="compute in that type")
  parser.add_argument("--tuned", action="store_true", help="all sides with our scripts' allocator")
  parser.add_argument("--profile", type=Path, help="a folder for what our kernels spend")
  parser.add_argument("--out", type=Path, help="a file for the table")
  flags = parser.parse_args()
  if flags.out and (flags.out.is_dir() or not flags.out.parent.is_dir()):
    parser.error(f"--out is the table's file, in a folder that is there; {flags.out} cannot be one")
  if flags.tuned:
    train.begin_again(train.memory())
  flags.models = flags.models.split(",") if flags.models else MODELS[flags.what]
  flags.batches = flags.batches or BATCHES[flags.what]
  peers.THREADS = flags.threads or os.cpu_count()
  startup.set_up_compilation()  # as in our scripts, so for plain Flax as well
  if flags.peers is None:
    flags.peers = ",".join(list(SIDES.get(flags.what, ()))[1:])
  if jax.default_backend() == "gpu":  # the graph's runtime is compared on CPUs
    flags.peers = ",".join(x for x in flags.peers.split(",") if not x.endswith("onnxruntime"))
  rates = peak(flags.bfloat16), bandwidth()
  head = describe(flags.bfloat16, *rates)
  print(head, flush=True)
  lines = compilation(flags) if flags.what == "compile" else measure(flags.what, flags, *rates)
  if flags.out:
    flags.out.write_text("\n".join([f"Written by `python -m bench {flags.what}`: {head}.", "",
                                    *lines]) + "\n")  # fmt: skip


if __name__ == "__main__":
  main()
