"""Flags from dataclasses: types, choices, limits, help and misspelling."""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys
import textwrap

from absl import flags
import pytest

from train import options
from train.options import option

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Config:
  lr: float = option(0.01, "Learning rate.", lower_bound=0.0)
  batch: int = option(32, "Images.")
  name: str = option("a", "Name.")
  flip: bool = option(True, "Flip.", free=True)
  parts: tuple[str, ...] = option(("x",), "Parts.")
  kind: str = option("cosine", "Kind.", choices=("cosine", "constant"))


def parse(*argv):
  values = flags.FlagValues()
  read = options.define(Config, values)
  values(["program", *argv])
  return read()


def test_defaults_and_types():
  assert parse() == Config()
  given = parse("--lr=3e-3", "--batch=8", "--noflip", "--parts=a,b", "--kind=constant")
  assert given == Config(0.003, 8, "a", False, ("a", "b"), "constant")
  assert isinstance(parse("--lr=1").lr, float)


def test_flagfile(tmp_path):
  recipe = tmp_path / "some.flags"
  recipe.write_text("# a comment\n--lr=0.5\n--batch=4\n")
  assert parse(f"--flagfile={recipe}", "--batch=5") == Config(lr=0.5, batch=5)


@pytest.mark.parametrize(
  "bad, text",
  [
    ("--lrr=3", "Did you mean: lr"),
    ("--kind=linear", "<cosine|constant>"),
    ("--lr=-1", "non-negative"),
    ("--batch=many", "batch"),
  ],
)
def test_wrong_flags(bad, text):
  with pytest.raises(flags.Error, match=text):
    parse(bad)


def test_as_dict_and_free():
  assert options.as_dict(Config())["parts"] == ("x",)
  assert options.free(Config()) == {"flip"}


SCRIPT = """
  import dataclasses
  from train import options
  from train.options import option

  @dataclasses.dataclass(frozen=True)
  class Config:
    lr: float = option(0.01, "Learning rate, here.")

  def main(_, config):
    raise ValueError(f"no good: {config.lr}")

  options.run(main, Config)
"""


def test_run_ends_in_a_sentence(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(textwrap.dedent(SCRIPT))

  def run(*argv):
    done = subprocess.run(
      [sys.executable, str(script), *argv], capture_output=True, text=True, timeout=60,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr

  assert run("--lr=2") == (1, "", "error: no good: 2.0\n")
  code, _, error = run("stray")
  assert code == 1 and "stray" in error and "Traceback" not in error
  code, _, error = run("--lr=2", "--debug")
  assert code == 1 and "Traceback" in error
  assert "Learning rate, here." in run("--help")[1]  # flags count as the script's own
