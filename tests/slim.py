"""TF-slim's own networks without TensorFlow: its code runs, its layers are stood in for by torch's.

What a layer of TensorFlow does is a fact of a few lines (SAME puts the odd pixel behind, an average
leaves padding out); what the networks are and what they call their variables comes from their code.
"""

from collections.abc import Mapping
import contextlib
import functools
import types

import numpy as np

from tests import wheels

NAMES = {"alexnet_v2": "alexnet", "vgg_16": "vgg", "vgg_19": "vgg", "inception_v1": "inception_v1",
         "inception_v2": "inception_v2", "inception_v3": "inception_v3"}  # fmt: skip
SCOPES = {
  "alexnet": "alexnet_v2_arg_scope", "mobilenet": "training_scope",
  "build_nasnet_mobile": "nasnet_mobile_arg_scope",
  "build_nasnet_large": "nasnet_large_arg_scope", "build_pnasnet_large": "pnasnet_large_arg_scope",
}  # fmt: skip
NASNET = ("nasnet.nasnet_utils", "nasnet.nasnet")
RESEARCH = {  # what lies in no wheel of TF-slim -> modules, the network's last
  "mobilenet_v1": ("mobilenet_v1",), "inception_v4": ("inception_utils", "inception_v4"),
  "inception_resnet_v2": ("inception_resnet_v2",),
  "mobilenet": ("mobilenet.conv_blocks", "mobilenet.mobilenet", "mobilenet.mobilenet_v2"),
  "build_nasnet_mobile": NASNET, "build_nasnet_large": NASNET,
  "build_pnasnet_large": (*NASNET, "nasnet.pnasnet"),
}  # fmt: skip
ARG_SCOPE = "tf_slim.ops.arg_scope"
EPS_SPREAD = 1e-3  # as in parity.randomize


class Runtime:
  """Variables by name, made when a layer first asks for them; and the layers."""

  def __init__(self, seed: int = 0, thin: int = 1):
    """`thin` divides the features of all layers but the last."""
    self.rng, self.variables, self.path = np.random.default_rng(seed), {}, []
    self.thin, self.asked = thin, {}

  def variable(self, name: str, make) -> "torch.Tensor":  # noqa: F821
    import torch

    name = "/".join([*self.path, name])
    if name not in self.variables:
      self.variables[name] = np.asarray(make(), np.float32)
    return torch.from_numpy(self.variables[name])

  @contextlib.contextmanager
  def scope(self, name=None, default_name=None, values=None, reuse=None):
    before = self.path
    if isinstance(name, types.SimpleNamespace):  # a scope that was left
      self.path = name.name.split("/")
    else:
      self.path = [*before, name or self.unused([*before, default_name])]
    try:
      path = "/".join(self.path)
      yield types.SimpleNamespace(name=path, original_name_scope=f"{path}/")
    finally:
      self.path = before

  def unused(self, path: list[str]) -> str:
    """The last name of `path`, with a number behind it if it was asked for before."""
    path = "/".join(path)
    self.asked[path] = count = self.asked.get(path, -1) + 1
    return path.rpartition("/")[2] + (f"_{count}" if count else "")

  def conv2d(
    self, inputs, num_outputs, kernel_size, stride=1, padding="SAME", rate=1,
    activation_fn="relu", normalizer_fn=None, normalizer_params=None, scope=None,
    biases_initializer="zeros", **_,
  ):  # fmt: skip
    import torch

    num_outputs //= 1 if activation_fn is None else self.thin
    size = pair(kernel_size)
    shape, norm = (*size, inputs.shape[-1], num_outputs), normalizer_fn
    goal = 1.0 if norm is None and activation_fn is None else 0.2

    def convolve(kernel):
      x = padded(inputs, size, stride, rate) if padding == "SAME" else inputs
      x = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), None, stride, 0, rate
      )
      return x.permute(0, 2, 3, 1)

    def kernel():
      drawn = self.rng.normal(size=shape).astype(np.float32)
      return drawn * (goal / (float(convolve(torch.from_numpy(drawn)).std()) + 1e-6))

    with self.scope(scope, "Conv"):
      x = convolve(self.variable("weights", kernel))
      if norm is not None:
        x = norm(x, **(normalizer_params or {}))
      elif biases_initializer is not None:
        x = x + self.variable("biases", lambda: 0.3 * goal * self.rng.normal(size=num_outputs))
    if activation_fn is None:
      return x
    return activation_fn(x) if callable(activation_fn) else torch.relu(x)

  def fully_connected(self, inputs, num_outputs, activation_fn=None, scope=None, **_):
    import torch

    shape, spread = (inputs.shape[-1], num_outputs), float(inputs.std()) + EPS_SPREAD
    with self.scope(scope):
      kernel = self.variable(
        "weights", lambda: self.rng.normal(size=shape) / spread / shape[0] ** 0.5
      )
      return torch.Tensor(inputs) @ kernel + self.variable(
        "biases", lambda: 0.3 * self.rng.normal(size=num_outputs)
      )

  def separable_conv2d(
    self, inputs, num_outputs, kernel_size, depth_multiplier, stride=1, scope=None,
    activation_fn="relu", normalizer_fn=None, normalizer_params=None, biases_initializer="zeros",
    **_,
  ):  # fmt: skip
    """SAME; without a norm and a 1x1 convolution of its own, or as its defaults are."""
    import torch

    if num_outputs is None:
      return self._depthwise(inputs, kernel_size, stride, scope, activation_fn, normalizer_fn,
                             normalizer_params)  # fmt: skip

    count, draw = inputs.shape[-1], self.rng
    shape = (*pair(kernel_size), count, depth_multiplier)
    with self.scope(scope):
      kernel = self.variable("depthwise_weights", lambda: 0.1 * draw.normal(size=shape))
      x = padded(inputs, kernel_size, stride, 1).permute(0, 3, 1, 2)
      kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]
      x = torch.nn.functional.conv2d(x, kernel, None, stride, groups=count)
      shape = (1, 1, count * depth_multiplier, num_outputs)
      kernel = self.variable("pointwise_weights", lambda: 0.2 * draw.normal(size=shape))
      x = x.permute(0, 2, 3, 1) @ kernel[0, 0]
      if biases_initializer is not None:
        x = x + self.variable("biases", lambda: 0.3 * draw.normal(size=num_outputs))
    return x if activation_fn is None else torch.relu(x)

  def _depthwise(self, inputs, kernel_size, stride, scope, act, norm, params):
    import torch

    count, draw = inputs.shape[-1], self.rng
    with self.scope(scope):
      shape = (*kernel_size, count, 1)
      kernel = self.variable("depthwise_weights", lambda: draw.normal(size=shape) / 3)
      x = padded(inputs, kernel_size, stride, 1).permute(0, 3, 1, 2)
      kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]
      x = torch.nn.functional.conv2d(x, kernel, None, stride, groups=count).permute(0, 2, 3, 1)
      return act(norm(x, **(params or {})))

  def batch_norm(self, inputs, scale=False, epsilon=1e-3, activation_fn=None, scope=None, **_):
    import torch

    count, mean = inputs.shape[-1], inputs.mean((0, 1, 2)).numpy()
    std = float(inputs.std()) + EPS_SPREAD
    draw = self.rng
    with self.scope(scope, "BatchNorm"):
      beta = self.variable("beta", lambda: 0.3 * draw.normal(size=count))
      gamma = self.variable("gamma", lambda: draw.uniform(0.5, 1.5, count)) if scale else 1
      middle = self.variable("moving_mean", lambda: mean / 2 + 0.3 * std * draw.normal(size=count))
      spread = self.variable("moving_variance", lambda: std**2 * draw.uniform(0.5, 1.5, count))
    x = (inputs - middle) / torch.sqrt(spread + epsilon) * gamma + beta
    return x if activation_fn is None else torch.relu(x)

  def max_pool2d(self, inputs, kernel_size, stride=2, padding="VALID", scope=None, **_):
    import torch

    x = padded(inputs, kernel_size, stride, 1, -torch.inf) if padding == "SAME" else inputs
    x = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), kernel_size, stride)
    return x.permute(0, 2, 3, 1)

  def avg_pool2d(self, inputs, kernel_size, stride=2, padding="VALID", scope=None, **_):
    """VALID ones of seven and more end a network: here, at any size, they see the whole map."""
    import torch

    if padding == "VALID" and max(pair(kernel_size)) >= 7:
      return inputs.mean((1, 2), keepdim=True)
    sums = []
    for x in (inputs, torch.ones_like(inputs)):
      x = padded(x, kernel_size, stride, 1) if padding == "SAME" else x
      pool = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), kernel_size, stride)
      sums.append(pool.permute(0, 2, 3, 1))
    return sums[0] / sums[1]

  def repeat(self, inputs, times, layer, *args, scope=None, **named):
    with self.scope(scope, "Repeat"):
      scope = scope or layer.__name__
      for i in range(times):
        inputs = layer(inputs, *args, scope=f"{scope}_{i + 1}", **named)
    return inputs


def pair(kernel) -> list[int]:
  return list(kernel) if isinstance(kernel, (list, tuple)) else [kernel] * 2


def padded(x, kernel, stride: int, rate: int, value: float = 0):
  """As TensorFlow's SAME."""
  import torch

  pads = []
  for length, k in zip(x.shape[1:3], pair(kernel)):
    need = max((-(length // -stride) - 1) * stride + (k - 1) * rate + 1 - length, 0)
    pads = [need // 2, need - need // 2, *pads]
  return torch.nn.functional.pad(x, [0, 0, *pads], value=value)


def modules(runtime: Runtime, add_arg_scope) -> dict[str, Mapping]:
  """What stands in for TensorFlow and for TF-slim's layers."""
  import torch

  named = ("conv2d", "separable_conv2d", "batch_norm", "max_pool2d", "avg_pool2d")
  layers = {name: add_arg_scope(as_function(getattr(runtime, name), name)) for name in named}
  nothing = add_arg_scope(as_function(lambda inputs, *_, **__: inputs, "same"))
  layers |= {
    "repeat": runtime.repeat, "dropout": nothing, "softmax": lambda x, scope=None: x,
    "fully_connected": add_arg_scope(as_function(lambda *_, **__: None, "fully_connected")),
  }  # fmt: skip
  some = types.SimpleNamespace
  utils = some(
    last_dimension=lambda shape, min_rank: shape[-1],
    collect_named_outputs=lambda collections, name, outputs: outputs,
    convert_collection_to_dict=lambda collection: {},
  )
  known = {
    "initializers": some(variance_scaling_initializer=lambda: None),
    "regularizers": some(l2_regularizer=lambda decay: None), "utils": utils,
  }  # fmt: skip
  return {
    "tf_slim.layers": {**layers, **known, "layers": some(**layers)},
    "tensorflow.python.framework": {
      "ops": some(GraphKeys=some(UPDATE_OPS=""), convert_to_tensor=lambda x: x)},
    "tensorflow.python.ops": {
      "array_ops": some(
        concat=lambda parts, axis, **_: torch.cat(parts, axis),
        squeeze=lambda x, axes, **_: x.reshape([n for i, n in enumerate(x.shape) if i not in axes]),
        pad=lambda x, pads: torch.nn.functional.pad(x, [n for row in pads[::-1] for n in row]),
      ),
      "init_ops": some(**dict.fromkeys(
        ("truncated_normal_initializer", "constant_initializer", "zeros_initializer"),
        lambda *_, **__: "some")),
      "math_ops": some(reduce_mean=lambda x, axes, keepdims=False, **_: x.mean(axes, keepdims)),
      "nn_ops": some(relu=torch.relu), "variable_scope": some(variable_scope=runtime.scope),
    },
    "tensorflow.python.util": TOOLS,
  }  # fmt: skip


TOOLS = {
  "tf_contextlib": contextlib, "tf_decorator": types.SimpleNamespace(
    make_decorator=lambda function, wrapper: functools.update_wrapper(wrapper, function)),
}  # fmt: skip


def as_function(method, name: str):
  """A function that arg_scope can tell from others, and whose code it can look into."""

  def function(*args, **named):
    return method(*args, **named)

  function.__name__, function._key_op = name, ("layers", name)
  return function


def sized() -> type:
  """torch's tensor with what TF-slim's code asks of TensorFlow's."""
  import torch

  class Sized(torch.Tensor):
    """As TensorFlow's, with a shape that is asked for."""

    name = ""
    graph = types.SimpleNamespace(get_operations=lambda: ())

    @property
    def shape(self):
      return Shape(super().shape)

    def get_shape(self):
      return self.shape

    def set_shape(self, shape):
      pass

  return Sized


def network(name: str, runtime: Runtime, num_classes: int):
  """images [b h w c] of torch -> logits [b num_classes]."""
  import torch

  scopes = arg_scopes()
  family = NAMES.get(name, name if name in RESEARCH else name.rpartition("_")[0])
  if name in RESEARCH:
    given = research(runtime, scopes.arg_scope, scopes.add_arg_scope)
    code = wheels.load("research", [f"nets.{module}" for module in RESEARCH[name]], given)
  else:
    code = early(family, runtime, scopes)
  scope = getattr(code, SCOPES.get(family, f"{family}_arg_scope"), None)

  def run(image, **named):
    runtime.asked.clear()
    with torch.no_grad(), scopes.arg_scope((scope or code.resnet_utils.resnet_arg_scope)()):
      image = image.as_subclass(sized())
      out, _ = getattr(code, name)(image, num_classes, is_training=False, **named)
    return out.as_subclass(torch.Tensor).reshape(len(image), num_classes)

  return run


def arg_scopes() -> types.ModuleType:
  """TF-slim's own defaults of arguments."""
  return wheels.load("slim", [ARG_SCOPE], {"tensorflow.python.util": TOOLS})


def early(family: str, runtime: Runtime, scopes) -> types.ModuleType:
  """The code of one of the networks that lie in TF-slim's wheel."""
  given = modules(runtime, scopes.add_arg_scope) | {ARG_SCOPE: vars(scopes)}
  return wheels.load("slim", ["tf_slim.nets.resnet_utils", f"tf_slim.nets.{family}"], given)


class Shape(tuple):
  ndims = property(len)

  def as_list(self):
    return list(self)

  def is_fully_defined(self):
    return True

  def __getitem__(self, item):
    found = super().__getitem__(item)
    return Shape(found) if isinstance(item, slice) else found


class HParams(types.SimpleNamespace):
  """Of `tf.contrib.training`."""

  set_hparam = types.SimpleNamespace.__setattr__


def average(x, kernel=(), strides=(), *_, **__):
  """Of 1x1, every so many pixels; else of the whole map, as at the end of MobileNet."""
  if list(kernel) == [1, 1, 1, 1]:
    return x[:, :: strides[1], :: strides[2]]
  return x.mean((1, 2), keepdim=True)


def research(runtime: Runtime, arg_scope, add_arg_scope) -> dict[str, Mapping]:
  """What stands in for TensorFlow itself, whose `contrib.slim` these networks are written with."""
  import torch

  some = types.SimpleNamespace
  names = ("conv2d", "separable_conv2d", "batch_norm", "max_pool2d", "avg_pool2d",
           "fully_connected")  # fmt: skip
  layers = {name: add_arg_scope(as_function(getattr(runtime, name), name)) for name in names}
  layers |= {
    "arg_scope": arg_scope, "add_arg_scope": add_arg_scope, "softmax": lambda x, scope=None: x,
    "repeat": runtime.repeat, "l2_regularizer": lambda decay: None,
    "dropout": add_arg_scope(as_function(lambda inputs, *_, **__: inputs, "dropout")),
    "flatten": lambda x, **_: x.flatten(1),
    "variance_scaling_initializer": lambda *_, **__: None,
  }  # fmt: skip
  contrib = some(
    slim=some(**layers), framework=some(arg_scope=arg_scope, add_arg_scope=add_arg_scope),
    layers=some(
      softmax=lambda x, **_: x, l2_regularizer=lambda decay: None,
      variance_scaling_initializer=lambda **_: None,
    ),
    training=some(HParams=HParams),
  )  # fmt: skip
  tensorflow = {
    "contrib": contrib, "variable_scope": runtime.scope, "GraphKeys": some(UPDATE_OPS=""),
    "concat": lambda values, axis: torch.cat(values, axis),
    "identity": lambda x, name=None: x, "zeros_initializer": lambda: "zeros",
    "name_scope": lambda name: contextlib.nullcontext(),
    "nn": some(
      relu=torch.relu, relu6=torch.nn.functional.relu6, softmax=lambda x, **_: x,
      avg_pool=average,
    ),
    "pad": lambda x, pads: torch.nn.functional.pad(x, [n for row in pads[::-1] for n in row]),
    "test": some(is_gpu_available=lambda: False),
    "squeeze": lambda x, axes, **_: x.flatten(1),
    "reduce_mean": lambda x, axes, keep_dims=False, **_: x.mean(axes, keep_dims),
    "truncated_normal_initializer": lambda **_: None,
  }  # fmt: skip
  return {"tensorflow": tensorflow}
