"""The Keras side of `tests.parity`: originals of keras.applications, on Keras's JAX backend."""

from functools import partial
import importlib
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity import QUICK_COMPILATION


def build(case, size: tuple[int, int]):
  """The original for images of one size, its automatic layer names counted afresh."""
  os.environ.setdefault("KERAS_BACKEND", "jax")
  import keras

  if keras.backend.backend() != "jax":
    raise RuntimeError("keras was imported before with another backend; set KERAS_BACKEND=jax")
  keras.utils.clear_session()
  library, _, constructor = case.reference.partition(":")
  made = getattr(importlib.import_module(library), constructor)
  args = {"weights": None, "classifier_activation": None, **case.args}
  # Drawing values that `random_state` replaces takes seconds, of compilations for each shape.
  with mock.patch.object(keras.initializers.VarianceScaling, "__call__", _zeros):
    return made(*case.positional, input_shape=(*size, 3), **args)


def mini_xception(input_shape, weights, classifier_activation, num_classes=7):
  """As the configuration in the authors' file describes it, in its order of layers."""
  import keras
  from keras import layers

  def norm(x):
    return layers.BatchNormalization(epsilon=1e-3)(x)

  x = image = keras.Input(input_shape)
  for _ in range(2):
    x = layers.Activation("relu")(norm(layers.Conv2D(8, 3, use_bias=False)(x)))
  for width in (16, 32, 64, 128):
    skip = norm(layers.Conv2D(width, 1, strides=2, padding="same", use_bias=False)(x))
    x = norm(layers.SeparableConv2D(width, 3, padding="same", use_bias=False)(x))
    x = layers.Activation("relu")(x)
    x = norm(layers.SeparableConv2D(width, 3, padding="same", use_bias=False)(x))
    x = layers.Add()([layers.MaxPooling2D(3, 2, padding="same")(x), skip])
  x = layers.Conv2D(num_classes, 3, padding="same")(x)
  return keras.Model(image, layers.GlobalAveragePooling2D()(x))


def _zeros(initializer, shape, dtype=None, **kwargs):
  return np.zeros(shape, dtype or np.float32)


def random_state(model, image, seed: int = 0) -> dict[str, np.ndarray]:
  """{"layer/weight": array}, drawn as `parity.randomize` does, in one pass through the model."""
  import keras

  rng = np.random.default_rng(seed)
  noise, flat = {}, {}
  for w in model.weights:
    if w.name in ("gamma", "moving_variance"):
      flat[w.path] = rng.uniform(0.5, 1.5, w.shape).astype(np.float32)
    if w.name not in ("gamma", "moving_variance"):
      noise[w.path] = rng.standard_normal(w.shape, np.float32)

  def calibrated(layer, scope, noise, flat):
    original = type(layer).call

    def linear(x, *args, **kwargs):
      goal = 1.0 if isinstance(layer, keras.layers.Dense) else 0.2
      kernels = [w for w in layer.weights if w.name != "bias"]
      for w in layer.weights:
        scope.add_update((w, noise[w.path] if w.name != "bias" else jnp.zeros_like(noise[w.path])))
      activation, layer.activation = layer.activation, keras.activations.linear
      y = original(layer, x, *args, **kwargs)
      layer.activation = activation
      scale = goal / (jnp.std(y) + 1e-6)
      scope.add_update((kernels[-1], noise[kernels[-1].path] * scale))
      y = y * scale
      for w in layer.weights:
        if w.name == "bias":
          scope.add_update((w, 0.3 * goal * noise[w.path]))
          y = y + 0.3 * goal * noise[w.path]
      return activation(y)

    def norm(x, *args, **kwargs):
      mean, std = jnp.mean(x, tuple(range(x.ndim - 1))), jnp.std(x) + 1e-3
      for w in layer.weights:
        if w.name == "moving_mean":
          value = 0.5 * mean + 0.3 * std * noise[w.path]
        elif w.name == "moving_variance":
          value = std**2 * flat[w.path]
        else:
          value = flat[w.path] if w.name == "gamma" else 0.3 * noise[w.path]
        scope.add_update((w, value))
      return original(layer, x, *args, **kwargs)

    return norm if isinstance(layer, keras.layers.BatchNormalization) else linear

  @partial(jax.jit, compiler_options=QUICK_COMPILATION)
  def run(image, noise, flat):
    layers = [layer for layer in model.layers if layer.weights]
    with keras.StatelessScope() as scope:
      for layer in layers:
        object.__setattr__(layer, "call", calibrated(layer, scope, noise, flat))
      model(image, training=False)
      for layer in layers:
        object.__delattr__(layer, "call")
      return {w.path: scope.get_current_value(w) for w in model.weights}

  return {path: np.asarray(value) for path, value in run(image, noise, flat).items()}


def outputs(model, state, image, taps) -> dict[str, np.ndarray]:
  """{end point: array} of the layers that `taps` names, and "logits"."""
  import keras

  ends = {end: model.get_layer(layer).output for end, layer in taps.items()}
  part = keras.Model(model.input, {**ends, "logits": model.output})

  @partial(jax.jit, compiler_options=QUICK_COMPILATION)
  def run(values, image):
    with keras.StatelessScope(state_mapping=list(zip(model.weights, values))):
      return part(image, training=False)

  return jax.device_get(run([state[w.path] for w in model.weights], image))
