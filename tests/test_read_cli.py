"""python -m train.read: its lines, its splits, a run, and what it answers to bad input."""

import dataclasses
from functools import partial
import re

import jax
import numpy as np
from PIL import Image
import pytest

from train import loop, optim, read, transcribe
from train.data import lines
from zoo import store
import zoo
from zoo.text import attention_ocr, charset, crnn

CLASSES = charset.of("abc")


def written(folder, texts):
  folder.mkdir(parents=True)
  for i, text in enumerate(texts):
    pixels = np.full((12, 10 + 8 * len(text)), 20 * i, np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
  rows = "".join(f"{i}.png\t{text}\n" for i, text in enumerate(texts))
  (folder / "gt.txt").write_text(rows, encoding="utf-8")
  return folder


def configs(tmp_path, own=None, **fields):
  config = loop.Config(workdir=str(tmp_path / "run"), batch=2, **fields)
  return config, optim.Config(), own or read.Config(lines=6)


def test_a_folder_is_read(tmp_path):
  found = lines.folder(written(tmp_path / "train", ["ab", "c a"]), (*CLASSES, " "))
  assert found.keys == ("0.png", "1.png") and found.texts == ("ab", "c a")
  assert found.picture(1).size == (34, 12)


def test_all_that_is_wrong_with_a_folder_is_said(tmp_path):
  folder = written(tmp_path / "train", ["ab", "xc", "c"])
  with open(folder / "gt.txt", "a") as file:
    file.write("lost.png\ta\n0.png\t\n")
  with pytest.raises(ValueError) as error:
    lines.folder(folder, CLASSES)
  said = str(error.value)
  assert "line 2: no class for 'x' (--characters)" in said
  assert re.search(r"line 4: there is no \S+lost.png", said) and "line 5 has no text" in said
  (folder / "gt.txt").unlink()
  with pytest.raises(FileNotFoundError, match="it has a line FILE<tab>TEXT for each picture"):
    lines.folder(folder, CLASSES)


def test_rendered_lines_are_the_same_for_the_same_seed():
  seen, unseen = read.fonts(read.Config())
  assert len(seen) >= 12 and len(unseen) >= 4
  assert not {p.name.partition("-")[0] for p in seen} & {p.name.partition("-")[0] for p in unseen}
  one, again, other = (lines.Rendered(seen, ("ab", "ca"), 9, seed) for seed in (1, 1, 2))
  assert one.texts == again.texts and set(one.texts) <= {"ab", "ca"}
  pictures = [np.asarray(source.picture(4)) for source in (one, again, other)]
  np.testing.assert_array_equal(*pictures[:2])
  assert pictures[0].shape != pictures[2].shape or (pictures[0] != pictures[2]).any()
  assert pictures[0].min() < 110 < 120 < pictures[0].max(), "ink on paper"


def test_batches_are_a_function_of_the_step():
  seen, _ = read.fonts(read.Config())
  source = lines.Rendered(seen, ("ab", "cab", "b"), 7, 0)
  view = zoo.Line(8, 24).crop

  def some(start, count, index=0, of=1):
    batches = lines.train_batches(
      source, view, CLASSES, batch=2, seed=5, start_step=start, threads=2, process_index=index,
      process_count=of,
    )  # fmt: skip
    return [next(batches) for _ in range(count)]

  whole = some(0, 6)
  assert sorted(i for b in whole[:3] for i in b["index"]) != list(range(6))  # a new order
  assert len({i for b in whole[:3] for i in b["index"]}) == 6
  for ours, theirs in zip(whole[4:], some(4, 2)):
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name])
  halves = [some(3, 1, i, 2)[0]["index"].tolist() for i in (0, 1)]
  assert sum(halves, []) == whole[3]["index"].tolist()
  first = whole[0]
  assert first["image"].shape == (2, 8, 24, 1) and first["text"].shape == (2, 4)
  texts = [source.texts[i] for i in first["index"]]
  lengths = [len(text) for text in texts]
  assert charset.decode(first["text"], lengths, CLASSES) == texts

  batches = list(lines.eval_batches(
    source, view, CLASSES, batch=4, threads=2, process_index=0, process_count=1
  ))  # fmt: skip
  index = np.concatenate([b["index"] for b in batches])
  assert index.tolist() == [*range(7), -1]
  assert np.concatenate([b["real"] for b in batches]).tolist() == [1] * 7 + [0]


ROWS = (crnn.conv(8), ((8, 2), (8, 2), 0))
SMALL = {
  "crnn": crnn.CRNN(partial(crnn.ConvNet, ROWS), 8, (None,), num_classes=4),
  "attention_ocr_line": attention_ocr.AttentionOCR(
    partial(crnn.ConvNet, ROWS), hidden=8, steps=16, num_classes=4
  ),
}


@pytest.mark.parametrize(("variant", "pixels"), [
  ("crnn", zoo.Line(width=32)),
  ("attention_ocr_line", zoo.Line(64, 32, (0.5,) * 3, (0.4,) * 3)),
])  # fmt: skip
def test_a_run_trains_and_leaves_a_reader(variant, pixels, tmp_path, monkeypatch):
  """Narrow, for two updates, from pictures in folders; then its file reads a line."""
  monkeypatch.setitem(zoo.catalog.VARIANTS, variant, lambda: SMALL[variant])
  for split in ("train", "val"):
    written(tmp_path / split, ["ab", "cab", "b", "ca"])
  own = read.Config(characters="abc", width=32)
  parts = configs(tmp_path, own, model=variant, data=str(tmp_path), steps=2)
  outcome = loop.run(parts[0], read.prepare(*parts))
  assert outcome.split == "val" and outcome.target.shape == (4, 4)
  assert {"loss", "cer", "line", "infeasible"} <= outcome.measured.keys()
  record = store.read_record(tmp_path / "run/model.safetensors")
  assert record.classes == CLASSES and record.preprocess == pixels
  model, variables = zoo.load(tmp_path / "run")
  line = record.preprocess.crop(Image.new("L", (50, 12)))[None]
  logits = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])(
    variables, record.preprocess.normalize(line)
  )
  assert logits.shape == (1, 16, 4)
  assert read.described(str(tmp_path / "run")).classes == CLASSES
  [(text, sure)] = transcribe.reader(tmp_path / "run")([Image.new("L", (50, 12))])
  assert set(text) <= set("abc") and len(text) == len(sure)


def test_what_is_missing_is_said(tmp_path):
  faults = {
    "--data is missing": dict(model="crnn"),
    "resnet18 is no reader of lines; those are attention_ocr, attention_ocr_line, crnn": dict(
      data="rendered"
    ),
    "--characters is missing: attention_ocr_line has none": dict(
      data="rendered", model="attention_ocr_line"
    ),
    "--batch=2 is more than the 1 lines": dict(
      data="rendered", model="crnn", own=read.Config(lines=1)
    ),
    "--fonts and --unseen_fonts are given together": dict(
      data="rendered", model="crnn", own=read.Config(fonts="somewhere")
    ),
    "no folder .*nowhere; --data=rendered needs none": dict(data="nowhere", model="crnn"),
  }
  for said, fields in faults.items():
    with pytest.raises((ValueError, FileNotFoundError), match=said):
      read.prepare(*configs(tmp_path, **fields))
  (tmp_path / "words").write_text("hello wörld")
  own = dataclasses.replace(read.Config(), words=str(tmp_path / "words"))
  with pytest.raises(ValueError, match="knows 36 characters, not 'ö'"):
    read.prepare(*configs(tmp_path, own, data="rendered", model="crnn"))
