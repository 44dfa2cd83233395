"""What is in a photograph, by a pretrained or a trained network.

  python -m train.predict --model=resnet18.tv1 photo.jpg
  python -m train.predict --model=runs/mine photo.jpg folder/ --top=3 --out=answers
  python -m train.predict --model=runs/mine --watch inbox/
  python -m train.predict --model=vgg16.tv1 photo.jpg --maps=grad_cam,guided,occlusion --out=answers

Prints the most probable classes of each photograph; photographs in folders are found at any depth.
--out writes a folder: answers.csv (path, rank, class, prob), index.html to look at, and PNGs of
what the network saw and of where it looked. boxes.csv has the box that a map of places draws around
what it explains, in pixels of what the network saw. What cannot be read is named at the end, and
makes the exit status 1; the other photographs are answered all the same. Runs of train.label and
train.bags answer in answers.csv what they were asked: labels, numbers, places (see train.answer).
--watch answers each photograph that is put into the folders from then on, as soon as it is whole,
until Ctrl-C or SIGTERM.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import csv
import dataclasses
from functools import partial
import io
from pathlib import Path
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from train import figures, gallery, mesh, options, output, page, runtime, startup
from train.batches import chunks, one_ahead, padded
from train.data import transforms
from train.data.folders import SUFFIXES
from train.options import option
import zoo
from zoo import catalog
from zoo.weights import imagenet_classes


RUNTIMES = ("xla", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "Weights (variant.tag), the folder of a run, or a .safetensors file.")
  top: int = option(5, "How many classes to name for each photograph.", lower_bound=1)
  out: str = option("", "Folder to write pictures, answers.csv and index.html to; must be new.")
  maps: tuple[str, ...] = option(
    ("grad_cam",), f"Maps to lay over the photographs in --out: {', '.join(gallery.MAPS)}, or none."
  )
  layer: str = option(
    "", "End point or submodule of the maps of places; empty for the last that has places."
  )
  target: str = option("", "Class to explain, by name; empty for the first answer of each.")
  batch: int = option(16, "Photographs computed at once.", lower_bound=1)
  threads: int = option(4, "Threads that read photographs.", lower_bound=1)
  watch: bool = option(
    False, "Answer each photograph that is put into the folders from now on, until Ctrl-C."
  )
  runtime: str = option(
    "xla", "What computes the classes; on a CPU onnxruntime is the faster one.", choices=RUNTIMES
  )


@dataclasses.dataclass(frozen=True)
class Answer:
  path: Path
  top: list[tuple[str, float]]  # (class, probability), the most probable first
  view: np.ndarray  # [size size 3] uint8, what the network saw
  maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by gallery.MAPS
  target: str = ""  # the class that they explain


# Paths and their views [b h w 3] -> what waits for the answers.
Begin = Callable[[Sequence[Path], np.ndarray], Callable[[], list[Answer]]]


def predict(
  model: str | Path, paths: Sequence[Path], *, top: int = 5, maps: Sequence[str] = (),
  layer: str | None = None, target: str = "", batch: int = 16, threads: int = 4,
  by: str = "xla", failed: Callable[[str], None],
) -> Iterator[Answer]:  # fmt: skip
  """Answers in order of `paths`; `failed` is called with a sentence for each that is unreadable.

  `by` is one of RUNTIMES.

  Raises:
    ValueError, FileNotFoundError: as `answerer`.
  """
  batch = min(batch, max(len(paths), 1))
  record, begin = answerer(
    model, top=top, maps=maps, layer=layer, target=target, batch=batch, by=by
  )
  reads = ((path, path.read_bytes) for path in paths)
  some = batches(views(reads, record.preprocess, threads), batch, failed)
  for finish in one_ahead(begin(*each) for each in some):
    yield from finish()


def answerer(
  model: str | Path, *, top: int, batch: int, maps: Sequence[str] = (), layer: str | None = None,
  target: str = "", by: str = "xla",
) -> tuple[zoo.Record, Begin]:  # fmt: skip
  """What is known of a model, and what begins to answer up to `batch` pictures, on all devices.

  Raises:
    ValueError, FileNotFoundError: no such model, class, map or layer, or a model without classes.
  """
  methods = gallery.methods(maps, layer)
  record = zoo.record(model)
  network, variables = zoo.load(model)
  if network.num_classes is None:
    raise ValueError(f"{model} is a backbone without classes; name a classifier")
  classes = class_names(record, network.num_classes)
  explained = number_of(target, classes) if target else None
  outside = runtime.onnxruntime_logits(network, variables, record) if by == "onnxruntime" else None
  devices = mesh.local(batch)
  rows = mesh.even(batch, devices)
  variables = jax.device_put(variables, mesh.replicated(devices))

  @jax.jit
  def step(variables, image, logits):
    x = record.preprocess.normalize(image)
    if logits is None:
      logits = network.apply(variables, x, train=False)["logits"]
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    found = jax.lax.top_k(probs, min(top, len(classes)))
    of = found[1][:, 0] if explained is None else jnp.full(len(x), explained)
    return found, {name: method(network, variables, x, of) for name, method in methods.items()}

  def begin(paths, seen):
    image = padded(seen, rows)
    logits = outside and outside(image)
    computed = step(variables, mesh.put_batch(image, devices), logits)
    return partial(finish, paths, seen, computed)

  def finish(paths, seen, computed):
    (probs, index), drawn = jax.device_get(computed)
    found = []
    for i, path in enumerate(paths):
      named = [(classes[c], float(p)) for c, p in zip(index[i], probs[i])]
      own = {name: drawn[name][i] for name in methods}  # jit sorts names
      found.append(Answer(path, named, seen[i], own, target or named[0][0]))
    return found

  return record, begin


def class_names(record: zoo.Record, num_classes: int) -> Sequence[str]:
  """The record's own, ImageNet's for 1000 or 1001 classes, else numbers."""
  if len(record.classes) == num_classes:
    return record.classes
  if num_classes in (1000, 1001):
    return imagenet_classes(num_classes)
  return [f"class {i}" for i in range(num_classes)]


def number_of(name: str, classes: Sequence[str]) -> int:
  """The class of that name. Raises ValueError that names the nearest."""
  if name not in classes:
    raise ValueError(f"the model has no class {name!r}{catalog.suggest(name, classes)}")
  return list(classes).index(name)


def views(
  reads: Iterable[tuple[Any, Callable[[], bytes]]], preprocess: zoo.Preprocess, threads: int
) -> Iterator[tuple[Any, Future]]:
  """(name, its view to come), a few ahead of who asks."""
  return _ahead(reads, lambda p: preprocess.crop(Image.fromarray(p)), threads, 4 * threads)


def batches(
  views: Iterable[tuple[Path, Future]], size: int, failed: Callable[[str], None]
) -> Iterator[tuple[list[Path], np.ndarray]]:
  """(paths, [b h w 3] uint8) with b = size, but for the last."""
  for some in chunks(_arrived(views, failed), size):
    paths, arrays = zip(*some)
    yield list(paths), np.stack(arrays)


def read(
  paths: Iterable[Path], threads: int, failed: Callable[[str], None],
  view: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
) -> Iterator[tuple[Path, np.ndarray]]:  # fmt: skip
  """(path, view of the picture [h w 3] uint8) in order, some read ahead of who asks.

  Of what is unreadable `failed` is called with a sentence.
  """
  reads = ((path, path.read_bytes) for path in paths)
  return _arrived(_ahead(reads, view, threads, 2 * threads), failed)  # whole pictures are large


def _ahead(
  reads: Iterable[tuple[Any, Callable[[], bytes]]], view: Callable[[np.ndarray], np.ndarray],
  threads: int, most: int,
) -> Iterator[tuple[Any, Future]]:  # fmt: skip
  """(name, view of its picture to come), at most so many ahead of who asks."""
  with ThreadPoolExecutor(threads) as pool:
    waiting = deque()
    for name, read in reads:
      waiting.append((name, pool.submit(lambda read: view(transforms.decode(read())), read)))
      if len(waiting) > most:
        yield waiting.popleft()
    while waiting:
      yield waiting.popleft()


def _arrived(
  views: Iterable[tuple[Any, Future]], failed: Callable[[str], None]
) -> Iterator[tuple[Any, np.ndarray]]:
  """(name, view) of each that can be read; of the others `failed` gets a sentence."""
  for name, job in views:
    try:
      view = job.result()
    except transforms.UnreadableImage as error:
      failed(f"{name}: {error}")
    except OSError as error:
      failed(f"{name}: it cannot be opened: {error.strerror or error}")
    else:
      yield name, view


def find(arguments: Iterable[str], failed: Callable[[str], None]) -> list[Path]:
  """The photographs that files and folders of the command line mean, each once."""
  found = []
  for path in map(Path, arguments):
    if not path.is_dir():
      found.append(path)
      continue
    inside = below(path)
    if not inside:
      failed(f"{path}: the folder has no photographs ({' '.join(SUFFIXES)})")
    found += inside
  return list(dict.fromkeys(found))


def below(folder: Path) -> list[Path]:
  """The photographs of a folder, at any depth, in order of their names; no hidden ones."""
  return sorted(
    p for p in folder.rglob("*")
    if p.suffix.lower() in SUFFIXES and p.is_file()
    and not any(part.startswith(".") for part in p.relative_to(folder).parts)
  )  # fmt: skip


class Album(output.Output):
  """Pictures, maps, answers.csv and index.html."""

  def __init__(self, out: Path, title: str):
    super().__init__(out)
    self._title, self._rows, self._boxes, self._cards = title, [], [], []

  def add(self, answer: Answer) -> None:
    text, number = readable(answer.path), len(self._cards) + 1
    name = f"{number:04d}_{re.sub(r'[^A-Za-z0-9-]+', '_', answer.path.stem)[:40]}"
    pictures = {f"{name}.png": ("as the network sees it", answer.view)}
    for method, values in answer.maps.items():
      over, box = gallery.laid_over(method, values, answer.view)
      words = f"{method} for {figures.shorten(answer.target)}"
      pictures[f"{name}_{method}.png"] = (words + ("" if np.any(values) else ": nothing"), over)
      if box is not None:
        self._boxes.append((text, method, answer.target, *map(int, box)))
    for file, (_, pixels) in pictures.items():
      (self.part / file).write_bytes(figures.png(pixels))
    self._rows += [
      (text, rank, label, f"{prob:.6f}") for rank, (label, prob) in enumerate(answer.top, 1)
    ]
    views = [
      page.figure(file, alt=f"{caption}: {text}", caption=caption, lazy=True)
      for file, (caption, _) in pictures.items()
    ]
    bars = page.bars((label, prob, "" if i == 0 else "other")
                     for i, (label, prob) in enumerate(answer.top))  # fmt: skip
    self._cards.append(page.card(views, answer.top[0][0], [text], bars))

  def finish(self, failures: Sequence[str]) -> None:
    self._table("answers.csv", ("path", "rank", "class", "prob"), self._rows)
    if self._boxes:
      self._table("boxes.csv", ("path", "map", "class", "x0", "y0", "x1", "y1"), self._boxes)
    body = [f"<h1>{page.escape(self._title)}</h1>"]
    body.append(page.paragraph(f"{len(self._cards)} photographs", soft=True))
    body.append(page.cards(self._cards))
    if failures:
      body.append(page.section("Not read", page.bullets(failures)))
    (self.part / "index.html").write_text(page.page(self._title, body), "utf-8")
    self.appear()

  def _table(self, name: str, header: Sequence[str], rows: Sequence[tuple]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([header, *rows])
    (self.part / name).write_text(table.getvalue(), "utf-8", newline="")


def readable(path: Path | str) -> str:
  """A path as text that can be printed, whatever bytes its name holds."""
  return str(path).encode("utf-8", "replace").decode()


def unanswered(failures: Sequence[str]) -> int:
  """Names what could not be answered; the exit status."""
  if failures:
    print("\n".join(["not answered:", *failures]), file=sys.stderr)
  return int(bool(failures))


def show(answer: Answer) -> str:
  lines = [f"{100 * prob:6.1f} %  {label}" for label, prob in answer.top]
  return "\n".join([readable(answer.path), *lines])


def main(argv: Sequence[str], config: Config) -> int:
  failures = []
  failed = lambda sentence: failures.append(readable(sentence))
  if not config.model or not argv[1:]:
    raise ValueError(
      "name a model and photographs: python -m train.predict --model=resnet18.tv1 photo.jpg folder/"
    )
  if config.model not in catalog.VARIANTS and zoo.record(config.model).outputs and not config.watch:
    from train import answer  # late: it knows this module

    return answer.main(argv, config)
  startup.set_up_compilation()
  if config.watch:
    from train import watch  # late: it knows this module

    return watch.main(argv, config)
  paths = find(argv[1:], failed)
  answered = 0
  with contextlib.ExitStack() as stack:
    title = f"Seen by {Path(config.model).name}"
    album = stack.enter_context(Album(Path(config.out), title)) if config.out else None
    few = len(paths) <= config.batch
    bar = stack.enter_context(tqdm(total=len(paths), unit=" photographs", disable=few or None))
    answers = predict(
      config.model, paths, top=config.top, maps=config.maps if config.out else (),
      layer=config.layer or None, target=config.target, batch=config.batch, threads=config.threads,
      by=config.runtime, failed=failed,
    ) if paths else ()  # fmt: skip
    for answered, answer in enumerate(answers, 1):
      if album:
        album.add(answer)
      tqdm.write(show(answer), file=sys.stdout)
      bar.update(min(answered + len(failures), len(paths)) - bar.n)
    if album and answered:
      album.finish(failures)
  status = unanswered(failures)
  if album and answered:
    print(f"pictures: {(Path(config.out) / 'index.html').resolve()}")
  return status


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
