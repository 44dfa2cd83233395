"""Which pictures of an index are most like a picture.

  python -m train.search --index=DIR query.jpg folder/ --k=10 --out=answers
  python -m train.search --index=DIR query.jpg --colors=0.3     (share of colours in the likeness)
  python -m train.search --index=DIR --measure                  (recall@k, P@k, mAP by its labels)
  python -m train.search --index=DIR --duplicates=0.95

Makes no index: python -m train.embed does. --out writes a folder: neighbours.csv (query, rank,
path, score, label), index.html, sheet.png with each query and what was found for it, and with
--measure measures.json, with --duplicates duplicates.csv. What cannot be read is named at the end,
and makes the exit status 1.
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import json
from pathlib import Path
import re

import numpy as np
from PIL import Image, ImageOps

from convert import writers
from train import embed, figures, options, output, page, predict, startup
from train.data import transforms
from train.options import option
from train.page import percent
from zoo import retrieve

SIDE = 128  # pixels of a picture in a sheet
SHEET = 24  # queries in the sheet
PAIRS = 40  # of duplicates on the page
ENGINES = ("exact", "codes", "faiss", "hnsw")


@dataclasses.dataclass(frozen=True)
class Config:
  index: str = option("", "Folder that train.embed wrote.")
  k: int = option(10, "How many pictures to find for each query.", lower_bound=1)
  out: str = option("", "Folder to write answers to; must be new.")
  colors: float = option(
    0.0, "Share of the likeness that dominant colours have; the layer has the rest.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  engine: str = option(
    "exact", "exact: cosine of all; codes: of all, how many signs differ; faiss: exact, by faiss; "
    "hnsw: faiss's graph, which may miss some, and is kept in the index's folder.", choices=ENGINES,
  )  # fmt: skip
  measure: bool = option(False, "Tell how good the index is: each picture against the others.")
  duplicates: float = option(
    0.0, "Tell which pairs have at least this cosine; 0 for none.", lower_bound=0.0,
    upper_bound=1.0,
  )  # fmt: skip
  threads: int = option(4, "Threads that read pictures.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Found:
  query: str
  rows: list[int]  # of the index, best first
  scores: list[float]  # cosine, or for codes the bits that differ, negative
  view: np.ndarray  # [size size 3] uint8, the query as the network saw it


def vectors_of(index: embed.Index, colors: float):
  """What the index is searched by."""
  return retrieve.Joined(index.features, index.signatures, colors) if colors else index.features


def search(config: Config, index: embed.Index, paths: Sequence[Path], failed) -> list[Found]:
  """What is found for each picture that can be read. Raises ValueError."""
  info = index.info
  if config.colors and config.engine != "exact":
    raise ValueError(f"--colors are joined by --engine=exact alone, not by {config.engine}")
  batch = min(len(paths), 16)
  embedder = embed.Embedder(info["model"], info["layer"], info["size"], info["colors"], batch)
  reads = ((path, path.read_bytes) for path in paths)
  views = predict.views(reads, embedder.preprocess, config.threads)
  names, features, signatures, seen = [], [], [], []
  for some, image in predict.batches(views, embedder.batch, failed):
    for whole, part in zip((features, signatures), embedder(image)):
      whole.append(part)
    names += [predict.readable(path) for path in some]
    seen += list(image)
  if not names:
    return []
  own = dataclasses.replace(
    index, features=np.concatenate(features), signatures=np.concatenate(signatures)
  )
  queries = np.asarray(vectors_of(own, config.colors)[:])
  rows, scores = engine(config, index)(queries, min(config.k, len(index.keys)))
  return [Found(*one) for one in zip(names, rows.tolist(), scores.tolist(), seen)]


def engine(config: Config, index: embed.Index):
  """(queries [q d], k) -> (rows [q k], scores [q k]). Raises ValueError if faiss is missing."""
  if config.engine == "exact":
    return lambda queries, k: retrieve.nearest(queries, vectors_of(index, config.colors), k)
  if config.engine == "codes":
    codes = np.asarray(retrieve.codes(index.features))
    return lambda queries, k: retrieve.nearest(np.asarray(retrieve.codes(queries)), codes, k)
  try:
    import faiss
  except ImportError as error:
    raise ValueError(
      f"--engine={config.engine} needs faiss: pip install faiss-cpu; --engine=exact needs nothing"
    ) from error
  features = np.ascontiguousarray(index.features)
  if config.engine == "faiss":
    made = faiss.IndexFlatIP(features.shape[1])
    made.add(features)
  else:
    path = Path(config.index) / "hnsw.faiss"
    if not path.exists():
      made = faiss.IndexHNSWFlat(features.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
      made.add(features)
      with writers.writing(path) as part:
        faiss.write_index(made, str(part))
    made = faiss.read_index(str(path))
    made.hnsw.efSearch = max(64, 2 * config.k)

  def run(queries, k):
    scores, rows = made.search(np.ascontiguousarray(queries), k)
    return rows, scores

  return run


def _square(data: bytes | None) -> np.ndarray:
  """[SIDE SIDE 3] uint8 of an encoded picture; grey where it is gone."""
  try:
    image = Image.fromarray(transforms.decode(data or b""))
  except transforms.UnreadableImage:
    image = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
  return np.asarray(ImageOps.pad(image, (SIDE, SIDE), color=(255, 255, 255)))


def _row(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Squares beside each other, 4 pixels of white between, wider behind the first."""
  blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
  pictures = [*pictures, *[blank] * (columns - len(pictures))]
  cells = [np.pad(p, ((2, 2), (2, 14 if i == 0 else 2), (0, 0)), constant_values=255)
           for i, p in enumerate(pictures)]  # fmt: skip
  return np.concatenate(cells, 1)


def write(out: Path, config: Config, index: embed.Index, found: Sequence[Found], pairs, measured,
          failures: Sequence[str]) -> None:  # fmt: skip
  """Leaves the folder of --out."""
  files, body = {}, []
  title = f"Like these, in {Path(config.index).resolve().name}"
  body += [f"<h1>{page.escape(title)}</h1>",
           page.paragraph(f"{len(index.keys)} pictures, {index.info['layer']} of "
                          f"{index.info['model']}, {config.engine}", soft=True)]  # fmt: skip
  wanted = list(dict.fromkeys([r for f in found for r in f.rows if r >= 0]
                              + [r for i, j, _ in pairs[:PAIRS] for r in (i, j)]))  # fmt: skip
  small = dict(zip(wanted, map(_square, embed.thumbnails(
    index.info["data"], [index.keys[r] for r in wanted]))))  # fmt: skip
  strips, rows = [], []
  for number, one in enumerate(found, 1):
    real = [(r, s) for r, s in zip(one.rows, one.scores) if r >= 0]
    view = np.asarray(Image.fromarray(one.view).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    strip = _row([view, *(small[r] for r, _ in real)], config.k + 1)
    strips.append(strip)
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", Path(one.query).stem)[:40]
    files[name := f"{number:04d}_{stem}.png"] = figures.png(strip)
    rows += [(one.query, rank, index.keys[r], f"{score:.6f}", index.labels[r])
             for rank, (r, score) in enumerate(real, 1)]  # fmt: skip
    body.append(page.figure(name, alt=f"nearest to {one.query}", caption=one.query, lazy=True))
    body.append(page.details("what they are", page.table(
      ("picture", "score", "label"),
      [(index.keys[r], page.Number(f"{s:.3f}"), index.labels[r]) for r, s in real],
    )))  # fmt: skip
  if found:
    files["neighbours.csv"] = _csv(("query", "rank", "path", "score", "label"), rows)
    files["sheet.png"] = figures.png(np.concatenate(strips[:SHEET], 0))
  if measured:
    files["measures.json"] = json.dumps(measured, indent=2) + "\n"
    body.append(page.section("Each picture against the others", page.table(
      ("measure", "value"),
      [(name, page.Number(_shown(name, value))) for name, value in measured.items()],
    )))  # fmt: skip
  if config.duplicates:
    files["duplicates.csv"] = _csv(
      ("path", "like", "score"),
      [(index.keys[i], index.keys[j], f"{score:.6f}") for i, j, score in pairs],
    )
    shown = []
    for number, (i, j, score) in enumerate(pairs[:PAIRS], 1):
      files[name := f"pair_{number:03d}.png"] = figures.png(_row([small[i], small[j]], 2))
      shown.append(page.card([page.figure(name, alt="a pair", lazy=True)], f"{score:.4f}",
                             [index.keys[i], index.keys[j]]))  # fmt: skip
    body.append(page.section(f"{len(pairs)} near duplicates", page.cards(shown)))
  if failures:
    body.append(page.section("Not read", page.bullets(failures)))
  for name, data in files.items():
    page.write(out / name, data)
  page.write(out / "index.html", page.page(title, body))


def _csv(header: Sequence[str], rows) -> str:
  text = io.StringIO(newline="")
  csv.writer(text).writerows([header, *rows])
  return text.getvalue()


def _shown(name: str, value: float) -> str:
  return str(value) if name == "queries" else percent(value)


def main(argv: Sequence[str], config: Config) -> int:
  if not config.index or not (argv[1:] or config.measure or config.duplicates):
    raise ValueError(
      "name an index and pictures: python -m train.search --index=DIR query.jpg; or --measure, or "
      "--duplicates=0.95"
    )
  out = Path(config.out) if config.out else None
  if out and (said := output.taken(out)):
    raise ValueError(said)
  startup.set_up_compilation()
  index, failures = embed.load(Path(config.index)), []
  if not index.keys:
    raise ValueError(f"{config.index} is empty: none of its pictures could be read")
  if config.measure and len(set(index.labels)) < 2:
    raise ValueError(
      f"--measure needs labels, and all pictures of {config.index} have one: lay the pictures of "
      "each kind into a folder of their own and make the index again"
    )
  failed = lambda sentence: failures.append(predict.readable(sentence))
  paths = predict.find(argv[1:], failed)
  found = search(config, index, paths, failed) if paths else []
  for one in found:
    lines = [f"{score:8.3f}  {index.keys[r]}" for r, score in zip(one.rows, one.scores) if r >= 0]
    print("\n".join([one.query, *lines]))
  vectors = vectors_of(index, config.colors)
  if config.engine == "codes":
    vectors = np.asarray(retrieve.codes(index.features))
  measured, pairs = {}, []
  if config.measure:
    measured = retrieve.leave_one_out(vectors, np.array(index.labels))
    print("\n".join(f"{name:14}{_shown(name, value)}" for name, value in measured.items()))
  if config.duplicates:
    pairs = retrieve.duplicates(vectors_of(index, config.colors), config.duplicates)
    for i, j, score in pairs:
      print(f"{score:8.4f}  {index.keys[i]}  {index.keys[j]}")
    print(f"{len(pairs)} near duplicates")
  if out:
    write(out, config, index, found, pairs, measured, failures)
    print(f"pictures: {(out / 'index.html').resolve()}")
  return predict.unanswered(failures)


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
