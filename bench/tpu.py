"""Updates compiled by a TPU's own compiler, with no TPU at hand: python -m bench.tpu [--models=a]

Every update is lowered for a slice of TPUs, its batch split over all chips and its state in two,
and given to libtpu; nothing runs, so no time of an update is told. The table has the seconds that
compiling takes here, the bytes of the state on a chip, how many of them are updated in place, what
a chip holds beside them meanwhile, and how often the chips exchange numbers.

libtpu stays in a folder of its own, for JAX looks for TPUs wherever it is installed:
`make references`, or `pip install --no-deps --target=FOLDER 'libtpu==0.0.42.*'` and
`--library=FOLDER/libtpu/libtpu.so`; JAX's extra [tpu] says which version goes with it.
"""

import argparse
from collections import Counter
from functools import partial
import os
from pathlib import Path
import re
import sys
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import optax

from train import mesh
from train.step import make_state, make_train_step
from train.tasks.classify import Classify
import zoo

LIBRARY = Path(sys.prefix, "tpu/libtpu/libtpu.so")
MODELS = (
  "alexnet", "resnet50", "resnext50_32x4d", "seresnet50", "densenet121", "inception_v3", "xception",
  "mobilenetv1_100", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0",
  "efficientnet_lite0", "nasnetamobile",
)  # fmt: skip
EXCHANGES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def slice_of(topology: str, library: Path = LIBRARY) -> list[jax.Device]:
  """The chips of a slice such as "v5e:2x4", which can be compiled for but run nothing."""
  os.environ.update(
    TPU_LIBRARY_PATH=str(library), TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0", TPU_ACCELERATOR_TYPE="v5litepod-8",  # or it asks the machine, and complains
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # its lock is for chips, and outlives a killed process
  )  # fmt: skip
  return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def compiled(network, task, batch, devices, preprocess: zoo.Preprocess):
  """An update of `task`, by momentum, compiled for `devices`.

  Args:
    batch: {name: array or ShapeDtypeStruct} of all devices.
  """
  place = mesh.make((f"data:{len(devices) // 2}", "fsdp:2"), devices)
  shape = batch["image"].shape
  variables = zoo.shapes(network, size=shape[1:3], channels=shape[3])
  tx = optax.sgd(0.1, momentum=0.9)
  state = jax.eval_shape(partial(make_state, tx=tx), variables)
  split = mesh.shardings(place, state)
  step = make_train_step(
    network, task, tx, jax.random.key(1), preprocess, shardings=(split, mesh.replicated(place))
  )
  rows = mesh.placed(batch, dict.fromkeys(batch, mesh.rows(place)))
  return step.lower(mesh.placed(state, split), rows).compile()


def exchanges(text: str) -> Counter:
  """How often a compiled program has chips exchange numbers, by kind."""
  return Counter(re.findall(rf" ({EXCHANGES})(?:-start)?\(", text))


def main():
  parser = argparse.ArgumentParser(
    prog="python -m bench.tpu", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("--models", default=",".join(MODELS), help="names separated by commas")
  parser.add_argument("--topology", default="v5e:2x4", help="such as v5e:4x4 or v4:2x2x2")
  parser.add_argument("--batch", type=int, default=32, help="images of a chip")
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--library", type=Path, default=LIBRARY)
  flags = parser.parse_args()
  if not flags.library.is_file():
    parser.error(f"no libtpu at {flags.library}: `make references`, or say where by --library")
  try:
    networks = {name: zoo.create(name, dtype=jnp.bfloat16) for name in flags.models.split(",")}
    devices = slice_of(flags.topology, flags.library)
  except (ValueError, RuntimeError) as error:  # an unknown network or slice
    parser.error(str(error))
  count = flags.batch * len(devices)
  batch = {
    "image": jax.ShapeDtypeStruct((count, flags.size, flags.size, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((count,), np.int32),
    "real": jax.ShapeDtypeStruct((count,), np.float32),
  }
  kind = f"{len(devices)} {devices[0].device_kind}"
  print(f"{flags.topology}, {kind}, {count} images, bfloat16, jax {jax.__version__}")
  print("| model | compiled in, s | state, MB | in place, MB | beside it, MB | exchanges |")
  print("|---|---|---|---|---|---|")
  for name, network in networks.items():
    start = time.perf_counter()
    program = compiled(network, Classify(), batch, devices, zoo.preprocess(name))
    seconds, held = time.perf_counter() - start, program.memory_analysis()
    said = ", ".join(f"{n} {kind}" for kind, n in sorted(exchanges(program.as_text()).items()))
    sizes = held.output_size_in_bytes, held.alias_size_in_bytes, held.temp_size_in_bytes
    cells = " | ".join(f"{size / 1e6:.1f}" for size in sizes)
    print(f"| {name} | {seconds:.0f} | {cells} | {said} |", flush=True)


if __name__ == "__main__":
  main()
