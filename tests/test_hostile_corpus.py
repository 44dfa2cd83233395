"""All hostile files that the suite makes by hand: how many, and all of them in one process.

Cut and flipped files, thousands of them, come on top where each format is tested.
"""

import collections
import hashlib
import json
from pathlib import Path
import subprocess
import sys

import pytest

from tests import attacks, graphs
from tests import pickles as p
from tests import test_hostile_formats as formats
from tests import test_hostile_graphs as hostile
from tests import test_tensorflow_checkpoint as tables

LIMIT = 1 << 30  # bytes of memory for a whole process that reads them all
READ = """
import json, re, sys
from pathlib import Path
from convert import pickle_data, protobuf, readers
from convert.files import UnsafeFile
pickle_data.OPERATION_LIMIT //= 5  # for the sake of the suite's time, as where each is tested
protobuf.FIELD_LIMIT, protobuf.NUMBER_LIMIT = 50_000, 1 << 18
said, read = {}, []
for path in map(Path, json.load(sys.stdin)):
  try:
    readers.read(path)
    read.append(str(path))
  except UnsafeFile as error:
    said[str(path)] = str(error)
# Not getrusage's: that begins with the size of the process which started this one.
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"said": said, "read": read, "peak": peak}))
"""
Files = dict[str, bytes]  # the first is read, the others lie beside it


def corpus(command: str) -> dict[str, Files]:
  """What is wrong -> its files."""
  made: dict[str, Files] = {}
  for way, body in attacks.commands(command).items():
    packs = {"plain": p.plain, "zip": p.in_zip, "legacy": p.in_legacy}
    made |= {f"{way}, {pack}": {"x.pth": wrap(body)} for pack, wrap in packs.items()}
    made[f"{way}, TorchScript"] = {"x.pt": formats.scripted(formats.module(a=body))}
    for part in ("sys_info", "pickle", "storages", "tensors"):
      bad = formats.tar(
        edit=lambda parts, part=part, body=body: parts.update({part: p.whole(body)})
      )
      made[f"{way}, tar's {part}"] = {"x.pth": bad}
  made |= {what: {"x.pth": p.plain(body)} for what, body in attacks.PICKLES.items()}
  for what, body in attacks.TENSORS.items():
    body = body if body.startswith(b"}") else p.table(a=body)
    made |= {f"{what}, {pack.__name__}": {"x.pth": pack(body)} for pack in (p.in_zip, p.in_legacy)}
  made |= {what: {"x.bin": data} for what, data in formats.ATTACKS.items()}
  made |= {what: {"x.bin": content(data)} for what, data in hostile.BOMBS.items()}
  made |= {f"lite: {what}": {"x.tflite": data} for what, data in hostile.LITE.items()}
  made |= {f"tfjs: {what}": {"model.json": content(data), "s.bin": graphs.FLOATS}
           for what, data in hostile.MANIFESTS.items()}  # fmt: skip
  made |= {f"cfg: {what}": {"x.weights": graphs.WEIGHTS, "x.cfg": data}
           for what, data in hostile.CFGS.items() if what != "many layers"}  # fmt: skip
  made |= {f"table: {what}": {"x.index": data, "x.data-00000-of-00001": tables.DATA}
           for what, (data, _) in tables.BAD.items()}  # fmt: skip
  made |= {f"old table: {what}": {"x.ckpt": tables.table(*rows)}
           for what, (rows, _) in tables.OLD_BAD.items()}  # fmt: skip
  return made


def content(data) -> bytes:
  return data() if callable(data) else data


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> tuple[Path, list[Path], Path]:
  """(the folder, what is read, a file that no command must make)."""
  folder = tmp_path_factory.mktemp("corpus")
  marker, paths = folder / "ran", []
  for i, files in enumerate(corpus(f"touch {marker}").values()):
    (folder / str(i)).mkdir()
    for name, data in files.items():
      (folder / str(i) / name).write_bytes(data)
    paths.append(folder / str(i) / next(iter(files)))
  return folder, paths, marker


def digests(folder: Path) -> dict[Path, str]:
  return {path: hashlib.sha256(path.read_bytes()).hexdigest()
          for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def test_there_are_hundreds_of_all_formats(placed):
  folder, paths, _ = placed
  kinds = collections.Counter(path.suffix for path in paths)
  kinds[".h5"] = len(formats.H5_ATTACKS)
  different = {tuple(sorted(digests(path.parent).values())) for path in paths}
  assert len(different) + kinds[".h5"] >= 400 and len(kinds) >= 8
  assert min(kinds.values()) >= 7


def test_all_are_refused_by_one_process(placed):
  """In little memory, nothing run, no file made or changed, nothing said that is no sentence."""
  folder, paths, marker = placed
  before = digests(folder)
  ran = subprocess.run(
    [sys.executable, "-c", READ], input=json.dumps([*map(str, paths)]), capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  found = json.loads(ran.stdout)
  assert found["read"] == [] and len(found["said"]) == len(paths) and ran.stderr == ""
  assert all(s.startswith("cannot read ") and s.isprintable() for s in found["said"].values())
  assert found["peak"] < LIMIT, f"{found['peak'] >> 20} MB"
  assert digests(folder) == before and not marker.exists()
