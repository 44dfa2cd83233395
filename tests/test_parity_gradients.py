"""Gradients and one update of the batch norms against the original's, one variant a family.

Deep ones have every kind of block, but few of each. Both sides compute in float64: behind batch
statistics of few pixels, float32's rounding alone would hide wrong terms.
"""

from functools import partial
import importlib.util
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import engine, rules
from tests import cases, parity
import zoo
from zoo import catalog

pytest.importorskip("torch", reason="the originals are torch modules: pip install .[references]")

TOLERANCE = 1e-6  # of an array's largest value
# Of a side. The last maps are 2x2 or more: with fewer samples, norms amplify rounding errors.
PIXELS = {"alexnet": 67, "vgg": 32, **dict.fromkeys(
  ("inception_resnet", "inception_v3", "inception_v4", "polynet"), 107)}  # fmt: skip
# Of so many pixels more time goes into running in float64 than into compiling better.
LARGE = {"xla_backend_optimization_level": 1}
NOTHING = 1e-12  # of the largest gradient of all: what cancels, such as a bias before a norm


def heads(output) -> dict:
  """The original's output under our names."""
  import torch

  if hasattr(output, "aux_logits1"):  # GoogLeNet
    aux = torch.stack((output.aux_logits1, output.aux_logits2), dim=1)
    return {"logits": output.logits, "aux_logits": aux}
  return output._asdict() if hasattr(output, "_asdict") else {"logits": output}


def original(model, image):
  """Its state dict; cotangents of its heads; gradients and new statistics under its names."""
  import torch

  model = model.double()
  x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  parity.randomize(model, x)
  state = {name: value.clone() for name, value in model.state_dict().items()}
  model.train()
  pixels = {}  # over which each norm takes its mean
  for path, module in model.named_modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
      module.momentum = 0.1
      module.register_forward_pre_hook(
        lambda _, inputs, path=path: pixels.update({path: inputs[0][:, 0].numel()})
      )
    elif isinstance(module, torch.nn.modules.dropout._DropoutNd):
      module.eval()
  ends = heads(model(x))
  generator = torch.Generator().manual_seed(2)
  cotangents = {end: torch.randn(y.shape, generator=generator).double() for end, y in ends.items()}
  sum((y * cotangents[end]).sum() for end, y in ends.items()).backward()
  after = {name: p.grad for name, p in model.named_parameters()}
  for path, n in pixels.items():
    old, new = state[f"{path}.running_var"], model.get_submodule(path).running_var
    after[f"{path}.running_mean"] = model.get_submodule(path).running_mean
    # torch's new variance is the unbiased one, Flax's the mean of squares: (n-1)/n of it.
    after[f"{path}.running_var"] = 0.9 * old + (new - 0.9 * old) * (n - 1) / n
  return [{k: v.numpy() for k, v in tree.items()} for tree in (state, cotangents, after)]


def ours(model, rules, state, cotangents, after, image):
  """Pairs {path: (ours, the original's)} of gradients and of statistics."""
  shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
  target = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, np.float64), shapes)
  start, want = (engine.convert(arrays, target, rules) for arrays in (state, after))

  def loss(params):
    out, moved = model.apply(
      start | {"params": params}, image, train=True, mutable=["batch_stats"]
    )  # fmt: skip
    ends = out if isinstance(out, dict) else {"logits": out}
    return sum((ends[end] * c).sum() for end, c in cotangents.items()), moved

  large = image.ndim == 4 and image.shape[1] > 100
  options = LARGE if large else parity.QUICK_COMPILATION
  run = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)
  grads, moved = jax.device_get(run(start["params"]))
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/")
  pairs = lambda a, b: {path: (value, flat(b)[path]) for path, value in flat(a).items()}
  return (
    pairs(grads, want["params"]),
    pairs(moved.get("batch_stats", {}), want.get("batch_stats", {})),
  )


def difference(got, want, floor=0.0):
  return np.abs(got - want).max() / max(np.abs(want).max(), floor)


def compare(theirs, model, rules, image, edit=None):
  state, cotangents, after = original(theirs, image)
  if edit:
    state, after = edit(state), edit(after)
  with jax.enable_x64(True):
    grads, stats = ours(model, rules, state, cotangents, after, image)
  floor = NOTHING / TOLERANCE * max(np.abs(want).max() for _, want in grads.values())
  errors = {path: difference(*pair, floor) for path, pair in grads.items()}
  errors |= {f"new {path}": difference(*pair) for path, pair in stats.items()}
  wrong = {path: f"{e:.1e}" for path, e in errors.items() if not e < TOLERANCE}
  assert not wrong
  live = [path for path, (_, want) in grads.items() if np.abs(want).max() > floor]
  assert len(live) > len(grads) / 2


@pytest.mark.parametrize("family", cases.gradients())
def test_gradients_and_statistics_equal_the_originals(family):
  case = cases.gradients()[family]
  if importlib.util.find_spec(library := re.split("[.:]", case.reference)[0]) is None:
    pytest.skip(f"the original needs {library}: pip install flaxzoo[references]")
  image = np.random.default_rng(1).normal(size=(2, *(PIXELS.get(family, 64),) * 2, 3))
  model = zoo.create(case.variant, **case.fields, dtype=jnp.float64, momentum=0.9)
  compare(
    parity.build(case), model, rules.of(family, case.dialect, case.variant), image, case.edit
  )  # fmt: skip


def test_inception_v3s_second_head():
  """Alone, for the network would have to see 299 pixels before its pool has its own size."""
  parity.import_torchvision()
  from torchvision.models.inception import InceptionAux
  from zoo.classify.inception_v3 import Auxiliary

  maps = np.random.default_rng(1).normal(size=(4, 17, 17, 768))
  ours = Auxiliary(10, zoo.Numerics(eps=1e-3, dtype=jnp.float64))
  compare(InceptionAux(768, 10), ours, rules.TORCH, maps)


def test_every_family_has_a_case():
  assert cases.gradients().keys() == {
    f.__name__.rpartition(".")[2] for f in catalog.FAMILIES if ".classify." in f.__name__
  }
