"""torchvision's detectors beside ours: random arrays, the same pictures, the same detections."""

from collections.abc import Mapping
from functools import partial
import importlib
from unittest import mock

import jax
import numpy as np
import pytest

from convert import engine
from tests import parity

quick = partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)


def greedy(boxes, scores, iou: float):
  """What torchvision's compiled operator does, which a CPU build of torch may not have."""
  import torch

  corner, rows = boxes.detach().numpy(), np.argsort(-scores.detach().numpy(), kind="stable")
  area, kept = (corner[:, 2] - corner[:, 0]) * (corner[:, 3] - corner[:, 1]), []
  while len(rows):
    best, rows = rows[0], rows[1:]
    kept.append(best)
    low = np.maximum(corner[best, :2], corner[rows, :2])
    high = np.minimum(corner[best, 2:], corner[rows, 2:])
    inside = np.maximum(high - low, 0).prod(1)
    rows = rows[inside <= iou * (area[best] + area[rows] - inside)]
  return torch.as_tensor(np.array(kept, np.int64))


@pytest.fixture(scope="module")
def detection():
  """torchvision.models.detection, on plain Python where it wants compiled operators."""
  library = parity.import_torchvision().models.detection
  from torchvision.ops import boxes, poolers

  plain = importlib.import_module("torchvision.ops.roi_align")._roi_align
  plain = getattr(plain, "__wrapped__", plain)  # else it waits for a compiler

  def align(image, rois, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    return plain(image, rois, spatial_scale, *output_size, sampling_ratio, aligned)

  with mock.patch.object(boxes, "nms", greedy), mock.patch.object(poolers, "roi_align", align):
    yield library


def thaw(original) -> None:
  """Turns torchvision's frozen norms into ordinary ones, for `parity.randomize` to see them."""
  import torch
  from torchvision.ops import misc

  for path, module in [*original.named_modules()]:
    if isinstance(module, misc.FrozenBatchNorm2d):
      norm = torch.nn.BatchNorm2d(len(module.weight), eps=module.eps).eval()
      parent, _, name = path.rpartition(".")
      setattr(original.get_submodule(parent), name, norm)
      original.__dict__.setdefault("thawed", []).append(path)


def freeze(original) -> None:
  """Undoes `thaw`, with the norms' new arrays."""
  from torchvision.ops import misc

  for path in original.__dict__.get("thawed", []):
    norm = original.get_submodule(path)
    frozen = misc.FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
      setattr(frozen, name, getattr(norm, name).detach().clone())
    parent, _, name = path.rpartition(".")
    setattr(original.get_submodule(parent), name, frozen)


def pictures(*sizes, seed: int = 0):
  """[h w 3] each in 0..1, with structure at all scales."""
  rng, found = np.random.default_rng(seed), []
  for height, width in sizes:
    image = np.zeros((height, width, 3))
    for step in (4, 16, 48):
      coarse = rng.uniform(size=(height // step + 1, width // step + 1, 3))
      image += coarse.repeat(step, 0).repeat(step, 1)[:height, :width] / 3
    found.append(image.astype(np.float32))
  return found


def tensors(images):
  import torch

  return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]


def arrays(original) -> dict[str, np.ndarray]:
  return {name: value.detach().numpy() for name, value in original.state_dict().items()}


def variables_of(original, model, rules: engine.Rules, image):
  """Ours, through the rules and back to the last bit."""
  target = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  variables = engine.convert(arrays(original), target, rules)
  parity.check_way_back(arrays(original), variables, rules)
  return variables


def check_names(make, model, rules: engine.Rules, size: int, renamed=lambda name: name) -> int:
  """Every array of the original has its place here; returns how many numbers they hold.

  Args:
    make: the original's constructor; it is built without memory.
    renamed: the original's names -> those of the published file, where they are older ones.
  """
  import torch

  with torch.device("meta"):
    original = make()
  dtypes = {True: np.float32, False: np.int64}
  source = {
    renamed(name): np.broadcast_to(dtypes[value.is_floating_point()](0), tuple(value.shape))
    for name, value in original.state_dict().items()
  }
  target = jax.eval_shape(
    lambda key: model.init(key, np.zeros((1, size, size, 3), np.float32), train=False),
    jax.random.key(0),
  )
  engine.convert(source, target, rules)
  counted = sum(p.numel() for p in original.parameters())
  return counted


def on_resnet18(detection, kind: str, **pyramid):
  """torchvision's class on its own pyramid and ResNet-18, for which it has no constructor."""
  from torch import nn

  make = detection.backbone_utils.resnet_fpn_backbone
  body = make(
    backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, **pyramid
  )
  return getattr(detection, kind)(body, 91)


def difference(ours, theirs) -> float:
  """The largest, relative to the largest value of theirs."""
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def check_same(
  found: Mapping[str, np.ndarray], wanted, *, first_label: int = 0, at_least: int = 10
) -> None:
  """The detections of one picture as a set; those scored like the worst of them may differ.

  Args:
    found: of `detect`, without the axis of pictures.
    wanted: {"boxes", "scores", "labels"} of torchvision.
    first_label: of torchvision's labels the one that is our 0.
    at_least: so many must be compared.
  """
  real = found["box_label"] >= 0
  ours = {name: np.asarray(a)[real] for name, a in found.items()}
  theirs = {name: value.detach().numpy() for name, value in wanted.items()}
  theirs["box_label"] = theirs["labels"] - first_label
  assert len(theirs["scores"]) >= at_least
  worst = max(ours["scores"].min(), theirs["scores"].min())
  for one, other in ((ours, theirs), (theirs, ours)):
    gap = np.abs(one["boxes"][:, None] - other["boxes"][None]).max(-1)
    gap = gap / (1 + np.abs(one["boxes"]).max())
    gap += np.abs(one["scores"][:, None] - other["scores"][None])
    gap += 1e3 * (one["box_label"][:, None] != other["box_label"][None])
    lost = gap.min(1) > 1e-3
    assert not (lost & (one["scores"] > worst + 1e-3)).any(), one["scores"][lost]
    assert lost.mean() < 0.1
