"""One file a family: CASES, the originals that its variants are compared with.

NAMES, where given, are more cases, of which only the names and shapes are tested.
GRADIENTS is the one whose gradients are compared too.
SMALLEST = (variant, fields), where given, is what tests of real arrays run of the family: little of
everything, quick to compile.
"""

import csv
import dataclasses
import importlib
from pathlib import Path
import pkgutil
import re

from zoo import catalog


with open(Path(__file__).parent.with_name("references.csv")) as _file:
  PARAMS = {row["variant"]: int(row["params"]) for row in csv.DictReader(_file)}
HEAVY = 80e6  # parameters


def _files():
  names = [m.name for m in pkgutil.iter_modules(__path__)]
  return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def all_cases():
  return [case for file in _files().values() for case in file.CASES]


def quick_cases():
  """What the suite runs of them; `python -m bench.parity` runs all, at all sizes.

  Of every family, library and form (fields) the lightest variant sees all its sizes, if it is not
  HEAVY. A deeper one of the same blocks sees the last, which is odd, and no second library where
  one has proven it.
  """
  cases, seen, forms = [], set(), set()
  for name, file in _files().items():
    order = lambda case: (PARAMS.get(case.variant, 0), case.dialect == "keras")  # compiled twice
    for case in sorted(file.CASES, key=order):
      form = (name, re.split("[.:]", case.reference)[0], *case.fields)
      light = "depths" in case.fields or PARAMS.get(case.variant, 0) < HEAVY
      if form not in forms and light:
        cases.append(case)
      elif form not in forms or case.variant not in seen:
        cases.append(dataclasses.replace(case, sizes=case.sizes[-1:]))
      forms.add(form)
      seen.add(case.variant)
  return cases


def all_names():
  return [case for file in _files().values() for case in getattr(file, "NAMES", ())]


def smallest():
  """{family: (variant, fields)}: its SMALLEST, or its variant of fewest parameters."""
  named = {name: file.SMALLEST for name, file in _files().items() if hasattr(file, "SMALLEST")}
  lightest = {
    family.__name__.rpartition(".")[2]: (min(family.VARIANTS, key=lambda v: PARAMS.get(v, 0)), {})
    for family in catalog.families("classify")
  }
  return lightest | named


def gradients():
  """{family: case}."""
  return {name: file.GRADIENTS for name, file in _files().items() if hasattr(file, "GRADIENTS")}
