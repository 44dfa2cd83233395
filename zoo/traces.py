"""What a model's layers are seen to do while it is traced: no family declares it."""

from collections import Counter
from collections.abc import Iterable, Iterator
import contextlib

from flax import linen as nn
import jax

from zoo import layers
from zoo.ops import conv as ops


@contextlib.contextmanager
def norm_calls() -> Iterator[list[tuple[str, float, str]]]:
  """Fills [(path of a batch norm, its epsilon, path of the convolution whose output it takes)].

  Of the models that are traced within the context, call by call; "" is no convolution.
  """
  calls: list[tuple[str, float, str]] = []
  outputs: dict[int, tuple[str, jax.Array]] = {}  # kept, so that no two have the same id

  def watch(call, args, kwargs, context):
    y = call(*args, **kwargs)
    module, path = context.module, "/".join(context.module.path)
    if isinstance(module, layers.Conv):
      outputs[id(y)] = path, y
    elif isinstance(module, nn.BatchNorm) or isinstance(
      getattr(module, "epsilon", None), layers.AddedToRoot
    ):
      calls.append((path, module.epsilon, outputs.get(id(args[0]), ("",))[0]))
    return y

  with nn.intercept_methods(watch):
    yield calls


@contextlib.contextmanager
def kernel_calls() -> Iterator[dict[str, list[ops.Layer]]]:
  """Fills {path of a convolution or dense layer: what each of its calls does}.

  Of the models that are traced within the context; a dense layer is one of single pixels.
  """
  found: dict[str, list[ops.Layer]] = {}

  def watch(call, args, kwargs, context):
    module = context.module
    if isinstance(module, (layers.Conv, layers.Dense)) and context.method_name == "__call__":
      found.setdefault("/".join(module.path), []).append(module.layer(args[0]))
    return call(*args, **kwargs)

  with nn.intercept_methods(watch):
    yield found


@contextlib.contextmanager
def norms_behind() -> Iterator[dict[str, tuple[str, float]]]:
  """Fills {path of a convolution: (path of the batch norm right behind it, its epsilon)}.

  Of the models that are traced within the context: which norm follows is seen, not declared. A
  convolution that feeds two norms, or a norm that two feed, is not among them.
  """
  found: dict[str, tuple[str, float]] = {}
  with norm_calls() as calls:
    yield found
  found |= behind(calls)


def behind(calls: Iterable[tuple[str, float, str]]) -> dict[str, tuple[str, float]]:
  """What `norms_behind` fills, of what `norm_calls` has filled."""
  links = {(conv, norm) for norm, _, conv in calls}
  convs, norms = (Counter(link[side] for link in links) for side in (0, 1))
  return {
    conv: (norm, eps) for norm, eps, conv in calls if conv and convs[conv] == norms[norm] == 1
  }
