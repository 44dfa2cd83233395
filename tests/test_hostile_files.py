"""Files that attack their reader: nothing runs, nothing grows, and a sentence says why not."""

import codecs
import io
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from convert import pickle_data, readers
from convert.files import UnsafeFile
from tests import pickles as p
from tests.attacks import PICKLES, SPREAD, TENSORS, commands, doubled

SECONDS = 30  # far above what any file here takes, far below what some ask for

# Audit events of code that runs. Hooks cannot be removed, hence the switch.
FORBIDDEN = ("os.", "subprocess.", "exec", "compile", "import", "pickle.", "socket.", "shutil.",
             "ctypes.", "code.", "marshal.")  # fmt: skip
events: list[str] | None = None


def hook(event: str, arguments) -> None:
  if events is not None and event.startswith(FORBIDDEN):
    events.append(f"{event} {arguments}")


sys.addaudithook(hook)


def refused(path, data: bytes) -> str:
  """The sentence with which a file is refused; no code ran, little time and memory was taken."""
  global events
  path.write_bytes(data)
  events, begin = [], time.monotonic()
  try:
    with pytest.raises(UnsafeFile) as error:
      readers.read(path)
    seen = events
  finally:
    events = None
  assert time.monotonic() - begin < SECONDS
  assert not seen
  sentence = str(error.value)
  assert sentence.startswith(f"cannot read {path}: ") and 40 < len(sentence) < 600
  assert sentence.isprintable()
  return sentence


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
  """Everything that reading imports is imported before events are counted."""
  codecs.lookup("raw-unicode-escape")  # of the text protocol
  path = tmp_path_factory.mktemp("warm") / "x.pth"
  path.write_bytes(p.in_zip(p.table(a=p.tensor())))
  np.testing.assert_array_equal(readers.read(path)["a"], np.zeros(4, np.float32))


WAYS = list(commands(""))
NOT_RUN_ALONE = {  # what a bare unpickler of this Python does not run either
  "newobj", "newobj with names", "as a hook", "nested storage", "in a default", "runstring",
  "persistent", "obj",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_commands_do_not_run(tmp_path, way):
  marker = tmp_path / "ran"
  body = commands(f"touch {marker}")[way]
  files = {"plain": p.plain(body), "zip": p.in_zip(body), "legacy": p.in_legacy(body)}
  for data in files.values():
    refused(tmp_path / "x.pth", data)
  time.sleep(0.02)
  assert not marker.exists()
  if way in NOT_RUN_ALONE:
    return
  try:  # the file is a real attack: Python's own pickle falls for it
    pickle.loads(files["plain"])
  except Exception:  # noqa: BLE001  after the command ran, any
    pass
  for _ in range(200):
    if marker.exists():
      break
    time.sleep(0.01)
  assert marker.exists()


def test_a_refused_name_is_said(tmp_path):
  sentence = refused(tmp_path / "x.pth", p.in_zip(p.call("os", "system", p.text("id"))))
  assert "'os.system'" in sentence and "nothing was run" in sentence and "state_dict" in sentence


@pytest.fixture
def few_operations(monkeypatch):
  """A fifth of the real limit on instructions, for the sake of the suite's time."""
  monkeypatch.setattr(pickle_data, "OPERATION_LIMIT", pickle_data.OPERATION_LIMIT // 5)


@pytest.mark.usefixtures("few_operations")
@pytest.mark.parametrize("what", PICKLES)
def test_pickles_that_are_bombs_or_broken(tmp_path, what):
  refused(tmp_path / "x.pth", p.plain(PICKLES[what]))


@pytest.mark.parametrize("what", TENSORS)
@pytest.mark.parametrize("pack", [p.in_zip, p.in_legacy])
def test_tensors_that_reach_out_of_their_file(tmp_path, what, pack):
  body = TENSORS[what]
  body = body if body.startswith(b"}") else p.table(a=body)
  refused(tmp_path / "x.pth", pack(body))


GOOD = p.table(a=p.tensor())


def link(archive):
  info = zipfile.ZipInfo("x/link")
  info.external_attr = 0o120777 << 16
  archive.writestr(info, "/etc/passwd")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
  "edit, sentence",
  [
    (lambda a: a.writestr("x/data/0", bytes(16)), "twice"),
    (lambda a: a.writestr("../../x", b"x"), "path"),
    (lambda a: a.writestr("/etc/x", b"x"), "path"),
    (lambda a: a.writestr("x\\y", b"x"), "path"),
    (lambda a: a.writestr("c:x", b"x"), "path"),
    (lambda a: a.writestr("x/bomb", bytes(20 << 20), zipfile.ZIP_DEFLATED), "compressed"),
    (lambda a: a.writestr("y/data.pkl", b"x"), "none of torch.save"),
    (link, "a link"),
  ],
)
def test_archives_with_strange_members(tmp_path, edit, sentence):
  assert sentence in refused(tmp_path / "x.pth", p.in_zip(GOOD, edit=edit))


def test_archives_around_a_bomb(tmp_path):
  def around(*parts, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
      for name, data in parts:
        archive.writestr(name, data)
    return bytearray(out.getvalue())

  good, path = p.in_legacy(GOOD), tmp_path / "x.zip"
  path.write_bytes(around(("x.pth", good)))
  assert list(readers.read(path)) == ["a"]
  assert "by more than weights do" in refused(path, around(("x.pth", bytes(64 << 20))))
  assert "method 12" in refused(path, around(("x.pth", good), method=zipfile.ZIP_BZIP2))
  assert "compressed" in refused(path, around(("x.pth", good), ("y.pth", good)))
  assert "compressed" in refused(path, around(("x.exe", good)))
  refused(path, around(("x.pth", around(("x.pth", good)))))  # one layer only
  for where in (b"PK\x01\x02", b"PK\x03\x04"):  # both sizes too small, then too large
    for size in (10, 5 * len(good)):
      bad = around(("x.pth", good))
      for sign, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        if sign == where or size == 10:
          struct.pack_into("<I", bad, bad.find(sign) + offset, size)
      refused(path, bytes(bad))
  bad = around(("x.pth", good))
  bad[40:60] = bytes(20)  # no deflate stream
  refused(path, bytes(bad))


def test_archives_that_lie(tmp_path):
  """Every field of every header in turn: another count, size, place, flag, name, checksum."""
  good = bytearray(p.in_zip(GOOD))
  end, rows = good.rfind(b"PK\x05\x06"), good.find(b"PK\x01\x02")
  last = good.rfind(b"PK\x03\x04")  # the storage's header
  fields = {
    "parts": end + 4, "members on this part": end + 8, "members": end + 10, "size": end + 12,
    "place": end + 16, "comment": end + 20, "signature": rows, "encrypted": rows + 8,
    "method": rows + 10, "checksum": rows + 16, "packed size": rows + 20, "member size": rows + 24,
    "length of the name": rows + 28, "header's place": rows + 42, "name": rows + 46,
    "local signature": last, "local flags": last + 6, "local method": last + 8,
    "local checksum": last + 14, "local size": last + 22, "local name": last + 30,
    "a byte of the storage": last + 30 + len("x/data/0"),
  }  # fmt: skip
  for what, at in fields.items():
    for flip in (1, 0x80):
      bad = bytearray(good)
      bad[at] ^= flip
      assert refused(tmp_path / "x.pth", bytes(bad)), what
  refused(tmp_path / "x.pth", bytes(good) + b"more")
  refused(tmp_path / "x.pth", b"PK\x03\x04" + bytes(good))


def test_legacy_files_that_lie(tmp_path):
  path = tmp_path / "x.pth"
  good = p.in_legacy(GOOD)
  path.write_bytes(good)
  assert readers.read(path)["a"].shape == (4,)
  big = p.in_legacy(GOOD, system={**p.SYSTEM, "little_endian": False})
  assert "big-endian" in refused(path, big)
  assert "appended" in refused(path, good + b"x")
  refused(path, p.in_legacy(GOOD, system=[]))
  refused(path, p.in_legacy(GOOD, storages=[]))
  refused(path, p.in_legacy(GOOD, storages=[("0", bytes(16)), ("0", bytes(16))]))
  refused(path, p.in_legacy(GOOD, storages=[("0", bytes(20))]))
  keys = pickle.dumps(["0"], protocol=2)
  refused(path, good.replace(keys, p.whole(doubled(60))))
  refused(path, good.replace(keys, p.whole(b"](" + doubled(60) + b"e")))
  for part in ((0, 5), (4, 1), (-1, 2), (0, -1), (1.0, 1), (0,)):
    token = p.row(p.text("v"), *map(p.number, part))
    refused(path, p.in_legacy(p.table(a=p.tensor(p.storage("0", 4, "FloatStorage", token)))))


def base_files() -> dict[str, bytes]:
  storages = [
    ("0", np.arange(4, dtype="<f4").tobytes()),
    ("1", np.arange(6, dtype="<f4").tobytes()),
  ]
  body = p.table(
    state_dict=p.table(**{"a.weight": p.tensor(), "b.weight": p.tensor(
      p.storage("1", 6), shape=(2, 3), strides=(1, 2))}), epoch=p.number(3),
  )  # fmt: skip
  nested = p.call("torch.storage", "_load_from_bytes",
                  p.number(p.in_legacy(p.storage(), storages[:1])))  # fmt: skip
  plain = p.table(a=p.tensor(nested), b=p.tensor(nested, offset=1, shape=(2,)))
  return {"zip": p.in_zip(body, storages), "legacy": p.in_legacy(body, storages),
          "plain": p.plain(plain)}  # fmt: skip


@pytest.mark.parametrize("kind", base_files())
def test_cut_anywhere(tmp_path, kind):
  data, path = base_files()[kind], tmp_path / "x.pth"
  path.write_bytes(data)
  assert len(readers.read(path)) == 2
  for size in range(1, len(data), 2):
    path.write_bytes(data[:size])
    with pytest.raises(UnsafeFile, match="cannot read"):
      readers.read(path)


@pytest.mark.parametrize("kind", base_files())
def test_flipped_bits_and_shuffled_bytes(tmp_path, kind):
  """Whatever comes: arrays or UnsafeFile, nothing else; and nothing is run or grows."""
  global events
  rng, good, path = random.Random(0), base_files()[kind], tmp_path / "x.pth"
  refusals, total = 0, 400
  events = []
  tracemalloc.start()
  try:
    for trial in range(total):
      data = bytearray(good)
      for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        if trial % 3:
          data[at] ^= 1 << rng.randrange(8)
        else:
          data[at] = rng.randrange(256)
      path.write_bytes(data)
      try:
        arrays = readers.read(path)
        assert sum(array.nbytes for array in arrays.values()) < 1 << 27
      except UnsafeFile:
        refusals += 1
    seen, peak = events, tracemalloc.get_traced_memory()[1]
  finally:
    events = None
    tracemalloc.stop()
  assert not seen and peak < 8 << 20
  assert total // 4 < refusals < total or kind == "zip" and refusals > total * 0.9


@pytest.mark.usefixtures("few_operations")
@pytest.mark.parametrize("what", [w for w in PICKLES if "2**" in w or "over and over" in w])
def test_bombs_take_little_memory(tmp_path, what):
  tracemalloc.start()
  try:
    refused(tmp_path / "x.pth", p.plain(PICKLES[what]))
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
  finally:
    tracemalloc.stop()


def test_the_real_limit_on_instructions(tmp_path):
  sentence = refused(tmp_path / "x.pth", p.plain(b"]" * pickle_data.OPERATION_LIMIT))
  assert "far more work" in sentence


def test_spread_bomb_takes_little_memory(tmp_path):
  tracemalloc.start()
  try:
    refused(tmp_path / "x.pth", p.in_zip(p.table(a=SPREAD)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()
