"""Which network, in whose names, a stranger's file holds: from names and shapes alone.

Three sieves, each finer and slower: the top-level modules of a family against the renamed names;
the size of the file against the sizes of the family's variants; the account of every array against
the traced network. Heads may be anybody's, and prefixes are tried away.
"""

from collections.abc import Iterator, Mapping
import csv
import dataclasses
import math
from pathlib import Path
import re

from flax import traverse_util
import numpy as np

from convert import engine, readers, rules
import zoo
from zoo import catalog, traces
from zoo.weights import in_channels

SAMPLE = 80  # names that the first sieve looks at
TRACED = 4  # networks that the last one looks at
PREFIXES = 3  # modules around modules
FOLDED = 0.01  # how far a file is that has another number of arrays because it has no norms
Shapes = Mapping[str, tuple[int, ...]]
with open(Path(__file__).with_name("sizes.csv")) as file:
  # Arrays and numbers of classifiers without their heads; tests/test_contract.py compares them.
  SIZES = {r["variant"]: (int(r["arrays"]), int(r["numbers"])) for r in csv.DictReader(file)}


@dataclasses.dataclass(frozen=True)
class Form:
  """A variant as a dialect names it and as its checkpoints need it."""

  variant: str
  dialect: str
  fields: Mapping
  rules: engine.Rules
  pixels: zoo.Preprocess
  weights: tuple[str, ...]  # checkpoints of that form


@dataclasses.dataclass(frozen=True)
class Finding:
  """How a file fits a form."""

  form: Form
  prefix: str  # that was taken away
  faults: tuple[str, ...]  # in the body of the network; none is a fit
  classes: int | None
  own_head: tuple[str, ...]  # arrays that are no part of the network
  folded: int = 0  # norms that the file's convolutions have taken in

  def __str__(self):
    head = f"{self.classes} classes" if self.classes else "no head"
    prefix = f", all behind {self.prefix!r}" if self.prefix else ""
    folded = f", {self.folded} norms folded" if self.folded else ""
    return f"{self.form.variant} in the names of {self.form.dialect}, {head}{folded}{prefix}"


def show(path: Path) -> int:
  """Prints what the file holds; returns 0 if that is certain, else 1."""
  shapes = {name: array.shape for name, array in readers.read(path).items()}
  found = identify(shapes)
  fits = [f for f in found if not f.faults]
  print(f"{path}: {len(shapes)} arrays, {sum(map(math.prod, shapes.values())):,} numbers")
  if not found:
    print("  nothing like it is in the zoo")
  if fits:
    found = fits
    print("  is" if len(fits) == 1 else "  fits several:")
  elif found:
    print("  is nothing that the zoo has; the nearest:")
  for finding in found[: len(fits) or 3]:
    print(f"  {finding}")
    if finding.own_head:
      print(f"    not of the network: {_few(finding.own_head, 3)}")
    if finding.form.weights:
      print(f"    as {_few(finding.form.weights, 5)}")
    for fault in finding.faults[:3]:
      print(f"    {fault}")
    if len(finding.faults) > 3:
      print(f"    and {len(finding.faults) - 3} more")
  return 0 if len(fits) == 1 else 1


def _few(texts, count: int) -> str:
  return ", ".join(texts[:count]) + (
    f" and {len(texts) - count} more" if len(texts) > count else ""
  )


def identify(shapes: Shapes) -> list[Finding]:
  """The forms that a file of arrays fits, or the nearest; best first."""
  inner = {prefix: _within(shapes, prefix) for prefix in _prefixes(shapes)}
  near = sorted(_near(inner), key=lambda n: n[0])
  findings, targets, best = [], {}, None
  for distance, prefix, form in near:
    if best is not None and distance > best + 1e-6:  # only ties can fit as well
      break
    key = (form.variant, _key(form.fields))
    if key not in targets and len(targets) == TRACED:
      continue
    if key not in targets:
      pixels = form.pixels
      with traces.norms_behind() as norms:
        target = zoo.shapes(
          zoo.create(form.variant, **form.fields), size=pixels.size, channels=in_channels(pixels)
        )
      targets[key] = target, norms
    finding = account(inner[prefix], *targets[key], form, prefix)
    others = tuple(name for name in shapes if not name.startswith(prefix))
    finding = dataclasses.replace(finding, own_head=finding.own_head + others)
    findings.append(finding)
    if not finding.faults:
      best = distance
  findings.sort(key=lambda f: (
    len(f.faults), len(f.own_head), not f.form.weights, f.form.dialect != "torchvision",
  ))  # fmt: skip
  # Dialects that agree in all names of a file are one answer.
  first = {}
  for finding in findings:
    first.setdefault((finding.form.variant, _key(finding.form.fields)), finding)
  return list(first.values())


def _prefixes(shapes: Shapes) -> list[str]:
  """ "" and the beginnings that most names share, module by module."""
  found, prefix = [""], ""
  for _ in range(PREFIXES):
    counts: dict[str, int] = {}
    for name in shapes:
      if name.startswith(prefix) and (part := re.match(r"[^./]+[./]", name[len(prefix) :])):
        counts[part[0]] = counts.get(part[0], 0) + 1
    best = max(counts, key=counts.get, default="")
    if not best or counts[best] < 0.6 * len(shapes):
      break
    prefix += best
    found.append(prefix)
  return found


def _within(shapes: Shapes, prefix: str) -> Shapes:
  return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def forms() -> Iterator[Form]:
  """Every variant of one picture in every dialect that its family's checkpoints speak."""
  for variant, family in catalog.FAMILY.items():
    if catalog.task(variant) == "text":
      continue
    name = family.__name__.rpartition(".")[2]
    for dialect in sorted({row.dialect for row in family.WEIGHTS.values()} or {"torchvision"}):
      kinds: dict[str, tuple[Mapping, list[str]]] = {}
      for weights, row in family.WEIGHTS.items():
        if (row.variant, row.dialect) == (variant, dialect):
          kinds.setdefault(_key(row.fields), (row.fields, []))[1].append(weights)
      try:
        own = rules.of(name, dialect, variant)
      except ValueError:  # a dialect that counts layers, and has rules for other variants alone
        continue
      for fields, weights in kinds.values() or [({}, [])]:
        pixels = catalog.WEIGHTS[weights[0]].preprocess if weights else zoo.Preprocess()
        yield Form(variant, dialect, fields, own, pixels, tuple(weights))


def _key(fields: Mapping) -> str:
  return repr(sorted(fields.items()))


def _near(inner: Mapping[str, Shapes]) -> Iterator[tuple[float, str, Form]]:
  """(distance, prefix, form) of what passes the two first sieves."""
  known: dict[tuple, tuple[float, int, int, bool] | None] = {}
  for prefix, shapes in inner.items():
    for form in forms():
      stages = zoo.stages(form.variant)
      key = (prefix, id(form.rules), stages)
      if key not in known:
        step = max(len(shapes) // SAMPLE, 1)
        few = dict(list(shapes.items())[::step])
        passed = _measured(few, form.rules, stages)[0] >= 0.5
        known[key] = _measured(shapes, form.rules, stages) if passed else None
      if known[key] is None:
        continue
      share, arrays, numbers, normed = known[key]
      size = SIZES.get(form.variant)
      if size is None or not arrays:
        yield 2 - share + len(form.variant) * 1e-6, prefix, form
      else:
        more = abs(math.log(arrays / size[0]))
        more = more if normed else min(more, FOLDED)
        yield round(1 - share + more + abs(math.log(numbers / size[1])), 4), prefix, form


def _measured(shapes: Shapes, own: engine.Rules, stages) -> tuple[float, int, int, bool]:
  """(share of the names that belong to a family, its arrays and numbers without the head, whether
  any is a norm's statistic)."""
  body, head = re.compile("|".join(f"(?:{s})" for s in stages[:-1])), re.compile(stages[-1])
  kept, fit, arrays, numbers, normed = 0, 0, 0, 0, False
  renamed = engine.recount(shapes, own.counted)
  for name, shape in shapes.items():
    path, leaf = own.place(renamed[name], ())
    if not path:
      continue
    kept += 1
    if leaf not in own.leaves:
      continue
    normed |= own.leaves[leaf][0].startswith("batch_stats/")
    top = path.partition("/")[0]
    if body.fullmatch(top):
      fit, arrays, numbers = fit + 1, arrays + 1, numbers + math.prod(shape)
    elif head.fullmatch(top):
      fit += 1
  return fit / max(kept, 1), arrays, numbers, normed


def account(shapes: Shapes, target, norms: engine.Norms, form: Form, prefix: str) -> Finding:
  """How the arrays fill a network; what becomes of its head is no fault."""
  want = traverse_util.flatten_dict(target, sep="/")
  head = re.compile(zoo.stages(form.variant)[-1])
  renamed = engine.recount(shapes, form.rules.counted)
  folded = engine.folded(shapes, target, form.rules, norms)
  without = {norm for norm, _ in folded.values()}
  faults, got, own_head, classes = [], set(), [], None
  for name, shape in shapes.items():
    path, leaf = form.rules.place(renamed[name], want)
    if not path:
      continue
    if path not in want and path.removesuffix("/bias").removeprefix("params/") in folded:
      continue
    if path not in want or path in got:
      own_head.append(f"{name} {shape}")
      continue
    got.add(path)
    ours = _laid_out(shape, path, leaf, form.rules, want[path].shape)
    if head.fullmatch(path.split("/")[1]):
      classes = ours[-1]
    elif ours != want[path].shape and not _other_channels(ours, want[path].shape):
      faults.append(f"shape   {path} {want[path].shape} <- {name} {shape}")
  missing = [
    path for path in want.keys() - got
    if not head.fullmatch(path.split("/")[1])
    and path.partition("/")[2].rpartition("/")[0] not in without
  ]  # fmt: skip
  faults += [f"missing {path} {want[path].shape}" for path in sorted(missing)]
  # What is left over is somebody's head, if it is little; otherwise this is another network.
  if len(own_head) > 0.1 * len(want) and not prefix:
    faults += [f"unused  {row}" for row in own_head]
  return Finding(form, prefix, tuple(faults), classes, tuple(own_head), len(folded))


def _laid_out(shape, path: str, leaf: str, own: engine.Rules, like) -> tuple[int, ...]:
  """The shape that an array would have here; an operation's is taken for right if its size is."""
  if any(re.fullmatch(pattern, path) for pattern, _ in own.operations):
    return like if math.prod(like) == math.prod(shape) else tuple(shape)
  return own.layout(np.broadcast_to(np.float32(0), shape), leaf).shape


def _other_channels(ours, like) -> bool:
  """Whether only the input channels differ, as of a network of grey pictures."""
  return len(ours) == len(like) == 4 and like[2] == 3 and ours[:2] + ours[3:] == like[:2] + like[3:]
