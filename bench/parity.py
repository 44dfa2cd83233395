"""Every classifier beside its original implementation: writes bench/parity.md.

`python -m bench.parity --only=REGEX` measures the cases whose row matches and keeps the others'
rows; `--sizes=224x224,97x131` measures at other sizes than the suite does, in rows of their own.
Exits with 1 where a difference is not below its case's tolerance.
"""

import argparse
import dataclasses
import datetime
from importlib import metadata, util
from pathlib import Path
import re
import time

import jax

from tests import cases, parity

TABLE = Path(__file__).with_name("parity.md")
LIBRARIES = (
  "jax", "flax", "torch", "torchvision", "timm", "keras", "pytorchcv", "pretrainedmodels",
  "efficientnet_lite_pytorch", "facenet-pytorch",
)  # fmt: skip
HEAD = """# Every classifier beside its original

Written by `python -m bench.parity`: the original gets random weights, biases and batch-norm
statistics, ours the same arrays through the rules that published files use, both the same images
in float32. An error is the largest difference over the largest value of the original's array; each
row has the worst of its end points and sizes, and that of the logits.
{versions}.

| variant | original | fields of ours | sizes | end points | worst error | logits | measured |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
## Where no original can be installed as it stands

| variant | what is run instead |
|---|---|
"""


def call(case: parity.Case) -> str:
  arguments = [*map(repr, case.positional), *(f"{k}={v!r}" for k, v in case.args.items())]
  return f"`{case.reference.replace(':', '.')}({', '.join(arguments)})`"


def fields(case: parity.Case) -> str:
  named = {k: getattr(v, "__name__", v) for k, v in case.fields.items()}
  return " ".join(f"`{k}={v}`" for k, v in named.items())


def key(case: parity.Case) -> tuple[str, ...]:
  """A row's first four cells."""
  sizes = " ".join(f"{h}x{w}" for h, w in case.sizes)
  return f"`{case.variant}`", call(case), fields(case), sizes


def written() -> dict[tuple[str, ...], tuple[str, ...]]:
  """{first four cells: the others} of the table as it stands."""
  text = TABLE.read_text() if TABLE.exists() else ""
  rows = [tuple(c.strip() for c in line.split("|")[1:-1]) for line in text.splitlines()]
  return {row[:4]: row[4:] for row in rows if len(row) == 8}


def measure(case: parity.Case) -> tuple[tuple[str, ...], bool]:
  """A row's last four cells, and whether the case holds."""
  errors = parity.run(case)
  ends = " ".join(dict.fromkeys(name.split()[0] for name in errors))
  logits = max(error for name, error in errors.items() if name.startswith("logits"))
  worst = max(errors.values())
  today = datetime.date.today().isoformat()
  return (ends, f"{worst:.1e}", f"{logits:.1e}", today), worst < case.tolerance


def write(rows: dict, known: list[parity.Case]) -> None:
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
  place = {key(c)[:3]: i for i, c in reversed(list(enumerate(known)))}
  kept = sorted((k for k in rows if k[:3] in place), key=lambda k: place[k[:3]])
  lines = ["| " + " | ".join((*k, *rows[k])) + " |" for k in kept]
  notes = dict.fromkeys(f"| `{c.variant}` | {c.instead} |" for c in known if c.instead)
  text = HEAD.format(versions=versions) + "\n".join(lines) + "\n" + NOTES + "\n".join(notes) + "\n"
  TABLE.write_text(text)


def main():
  parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
  parser.add_argument("--only", default="", help="regular expression on the row's first cells")
  parser.add_argument("--sizes", default="", help="such as 224x224,97x131")
  flags = parser.parse_args()
  known, rows, bad = cases.all_cases(), written(), []
  for case in known:
    if flags.sizes:
      sizes = [tuple(map(int, size.split("x"))) for size in flags.sizes.split(",")]
      case = dataclasses.replace(case, sizes=tuple(sizes))
    library = re.split("[.:]", case.reference)[0]
    if not re.search(flags.only, " | ".join(key(case))):
      continue
    if util.find_spec(library) is None:
      raise SystemExit(f"{case}: needs {library}: pip install flaxzoo[references]")
    start = time.process_time()
    try:
      rows[key(case)], holds = measure(case)
    except (AssertionError, RuntimeError, ValueError) as fault:
      bad.append(f"{case}: {fault}")
      continue
    spent = time.process_time() - start
    print(*key(case), *rows[key(case)][:-1], f"{spent:.1f} s of CPU", flush=True)
    bad += [] if holds else [f"{case}: {rows[key(case)][1]}"]
    write(rows, known)
    jax.clear_caches()
  if bad:
    raise SystemExit("not equal:\n" + "\n".join(bad))


if __name__ == "__main__":
  main()
