"""A traced JAX program as an ONNX graph: one node or a few for each of its operations.

Knows the operations of convolutional networks in their plain form and refuses others by name.
What is broadcast stays as small as it was (ONNX broadcasts by itself) until an operation needs it
whole. Convolutions and pools see [b c h w], as ONNX wants them, between two transpositions, which
runtimes cancel. A bias is part of its convolution, padding of its pool, and so on
(`convert/onnx_fused.py`): runtimes fuse those, and not what they are made of.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from convert import onnx_channels, onnx_fused

OPSET, IR_VERSION = 18, 8
SIZE_LIMIT = 2_000_000_000  # bytes; protobuf has no longer messages
ELEMENTWISE = {
  "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
  "neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt",
  "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "erf": "Erf", "eq": "Equal",
  "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "and": "And",
  "or": "Or", "not": "Not", "copy": "Identity", "stop_gradient": "Identity",
}  # fmt: skip
REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "checkpoint")


def model(program, inputs: Sequence[str], outputs: Sequence[str], known: Mapping[str, np.ndarray],
          facts: Mapping[str, str]):  # fmt: skip
  """The `onnx.ModelProto` of a closed jaxpr.

  Args:
    program: of `jax.make_jaxpr`; a symbolic dimension stays free, under its own name.
    inputs: names of its inputs in order; those of `known` become part of the model.
    outputs: names of its outputs in order.
    known: arrays by the name of their input.
    facts: texts by name, kept beside the graph.

  Raises:
    ValueError: names every operation that it does not know; or a model too large for one file.
  """
  import onnx
  from onnx import helper

  graph = Graph()
  jaxpr = program.jaxpr
  if unknown := sorted(_unknown(jaxpr)):
    raise ValueError(f"no ONNX form for the operations {', '.join(unknown)} of this model")
  for name, var in zip(inputs, jaxpr.invars):
    if name in known:
      graph.known[name] = np.asarray(known[name])
    graph.values[var] = Value(name, var.aval.shape)
  free = [(name, v.aval) for name, v in zip(inputs, jaxpr.invars) if name not in known]
  graph.batch_of = next((n for n, aval in free if any(map(_symbolic, aval.shape))), None)
  graph.run(jaxpr, program.consts)
  for name, var in zip(outputs, jaxpr.outvars):
    graph.node("Identity", [graph.whole(var)], name)
  nodes, arrays = onnx_channels.rounded(*graph.live(outputs))
  if sum(array.nbytes for array in arrays.values()) > SIZE_LIMIT:
    raise ValueError("the model is larger than the 2 GB that one ONNX file may hold")
  made = helper.make_graph(
    [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in nodes],
    "flaxzoo",
    [_tensor(name, aval) for name, aval in free],
    [_tensor(name, var.aval) for name, var in zip(outputs, jaxpr.outvars)],
    [onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
  )
  opset = helper.make_opsetid("", OPSET)
  out = helper.make_model(made, producer_name="flaxzoo", opset_imports=[opset])
  out.ir_version = IR_VERSION
  helper.set_model_props(out, dict(facts))
  return out


@dataclasses.dataclass(frozen=True)
class Value:
  """An ONNX tensor; `shape` has 1 where it is to be broadcast."""

  name: str
  shape: tuple


class Graph:
  """Nodes under construction."""

  def __init__(self):
    self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
    self.made: dict[str, tuple[str, list[str], dict[str, Any]]] = {}  # a tensor's node
    self.pixels: dict[str, list[int]] = {}  # how many were summed for a tensor
    self.padded: dict[str, np.ndarray] = {}  # a mean over windows: their size by the pixels there
    self.picks: dict[str, onnx_fused.Pick | None] = {}  # which pixels of another a tensor has
    self.known: dict[str, np.ndarray] = {}
    self.values: dict[Any, Value] = {}  # of the program's variables
    self.batch_of: str | None = None  # the input whose first axis is free

  def node(self, op: str, inputs: Sequence[str], out: str | None = None, **attributes) -> str:
    out = out or f"{op.lower()}_{len(self.nodes)}"
    self.nodes.append((op, list(inputs), out, attributes))
    self.made[out] = op, list(inputs), attributes
    return out

  def maker(self, name: str) -> tuple[str, list[str], dict[str, Any]]:
    """The operation, inputs and attributes of a tensor's node; nothing for an input."""
    return self.made.get(name, ("", [], {}))

  def constant(self, array) -> str:
    array = np.asarray(array)
    name = f"constant_{len(self.known)}"
    self.known[name] = array
    return name

  def whole_numbers(self, numbers) -> str:
    return self.constant(np.array([int(n) for n in numbers], np.int64))

  def get(self, atom) -> Value:
    if hasattr(atom, "val"):  # a literal
      return Value(self.constant(np.asarray(atom.val, atom.aval.dtype)), atom.aval.shape)
    return self.values[atom]

  def whole(self, atom) -> str:
    """The tensor of the shape that the program says."""
    value, shape = self.get(atom), atom.aval.shape
    if tuple(value.shape) == tuple(shape):
      return value.name
    return self.node("Expand", [value.name, self.shape(shape)])

  def shape(self, shape) -> str:
    """`shape` as a tensor, its free dimension read from the input."""
    if not any(map(_symbolic, shape)):
      return self.whole_numbers(shape)
    batch = self.node("Shape", [self.batch_of], start=0, end=1)
    rest = self.whole_numbers(shape[1:])
    if not _symbolic(shape[0]) or any(map(_symbolic, shape[1:])):
      raise ValueError(f"only the first axis can be free in ONNX, found {shape}")
    return self.node("Concat", [batch, rest], axis=0)

  def run(self, jaxpr, consts) -> None:
    for var, const in zip(jaxpr.constvars, consts):
      self.values[var] = Value(self.constant(const), np.shape(const))
    for equation in jaxpr.eqns:
      name = equation.primitive.name
      if name in CALLS:
        self.call(equation)
        continue
      if name in ELEMENTWISE:
        made = self.elementwise(equation)
      elif name in REDUCTIONS:
        made = self.reduce(equation)
      else:
        made = FORMS[name](self, equation)
      for out, one in zip(equation.outvars, made if isinstance(made, list) else [made]):
        self.values[out] = one if isinstance(one, Value) else Value(one, out.aval.shape)

  def call(self, equation) -> None:
    params = equation.params
    inner = params.get("jaxpr") or params.get("call_jaxpr")
    body, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    for var, atom in zip(body.invars, equation.invars):
      self.values[var] = self.get(atom)
    self.run(body, consts)
    for var, atom in zip(equation.outvars, body.outvars):
      self.values[var] = self.get(atom)

  def elementwise(self, equation) -> Value:
    op = ELEMENTWISE[equation.primitive.name]
    values = [self.get(atom) for atom in equation.invars]
    names, shape = [v.name for v in values], _broadcast(v.shape for v in values)
    if len(names) == 2:
      if op in ("Add", "Mul", "Max", "Min") and names[0] in self.known:
        names.reverse()
      if names[1] in self.known and names[0] not in self.known:
        return Value(onnx_fused.joined(self, op, *names) or self.node(op, names), shape)
    return Value(self.node(op, names), shape)

  def reduce(self, equation) -> str:
    [x], axes = equation.invars, equation.params["axes"]
    op = REDUCTIONS[equation.primitive.name]
    out = self.node(op, [self.whole(x), self.whole_numbers(axes)], keepdims=0)
    if (x.aval.ndim, tuple(axes)) == (4, (1, 2)) and not any(map(_symbolic, x.aval.shape[1:])):
      self.pixels[out] = [x.aval.shape[1] * x.aval.shape[2]]
    return out

  def live(self, outputs):
    """(nodes, arrays) that the outputs depend on."""
    needed, nodes = set(outputs), []
    for node in reversed(self.nodes):
      if node[2] in needed:
        needed.update(node[1])
        nodes.append(node)
    return nodes[::-1], {n: a for n, a in self.known.items() if n in needed}

  def transposed(self, name: str, axes: Sequence[int]) -> str:
    """With the axes in another order; what is known is turned here, once."""
    if list(axes) == sorted(axes):
      return name
    if name in self.known:
      turned = f"{name}:{''.join(map(str, axes))}"
      self.known[turned] = self.known[name].transpose(axes)
      return turned
    return self.node("Transpose", [name], perm=list(axes))


def _symbolic(dimension) -> bool:
  return not isinstance(dimension, int | np.integer)


def _broadcast(shapes) -> tuple:
  shapes = [tuple(s) for s in shapes]
  rank = max(map(len, shapes))
  padded = [(1,) * (rank - len(s)) + s for s in shapes]
  return tuple(next((n for n in axis if _symbolic(n) or n != 1), 1) for axis in zip(*padded))


def _unknown(jaxpr) -> set[str]:
  found = set()
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
      inner = params.get("jaxpr") or params.get("call_jaxpr")
      found |= _unknown(getattr(inner, "jaxpr", inner))
    elif name not in ELEMENTWISE and name not in REDUCTIONS and name not in FORMS:
      found.add(name)
  return found


def _tensor(name: str, aval):
  from onnx import helper

  shape = [str(n) if _symbolic(n) else int(n) for n in aval.shape]
  return helper.make_tensor_value_info(name, _kind(aval.dtype), shape)


def _kind(dtype) -> int:
  from onnx import helper

  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# The operations that are no single node.


def _cast(graph, equation):
  [x] = equation.invars
  value, dtype = graph.get(x), equation.params["new_dtype"]
  if x.aval.dtype == dtype:
    return value
  if value.name in graph.known:
    return Value(graph.constant(graph.known[value.name].astype(dtype)), value.shape)
  return Value(graph.node("Cast", [value.name], to=_kind(dtype)), value.shape)


def _rsqrt(graph, equation):
  value = graph.get(equation.invars[0])
  return Value(graph.node("Reciprocal", [graph.node("Sqrt", [value.name])]), value.shape)


def _square(graph, equation):
  value = graph.get(equation.invars[0])
  return Value(graph.node("Mul", [value.name] * 2), value.shape)


def _integer_pow(graph, equation):
  [x] = equation.invars
  value, power = graph.get(x), graph.constant(np.array(equation.params["y"], x.aval.dtype))
  return Value(graph.node("Pow", [value.name, power]), value.shape)


def _clamp(graph, equation):
  low, x, high = map(graph.get, equation.invars)
  if all(end.name in graph.known and not end.shape for end in (low, high)):
    return Value(graph.node("Clip", [x.name, low.name, high.name]), x.shape)
  return Value(graph.node("Min", [graph.node("Max", [x.name, low.name]), high.name]), x.shape)


def _select(graph, equation):
  which, no, yes = map(graph.get, equation.invars)
  shape = _broadcast(v.shape for v in (which, no, yes))
  names = which.name, yes.name, no.name
  return Value(onnx_fused.leaky(graph, *names) or graph.node("Where", names), shape)


def _broadcast_in_dim(graph, equation):
  value = graph.get(equation.invars[0])
  shape = [1] * len(equation.params["shape"])
  for n, axis in zip(value.shape, equation.params["broadcast_dimensions"]):
    shape[axis] = n
  if tuple(shape) == tuple(value.shape):
    return value
  return Value(_reshaped(graph, value.name, shape), tuple(shape))


def _reshape(graph, equation):
  return _reshaped(graph, graph.whole(equation.invars[0]), equation.outvars[0].aval.shape)


def _reshaped(graph, name: str, shape) -> str:
  free = [i for i, n in enumerate(shape) if _symbolic(n)]
  if len(free) > 1:
    raise ValueError(f"only one axis can be free in ONNX, found {tuple(shape)}")
  if name in graph.known:
    return graph.constant(graph.known[name].reshape(shape))
  if one := onnx_fused.shuffled(graph, name, shape) or onnx_fused.repeated(graph, name, shape):
    return one
  numbers = [-1 if i in free else n for i, n in enumerate(shape)]
  return graph.node("Reshape", [name, graph.whole_numbers(numbers)])


def _transpose(graph, equation):
  return graph.transposed(graph.whole(equation.invars[0]), equation.params["permutation"])


def _concatenate(graph, equation):
  parts, axis = [graph.whole(x) for x in equation.invars], equation.params["dimension"]
  if all(name in graph.known for name in parts):
    return graph.constant(np.concatenate([graph.known[name] for name in parts], axis))
  return graph.node("Concat", parts, axis=axis)


def _slice(graph, equation):
  [x], params = equation.invars, equation.params
  strides = params["strides"] or (1,) * x.aval.ndim
  rows = zip(params["start_indices"], params["limit_indices"], strides, x.aval.shape)
  cut = [(i, lo, hi, s) for i, (lo, hi, s, n) in enumerate(rows) if (lo, hi, s) != (0, n, 1)]
  return _sliced(graph, x, cut) if cut else graph.get(x)


def _sliced(graph, x, cut) -> str:
  """`cut` has a row of (axis, begin, end, step) for each axis that is cut."""
  name = graph.whole(x)
  picked = onnx_fused.sliced(graph, name, x.aval, cut)
  out = onnx_fused.picked(graph, picked) if picked else None
  if not out:
    axes, *numbers, steps = (graph.whole_numbers(column) for column in zip(*cut))
    out = graph.node("Slice", [name, *numbers, axes, steps])
  graph.picks[out] = picked
  return out


def _split(graph, equation):
  [x], axis = equation.invars, equation.params["axis"]
  name, ends = graph.whole(x), np.cumsum([0, *equation.params["sizes"]])
  return [
    graph.node("Slice", [name, *map(graph.whole_numbers, ([lo], [hi], [axis]))])
    for lo, hi in itertools.pairwise(ends)
  ]


def _gather(graph, equation):
  """One window of the array, as which JAX traces x[..., :n] where another axis is free."""
  (x, start), params = equation.invars, equation.params
  numbers = params["dimension_numbers"]
  axes = numbers.start_index_map
  sizes = [params["slice_sizes"][axis] for axis in axes]
  one = start.aval.ndim == 1 and not numbers.collapsed_slice_dims
  if not one or numbers.operand_batching_dims or any(map(_symbolic, sizes)):
    raise ValueError("no ONNX form for an indexed selection other than one window")
  if (known := graph.known.get(graph.whole(start))) is not None:
    rows = zip(axes, known.tolist(), sizes)
    return _sliced(graph, x, [(axis, first, first + n, 1) for axis, first, n in rows])
  begin = graph.node("Cast", [graph.whole(start)], to=_kind(np.int64))
  end = graph.node("Add", [begin, graph.whole_numbers(sizes)])
  return graph.node("Slice", [graph.whole(x), begin, end, graph.whole_numbers(axes)])


def _rev(graph, equation):
  [x], axes = equation.invars, equation.params["dimensions"]
  ends = [np.iinfo(np.int64).min] * len(axes)
  numbers = ([-1] * len(axes), ends, axes, [-1] * len(axes))
  return graph.node("Slice", [graph.whole(x), *map(graph.whole_numbers, numbers)])


def _pad(graph, equation):
  x, fill = equation.invars
  config = equation.params["padding_config"]
  if any(inner for _, _, inner in config):
    raise ValueError("no ONNX form for padding between pixels")
  pads = [row[0] for row in config] + [row[1] for row in config]  # negative ones crop here too
  name, value = graph.whole(x), graph.whole(fill)
  out = graph.node("Pad", [name, graph.whole_numbers(pads), value])
  if value in graph.known and not graph.known[value].any():
    graph.picks[out] = onnx_fused.padded(graph, name, x.aval, config)
  return out


def _dot(graph, equation):
  left, right = equation.invars
  (contract_l, contract_r), (batch_l, batch_r) = equation.params["dimension_numbers"]
  names = [graph.whole(left), graph.whole(right)]
  if not batch_l and contract_l == (left.aval.ndim - 1,) and contract_r == (0,) == (
    *range(right.aval.ndim - 1),
  ):  # fmt: skip
    return graph.node("MatMul", names)
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  l = [next(letters) for _ in left.aval.shape]
  r = [next(letters) for _ in right.aval.shape]
  for i, j in zip((*contract_l, *batch_l), (*contract_r, *batch_r)):
    r[j] = l[i]
  kept = [c for i, c in enumerate(l) if i not in (*contract_l, *batch_l)]
  kept += [c for i, c in enumerate(r) if i not in (*contract_r, *batch_r)]
  out = [l[i] for i in batch_l] + kept
  return graph.node("Einsum", names, equation=f"{''.join(l)},{''.join(r)}->{''.join(out)}")


def _conv(graph, equation):
  (x, kernel), p = equation.invars, equation.params
  numbers = p["dimension_numbers"]
  image = graph.transposed(graph.whole(x), numbers.lhs_spec)
  attributes = dict(strides=list(p["window_strides"]), dilations=list(p["rhs_dilation"]),
                    group=p["feature_group_count"])  # fmt: skip
  pads, spatial = p["padding"], numbers.rhs_spec[2:]
  if p["batch_group_count"] != 1 or min(min(pads)) < 0:
    raise ValueError("no ONNX form for a convolution of groups of images or with cropped input")
  if any(n != 1 for n in p["lhs_dilation"]):
    return _conv_transpose(graph, equation, image)
  weight = graph.transposed(graph.whole(kernel), numbers.rhs_spec)
  attributes["pads"] = [lo for lo, _ in pads] + [hi for _, hi in pads]
  attributes["kernel_shape"] = [kernel.aval.shape[axis] for axis in spatial]
  y = graph.node("Conv", [image, weight], **attributes)
  return graph.transposed(y, np.argsort(numbers.out_spec).tolist())


def _conv_transpose(graph, equation, image):
  """A convolution over an image with zeros between its pixels: the kernel is turned round."""
  kernel, p = equation.invars[1], equation.params
  numbers, groups = p["dimension_numbers"], p["feature_group_count"]
  name = graph.whole(kernel)
  if groups != 1 or any(n != 1 for n in p["window_strides"]) or name not in graph.known:
    raise ValueError("no ONNX form for a grouped, strided or computed transposed convolution")
  out, into, *spatial = numbers.rhs_spec
  weight = graph.known[name].transpose(into, out, *spatial)[:, :, ::-1, ::-1]
  sizes = [d * (n - 1) for n, d in zip(weight.shape[2:], p["rhs_dilation"])]
  pads = [n - lo for n, (lo, _) in zip(sizes, p["padding"])]
  pads += [n - hi for n, (_, hi) in zip(sizes, p["padding"])]
  more = [max(-n, 0) for n in pads[2:]]  # beyond what a transposed convolution reaches
  y = graph.node(
    "ConvTranspose", [image, graph.constant(weight)], strides=list(p["lhs_dilation"]),
    dilations=list(p["rhs_dilation"]), pads=[max(n, 0) for n in pads], output_padding=more,
    kernel_shape=list(weight.shape[2:]),
  )  # fmt: skip
  return graph.transposed(y, np.argsort(numbers.out_spec).tolist())


def _window(graph, equation):
  [x], p = equation.invars, equation.params
  window, strides, pads = p["window_dimensions"], p["window_strides"], p["padding"]
  if any(n != 1 for n in (*p["base_dilation"], *p["window_dilation"])):
    raise ValueError("no ONNX form for a dilated window")
  used = [i for i, n in enumerate(window) if n != 1 or strides[i] != 1]
  axes = [2, 3] if used == [3] else [1, 2]  # over channels, or over pixels
  if x.aval.ndim != 4 or not set(used) <= set(axes):
    raise ValueError(f"no ONNX form for a window of {window}")
  order = [i for i in range(4) if i not in axes] + axes
  largest = equation.primitive.name == "reduce_window_max"
  y, size = graph.whole(x), [window[axis] for axis in axes]
  inside = [pads[axis] for axis in axes]
  if any(map(any, (pads[i] for i in range(4) if i not in axes))) or any(
    max(pair) >= n for pair, n in zip(inside, size)
  ):  # more than a pool of ONNX may pad
    fill = np.array(-np.inf if largest else 0, x.aval.dtype)
    numbers = [lo for lo, _ in pads] + [hi for _, hi in pads]
    y = graph.node("Pad", [y, graph.whole_numbers(numbers), graph.constant(fill)])
    inside = [(0, 0)] * 2
  attributes = {"pads": [lo for lo, _ in inside] + [hi for _, hi in inside]}
  if not largest:
    attributes["count_include_pad"] = 1
  y = graph.node(
    "MaxPool" if largest else "AveragePool", [graph.transposed(y, order)], kernel_shape=size,
    strides=[strides[axis] for axis in axes], **attributes,
  )  # fmt: skip
  if not largest:
    counts = [
      np.convolve(np.pad(np.ones(x.aval.shape[i]), pair), np.ones(n), "valid")[:: strides[i]]
      for i, pair, n in zip(axes, inside, size)
    ]
    count = math.prod(size) / (counts[0][:, None] * counts[1])
    graph.padded[y] = np.expand_dims(count, [i for i in range(4) if i not in axes]).astype(
      x.aval.dtype
    )
  y = graph.transposed(y, np.argsort(order).tolist())
  if largest:
    return y
  return graph.node("Mul", [y, graph.constant(np.array(math.prod(size), x.aval.dtype))])


def _iota(graph, equation):
  shape, axis = equation.params["shape"], equation.params["dimension"]
  line = np.arange(shape[axis]).astype(equation.params["dtype"])
  whole = line.reshape([-1 if i == axis else 1 for i in range(len(shape))])
  return graph.constant(np.broadcast_to(whole, shape))


def _argmax(graph, equation):
  [x], [axis] = equation.invars, equation.params["axes"]
  found = graph.node("ArgMax", [graph.whole(x)], axis=axis, keepdims=0)
  return graph.node("Cast", [found], to=_kind(equation.params["index_dtype"]))


FORMS = {
  "argmax": _argmax, "broadcast_in_dim": _broadcast_in_dim, "clamp": _clamp,
  "concatenate": _concatenate, "conv_general_dilated": _conv, "convert_element_type": _cast,
  "dot_general": _dot, "expand_dims": _reshape, "gather": _gather,
  "integer_pow": _integer_pow, "iota": _iota,
  "pad": _pad, "reduce_window_max": _window, "reduce_window_sum": _window, "reshape": _reshape,
  "rev": _rev, "rsqrt": _rsqrt, "select_n": _select, "slice": _slice, "split": _split,
  "square": _square, "squeeze": _reshape, "transpose": _transpose,
}  # fmt: skip
