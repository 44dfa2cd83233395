"""Where a network looked: pure functions of (model, variables, image) that no family knows of.

CAM: Zhou et al. 2016, arXiv:1512.04150.  Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391.

A layer is an end point of the model ("stage4") or the path of a submodule ("layer4_0/conv2"). To
differentiate by it without touching the model, the model is traced, and the traced program is cut
at the variable that is the layer's output: what runs before makes it, what runs after takes it.
"""

from collections.abc import Callable, Iterator
import difflib

from flax import linen as nn
from flax import traverse_util
import jax
from jax.extend import core
import jax.numpy as jnp


def grad_cam(model: nn.Module, variables, image, classes, layer: str | None = None) -> jax.Array:
  """Grad-CAM: maps [b h' w'], not negative, at the layer's resolution.

  Args:
    model: returns a dict with "logits".
    image: [b h w c], normalised. Every image of the batch gets the gradient of its own score.
    classes: [b] int32, whose logit is explained.
    layer: see the module's text; None is the last end point that still has places.

  Raises:
    ValueError: no such layer, or one that is no [b h w c], or that the logits do not depend on.
  """
  run, y = perturbed(model, variables, image, layer)
  score = lambda y: jnp.sum(_of_classes(run(y)["logits"], classes))
  weight = jnp.mean(jax.grad(score)(y).astype(jnp.float32), (1, 2))
  return nn.relu(jnp.einsum("bhwc,bc->bhw", y.astype(jnp.float32), weight))


def cam(model: nn.Module, variables, image, classes, layer: str | None = None) -> jax.Array:
  """CAM: maps [b h' w'], signed; their mean is the class's logit less its bias.

  Only for a head that is one dense layer on the mean of the layer over its places; there Grad-CAM
  is relu(CAM) / (h' w'). Arguments and errors as of `grad_cam`.
  """
  program, shapes = _trace(model, variables, image, layer)
  y = core.jaxpr_as_fun(program)(*jax.tree.leaves((variables, image)))[-1]
  flat = traverse_util.flatten_dict(variables["params"])
  shape = (y.shape[-1], shapes[0]["logits"].shape[-1])
  kernels = [a for path, a in flat.items() if path[-1] == "kernel" and a.shape == shape]
  if len(kernels) != 1 or not _is_linear(program.jaxpr):
    raise ValueError(
      f"CAM needs a head that is one dense layer [{shape[0]}, {shape[1]}] on the mean of the "
      f"layer, and that of {type(model).__name__} is another; grad_cam needs no such head"
    )
  return jnp.einsum("bhwc,cb->bhw", y.astype(jnp.float32), kernels[0][:, jnp.asarray(classes)])


def perturbed(
  model: nn.Module, variables, image, layer: str | None = None
) -> tuple[Callable, jax.Array]:
  """(run, y): the layer's output, and `run(y)` -> end points of the model with that output."""
  program, shapes = _trace(model, variables, image, layer)
  before, after = _split(program, program.jaxpr.outvars[-1])
  *others, y = before(*jax.tree.leaves((variables, image)))
  structure = jax.tree.structure(shapes[0])
  return lambda y: jax.tree.unflatten(structure, after(*others, y)[:-1]), y


def _trace(model, variables, image, layer) -> tuple[core.ClosedJaxpr, tuple]:
  """The program whose last output is the layer's, and its outputs as ShapeDtypeStruct."""

  def traced(variables, image):
    return _with_layer(model, variables, image, layer)

  program, shapes = jax.make_jaxpr(traced, return_shape=True)(variables, image)
  *outputs, target = program.jaxpr.outvars
  reached = {v for step, _ in _behind(program.jaxpr, target) for v in step.outvars} | {target}
  if outputs[_index_of_logits(shapes[0])] not in reached:
    raise ValueError(f"the logits do not depend on {layer!r}; name a layer before the head")
  return program, shapes


def _with_layer(model, variables, image, layer):
  """(end points, output of the layer)."""
  seen = {}

  def watch(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if context.method_name == "__call__" and context.module.path:
      seen["/".join(context.module.path)] = y
    return y

  with nn.intercept_methods(watch):
    out = model.apply(variables, image, train=False)
  if "logits" not in out:
    raise ValueError("a map explains a class, and the model has no logits; give it num_classes")
  if layer is None:
    spatial = [end for end, y in out.items() if y.ndim == 4 and y.shape[1] * y.shape[2] > 1]
    if not spatial:
      raise ValueError(f"no end point has places left: {_shapes(out)}; name a submodule")
    layer = spatial[-1]
  if layer not in out and layer not in seen:
    near = difflib.get_close_matches(layer, seen, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    top = ", ".join(path for path in seen if "/" not in path)
    raise ValueError(
      f"no end point and no submodule is named {layer!r}{hint} The end points are "
      f"{', '.join(out)}; the submodules {top}, and theirs after a slash"
    )
  y = out[layer] if layer in out else seen[layer]
  if getattr(y, "ndim", 0) != 4:
    raise ValueError(f"{layer!r} has no places to map, it is {_shapes({layer: y})}")
  return out, y


def _shapes(out) -> str:
  return ", ".join(f"{end} {list(getattr(y, 'shape', ['?']))}" for end, y in out.items())


def _index_of_logits(out) -> int:
  return [path[0].key for path, _ in jax.tree.leaves_with_path(out)].index("logits")


def _of_classes(logits, classes):
  return jnp.take_along_axis(logits, jnp.asarray(classes)[:, None], 1)


def _behind(program: core.Jaxpr, source: core.Var) -> Iterator[tuple[core.JaxprEqn, list[bool]]]:
  """The steps that `source` enters, at once or through others, and by which of their inputs."""
  reached = {source}
  for step in program.eqns:
    enters = [not isinstance(v, core.Literal) and v in reached for v in step.invars]
    if any(enters):
      reached.update(step.outvars)
      yield step, enters


LINEAR = {"add", "broadcast_in_dim", "convert_element_type", "reduce_sum", "reshape", "squeeze"}


def _is_linear(program: core.Jaxpr) -> bool:
  """Whether nothing but sums and products by constants stands behind the last output."""

  def linear(name, enters):
    if name == "div":
      return enters == [True, False]
    return name in LINEAR or (name in ("dot_general", "mul") and sum(enters) == 1)

  steps = _behind(program, program.outvars[-1])
  return all(linear(step.primitive.name, enters) for step, enters in steps)


def _split(program: core.ClosedJaxpr, target: core.Var) -> tuple[Callable, Callable]:
  """(before, after): before(arguments) -> [..., target], after(..., target) -> outputs."""
  whole = program.jaxpr
  cut = next((i + 1 for i, step in enumerate(whole.eqns) if target in step.outvars), 0)
  made = {v for step in whole.eqns[cut:] for v in step.outvars} | {target}
  used = [v for step in whole.eqns[cut:] for v in step.invars] + whole.outvars
  kept = dict.fromkeys(v for v in used if not isinstance(v, core.Literal) and v not in made)
  seam = [*kept, target]
  names = whole.debug_info.with_unknown_names()
  before = whole.replace(eqns=whole.eqns[:cut], outvars=seam, debug_info=names)
  after = whole.replace(constvars=[], invars=seam, eqns=whole.eqns[cut:], debug_info=names)
  return (
    core.jaxpr_as_fun(core.ClosedJaxpr(before, program.consts)),
    core.jaxpr_as_fun(core.ClosedJaxpr(after, [])),
  )
