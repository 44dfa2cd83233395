"""Every variant against its original implementation; `bench.parity` is the longer form."""

import dataclasses
import importlib.util
import re

import pytest

from tests import cases, parity
import zoo
from zoo import catalog

pytest.importorskip("torch", reason="the originals are torch modules: pip install .[references]")


FROM_FILES = {"resnet50_1by2"}  # a Caffe network that tests/test_real_graphs.py runs


def needs(case: parity.Case):
  library = re.split("[.:]", case.reference)[0]
  if importlib.util.find_spec(library) is None:
    pytest.skip(f"the original needs {library}: pip install flaxzoo[references]")


@pytest.mark.parametrize("case", cases.quick_cases(), ids=str)
def test_equals_its_original(case):
  needs(case)
  worst = max(errors := parity.run(case), key=errors.get)
  assert errors[worst] < case.tolerance, f"{worst}: {errors[worst]:.1e}"


def test_every_variant_runs_at_an_odd_size_and_every_family_at_an_even_one():
  odd = {c.variant for c in cases.quick_cases() for h, w in c.sizes if h % 2 and w % 2}
  even = {c.variant for c in cases.quick_cases() for h, w in c.sizes if not (h % 2 or w % 2)}
  names = {name for name in zoo.names() if catalog.task(name) == "classify"} - FROM_FILES
  assert names - odd == set()
  assert [f for f in catalog.families("classify") if not even & f.VARIANTS.keys()] == []


def test_bench_parity_runs_every_variant_at_both():
  seen = {(c.variant, h % 2, w % 2) for c in cases.all_cases() for h, w in c.sizes}
  names = {name for name in zoo.names() if catalog.task(name) == "classify"} - FROM_FILES
  assert {name for name in names if not {(name, 0, 0), (name, 1, 1)} <= seen} == set()


def swapped(state):
  """Means where variances belong, and the other way round."""
  other = {"running_mean": "running_var", "running_var": "running_mean"}
  return {re.sub("running_(mean|var)", lambda m: other[m[0]], k): v for k, v in state.items()}


SMALL = parity.Case(
  "resnet18", "torchvision.models:resnet18", {"stem": "relu"}, sizes=((32, 32), (33, 47))
)
KERAS = next(c for c in cases.all_cases() if str(c) == "mobilenetv1_025-keras")


@pytest.mark.parametrize(
  ("case", "slip"),
  [
    (SMALL, {"fields": {"eps": 1e-4}}),
    (SMALL, {"fields": {"ceil_pool": True}}),
    (SMALL, {"fields": {"padding": "tf"}}),
    (SMALL, {"edit": swapped}),
    (KERAS, {"fields": KERAS.fields | {"eps": 1e-4}, "sizes": ((32, 32),)}),
    (KERAS, {"fields": KERAS.fields | {"padding": "torch"}, "sizes": ((32, 32),)}),
  ],
  ids=["eps", "pool", "padding", "statistics", "keras-eps", "keras-padding"],
)
def test_a_slip_is_seen(case, slip):
  """Each of these would pass a comparison of statistics that are zero and one, or of odd sizes."""
  needs(case)
  errors = parity.run(dataclasses.replace(case, **slip))
  assert not max(errors.values()) < 10 * case.tolerance
