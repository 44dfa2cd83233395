"""Strangers' files by their names and shapes: which network they hold, in whose names."""

import pytest
import safetensors.numpy
import numpy as np

from convert.__main__ import Options, main
from convert.commands import identify
from tests import parity


def shapes_of(build, *arguments, **named):
  """{name: shape} of a network that is never filled."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  parity.import_torchvision()
  import timm
  import torchvision

  where = {"timm": timm.create_model}.get(build) or getattr(torchvision.models, build)
  with torch.device("meta"):
    return {k: tuple(v.shape) for k, v in where(*arguments, **named).state_dict().items()}


def test_a_published_network():
  found = identify.identify(shapes_of("resnet50"))
  assert not found[0].faults and (found[0].form.variant, found[0].classes) == ("resnet50", 1000)
  assert found[0].form.dialect in ("torchvision", "timm") and found[0].prefix == ""


def test_norms_that_an_exporter_folded():
  names = {}
  for k, v in shapes_of("resnet18", num_classes=7).items():
    if len(v) == 4:
      names |= {k: v, k.replace("weight", "bias"): v[:1]}
    elif k.startswith("fc"):
      names[k] = v
  [best, *_] = identify.identify(names)
  assert not best.faults and not best.own_head and best.form.variant == "resnet18"
  assert "7 classes, 20 norms folded" in str(best)


def test_what_never_had_norms_has_none_folded():
  found = [f for f in identify.identify(shapes_of("vgg11")) if not f.faults]
  assert [(f.form.variant, f.folded) for f in found] == [("vgg11", 0)]


def test_other_classes_behind_a_prefix():
  names = {f"module.{k}": v for k, v in shapes_of("resnet101", num_classes=7).items()}
  [best, *_] = identify.identify(names)
  assert not best.faults and (best.form.variant, best.classes) == ("resnet101", 7)
  assert best.prefix == "module." and "resnet101" in str(best) and "7 classes" in str(best)


def test_a_body_with_a_head_of_its_own():
  names = {}
  for k, v in shapes_of("densenet121", num_classes=14).items():
    names[f"head.1.{k.split('.')[1]}" if k.startswith("classifier") else f"backbone.{k}"] = v
  [best, *_] = identify.identify(names)
  assert not best.faults and best.form.variant == "densenet121" and best.classes is None
  assert [row.split()[0] for row in best.own_head] == ["head.1.weight", "head.1.bias"]


@pytest.mark.parametrize("build, name", [("efficientnet_b0", ()), ("timm", ("resnet26d",))])
def test_what_the_zoo_has_not_is_near_to_something_at_best(build, name):
  found = identify.identify(shapes_of(build, *name))
  assert all(f.faults for f in found)


def test_the_answer_as_people_see_it(tmp_path, capsys):
  names = shapes_of("resnet18", num_classes=3)
  path = tmp_path / "strange.safetensors"
  safetensors.numpy.save_file({k: np.zeros(v, np.float32) for k, v in names.items()}, path)
  status = main(Options(identify=str(path)), [])
  out = capsys.readouterr().out
  assert "resnet18 in the names of" in out and "3 classes" in out
  assert (status == 0) == ("  is\n" in out)
  safetensors.numpy.save_file({"a.weight": np.zeros((3, 3), np.float32)}, path)
  assert main(Options(identify=str(path)), []) == 1
  assert "nothing" in capsys.readouterr().out
