"""What every script does before its work."""

import ast
import ctypes.util
import gc
import os
import subprocess
import sys

import jax
from jax import lax
import numpy as np

import train
from train import startup

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


def test_convolutions_on_a_cpu_are_xlas_own(monkeypatch):
  """`tests/conftest.py` asks for it as scripts do, before JAX is used."""
  x, kernel = np.zeros((1, 64, 16, 16), np.float32), np.zeros((64, 64, 3, 3), np.float32)
  run = jax.jit(lambda x, kernel: lax.conv(x, kernel, (1, 1), "SAME"))
  with jax.default_device(jax.devices("cpu")[0]):
    text = run.lower(x, kernel).compile().as_text()
  assert " convolution(" in text and "ynn" not in text
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr(startup, "WORDS", (b"xla_cpu_no_such_flag",))
  startup.own_convolutions()
  assert "XLA_FLAGS" not in os.environ  # a process with a flag that XLA does not know would end


def test_cycles_are_looked_for_seldom():
  before, kept = gc.get_threshold(), gc.get_freeze_count()
  assert kept and before[0] == startup.OBJECTS  # by conftest, as by every script
  try:
    gc.set_threshold(700, 5, 4)
    startup.collect_seldom()
    assert gc.get_threshold() == (startup.OBJECTS, 5, 4) and gc.isenabled()
    assert gc.get_freeze_count() <= kept  # what came since may end
    gc.set_threshold(50_000, 5, 4)  # a user's own
    startup.collect_seldom()
    assert gc.get_threshold() == (50_000, 5, 4)
  finally:
    gc.set_threshold(*before)
