"""The conversion engine: renaming, layouts, and an account of every array in one error."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest

from convert import engine, rules


def spec(*shape, dtype=np.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


TARGET = {
  "params": {
    "layer1_0": {"conv1": {"kernel": spec(3, 3, 2, 4)}, "bn1": {"scale": spec(4), "bias": spec(4)}},
    "fc": {"kernel": spec(4, 5), "bias": spec(5)},
  },
  "batch_stats": {"layer1_0": {"bn1": {"mean": spec(4), "var": spec(4)}}},
}
RNG = np.random.default_rng(0)


def source() -> dict[str, np.ndarray]:
  shapes = {
    "layer1.0.conv1.weight": (4, 2, 3, 3),
    "layer1.0.bn1.weight": (4,), "layer1.0.bn1.bias": (4,),
    "layer1.0.bn1.running_mean": (4,), "layer1.0.bn1.running_var": (4,),
    "fc.weight": (5, 4), "fc.bias": (5,),
  }  # fmt: skip
  arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return arrays | {"layer1.0.bn1.num_batches_tracked": np.array(3)}


def faults(arrays, target=TARGET, rule=rules.TORCH) -> list[str]:
  with pytest.raises(ValueError, match="the checkpoint does not fit the model") as error:
    engine.convert(arrays, target, rule)
  return [" ".join(line.split()) for line in str(error.value).splitlines()[1:]]


def test_torch_names_and_layouts():
  arrays = source()
  got = engine.convert(arrays, TARGET, rules.TORCH)
  assert jax.tree.structure(got) == jax.tree.structure(TARGET)
  block, fc = got["params"]["layer1_0"], got["params"]["fc"]
  kernel = arrays["layer1.0.conv1.weight"]
  for o, i, y, x in np.ndindex(kernel.shape):
    assert block["conv1"]["kernel"][y, x, i, o] == kernel[o, i, y, x]
  np.testing.assert_array_equal(fc["kernel"], arrays["fc.weight"].T)
  np.testing.assert_array_equal(block["bn1"]["scale"], arrays["layer1.0.bn1.weight"])
  stats = got["batch_stats"]["layer1_0"]["bn1"]
  np.testing.assert_array_equal(stats["var"], arrays["layer1.0.bn1.running_var"])


def test_every_kind_of_fault_is_in_one_error():
  arrays = source()
  arrays["extra.weight"] = np.zeros((1, 1), np.float32)  # unused
  arrays["layer1_0.bn1.bias"] = np.zeros(4, np.float32)  # twice, after renaming
  arrays["fc.weight"] = np.zeros((6, 4), np.float32)  # shape
  arrays["fc.bias"] = np.zeros(5, np.int64)  # type
  del arrays["layer1.0.bn1.running_mean"]  # missing
  assert faults(arrays) == [
    "missing batch_stats/layer1_0/bn1/mean (4,)",
    "shape params/fc/kernel (4, 5) <- fc.weight (6, 4)",
    "twice layer1_0.bn1.bias -> params/layer1_0/bn1/bias",
    "type params/fc/bias float32 <- fc.bias int64",
    "unused extra.weight -> extra/weight",
  ]


def test_no_array_is_reshaped_to_fit():
  arrays = source()
  arrays["fc.weight"] = arrays["fc.weight"].reshape(4, 5)  # the right count, the wrong axes
  arrays["fc.bias"] = arrays["fc.bias"].reshape(5, 1)
  assert [line.partition(" ")[0] for line in faults(arrays)] == ["shape", "shape"]


def test_an_operation_that_fails_is_a_fault_among_the_others():
  rule = engine.Rules(
    rules.TORCH_RENAMES, operations=((r"params/fc/kernel", engine.chw_to_hwc(3, 7, 7)),)
  )
  arrays = source()
  del arrays["fc.bias"]
  assert faults(arrays, rule=rule) == [
    "missing params/fc/bias (5,)",
    "shape params/fc/kernel (4, 5) <- fc.weight (5, 4)",
  ]


def test_a_name_that_a_rule_has_no_entry_for_is_a_fault_among_the_others():
  table = {0: "layer1_0"}
  rename = (r"^layer1\.(\d+)\.", lambda match: f"{table[int(match[1])]}.")
  rule = engine.Rules((rename, *rules.TORCH_RENAMES))
  engine.convert(source(), TARGET, rule)
  arrays = source() | {"layer1.7.conv1.weight": np.zeros((1, 1, 1, 1), np.float32)}
  assert faults(arrays, rule=rule) == ["unused layer1.7.conv1.weight -> layer1.7.conv1.weight"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_the_models_type(dtype):
  arrays = {name: a.astype(dtype) if a.ndim else a for name, a in source().items()}
  got = engine.convert(arrays, TARGET, rules.TORCH)
  assert {a.dtype for a in jax.tree.leaves(got)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(got["params"]["fc"]["bias"], arrays["fc.bias"].astype(np.float32))


def test_keras_names_and_layouts():
  target = {
    "params": {
      "dw": {"kernel": spec(3, 3, 1, 4)}, "bn": {"scale": spec(4), "bias": spec(4)},
      "fc": {"kernel": spec(4, 5)},
    },
    "batch_stats": {"bn": {"mean": spec(4), "var": spec(4)}},
  }  # fmt: skip
  arrays = {
    "dw/depthwise_kernel": RNG.normal(size=(3, 3, 2, 2)).astype(np.float32),
    "fc/kernel": RNG.normal(size=(4, 5)).astype(np.float32),
  } | {f"bn/{leaf}": RNG.normal(size=4).astype(np.float32)
       for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}  # fmt: skip
  rule = engine.Rules((), engine.KERAS_LEAVES, engine.keras_layout)
  got = engine.convert(arrays, target, rule)
  for y, x, channel, multiplier in np.ndindex(3, 3, 2, 2):
    want = arrays["dw/depthwise_kernel"][y, x, channel, multiplier]
    assert got["params"]["dw"]["kernel"][y, x, 0, 2 * channel + multiplier] == want
  np.testing.assert_array_equal(got["params"]["fc"]["kernel"], arrays["fc/kernel"])
  np.testing.assert_array_equal(got["batch_stats"]["bn"]["var"], arrays["bn/moving_variance"])


def test_operations_against_the_computation_that_they_stand_for():
  image = RNG.normal(size=(4, 5, 3))  # h w c
  dense = RNG.normal(size=(7, 3 * 4 * 5))  # torch flattens c h w
  want = dense @ image.transpose(2, 0, 1).reshape(-1)
  np.testing.assert_allclose(image.reshape(-1) @ engine.chw_to_hwc(3, 4, 5)(dense), want)
  conv = dense.reshape(7, 3, 4, 5)
  np.testing.assert_allclose(image.reshape(-1) @ engine.flatten_conv(conv), want)
  np.testing.assert_array_equal(engine.flatten_conv(dense), dense.T)
  many = RNG.normal(size=(70, 3, 4, 5))  # more outputs than are turned at once
  want = many.transpose(2, 3, 1, 0).reshape(-1, 70)
  np.testing.assert_array_equal(engine.flatten_conv(many), want)
  np.testing.assert_array_equal(engine.chw_to_hwc(3, 4, 5)(many.reshape(70, -1)), want)
  for other in (np.zeros((7, 3)), np.zeros(())):  # which NumPy would spread over the map, or not
    with pytest.raises(ValueError, match="cannot reshape"):
      engine.chw_to_hwc(3, 4, 5)(other)
  one = RNG.normal(size=(7, 3, 1, 1))
  np.testing.assert_array_equal(engine.squeeze(one), one[:, :, 0, 0].T)
  assert engine.squeeze(conv) is conv  # anything else is left to the check of shapes


def test_an_unknown_dialect_names_those_there_are():
  with pytest.raises(ValueError, match=re.escape("dialect 'mxnet'; there are ['")):
    rules.of("resnet", "mxnet")


def test_layers_that_keras_counts_are_told_by_their_order():
  """From 1 in some files, from 0 in a fresh session, from anywhere in others."""
  names = ["conv2d_9/kernel", "conv2d_10/kernel", "conv2d_10/bias", "dense/bias"]
  assert engine.recount(names, ("conv2d",)) == {
    "conv2d_9/kernel": "conv2d_0/kernel", "conv2d_10/kernel": "conv2d_1/kernel",
    "conv2d_10/bias": "conv2d_1/bias",
    "dense/bias": "dense/bias",
  }  # fmt: skip
  assert engine.recount(["conv2d/kernel", "conv2d_1/kernel"], ("conv2d",)) == {
    "conv2d/kernel": "conv2d_0/kernel", "conv2d_1/kernel": "conv2d_1/kernel",
  }  # fmt: skip


def test_a_variants_own_rules_come_first():
  own = rules.of("vgg", "torchvision", "vgg11")
  assert own is not rules.of("vgg", "torchvision", "vgg13")
  assert own.place("features.3.weight", {"params/conv2_1/kernel"}) == (
    "params/conv2_1/kernel", "weight",
  )  # fmt: skip
  assert rules.of("vgg", "keras", "vgg16") is rules.of("vgg", "keras", "vgg19")


def test_a_convolution_over_a_whole_map_is_a_dense_layer():
  kernel = RNG.normal(size=(5, 3, 2, 4)).astype(np.float32)  # [out in h w]
  image = RNG.normal(size=(2, 4, 3)).astype(np.float32)  # [h w in]
  want = np.einsum("oihw,hwi->o", kernel, image)
  np.testing.assert_allclose(image.reshape(-1) @ engine.flatten_conv(kernel), want, rtol=1e-5)
