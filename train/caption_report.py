"""What a captioner learned, as one HTML page: python -m train.caption_report WORKDIR

Shows scores, captions beside people's, and where the network looked for each word, from
what a finished run of python -m train.caption leaves.
"""

from collections.abc import Sequence
import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from train import caption_scores, describe, figures, options, page, report
from train.data import transforms
from train.options import option
from train.page import Number
import zoo
from zoo.text import vocabulary

SHOWN = 4  # pictures of each kind, word by word
LISTED = 60  # pictures with their captions alone


def write(workdir: Path, out: Path | None = None) -> Path:
  """Writes report.html of a finished run; returns where.

  Raises:
    FileNotFoundError, ValueError: what the folder lacks.
  """
  info = report.read_run(workdir)
  if lacking := [n for n in ("captions.json", "scores.json") if not (workdir / n).exists()]:
    raise FileNotFoundError(
      f"{workdir} has no {' and no '.join(lacking)}; python -m train.caption --report leaves them"
    )
  rows, scores = (
    json.loads((workdir / name).read_text("utf-8")) for name in ("captions.json", "scores.json")
  )
  with open(workdir / "metrics.csv", newline="") as file:
    logged = [
      (int(r["step"]), r["split"], r["name"], float(r["value"])) for r in csv.DictReader(file)
    ]
  split = "test" if "test" in info["images"] else "val"
  each = caption_scores.cider_d(
    *zip(*((_words(row["caption"]), [_words(c) for c in row["references"]]) for row in rows))
  )
  order = np.argsort(each, kind="stable")
  title = f"{info['model']} on {Path(info['data']).name}"
  own = scores["model"]
  names = {"nats": "nats for a word", "word": "words right, each behind the right ones"}
  body = [
    f"<h1>{page.escape(title)}</h1>",
    page.paragraph(f"{len(rows)} {split} photographs, at {info['size']} pixels.", soft=True),
    page.headline([
      (f"{own['CIDEr-D']:.3f}", "CIDEr-D of the captions"),
      (f"{100 * own['BLEU-4']:.1f}", "BLEU-4"),
      *((f"{found['CIDEr-D']:.3f}", f"CIDEr-D: {who}") for who, found in scores.items()
        if who != "model"),
    ]),
    page.section("How it learned", page.figures(
      f"<h3>{text}</h3>" + page.figure(
        page.data_uri(figures.curve({workdir.name: logged}, name, share=name == "word")), alt=text
      ) for name, text in names.items()
    )),
    page.section("Scores", page.table(
      ["", *own], [[who, *(Number(f"{v:.3f}") for v in found.values())] for who, found in
                   scores.items()], main=0,
    )),
    *_photographs(workdir, info, rows, order, each),
    page.section("All captions", page.table(
      ["picture", "caption", "a person's", "CIDEr-D"],
      [[rows[i]["image"], rows[i]["caption"], rows[i]["references"][0], Number(f"{each[i]:.2f}")]
       for i in order[::-1][:LISTED]], tall=True,
    )),
    page.section("How it was made", page.code(info["command"]), page.paragraph(
      ", ".join(report.versions()), soft=True
    )),
  ]  # fmt: skip
  out = out or workdir / "report.html"
  page.write(out, page.page(title, body))
  return out


def _words(text: str) -> list[str]:
  return vocabulary.words(text)


def _photographs(workdir: Path, info, rows, order, each) -> list[str]:
  """A section for the worst and the best, word by word."""
  root = Path(info["data"])
  root = root if root.is_dir() else root.parent
  pixels = zoo.record(workdir).preprocess
  path = workdir / "attention.npy"
  maps = np.load(path, mmap_mode="r") if path.exists() else None
  sections = []
  for title, some in {"The best": order[::-1][:SHOWN], "The worst": order[:SHOWN]}.items():
    body = []
    for i in some:
      row, words = rows[i], tuple(rows[i]["words"])
      try:
        picture = transforms.decode((root / row["image"]).read_bytes())
      except (OSError, ValueError) as error:
        text = f"The photographs cannot be shown: {error}"
        return [page.section("Photographs", page.paragraph(text))]
      view = pixels.crop(Image.fromarray(picture))
      heat = None if maps is None else maps[i, : len(words)].astype(np.float32)
      said = describe.Said(row["caption"], row["log_prob"], (), words, heat)
      seen = [("the photograph", view), *describe.looks(view, said)]
      body += [
        f"<h3>{page.escape(row['caption'])}</h3>",
        page.paragraph(f"CIDEr-D {each[i]:.2f}; people: {'; '.join(row['references'])}"),
        describe.word_cards((word, page.data_uri(figures.png(image))) for word, image in seen),
      ]
    sections.append(page.section(title, *body))
  return sections


@dataclasses.dataclass(frozen=True)
class Config:
  out: str = option("", "The page; report.html in the folder if not given.")


def main(argv: Sequence[str], config: Config) -> None:
  if len(argv) != 2:
    raise ValueError("name the folder of one run: python -m train.caption_report WORKDIR")
  print(write(Path(argv[1]), Path(config.out) if config.out else None).resolve())


if __name__ == "__main__":
  options.run(main, Config, arguments=True, stopped="stopped; nothing was written")
