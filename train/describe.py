"""Says in words what is in a photograph, by a trained captioner.

  python -m train.describe --model=runs/mine photo.jpg
  python -m train.describe --model=runs/mine photo.jpg folder/ --beam=5 --out=answers

Prints a caption for each photograph.  --out writes a folder: answers.json (captions with their
log-probabilities), index.html, and PNGs of where the network looked for each word, if it is one
that looks.  What cannot be read is named at the end, and makes the exit status 1.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from train import batches, figures, options, output, page, predict, startup
from train.options import option
import zoo
from zoo.text import caption, decode, vocabulary


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option("", "The folder of a run, or a .safetensors file.")
  out: str = option("", "Folder to write answers.json, pictures and index.html to; must be new.")
  beam: int = option(
    3, "Captions that the search keeps; 1 takes the likeliest word.", lower_bound=1
  )
  penalty: float = option(
    0.7, "Captions are ranked by log p / length**penalty; 0 favours short ones.", lower_bound=0.0
  )
  longest: int = option(20, "Words of a caption, at most.", lower_bound=1)
  batch: int = option(8, "Photographs computed at once.", lower_bound=1)
  threads: int = option(4, "Threads that read photographs.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Said:
  """One caption of a picture."""

  text: str
  log_prob: float
  others: tuple[tuple[str, float], ...]  # what the search found besides
  words: tuple[str, ...]  # what is looked for: the words, and the end
  attention: np.ndarray | None  # [word h w], where; None of a network that does not look


def captioner(
  model: str | Path, *, beam: int = 3, penalty: float = 0.7, longest: int = 20, batch: int = 8
) -> tuple[zoo.Preprocess, Callable[[Sequence[np.ndarray]], list[Said]]]:
  """(how a picture is looked at, function of such views).

  Args:
    model, beam, penalty, longest, batch: see `Config`.

  Raises:
    ValueError, FileNotFoundError: there is no such model, or it says nothing.
  """
  record = zoo.record(model)
  if record.variant not in caption.VARIANTS:
    raise ValueError(f"{model} says nothing; captioners are {', '.join(caption.VARIANTS)}")
  network, variables = zoo.load(model)
  if len(record.classes) != network.num_classes:
    raise ValueError(f"{model} does not know the words of its {network.num_classes} classes")
  classes, variables = record.classes, jax.device_put(variables)

  @jax.jit
  def run(variables, image):
    x = record.preprocess.normalize(image)
    step = caption.stepper(network, variables)
    state = network.apply(variables, x, train=False, method="begin")
    found = decode.beam(step, state, longest + 1, beam, penalty=penalty)
    best = found.tokens[:, 0]
    heard = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=decode.START)
    ends = network.apply(variables, x, heard, train=False)
    return found, ends.get("attention")

  def say(views):
    answers = []
    for i in range(0, len(views), batch):
      some = np.stack(views[i : i + batch])
      found, attention = jax.device_get(run(variables, batches.padded(some, batch)))
      answers += [
        _said(classes, *(part[k] for part in found), None if attention is None else attention[k])
        for k in range(len(some))
      ]
    return answers

  return record.preprocess, say


def _said(classes, tokens, lengths, log_probs, attention) -> Said:
  """Of the sequences of one picture, [width t], the best first."""
  texts = [vocabulary.caption(row, classes) for row in tokens]
  words = tuple("(end)" if t == decode.END else classes[t] for t in tokens[0, : lengths[0]])
  if attention is not None:
    side = round(attention.shape[-1] ** 0.5)  # pictures are square, and so are their maps
    attention = attention[: len(words)].reshape(-1, side, side)
  others = [(text, float(p)) for text, p in zip(texts[1:], log_probs[1:]) if np.isfinite(p)]
  return Said(texts[0], float(log_probs[0]), tuple(others), words, attention)


def looks(view: np.ndarray, said: Said) -> list[tuple[str, np.ndarray]]:
  """(word, the picture under where the network looked for it, more than everywhere)."""
  if said.attention is None:
    return []
  return [
    (word, figures.overlay(view, heat - heat.min()))
    for word, heat in zip(said.words, said.attention)
  ]


def word_cards(views: Iterable[tuple[str, str]]) -> str:
  """A picture for each word, side by side: (word, where its PNG is)."""
  return page.cards(
    page.card([page.figure(source, alt=f"where: {word}", lazy=True)], word, [])
    for word, source in views
  )


class Folder(output.Output):
  """Pictures, answers.json and index.html."""

  def __init__(self, out: Path, title: str):
    super().__init__(out)
    self._title, self._sections, self._rows = title, [], []

  def add(self, path: Path, view: np.ndarray, said: Said) -> None:
    number, text = len(self._rows) + 1, predict.readable(path)
    pictures = {f"{number:04d}.png": ("as the network sees it", view)}
    for i, (word, seen) in enumerate(looks(view, said), start=1):
      pictures[f"{number:04d}_{i:02d}.png"] = (word, seen)
    for name, (_, pixels) in pictures.items():
      (self.part / name).write_bytes(figures.png(pixels))
    self._rows.append({
      "image": text, "caption": said.text, "log_prob": said.log_prob,
      "others": [{"caption": c, "log_prob": p} for c, p in said.others],
    })  # fmt: skip
    shown = word_cards((word, name) for name, (word, _) in pictures.items())
    self._sections.append(page.section(said.text, page.paragraph(text, soft=True), shown))

  def finish(self, failures: Sequence[str]) -> bool:
    """Puts the folder in its place, unless nothing was added."""
    if not self._rows:
      return False
    rows = json.dumps(self._rows, ensure_ascii=False, indent=1)
    (self.part / "answers.json").write_text(rows + "\n", "utf-8")
    body = [f"<h1>{page.escape(self._title)}</h1>", *self._sections]
    if failures:
      body.append(page.section("Not read", page.bullets(failures)))
    page.write(self.part / "index.html", page.page(self._title, body))
    self.appear()
    return True


def main(argv: Sequence[str], config: Config) -> int:
  if not config.model or not argv[1:]:
    raise ValueError(
      "name a model and photographs: python -m train.describe --model=runs/mine photo.jpg"
    )
  startup.set_up_compilation()
  failures = []
  failed = lambda sentence: failures.append(predict.readable(sentence))
  paths = predict.find(argv[1:], failed)
  pixels, say = captioner(
    config.model, beam=config.beam, penalty=config.penalty, longest=config.longest,
    batch=min(config.batch, max(len(paths), 1)),
  )  # fmt: skip
  with contextlib.ExitStack() as stack:
    folder = None
    if config.out:
      title = f"Described by {Path(config.model).name}"
      folder = stack.enter_context(Folder(Path(config.out), title))
    crop = lambda picture: pixels.crop(Image.fromarray(picture))
    read = predict.read(paths, config.threads, failed, crop)
    for some in batches.chunks(read, config.batch):
      for (path, view), said in zip(some, say([view for _, view in some])):
        print(f"{predict.readable(path)}: {said.text}", flush=True)
        if folder:
          folder.add(path, view, said)
    if folder and folder.finish(failures):
      print(f"pictures: {(Path(config.out) / 'index.html').resolve()}")
  return predict.unanswered(failures)


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
