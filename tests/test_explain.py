"""Explanation maps against an independent statement in torch, and against theory."""

from functools import partial

import jax
import numpy as np
import pytest

from tests import parity, runs
import zoo
from zoo import catalog, explain

SIZE = 64
CLASSES = np.array([3, 141, 592], np.int32)


quick = partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
  model = zoo.create("resnet18", depths=(1, 1, 1, 1), num_classes=600)
  return model, runs.untrained(model, SIZE)


@pytest.fixture(scope="module")
def maps(small, images):
  model, variables = small
  both = lambda v, x, c: (explain.grad_cam(model, v, x, c), explain.cam(model, v, x, c))
  return jax.tree.map(np.asarray, quick(both)(variables, images, CLASSES))


def torch_grad_cam(network, module, image, classes):
  """Selvaraju et al. 2017, equations 1 and 2, by hooks."""
  import torch

  kept = []
  hook = network.get_submodule(module).register_forward_hook(lambda m, i, y: kept.append(y))
  logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2)))
  hook.remove()
  score = logits[torch.arange(len(classes)), torch.from_numpy(classes).long()].sum()
  [grad] = torch.autograd.grad(score, kept)
  return (kept[0] * grad.mean((2, 3), keepdim=True)).sum(1).relu().detach().numpy()


def test_grad_cam_equals_torch(images):
  torch = pytest.importorskip("torch", reason="the original is a torch module")
  case = parity.Case("resnet18", "torchvision.models:resnet18", {})
  network = parity.build(case)
  parity.randomize(network, torch.from_numpy(images.transpose(0, 3, 1, 2)))
  model = zoo.create("resnet18")
  arrays = {name: value.numpy() for name, value in network.state_dict().items()}
  variables = parity.variables_of(case, arrays, model, size=SIZE)
  modules = {None: "layer4", "stage3": "layer3", "layer2_0/conv2": "layer2.0.conv2"}
  ours = lambda v, x, c: [explain.grad_cam(model, v, x, c, layer) for layer in modules]
  for got, (layer, module) in zip(quick(ours)(variables, images, CLASSES), modules.items()):
    want = torch_grad_cam(network, module, images, CLASSES)
    assert want.max() > 0 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.max(), err_msg=str(layer))


def test_cam_is_grad_cam_up_to_the_number_of_places(maps):
  grad_cam, cam = maps
  places = cam.shape[1] * cam.shape[2]
  assert grad_cam.max() > 0 > cam.min()
  np.testing.assert_allclose(
    grad_cam, np.maximum(cam, 0) / places, rtol=1e-4, atol=1e-5 * grad_cam.max()
  )


def test_mean_of_cam_is_the_logit(small, maps, images):
  model, variables = small
  bias = 1.0 + np.arange(600, dtype=np.float32)
  variables["params"]["fc"]["bias"] = bias
  logits = quick(lambda v, x: model.apply(v, x, train=False)["logits"])(variables, images)
  want = np.take_along_axis(np.asarray(logits), CLASSES[:, None], 1)[:, 0] - bias[CLASSES]
  np.testing.assert_allclose(maps[1].mean((1, 2)), want, rtol=1e-3, atol=1e-3)


def test_a_batch_equals_image_by_image(small, maps, images):
  model, variables = small
  one = quick(lambda v, x, c: explain.grad_cam(model, v, x, c))
  single = [one(variables, images[i : i + 1], CLASSES[i : i + 1])[0] for i in range(3)]
  np.testing.assert_allclose(maps[0], np.stack(single), rtol=1e-4, atol=1e-5 * maps[0].max())


def test_an_end_point_equals_the_submodule_that_makes_it(small, images):
  model, variables = small

  def shifted(variables, image, layer):
    run, y = explain.perturbed(model, variables, image, layer)
    return run(y + 0.5)

  a, b = (quick(shifted, static_argnums=2)(variables, images, at) for at in ("stage4", "layer4_0"))
  np.testing.assert_array_equal(a["logits"], b["logits"])
  plain = quick(lambda v, x: model.apply(v, x, train=False))(variables, images)
  assert a.keys() == plain.keys()
  for end, change in {"stage3": 0, "stage4": 0.5, "pooled": 0.5}.items():
    np.testing.assert_allclose(a[end], plain[end] + change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "layer, fields, words",
  [
    ("layer4_9", {}, ["no end point", "layer4_0", "stage4", "conv1"]),
    ("pooled", {}, ["'pooled'", "no places"]),
    ("fc", {}, ["'fc'", "no places"]),
    (None, {"num_classes": None}, ["no logits", "num_classes"]),
  ],
)
def test_a_wrong_layer_gives_a_sentence(layer, fields, words, small, images):
  model, variables = small
  model = model.clone(**fields)
  with pytest.raises(ValueError) as error:
    jax.eval_shape(lambda v, x: explain.grad_cam(model, v, x, CLASSES, layer), variables, images)
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("layer", ["stage2", "layer4_0/bn2"])  # fewer channels; a relu behind it
def test_cam_refuses_another_head(layer, small, images):
  model, variables = small
  with pytest.raises(ValueError, match="CAM needs a head that is one dense layer"):
    jax.eval_shape(lambda v, x: explain.cam(model, v, x, CLASSES, layer), variables, images)


@pytest.mark.parametrize("family", catalog.families("classify"), ids=lambda f: f.__name__)
def test_every_family_has_maps(family):
  model = zoo.create(next(iter(family.VARIANTS)))
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
  maps = lambda v, x: explain.grad_cam(model, v, x, CLASSES[:2])
  b, h, w = jax.eval_shape(maps, zoo.shapes(model), image).shape
  assert b == 2 and h == w and 4 <= h <= 28
