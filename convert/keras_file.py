"""Keras: `.h5` of Keras 1 and 2, and the `.weights.h5` and `.keras` of Keras 3.

Arrays are named "layer/weight" as Keras 3 names its variables, a model as a layer included:
"inner/conv/kernel". Keras 1 and 2 store those names, Keras 3 stores numbers in their place; what
they mean follows from the layer's class, which names its group.
"""

from collections import Counter
from pathlib import Path
import re

import numpy as np

from convert import hdf5_file, zip_file
from convert.files import UnsafeFile, json_object, short

WEIGHTS = "model.weights.h5"  # in a .keras
CONFIG = "config.json"
OLD = {"W": "kernel", "b": "bias", "running_mean": "moving_mean",
       "running_std": "moving_variance"}  # fmt: skip  # of Keras 1, whose "std" is a variance
# What the numbered weights of a class mean; "" is for all that are not listed.
KERNEL = ("kernel", "bias")
ORDER = {
  "": KERNEL, "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
  "separable_conv1d": ("depthwise_kernel", "pointwise_kernel", "bias"),
  "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
  "layer_normalization": ("gamma", "beta"), "group_normalization": ("gamma", "beta"),
  "embedding": ("embeddings",), "p_re_lu": ("alpha",), "lstm_cell": ("kernel", "recurrent_kernel",
  "bias"), "gru_cell": ("kernel", "recurrent_kernel", "bias"),
  "normalization": ("mean", "variance", "count"),
}  # fmt: skip
ASIDE = ("optimizer", "optimizer_weights", "_optimizer", "training_config")
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


def matches(data: np.ndarray, _=None) -> bool:
  return hdf5_file.looks_like_hdf5(data) or (
    zip_file.looks_like_zip(data) and WEIGHTS in zip_file.names(data)
  )


def arrays(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
  """Every weight of the file by its name. Raises UnsafeFile."""
  config = {}
  if zip_file.looks_like_zip(data):
    members = zip_file.unpacked(data)
    if CONFIG in members:
      config = json_object(members[CONFIG].tobytes(), "its config.json")
    part = members[WEIGHTS]
    begin = part.ctypes.data - data.ctypes.data
    inside = 0 <= begin <= len(data) - len(part)
    groups, found = hdf5_file.contents(part, path, begin if inside else -1)
  else:
    groups, found = hdf5_file.contents(data, path)
  root = "model_weights" if "model_weights" in groups else ""
  found = {name: a for name, a in found.items() if name.partition("/")[0] not in ASIDE}
  if "layer_names" in groups[root]:
    out = _listed(groups, found, root)
  else:
    out = _numbered(groups, found, config)
  if not out:
    raise UnsafeFile("it is an HDF5 file without arrays of numbers; wanted the weights of a model")
  return out


def _listed(groups: dict, found: dict, root: str) -> dict[str, np.ndarray]:
  """Of Keras 1 and 2: groups for the layers, and attributes that list both in order."""
  out, faults = {}, []
  for layer in groups[root]["layer_names"]:
    place = f"{root}/{layer}" if root else layer
    for weight in groups.get(place, {}).get("weight_names", ()):
      array = found.get(f"{place}/{weight}")
      name = listed_name(layer, weight)
      if array is None or name in out:
        faults.append(f"{short(name)} is {'missing' if array is None else 'there twice'}")
      else:
        out[name] = array
  if faults:
    raise UnsafeFile(f"its lists of names and its arrays disagree: {'; '.join(faults[:3])}")
  return out


def listed_name(layer: str, weight: str) -> str:
  """conv1, conv1_2/kernel:0 -> conv1/kernel;  conv1, conv1_W:0 -> conv1/kernel."""
  weight = re.sub(r":\d+$", "", weight)
  weight = re.sub(rf"^{re.escape(layer)}(_\d+)?/", "", weight)
  old = re.fullmatch(rf"(?:{re.escape(layer)}_)?(W|b|gamma|beta|running_mean|running_std)(_\d+)?",
                     weight)  # fmt: skip
  return f"{layer}/{OLD.get(old[1], old[1]) if old else weight}"


def _numbered(groups: dict, found: dict, config: dict) -> dict[str, np.ndarray]:
  """Of Keras 3: .../layers/CLASS_NUMBER/vars/0, with the layer's name as an attribute of vars."""
  names, scaled = _configured(config)
  names |= {path.removesuffix("/vars"): attributes["name"][0] for path, attributes in groups.items()
            if path.endswith("/vars") and attributes.get("name")}  # fmt: skip
  sizes = Counter(path.rpartition("/")[0] for path in found)
  out = {}
  for path, array in found.items():
    owner, is_number, number = path.rpartition("/vars/")
    parts = owner.split("/")
    if "seed_generator" in parts or parts[0] in ASIDE:
      continue
    if not is_number or not number.isdecimal():  # an HDF5 file of another kind
      out[path] = array
      continue
    owners = ["/".join(parts[: i + 1]) for i, part in enumerate(parts) if part not in CONTAINERS]
    kind = re.sub(r"_\d+$", "", parts[-1])
    order = ORDER.get(kind, ORDER[""])
    if kind == "batch_normalization":
      order = _normalization(sizes[f"{owner}/vars"], scaled.get(owner))
    leaf = order[int(number)] if int(number) < len(order) else number
    name = "/".join([*(names.get(o, o.rpartition("/")[2]) for o in owners), leaf])
    if name in out:
      raise UnsafeFile(f"two of its arrays are named {short(name)}; refused")
    out[name] = array
  return out


def _normalization(count: int, scaled: bool | None) -> tuple[str, ...]:
  """Of three arrays beta is there and gamma is not, as in the Inceptions, unless it is known."""
  gamma, beta, *statistics = ORDER["batch_normalization"]
  own = {4: (gamma, beta), 3: (gamma,) if scaled else (beta,)}.get(count, ())
  return (*own, *statistics)


def _configured(config: dict) -> tuple[dict[str, str], dict[str, bool]]:
  """({group: layer}, {group: batch norm has a gamma}) of a model whose layers its config lists.

  Groups count the layers of each class; older files do not say which layer that was.
  """
  names, scaled, waiting = {}, {}, [("", config)]
  while waiting:
    place, model = waiting.pop()
    inner = model.get("config")
    layers = inner.get("layers") if type(inner) is dict else None
    if type(layers) is not list:
      continue
    counts: Counter[str] = Counter()
    for layer in layers:
      if type(layer) is not dict or type(layer.get("config")) is not dict:
        raise UnsafeFile(f"its config.json describes a layer as {short(layer)}; refused")
      kind = snake_case(str(layer.get("class_name")))
      number = counts[kind]
      counts[kind] += 1
      group = f"{place}layers/{kind}{f'_{number}' if number else ''}"
      names[group] = str(layer["config"].get("name", kind))
      scaled[group] = layer["config"].get("scale") is True
      waiting.append((f"{group}/", layer))
  return names, scaled


def snake_case(name: str) -> str:
  """As Keras counts layers: Conv2D -> conv2d, BatchNormalization -> batch_normalization."""
  words = re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\W", "", name))
  return words.lower()
