"""One file a family: CASES, the originals that its variants are compared with.

NAMES, where given, are more cases, of which only the names and shapes are tested.
GRADIENTS is the one whose gradients are compared too.
SMALLEST = (variant, fields), where given, is what tests of real arrays run of the family: little of
everything, quick to compile.
"""

import importlib
import pkgutil


def _files():
  names = [m.name for m in pkgutil.iter_modules(__path__)]
  return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def all_cases():
  return [case for file in _files().values() for case in file.CASES]


def all_names():
  return [case for file in _files().values() for case in getattr(file, "NAMES", ())]


def smallest():
  """{family: (variant, fields)} of the families that name one."""
  return {name: file.SMALLEST for name, file in _files().items() if hasattr(file, "SMALLEST")}


def gradients():
  """{family: case}."""
  return {name: file.GRADIENTS for name, file in _files().items() if hasattr(file, "GRADIENTS")}
