"""The photographs that a report shows, and where in them the network looked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
from functools import partial

import jax
import numpy as np
from PIL import Image

from train import figures
from train.data import datasets, transforms
import zoo
from zoo import explain

View = tuple[str, str, bytes]  # name of a file, caption, PNG
MAPS = {  # of `zoo.explain`, by the names of --maps
  "grad_cam": explain.grad_cam,
  "grad_cam_pp": explain.grad_cam_pp,
  "cam": explain.cam,
  "saliency": explain.saliency,
  "guided": explain.guided,
  "guided_grad_cam": explain.guided_grad_cam,
  "integrated": explain.integrated,
  "occlusion": explain.occlusion,
}
PLACES = ("grad_cam", "grad_cam_pp", "cam")  # where; what is negative in them is not shown
LAYERED = (*PLACES, "guided_grad_cam")  # those that look at a layer
GRADIENTS = ("saliency", "guided", "guided_grad_cam")  # details, of which nearly all are faint


def methods(names: Sequence[str], layer: str | None = None) -> dict[str, Callable]:
  """{name: function of (model, variables, image, classes)} of MAPS; "none" is none of them."""
  wanted = [name for name in names if name != "none"]
  if unknown := [name for name in wanted if name not in MAPS]:
    near = difflib.get_close_matches(unknown[0], MAPS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no map {', '.join(unknown)}{hint} There are {', '.join(MAPS)}")
  if layer and wanted and not set(wanted) & set(LAYERED):
    raise ValueError(f"{', '.join(wanted)} look at no layer; {', '.join(LAYERED)} do")
  at = lambda name: {"layer": layer} if name in LAYERED else {}
  return {name: partial(MAPS[name], **at(name)) for name in wanted}


def laid_over(
  name: str, values: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
  """(the map as a picture [h w 3] uint8, with its box [4] drawn if it is one of places).

  What has no sign lies as colours over the photograph; what has one lies over the grey photograph,
  red for and blue against; gradients are seen better alone, on grey.
  """
  if name in PLACES:
    box = explain.localize(values[None], image.shape[:2])[0]
    return framed(figures.overlay(image, values), box), box
  return (_detail(values) if name in GRADIENTS else _signed(image, values)), None


def framed(image: np.ndarray, box: np.ndarray, color=(255, 255, 255)) -> np.ndarray:
  """The picture with a frame of two pixels inside the box (x0 y0 x1 y1); none if it is empty."""
  x0, y0, x1, y1 = np.asarray(box, int)
  inner = np.zeros(image.shape[:2], bool)
  inner[y0:y1, x0:x1] = True
  inner[y0 + 2 : max(y1 - 2, 0), x0 + 2 : max(x1 - 2, 0)] = False
  return np.where(inner[..., None], np.array(color, np.uint8), image)


def _detail(values: np.ndarray) -> np.ndarray:
  """Signed [h w c] -> [h w 3] uint8 around grey; the strongest of 200 values are clipped."""
  values = values if values.shape[-1] == 3 else values.mean(-1, keepdims=True).repeat(3, -1)
  peak = max(float(np.quantile(np.abs(values), 0.995)), 1e-12)
  return np.rint(127.5 + 127.5 * np.clip(values / peak, -1, 1)).astype(np.uint8)


def _signed(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Signed [h w] or [h w c] over the grey photograph."""
  values = values.sum(-1) if values.ndim == 3 else values
  peak = max(float(np.quantile(np.abs(values), 0.995)), 1e-12)
  share = np.clip(values / peak, -1, 1)
  color = figures.colored((share + 1) / 2, "coolwarm")
  grey = image.mean(-1, keepdims=True) * 0.6 + 100
  weight = np.abs(share[..., None]) ** 0.5
  return np.rint(grey * (1 - weight) + color * weight).clip(0, 255).astype(np.uint8)


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
