"""Imports go one way: convert, zoo.ops, layers and weights, families, catalog, zoo, train."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for floor in ("convert", "zoo", "train") for p in (ROOT / floor).rglob("*.py"))
# Which of our own modules the files below a path may import; the first match counts.
MAY = (
  ("convert/__main__.py", ("convert", "zoo")),
  ("convert/commands/", ("convert", "zoo")),  # what it runs
  ("convert/", ("convert",)),
  ("zoo/ops/", ("zoo.ops",)),
  ("zoo/layers.py", ("zoo.ops",)),
  ("zoo/weights.py", ("zoo.ops",)),
  ("zoo/fetch.py", ()),
  ("zoo/store.py", ("convert", "zoo.weights")),
  ("zoo/classify/", ("zoo.ops", "zoo.layers", "zoo.weights")),
  ("zoo/detect/", ("zoo.ops", "zoo.layers", "zoo.weights", "zoo.classify", "zoo.detect")),
  ("zoo/segment/", ("zoo.ops", "zoo.layers", "zoo.weights", "zoo.classify")),
  ("zoo/text/", ("zoo.ops", "zoo.layers", "zoo.weights", "zoo.classify", "zoo.text")),
  (
    "zoo/catalog.py",
    ("zoo.classify", "zoo.detect", "zoo.segment", "zoo.text", "zoo.layers", "zoo.weights"),
  ),
  ("zoo/explain.py", ("zoo.ops", "zoo.layers", "zoo.weights", "zoo.catalog")),
  ("zoo/", ("convert", "zoo")),
  ("train/", ("convert", "zoo", "train")),
)
NEVER = {
  "convert/": {"jax.numpy", "torch", "tensorflow", "absl", "pickle"},
  "zoo/ops/": {"flax", "torch", "tensorflow", "absl"},
  "zoo/": {"torch", "tensorflow", "absl"},
  "train/": {"torch", "tensorflow"},
}


def imports(path: Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      for alias in node.names:
        yield f"{node.module}.{alias.name}"


def below(name: str, package: str) -> bool:
  return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_floors(path):
  place = str(path.relative_to(ROOT))
  may = next(allowed for prefix, allowed in MAY if place.startswith(prefix))
  never = set().union(*(names for prefix, names in NEVER.items() if place.startswith(prefix)))
  if path.name == "__main__.py":  # an application
    never -= {"absl"}
  wrong = []
  for name in imports(path):
    ours = any(below(name, floor) for floor in ("convert", "zoo", "train", "tests", "bench"))
    if ours and not any(below(name, package) for package in may):
      wrong.append(name)
    wrong += [name for bad in never if below(name, bad)]
  assert not wrong, f"{place} imports {wrong}"


def test_no_family_imports_another():
  for path in (ROOT / "zoo/classify").glob("*.py"):
    assert not [n for n in imports(path) if below(n, "zoo.classify")], path.name
