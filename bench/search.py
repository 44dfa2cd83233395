"""Exact search beside faiss, flat and HNSW, on the same vectors in one run: python -m bench.search

Vectors are drawn around centres, as features of pictures lie, to a file that is memory-mapped, as
an index is. Prints seconds to build, queries/s (median of rounds, all engines in turn in each), the
share of the 10 nearest found, and the most memory beside the vectors' own that ours took.
--rows=1000000 --width=512 is the size to be within bounds; it wants 2 GB of disk, and faiss 2 GB of
memory for each of its copies.
"""

import argparse
from collections.abc import Callable
import os
from pathlib import Path
import platform
import tempfile
import threading
import time

import jax
import numpy as np

from zoo import retrieve

K = 10


def arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=20_000)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--queries", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--without_faiss", action="store_true", help="ours alone")
  parser.add_argument("--without_hnsw", action="store_true", help="its graph is slow to build")
  return parser.parse_args()


def draw(path: Path, rows: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
  """(queries, memory-mapped rows), of unit length."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(1000, width)).astype(np.float32)

  def some(n):
    x = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
  for start in range(0, rows, 50_000):
    file[start : start + 50_000] = some(min(50_000, rows - start))
  file.flush()
  return some(queries), np.load(path, mmap_mode="r")


class Memory(threading.Thread):
  """The most memory of the process that is no file's, in MiB above what it was at the start."""

  def __init__(self):
    super().__init__(daemon=True)
    self.start_mib, self.most_mib, self._on = self._now(), 0.0, True

  @staticmethod
  def _now() -> float:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if "RssAnon" in line) / 1024

  def run(self):
    while self._on:
      self.most_mib = max(self.most_mib, self._now() - self.start_mib)
      time.sleep(0.01)

  def __enter__(self):
    self.start()
    return self

  def __exit__(self, *error):
    self._on = False
    self.join()


def timed(run: Callable) -> tuple[float, object]:
  start = time.perf_counter()
  out = run()
  return time.perf_counter() - start, out


def main():
  args = arguments()
  with tempfile.TemporaryDirectory() as folder:
    queries, index = draw(Path(folder) / "rows.npy", args.rows, args.width, args.queries)
    engines: dict[str, Callable] = {}
    built = {"ours, exact": 0.0}
    engines["ours, exact"] = lambda: retrieve.nearest(queries, index, K)[0]
    built["ours, codes"], codes = timed(lambda: np.concatenate([
      np.asarray(retrieve.codes(np.asarray(index[i : i + 50_000])))
      for i in range(0, len(index), 50_000)
    ]))  # fmt: skip
    short = np.asarray(retrieve.codes(queries))
    engines["ours, codes"] = lambda: retrieve.nearest(short, codes, K)[0]
    version = "none"
    if not args.without_faiss:
      import faiss

      version = faiss.__version__
      flat = faiss.IndexFlatIP(args.width)
      built["faiss, flat"], _ = timed(lambda: flat.add(np.asarray(index)))
      engines["faiss, flat"] = lambda: flat.search(queries, K)[1]
      if not args.without_hnsw:
        graph = faiss.IndexHNSWFlat(args.width, 32, faiss.METRIC_INNER_PRODUCT)
        built["faiss, HNSW"], _ = timed(lambda: graph.add(np.asarray(index)))
        graph.hnsw.efSearch = 64
        engines["faiss, HNSW"] = lambda: graph.search(queries, K)[1]
    with Memory() as memory:
      exact = engines["ours, exact"]()
    found = {name: run() for name, run in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(args.rounds):
      for name, run in engines.items():
        seconds[name].append(timed(run)[0])
  machine = platform.processor() or platform.machine()
  print(f"{args.rows} x {args.width}, {args.queries} queries, {args.rounds} rounds; {machine}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {jax.devices()[0]}, "
        f"jax {jax.__version__}, faiss {version}")  # fmt: skip
  print(f"ours, exact: at most {memory.most_mib:.0f} MiB beside the vectors' "
        f"{index.nbytes / 2**20:.0f} MiB")  # fmt: skip
  print("| engine | build s | queries/s (quartiles) | of the 10 nearest |\n|---|---|---|---|")
  for name, times in seconds.items():
    low, middle, high = (args.queries / np.percentile(times, q) for q in (75, 50, 25))
    share = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found[name], exact)])
    print(f"| {name} | {built[name]:.1f} | {middle:.0f} ({low:.0f}-{high:.0f}) | {share:.3f} |")


if __name__ == "__main__":
  main()
