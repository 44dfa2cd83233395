"""YOLO v3 tiny by the recipe, and by darknet's own trainer from as many pictures, measured alike.

  python -m bench.darknet_training --scenes=SCENES --updates=150 --work=runs/beside_darknet

Both start from the trunk of YOLO v2 tiny as it was published, its first four convolutions held,
and see --updates batches of 16 pictures of 128 pixels, changed by chance in the same ranges; beyond
that each is trained in its own way: the recipe by AdamW, darknet by the steps of its
yolov3-tiny.cfg, in proportion.  Held-out scenes are scored by one program: what darknet has trained
is converted, and tests/test_yolo.py shows that this changes no box.  Wants Debian's package
darknet, which has one thread.
"""

import argparse
import dataclasses
from pathlib import Path
import re
import subprocess
import sys
import time

import numpy as np

from bench import recipes
from convert import darknet_file, engine, rules
from tests import darknet
from train.data import detection
import zoo
from zoo import fetch, store

MODEL, TRUNK = "yolov3_tiny", "yolov2_tiny.pod"
SIZE, BATCH, RATE, HELD = 128, 16, 1e-3, 4
LAST = 12  # of the layers that both networks begin with


def config(updates: int, classes: int) -> str:
  """darknet's own cfg for these pictures and so many updates."""
  text = darknet.config("yolov3-tiny", (SIZE, SIZE))
  new = {
    "batch": BATCH, "subdivisions": 1, "classes": classes, "random": 0, "jitter": 0.2, "hue": 0.05,
    "learning_rate": RATE, "burn_in": updates // 10, "max_batches": updates,
    "steps": f"{updates * 4 // 5},{updates * 9 // 10}",
  }  # fmt: skip
  for name, value in new.items():
    text, count = re.subn(rf"(?m)^{name}\s*=.*$", f"{name}={value}", text)
    assert count, f"yolov3-tiny.cfg has no {name}"
  parts = re.split(r"(?m)^(?=\[)", text)
  convolutions = [i for i, part in enumerate(parts) if part.startswith("[convolutional]")]
  for i in convolutions:
    if i + 1 < len(parts) and parts[i + 1].startswith("[yolo]"):
      parts[i] = re.sub(r"(?m)^filters\s*=.*$", f"filters={3 * (5 + classes)}", parts[i])
  held = convolutions[HELD - 1]
  parts[held] = parts[held].rstrip() + "\nstopbackward=1\n\n"
  return "".join(parts)


def trunk(text: str, out: Path) -> None:
  """The published arrays of the trunk; what a file lacks, darknet draws by chance."""
  row = zoo.catalog.WEIGHTS[TRUNK]
  path = fetch.fetch(row.where, row.sha256, row.beside)
  arrays = darknet_file.arrays(np.fromfile(path, np.uint8), path)
  shared = {name: array for name, array in arrays.items() if int(name.split(".")[0]) <= LAST}
  darknet.write_weights(out, text, shared)


def by_darknet(flags, classes) -> tuple[dict, float]:
  """(our variables, seconds)."""
  work = flags.work / "darknet"
  work.mkdir(parents=True, exist_ok=True)
  text = config(flags.updates, len(classes))
  (work / "net.cfg").write_text(text)
  trunk(text, work / "trunk.weights")
  pictures = sorted((flags.scenes / "images/train").glob("*.jpg"))
  (work / "train.txt").write_text("".join(f"{path}\n" for path in pictures))
  (work / "names.txt").write_text("".join(f"{name}\n" for name in classes))
  (work / "net.data").write_text(
    f"classes={len(classes)}\ntrain={work}/train.txt\nnames={work}/names.txt\nbackup={work}\n"
  )
  final = work / "net_final.weights"
  start = time.perf_counter()
  if not final.exists():
    with open(work / "log", "w") as log:
      subprocess.run(
        ["darknet", "detector", "train", "net.data", "net.cfg", "trunk.weights", "-clear"],
        cwd=work, stdout=log, stderr=subprocess.STDOUT, check=True,
      )  # fmt: skip
  arrays = darknet_file.named(np.fromfile(final, np.uint8), text)
  shapes = zoo.shapes(zoo.create(MODEL, num_classes=len(classes)), size=SIZE)
  return engine.convert(arrays, shapes, rules.of("yolo", "darknet")), time.perf_counter() - start


def by_recipe(flags, run: Path, model: str, *own: str) -> float:
  """Trains, or only measures, by python -m train.detect; seconds."""
  start = time.perf_counter()
  command = [
    sys.executable, "-m", "train.detect", f"--flagfile={recipes.RECIPES}/scenes_yolov3_tiny.flags",
    f"--model={model}", f"--data={flags.scenes}", f"--workdir={run}", "--report=false", *own,
  ]  # fmt: skip
  subprocess.run(command, check=True)
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(
    prog="python -m bench.darknet_training", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("--scenes", type=Path, required=True, help="a folder of train.scenes")
  parser.add_argument("--updates", type=int, default=150, help="of 16 pictures each")
  parser.add_argument("--work", type=Path, default=Path("runs/beside_darknet"))
  flags = parser.parse_args()
  flags.scenes, flags.work = flags.scenes.absolute(), flags.work.absolute()
  classes = detection.load(flags.scenes).classes
  ours = by_recipe(flags, flags.work / "recipe", MODEL, f"--steps={flags.updates}")
  variables, theirs = by_darknet(flags, classes)
  record = zoo.record(flags.work / "recipe")
  path = flags.work / "darknet.safetensors"
  store.save(path, variables, dataclasses.replace(record, weights=None))
  # One update that moves nothing, for the evaluation behind it.
  still = "--steps=1", "--lr=1e-12", "--wd=0", "--freeze_norm", "--backbone="
  by_recipe(flags, flags.work / "measured", str(path), *still)
  print(f"| {flags.updates * BATCH} pictures, trained by | AP50, held-out cut-outs | seconds |")
  print("|---|---|---|")
  for name, run, seconds in (("recipe", "recipe", ours), ("darknet", "measured", theirs)):
    own = recipes.of_boxes(flags.work / run)[0]
    print(f"| {name} | {own.value:.3f} | {seconds:.0f} |")
  print(f"| the middle box of each class | {own.usual:.3f} | |")


if __name__ == "__main__":
  main()
