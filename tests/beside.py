"""A model beside a torch module that no catalog names: random arrays, the same images, both ways.

For networks whose originals are built by hand; `tests/parity.py` runs those that a library builds.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from convert import engine
from tests import parity


def nchw(image):
  import torch

  return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def random_images(*shapes, seed=1):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def arrays(original) -> dict[str, np.ndarray]:
  return {name: value.numpy() for name, value in original.state_dict().items()}


def apply(model):
  options = parity.QUICK_COMPILATION
  return jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=options)


def errors(
  original,
  model,
  rules: engine.Rules,
  images,
  taps: Mapping[str, str],
  outputs: Callable[..., Mapping] = lambda y: {"logits": y},
  randomize: bool = True,
) -> dict[str, float]:
  """{end point and size: largest difference relative to the original's largest value}.

  Args:
    original: a torch module of images [b c h w], randomised here unless asked not to.
    model: ours, which takes its arrays by `rules`.
    images: [b h w c] each, in any sizes.
    taps: our end point -> the original's module whose output it equals.
    outputs: what the original's own outputs are called here; maps are turned to [b h w c].
    randomize: else the original keeps the arrays that it has.
  """
  import torch

  torch.set_num_threads(1)
  original.eval()
  if randomize:
    torch.manual_seed(0)
    parity.randomize(original, nchw(images[0]))
  target = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images[0])
  variables = engine.convert(arrays(original), target, rules)
  parity.check_way_back(arrays(original), variables, rules)
  seen, found, run = {}, {}, apply(model)
  for end, path in taps.items():
    original.get_submodule(path).register_forward_hook(
      lambda module, inputs, output, end=end: seen.__setitem__(end, output.clone())
    )
  for image in images:
    with torch.no_grad():
      wanted = outputs(original(nchw(image))) | seen
    ours = run(variables, image)
    for end, want in wanted.items():
      want = (want.permute(0, 2, 3, 1) if want.ndim == 4 else want).numpy()
      got = np.asarray(ours[end])
      if got.shape != want.shape:
        raise AssertionError(f"{end}: {got.shape}, the original's is {want.shape}")
      found[f"{end} {image.shape[1:3]}"] = np.abs(got - want).max() / np.abs(want).max()
  return found
