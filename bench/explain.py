"""Grad-CAM and Grad-CAM++ of every family beside torch: python -m bench.explain

On each family's small network with the original's random weights, at its last map; prints a table
of the largest differences, of the largest value. Exits with 1 where one is not below 1e-4.
"""

import argparse
import re
import sys

from tests import cases, maps

TOLERANCE = 1e-4


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="regular expression of families")
  only = parser.parse_args().only
  print("| family | network | Grad-CAM | Grad-CAM++ |\n|---|---|---|---|")
  worst = 0.0
  for family, case in cases.gradients().items():
    if re.search(only, family):
      errors = maps.compare(family, maps.twin(family))
      worst = max(worst, *errors.values())
      cells = " | ".join(f"{error:.1e}" for error in errors.values())
      print(f"| {family} | {case.variant} | {cells} |", flush=True)
  return int(worst >= TOLERANCE)


if __name__ == "__main__":
  sys.exit(main())
