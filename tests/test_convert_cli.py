"""`python -m convert`: a whole checkpoint, its account, and every way to ask wrongly."""

import hashlib
import os
import re
import subprocess
import sys

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import Options, main
import zoo
from zoo import catalog, store
from zoo.weights import Weights

NAME = "resnet18.test"
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias",
          "mean": "running_mean", "var": "running_var"}  # fmt: skip


@pytest.fixture(scope="module")
def variables() -> dict:
  """Random variables of a ResNet-18."""
  rng = np.random.default_rng(0)
  target = zoo.shapes(zoo.create("resnet18"))
  return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), target)


@pytest.fixture(scope="module")
def foreign(variables, tmp_path_factory):
  """The same under torchvision's names and layouts, in a file of another's."""
  arrays = {}
  for path, array in traverse_util.flatten_dict(variables, sep="/").items():
    module, _, leaf = path.partition("/")[2].rpartition("/")
    name = re.sub(r"_(\d)", r".\1", module).replace("/", ".")
    array = array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])
    arrays[f"{name}.{LEAVES[leaf]}"] = np.ascontiguousarray(array)
    if leaf == "mean":
      arrays[f"{name}.num_batches_tracked"] = np.array(9)
  path = tmp_path_factory.mktemp("foreign") / "resnet18.bin"
  safetensors.numpy.save_file(arrays, path)
  return path


@pytest.fixture
def row(foreign, monkeypatch, tmp_path):
  """The file as a published checkpoint, and an empty cache."""
  digest = hashlib.sha256(foreign.read_bytes()).hexdigest()
  made = Weights("resnet18", "torchvision", "https://localhost/resnet18.bin", digest, "MIT")
  monkeypatch.setitem(catalog.WEIGHTS, NAME, made)
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path / "cache"))
  return made


def same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_local_copy_of_the_published_file_goes_where_load_finds_it(
  row, foreign, variables, capsys
):
  main(Options(file=str(foreign)), [NAME])
  printed = capsys.readouterr().out
  assert "122 in the file, 102 used, 20 dropped (bn1.num_batches_tracked" in printed
  assert "11,689,512 params, 9,600 batch_stats" in printed
  assert row.sha256 in printed and "MIT" in printed
  path = zoo.converted_path(NAME)
  assert str(path) in printed and hashlib.sha256(path.read_bytes()).hexdigest() in printed
  model, loaded = zoo.load(NAME)  # without a network: localhost serves nothing
  same(loaded, variables)
  record = store.read_record(path)
  assert record.weights == NAME and record.provenance == {
    "where": row.where, "sha256": row.sha256, "license": "MIT",
  }  # fmt: skip


def test_own_weights_are_told_from_published_ones(row, foreign, variables, tmp_path, capsys):
  arrays = safetensors.numpy.load_file(foreign)
  arrays["fc.bias"] = arrays["fc.bias"] + 1
  own = tmp_path / "own.bin"
  safetensors.numpy.save_file(arrays, own)
  main(Options(file=str(own), out=str(tmp_path)), [NAME])
  assert "not the published file" in capsys.readouterr().out
  path = tmp_path / f"{NAME}.safetensors"
  _, loaded = zoo.load(path)
  np.testing.assert_array_equal(loaded["params"]["fc"]["bias"], arrays["fc.bias"])
  assert not zoo.converted_path(NAME).exists()
  assert store.read_record(path).provenance == {
    "where": "own.bin", "sha256": hashlib.sha256(own.read_bytes()).hexdigest(),
    "license": "not stated",
  }  # fmt: skip


def test_list_has_every_checkpoint(row, capsys):
  main(Options(list=True), [])
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ["checkpoint", *sorted(catalog.WEIGHTS)]
  main(Options(list=True), ["resnet18", "test"])
  assert capsys.readouterr().out.splitlines()[1].split() == [NAME, "resnet18", "MIT", row.where]


def test_names_of_a_foreign_file(foreign, capsys):
  main(Options(names=str(foreign)), [])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 123 and lines[-1].startswith("122 arrays, 11,699,132 numbers")
  assert any(re.fullmatch(r"conv1\.weight +\(64, 3, 7, 7\) +float32", line) for line in lines)


@pytest.mark.parametrize(
  "options, words, sentence",
  [
    (Options(), [], "which checkpoint.*--list"),
    (Options(), ["resnet18.tset"], f"'resnet18.tset'; did you mean '{NAME}'"),
    (Options(), ["resnet18", "zzz"], f"(?s)'resnet18'; it has .*{NAME}.*'zzz'.*--list"),
    (Options(file="x"), [NAME, NAME], "need one checkpoint, found 2"),
    (Options(file="x", list=True), [], "one thing at a time"),
    (Options(names="x"), [NAME], "one thing at a time"),
    (Options(list=True), ["no such"], "no checkpoint's name has no such"),
    (Options(file="no/such/file"), [NAME], "no weight file at no/such/file"),
    (Options(names="no/such/file"), [], "no weight file at no/such/file"),
    (Options(), [NAME], "cannot fetch https://localhost.*put the file"),
  ],
)
def test_wrong_questions_are_answered(row, options, words, sentence):
  with pytest.raises((ValueError, FileNotFoundError), match=sentence):
    main(options, words)


def test_a_file_of_another_network_lists_what_does_not_fit(row, tmp_path):
  safetensors.numpy.save_file({"conv1.weight": np.zeros((2, 3, 7, 7), np.float32)}, tmp_path / "x")
  with pytest.raises(ValueError, match="does not fit") as error:
    main(Options(file=str(tmp_path / "x"), out=str(tmp_path / "y")), [NAME])
  assert str(error.value).count("\n") == 102 and not (tmp_path / "y").exists()


def test_the_command_ends_with_a_sentence_and_no_traceback(tmp_path):
  command = [sys.executable, "-m", "convert", "--file=x", "resnet5O.tv1"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "FLAXZOO_CACHE": str(tmp_path)}
  ran = subprocess.run(command, capture_output=True, text=True, env=environment)
  assert ran.returncode == 1 and ran.stdout == ""
  assert ran.stderr.startswith("error: no published checkpoint is named 'resnet5O.tv1'")
  assert "Traceback" not in ran.stderr
