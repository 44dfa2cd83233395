"""Training: one loop, many tasks."""

import ctypes.util
import os
import sys

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
KEPT_PAGES = {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"}  # jemalloc's


def memory() -> dict[str, str]:
  """What the environment lacks for an allocator that suits XLA on a CPU.

  XLA asks for the buffers of each step anew. glibc maps them, and the kernel clears them by pages
  of 4 KB unless it is asked for large ones; jemalloc, where it is installed, keeps them
  (bench/speed.md). What a user chose stays.
  """
  if sys.platform != "linux" or LARGE_PAGES.keys() & os.environ.keys():
    return {}
  own = os.environ.keys() & {"LD_PRELOAD", *KEPT_PAGES}
  jemalloc = None if own else ctypes.util.find_library("jemalloc")
  return LARGE_PAGES | (KEPT_PAGES | {"LD_PRELOAD": jemalloc} if jemalloc else {})


def begin_again(environment: dict[str, str]) -> None:
  """Starts this process anew, with more in its environment: allocators read no later one."""
  if environment:
    os.environ.update(environment)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if sys.argv[:1] == ["-m"] and "numpy" not in sys.modules:  # a script's start, no import of train
  begin_again(memory())
