"""The notebooks are made from their sources; solutions and exercises run, on real photographs."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path
import re

import matplotlib
import pytest

from tests import groceries
import zoo

ROOT = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted((ROOT / "source").glob("*.py"))


def maker():
  spec = importlib.util.spec_from_file_location("make", ROOT / "make.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_they_are_those_of_their_sources():
  made = maker().made()
  assert {path: path.read_text("utf-8") for path in ROOT.glob("*/*.ipynb")} == made, (
    "run python notebooks/make.py"
  )
  assert len(made) == 2 * len(SOURCES) == 12


def test_what_a_blank_leaves():
  make = maker()
  text = (
    "# %% [markdown]\n# Title\n#\n# text\n\n# %%\nimport a\n\n# %%\nx, y = f(1) == 2  # BLANK\n"
  )
  text += "def f():\n  return 3  # BLANK\n"
  ends = {blanks: json.loads(make.notebook(text, blanks)) for blanks in (False, True)}
  kinds = [cell["cell_type"] for cell in ends[True]["cells"]]
  assert kinds == ["markdown", "code", "code", "code"]
  assert "".join(ends[True]["cells"][0]["source"]) == "Title\n\ntext"
  cells = {blanks: "".join(end["cells"][3]["source"]) for blanks, end in ends.items()}
  assert cells[False] == "x, y = f(1) == 2\ndef f():\n  return 3"
  assert cells[True] == "x, y = ...\ndef f():\n  return ..."


@pytest.fixture(scope="module")
def reachable():
  groceries.photographs()
  try:
    zoo.load("resnet18.broccoli")
  except FileNotFoundError as error:
    pytest.skip(str(error))


def said(path: Path) -> str:
  """What the cells of a notebook print, run one after the other."""
  matplotlib.use("Agg")
  from matplotlib import pyplot

  out, names = io.StringIO(), {"__name__": "__main__"}
  with contextlib.redirect_stdout(out):
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
      if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
  pyplot.close("all")
  return out.getvalue()


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_solution_is_right(source, reachable):
  told = said(ROOT / f"solutions/{source.stem}.ipynb")
  checks = source.read_text("utf-8").count('print("Right') + source.read_text("utf-8").count(
    'print(f"Right'
  )
  assert told.count("Right") == checks >= 2 and "not filled" not in told


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_an_exercise_names_its_blanks(source, reachable):
  told = said(ROOT / f"exercises/{source.stem}.ipynb")
  blanks = re.findall(r"def (\w+)\([^)]*\):\n(?:.*\n){0,2}?.*# BLANK$", source.read_text(), re.M)
  assert len(blanks) == source.read_text().count("# BLANK") >= 3
  for name in blanks:
    assert f"{name} is not filled in yet: " in told
  assert "Right" not in told
