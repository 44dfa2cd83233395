"""Throws bytes at a parser of `convert`, led by coverage: python -m bench.fuzz NAME --runs=N

Whatever the bytes, a parser returns arrays of less than EXPANSION times their size or raises
UnsafeFile; anything else ends the run with the bytes in a file. Atheris leads (libFuzzer for
Python); where it is not installed, small good files are changed at random, by a fixed seed.
"""

import argparse
from collections.abc import Callable
import io
from pathlib import Path
import random
import resource
import sys
import tempfile
import time

from flax import serialization
import numpy as np
import safetensors.numpy

try:
  import atheris
except ImportError:  # pip install atheris; it has no wheels for some systems
  atheris = None

if atheris:
  with atheris.instrument_imports(include=["convert"]):
    from convert import darknet_file, readers, snappy
else:
  from convert import darknet_file, readers, snappy
from convert.files import UnsafeFile
from convert.state_dict import ALLOWANCE, EXPANSION
from tests import graphs, pickles

ARRAYS = {"a.weight": np.arange(12.0).reshape(3, 4), "b": np.arange(3, dtype=np.int32)}
TENSOR = pickles.table(a=pickles.tensor(), b=pickles.tensor(offset=1, shape=(2,)))

NESTED = pickles.table(
  a=pickles.tensor(
    pickles.call(
      "torch.storage", "_load_from_bytes", pickles.number(pickles.in_legacy(pickles.storage()))
    )
  )
)


def numpy_files() -> list[bytes]:
  made = []
  for write in (lambda f: np.savez(f, **ARRAYS), lambda f: np.savez_compressed(f, **ARRAYS),
                lambda f: np.save(f, ARRAYS["a.weight"])):  # fmt: skip
    out = io.BytesIO()
    write(out)
    made.append(out.getvalue())
  return made


def scripts() -> list[bytes]:
  module = pickles.name("__torch__", "Net") + b")\x81" + TENSOR + b"b"
  constants = pickles.whole(b")")
  return [pickles.in_zip(module, edit=lambda a: a.writestr("x/constants.pkl", constants))]


def tars() -> list[bytes]:
  tensors = {1: (7, (2, 2), (2, 1), 0), 2: (8, (2,), (1,), 1)}
  stored = {7: ("FloatStorage", bytes(16), 4)}
  return [pickles.in_tar({"a": 1, "b": 2}, tensors, stored, views=[(8, 7, 1, 3)])]


# Name -> (what the format is called in `readers.FORMATS`, small good files).
TARGETS: dict[str, tuple[str, Callable[[], list[bytes]]]] = {
  "safetensors": ("safetensors", lambda: [safetensors.numpy.save(ARRAYS)]),
  "zip": ("torch.save", lambda: [pickles.in_zip(TENSOR)]),
  "legacy": ("torch.save", lambda: [pickles.in_legacy(TENSOR)]),
  "pickle": ("torch.save", lambda: [pickles.plain(NESTED)]),
  "torchscript": ("torch.save", scripts),
  "tar": ("tar of torch", tars),
  "numpy": ("NumPy", numpy_files),
  "msgpack": ("msgpack", lambda: [serialization.to_bytes(ARRAYS | {"c": [1, "x", 2.5, None]})]),
  "index": ("sharded", lambda: [b'{"weight_map": {"a": "x.safetensors", "b": "y.bin"}}']),
  "tfjs": ("TensorFlow.js", lambda: [graphs.tfjs()]),
  "tflite": ("TensorFlow Lite", lambda: [graphs.tflite()]),
  "onnx": ("ONNX", lambda: [graphs.GOOD["onnx"][1]]),
  "caffe": ("Caffe", lambda: [graphs.GOOD["caffe"][1]]),
  "graph": ("frozen graph", lambda: [graphs.GOOD["graph"][1]]),
  "checkpoint": ("checkpoint of TensorFlow", lambda: [graphs.INDEX, graphs.OLD]),
  "snappy": ("checkpoint of TensorFlow", lambda: [graphs.snappy(b"abcdefgh", b"\x3e\x04\0", 24)]),
  "darknet": ("darknet", lambda: [graphs.WEIGHTS]),
  "cfg": ("darknet", lambda: [graphs.CFG]),  # of the same weights
}  # fmt: skip


def parser(name: str, folder: Path) -> Callable[[bytes], None]:
  """What the fuzzer calls."""
  called = TARGETS[name][0]
  [read] = [read for format_name, _, read in readers.FORMATS if called in format_name]
  path = folder / "x.bin"
  for other, content in graphs.BESIDE.items():
    (folder / other).write_bytes(content)
  if name == "cfg":
    weights = np.frombuffer(graphs.WEIGHTS, np.uint8)
    read = lambda data, path: darknet_file.named(weights, data.tobytes().decode("latin-1"))
  if name == "snappy":  # the blocks of such a table
    read = lambda data, path: {"": snappy.unpacked(data)}

  def parse(data: bytes) -> None:
    if not data:
      return
    try:
      arrays = read(np.frombuffer(data, np.uint8), path)
    except UnsafeFile as error:
      if not str(error).isprintable() or len(str(error)) > 600:
        raise AssertionError("a refusal is one printable sentence") from error
      return
    assert sum(array.nbytes for array in arrays.values()) <= EXPANSION * len(data) + ALLOWANCE

  return parse


def mutate(seeds: list[bytes], runs: int, parse: Callable[[bytes], None]) -> None:
  rng = random.Random(0)
  for run in range(runs):
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
      at = rng.randrange(len(data))
      if rng.random() < 0.3:  # a piece goes, or comes from elsewhere
        end = at + rng.randrange(1, 9)
        data[at:end] = data[rng.randrange(len(data)) :][: rng.randrange(9)] or b"\0"
      else:
        data[at] = rng.choice((rng.randrange(256), data[at] ^ 1 << rng.randrange(8), 255, 0))
    try:
      parse(bytes(data))
    except BaseException:
      Path("crash").write_bytes(data)
      print(f"run {run}: the bytes are in ./crash", file=sys.stderr)
      raise


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  options.add_argument("name", choices=sorted(TARGETS))
  options.add_argument("--runs", type=int, default=100_000)
  options.add_argument("--seed", type=int, default=1)
  options.add_argument("--plain", action="store_true", help="do not use atheris")
  flags = options.parse_args()
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    seeds, parse = TARGETS[flags.name][1](), parser(flags.name, folder)
    for i, seed in enumerate(seeds):
      (folder / f"seed{i}").write_bytes(seed)
    start = time.monotonic()
    if atheris is None or flags.plain:
      mutate(seeds, flags.runs, parse)
      seconds = time.monotonic() - start
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
      print(f"{flags.name}: {flags.runs} runs in {seconds:.0f} s, peak of {peak} MB, no fault")
      return
    limits = ["-rss_limit_mb=1024", "-timeout=20", "-print_final_stats=1", "-max_len=4096"]
    atheris.Setup(
      [sys.argv[0], f"-runs={flags.runs}", f"-seed={flags.seed}", *limits, place], parse
    )
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
  main()
