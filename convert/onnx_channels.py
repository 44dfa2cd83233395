"""Channels in whole blocks, as onnxruntime's convolutions lay them in memory.

Concatenations of other numbers of channels, some depthwise and all narrow grouped convolutions
leave that layout, each between two copies. So a convolution before one of them makes some channels
more, all zero, what comes after it has zeros in its weights for them, and narrow groups become one
group with zeros between them. NASNet-A-Mobile takes 0.5 to 0.6 of the time, ResNeXt-50 0.9.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BLOCK = 16  # with AVX-512; without it 8
DEPTHWISE_BLOCK = 4  # what a depthwise convolution's channels have to be divisible by
POOLS = ("MaxPool", "AveragePool")
POINTWISE = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh")
ALIKE = (*POOLS, "GlobalAveragePool", *POINTWISE)  # channels go through, each by itself
LIKE = (*ALIKE, "Add", "Mul", "BatchNormalization", "Transpose")
Node = tuple[str, list[str], str, dict[str, Any]]  # operation, inputs, output, attributes


def rounded(nodes: Sequence[Node], known: Mapping[str, np.ndarray]):
  """(nodes, arrays) that compute the same."""
  rounding = _Rounding(nodes, known)
  for node in nodes:
    rounding.add(*node)
  used = {name for _, inputs, _, _ in rounding.nodes for name in inputs}
  return rounding.nodes, {name: a for name, a in rounding.known.items() if name in used}


def _wanted(nodes: Sequence[Node], known: Mapping[str, np.ndarray]) -> set[str]:
  """Tensors that had better have whole blocks."""
  laid = set()  # whose channels are known
  for op, inputs, out, _ in nodes:
    of = _mixed(inputs, known) if op in ("Add", "Mul", "Concat") else inputs[:1]
    if op == "Conv" and inputs[1] in known or op in (*LIKE, "Concat") and laid.issuperset(of):
      laid.add(out)
  wanted, blocked = set(), set()
  for op, inputs, out, attributes in reversed(nodes):
    if op == "Conv" and _depthwise(known.get(inputs[1]), attributes):
      if out in wanted or attributes["group"] % DEPTHWISE_BLOCK:
        wanted.add(inputs[0])
    elif out in laid and (op == "Concat" and out in blocked or op in LIKE and out in wanted):
      wanted.update(inputs)
    if op in ("Conv", *POOLS) or op in (*LIKE, "Concat") and out in blocked:
      blocked.update(inputs)
  return wanted


def _mixed(inputs: Sequence[str], known: Mapping[str, np.ndarray]) -> list[str]:
  """Without the numbers that all channels are added to or multiplied by."""
  return [name for name in inputs if name not in known or known[name].size > 1]


def _halves(nodes: Sequence[Node], known: Mapping[str, np.ndarray], wanted: set[str]):
  """Concatenations of two convolutions that are no whole blocks.

  {their output: {a convolution's: how many channels of the other are before and behind its own}}.
  Such a one is the sum of both, each with zeros for the other: its channels lie side by side as
  those that it is to be added to.
  """
  makers = {node[2]: node for node in nodes}
  readers = Counter(name for _, inputs, _, _ in nodes for name in inputs)

  def half(name: str, axis: int) -> str | None:
    """The convolution that made a tensor for this alone, its channels in `axis`."""
    op, inputs, _, attributes = makers.get(name, ("", [], "", {}))
    if readers[name] == 1 and op == "Transpose":
      return half(inputs[0], attributes["perm"][axis])
    one = op == "Conv" and attributes["group"] == axis == 1 and known.keys() >= {*inputs[1:]}
    return name if one and readers[name] == 1 else None

  halves = {}
  for op, inputs, out, attributes in nodes:
    if op == "Concat" and len(inputs) == 2 and out in wanted:
      parts = [half(name, attributes["axis"]) for name in inputs]
      if not all(parts):
        continue
      first, second = (len(known[makers[part][1][1]]) for part in parts)
      if first % BLOCK or second % BLOCK:
        halves[out] = {parts[0]: (0, second), parts[1]: (first, 0)}
  return halves


def _depthwise(weight: np.ndarray | None, attributes: Mapping[str, Any]) -> bool:
  return weight is not None and weight.shape[1] == 1 and len(weight) == attributes["group"] > 1


def _merged(weight: np.ndarray, groups: int) -> tuple[np.ndarray, int] | None:
  """Groups of less than a block, some in one with zeros between them: (weight, groups)."""
  size, before = len(weight) // groups, weight.shape[1]
  some = BLOCK // min(size, before)
  if max(size, before) >= BLOCK or BLOCK % size or BLOCK % before or groups % some or some > 8:
    return None
  parts = weight.reshape(groups // some, some, size, *weight.shape[1:])
  out = np.zeros((*parts.shape[:3], some, *weight.shape[1:]), weight.dtype)
  for i in range(some):
    out[:, i, :, i] = parts[:, i]
  return out.reshape(len(weight), some * before, *weight.shape[2:]), groups // some


class _Rounding:
  """Nodes under construction."""

  def __init__(self, nodes: Sequence[Node], known: Mapping[str, np.ndarray]):
    self.known = dict(known)
    self.wanted = _wanted(nodes, known)
    self.halves = _halves(nodes, known, self.wanted)
    self.beside = {part: of for parts in self.halves.values() for part, of in parts.items()}
    self.nodes: list[Node] = []
    # Of a tensor: the axis of its channels, and which one each is, -1 what was added.
    self.layouts: dict[str, tuple[int, np.ndarray]] = {}

  def add(self, op: str, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
    layouts = [self.layouts.get(name) for name in inputs]
    form = self.FORMS.get(op)
    node = form(self, op, inputs, out, attributes, layouts) if form else None
    if node is None:  # takes no blocks
      node = op, [self.exact(name) for name in inputs], out, attributes
    self.nodes.append(node)

  def exact(self, name: str) -> str:
    """Without what was added."""
    axis, order = self.layouts.get(name, (0, np.zeros(0)))
    if (order >= 0).all():
      return name
    exact = f"{name}:exact"
    if exact not in self.layouts:
      chosen = self.constant(np.flatnonzero(order >= 0))
      self.nodes.append(("Gather", [name, chosen], exact, {"axis": axis}))
      self.layouts[exact] = axis, order[order >= 0]
    return exact

  def constant(self, array: np.ndarray) -> str:
    name = f"rounded_{len(self.known)}"
    self.known[name] = array
    return name

  def taken(self, name: str, order: np.ndarray, axis: int, added: float = 0) -> str:
    """A known array in the order of some channels, with a number for those that were added."""
    if (order >= 0).all():
      return name
    array = np.take(self.known[name], np.maximum(order, 0), axis)
    new = np.expand_dims(order < 0, [i for i in range(array.ndim) if i != axis])
    return self.constant(np.where(new, np.array(added, array.dtype), array))

  def _alike(self, op, inputs, out, attributes, layouts):
    if layouts[0] is None:
      return None
    self.layouts[out] = layouts[0]
    return op, inputs, out, attributes

  def _transpose(self, op, inputs, out, attributes, layouts):
    if layouts[0] is None:
      return None
    axis, order = layouts[0]
    self.layouts[out] = attributes["perm"].index(axis), order
    return op, inputs, out, attributes

  def _batchnormalization(self, op, inputs, out, attributes, layouts):
    if layouts[0] is None:
      return None
    self.layouts[out] = layouts[0]
    image, *arrays, variance = inputs
    arrays = [self.taken(name, layouts[0][1], 0) for name in arrays]
    arrays.append(self.taken(variance, layouts[0][1], 0, 1))  # a zero would be divided by
    return op, [image, *arrays], out, attributes

  def _add(self, op, inputs, out, attributes, layouts):
    layouts = [self.layouts.get(name) for name in _mixed(inputs, self.known)]
    if not layouts or any(layout is None for layout in layouts):
      return None
    (axis, order), (other, others) = layouts[0], layouts[-1]
    if axis != other or not np.array_equal(order, others):
      return None
    self.layouts[out] = axis, order
    return op, inputs, out, attributes

  def _concat(self, op, inputs, out, attributes, layouts):
    if any(layout is None or layout[0] != attributes["axis"] for layout in layouts):
      return None
    axis, orders = attributes["axis"], [order for _, order in layouts]
    ends = np.cumsum([0, *((order >= 0).sum() for order in orders)])
    orders = [np.where(order < 0, -1, order + end) for order, end in zip(orders, ends)]
    if out in self.halves:
      self.layouts[out] = axis, np.max(orders, 0)
      return "Add", inputs, out, {}
    self.layouts[out] = axis, np.concatenate(orders)
    return op, inputs, out, attributes

  def _conv(self, op, inputs, out, attributes, layouts):
    weight = self.known.get(inputs[1])
    if weight is None or any(name not in self.known for name in inputs[1:]):
      return None
    image, *arrays = inputs
    before = layouts[0][1] if layouts[0] else np.arange(0)
    if _depthwise(weight, attributes):
      after = before if layouts[0] else np.arange(len(weight))
      attributes = {**attributes, "group": len(after)}
    elif attributes["group"] > 1:
      image, after = self.exact(image), np.arange(len(weight))
      if merged := _merged(weight, attributes["group"]):
        arrays[0], attributes = self.constant(merged[0]), {**attributes, "group": merged[1]}
    else:
      begin, behind = self.beside.get(out, (0, 0))
      if out in self.wanted:
        behind += -(begin + len(weight) + behind) % BLOCK
      after = np.pad(np.arange(len(weight)), (begin, behind), constant_values=-1)
      arrays[0] = self.taken(arrays[0], before, 1)
    arrays = [self.taken(name, after, 0) for name in arrays]
    self.layouts[out] = 1, after
    return op, [image, *arrays], out, attributes

  FORMS = {
    **dict.fromkeys(ALIKE, _alike), "Add": _add, "BatchNormalization": _batchnormalization,
    "Concat": _concat, "Conv": _conv, "Mul": _add, "Transpose": _transpose,
  }  # fmt: skip
