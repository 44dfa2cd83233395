"""Fills a model's variables from a foreign checkpoint, and the way back: rename, lay out, account
for every array."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import re
import types

from flax import traverse_util
import numpy as np

from convert import files

Rename = tuple[str, str | Callable[[re.Match], str]]  # applied with re.sub, in order
Shape = tuple[int, ...]

# Leaf in the file -> where it may live in the model; the first that exists there is meant.
TORCH_LEAVES = {
  "weight": ("params/{}/kernel", "params/{}/scale", "params/{}/embedding"),
  "bias": ("params/{}/bias",),
  "running_mean": ("batch_stats/{}/mean",),
  "running_var": ("batch_stats/{}/var",),
}
KERAS_LEAVES = {
  "kernel": ("params/{}/kernel",),
  "depthwise_kernel": ("params/{}/kernel",),
  "pointwise_kernel": ("params/{}/kernel",),
  "bias": ("params/{}/bias",),
  "gamma": ("params/{}/scale",),
  "beta": ("params/{}/bias",),
  "moving_mean": ("batch_stats/{}/mean",),
  "moving_variance": ("batch_stats/{}/var",),
}
TFLITE_LEAVES = {
  "filter": ("params/{}/kernel",),
  "depthwise_filter": ("params/{}/kernel",),
  "weights": ("params/{}/kernel",),
  "bias": ("params/{}/bias",),
}
ONNX_LEAVES = TORCH_LEAVES | {"kernel": ("params/{}/kernel",)}


@dataclasses.dataclass(frozen=True)
class Operation:
  """What is done to one array instead of the layout, and what undoes it."""

  ours: Callable[[np.ndarray], np.ndarray]
  # Of our array and the shape of the original's; classes and channels may be others than there.
  back: Callable[[np.ndarray, Shape], np.ndarray]

  def __call__(self, array: np.ndarray) -> np.ndarray:
    return self.ours(array)

  def then(self, other: "Operation") -> "Operation":
    """This one, and `other` on what comes out of it; neither may change the original's rank."""
    return Operation(
      lambda array: other(self(array)),
      lambda array, shape: self.back(other.back(array, shape), shape),
    )


@dataclasses.dataclass(frozen=True)
class Layout:
  """What is done to every array, given the leaf of its foreign name, and what undoes it."""

  ours: Callable[[np.ndarray, str], np.ndarray]
  back: Callable[[np.ndarray, str, Shape], np.ndarray]

  def __call__(self, array: np.ndarray, leaf: str) -> np.ndarray:
    return self.ours(array, leaf)


def _torch_axes(array: np.ndarray, leaf: str, axes: tuple[int, ...]) -> np.ndarray:
  axes = {4: axes, 2: (1, 0)}.get(array.ndim) if leaf == "weight" else None
  return array.transpose(axes) if axes else array


def _split_depthwise(array: np.ndarray, shape: Shape) -> np.ndarray:
  return array.reshape(*array.shape[:2], -1, shape[3])


# [h w c m] -> [h w 1 c*m]: Keras's depthwise kernels.
depthwise = Operation(lambda array: array.reshape(*array.shape[:2], 1, -1), _split_depthwise)
# OIHW -> HWIO and OI -> IO; everything else as it is.
torch_layout = Layout(
  lambda array, leaf: _torch_axes(array, leaf, (2, 3, 1, 0)),
  lambda array, leaf, shape: _torch_axes(array, leaf, (3, 2, 0, 1)),
)
keras_layout = Layout(
  lambda array, leaf: depthwise(array) if leaf == "depthwise_kernel" else array,
  lambda array, leaf, shape: depthwise.back(array, shape) if leaf == "depthwise_kernel" else array,
)
TFLITE_AXES = {"filter": (1, 2, 3, 0), "depthwise_filter": (1, 2, 0, 3), "weights": (1, 0)}
TFLITE_BACK = {"filter": (3, 0, 1, 2), "depthwise_filter": (2, 0, 1, 3), "weights": (1, 0)}
# OHWI -> HWIO, [1 h w c] -> [h w 1 c], [out in] -> [in out].
tflite_layout = Layout(
  lambda array, leaf: array.transpose(TFLITE_AXES.get(leaf)) if leaf != "bias" else array,
  lambda array, leaf, shape: array.transpose(TFLITE_BACK.get(leaf)) if leaf != "bias" else array,
)


@dataclasses.dataclass(frozen=True)
class Rules:
  """How one dialect names and lays out the arrays of one family."""

  renames: tuple[Rename, ...]  # foreign name -> "module/path/leaf"; "" drops the array
  leaves: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
  layout: Layout = torch_layout
  operations: tuple[tuple[str, Operation], ...] = ()  # regex of our path -> what to do
  # Layer names that Keras counts by itself, from wherever its counter stood: only their order is
  # meant. `renames` see them counted from 0: stem_0, stem_1 ...
  counted: tuple[str, ...] = ()
  # Regex of a foreign name -> how many equal arrays that one holds behind each other; they become
  # name.0, name.1 ... before anything else is done.
  stacked: tuple[tuple[str, int], ...] = ()

  def place(self, name: str, have) -> tuple[str, str]:
    """(path in the model or "", leaf) of a foreign name; `have` are the model's paths."""
    path = name
    try:
      for pattern, new in self.renames:
        path = re.sub(pattern, new, path)
    except LookupError:  # a table of the rules does not know the name: no array of this network
      return name, ""
    if not path:
      return "", ""
    module, _, leaf = path.rpartition("/")
    options = [p.format(module) for p in self.leaves.get(leaf, ())]
    return next((p for p in options if p in have), path), leaf

  def shape(self, array: np.ndarray, path: str, leaf: str) -> np.ndarray:
    for pattern, operation in self.operations:
      if re.fullmatch(pattern, path):
        return operation(array)
    return self.layout(array, leaf)

  def back(self, array: np.ndarray, path: str, leaf: str, shape: Shape) -> np.ndarray:
    """Undoes `shape`; the original's array was of that shape, but for classes and channels."""
    for pattern, operation in self.operations:
      if re.fullmatch(pattern, path):
        return operation.back(array, shape)
    return self.layout.back(array, leaf, shape)


def unstack(source: Mapping[str, np.ndarray], rules: Rules) -> dict[str, np.ndarray]:
  """`source` with the arrays apart that `rules` call stacked."""
  out = {}
  for name, array in source.items():
    count = next((n for pattern, n in rules.stacked if re.fullmatch(pattern, name)), 0)
    if count and array.size and array.size % count == 0:
      parts = array.reshape(count, -1, *array.shape[2:])
      out |= {f"{name}.{i}": part for i, part in enumerate(parts)}
    else:
      out[name] = array
  return out


def restack(arrays: Mapping[str, np.ndarray], like: Mapping[str, Shape], rules: Rules):
  """Undoes `unstack`: those arrays of `like` that have come, in its order."""
  out = {}
  for name, shape in like.items():
    count = next((n for pattern, n in rules.stacked if re.fullmatch(pattern, name)), 0)
    if count and f"{name}.0" in arrays:
      out[name] = np.stack([arrays[f"{name}.{i}"] for i in range(count)]).reshape(shape)
    elif name in arrays:
      out[name] = arrays[name]
  return out


def recount(names: Iterable[str], stems: tuple[str, ...]) -> dict[str, str]:
  """{name: name}, with the numbers of layers `stem`, `stem_1` ... replaced by their ranks."""
  new = {name: name for name in names}
  for stem in stems:
    found = {name: m for name in new if (m := re.match(rf"{stem}(?:_(\d+))?(?=/)", name))}
    ranks = {number: i for i, number in enumerate(sorted({int(m[1] or 0) for m in found.values()}))}
    for name, m in found.items():
      new[name] = f"{stem}_{ranks[int(m[1] or 0)]}{name[m.end() :]}"
  return new


Norms = Mapping[str, tuple[str, float]]  # path of a convolution -> of the norm behind it, epsilon
NONE: Norms = types.MappingProxyType({})


def folded(names: Iterable[str], target, rules: Rules, norms: Norms) -> Norms:
  """Those of `norms` that a checkpoint with these names has folded into its convolutions.

  The convolution has a bias, and the norm no array at all.
  """
  want = traverse_util.flatten_dict(target, sep="/")
  counted = recount(names, rules.counted)
  paths = {rules.place(new, want)[0].removeprefix("params/") for new in counted.values()}
  there = {path.removeprefix("batch_stats/").rpartition("/")[0] for path in paths}
  return {
    conv: (norm, eps) for conv, (norm, eps) in norms.items()
    if f"{conv}/bias" in paths and norm not in there
  }  # fmt: skip


def convert(source: Mapping[str, np.ndarray], target, rules: Rules, folded: Norms = NONE) -> dict:
  """Variables of `target`'s structure, each array taken from `source`.

  Args:
    source: arrays by their foreign name, in the foreign layout.
    target: the model's variables as ShapeDtypeStruct, from `jax.eval_shape(model.init, ...)`.
    rules: the dialect of the source.
    folded: norms that `source` lacks; they become identities, and what is left of them, the bias
      of the convolution before, becomes theirs where that has none.

  Raises:
    ValueError: lists every array that is unused, missing, taken twice, misshapen or no real number.
  """
  want = traverse_util.flatten_dict(target, sep="/")
  got, faults = {}, []
  source = unstack(source, rules)
  names = recount(source, rules.counted)
  for name, array in source.items():
    path, leaf = rules.place(names[name], want)
    if not path:
      continue
    if path not in want and path.removesuffix("/bias") in folded:
      path = f"params/{folded[path.removesuffix('/bias')][0]}/bias"
    if path not in want:
      faults.append(f"unused  {name} -> {path}")
      continue
    if path in got:
      faults.append(f"twice   {name} -> {path}")
      continue
    spec = want[path]
    try:
      got[path] = rules.shape(array, path, leaf)
    except (ValueError, IndexError):  # an operation that needs another shape to begin with
      got[path] = array
    if got[path].shape != spec.shape:
      faults.append(f"shape   {path} {spec.shape} <- {name} {array.shape}")
    elif got[path].dtype != spec.dtype:
      if array.dtype.kind in "?biuc":
        faults.append(f"type    {path} {spec.dtype} <- {name} {array.dtype}")
      got[path] = got[path].astype(spec.dtype)  # some files store float16
    files.forget(array)
  for norm, eps in folded.values():
    got = identity(norm, eps, want) | got
  faults += [f"missing {path} {want[path].shape}" for path in want.keys() - got.keys()]
  if faults:
    raise ValueError("the checkpoint does not fit the model:\n  " + "\n  ".join(sorted(faults)))
  return traverse_util.unflatten_dict(got, sep="/")


def back(
  variables, like: Mapping[str, Shape], rules: Rules, folded: Norms = NONE
) -> dict[str, np.ndarray]:
  """The way back of `convert`: arrays by their foreign name, in the order of `like`.

  Args:
    variables: of the model, {"params": ..., "batch_stats": ...}.
    like: names and shapes of the original's arrays; those that the rules drop are left out.
    rules: the dialect of the original.
    folded: norms that the original has folded into its convolutions, as they will be here.

  Raises:
    ValueError: lists every array without a name, name without an array, and array of another rank.
  """
  have = fold(traverse_util.flatten_dict(variables, sep="/"), folded)
  out, used, faults = {}, set(), []
  empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in like.items()}
  parts = {name: array.shape for name, array in unstack(empty, rules).items()}
  names = recount(parts, rules.counted)
  for name, shape in parts.items():
    path, leaf = rules.place(names[name], have)
    if not path:
      continue
    if path not in have:
      faults.append(f"missing {path} -> {name} {shape}")
      continue
    used.add(path)
    try:
      out[name] = rules.back(np.asarray(have[path]), path, leaf, shape)
    except (ValueError, IndexError):  # an operation that needs another shape to begin with
      out[name] = np.asarray(have[path])
    if len(out[name].shape) != len(shape):
      faults.append(f"shape   {path} {have[path].shape} -> {name} {shape}")
  faults += [f"unused  {path} {have[path].shape}" for path in have.keys() - used]
  if faults:
    raise ValueError("the model does not fit these names:\n  " + "\n  ".join(sorted(faults)))
  return restack(out, like, rules)


# The few true operations on arrays, with what undoes them.


def root(var: np.ndarray, eps: float) -> np.ndarray:
  """What a batch norm divides by; an epsilon that is no common one says it itself."""
  return eps.root(var) if hasattr(eps, "root") else np.sqrt(var + var.dtype.type(eps))


def identity(norm: str, eps: float, want: Mapping) -> dict[str, np.ndarray]:
  """The arrays of a batch norm that changes nothing, to the last bit: it divides by 1."""
  one, added = np.float32(1), hasattr(eps, "root")
  near = np.float32((1 - eps) ** 2 if added else 1 - eps)
  near = (near, np.nextafter(near, np.float32(0)), np.nextafter(near, one))
  var = next(v for v in near if (eps.root(v) if added else v + np.float32(eps)) == one)
  paths = {
    f"params/{norm}/scale": one, f"params/{norm}/bias": np.float32(0),
    f"batch_stats/{norm}/mean": np.float32(0), f"batch_stats/{norm}/var": var,
  }  # fmt: skip
  return {path: np.full(want[path].shape, v) for path, v in paths.items() if path in want}


def fold(
  have: Mapping[str, np.ndarray], folded: Norms, others: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
  """Undoes `identity`: kernels and biases that do what a norm behind them did.

  `others` {path: epsilon} are norms behind nothing; a scale and a bias are left of them.
  """
  out = dict(have)

  def line(norm, eps):  # x * scale + bias
    mean, var = (out.pop(f"batch_stats/{norm}/{name}") for name in ("mean", "var"))
    scale = out.pop(f"params/{norm}/scale", np.float32(1)) / root(var, eps)
    return scale, mean, out.pop(f"params/{norm}/bias")

  for conv, (norm, eps) in folded.items():
    scale, mean, after = line(norm, eps)
    bias = out.pop(f"params/{conv}/bias", np.float32(0))
    out[f"params/{conv}/bias"] = (bias - mean) * scale + after
    out[f"params/{conv}/kernel"] = out[f"params/{conv}/kernel"] * scale
  for norm, eps in (others or {}).items():
    scale, mean, after = line(norm, eps)
    out[f"params/{norm}/scale"], out[f"params/{norm}/bias"] = scale, after - mean * scale
  return out


def chw_to_hwc(channels: int, height: int, width: int) -> Operation:
  """[out c*h*w] -> [h*w*c out]: the first dense layer after a flatten."""

  def ours(array):
    return _flatten_conv(array.reshape(-1, channels, height, width))

  def back(array, shape):
    out = array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1)
    return out.reshape(-1, *shape[1:])

  return Operation(ours, back)


def _squeeze(array: np.ndarray) -> np.ndarray:
  return array[:, :, 0, 0].transpose() if array.shape[2:] == (1, 1) else array


def _flatten_conv(array: np.ndarray) -> np.ndarray:
  if array.ndim != 4:
    return array.transpose()
  out = np.empty((*array.shape[2:], *array.shape[1::-1]), array.dtype)
  for i in range(0, len(array), 32):  # all at once takes VGG's 100 million three times as long
    out[..., i : i + 32] = array[i : i + 32].transpose(2, 3, 1, 0)
  return out.reshape(-1, len(array))


def _unflatten_conv(array: np.ndarray, shape: Shape) -> np.ndarray:
  if len(shape) != 4:
    return array.transpose()
  return array.reshape(*shape[2:], -1, array.shape[1]).transpose(3, 2, 0, 1)


# [out in 1 1] -> [in out]: a 1x1 convolution that is a dense layer here.
squeeze = Operation(
  _squeeze, lambda array, shape: array.transpose().reshape(*array.shape[::-1], *shape[2:])
)
# [4*features ...]: an LSTM's gates in ONNX's order i, o, f, c to torch's i, f, g, o.
onnx_gates = Operation(
  lambda array: array.reshape(4, -1)[[0, 2, 3, 1]].reshape(array.shape),
  lambda array, shape: array.reshape(4, -1)[[0, 3, 1, 2]].reshape(array.shape),
)
# [in out h w] -> [h w in out]: a transposed convolution of torch.
deconv = Operation(
  lambda array: array.transpose(2, 3, 0, 1), lambda array, shape: array.transpose(2, 3, 0, 1)
)
# [out in] -> [in out].
transpose = Operation(lambda array: array.transpose(), lambda array, shape: array.transpose())
# [1 1 in out] -> [in out]: the same of Keras.
squeeze_keras = Operation(
  lambda array: array.reshape(array.shape[-2:]),
  lambda array, shape: array.reshape(*shape[:-2], *array.shape),
)
# [out 1 1 in] -> [in out]: the same of TFLite.
squeeze_tflite = Operation(
  lambda array: array.reshape(array.shape[0], -1).transpose(),
  lambda array, shape: array.transpose().reshape(-1, *shape[1:-1], array.shape[0]),
)
# [out in h w] -> [h*w*in out]: a convolution over a whole map that is a dense layer here.
flatten_conv = Operation(_flatten_conv, _unflatten_conv)
# [h w in out] -> [h*w*in out]: a convolution over the whole map that is a dense layer here.
flatten_keras = Operation(
  lambda array: array.reshape(-1, array.shape[-1]),
  lambda array, shape: array.reshape(*shape[:-1], array.shape[-1]),
)
