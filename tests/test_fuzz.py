"""The fuzzer's seeds are good files, and a few hundred changes to each find no fault."""

import pytest

from bench import fuzz
from convert import readers


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS.keys() - {"cfg", "index", "snappy"}))
def test_seeds_are_read(tmp_path, name):
  fuzz.parser(name, tmp_path)  # puts beside it what a file needs
  for seed in fuzz.TARGETS[name][1]():
    (tmp_path / "x.bin").write_bytes(seed)
    assert readers.read(tmp_path / "x.bin")


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_few_changes(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  fuzz.mutate(fuzz.TARGETS[name][1](), 200, fuzz.parser(name, tmp_path))


def test_a_fault_is_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ZeroDivisionError):
    fuzz.mutate([b"abc"], 5, lambda data: 1 // 0)
  assert (tmp_path / "crash").exists()
