"""Lists the zoo: python -m zoo --filter='resnet*'"""

import argparse
import csv
from fnmatch import fnmatch
import sys

import zoo

COLUMNS = (
  "variant", "params", "multiply_adds", "size", "weights", "license", "top1", "top5", "where",
)  # fmt: skip


def rows_of(info: zoo.Info) -> list[tuple]:
  """One row for each published checkpoint, or one without."""
  size = info.size if isinstance(info.size, int) else "x".join(map(str, info.size))
  cost = (info.variant, info.params, info.multiply_adds, size)
  rows = [
    (*cost, name, row.license, row.top1, row.top5, row.where) for name, row in info.weights.items()
  ]
  return rows or [(*cost, *(None,) * 5)]


def table(rows: list[tuple]) -> str:
  """As text; parameters and multiply-adds in millions, a variant's costs on its first line only."""
  head = ("variant", "params M", "madds M", "size", "weights", "license", "top-1", "top-5")
  lines, last = [head], None
  for variant, params, madds, size, weights, license, top1, top5, _ in rows:
    cost = (variant, f"{params / 1e6:.2f}", f"{madds / 1e6:.0f}", str(size))
    facts = [weights or "", license or "", *("" if t is None else f"{t:.2f}" for t in (top1, top5))]
    lines.append((*(cost if variant != last else ("",) * 4), *facts))
    last = variant
  widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
  right = {1, 2, 3, 6, 7}
  return "\n".join(
    "  ".join(cell.rjust(w) if i in right else cell.ljust(w)
              for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
    for line in lines
  )  # fmt: skip


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m zoo", description="Lists the models of the zoo.")
  parser.add_argument("--filter", default="*", help="a part of a name, or a pattern with * and ?")
  parser.add_argument("--csv", action="store_true", help="plain numbers, separated by commas")
  options = parser.parse_args(arguments)
  wanted = options.filter if set("*?[") & set(options.filter) else f"*{options.filter}*"
  names = [n for n in zoo.names() if fnmatch(n, wanted)]
  if not names:
    parser.error(f"no variant fits {options.filter!r}; without --filter all are listed")
  rows = [row for name in names for row in rows_of(zoo.info(name))]
  if options.csv:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
  else:
    print(table(rows))
  return 0


if __name__ == "__main__":
  sys.exit(main())
