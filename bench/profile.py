"""Which kernels a computation spends its time in, from JAX's own profiler."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
import re

import jax

from bench import peers

CALLS = 3
SHOWN = 20


def write(run: Callable, folder: Path) -> None:
  """Prints the kernels that take most, and leaves the trace in `folder` for a viewer."""
  with jax.profiler.trace(str(folder)):
    for _ in range(CALLS):
      value = run()
    peers.fetched(value)
  [file] = folder.rglob("*.xplane.pb")
  taken = kernels(jax.profiler.ProfileData.from_file(str(file)))
  total = sum(taken.values()) or 1
  print(f"{folder}: {total / CALLS / 1e6:.2f} ms of kernels a call")
  for name, spent in taken.most_common(SHOWN):
    print(f"  {spent / total:6.1%} {spent / CALLS / 1e6:8.3f} ms  {name}", flush=True)


def kernels(data: jax.profiler.ProfileData) -> Counter:
  """{kernel, without its number: nanoseconds} of the GPUs, or of the CPU's threads."""
  planes = [plane for plane in data.planes if "/device:GPU" in plane.name]
  planes = planes or [plane for plane in data.planes if "/host:CPU" in plane.name]
  taken = Counter()
  for plane in planes:
    for line in plane.lines:
      if line.name.startswith(("Stream", "tf_XLA")):
        for event in line.events:
          if event.name.startswith("ThunkExecutor"):  # holds the others
            continue
          taken[re.sub(r"[._]\d+", "", event.name)[:100]] += event.duration_ns
  return taken
