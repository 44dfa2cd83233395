"""What every script does before its work."""

import ast
import ctypes.util
import os
import subprocess
import sys

import train

NAMES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF")
SAYS = f"""
import atexit, os
atexit.register(lambda: print({{name: os.environ.get(name) for name in {NAMES}}}))
"""


def environment_of(folder, *arguments, **variables) -> dict[str, str]:
  """The allocator's variables at the end of `python *arguments`."""
  (folder / "sitecustomize.py").write_text(SAYS)
  variables |= {"PYTHONPATH": os.pathsep.join((str(folder), os.getcwd()))}
  env = {k: v for k, v in os.environ.items() if k not in NAMES} | variables
  run = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
  assert "ld.so" not in run.stderr  # nothing is preloaded that is not there
  found = ast.literal_eval(run.stdout.splitlines()[-1])
  return {name: value for name, value in found.items() if value is not None}


def test_scripts_choose_an_allocator_and_importing_code_does_not(tmp_path):
  pages, kept = train.LARGE_PAGES, {}
  if jemalloc := ctypes.util.find_library("jemalloc"):
    kept = {"LD_PRELOAD": jemalloc, **train.KEPT_PAGES}
  if sys.platform != "linux":
    pages = kept = {}
  script = ("-m", "train.predict", "--help")
  assert environment_of(tmp_path, *script) == pages | kept
  for own in ({"GLIBC_TUNABLES": "own"}, {"LD_PRELOAD": "libm.so.6"}, {"MALLOC_CONF": "own"}):
    assert environment_of(tmp_path, *script, **own) == pages | own
  assert environment_of(tmp_path, "-c", "import train.options") == {}
