"""Explanation maps against independent statements in torch, by hand, and against theory."""

import functools
from functools import partial
import importlib.util
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases, parity, runs
from tests import maps as stated
import zoo
from zoo import catalog, explain

pytestmark = pytest.mark.usefixtures("arguments_only")

SIZE = 64
CLASSES = np.array([3, 141, 592], np.int32)
# The cheapest half of the families; `python -m bench.explain` compares all.
QUICK = (
  "densenet", "dpn", "efficientnet", "inception_resnet", "inception_v4", "pyramidnet", "senet",
  "shufflenet", "squeezenet", "vgg",
)  # fmt: skip


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


twin = functools.cache(stated.twin)


def needs_the_original(family):
  case = cases.gradients()[family]
  for library in ("torch", re.split("[.:]", case.reference)[0]):
    if importlib.util.find_spec(library) is None:
      pytest.skip(f"the original needs {library}: pip install flaxzoo[references]")


@pytest.mark.parametrize("family", QUICK)
def test_maps_of_a_family_equal_torch(family):
  needs_the_original(family)
  errors = stated.compare(family, twin(family))
  assert errors.keys() == {"grad_cam", "grad_cam_pp"} and max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("family", ["vgg", "squeezenet", "efficientnet"])  # the last has ReLU6
def test_guided_back_propagation_equals_torch(family):
  needs_the_original(family)
  one = twin(family)
  run = lambda v, x: explain.guided(one.model, v, x, stated.CLASSES)
  got = jax.jit(run, compiler_options=parity.QUICK_COMPILATION)(one.variables, one.image)
  assert stated.difference(np.asarray(got), stated.guided(one)) < 1e-4


@pytest.mark.parametrize("family", catalog.families("classify"), ids=lambda f: f.__name__)
def test_every_family_has_maps(family):
  name = family.__name__.rpartition(".")[2]
  case = cases.gradients()[name]
  model = zoo.create(case.variant, **{**case.fields, "plain": True})
  side = stated.PIXELS.get(name, 64)
  image = jax.ShapeDtypeStruct((2, side, side, 3), np.float32)
  maps = lambda v, x: explain.grad_cam(model, v, x, stated.CLASSES)
  b, h, w = jax.eval_shape(maps, zoo.shapes(model, size=side), image).shape
  assert b == 2 and h == w and 2 <= h <= 28


class Toy(nn.Module):
  """A convolution, a mean, a dense layer; or the dense layer at every place."""

  numerics: zoo.Numerics = zoo.Numerics()
  places: bool = False

  @nn.compact
  def __call__(self, image, *, train):
    x = self.numerics.act(self.numerics.conv(4, 3, name="conv")(image))
    pooled = x if self.places else x.mean((1, 2))
    return {"stage1": x, "pooled": pooled, "logits": self.numerics.dense(5, name="fc")(pooled)}


@pytest.fixture(scope="module")
def toy():
  """(model, variables, images [2 12 10 3])."""
  image = np.random.default_rng(5).normal(size=(2, 12, 10, 3)).astype(np.float32)
  return Toy(), runs.untrained(Toy(), image.shape[1:3]), image


TARGET = np.array([1, 4], np.int32)


def logit(model, variables, image):
  ends = quick(partial(model.apply, train=False))(variables, image)
  return np.asarray(ends["logits"])[np.arange(2), TARGET]


def maps_of(methods, model, variables, image, target=TARGET, **settings):
  """Each method's map, in one compilation."""
  both = lambda v, x: [method(model, v, x, target, **settings) for method in methods]
  return jax.device_get(quick(both)(variables, image))


def test_pixels_are_a_target(toy):
  _, variables, image = toy
  model = Toy(places=True)
  mask = np.zeros((2, 12, 10))
  mask[0, :3], mask[1, 5, 5] = 1, 1
  score = explain.of_pixels(TARGET, mask)
  [got] = maps_of([explain.grad_cam], model, variables, image, score)
  y = np.asarray(model.apply(variables, image, train=False)["stage1"])
  kernel = np.asarray(variables["params"]["fc"]["kernel"])[:, TARGET].T  # [b c]
  weight = kernel * mask.mean((1, 2))[:, None]
  np.testing.assert_allclose(
    got, np.maximum(np.einsum("bhwc,bc->bhw", y, weight), 0), rtol=1e-4, atol=1e-7
  )
  with pytest.raises(ValueError, match="explained by explain.of_pixels"):
    explain.grad_cam(model, variables, image, TARGET)


def test_a_box_is_a_target(toy):
  model, variables, image = toy

  def decode(out):  # every place is a candidate of its own pixel, its channels are its scores
    y = out["stage1"]
    low = jnp.stack(jnp.meshgrid(jnp.arange(12.0), jnp.arange(10.0), indexing="ij")[::-1], -1)
    low = jnp.broadcast_to(low.reshape(-1, 2), (2, 120, 2))
    return jnp.concatenate([low, low + 1], -1), y.reshape(2, 120, 4)

  boxes = np.array([[3.2, 7.1, 4.1, 8.0], [0, 0, 1, 1.5]])
  classes = np.array([2, 0])
  score = explain.of_box(decode, boxes, classes)
  out = model.apply(variables, image, train=False)
  y = np.asarray(out["stage1"])
  np.testing.assert_allclose(score(out), [y[0, 7, 3, 2], y[1, 0, 0, 0]])
  [got] = maps_of([explain.grad_cam], model, variables, image, score)
  np.testing.assert_allclose(got, y[np.arange(2), :, :, classes] / 120, rtol=1e-5)

  def of_each(out):  # each class's boxes lie a pixel and a half further to the left
    found, scores = decode(out)
    shift = 1.5 * jnp.arange(4.0)[:, None] * jnp.array([-1, 0, -1, 0])
    return found[:, :, None] + shift, scores

  each = explain.of_box(of_each, boxes, classes)(out)
  np.testing.assert_allclose(each, [y[0, 7, 6, 2], y[1, 0, 0, 0]])
  assert each[0] != score(out)[0]


def test_gradients_of_pixels_are_each_images_own(toy):
  model, variables, image = toy
  methods = (explain.saliency, explain.guided, explain.guided_grad_cam, explain.integrated)
  together = maps_of(methods, model, variables, image)
  alone = maps_of(methods, model, variables, image[1:], TARGET[1:])
  for whole, one in zip(together, alone):
    assert whole.shape == image.shape and np.abs(one).max() > 0
    np.testing.assert_allclose(whole[1], one[0], rtol=1e-4, atol=1e-6)


def test_guided_grad_cam_is_the_product_at_the_images_size(toy):
  torch = pytest.importorskip("torch", reason="the statement is torch's interpolate")
  model, variables, image = toy
  pools = partial(zoo.Numerics.max_pool, zoo.Numerics())

  class Pooled(Toy):
    @nn.compact
    def __call__(self, image, *, train):
      x = pools(self.numerics.act(self.numerics.conv(4, 3, name="conv")(image)), 2, 2)
      logits = self.numerics.dense(5, name="fc")(x.mean((1, 2)))
      return {"stage1": x, "logits": logits}

  model = Pooled()
  methods = (explain.grad_cam, explain.guided, explain.guided_grad_cam)
  where, fine, both = maps_of(methods, model, variables, image)
  large = torch.nn.functional.interpolate(
    torch.from_numpy(where)[:, None], image.shape[1:3], mode="bilinear"
  )
  np.testing.assert_allclose(both, fine * large[:, 0, :, :, None].numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
  "name, size, words",
  [
    ("mobilenet_v3_small", 64, "MobileNetV3 has hard_silu"),
    ("yolov3_tiny", 64, "YOLO has leaky_relu"),
  ],
)
def test_guided_back_propagation_refuses_other_activations(name, size, words):
  model = zoo.create(name)
  image = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
  score = lambda out: out["stem"].sum((1, 2, 3))
  with pytest.raises(ValueError, match=words):
    run = lambda v, x: explain.guided(model, v, x, score)
    jax.eval_shape(run, zoo.shapes(model, size=size), image)


def test_integrated_gradients_add_up_to_the_scores_rise(toy):
  model, variables, image = toy
  rise = logit(model, variables, image) - logit(model, variables, np.full_like(image, 0.5))
  [parts] = maps_of([explain.integrated], model, variables, image, baseline=0.5, steps=200)
  np.testing.assert_allclose(np.sum(parts, (1, 2, 3)), rise, rtol=0.01, atol=1e-3)
  straight = Toy(zoo.Numerics(act=lambda x: x))
  [slope] = maps_of([explain.saliency], straight, variables, image)
  [few] = maps_of([explain.integrated], straight, variables, image, baseline=0.5, steps=2)
  np.testing.assert_allclose(few, slope * (image - 0.5), rtol=1e-4, atol=1e-7)


def test_occlusion_equals_covering_one_by_one(toy):
  model, variables, image = toy
  settings = {"window": 4, "stride": 3, "fill": 0.3}
  [got] = maps_of([explain.occlusion], model, variables, image, **settings)
  apply = quick(partial(model.apply, train=False))
  run = lambda x: np.asarray(apply(variables, x)["logits"])[np.arange(2), TARGET]
  whole, falls, counts = run(image), np.zeros((2, 12, 10)), np.zeros((12, 10))
  for top in (0, 3, 6, 8):
    for left in (0, 3, 6):
      covered = image.copy()
      covered[:, top : top + 4, left : left + 4] = 0.3
      fall = whole - run(covered)
      falls[:, top : top + 4, left : left + 4] += fall[:, None, None]
      counts[top : top + 4, left : left + 4] += 1
  np.testing.assert_allclose(got, falls / counts, rtol=1e-3, atol=1e-6)
  with pytest.raises(ValueError, match="0 < stride <= window"):
    explain.occlusion(model, variables, image, TARGET, window=4, stride=5)


def test_boxes_are_those_of_the_largest_component():
  maps = np.zeros((4, 10, 12), np.float32)
  maps[0, 1:3, 1:3], maps[0, 6:9, 5:11] = 1.0, 0.3  # the brighter is the smaller
  maps[1, 2:5, 2:5], maps[1, 5, 5] = 1.0, 0.9  # they hang together by a corner
  maps[2, 0:9, 0:9], maps[2, 9, 11] = 0.2, 1.0  # not above a fifth
  want = [[5, 6, 11, 9], [2, 2, 6, 6], [11, 9, 12, 10], [0, 0, 0, 0]]
  np.testing.assert_array_equal(explain.localize(maps, (10, 12)), want)
  assert explain.localize(maps, (40, 48))[0, 0] == pytest.approx(20, abs=2)
  np.testing.assert_array_equal(explain.localize(maps[:1], (10, 12), share=0.5), [[1, 1, 3, 3]])
