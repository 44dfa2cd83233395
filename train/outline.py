"""What each pixel of a photograph belongs to, by a published or a trained segmenter.

  python -m train.outline --model=deeplabv3_resnet50.tv1 photo.jpg --out=answers
  python -m train.outline --model=runs/mine photo.jpg folder/ --out=answers

Prints which share of each photograph its classes have.  --out writes a folder: masks/ with PNGs
whose pixels are the classes' numbers (255 never occurs), overlays/ to look at, classes.txt,
answers.csv and index.html.  A photograph is laid out at the size that the model was trained at and
seen through windows that overlap; where they do, the middle of a window counts more than its edge.
What cannot be read is named at the end, and makes the exit status 1.
"""

from collections.abc import Callable, Sequence
import contextlib
import csv
import dataclasses
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from train import batches, figures, options, output, page, predict, startup
from train.data import masks
from train.options import option
import zoo

SHOWN = 640  # pixels of the longer side of pictures on the page


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Weights (variant.tag), the folder of a run, or a .safetensors file.")
  out: str = option("", "Folder to write masks, overlays and index.html to; must be new.")
  size: int = option(
    0, "Pixels of a photograph's shorter side as the model sees it; 0 for the model's own.",
    lower_bound=0,
  )  # fmt: skip
  window: int = option(0, "Pixels of a square window; 0 for the model's own size.", lower_bound=0)
  overlap: float = option(
    0.5, "Share of a window that the next one sees too.", lower_bound=0.0, upper_bound=0.9
  )
  flip: bool = option(False, "See each window from both sides, left for right.")
  batch: int = option(4, "Windows computed at once.", lower_bound=1)
  threads: int = option(4, "Threads that read photographs.", lower_bound=1)


def segmenter(
  model: str | Path, *, size: int = 0, window: int = 0, overlap: float = 0.5, flip: bool = False,
  batch: int = 4,
) -> tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]:  # fmt: skip
  """(classes, function of [h w 3] uint8 that gives [h w] uint8).

  Args:
    size, window, overlap, flip, batch: see `Config`.

  Raises:
    ValueError, FileNotFoundError: there is no such model, or it names no classes of pixels.
  """
  record = zoo.record(model)
  if (task := zoo.task(record.variant)) != "segment":
    raise ValueError(
      f"{model} gives no class for each pixel; it is one of zoo.names(task={task!r})"
    )
  network, variables = zoo.load(model)
  count = network.num_classes
  if count is None or record.variant == "craft":
    raise ValueError(f"{model} gives no classes; name one of {', '.join(_segmenters())}")
  named = record.classes if len(record.classes) == count else [f"class {i}" for i in range(count)]
  classes = tuple(named) if count > 1 else ("background", *named)
  pixels = record.preprocess
  size, window = size or pixels.resize, window or pixels.size
  variables, compiled = jax.device_put(variables), set()

  @jax.jit
  def probs(variables, image):
    x = pixels.normalize(image)
    views = [x, x[:, :, ::-1]] if flip else [x]
    logits = [network.apply(variables, v, train=False)["logits"] for v in views]
    some = [_probs(y.astype(jnp.float32)) for y in logits]
    return (some[0] + some[1][:, :, ::-1]) / 2 if flip else some[0]

  def run(picture):
    small, _ = masks.resized(picture, None, size)
    see = lambda x: np.asarray(probs(variables, x))
    found = blended(see, small, window, overlap, batch, compiled)
    return likeliest(found, picture.shape[:2])

  return classes, run


def _segmenters() -> list[str]:
  return [name for name in zoo.names(task="segment") if name != "craft"]


def _probs(logits):
  """Of one class, the logits are those of its being there."""
  if logits.shape[-1] > 1:
    return jax.nn.softmax(logits)
  there = jax.nn.sigmoid(logits)
  return jnp.concatenate([1 - there, there], axis=-1)


def starts(length: int, window: int, overlap: float) -> list[int]:
  """Where windows begin that cover `length` evenly and share at least `overlap` with the next."""
  if length <= window:
    return [0]
  step = max(1, int(window * (1 - overlap)))
  count = -((length - window) // -step) + 1
  return [round(i * (length - window) / (count - 1)) for i in range(count)]


def tent(window: int) -> np.ndarray:
  """[window window 1]: how much a window's pixels count, the most in its middle, never nothing."""
  ramp = 1 - abs((np.arange(window) + 0.5) / (window / 2) - 1)
  return np.outer(ramp, ramp)[..., None].astype(np.float32)


def blended(
  probs: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, window: int, overlap: float,
  batch: int, compiled: set[int],
) -> np.ndarray:  # fmt: skip
  """[h w classes] of a picture [h w 3], by `probs` of [n window window 3] of its windows.

  Args:
    batch: at most so many windows at once.
    compiled: numbers of windows that `probs` is compiled for.
  """
  height, width = picture.shape[:2]
  pads = [(0, max(0, window - n)) for n in (height, width)]
  padded = np.pad(picture, (*pads, (0, 0)), constant_values=128)
  places = [
    (y, x)
    for y in starts(padded.shape[0], window, overlap)
    for x in starts(padded.shape[1], window, overlap)
  ]
  weight, total, share = tent(window), None, np.zeros((*padded.shape[:2], 1), np.float32)
  for some in batches.chunks(places, batch):
    rows = batches.filled(some, batches.at_once(len(some), compiled, batch))
    views = np.stack([padded[y : y + window, x : x + window] for y, x in rows])
    for (y, x), found in zip(some, probs(views)):
      if total is None:
        total = np.zeros((*padded.shape[:2], found.shape[-1]), np.float32)
      total[y : y + window, x : x + window] += found * weight
      share[y : y + window, x : x + window] += weight
  return (total / share)[:height, :width]


def likeliest(probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[*size] uint8: the likeliest class, where [h w classes] is enlarged bilinearly."""
  best, answer = np.full(size, -1, np.float32), np.zeros(size, np.uint8)
  for k in range(probs.shape[-1]):  # one at a time: photographs have more pixels than memory has
    one = cv2.resize(probs[..., k], size[::-1], interpolation=cv2.INTER_LINEAR)
    answer[one > best] = k
    best = np.maximum(best, one)
  return answer


def painted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """[h w 3] uint8: classes but the first in colour over the picture, what is ignored in white."""
  color = masks.palette()[mask]
  weight = np.where(mask == 0, 0.0, 0.55)[..., None]
  edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
  weight[edge] = 0.9
  mixed = picture * (1 - weight) + color * weight
  return np.rint(mixed).astype(np.uint8)


def swatch(number: int) -> page.Markup:
  """The class's colour, for a table."""
  color = "#" + "".join(f"{v:02x}" for v in masks.palette()[number])
  return page.Markup(
    f'<i style="display:inline-block;width:1.4em;height:.8em;background:{color}"></i>'
  )


def shares(mask: np.ndarray, classes: Sequence[str]) -> list[tuple[str, float]]:
  """(class, share of the pixels), the largest first, without what does not occur."""
  counts = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
  return [(classes[k], float(counts[k])) for k in np.argsort(-counts) if counts[k]]


class Folder(output.Output):
  """Masks, overlays, answers.csv, classes.txt and index.html."""

  def __init__(self, out: Path, title: str, classes: Sequence[str]):
    super().__init__(out)
    self._title, self._classes = title, classes
    self._cards, self._rows = [], []
    for name in ("masks", "overlays"):
      (self.part / name).mkdir()

  def add(
    self, path: Path, picture: np.ndarray, mask: np.ndarray, found: Sequence[tuple[str, float]]
  ) -> None:
    """`found` as of `shares`."""
    number, text = len(self._cards) + 1, predict.readable(path)
    name = f"{number:04d}_{path.stem}.png".encode("ascii", "replace").decode().replace("?", "_")
    (self.part / "masks" / name).write_bytes(masks.indexed(mask))
    scale = min(1.0, SHOWN / max(mask.shape))
    small, flat = masks.resized(picture, mask, scale * min(mask.shape))
    (self.part / "overlays" / name).write_bytes(figures.png(painted(small, flat)))
    self._rows += [(text, f"masks/{name}", label, f"{share:.6f}") for label, share in found]
    view = page.figure(f"overlays/{name}", alt=text, lazy=True)
    bars = page.bars((label, share, "") for label, share in found[:8])
    self._cards.append(page.card([view], path.stem, [text], bars))

  def finish(self, failures: Sequence[str]) -> bool:
    """Puts the folder in its place, unless nothing was added."""
    if not self._cards:
      return False
    with open(self.part / "answers.csv", "w", newline="", encoding="utf-8") as file:
      csv.writer(file).writerows([("path", "mask", "class", "share"), *self._rows])
    (self.part / "classes.txt").write_text("".join(f"{c}\n" for c in self._classes), "utf-8")
    legend = page.table(
      ["", "number", "class"],
      [[swatch(i), page.Number(i), name] for i, name in enumerate(self._classes)],
    )
    body = [f"<h1>{page.escape(self._title)}</h1>", page.cards(self._cards, large=True)]
    body.append(page.section("Colours", legend))
    if failures:
      body.append(page.section("Not read", page.bullets(failures)))
    page.write(self.part / "index.html", page.page(self._title, body))
    self.appear()
    return True


def main(argv: Sequence[str], config: Config) -> int:
  if not config.model or not argv[1:]:
    raise ValueError(
      "name a model and photographs: python -m train.outline --model=deeplabv3_resnet50.tv1 "
      "photo.jpg --out=answers"
    )
  startup.set_up_compilation()
  failures = []
  failed = lambda sentence: failures.append(predict.readable(sentence))
  paths = predict.find(argv[1:], failed)
  fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  del fields["out"], fields["model"]
  threads = fields.pop("threads")
  classes, run = segmenter(config.model, **fields)
  title = f"Outlined by {Path(config.model).name}"
  with contextlib.ExitStack() as stack:
    folder = None
    if config.out:
      folder = stack.enter_context(Folder(Path(config.out), title, classes))
    for path, picture in predict.read(paths, threads, failed):
      mask = run(picture)
      found = shares(mask, classes)
      lines = [f"{100 * share:6.1f} %  {label}" for label, share in found]
      print("\n".join([predict.readable(path), *lines]), flush=True)
      if folder:
        folder.add(path, picture, mask, found)
    if folder and folder.finish(failures):
      print(f"pictures: {(Path(config.out) / 'index.html').resolve()}")
  return predict.unanswered(failures)


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
