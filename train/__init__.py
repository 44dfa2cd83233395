"""Training: one loop, many tasks."""

import os
import sys

LARGE_PAGES = "glibc.malloc.hugetlb=1"


def _begin_with_large_pages() -> None:
  """Starts `python -m train...` anew, before anything is imported, with large pages.

  XLA on a CPU maps its buffers anew in each step, and the kernel clears them by pages of 4 KB
  unless glibc asks for large ones, which only a process's first environment can tell it: an update
  of MobileNetV2 takes half the time (BUILD.md, "Speed"). A user's own GLIBC_TUNABLES stay.
  """
  script = sys.argv[:1] == ["-m"] and "numpy" not in sys.modules  # not where train is imported
  if script and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = LARGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_begin_with_large_pages()
