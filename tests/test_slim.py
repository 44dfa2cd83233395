"""TF-slim's networks: their own code beside ours, their names there and back, their checkpoints."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from convert import engine, rules
from tests import parity, slim
import zoo
from zoo import catalog, traces

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
SIZES = ((96, 96), (97, 131))
V2 = catalog.WEIGHTS["resnet50v2.slim"].fields
FORMS = {  # theirs -> our variant, the checkpoint or fields that it needs, their variables' numbers
  "resnet_v1_50": ("resnet50", catalog.WEIGHTS["resnet50.slim"].fields, 25_610_152),
  "resnet_v2_50": ("resnet50v2", V2, 25_615_849),
  "inception_v2": ("bn_inception", catalog.WEIGHTS["bn_inception.slim"].fields, 11_199_137),
  "inception_v1": ("googlenet", catalog.WEIGHTS["googlenet.slim"].fields, 6_633_209),
}


def classes(fields) -> int:
  return fields.get("num_classes", 1000)


def converted(name: str, variables, variant: str, fields, size) -> tuple:
  """(our model, its variables); the way back is checked."""
  model = zoo.create(variant, **fields)
  family = catalog.FAMILY[variant].__name__.rpartition(".")[2]
  rule = rules.of(family, "slim", variant)
  with traces.norms_behind() as norms:
    target = zoo.shapes(model, size=size)
  folded = engine.folded(variables, target, rule, norms)
  assert not folded
  got = engine.convert(variables, target, rule)
  parity.check_way_back(variables, got, rule)
  return model, got


def compared(name: str, variant: str, fields, sizes, thin=1, first=(), rest=()) -> dict:
  """{size: largest difference of the logits, relative}, and how many numbers theirs has.

  `first` and `rest` are their arguments at the first size and at the others.
  """
  torch.set_num_threads(1)
  runtime, errors, found = slim.Runtime(thin=thin), {}, None
  run = slim.network(name, runtime, classes(fields))
  for i, size in enumerate(sizes):
    image = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    want = run(torch.from_numpy(image), **dict(rest if i else first)).numpy()
    if found is None:
      found = converted(name, runtime.variables, variant, fields, size)
    model, variables = found
    form = model.clone(numerics=dataclasses.replace(model.numerics, plain=bool(i)))
    apply = jax.jit(partial(form.apply, train=False), compiler_options=parity.QUICK_COMPILATION)
    got = np.asarray(apply(variables, image)["logits"])
    errors[size] = float(np.abs(got - want).max() / np.abs(want).max())
  return errors | {"numbers": sum(a.size for a in runtime.variables.values())}


@pytest.mark.parametrize("name", FORMS)
def test_equals_their_code(name):
  variant, fields, numbers = FORMS[name]
  found = compared(name, variant, fields, SIZES)
  assert found.pop("numbers") == numbers  # as measured in TensorFlow
  assert max(found.values()) < 1e-4, found


def test_inception_v3_equals_their_code():
  """With the second classifier at the size that its kernel is for, without it at another."""
  fields = catalog.WEIGHTS["inception_v3.slim"].fields
  rest = {"create_aux_logits": False}
  found = compared("inception_v3", "inception_v3", fields, ((299, 299), (96, 130)), rest=rest)
  assert found.pop("numbers") == 27_182_194  # as measured in TensorFlow
  assert max(found.values()) < 1e-4, found


AUX = {"create_aux_logits": False}
NARROW = {"depth_multiplier": 0.35, "finegrain_classification_mode": True}
RESEARCH = {  # our checkpoint -> theirs, its further arguments, sizes, the largest difference
  "mobilenetv1_100.slim": ("mobilenet_v1", {"global_pool": True}, SIZES, 1e-4),
  "mobilenetv2_035.slim": ("mobilenet", NARROW, SIZES, 1e-4),
  "mobilenetv2_100.slim": ("mobilenet", {}, SIZES[1:], 1e-4),
  # With these statistics its logits move by 6e-5 where the image changes by 2e-7.
  "inception_v4.slim": ("inception_v4", AUX, ((107, 107), (124, 107)), 2e-4),
  "inception_resnet_v2.slim": ("inception_resnet_v2", AUX, ((107, 107), (124, 107)), 1e-4),
  "nasnetamobile.slim": ("build_nasnet_mobile", {}, SIZES, 1e-4),
}


@pytest.mark.parametrize("checkpoint", RESEARCH)
def test_equals_the_code_of_later_networks(checkpoint):
  name, more, sizes, tolerance = RESEARCH[checkpoint]
  row = catalog.WEIGHTS[checkpoint]
  found = compared(name, row.variant, row.fields, sizes, first=more, rest=more)
  del found["numbers"]
  assert max(found.values()) < tolerance, found


NASNETS = (("build_nasnet_large", "nasnetalarge", 18), ("build_pnasnet_large", "pnasnet5large", 12))


@pytest.mark.parametrize(("name", "variant", "cells"), NASNETS)
def test_equals_the_code_of_nasnets_as_deep_and_narrower(name, variant, cells):
  config = slim.HParams(
    stem_multiplier=0.25, dense_dropout_keep_prob=0.5, num_cells=cells, filter_scaling_rate=2.0,
    num_conv_filters=16, drop_path_keep_prob=1.0, use_aux_head=1, num_reduction_layers=2,
    data_format="NHWC", skip_reduction_layer_input=1, total_training_steps=1,
    use_bounded_activation=False,
  )  # fmt: skip
  fields = {"num_classes": 1001, "width": 16, "stem": 8}
  more = {"config": config}
  found = compared(name, variant, fields, SIZES[1:], first=more, rest=more)
  del found["numbers"]
  assert max(found.values()) < 1e-4, found


THIN = {  # theirs -> our variant and its fields, an eighth as wide
  "vgg_16": ("vgg16", {"widths": (8, 16, 32, 64, 64), "hidden": 512}),
  "alexnet_v2": ("alexnet", {"pad": 0, "grid": 5, "widths": (8, 24, 48, 48, 32), "hidden": 512}),
}


@pytest.mark.parametrize("name", THIN)
def test_dense_layers_that_are_convolutions(name):
  """At the one size that these fit."""
  variant, fields = THIN[name]
  found = compared(name, variant, fields, ((224, 224),), thin=8)
  del found["numbers"]
  assert max(found.values()) < 1e-4, found


def test_what_training_leaves_beside_the_weights_is_dropped():
  rule = rules.of("resnet", "slim")
  for name in ("global_step", "resnet_v1_50/conv1/weights/Momentum",
               "resnet_v1_50/conv1/BatchNorm/gamma/RMSProp_1"):  # fmt: skip
    assert rule.place(name, ())[0] == ""
