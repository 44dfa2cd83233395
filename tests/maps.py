"""Explanation maps stated in torch, on the originals with the weights that ours get."""

from collections.abc import Callable
import dataclasses

import jax
import numpy as np

from tests import cases, parity
import zoo
from zoo import explain

CLASSES = np.array([3, 7], np.int32)
# Sides of the images. The last maps have several places; with 64 pixels one value of EfficientNet's
# stands 1e-7 from the kink of a ReLU6.
PIXELS = {"alexnet": 99, "efficientnet": 66, **dict.fromkeys(
  ("inception_resnet", "inception_v3", "inception_v4", "polynet"), 107)}  # fmt: skip
# Where the last map is no module's output or input, a layer before it.
LAYERS = {"densenet": "stage3"}


@dataclasses.dataclass(frozen=True)
class Twin:
  """One network twice: ours, and the original in torch."""

  model: object
  variables: dict
  original: object
  image: np.ndarray  # [2 h w 3]

  @property
  def tensor(self):
    import torch

    return torch.from_numpy(self.image.transpose(0, 3, 1, 2).copy())


def twin(family: str) -> Twin:
  """The small network of the family that gradients are compared on."""
  case = cases.gradients()[family]
  side = PIXELS.get(family, 64)
  image = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
  original = parity.build(case)
  one = Twin(zoo.create(case.variant, **{**case.fields, "plain": True}), {}, original, image)
  parity.randomize(original, one.tensor)
  state = {name: value.numpy() for name, value in original.state_dict().items()}
  return dataclasses.replace(one, variables=parity.variables_of(case, state, one.model, size=side))


def ours(family: str, one: Twin, methods) -> tuple[np.ndarray, list[np.ndarray]]:
  """(output of the layer, maps of it by `methods`)."""
  layer = LAYERS.get(family)

  def run(variables, image):
    maps = [method(one.model, variables, image, CLASSES, layer) for method in methods]
    return explain.perturbed(one.model, variables, image, layer)[1], maps

  return jax.device_get(
    jax.jit(run, compiler_options=parity.QUICK_COMPILATION)(one.variables, one.image)
  )


def theirs(one: Twin, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The original's tensor that equals `layer`, and each score's gradient by it: [b h w c] twice.

  Raises:
    LookupError: no module puts out or takes in such a tensor.
  """
  import torch

  want = torch.from_numpy(np.ascontiguousarray(layer.transpose(0, 3, 1, 2)))
  close = 1e-3 * float(want.abs().max())
  found = []

  def keep(y):
    if isinstance(y, torch.Tensor) and y.shape == want.shape and y.requires_grad:
      if float((y.detach() - want).abs().max()) < close:
        found.append(y)
        return y.clone()  # what follows may work in place
    return None

  hooks = []
  for module in one.original.modules():
    before = lambda module, inputs: (
      (kept, *inputs[1:]) if inputs and (kept := keep(inputs[0])) is not None else None
    )
    hooks.append(module.register_forward_pre_hook(before))
    hooks.append(module.register_forward_hook(lambda module, inputs, y: keep(y)))
  logits = one.original(one.tensor)
  for hook in hooks:
    hook.remove()
  if not found:
    raise LookupError(f"no module of the original has the layer {list(layer.shape)}")
  score = logits[torch.arange(2), torch.from_numpy(CLASSES).long()].sum()
  [grad] = torch.autograd.grad(score, found[0])
  return tuple(a.detach().permute(0, 2, 3, 1).double().numpy() for a in (found[0], grad))


def grad_cam(y, grad):
  """Selvaraju et al. 2017, equations 1 and 2."""
  return np.maximum((y * grad.mean((1, 2), keepdims=True)).sum(-1), 0)


def grad_cam_pp(y, grad):
  """Chattopadhyay et al. 2018, equations 10 to 19, but for the factor exp(score) of a whole map."""
  below = 2 * grad**2 + y.sum((1, 2), keepdims=True) * grad**3
  alpha = np.divide(grad**2, below, out=np.zeros_like(grad), where=below != 0)
  weight = (alpha * np.maximum(grad, 0)).sum((1, 2), keepdims=True)
  return np.maximum((y * weight).sum(-1), 0)


def guided(one: Twin) -> np.ndarray:
  """Springenberg et al. 2014, by hooks on the modules that are ReLUs: [b h w c]."""
  import torch

  acts = [m for m in one.original.modules() if isinstance(m, torch.nn.ReLU | torch.nn.ReLU6)]
  hooks = []
  for act in acts:
    act.inplace = False
    hooks.append(
      act.register_full_backward_hook(lambda m, inward, outward: (inward[0].clamp(min=0),))
    )
  x = one.tensor.requires_grad_()
  one.original(x)[torch.arange(2), torch.from_numpy(CLASSES).long()].sum().backward()
  for hook in hooks:
    hook.remove()
  return x.grad.permute(0, 2, 3, 1).numpy()


def difference(got: np.ndarray, want: np.ndarray) -> float:
  """The largest, of the largest value wanted."""
  assert got.shape == want.shape, (got.shape, want.shape)
  assert np.abs(want).max() > 0
  return float(np.abs(got - want).max() / np.abs(want).max())


def compare(family: str, one: Twin) -> dict[str, float]:
  """{map: difference} of Grad-CAM and Grad-CAM++ at the family's last map."""
  methods: dict[str, tuple[Callable, Callable]] = {
    "grad_cam": (explain.grad_cam, grad_cam), "grad_cam_pp": (explain.grad_cam_pp, grad_cam_pp)
  }  # fmt: skip
  layer, maps = ours(family, one, [mine for mine, _ in methods.values()])
  y, grad = theirs(one, layer)
  return {
    name: difference(got, state(y, grad)) for (name, (_, state)), got in zip(methods.items(), maps)
  }
