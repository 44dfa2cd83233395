"""Heads on any classifier: bags and boxes, what they cost to load, and what they ignore."""

from functools import cache, partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity, runs
import zoo
from zoo import heads, store

SIZE = 32
NARROW = {"depths": (1, 1, 1, 1), "num_classes": 3}
RNG = np.random.default_rng(0)
BAGS = RNG.normal(size=(2, 4, SIZE, SIZE, 3)).astype(np.float32)
REAL = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)


@cache
def compiled(model):
  return jax.jit(partial(model.apply, train=False), compiler_options=parity.QUICK_COMPILATION)


def run(model, variables, *inputs):
  return jax.device_get(compiled(model)(variables, *inputs))


@pytest.fixture(scope="module")
def made():
  """{head: (model, variables)}."""
  models = {name: zoo.create("resnet18", head=name, **NARROW) for name in heads.HEADS}
  return {name: (model, runs.untrained(model, SIZE)) for name, model in models.items()}


@pytest.mark.parametrize("name", [h for h in heads.HEADS if h.startswith("bag_")])
def test_pooling_is_what_it_says_and_ignores_what_is_not_real(made, name):
  model, variables = made[name]
  ends = run(model, variables, BAGS, REAL)
  scores, attention = ends["instance_logits"], ends["attention"]
  np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-5)
  assert (attention[~REAL] == 0).all()
  if name == "bag_max":
    want = [scores[0, :3].max(0), scores[1, 0]]
  elif name == "bag_mean":
    want = [scores[0, :3].mean(0), scores[1, 0]]
  else:
    p, x = variables["params"], run_backbone(variables, BAGS[0])
    y = np.tanh(x @ p["head_attend"]["kernel"] + p["head_attend"]["bias"])
    if name == "bag_gated":
      y = y / (1 + np.exp(-(x @ p["head_gate"]["kernel"] + p["head_gate"]["bias"])))
    e = np.exp((y @ p["head_weight"]["kernel"])[:3, 0])
    np.testing.assert_allclose(attention[0, :3], e / e.sum(), rtol=1e-4)
    mean = (e / e.sum()) @ x[:3]  # the mean embedding's score is the mean of scores
    want = [mean @ p["head_logits"]["kernel"] + p["head_logits"]["bias"], scores[1, 0]]
  np.testing.assert_allclose(ends["logits"], want, rtol=1e-4, atol=1e-4)
  other = np.where(REAL[..., None, None, None], BAGS, 9 * BAGS[::-1])
  np.testing.assert_allclose(
    run(model, variables, other, REAL)["logits"], ends["logits"], rtol=1e-4, atol=1e-5
  )
  order = [2, 0, 1, 3]
  np.testing.assert_allclose(
    run(model, variables, BAGS[:, order], REAL[:, order])["logits"], ends["logits"],
    rtol=1e-4, atol=1e-5,
  )  # fmt: skip


def run_backbone(variables, images):
  backbone = zoo.create("resnet18", **NARROW | {"num_classes": None})
  return run(backbone, variables, images)["pooled"]


def test_an_image_is_a_bag_of_one(made):
  model, variables = made["bag_attention"]
  ends = run(model, variables, BAGS[:, 0])
  want = run(model, variables, BAGS, np.eye(4, dtype=bool)[[0, 0]])["logits"]
  np.testing.assert_allclose(ends["logits"], want, rtol=1e-4, atol=1e-5)


def test_boxes_are_boxes_at_every_size(made):
  model, variables = made["box"]
  for height, width in ((32, 32), (48, 80)):
    image = RNG.normal(size=(3, height, width, 3)).astype(np.float32)
    ends = run(model, variables, image)
    x0, y0, x1, y1 = ends["box"].T
    assert (x1 > x0).all() and (y1 > y0).all() and ends["logits"].shape == (3, 3)
    assert ((x0 + x1) / 2 < width).all() and ((y0 + y1) / 2 < height).all()
    assert ((x0 + x1) / 2 > 0).all() and ((y0 + y1) / 2 > 0).all()


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_run_with_a_head_comes_back(made, name, tmp_path):
  model, variables = made[name]
  fields, outputs = {"head": name, **NARROW}, {"task": "bags", "thresholds": [0.5, 0.25]}
  record = zoo.Record(
    "resnet18", fields=fields, preprocess=zoo.Preprocess().at(SIZE), outputs=outputs
  )
  store.save(tmp_path / "model.safetensors", variables, record)
  assert zoo.record(tmp_path).outputs == outputs
  got, arrays = zoo.load(tmp_path)
  assert type(got) is type(model) and got.num_classes == 3
  assert jax.tree.structure(arrays) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, arrays, variables)


def test_a_classifier_lends_its_weights_to_a_head_and_takes_them_back(made, tmp_path):
  _, variables = made["bag_gated"]
  plain = runs.untrained(zoo.create("resnet18", **NARROW), SIZE)
  record = zoo.Record("resnet18", fields=NARROW, preprocess=zoo.Preprocess().at(SIZE))
  store.save(tmp_path / "model.safetensors", plain, record)
  model, got = zoo.load(tmp_path, head="bag_gated", num_classes=5)
  assert got["params"].keys() == variables["params"].keys()
  np.testing.assert_array_equal(
    got["params"]["conv1"]["kernel"], plain["params"]["conv1"]["kernel"]
  )
  assert got["params"]["head_logits"]["kernel"].shape == (512, 5)


@pytest.mark.parametrize("variant", ["vgg11_bn", "googlenet", "squeezenet1_1"])
@pytest.mark.parametrize("name", ["bag_gated", "box"])
def test_each_module_is_in_one_stage(variant, name):
  """Those of the backbone and of the head; nothing is computed."""
  modules = zoo.shapes(zoo.create(variant, head=name, num_classes=3), size=64)["params"]
  stages = heads.stages(zoo.stages(variant))
  assert all(sum(bool(re.fullmatch(stage, m)) for stage in stages) == 1 for m in modules)
  assert any(m.startswith("head_") for m in modules)


def test_unknown_head():
  with pytest.raises(ValueError, match="unknown head 'bags'; there are bag_max"):
    zoo.create("resnet18", head="bags")


def test_numerics_reach_the_backbone():
  model = zoo.create("resnet18", head="box", dtype=jnp.bfloat16, **NARROW)
  variables = zoo.shapes(model, size=SIZE)
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  ends = jax.eval_shape(partial(model.apply, train=False), variables, image)
  assert ends["stage4"].dtype == jnp.bfloat16 and ends["box"].dtype == jnp.float32
