"""The original implementations, where their libraries are installed: their names and logits."""

from collections.abc import Mapping
import dataclasses
import importlib
import importlib.util
import os
import re
import sys

import numpy as np

from zoo import catalog

# Keras's names that are not the variant's without underscores.
KERAS = {
  "nasnetamobile": ("NASNetMobile", {}), "nasnetalarge": ("NASNetLarge", {}),
  "mobilenet_v3_large_minimal": ("MobileNetV3Large", {"minimalistic": True}),
  "mobilenet_v3_small_minimal": ("MobileNetV3Small", {"minimalistic": True}),
} | {
  f"mobilenetv{v}_{int(100 * alpha):03}": (name, {"alpha": alpha})
  for v, name, alphas in (
    (1, "MobileNet", (0.25, 0.5, 0.75, 1.0)), (2, "MobileNetV2", (0.35, 0.5, 0.75, 1.0, 1.4)),
  )
  for alpha in alphas
}  # fmt: skip
HEADS = {"keras": "classes"}  # what others call num_classes


@dataclasses.dataclass(frozen=True)
class Original:
  """How to make a network of another library, without weights."""

  dialect: str
  reference: str  # "package.module:constructor"
  positional: tuple = ()
  named: Mapping = dataclasses.field(default_factory=dict)


def find(variant: str, dialect: str, weights: str | None = None) -> Original | None:
  """The original of a variant, or of the checkpoint `weights` of it; None where nobody knows."""
  rows = [catalog.WEIGHTS[weights]] if weights in catalog.WEIGHTS else []
  rows += [row for row in catalog.WEIGHTS.values() if row.variant == variant]
  where = next((row.where for row in rows if row.dialect == dialect), "")
  file = where.rpartition("/")[2]
  if dialect == "torchvision":
    return Original(dialect, f"torchvision.models:{variant}")
  if dialect == "timm":
    hub = re.match(r"hf:timm/([^./]+)", where)
    return Original(dialect, "timm:create_model", (hub[1] if hub else variant,))
  if dialect == "pytorchcv":
    return Original(
      dialect, "pytorchcv.model_provider:get_model", (file.partition("-")[0] or variant,)
    )
  if dialect == "cadene":
    return Original(dialect, f"pretrainedmodels:{variant}", (), {"pretrained": None})
  if dialect == "keras":
    name, named = KERAS.get(variant, (variant.replace("_", ""), {}))
    return Original(dialect, f"keras.applications:{name}", (), named)
  return None


def library(original: Original) -> str:
  return re.split("[.:]", original.reference)[0]


def installed(original: Original) -> bool:
  return importlib.util.find_spec(library(original)) is not None


def import_torchvision():
  """torchvision, also where its compiled operators do not load beside a CPU build of torch.

  Its Python side then only asks that two operators be declared; no network of ours calls them.
  """
  try:
    return importlib.import_module("torchvision")
  except RuntimeError:
    torch = importlib.import_module("torch")
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
      del sys.modules[name]
    global _library  # as long as it lives, so do the declarations
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
      _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def build(original: Original, num_classes: int | None, size: int = 224, in_channels: int = 3):
  """The network, in eval mode. Raises ValueError if the library does not have it."""
  module, _, name = original.reference.partition(":")
  named = dict(original.named)
  if num_classes is not None:
    named[HEADS.get(original.dialect, "num_classes")] = num_classes
  elif original.dialect == "cadene":
    named["num_classes"] = 1000
  if original.dialect == "keras":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    named |= {
      "weights": None,
      "classifier_activation": None,
      "input_shape": (size, size, in_channels),
    }
  try:
    if original.dialect != "keras" and importlib.util.find_spec("torchvision"):
      import_torchvision()  # the others import it too
    made = importlib.import_module(module)
  except (ImportError, RuntimeError) as error:
    raise ValueError(f"{library(original)} does not load here: {error}") from error
  known = {n.lower(): n for n in dir(made) if callable(getattr(made, n))}
  if name.lower() not in known:
    raise ValueError(f"{module} has no {name}")
  net = getattr(made, known[name.lower()])(*original.positional, **named)
  return net if original.dialect == "keras" else net.eval()


def names(original: Original, num_classes: int | None) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the network's arrays, in its order."""
  if original.dialect == "keras":
    net = build(original, num_classes)
    return {weight.path: tuple(weight.shape) for weight in net.weights}
  torch = importlib.import_module("torch")
  with torch.device("meta"):  # shapes without values
    return {k: tuple(v.shape) for k, v in build(original, num_classes).state_dict().items()}


def logits(
  original: Original, arrays: Mapping[str, np.ndarray], image: np.ndarray, num_classes: int
) -> np.ndarray:
  """[b h w c] normalised -> [b num_classes], of the original with the given weights."""
  net = build(original, num_classes, image.shape[1], image.shape[3])
  if original.dialect == "keras":
    for weight in net.weights:
      weight.assign(np.ascontiguousarray(arrays[weight.path]))
    return np.asarray(net(image, training=False))
  torch = importlib.import_module("torch")
  state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
  net.load_state_dict(state)  # strict; counters of batches may be missing
  with torch.no_grad():
    x = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    return net(x).numpy()
