"""What every script does before its work."""

import os
import subprocess
import sys

import train

SAYS = "import atexit, os; atexit.register(lambda: print('has', os.environ.get('GLIBC_TUNABLES')))"


def environment_of(folder, *arguments, **variables) -> str:
  """What is GLIBC_TUNABLES at the end of `python *arguments`."""
  (folder / "sitecustomize.py").write_text(SAYS)
  variables |= {"PYTHONPATH": os.pathsep.join((str(folder), os.getcwd()))}
  env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | variables
  run = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
  return run.stdout.splitlines()[-1]


def test_scripts_ask_for_large_pages_and_importing_code_does_not(tmp_path):
  wanted = train.LARGE_PAGES if sys.platform == "linux" else None
  script = ("-m", "train.predict", "--help")
  assert environment_of(tmp_path, *script) == f"has {wanted}"
  assert environment_of(tmp_path, *script, GLIBC_TUNABLES="own") == "has own"
  assert environment_of(tmp_path, "-c", "import train.options") == "has None"
