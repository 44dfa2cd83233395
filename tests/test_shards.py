"""Shards and lists: tar files, ArrayRecord files, MIT Indoor 67's lists of photographs."""

import io
import tarfile

import numpy as np
from PIL import Image
import pytest

from train.data import datasets, folders, pipeline, transforms


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache/shards"


def jpeg(number: int) -> bytes:
  """A picture whose height tells its number."""
  file = io.BytesIO()
  noise = np.random.default_rng(number).integers(0, 255, (8 + number, 9, 3), dtype=np.uint8)
  Image.fromarray(noise).save(file, "JPEG")
  return file.getvalue()


def tar(path, files: dict[str, bytes]):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def samples(numbers, label) -> dict[str, bytes]:
  """As WebDataset names them; `label(number)` is the rest of the name and what the file holds."""
  found = {}
  for i in numbers:
    found[f"{i:04}.jpg"] = jpeg(i)
    end, text = label(i)
    found[f"{i:04}.{end}"] = text.encode()
  return found


def numbers(source) -> list[int]:
  """Which pictures, by their heights; read through the source."""
  return [transforms.decode(source[i]["image"]).shape[0] - 8 for i in range(len(source))]


def test_tar_shards_split_by_their_owner(tmp_path):
  root = tmp_path / "set"
  tar(root / "set-train-0000.tar", samples(range(0, 12), lambda i: ("cls", str(i % 3))))
  tar(root / "set-train-0001.tar", samples(range(12, 20), lambda i: ("cls", str(i % 3))))
  tar(
    root / "set-val-0000.tar", samples(range(20, 25), lambda i: ("json", f'{{"label": {i % 3}}}'))
  )
  (root / "classes.txt").write_text("ant\nbee\ncow\n")
  data = datasets.load(f"tar:{root}")
  assert data.classes == ("ant", "bee", "cow") and data.name == "set" and not data.skipped
  assert {name: sorted(numbers(s)) for name, s in data.splits.items()} == {
    "train": list(range(20)), "val": list(range(20, 25)),
  }  # fmt: skip
  train = data.splits["train"]
  assert [n % 3 for n in numbers(train)] == [train[i]["label"] for i in range(20)]
  assert train.keys[13] == "set-train-0001.tar/0013.jpg" and train.labels[13] == 1
  assert datasets.load(root).classes == data.classes  # nothing but shards: no word is needed
  batch = next(pipeline.train_batches(train, batch=8, size=16, seed=0))
  assert batch["image"].shape == (8, 16, 16, 3) and set(batch["label"]) <= {0, 1, 2}


def test_tar_shards_divided_here(tmp_path):
  """By folders within a shard; the division is that of a folder with these paths."""
  names = {f"{'dog' if i % 2 else 'cat'}/{i}.JPEG": jpeg(i) for i in range(40)}
  tar(tmp_path / "a/x.tar", names | {"cat/.hidden.jpg": b"", "readme.md": b"hello"})
  data = datasets.load(f"tar:{tmp_path / 'a'}", seed=3)
  assert data.classes == ("cat", "dog") and data.splits.keys() == {"train", "val", "test"}
  groups = {("all", c): [f"x.tar/{n}" for n in names if n.startswith(c)] for c in data.classes}
  wanted = {name: [key for _, key in rows] for name, rows in folders.split(groups, 3).items()}
  assert {name: list(source.keys) for name, source in data.splits.items()} == wanted
  for source in data.splits.values():
    assert all(n % 2 == source[i]["label"] for i, n in enumerate(numbers(source)))
  assert datasets.load(tmp_path / "a/x.tar", seed=3).splits["val"].keys == tuple(wanted["val"])


def test_the_index_is_made_once(tmp_path, cache, monkeypatch):
  path = tar(tmp_path / "t/s.tar", samples(range(10), lambda i: ("cls", "ab"[i % 2])))
  first = datasets.load(f"tar:{path.parent}")
  assert len(list(cache.iterdir())) == 1 and first.classes == ("a", "b")

  def never(*_):
    raise AssertionError("read again")

  with monkeypatch.context() as patch:
    patch.setattr(tarfile, "open", never)
    again = datasets.load(f"tar:{path.parent}")
    assert numbers(again.splits["train"]) == numbers(first.splits["train"])
  (kept,) = cache.iterdir()
  kept.write_text(kept.read_text()[:50])  # half-written
  assert len(datasets.load(f"tar:{path.parent}").splits["train"]) == len(first.splits["train"])
  tar(path, samples(range(20), lambda i: ("cls", "ab"[i % 2])))  # another shard of that name
  assert sum(len(s) for s in datasets.load(f"tar:{path.parent}").splits.values()) == 20


def test_damaged_samples_are_left_out_up_to_a_share(tmp_path):
  files = samples(range(30), lambda i: ("cls", "ab"[i % 2]))
  files["0003.jpg"] = files["0003.jpg"][:200]
  del files["0004.cls"]
  tar(tmp_path / "t/s.tar", files)
  data = datasets.load(f"tar:{tmp_path / 't'}", max_bad=0.1)
  assert sum(len(s) for s in data.splits.values()) == 28
  cut, bare = data.skipped
  assert cut.startswith("s.tar/0003.jpg: it is cut short")
  assert bare.startswith("s.tar/0004.jpg: it has no class: neither .cls nor .json")
  with pytest.raises(ValueError, match="(?s)2 of 30 samples cannot be used .6.7%.*0003.*0004"):
    datasets.load(f"tar:{tmp_path / 't'}", max_bad=0.05)


def two(i):
  return "cls", str(i % 2)


FAULTY = {
  "no shards": (lambda root: root.mkdir(), "holds no shards; wanted such as train-0001.tar"),
  "compressed": (lambda root: tar(root / "s.tar.gz", {}), "is compressed.*unpack each of the 1"),
  "cut off": (
    lambda root: (
      tar(root / "s.tar", samples(range(9), two)),
      (root / "s.tar").write_bytes((root / "s.tar").read_bytes()[:1800]),
    ),
    "s.tar: it is cut off or damaged after 1 files",
  ),
  "no tar": (
    lambda root: (root.mkdir(), (root / "s.tar").write_bytes(b"x" * 2000)), "s.tar: invalid header",
  ),
  "empty": (lambda root: tar(root / "s.tar", {}), "no shard holds a photograph"),
  "one class": (
    lambda root: tar(root / "s.tar", samples(range(3), lambda i: ("cls", "cat"))),
    "there is one class only, cat",
  ),
  "few names": (
    lambda root: (
      tar(root / "s.tar", samples(range(4), two)), (root / "classes.txt").write_text("one\n")
    ),
    "a label is 1, but classes.txt has 1 lines",
  ),
  "a strange name": (
    lambda root: (
      tar(root / "s.tar", samples(range(4), lambda i: ("cls", "ab"[i % 2]))),
      (root / "classes.txt").write_text("a\nc\n"),
    ),
    "classes.txt lacks 1 of the classes: b",
  ),
  "some splits": (
    lambda root: (
      tar(root / "train.tar", samples(range(4), two)),
      tar(root / "more.tar", samples(range(4), two)),
    ),
    "more.tar tells no split, others do",
  ),
  "no training": (
    lambda root: tar(root / "test.tar", samples(range(4), two)), "none is of the split train"
  ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_of_shards(tmp_path, fault):
  make, text = FAULTY[fault]
  make(tmp_path / "set")
  with pytest.raises(ValueError, match=text):
    datasets.load(f"tar:{tmp_path / 'set'}")


def test_a_shard_that_shrinks_in_the_run(tmp_path):
  path = tar(tmp_path / "t/s.tar", samples(range(10), two))
  source = datasets.load(f"tar:{path.parent}").splits["train"]
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(OSError, match="s.tar is shorter than it was"):
    [source[i] for i in range(len(source))]


# ---- ArrayRecord


def field(number: int, data: bytes) -> bytes:
  return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
  more = b""
  while value > 127:
    more, value = more + bytes([value & 127 | 128]), value >> 7
  return more + bytes([value])


def example(image: bytes, label: int | str, names=("image/encoded", "image/class/label")) -> bytes:
  value = field(1, field(1, label.encode())) if isinstance(label, str) else (
    field(3, field(1, varint(label))))  # fmt: skip
  features = [(names[0], field(1, field(1, image))), (names[1], value)]
  entries = [field(1, field(1, key.encode()) + field(2, v)) for key, v in features]
  return field(1, b"".join(entries))


def records(path, rows: list[bytes]):
  from array_record.python.array_record_module import ArrayRecordWriter

  path.parent.mkdir(parents=True, exist_ok=True)
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for row in rows:
    writer.write(row)
  writer.close()


def test_array_records(tmp_path):
  root = tmp_path / "set"
  records(root / "x-train.array_record-00000-of-00002", [example(jpeg(i), i % 2) for i in range(9)])
  records(root / "x-train.array_record-00001-of-00002", [
    example(jpeg(i), i % 2, ("image", "label")) for i in range(9, 14)
  ])  # fmt: skip
  records(root / "x-test.array_record-00000-of-00001", [example(jpeg(i), i % 2) for i in range(6)])
  data = datasets.load(root)
  assert data.classes == ("0", "1") and {*data.splits} == {"train", "val", "test"}
  held = [*numbers(data.splits["train"]), *numbers(data.splits["val"])]
  assert sorted(held) == list(range(14)) and sorted(numbers(data.splits["test"])) == list(range(6))
  train = data.splits["train"]
  assert [n % 2 for n in numbers(train)] == train.labels.tolist()
  batches = pipeline.train_batches(train, batch=8, size=16, seed=0, threads=4)
  assert [next(batches)["image"].shape for _ in range(4)] == [(8, 16, 16, 3)] * 4
  batches.close()


def test_array_records_with_names_and_faults(tmp_path):
  rows = [example(jpeg(i), "ab"[i % 2]) for i in range(20)]
  records(tmp_path / "set/s.array_record", [*rows, b"\x0a\x7f", example(b"nothing", "a")])
  data = datasets.load(f"records:{tmp_path / 'set'}", max_bad=0.2)
  assert data.classes == ("a", "b") and len(data.skipped) == 2
  assert "20: field 1 at byte 2 claims 127 bytes" in data.skipped[0]
  assert "21: it is text, not a picture" in data.skipped[1]
  records(tmp_path / "other/s.array_record", [example(jpeg(0), 1, ("pixels", "label"))])
  with pytest.raises(ValueError, match="no Example with a picture .* it has label, pixels"):
    datasets.load(f"records:{tmp_path / 'other'}")
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad/s.array_record").write_bytes(b"no record")
  with pytest.raises(ValueError, match="s.array_record: "):
    datasets.load(f"records:{tmp_path / 'bad'}")


# ---- lists


def indoor(root, train, test, names=("TrainImages.txt", "TestImages.txt"), images="Images"):
  for line in {*train, *test}:
    path = root / images / line
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(len(line)))
  (root / names[0]).write_text("\n".join(train) + "\n")
  (root / names[1]).write_text("\r\n".join(test))
  return root


def test_lists_of_mit_indoor_67(tmp_path):
  train = [f"{room}/{room}_{i}.jpg" for room in ("bar", "office") for i in range(12)]
  test = [f"{room}/{room}_t{i}.jpg" for room in ("bar", "office") for i in range(4)]
  root = indoor(tmp_path / "mit", train, test)
  (root / "Images/bar/unlisted.jpg").write_bytes(b"no picture, but nobody lists it")
  (root / "indoorCVPR_09annotations").mkdir()
  data = datasets.load(root)
  assert data.classes == ("bar", "office") and not data.skipped
  assert sorted(data.splits["test"].keys) == sorted(f"Images/{line}" for line in test)
  rest = [*data.splits["train"].keys, *data.splits["val"].keys]
  assert sorted(rest) == sorted(f"Images/{line}" for line in train)
  assert data.splits["test"].labels.tolist() == [0] * 4 + [1] * 4


def test_lists_in_lower_case_beside_the_classes(tmp_path):
  indoor(
    tmp_path / "d", ["a/1.jpg", "b/1.jpg"], ["a/2.jpg", "b/2.jpg"], ("train.txt", "val.txt"), ""
  )
  splits = datasets.load(tmp_path / "d").splits
  assert splits["train"].keys == ("a/1.jpg", "b/1.jpg")
  assert splits["val"].keys == ("a/2.jpg", "b/2.jpg")


def test_faults_of_lists(tmp_path):
  root = indoor(
    tmp_path / "d", ["a/1.jpg", "b/1.jpg", "a/2.jpg"], ["a/3.jpg", "b/3.jpg", "a/2.jpg"]
  )
  with open(root / "TrainImages.txt", "a") as file:
    file.write("../../etc/passwd.jpg\nloose.jpg\nb/gone.jpg\n")
  with pytest.raises(ValueError) as fault:
    datasets.load(root)
  text = str(fault.value)
  assert "TrainImages.txt has the line '../../etc/passwd.jpg'; wanted class/photo.jpg" in text
  assert "the line 'loose.jpg'" in text
  assert "a/2.jpg is in TrainImages.txt and in TestImages.txt" in text
  assert "Images/b/gone.jpg: it cannot be opened: No such file" in text
