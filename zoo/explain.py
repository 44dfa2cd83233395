"""Where a network looked: pure functions of (model, variables, image) that no family knows of.

CAM: Zhou et al. 2016, arXiv:1512.04150.  Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391, which
also joins it with guided back-propagation.  Grad-CAM++: Chattopadhyay et al. 2018,
arXiv:1710.11063.  Guided back-propagation: Springenberg et al. 2014, arXiv:1412.6806.  Integrated
gradients: Sundararajan et al. 2017, arXiv:1703.01365.  Saliency: Simonyan et al. 2013,
arXiv:1312.6034.  Occlusion: Zeiler and Fergus 2013, arXiv:1311.2901.

What is explained, the target, is the logit of a class, [b] int32, or any score: a function of the
end points that returns [b], such as `of_box` and `of_pixels` make. Every image of a batch gets the
gradient of its own score.

A layer is an end point of the model ("stage4") or the path of a submodule ("layer4_0/conv2"). To
differentiate by it without touching the model, the model is traced, and the traced program is cut
at the variable that is the layer's output: what runs before makes it, what runs after takes it.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import difflib

from flax import linen as nn
from flax import traverse_util
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from zoo.layers import Numerics
from zoo.ops import boxes as geometry
from zoo.ops.resize import bilinear

Score = Callable[[Mapping[str, jax.Array]], jax.Array]  # end points -> [b]
Target = jax.Array | np.ndarray | Score  # classes [b] int32, or a score


def of_class(classes) -> Score:
  """The logit of each image's own class, [b] int32."""
  return lambda out: jnp.take_along_axis(_logits(out), jnp.asarray(classes)[:, None], 1)[:, 0]


def of_pixels(classes, mask) -> Score:
  """Of a network that segments: the class's logits summed over the mask, [b h w] of 0 and 1."""

  def score(out):
    own = jnp.take_along_axis(out["logits"], jnp.asarray(classes)[:, None, None, None], -1)[..., 0]
    return jnp.sum(own * jnp.asarray(mask, own.dtype), (1, 2))

  return score


def of_box(decode: Callable, boxes, classes) -> Score:
  """Of a detector: the class's score of the candidate that overlaps each image's box most.

  Args:
    decode: end points -> (boxes [b n 4], or [b n c 4] of each class, scores [b n c]), such as
      `model.decode` of YOLO.
    boxes: [b 4].
    classes: [b] int32.
  """

  def score(out):
    found, scores = decode(out)
    rows, own = jnp.arange(len(scores)), jnp.asarray(classes)
    found = found[rows, :, own] if found.ndim == 4 else found
    overlap = geometry.iou(found, jnp.asarray(boxes, found.dtype)[:, None])
    best = jnp.argmax(jax.lax.stop_gradient(overlap), 1)
    return scores[rows, best, own]

  return score


def grad_cam(
  model: nn.Module, variables, image, target: Target, layer: str | None = None
) -> jax.Array:
  """Grad-CAM: maps [b h' w'], not negative, at the layer's resolution.

  Args:
    model: returns a dict of end points.
    image: [b h w c], normalised.
    target: see the module's text.
    layer: see the module's text; None is the last end point that still has places.

  Raises:
    ValueError: no such layer, or one that is no [b h w c], or that the score does not depend on.
  """
  y, grad = _layer_gradient(model, variables, image, target, layer)
  return nn.relu(jnp.einsum("bhwc,bc->bhw", y, jnp.mean(grad, (1, 2))))


def grad_cam_pp(
  model: nn.Module, variables, image, target: Target, layer: str | None = None
) -> jax.Array:
  """Grad-CAM++: as `grad_cam`, but places weigh more where the layer is active in few of them.

  For the exponential of the score, as in the paper, whose value scales a whole map and is left out.
  With it a place's weight g^2 / (2 g^2 + sum(y) g^3) is 1 / (2 + sum(y) g), and 0 where g is 0.
  """
  y, grad = _layer_gradient(model, variables, image, target, layer)
  below = 2 + jnp.sum(y, (1, 2), keepdims=True) * grad
  alpha = jnp.where((grad > 0) & (below != 0), 1 / jnp.where(below == 0, 1, below), 0)
  return nn.relu(jnp.einsum("bhwc,bc->bhw", y, jnp.sum(alpha * nn.relu(grad), (1, 2))))


def cam(model: nn.Module, variables, image, target, layer: str | None = None) -> jax.Array:
  """CAM: maps [b h' w'], signed; their mean is the class's logit less its bias.

  Only for classes, and for a head that is one dense layer on the mean of the layer over its places;
  there Grad-CAM is relu(CAM) / (h' w'). Arguments and errors as of `grad_cam`.
  """
  if callable(target):
    raise ValueError("CAM explains classes, not other scores; grad_cam explains any score")
  program, shape = _trace(model, variables, image, layer, _logits)
  y = core.jaxpr_as_fun(program)(*jax.tree.leaves((variables, image)))[-1]
  flat = traverse_util.flatten_dict(variables["params"])
  shape = (y.shape[-1], shape.shape[-1])
  kernels = [a for path, a in flat.items() if path[-1] == "kernel" and a.shape == shape]
  if len(kernels) != 1 or not _is_linear(program.jaxpr):
    raise ValueError(
      f"CAM needs a head that is one dense layer [{shape[0]}, {shape[1]}] on the mean of the "
      f"layer, and that of {type(model).__name__} is another; grad_cam needs no such head"
    )
  return jnp.einsum("bhwc,cb->bhw", y.astype(jnp.float32), kernels[0][:, jnp.asarray(target)])


def saliency(model: nn.Module, variables, image, target: Target) -> jax.Array:
  """The gradient of the score by the image, [b h w c], signed."""

  def score(image):
    return jnp.sum(_score(target)(model.apply(variables, image, train=False)))

  return jax.grad(score)(image)


def guided(model: nn.Module, variables, image, target: Target) -> jax.Array:
  """Guided back-propagation, [b h w c], signed: only positive gradients pass back a ReLU.

  Raises:
    ValueError: the network has other activations than ReLU and ReLU6, of which alone it is stated.
  """
  changed = _with_acts(model, _guide)
  run = lambda image: changed.apply(variables, image, train=False)
  others = _calls(jax.make_jaxpr(run)(image).jaxpr) & ACTIVATIONS
  if others:
    raise _not_guided(model, ", ".join(sorted(others)))
  return saliency(changed, variables, image, target)


def guided_grad_cam(
  model: nn.Module, variables, image, target: Target, layer: str | None = None
) -> jax.Array:
  """`guided` times `grad_cam`, enlarged to the image: [b h w c], signed."""
  where = grad_cam(model, variables, image, target, layer)[..., None]
  return guided(model, variables, image, target) * bilinear(where, image.shape[1:3])


def integrated(
  model: nn.Module, variables, image, target: Target, *, baseline=0.0, steps: int = 32
) -> jax.Array:
  """Integrated gradients, [b h w c], signed: their sum is how much the score rose from a baseline.

  Args:
    baseline: an image in which nothing is seen, normalised; 0 is the mean colour.
    steps: points of the straight way from there, in the middles of as many equal parts.
  """
  image = jnp.asarray(image)
  way = image - baseline
  slope = lambda share: saliency(model, variables, baseline + share * way, target)
  add = lambda i, total: total + slope((i + 0.5) / steps)
  return way * jax.lax.fori_loop(0, steps, add, jnp.zeros_like(image)) / steps


def occlusion(
  model: nn.Module, variables, image, target: Target, *, window: int = 32, stride: int = 16,
  fill=0.0,
) -> jax.Array:  # fmt: skip
  """How much the score falls when a square is covered: [b h w], signed.

  Args:
    window: side of the square in pixels.
    stride: pixels from one square to the next; a pixel gets the mean of the squares over it.
    fill: what covers, normalised; 0 is the mean colour.

  Raises:
    ValueError: the stride leaves pixels out.
  """
  image = jnp.asarray(image)
  b, h, w, _ = image.shape
  if not 0 < stride <= window:
    raise ValueError(
      f"wanted 0 < stride <= window, came a stride of {stride}, a window of {window}"
    )
  score = lambda x: _score(target)(model.apply(variables, x, train=False)).astype(jnp.float32)
  starts = [np.unique(np.append(np.arange(0, max(n - window, 0), stride), max(n - window, 0)))
            for n in (h, w)]  # fmt: skip
  corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2)
  whole = score(image)

  def add(i, total):
    top, left = jnp.asarray(corners)[i]
    rows, columns = jnp.arange(h)[:, None] - top, jnp.arange(w) - left
    inside = (rows >= 0) & (rows < window) & (columns >= 0) & (columns < window)
    fall = whole - score(jnp.where(inside[:, :, None], fill, image))
    return total + jnp.stack([fall[:, None, None] * inside, jnp.broadcast_to(inside, (b, h, w))])

  falls, counts = jax.lax.fori_loop(0, len(corners), add, jnp.zeros((2, b, h, w)))
  return falls / counts


def localize(maps, size: tuple[int, int], *, share: float = 0.2) -> np.ndarray:
  """The CAM paper's boxes [b 4] (x0 y0 x1 y1 in pixels), one around each map's largest component.

  On the host. A component is what hangs together, also by corners, above `share` of the maximum of
  the map enlarged to `size` (height, width). A map that is nowhere positive has the box 0 0 0 0.
  """
  from scipy import ndimage

  large = np.asarray(bilinear(jnp.asarray(maps, jnp.float32)[..., None], size))[..., 0]
  found = np.zeros((len(large), 4), np.float32)
  for i, one in enumerate(large):
    peak = one.max()
    if not peak > 0:
      continue
    labels, _ = ndimage.label(one > share * peak, np.ones((3, 3)))
    largest = np.bincount(labels.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(labels)[largest]
    found[i] = columns.start, rows.start, columns.stop, rows.stop
  return found


def perturbed(
  model: nn.Module, variables, image, layer: str | None = None
) -> tuple[Callable, jax.Array]:
  """(run, y): the layer's output, and `run(y)` -> end points of the model with that output."""
  return _cut(model, variables, image, layer, lambda out: out)


def _score(target: Target) -> Score:
  return target if callable(target) else of_class(target)


def _logits(out) -> jax.Array:
  if "logits" not in out:
    raise ValueError(
      "a map explains a class, and the model has no logits; give it num_classes, or a score of its "
      f"end points {', '.join(out)}"
    )
  if out["logits"].ndim != 2:
    raise ValueError(
      f"the logits are {list(out['logits'].shape)}, not one for each image and class; a class at "
      "places is explained by explain.of_pixels"
    )
  return out["logits"]


def _layer_gradient(model, variables, image, target, layer) -> tuple[jax.Array, jax.Array]:
  """The layer's output, and the gradient of each image's own score by it; both in float32."""
  run, y = _cut(model, variables, image, layer, _score(target))
  grad = jax.grad(lambda y: jnp.sum(run(y)))(y)
  return y.astype(jnp.float32), grad.astype(jnp.float32)


# What JAX calls its activations in a traced program. Gates are none: a gradient passes back them as
# it is.
GATES = {"sigmoid", "hard_sigmoid"}
ACTIVATIONS = {
  "relu", "relu6", "silu", "hard_silu", "leaky_relu", "elu", "selu", "celu", "softplus", "mish",
  "squareplus", "hard_tanh", "glu", "log_sigmoid", "soft_sign",
}  # fmt: skip
CEILINGS = {nn.relu: np.inf, nn.relu6: 6.0}


def _guide(model: nn.Module, act: Callable) -> Callable:
  """The same function; backwards only what is positive passes, and only where the ReLU is open."""
  if act not in CEILINGS:
    raise _not_guided(model, getattr(getattr(act, "func", act), "__name__", str(act)))

  def back(x, grad):
    return (jnp.where((x > 0) & (x < CEILINGS[act]), nn.relu(grad), 0),)

  changed = jax.custom_vjp(lambda x: jnp.clip(x, 0, CEILINGS[act]))
  changed.defvjp(lambda x: (jnp.clip(x, 0, CEILINGS[act]), x), back)
  return changed


def _not_guided(model: nn.Module, found: str) -> ValueError:
  return ValueError(
    f"guided back-propagation is stated for ReLU and ReLU6, and {type(model).__name__} has "
    f"{found}; grad_cam, integrated gradients and occlusion take any activation"
  )


def _with_acts(model: nn.Module, change: Callable) -> nn.Module:
  """The model with another activation in its Numerics, and in those of modules it is given."""
  changes = {}
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if isinstance(value, Numerics):
      changes[field.name] = dataclasses.replace(value, act=change(model, value.act))
    elif isinstance(value, nn.Module) and field.name != "parent":
      changes[field.name] = _with_acts(value, change)
  return model.clone(**changes)


def _calls(program: core.Jaxpr) -> set[str]:
  """Names of the jitted functions that a program calls, but for those within activations."""
  found = set()
  for step in program.eqns:
    name = step.params.get("name")
    found |= {name} if isinstance(name, str) else set()
    if name in GATES | ACTIVATIONS:
      continue
    for value in step.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if isinstance(inner, core.Jaxpr):
          found |= _calls(inner)
  return found


def _cut(model, variables, image, layer, read: Callable) -> tuple[Callable, jax.Array]:
  """(run, y): the layer's output, and `run(y)` -> `read` of the end points with that output."""
  program, shapes = _trace(model, variables, image, layer, read)
  before, after = _split(program, program.jaxpr.outvars[-1])
  *others, y = before(*jax.tree.leaves((variables, image)))
  structure = jax.tree.structure(shapes)
  return lambda y: jax.tree.unflatten(structure, after(*others, y)[:-1]), y


def _trace(model, variables, image, layer, read: Callable) -> tuple[core.ClosedJaxpr, object]:
  """The program (variables, image) -> (`read` of the end points, the layer's output).

  And the shapes of the former.
  """

  def traced(variables, image):
    out, y = _with_layer(model, variables, image, layer)
    return read(out), y

  program, shapes = jax.make_jaxpr(traced, return_shape=True)(variables, image)
  *outputs, target = program.jaxpr.outvars
  reached = {v for step, _ in _behind(program.jaxpr, target) for v in step.outvars} | {target}
  if not any(isinstance(v, core.Var) and v in reached for v in outputs):
    raise ValueError(f"the score does not depend on {layer!r}; name a layer before the head")
  return program, shapes[0]


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
  if layer is None:
    # The scores of a network that segments are no layer to explain them by.
    spatial = [
      end for end, y in out.items()
      if getattr(y, "ndim", 0) == 4 and y.shape[1] * y.shape[2] > 1 and not end.endswith("logits")
    ]  # fmt: skip
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
