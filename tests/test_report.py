"""The report: complete, self-contained, and safe against what strangers call their folders."""

import base64
from html.parser import HTMLParser
import io
import json
import re
import shutil

import numpy as np
from PIL import Image
import pytest
import scipy.stats

from tests import runs
from train import figures, page, report

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
  """Tags with attributes, the text, and whether every tag was closed in its turn."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.texts, self.open = [], [], []
    self.feed(text)
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

  def handle_data(self, data):
    self.texts.append(data)

  def images(self):
    return [attrs for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """(page, its text, parsed) of a run that is compared with another."""
  folder = tmp_path_factory.mktemp("report")
  data = runs.photographs(folder / "data")
  first = runs.finished(folder / "first", data)
  second = shutil.copytree(first, folder / "_second <i>")
  out = report.write([first, second], folder / "report.html", title='<i>"Title"')
  text = out.read_text()
  return out, text, Reader(text)


def test_pictures_are_embedded_and_lie_beside_the_page(written):
  out, _, parsed = written
  files = {path.read_bytes() for path in (out.parent / "report_files").iterdir()}
  embedded = set()
  for attrs in parsed.images():
    head, _, data = attrs["src"].partition(",")
    assert head == "data:image/png;base64" and attrs["alt"]
    embedded.add(base64.b64decode(data))
    Image.open(io.BytesIO(base64.b64decode(data))).load()
  assert embedded == files
  names = {path.name for path in (out.parent / "report_files").iterdir()}
  assert {"loss.png", "accuracy.png", "confusion.png", "best_01_truth.png"} < names
  assert {"worst_01.png", "worst_01_answer.png", "worst_01_truth.png"} < names


def test_nothing_comes_from_elsewhere(written):
  _, text, parsed = written
  assert "http" not in text and "url(" not in text and "@import" not in text
  assert "script" not in {tag for tag, _ in parsed.tags}
  for _, attrs in parsed.tags:
    assert not [name for name in attrs if name.startswith("on")]
    for name in ("src", "href"):
      assert attrs.get(name, "data:").startswith("data:")


def test_names_of_strangers_are_text(written):
  _, text, parsed = written
  whole = "".join(parsed.texts)
  assert "<script" not in text and "<i>" not in whole.replace('<i>"Title"', "").replace(
    "_second <i>", ""
  )
  for name in runs.CLASSES:
    assert name in whole
  assert "train/<b>/x.jpg: it is cut short" in whole


def test_it_says_what_it_is_about(written):
  out, _, parsed = written
  whole = "".join(parsed.texts)
  run = report.read([out.parent / "first"])[0]
  low, high = report.wilson(int(run.right.sum()), 12)
  for words in (
    f"{100 * run.right.mean():.1f} %", "of 12 test photographs",
    f"{100 * low:.1f}–{100 * high:.1f}", run.info["command"],
    "jax 0.", "_second <i>", "first", "2.5", "Most frequent mistakes",
  ):  # fmt: skip
    assert words in whole, words
  assert "first five" not in whole  # there are four classes


@pytest.mark.parametrize("right, n", [(0, 10), (8, 10), (650, 661), (7, 7)])
def test_wilson_interval_equals_scipys(right, n):
  want = scipy.stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
  assert report.wilson(right, n) == pytest.approx((want.low, want.high), abs=1e-6)


def test_best_and_worst(written):
  run = report.read([written[0].parent / "first"])[0]
  chosen = report.choose(run)
  truth = run.probs[np.arange(12), run.labels]
  assert not run.right[chosen["worst"]].any() and run.right[chosen["best"]].all()
  assert truth[chosen["worst"]].tolist() == sorted(truth[chosen["worst"]])
  assert truth[chosen["worst"][0]] == truth[~run.right].min()
  among = {run.labels[i] for i in np.flatnonzero(run.right)}
  assert {run.labels[i] for i in chosen["best"]} == among  # each class has its turn


def test_shares_and_counts(written):
  run = report.read([written[0].parent / "first"])[0]
  counts = run.counts
  assert counts.sum() == 12 and np.trace(counts) == run.right.sum()
  assert (counts.sum(1) == 3).all()
  assert run.within(1) == run.right.mean() and run.within(4) == 1


def test_it_is_written_without_photographs_and_without_a_model(tmp_path, written):
  run = shutil.copytree(written[0].parent / "first", tmp_path / "run")
  (run / "model.safetensors").unlink()
  out = report.write([run], tmp_path / "report.html")
  assert "cannot be shown: no weights at" in out.read_text()
  info = json.loads((run / "run.json").read_text()) | {"data": str(tmp_path / "moved")}
  (run / "run.json").write_text(json.dumps(info))
  shutil.copy(written[0].parent / "first" / "model.safetensors", run)
  (tmp_path / "report_files" / "worst_09.png").touch()
  (tmp_path / "report_files" / "mine.png").touch()
  text = report.write([run], tmp_path / "report.html").read_text()
  assert "The photographs cannot be shown: no folder" in text
  left = {path.name for path in (tmp_path / "report_files").iterdir()}
  assert left == {"loss.png", "accuracy.png", "confusion.png", "mine.png"}


def test_all_that_is_missing_is_named(tmp_path):
  (tmp_path / "a").mkdir()
  with pytest.raises(FileNotFoundError) as error:
    report.write([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html")
  for name in report.NEEDED:
    assert str(error.value).count(f"no {name}") == 2
  assert not (tmp_path / "report.html").exists()
  with pytest.raises(FileNotFoundError, match="has no run.json"):
    report.read_run(tmp_path)
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    report.read_run(tmp_path)


def test_predictions_of_another_run_are_refused(tmp_path, written):
  run = shutil.copytree(written[0].parent / "first", tmp_path / "run")
  info = json.loads((run / "run.json").read_text())
  (run / "run.json").write_text(json.dumps(info | {"classes": ["a", "b"]}))
  with pytest.raises(ValueError, match="does not fit run.json"):
    report.read([run])


def test_a_thousand_classes(tmp_path, monkeypatch, written):
  monkeypatch.setattr(report.gallery, "views", lambda run, chosen: ({}, []))
  run = shutil.copytree(written[0].parent / "first", tmp_path / "run")
  rng, n, c = np.random.default_rng(0), 3000, 1000
  probs = rng.random((n, c), np.float32)
  labels = rng.integers(0, c, n).astype(np.int32)
  np.savez(run / "predictions.npz", keys=np.arange(n).astype(str), labels=labels, probs=probs,
           split="val")  # fmt: skip
  classes = [f"class {i} " + "x" * (i % 300) for i in range(c)]
  info = json.loads((run / "run.json").read_text()) | {"classes": classes}
  (run / "run.json").write_text(json.dumps(info))
  out = report.write([run], tmp_path / "report.html")
  text = out.read_text()
  assert "of 3000 validation photographs" in text and "all classes" in text
  assert len(text) < 5e6 and len(Reader(text).images()) == 3
  with Image.open(tmp_path / "report_files" / "confusion.png") as image:
    assert max(image.size) < 2000


def test_overlay_shows_the_high_and_leaves_the_low():
  image = np.full((40, 60, 3), 128, np.uint8)
  heat = np.zeros((4, 6), np.float32)
  heat[0, 0] = 3.0
  over = figures.overlay(image, heat).astype(int)
  assert over.shape == image.shape
  assert over[2, 2, 0] - over[2, 2, 2] > 40  # red where it is high
  assert np.abs(over[-5:, -5:] - 128).max() < 40
  assert figures.overlay(image, heat * 0).std() < 40  # no division by zero


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
  target = tmp_path / "page.html"
  page.write(target, "old")
  monkeypatch.setattr(page.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
  with pytest.raises(OSError):
    page.write(target, "new")
  assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_cells_are_escaped():
  table = page.table(["<a>"], [["<b>"], [page.Number("<c>")]])
  assert not re.search("<[abc]>", table)
  assert "&lt;a&gt;" in table and "&lt;b&gt;" in table and "&lt;c&gt;" in table
