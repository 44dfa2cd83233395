"""A classifier in onnxruntime, where that is faster than XLA: on CPUs.

The graph is written once for each set of arrays, compared with the model itself, and kept in the
cache; what differs is not kept and not used.
"""

from collections.abc import Callable, Mapping
import hashlib
import os
from pathlib import Path
import tempfile
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np

import convert
from convert.commands import export
import zoo
from zoo.fetch import cache_dir, version

TOLERANCE = 1e-4  # of the largest logit


def onnxruntime_logits(
  model: nn.Module, variables: Mapping[str, Any], record: zoo.Record
) -> Callable[[np.ndarray], np.ndarray]:
  """Images [b h w c] uint8, not normalised yet -> logits [b k], computed by onnxruntime.

  Raises:
    ValueError: onnxruntime is not installed, or answers other than the model does.
  """
  try:
    import onnxruntime
  except ImportError as error:
    raise ValueError(
      "--runtime=onnxruntime needs two packages more: pip install onnx onnxruntime"
    ) from error
  path = _place(variables, record)
  if not path.exists():
    _write(path, model, variables, record)
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  planes = jax.jit(lambda image: record.preprocess.normalize(image).transpose(0, 3, 1, 2))
  return lambda image: session.run(["logits"], {"image": np.asarray(planes(image))})[0]


def _place(variables: Mapping[str, Any], record: zoo.Record) -> Path:
  """Where the graph of these arrays is kept, as this version of the package writes it."""
  fields = sorted(record.fields.items())
  facts = (version(convert), record.variant, record.weights, fields, record.preprocess)
  digest = hashlib.sha256(repr(facts).encode())
  for name, array in sorted(traverse_util.flatten_dict(dict(variables), sep="/").items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(array))
  return cache_dir() / "onnx" / f"{record.variant}-{digest.hexdigest()[:16]}.onnx"


def _write(path: Path, model, variables, record: zoo.Record) -> None:
  import onnxruntime

  try:
    raw = export.onnx_model(model, variables, record, planes=True).SerializeToString()
  except ImportError as error:
    raise ValueError("--runtime=onnxruntime needs one package more: pip install onnx") from error
  size = zoo.pair(record.preprocess.size)
  image = np.random.default_rng(0).normal(size=(2, *size, record.in_channels)).astype(np.float32)
  feed = {"image": image.transpose(0, 3, 1, 2)}
  [got] = onnxruntime.InferenceSession(raw).run(["logits"], feed)
  run = jax.jit(lambda variables, image: model.apply(variables, image, train=False)["logits"])
  want = np.asarray(run(variables, image), np.float32)
  worst = np.abs(got - want).max() / np.abs(want).max()
  if not worst <= TOLERANCE:
    raise ValueError(
      f"onnxruntime's logits of {record.variant} differ by {worst:.1e} of the largest, more than "
      f"{TOLERANCE:.0e}; use --runtime=xla"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
  with os.fdopen(handle, "wb") as file:
    file.write(raw)
  os.replace(part, path)
