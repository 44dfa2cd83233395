"""Every family of the zoo, listed once; its tables, merged.

What a model does is the package of its family: zoo.classify, zoo.detect ...
"""

from collections.abc import Iterable, Mapping
import difflib
from types import ModuleType

from zoo.classify import (
  alexnet,
  attention,
  bn_inception,
  densenet,
  dpn,
  efficientnet,
  googlenet,
  inception_resnet,
  inception_v3,
  inception_v4,
  mobilenet_v1,
  mobilenet_v2,
  mobilenet_v3,
  nasnet,
  polynet,
  pyramidnet,
  resnet,
  resnet_v2,
  senet,
  shufflenet,
  squeezenet,
  vgg,
  xception,
  xception_aligned,
)
from zoo.detect import rcnn, retinanet, ssd, yolo
from zoo.segment import craft, deeplabv3, fcn, lraspp, unet
from zoo.text import attention_ocr, caption, crnn

FAMILIES: tuple[ModuleType, ...] = (
  alexnet,
  attention,
  bn_inception,
  densenet,
  dpn,
  efficientnet,
  googlenet,
  inception_resnet,
  inception_v3,
  inception_v4,
  mobilenet_v1,
  mobilenet_v2,
  mobilenet_v3,
  nasnet,
  polynet,
  pyramidnet,
  resnet,
  resnet_v2,
  senet,
  shufflenet,
  squeezenet,
  vgg,
  xception,
  xception_aligned,
  rcnn,
  retinanet,
  ssd,
  yolo,
  craft,
  deeplabv3,
  fcn,
  lraspp,
  unet,
  attention_ocr,
  caption,
  crnn,
)


def _merge(table: str) -> dict:
  merged = {}
  for family in FAMILIES:
    rows = getattr(family, table)
    if twice := merged.keys() & rows.keys():
      raise ValueError(f"{family.__name__}.{table} repeats {sorted(twice)}")
    merged |= rows
  return merged


VARIANTS = _merge("VARIANTS")
WEIGHTS = _merge("WEIGHTS")
FAMILY = {name: family for family in FAMILIES for name in family.VARIANTS}
TASKS = ("classify", "detect", "segment", "text")


def task(variant: str) -> str:
  """What a variant does, one of TASKS."""
  return lookup(variant, FAMILY, "variant").__name__.split(".")[1]


def families(task: str) -> tuple[ModuleType, ...]:
  """Those of one of TASKS."""
  return tuple(f for f in FAMILIES if f.__name__.split(".")[1] == task)


def stages(variant: str) -> tuple[str, ...]:
  """Regular expressions of top-level modules from input to head; the last is the head."""
  rows = lookup(variant, FAMILY, "variant").STAGES
  return rows[variant] if isinstance(rows, Mapping) else rows


def lookup(name: str, table: Mapping, what: str):
  """`table[name]`, or a ValueError that names the nearest entries."""
  if name not in table:
    raise ValueError(f"unknown {what} {name!r}{suggest(name, table)} (python -m zoo lists all)")
  return table[name]


def suggest(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
