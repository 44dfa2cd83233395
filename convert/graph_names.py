"""Names for the constants of a graph whose exporter gave none that mean anything.

Exporters number what they fold: "391", "onnx::Conv_391", "Conv__440_bias". The order of the
operations is meant then, and arrays are named by it: Conv_0.weight, Conv_0.bias, Conv_1.weight,
each kind of operation counted from 0. Where the operation is called by a path of modules, as torch
does since 1.13 (/layer1/layer1.0/conv1/Conv), that is taken: layer1.0.conv1.weight.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
import dataclasses
import re

import numpy as np

ANONYMOUS = re.compile(
  r"(onnx::[A-Za-z]+_|[Cc]onst(ant)?_?)?\d*"  # torch
  r"|[A-Z][A-Za-z]*__\d+.*"  # tf2onnx
)


@dataclasses.dataclass(frozen=True)
class Use:
  """An operation and the constants that are its weights."""

  kind: str  # Conv
  called: str  # what the exporter calls this one
  slots: Mapping[str, Hashable]  # "weight" -> key of a constant


def name(
  uses: Sequence[Use], names: Mapping[Hashable, str], constants: Mapping[Hashable, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of every constant; one that two operations share comes once for each of them.

  Args:
    uses: in the order of the graph.
    names: of the constants, as the file has them.
    constants: by the same keys.
  """
  folded = [any(ANONYMOUS.fullmatch(names[k]) for k in use.slots.values()) for use in uses]
  by_path = all(_path(use.called) for use, is_folded in zip(uses, folded) if is_folded)
  counts: dict[str, int] = {}
  done = set()
  for use, is_folded in zip(uses, folded):
    rank = counts[use.kind] = counts.get(use.kind, -1) + 1
    if is_folded if by_path else any(folded):  # names of one kind for all, by path or by order
      stem = _path(use.called) if by_path else f"{use.kind}_{rank}"
      for slot, key in use.slots.items():
        done.add(key)
        yield f"{stem}.{slot}", constants[key]
  for key, array in constants.items():
    if key not in done:
      yield names[key], array


def _path(called: str) -> str:
  """/layer1/layer1.0/conv1/Conv -> layer1.0.conv1; "" of other forms."""
  parts = called.split("/")
  if len(parts) < 3 or parts[0]:
    return ""
  path: list[str] = []
  for part in parts[1:-1]:
    if path and part.startswith(path[-1] + "."):  # a Sequential is said again with its member
      path.pop()
    path.append(part)
  return ".".join(path)
