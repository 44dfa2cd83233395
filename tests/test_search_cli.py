"""Indexes and answers from the command line: whole or gone on with, right, and in sentences."""

import csv
import dataclasses
import functools
import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests import photographs, runs
from train import embed, search
from zoo import retrieve

pytestmark = pytest.mark.usefixtures("arguments_only")

KILLED = """
import os, signal, sys
from train import embed
replace, parts = os.replace, []

def killing(source, target):  # in the middle of the third part
  if str(target).endswith(".safetensors"):
    parts.append(target)
    if len(parts) == 3:
      os.kill(os.getpid(), signal.SIGKILL)
  replace(source, target)

os.replace = killing
embed.make(embed.Config(model=sys.argv[1], data=sys.argv[2], out=sys.argv[3], shard=4, batch=4))
"""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(embed, "Embedder", functools.cache(embed.Embedder))
    yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(config, what could not be read) of 25 pictures, two of them alike, and a bad one."""
  folder = tmp_path_factory.mktemp("search")
  data = runs.photographs(folder / "data")
  shutil.copy(data / "train/math/1.png", data / "test/both/twin.png")
  (data / "test/math/bad.jpg").write_text("hello")
  run = runs.finished(folder / "run", data)
  config = embed.Config(model=str(run), data=str(data), out=str(folder / "index"), shard=4, batch=4)
  return config, embed.make(config)


@pytest.fixture(scope="module")
def index(made):
  return embed.load(Path(made[0].out))


def same(a: embed.Index, b: embed.Index) -> None:
  np.testing.assert_array_equal(a.features, b.features)
  np.testing.assert_array_equal(a.signatures, b.signatures)
  assert (a.keys, a.labels, a.failed) == (b.keys, b.labels, b.failed)


def test_an_index_holds_every_picture_once(made, index):
  config, failed = made
  assert (
    failed
    == index.failed
    == ["test/math/bad.jpg: it is text, not a picture: it begins with 'hello'"]
  )
  assert len(index.keys) == len(set(index.keys)) == 25 and index.keys == sorted(index.keys)
  assert index.features.shape == (25, 512) and index.signatures.shape == (25, 5, 4)
  np.testing.assert_allclose(np.linalg.norm(index.features, axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(index.signatures[..., 3].sum(1), 1, atol=1e-5)
  assert {key: label for key, label in zip(index.keys, index.labels)}["train/math/1.png"] == "math"
  assert json.loads((Path(config.out) / "index.json").read_text())["shards"] == 7


def test_killed_and_gone_on_with_ends_at_the_same_bits(made, index, cache, tmp_path):
  config = dataclasses.replace(made[0], out=str(tmp_path / "index"))
  command = [sys.executable, "-c", KILLED, config.model, config.data, config.out]
  done = subprocess.run(
    command, env=photographs.environment(cache), capture_output=True, text=True, timeout=300
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert sorted(p.name for p in tmp_path.glob("index/[!.]*")) == [
    "00000.safetensors", "00001.safetensors", "index.json",
  ]  # fmt: skip
  with pytest.raises(ValueError, match="not finished: 2 of its 7 parts"):
    embed.load(Path(config.out))
  before = (tmp_path / "index/00001.safetensors").stat().st_mtime_ns
  assert embed.make(config) == made[1]
  assert (tmp_path / "index/00001.safetensors").stat().st_mtime_ns == before
  same(embed.load(Path(config.out)), index)


def test_two_processes_share_the_parts(made, index, tmp_path):
  config = dataclasses.replace(made[0], out=str(tmp_path / "index"), processes=2)
  embed.make(dataclasses.replace(config, process=1))
  names = sorted(p.name for p in (tmp_path / "index").glob("0*"))
  assert names == ["00001.safetensors", "00003.safetensors", "00005.safetensors"]
  embed.make(config)
  same(embed.load(Path(config.out)), index)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"layer": "stage3"}, "another index:\n  layer: pooled there, stage3 now"),
    ({"layer": "stage9"}, "no end point 'stage9'; it has stem"),
    ({"process": 3}, "counted from 0"),
    ({"out": "{data}"}, "is there and is no index"),
    ({"data": "{data}/test/nowhere"}, "no folder"),
  ],
)
def test_a_wrong_index_is_a_sentence(change, words, made):
  change = {name: value.format(data=made[0].data) if isinstance(value, str) else value
            for name, value in change.items()}  # fmt: skip
  with pytest.raises(ValueError, match=words):
    embed.make(dataclasses.replace(made[0], **change))


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def answered(made, tmp_path_factory):
  """(folder of --out, exit status) of two queries, one good."""
  folder = tmp_path_factory.mktemp("answers")
  (folder / "text.jpg").write_text("hello")
  config = search.Config(
    index=made[0].out, k=4, out=str(folder / "out"), measure=True, duplicates=0.999
  )
  paths = [f"{made[0].data}/train/math/1.png", str(folder / "text.jpg")]
  return folder / "out", search.main(["search", *paths], config)


def test_answers_are_the_nearest(answered, index):
  out, status = answered
  assert status == 1
  found = rows(out / "neighbours.csv")
  query = index.features[index.keys.index("train/math/1.png")].astype(np.float64)
  scores = index.features.astype(np.float64) @ query
  order = np.argsort(-scores, kind="stable")[:4]
  assert [r["path"] for r in found] == [index.keys[i] for i in order]
  assert [r["label"] for r in found] == [index.labels[i] for i in order]
  np.testing.assert_allclose([float(r["score"]) for r in found], scores[order], atol=1e-5)
  assert {r["path"] for r in found[:2]} == {"train/math/1.png", "test/both/twin.png"}


def test_the_page_and_its_pictures(answered):
  out, _ = answered
  assert sorted(p.name for p in out.iterdir()) == [
    "0001_1.png", "duplicates.csv", "index.html", "measures.json", "neighbours.csv",
    "pair_001.png", "sheet.png",
  ]  # fmt: skip
  with Image.open(out / "sheet.png") as sheet:
    assert sheet.size == (5 * (search.SIDE + 4) + 12, search.SIDE + 4)
    found = np.asarray(sheet)
  assert np.ptp(found[20:100, 20:100].astype(int)) > 20  # no blank
  text = (out / "index.html").read_text()
  assert text.count("<img") == 2 and "it is text, not a picture" in text and "http" not in text


def test_duplicates_and_measures(answered, index):
  out, _ = answered
  [pair] = rows(out / "duplicates.csv")
  assert {pair["path"], pair["like"]} == {"train/math/1.png", "test/both/twin.png"}
  measures = json.loads((out / "measures.json").read_text())
  want = retrieve.leave_one_out(index.features, np.array(index.labels))
  assert measures == pytest.approx(dict(want)) and measures["queries"] == 25


@pytest.mark.parametrize("engine", ["codes", "faiss", "hnsw"])
def test_other_engines_find_the_same_first(engine, made, index):
  if engine != "codes":
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
  config = search.Config(index=made[0].out, engine=engine)
  queries = index.features[:6]
  found, scores = search.engine(config, index)(queries, 3)
  assert found.shape == scores.shape == (6, 3)
  if engine == "codes":
    assert (scores[:, 0] == 0).all()
  else:
    np.testing.assert_array_equal(found, retrieve.nearest(queries, index.features, 3)[0])


def test_colours_have_their_share(made, index):
  config = search.Config(index=made[0].out, k=25, colors=0.4)
  path = Path(made[0].data) / index.keys[3]
  [one] = search.search(config, index, [path], pytest.fail)
  colors = np.asarray(retrieve.color_vectors(index.signatures))
  want = 0.6 * index.features @ index.features[3] + 0.4 * colors @ colors[3]
  np.testing.assert_allclose(one.scores, want[one.rows], atol=1e-4)


def test_a_wrong_search_is_a_sentence(made, tmp_path):
  flat = tmp_path / "flat"
  flat.mkdir()
  (flat / "index.json").write_text("{")
  good = search.Config(index=made[0].out)
  for config, arguments, words in (
    (search.Config(), ["x.jpg"], "name an index and pictures"),
    (good, [], "name an index and pictures"),
    (search.Config(index=str(tmp_path)), ["x.jpg"], "is no index; python -m train.embed"),
    (search.Config(index=str(flat)), ["x.jpg"], "is damaged"),
    (dataclasses.replace(good, out=str(flat)), ["x.jpg"], "is there already"),
    (dataclasses.replace(good, colors=0.5, engine="codes"), [made[0].data], "exact alone"),
  ):
    with pytest.raises(ValueError, match=words):
      search.main(["search", *arguments], config)
