"""Operations that runtimes know as one node, where JAX has two or three.

Each function sees what is about to be written, an operation on the tensor `name` and the known
array `other`, looks at the nodes that made `name`, and returns the tensor of one node for all, or
None. What is left without a reader is not written.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np


def joined(graph, op: str, name: str, other: str) -> str | None:
  return next((out for f in FORMS.get(op, ()) if (out := f(graph, op, name, other))), None)


def _relu(graph, op, name, other):
  known = graph.known[other]
  return graph.node("Relu", [name]) if known.size == 1 and not known.any() else None


def _nothing(graph, op, name, other):
  """x + 0, as Python's sum begins"""
  known = graph.known[other]
  return name if known.shape == () and not known.any() else None


def _clip(graph, op, name, other):
  before, inputs, _ = graph.maker(name)
  known = graph.known[other]
  if before != "Relu" or known.size != 1:
    return None
  ends = np.zeros((), known.dtype), known.reshape(())
  return graph.node("Clip", [inputs[0], *map(graph.constant, ends)])


def _hard_sigmoid(graph, op, name, other):
  """clip(x + a, 0, b) / b"""
  clip, clipped, _ = graph.maker(name)
  add, added, _ = graph.maker(clipped[0]) if clip == "Clip" else ("", [], {})
  ends = [graph.known.get(end) for end in (*clipped[1:], *added[1:], other)]
  if add != "Add" or len(ends) != 4 or any(end is None or end.size != 1 for end in ends):
    return None
  low, high, shift, by = (end.item() for end in ends)
  if low != 0 or high != by:
    return None
  return graph.node("HardSigmoid", added[:1], alpha=1 / by, beta=shift / by)


def _bias(graph, op, name, other):
  turn, turned, attributes = graph.maker(name)
  conv, inputs, own = graph.maker(turned[0]) if turn == "Transpose" else ("", [], {})
  if conv != "Conv" or len(inputs) != 2 or inputs[1] not in graph.known:
    return None
  channels, axes = len(graph.known[inputs[1]]), attributes["perm"]
  if graph.known[other].shape != tuple(channels if axis == 1 else 1 for axis in axes):
    return None
  bias = graph.constant(graph.known[other].reshape(-1))
  return graph.transposed(graph.node("Conv", [*inputs, bias], **own), axes)


def _norm(graph, op, name, other):
  """x * scale + bias, for each channel of [b h w c]"""
  before, inputs, _ = graph.maker(name)
  bias = graph.known[other]
  scale = graph.known.get(inputs[1]) if before == "Mul" else None
  if scale is None or scale.shape != bias.shape or scale.shape != (1, 1, 1, scale.size):
    return None
  arrays = scale.ravel(), bias.ravel(), np.zeros_like(bias.ravel()), np.ones_like(bias.ravel())
  image = graph.transposed(inputs[0], (0, 3, 1, 2))
  out = graph.node("BatchNormalization", [image, *map(graph.constant, arrays)], epsilon=0.0)
  return graph.transposed(out, (0, 2, 3, 1))


def _scaled_windows(graph, op, name, other):
  """A mean over windows times their size, which is a sum, by how many pixels are in each."""
  before, inputs, _ = graph.maker(name)
  turn, turned, attributes = graph.maker(inputs[0]) if before == "Mul" else ("", [], {})
  pool, image, own = graph.maker(turned[0]) if turn == "Transpose" else ("", [], {})
  if pool != "AveragePool" or inputs[1] not in graph.known:
    return None
  first, known = graph.known[inputs[1]], graph.known[other]
  factor = (first * known if op == "Mul" else first / known).astype(first.dtype)
  if (factor == 1).all():
    return inputs[0]
  if factor.shape == graph.padded[turned[0]].shape and (factor == graph.padded[turned[0]]).all():
    mean = graph.node("AveragePool", image, **{**own, "count_include_pad": 0})
    return graph.transposed(mean, attributes["perm"])
  return graph.node("Mul", [inputs[0], graph.constant(factor)])


def _mean(graph, op, name, other):
  """Over all pixels of [b h w c]: [b c], or [b 1 1 c]"""
  before, inputs, _ = graph.maker(name)
  total = inputs[0] if before == "Reshape" else name
  if total not in graph.pixels or graph.known[other].ravel().tolist() != graph.pixels[total]:
    return None
  if before == "Reshape" and graph.known[inputs[1]].tolist()[1:3] != [1, 1]:
    return None
  image = graph.transposed(graph.maker(total)[1][0], (0, 3, 1, 2))
  out = graph.node("GlobalAveragePool", [image])
  if before == "Reshape":
    return graph.transposed(out, (0, 2, 3, 1))
  return graph.node("Flatten", [out], axis=1)


FORMS = {
  "Add": (_nothing, _bias, _norm), "Div": (_hard_sigmoid, _scaled_windows, _mean), "Max": (_relu,),
  "Min": (_clip,), "Mul": (_scaled_windows,),
}  # fmt: skip


def leaky(graph, which: str, yes: str, no: str) -> str | None:
  """x where x >= 0, else a multiple of it"""
  compare, compared, _ = graph.maker(which)
  scale, scaled, _ = graph.maker(no)
  zero, slope = (graph.known.get(names[-1]) if names else None for names in (compared, scaled))
  if compare != "GreaterOrEqual" or scale != "Mul" or zero is None or slope is None:
    return None
  if zero.size != 1 or zero.any() or slope.size != 1 or not yes == compared[0] == scaled[0]:
    return None
  return graph.node("LeakyRelu", [yes], alpha=slope.item())


def shuffled(graph, name: str, shape) -> str | None:
  """Channels of [b h w c] in another order, which is written as (b h w g n) -> (b h w n g)."""
  turn, turned, attributes = graph.maker(name)
  split, inputs, _ = graph.maker(turned[0]) if turn == "Transpose" else ("", [], {})
  if split != "Reshape" or attributes["perm"] != [0, 1, 2, 4, 3] or len(shape) != 4:
    return None
  _, height, width, groups, each = graph.known[inputs[1]]
  if tuple(shape[1:]) != (height, width, groups * each):
    return None
  order = np.arange(groups * each).reshape(groups, each).T.ravel()
  image = graph.transposed(inputs[0], (0, 3, 1, 2))
  out = graph.node("Gather", [image, graph.whole_numbers(order)], axis=1)
  return graph.transposed(out, (0, 2, 3, 1))


def repeated(graph, name: str, shape) -> str | None:
  """Rows or columns of [b h w c], each several times: (b h w c) -> (b h n w c) -> (b h*n w c)"""
  expand, expanded, _ = graph.maker(name)
  if expand != "Expand":
    return None
  (form, formed, _), (join, joined, _) = map(graph.maker, expanded)
  before = graph.known.get(formed[1]) if form == "Reshape" else None
  after = graph.known.get(joined[1] if join == "Concat" else expanded[1])
  if before is None or after is None or len(before) != 5 or len(shape) != 4:
    return None
  before, after = list(before[1:]), list(after[-4:])
  changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
  if changed not in ([1], [2]) or before[changed[0]] != 1:
    return None
  [axis] = changed
  times, grown = after[axis], [n for i, n in enumerate(before) if i != axis]
  grown[axis - 1] *= times
  if list(shape[1:]) != grown:
    return None
  image, scales = graph.transposed(formed[0], (0, 3, 1, 2)), np.ones(4, np.float32)
  turn, turned, _ = graph.maker(formed[0])
  resize, resized, _ = graph.maker(turned[0]) if turn == "Transpose" else ("", [], {})
  if resize == "Resize":  # rows and columns at once
    image, scales = resized[0], graph.known[resized[2]].copy()
  scales[axis + 1] *= times
  out = graph.node(
    "Resize", [image, "", graph.constant(scales)], mode="nearest", nearest_mode="floor",
    coordinate_transformation_mode="asymmetric",
  )  # fmt: skip
  return graph.transposed(out, (0, 2, 3, 1))


@dataclasses.dataclass(frozen=True)
class Pick:
  """Some of the pixels of `source`, [b h w c] float32; what lies outside of it is zero."""

  source: str
  sizes: Sequence[int]  # of the source: h, w, c
  steps: Sequence[tuple[int, int, int]]  # (first, how far to the next, how many) of rows, columns


def padded(graph, name: str, aval, config) -> Pick | None:
  """Of a border of zeros."""
  (none, rows, columns, nor), whole = config, _all_pixels(name, aval)
  if whole is None or any(none) or any(nor) or name in graph.picks:
    return None
  steps = [(-lo, 1, n + lo + hi) for (lo, hi, _), n in zip((rows, columns), whole.sizes)]
  return dataclasses.replace(whole, steps=steps)


def sliced(graph, name: str, aval, cut) -> Pick | None:
  """`cut` has a row of (axis, begin, end, step) for each axis that is cut."""
  whole = graph.picks.get(name) or _all_pixels(name, aval)
  if whole is None or not {axis for axis, *_ in cut} <= {1, 2}:
    return None
  steps = list(whole.steps)
  for axis, begin, end, step in cut:
    first, each, _ = steps[axis - 1]
    steps[axis - 1] = first + each * begin, each * step, len(range(begin, end, step))
  return dataclasses.replace(whole, steps=steps)


def _all_pixels(name: str, aval) -> Pick | None:
  sizes = aval.shape[1:]
  if len(aval.shape) != 4 or aval.dtype != np.float32 or not all(isinstance(n, int) for n in sizes):
    return None
  return Pick(name, sizes, [(0, 1, n) for n in sizes[:2]])


def picked(graph, pick: Pick) -> str | None:
  """Every second pixel and such: a pool of one pixel, or of each channel a kernel with one tap.

  Runtimes have no slices in the blocked layout of their convolutions, but pools and kernels.
  """
  first, strides, counts = zip(*pick.steps)
  taps = [max(i, 0) for i in first]
  before = [max(-i, 0) for i in first]
  after = [max(i + s * (n - 1) + 1 - h, 0) for (i, s, n), h in zip(pick.steps, pick.sizes)]
  ends = zip(pick.sizes, before, after, taps, strides)
  reached = tuple((h + lo + hi - tap - 1) // s + 1 for h, lo, hi, tap, s in ends)
  if max(strides) == 1 or max(taps) > 1 or reached != counts:
    return None
  attributes = dict(strides=list(strides), pads=before + after)
  attributes["kernel_shape"] = [tap + 1 for tap in taps]
  image = graph.transposed(pick.source, (0, 3, 1, 2))
  if any(taps + before + after):
    kernel = np.zeros((pick.sizes[2], 1, *attributes["kernel_shape"]), np.float32)
    kernel[..., -1, -1] = 1
    weight = graph.constant(kernel)
    out = graph.node("Conv", [image, weight], group=len(kernel), dilations=[1, 1], **attributes)
  else:
    out = graph.node("MaxPool", [image], **attributes)
  return graph.transposed(out, (0, 2, 3, 1))
