"""The photographs that a report shows, and where in them the network looked."""

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from train import figures
from train.data import datasets, transforms
import zoo
from zoo import explain

View = tuple[str, str, bytes]  # name of a file, caption, PNG


def views(run, chosen: Mapping[str, Sequence[int]]) -> tuple[dict[int, list[View]], list[str]]:
  """({row: its pictures}, what could not be shown and why) for the rows of a `report.Run`.

  Args:
    chosen: {kind: rows}; files are named kind_01.png, kind_01_map.png ...
  """
  rows = [row for group in chosen.values() for row in group]
  numbered = ((kind, enumerate(group, 1)) for kind, group in chosen.items())
  names = {row: f"{kind}_{i:02d}" for kind, group in numbered for i, row in group}
  if not rows:
    return {}, []
  try:
    record = zoo.record(run.path)
    images = photographs(run, rows, record.preprocess)
  except (OSError, ValueError) as error:
    return {}, [f"The photographs cannot be shown: {error}"]
  shown = {row: [(f"{names[row]}.png", "as the network sees it", figures.png(images[row]))]
           for row in rows}  # fmt: skip
  try:
    maps = heat(run, rows, images, record.preprocess)
  except (OSError, ValueError) as error:
    return shown, [f"The maps cannot be shown: {error}"]
  for row, by_class in maps.items():
    for c, place in by_class.items():
      part = "truth" if c == run.labels[row] else "answer"
      png = figures.png(figures.overlay(images[row], place))
      words = f"for {figures.shorten(run.classes[c])}" + ("" if place.any() else ": nothing")
      shown[row].append((f"{names[row]}_{part}.png", words, png))
  return shown, []


def photographs(run, rows: Iterable[int], preprocess: zoo.Preprocess) -> dict[int, np.ndarray]:
  """{row: [size size 3] uint8}, the evaluation's view. Raises ValueError if they are gone."""
  config = run.info["config"]
  known = {"seed", "max_bad"} & config.keys()
  data = datasets.load(run.info["data"], **{name: config[name] for name in known})
  source = data.splits[run.split]
  index = {key: i for i, key in enumerate(source.keys)}
  wanted = {row: run.keys[row] for row in rows}
  if gone := [key for key in wanted.values() if key not in index]:
    raise ValueError(f"{run.info['data']} has changed since; it has no {', '.join(gone)}")
  pixels = {row: transforms.decode(source[index[key]]["image"]) for row, key in wanted.items()}
  return {row: preprocess.crop(Image.fromarray(p)) for row, p in pixels.items()}


def heat(run, rows: Sequence[int], images, preprocess) -> dict[int, dict[int, np.ndarray]]:
  """{row: {class: map}}: Grad-CAM of the answer, and of the truth where that differs."""
  model, variables = zoo.load(run.path)

  @jax.jit
  def maps(variables, image, classes):
    return explain.grad_cam(model, variables, preprocess.normalize(image), classes)

  batch = np.stack([images[row] for row in rows])
  found = {row: {} for row in rows}
  for classes in (run.answers[rows], run.labels[rows]):
    for row, c, one in zip(rows, classes, np.asarray(maps(variables, batch, classes))):
      found[row][int(c)] = one
  return found
