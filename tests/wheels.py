"""Originals whose packages want more than their networks do: code out of wheels, run where it lies.

A wheel is fetched, its hash checked, and its folder of code put on the path as it is.  Packages are
entered without their `__init__`, which would import what nobody here needs.
"""

from collections.abc import Iterable, Mapping
import importlib
import sys
import types
from typing import Any
from unittest import mock

import pytest

from zoo import fetch

WHEELS = {
  "crnn": ("tidkvideochange==0.1.0", "4da87b6133b54b53"),
  "easyocr": ("easyocr==1.7.2", "5be12f9b0e595d44"),
  "doctr": ("python-doctr==1.1.0", "828148045bdb7b3e"),
  "shiftlab": ("shiftlab-ocr==0.3.1", "56c9d7dad85765b4"),
  "smp": ("segmentation-models-pytorch==0.6.0", "c46162221b5abe3b"),
  "slim": ("tf_slim==1.1.0", "fa2bab63b3925bd4"),
  "research": ("tf_object_detection==0.0.3", "4cbb2cbe45d20f46"),  # with TF-slim's later networks
  "ddddocr": ("ddddocr==1.6.1", "c7c70f4ae2d03354"),
}


def reachable(where: str, sha256: str, beside: Mapping[str, str] = fetch.NONE):
  """The file, or a skipped test where there is neither a network nor a cached one."""
  try:
    return fetch.fetch(where, sha256, beside)
  except FileNotFoundError as error:
    pytest.skip(str(error))


def load(wheel: str, modules: Iterable[str], given: Mapping[str, Mapping[str, Any]] = {}):  # noqa: B006
  """The last of `modules` of a wheel, all imported in turn.

  Args:
    wheel: in WHEELS.
    modules: what to import; of the packages above them nothing runs.
    given: {module: attributes} of what stands in for modules that are not imported.
  """
  requirement, sha256 = WHEELS[wheel]
  path = str(reachable(f"pypi:{requirement}", sha256))
  names = {name.rpartition(".")[0] for name in (*modules, *given)}
  names |= {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count("."))}
  packages = {name: types.ModuleType(name) for name in sorted({*names, *given})}
  for name, package in packages.items():
    package.__dict__.update(given.get(name, {}))
    package.__path__ = [f"{path}/{name.replace('.', '/')}"]
  with mock.patch.dict(sys.modules, packages):
    for name in modules:
      found = importlib.import_module(name)
      for package in packages.values():  # as their `__init__` would have shown it
        if name.startswith(f"{package.__name__}."):
          package.__dict__.update({**vars(found), **vars(package)})
    return found
