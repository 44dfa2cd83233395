"""Writes exercises/*.ipynb and solutions/*.ipynb out of source/*.py: python notebooks/make.py

A source is one notebook in percent format: `# %%` begins a cell of code, `# %% [markdown]` one of
text.  A line that ends in `# BLANK` is a blank of the exercise: what stands behind its first `=` or
`return` becomes `...`.
"""

import json
from pathlib import Path
import re

FOLDER = Path(__file__).parent
BLANK = re.compile(r"^(\s*(?:return|[\w, ]+ =) ).*  # BLANK$", re.M)
FILLED = '''\
def filled(**values):
  """True if no value is a blank; else says which ones still are."""
  blank = [name for name, value in values.items() if value is ...]
  for name in blank:
    print(f"{name} is not filled in yet: put your own in place of the dots and run the cells again")
  return not blank
'''


def cells(text: str) -> list[tuple[str, str]]:
  """(kind, source) of each cell of a notebook in percent format."""
  parts = re.split(r"^# %%(.*)\n", text, flags=re.M)[1:]
  found = []
  for mark, body in zip(parts[::2], parts[1::2]):
    kind, body = "markdown" if "markdown" in mark else "code", body.strip("\n")
    found.append((kind, re.sub(r"^# ?", "", body, flags=re.M) if kind == "markdown" else body))
  found.insert(2, ("code", FILLED.strip("\n")))  # behind the title and the imports
  return found


def notebook(text: str, blanks: bool) -> str:
  """The .ipynb of a source, with blanks or without."""
  made = []
  for i, (kind, source) in enumerate(cells(text)):
    source = BLANK.sub(r"\1..." if blanks else lambda match: match[0][: -len("  # BLANK")], source)
    cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {},
            "source": source.splitlines(keepends=True)}  # fmt: skip
    made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
  kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
  whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
  return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def made() -> dict[Path, str]:
  """{path: text} of all notebooks."""
  return {
    FOLDER / kind / f"{source.stem}.ipynb": notebook(source.read_text("utf-8"), blanks)
    for source in sorted((FOLDER / "source").glob("*.py"))
    for kind, blanks in (("exercises", True), ("solutions", False))
  }


if __name__ == "__main__":
  for path, text in made().items():
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    print(path.relative_to(FOLDER))
