"""Every small recipe, trained and measured on what it never saw: python -m bench.recipes --out=F

  python -m train.scenes --stamps=... --backgrounds=... --scenes=2000 --val=200 --test=300 --out=S
  python -m bench.recipes --scenes=S --work=runs/recipes --out=bench/recipes.md

Each recipe of RUNS learns on composed scenes, whose test split has cut-outs and backgrounds of its
own; the reader on rendered lines, whose val and test splits have fonts of their own.  Beside each
figure stands what somebody reaches who sees no picture, or what the published weights reach before,
and the best on val, whose scenes are new and their cut-outs known.  A recipe that is done is not
run again: the table is written out of what --work holds.  With --jobs several run side by side.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import datetime
import json
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image

from train import average_precision, detect_report, figures, gallery, segment_report
from train.data import detection
import zoo
from zoo import explain
from zoo.detect.found import Found

RECIPES = Path(__file__).parent.parent / "train/recipes"
PIXELS = 224  # of the pictures that maps are drawn of
BAG = 3  # pictures
VALIDATED = {  # a figure's name in metrics.csv
  "AP50": "ap50", "CER": "cer", "lines right": "line", "top1": "top1", "box": "box",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reached:
  name: str
  value: float
  usual: float
  by: str  # whose figure the usual one is


# What a run left -> its figures on the test split.


def of_scores(run: Path) -> list[Reached]:
  """Of train.label and train.bags, which leave the answer beside it."""
  scores, by = _info(run)["scores"], "the same answer for all"
  if "mae" in scores["mean"]:
    return [
      Reached(f"mean error of {name}", one["mae"], one["mae_baseline"], by)
      for name, one in scores["each"].items()
    ]
  return [
    Reached(name, scores["mean"][name], usual, by)
    for name, usual in scores["baseline"].items() if name not in ("auroc", "iou")
  ]  # fmt: skip


def of_masks(run: Path) -> list[Reached]:
  with np.load(run / "predictions.npz", allow_pickle=False) as arrays:
    truth, answer = arrays["labels"], arrays["mask"]
  classes = len(_info(run)["classes"])
  own, nothing = (
    segment_report.Scores(segment_report.counted(truth, said, classes)).mean_iou
    for said in (answer, np.zeros_like(answer))
  )
  return [Reached("mean IoU", own, nothing, "background everywhere")]


def of_captions(run: Path) -> list[Reached]:
  scores = json.loads((run / "scores.json").read_text())
  own = scores.pop("model")
  by = max(scores, key=lambda who: scores[who]["CIDEr-D"])
  return [Reached(name, own[name], scores[by][name], by) for name in ("CIDEr-D", "BLEU-4")]


def of_boxes(run: Path) -> list[Reached]:
  """Beside each class's middle box, as sure as the class is frequent, in every picture."""
  read = detect_report.read(run)
  train = detection.load(read.info["data"]).splits["train"]
  boxes, labels = (np.concatenate(x) for x in zip(*((o.boxes, o.labels) for o in train.objects)))
  count = np.bincount(labels, minlength=len(read.classes))
  order = np.argsort(-count)
  middle = np.stack([np.median(boxes[labels == c], 0) for c in order]).astype(np.float32)
  share = (count[order] / len(train)).astype(np.float32)
  usual = [
    Found(middle, share, order.astype(np.int32), o.height, o.width, read.classes)
    for o in read.found
  ]
  own, other = (
    average_precision.score(read.objects, found, len(read.classes)).measures["ap50"]
    for found in (read.found, usual)
  )
  return [Reached("AP50", own, other, "the middle box of each class")]


def of_lines(run: Path) -> list[Reached]:
  before = _info(run.with_name(f"{run.name}-before"))["test"]
  by, own = "the published weights before", _info(run)["test"]
  return [Reached("CER", own["cer"], before["cer"], by),
          Reached("lines right", own["line"], before["line"], by)]  # fmt: skip


def _known(run: Path, name: str) -> str:
  """The best on val; nothing where no such figure is measured there."""
  with open(run / "metrics.csv", newline="") as file:
    values = [
      float(row["value"]) for row in csv.DictReader(file)
      if row["split"] == "val" and row["name"] == VALIDATED.get(name)
    ]  # fmt: skip
  return f"{(min if name == 'CER' else max)(values):.3f}" if values else ""


def _updates(run: Path) -> int:
  with open(run / "metrics.csv", newline="") as file:
    return max(int(row["step"]) for row in csv.DictReader(file))


def _info(run: Path) -> dict:
  return json.loads((run / "run.json").read_text())


@dataclasses.dataclass(frozen=True)
class Recipe:
  script: str
  learns: str
  reached: Callable[[Path], list[Reached]]
  flags: Sequence[str] = ()
  data: str = ""  # below the scenes; none if None
  gpu: Sequence[str] = ()  # other flags there


RESNET = ("--model=resnet18.broccoli",)
LARGER = ("--size=160", "--freeze=2", "--epochs=16")
LONGER = ("--size=160", "--batch=16", "--epochs=16")
LINES = {
  "rendered_crnn": Recipe("read", "characters of a line", of_lines, ("--model=crnn.shi",), None,
                          ("--lines=40000", "--steps=1200")),
}  # fmt: skip
RUNS = {
  "scenes_labels_resnet18": Recipe("label", "which kinds are there", of_scores, RESNET, "", LARGER),
  "scenes_places_resnet18": Recipe("label", "the largest thing and its box", of_scores, RESNET, "",
                                   LARGER),
  "scenes_counts_resnet18": Recipe("label", "how many things, and how large a share", of_scores,
                                   RESNET, "counts.csv"),
  "scenes_bags_resnet18": Recipe("bags", f"which kinds are in any of {BAG} pictures", of_scores,
                                 RESNET, "bags.csv"),
  "scenes_unet_resnet18": Recipe("segment", "each pixel's class", of_masks, (), "",
                                 ("--steps=1500",)),
  "scenes_fcn_resnet18": Recipe("segment", "each pixel's class", of_masks, (), "",
                                ("--steps=1500",)),
  "scenes_fcn_resnet50": Recipe("segment", "each pixel's class", of_masks),
  "scenes_show_attend_tell": Recipe("caption", "sentences", of_captions, (), "",
                                    ("--steps=1500",)),
  "scenes_yolov3_tiny": Recipe("detect", "boxes", of_boxes, (), "", ("--epochs=16",)),
  "scenes_ssd300_mobilenet_v1": Recipe("detect", "boxes", of_boxes),
  "scenes_retinanet_resnet18": Recipe("detect", "boxes", of_boxes, (), "", LONGER),
  "scenes_fasterrcnn_resnet18": Recipe("detect", "boxes", of_boxes, (), "", LONGER),
  "scenes_maskrcnn_resnet18": Recipe("detect", "boxes and masks", of_boxes, (), "", LONGER),
  **LINES,
}  # fmt: skip


def listings(scenes: Path) -> None:
  """Writes counts.csv and bags.csv out of the annotations."""
  with (
    open(scenes / "counts.csv", "w", newline="") as a,
    open(scenes / "bags.csv", "w", newline="") as b,
  ):
    counts, bags = csv.writer(a), csv.writer(b)
    counts.writerow(("image", "split", "things", "covered"))
    bags.writerow(("image", "bag", "split", "labels"))
    data = detection.load(scenes)
    for split, source in data.splits.items():
      some = list(zip(source.keys, source.objects, source.sizes))
      for start in range(0, len(some) - BAG + 1, BAG):
        kinds = {data.classes[c] for _, o, _ in some[start : start + BAG] for c in o.labels}
        for key, _, _ in some[start : start + BAG]:
          bags.writerow((key, f"{split}{start // BAG}", split, "|".join(sorted(kinds))))
      for key, objects, size in some:
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        share = 100 * sides.prod(1).sum() / np.prod(size)
        counts.writerow((key, split, len(objects.labels), f"{share:.2f}"))


def train(name: str, recipe: Recipe, flags, more: Sequence[str]) -> str:
  """Runs it as a user would; what went wrong, if anything did."""
  run = flags.work / name
  before = [("-before", ("--steps=1", "--lr=1e-9"))] if name in LINES else []
  for end, own in [*before, ("", ())]:
    where = run.with_name(run.name + end)
    data = [] if recipe.data is None else [f"--data={flags.scenes / recipe.data}"]
    command = [
      sys.executable, "-m", f"train.{recipe.script}", f"--flagfile={RECIPES / name}.flags",
      f"--workdir={where}", *data, *recipe.flags, *more, *own,
    ]  # fmt: skip
    start = time.perf_counter()
    with open(f"{where}.log", "w") as log:
      done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
      return f"{name}: {Path(f'{where}.log').read_text().strip().splitlines()[-1]}"
  facts = {"seconds": round(time.perf_counter() - start), "flags": list(more)}
  try:
    reached = recipe.reached(run)
  except (KeyError, ValueError, OSError) as error:  # the others' figures are kept
    return f"{name}: what it left cannot be measured: {error!r}"
  row = facts | {"reached": [dataclasses.asdict(one) for one in reached]}
  (flags.work / f"{name}.json").write_text(json.dumps(row))
  return ""


def table(work: Path, wrong: Sequence[str]) -> list[str]:
  lines = ["| recipe | what it learns | updates | seconds | | test | instead | of | val |",
           "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
  for name, recipe in RUNS.items():
    path = work / f"{name}.json"
    if not path.exists():
      continue
    row = json.loads(path.read_text())
    head = [f"{name} {' '.join(row['flags'])}".strip(), recipe.learns, str(_updates(work / name)),
            str(row["seconds"])]  # fmt: skip
    for one in row["reached"]:
      lines.append(
        f"| {' | '.join(head)} | {one['name']} | {one['value']:.3f} | {one['usual']:.3f} | "
        f"{one['by']} | {_known(work / name, one['name'])} |"
      )
      head = [""] * len(head)
  return lines + [f"\nNot measured: {sentence}" for sentence in wrong]


# Weakly supervised localisation: labels of whole pictures were all that was learned from.


def weak(run: Path, scenes: Path, out: Path, batch: int = 20) -> list[str]:
  """Boxes out of maps, of each class that is in a test picture once; a table, and pictures."""
  model, variables = zoo.load(run, output_stride=16)  # maps of 14x14
  record = zoo.record(run)
  pixels = dataclasses.replace(record.preprocess, size=PIXELS, resize=PIXELS)
  data = detection.load(scenes)
  source, classes = data.splits["test"], list(record.classes)
  names = {c: classes.index(name) for c, name in enumerate(data.classes)}
  asked = [
    (i, c, o.boxes[o.labels == c][0] * PIXELS / source.sizes[i][0])
    for i, o in enumerate(source.objects) for c in sorted(set(o.labels.tolist()))
    if (o.labels == c).sum() == 1
  ]  # fmt: skip
  asked = asked[: len(asked) // batch * batch]
  index, of, truth = map(np.array, zip(*asked))
  views = {i: pixels.crop(Image.fromarray(source.picture(i))) for i in set(index.tolist())}
  image = np.stack([views[i] for i in index.tolist()])
  lines = ["| map | boxes with IoU > 0.5 | mean IoU |", "|---|---|---|"]
  boxes = {"the whole picture": np.tile(np.float32([0, 0, PIXELS, PIXELS]), (len(of), 1))}
  for name in ("cam", "grad_cam", "grad_cam_pp"):
    method = gallery.methods([name])[name]
    run_map = jax.jit(lambda v, x, c, method=method: method(model, v, pixels.normalize(x), c))
    target = np.array([names[c] for c in of.tolist()])
    maps = np.concatenate([
      np.asarray(run_map(variables, image[i : i + batch], target[i : i + batch]))
      for i in range(0, len(of), batch)
    ])  # fmt: skip
    boxes[name] = explain.localize(maps, (PIXELS, PIXELS))
    tiles = [
      gallery.framed(gallery.framed(figures.overlay(image[i], maps[i]), boxes[name][i]), truth[i],
                     (80, 220, 90))
      for i in range(0, len(of), max(1, len(of) // 24))
    ][:24]  # fmt: skip
    sheet = np.concatenate([np.concatenate(tiles[r : r + 6], 1) for r in range(0, 24, 6)])
    Image.fromarray(sheet).save(out / f"{name}.png")
  for name, found in boxes.items():
    each = np.array([average_precision.overlaps(a[None], b[None])[0, 0]
                     for a, b in zip(found, truth)])  # fmt: skip
    lines.append(f"| {name} | {(each > 0.5).mean():.1%} | {each.mean():.2f} |")
  return [f"{len(of)} things of the test split:", "", *lines]


def main():
  parser = argparse.ArgumentParser(
    prog="python -m bench.recipes", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("--scenes", type=Path, required=True, help="a folder of train.scenes")
  parser.add_argument("--work", type=Path, default=Path("runs/recipes"), help="for the runs")
  parser.add_argument("--only", default="", help="a regular expression of recipes")
  parser.add_argument("--more", default="", help="flags for each, such as --steps=2")
  parser.add_argument("--jobs", type=int, default=1, help="recipes at once")
  parser.add_argument("--out", type=Path, help="a file for the tables")
  flags = parser.parse_args()
  flags.scenes, flags.work = flags.scenes.absolute(), flags.work.absolute()
  flags.work.mkdir(parents=True, exist_ok=True)
  flags.device = jax.devices()[0].device_kind
  gpu = jax.default_backend() == "gpu"
  if not all((flags.scenes / name).exists() for name in ("counts.csv", "bags.csv")):
    listings(flags.scenes)
  left = {
    name: recipe for name, recipe in RUNS.items()
    if re.search(flags.only, name) and not (flags.work / f"{name}.json").exists()
  }  # fmt: skip
  with ThreadPoolExecutor(flags.jobs) as pool:
    jobs = [
      pool.submit(train, name, one, flags, [*(one.gpu if gpu else ()), *flags.more.split()])
      for name, one in left.items()
    ]
    wrong = [sentence for job in jobs if (sentence := job.result())]
  lines = table(flags.work, wrong)
  run = flags.work / "scenes_labels_resnet18"
  if run.with_suffix(".json").exists():
    lines += ["", *weak(run, flags.scenes, flags.work)]
  head = (
    f"Written by `python -m bench.recipes --jobs={flags.jobs}`: {datetime.date.today()}, "
    f"{flags.device}, {os.cpu_count()} cores {platform.machine()}, jax {jax.__version__}."
  )
  text = "\n".join([head, "", *lines]) + "\n"
  print(text)
  if flags.out:
    flags.out.write_text(text)
  if wrong:
    raise SystemExit(1)


if __name__ == "__main__":
  main()
