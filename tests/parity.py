"""Runs a model beside its original implementation, with random weights and statistics.

A `Case` names a variant of ours, the constructor of the original, and which of its modules our end
points equal. The original is randomised (weights, biases, batch-norm statistics and affine) in one
data-dependent pass that keeps activations of order one, its state dict is converted by the rules
that the published files use, and both see the same images.
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
import importlib.util
import math
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import pytest

from convert import engine, rules
from convert.commands import originals
import zoo
from zoo import catalog, traces

# Even and odd: stride-2 padding slips show on one of them only. Small, for time.
SIZES = ((96, 96), (97, 131))

# LLVM's optimisation takes most of a case's time and wins nothing on two images.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # which later compilers do not know
  QUICK_COMPILATION["xla_cpu_use_fusion_emitters"] = False


@dataclasses.dataclass(frozen=True)
class Case:
  variant: str
  reference: str  # "package.module:constructor", called with `args`
  taps: Mapping[str, str]  # our end point -> the original's module whose output it equals
  dialect: str = "torchvision"
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  positional: tuple = ()
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of our module
  sizes: tuple[tuple[int, int], ...] = SIZES
  edit: Callable[[dict], dict] | None = None  # of the state dict, towards the published layout
  tolerance: float = 1e-4  # relative; another value needs its reason beside it
  instead: str = ""  # what is run where no original can be installed as it stands

  def __str__(self):
    return f"{self.variant}-{re.split('[.:]', self.reference)[0]}"


def import_torchvision():
  """torchvision; where it is not installed the test is skipped."""
  for name in ("torch", "torchvision"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed: pip install flaxzoo[references]")
  return originals.import_torchvision()


def build(case: Case):
  """The original module, in eval mode."""
  import torch

  library, _, constructor = case.reference.partition(":")
  import_torchvision()  # timm, pytorchcv and pretrainedmodels import it too
  torch.manual_seed(0)
  torch.set_num_threads(1)  # its share is small, and tests may run side by side
  made = importlib.import_module(library)
  for part in constructor.split("."):
    made = getattr(made, part)
  return any_size(made(*case.positional, **case.args)).eval()


def any_size(model):
  """The same network, with the mean over the whole map where it ends in a pool of one fixed window.

  At the size that the window was written for the two are one function.
  """
  from torch import nn

  for path, pool in [*model.named_modules()]:
    if isinstance(pool, nn.AvgPool2d) and nn.modules.utils._pair(pool.kernel_size)[0] >= 7:
      parent, _, name = path.rpartition(".")
      setattr(model.get_submodule(parent), name, nn.AdaptiveAvgPool2d(1))
  return model


def randomize(model, image, seed: int = 0) -> None:
  """Gives every parameter and statistic of a torch module a random value, in one forward pass.

  Outputs of convolutions get a standard deviation of 0.2, small enough that another epsilon in the
  batch norm behind them is seen at once.
  """
  import torch
  from torch import nn

  generator = torch.Generator().manual_seed(seed)

  def normal(like):
    return torch.randn(like.shape, generator=generator)

  def uniform(like, low, high):
    return torch.rand(like.shape, generator=generator) * (high - low) + low

  def linear(module, output):
    if module.weight.std() < 1e-6:  # the constructor's are random, save where it asks for zeros
      module.weight.copy_(normal(module.weight))
    if module.bias is not None:
      module.bias.zero_()
    goal = 1.0 if isinstance(module, nn.Linear) else 0.2
    module.weight.mul_(goal / (output.std() + 1e-6))
    if module.bias is not None:
      module.bias.copy_(0.3 * goal * normal(module.bias))

  def norm(module, x):
    # Deep random networks draw all pixels together; dividing by the spread over pixels alone, a
    # channel at a time, would amplify rounding errors from block to block.
    mean, std = x.mean([0, *range(2, x.ndim)]), x.std() + 1e-3
    module.running_mean.copy_(0.3 * std * normal(mean))
    module.running_var.copy_(std**2 * uniform(mean, 0.5, 1.5))
    if module.affine:
      module.weight.copy_(uniform(mean, 0.5, 1.5))
      module.bias.copy_(0.3 * normal(mean))

  done = set()

  def hook(module, inputs, output):
    if module in done:
      return None
    done.add(module)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
      norm(module, inputs[0])
    else:
      linear(module, output)
    return module.forward(*inputs)

  kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
  hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
  with torch.no_grad():
    model(image)
    for h in hooks:
      h.remove()
    for module in model.modules():  # what the forward pass did not reach, such as auxiliary heads
      if isinstance(module, kinds) and module not in done:
        for value in module.parameters():
          value.copy_(0.05 * normal(value))


def variables_of(case: Case, state: Mapping[str, np.ndarray], model, size: int = 224):
  """Our variables, from the original's arrays."""
  arrays = case.edit(dict(state)) if case.edit else state
  family = catalog.FAMILY[case.variant].__name__.rpartition(".")[2]
  dialect = rules.of(family, case.dialect, case.variant)
  with traces.norms_behind() as norms:
    target = zoo.shapes(model, size=size)
  folded = engine.folded(arrays, target, dialect, norms)
  variables = engine.convert(arrays, target, dialect, folded)
  check_way_back(arrays, variables, dialect, folded)
  return variables


def check_way_back(
  arrays: Mapping[str, np.ndarray], variables, dialect: engine.Rules, folded=engine.NONE
) -> None:
  """The original's arrays come back bit by bit, all but those that the rules drop."""
  back = engine.back(variables, {name: a.shape for name, a in arrays.items()}, dialect, folded)
  have = traverse_util.flatten_dict(variables, sep="/")
  for name in arrays.keys() - back.keys():
    assert dialect.place(name, have)[0] == "", f"{name} does not come back"
  for name, array in back.items():  # as bits: quick on a hundred million, and NaN is NaN
    assert (array.shape, array.dtype) == (arrays[name].shape, arrays[name].dtype), name
    assert np.array_equal(_bits(array), _bits(arrays[name])), name


def _bits(array):
  return array.view(f"u{array.itemsize}")


def fresh(
  model, *, size: int | tuple[int, int], channels: int = 3, seed: int = 0, spread: float = 0.0,
  gain: float = 1.0,
) -> dict:
  """As `zoo.init` makes them, by NumPy: compiling random numbers takes longer than most tests.

  Biases, scales and statistics differ from zero and one by up to `spread`; kernels are `gain` times
  as large.
  """
  rng = np.random.default_rng(seed)

  def fill(path, spec):
    name = path[-1].key
    if name == "kernel":
      std = gain * (2 / math.prod(spec.shape[:-1])) ** 0.5
      return (std * rng.standard_normal(spec.shape, np.float32)).astype(np.float32)
    middle = np.full(spec.shape, name in ("scale", "var"), np.float32)
    return middle + np.float32(rng.uniform(-spread, spread, spec.shape)) if spread else middle

  return jax.tree_util.tree_map_with_path(fill, zoo.shapes(model, size=size, channels=channels))


def run(case: Case) -> dict[str, float]:
  """{end point and size: largest difference relative to the original's largest value}.

  Ours runs in a CPU's forms at even sizes, and at odd ones in the plain forms, which all other
  platforms run and which compile in a fraction of the time.
  """
  smallest = min(case.sizes)  # two pictures there, one elsewhere
  images = {
    size: np.random.default_rng(1).normal(size=(1 + (size == smallest), *size, 3)).astype("f")
    for size in case.sizes
  }
  is_keras = "keras" in case.reference.partition(":")[0]
  state, theirs = (run_keras if is_keras else run_torch)(case, images)
  model = zoo.create(case.variant, **case.fields)
  variables = variables_of(case, state, model, size=case.sizes[0][0])
  errors = {}
  for size, image in images.items():
    plain = model.numerics.plain or size[0] % 2 == 1
    form = model.clone(numerics=dataclasses.replace(model.numerics, plain=plain))
    apply = jax.jit(partial(form.apply, train=False), compiler_options=QUICK_COMPILATION)
    ours = jax.device_get(apply(variables, image))
    for end, want in theirs[size].items():
      got = ours[end]
      want = want.reshape(got.shape) if end == "pooled" else want
      if want.shape != got.shape:
        raise AssertionError(f"{end} at {size}: {got.shape}, the original's is {want.shape}")
      errors[f"{end} {size[0]}x{size[1]}"] = float(np.abs(got - want).max() / np.abs(want).max())
  return errors


def run_torch(case: Case, images):
  """The original's state dict, and {size: {end point: array}}."""
  import torch

  original = build(case)
  inputs = {
    size: torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    for size, image in images.items()
  }
  randomize(original, inputs[min(case.sizes)])
  seen, out = {}, {}
  for end, path in case.taps.items():
    # a copy, for what follows may work in place
    original.get_submodule(path).register_forward_hook(
      lambda module, inputs, output, end=end: seen.__setitem__(end, output.clone())
    )
  for size, image in inputs.items():
    with torch.no_grad():
      seen["logits"] = original(image)
    out[size] = {
      end: (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy() for end, y in seen.items()
    }
  return {name: value.numpy() for name, value in original.state_dict().items()}, out


def run_keras(case: Case, images):
  from tests import parity_keras

  state, out = None, {}
  for size, image in images.items():
    original = parity_keras.build(case, size)
    if state is None:
      state = parity_keras.random_state(original, image)
    out[size] = parity_keras.outputs(original, state, image, case.taps)
  return state, out
