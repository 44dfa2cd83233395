"""What every script does before its work."""

import dataclasses
import gc
import mmap
import os
from pathlib import Path

import jax
import jaxlib

from train.options import option
from zoo.fetch import cache_dir


OWN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
WORDS = b"xla_cpu_experimental_ynn_fusion_type", b"LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
OBJECTS = 10_000  # new ones, after which Python looks for cycles; its own choice is 700


@dataclasses.dataclass(frozen=True)
class Config:
  distributed: bool = option(
    False, "One of several processes; a cluster that JAX knows (SLURM, GKE, Cloud TPU, MPI) says "
    "which. Elsewhere say it by --coordinator, --processes and --process.", free=True,
  )  # fmt: skip
  coordinator: str = option("", "HOST:PORT where process 0 can be reached.", free=True)
  processes: int = option(0, "How many processes take part.", lower_bound=0, free=True)
  process: int = option(0, "Which of them this is, from 0.", lower_bound=0, free=True)
  heartbeat: int = option(
    30, "Seconds of silence after which a process counts as dead and the others stop.",
    lower_bound=1, free=True,
  )  # fmt: skip


def own_convolutions() -> None:
  """Before anything uses JAX: on CPUs XLA's own convolutions.

  It gives them to YNNPACK, whose are up to twice as slow (bench/speed.md). A user's own
  XLA_FLAGS come later, and win.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if OWN_CONVOLUTIONS not in flags and _compiled_in(*WORDS):
    os.environ["XLA_FLAGS"] = f"{OWN_CONVOLUTIONS} {flags}"


def _compiled_in(*words: bytes) -> bool:
  """Whether XLA's library holds these words: it ends a process for a flag that it does not know."""
  for library in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
    with open(library, "rb") as file:
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return all(held.find(word) >= 0 for word in words)
  return False


def collect_seldom() -> None:
  """Python looks for cycles in fewer of its objects, and less often.

  What tracing makes lives on, and each time Python looked through all of it, and all modules:
  an eighth of a run of one update (bench/speed.md).
  """
  if not gc.get_freeze_count():  # what is imported stays
    gc.freeze()
  gc.set_threshold(max(OBJECTS, gc.get_threshold()[0]), *gc.get_threshold()[1:])


def set_up_compilation() -> None:
  """`own_convolutions`, `collect_seldom`, and what XLA compiles is kept beside the weights.

  Unless the user chose a place for it, or none.
  """
  own_convolutions()
  collect_seldom()
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX's own: a second
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def join(config: Config) -> None:
  """Joins the other processes, if there are to be any; before anything else uses JAX.

  Raises:
    ValueError: the flags contradict each other, or the others were not found.
  """
  told = bool(config.coordinator) + bool(config.processes)
  if not (config.distributed or told or config.process):
    return
  if told == 1 or (config.process and not told) or (told and config.process >= config.processes):
    raise ValueError(
      f"--coordinator={config.coordinator} --processes={config.processes} "
      f"--process={config.process} do not go together: wanted all three, with the process in "
      "0..processes-1, or --distributed alone"
    )
  jax.config.update("jax_enable_preemption_service", True)
  try:
    jax.distributed.initialize(
      config.coordinator or None,
      config.processes or None,
      config.process if told else None,
      initialization_timeout=120,
      heartbeat_timeout_seconds=config.heartbeat,
      shutdown_timeout_seconds=config.heartbeat,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"cannot join the other processes: {str(error).splitlines()[0]}. Start all within two "
      "minutes, with the same --coordinator and --processes"
    ) from error
