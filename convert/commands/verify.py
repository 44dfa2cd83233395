"""Is a checkpoint what it says: its hash, its arrays, and its logits beside the original's."""

from collections.abc import Callable, Iterator, Mapping
import csv
import dataclasses
from pathlib import Path

from flax import traverse_util
import jax
import numpy as np

from convert.commands import export, originals
import zoo
from zoo import catalog, fetch, weights
from zoo.layers import pair

AGAINST = ("torchvision", "timm", "pytorchcv", "cadene", "keras", "onnxruntime")
TOLERANCE = 1e-4  # of logits, relative to the original's largest
PASSED, FAILED, UNKNOWN = 0, 1, 2  # statuses to exit with
PATTERN = 384  # pixels of a side of the generated picture, at most
GOLDEN_FILE = Path(__file__).with_name("golden.csv")
WORDS = {PASSED: "ok", FAILED: "FAILED", UNKNOWN: "unknown"}


@dataclasses.dataclass(frozen=True)
class Check:
  """One line of the table."""

  what: str
  status: int
  found: str


@dataclasses.dataclass(frozen=True)
class Golden:
  """What is kept of an original's output for the generated picture. Written by bench/real.py."""

  end: str  # our end point that it equals
  by: str  # the runtime that gave it
  shape: tuple[int, ...]
  largest: float
  numbers: Mapping[int, float]  # place in the flat output -> its number there

  @classmethod
  def of(cls, values: np.ndarray, end: str, by: str, count: int = 8) -> "Golden":
    flat = values.reshape(-1)
    places = np.linspace(0, flat.size - 1, min(count, flat.size)).round().astype(int)
    numbers = {int(i): float(flat[i]) for i in (*places, np.abs(flat).argmax())}
    return cls(end, by, values.shape, float(np.abs(flat).max()), numbers)

  @classmethod
  def read(cls, row: Mapping[str, str]) -> "Golden":
    shape = tuple(map(int, row["shape"].split()))
    numbers = zip(map(int, row["places"].split()), map(float, row["numbers"].split()))
    return cls(row["end"], row["by"], shape, float(row["largest"]), dict(numbers))

  def row(self) -> dict[str, str]:
    many = {"shape": self.shape, "places": self.numbers}
    texts = {name: " ".join(map(str, values)) for name, values in many.items()}
    numbers = " ".join(f"{number:.8g}" for number in self.numbers.values())
    return {"end": self.end, "by": self.by, "largest": f"{self.largest:.8g}", **texts,
            "numbers": numbers}  # fmt: skip


def kept() -> dict[str, Golden]:
  """By checkpoint."""
  if not GOLDEN_FILE.exists():
    return {}
  with open(GOLDEN_FILE, newline="") as file:
    return {row["weights"]: Golden.read(row) for row in csv.DictReader(file)}


def show(what: str, against: str | None, image: str | None) -> int:
  """Prints the table, and the first five classes of a photograph; returns the status to exit with.

  0: all is as it should be; 1: something is not; 2: nothing was there to compare the logits with.
  """
  print(what)
  checks = []
  for check in checked(what, against, image):
    print(f"  {check.what:10} {WORDS[check.status]:8} {check.found}", flush=True)
    checks.append(check)
  statuses = [check.status for check in checks]
  return FAILED if FAILED in statuses else max(statuses)


def checked(what: str, against: str | None, image: str | None) -> Iterator[Check]:
  record = export.known(what)
  yield _hash(what, record)
  try:
    model, variables = zoo.load(what)
  except ValueError as error:
    yield Check("arrays", FAILED, str(error))
    return
  flat = traverse_util.flatten_dict(variables, sep="/")
  numbers = sum(array.size for array in flat.values())
  yield Check("arrays", PASSED, f"{len(flat)} fill the model, none is left; {numbers:,} numbers")
  odd = weights.not_finite(variables)
  yield Check("finite", FAILED if odd else PASSED, "; ".join(odd) or "all numbers are")
  pixels = picture(record.preprocess, image)
  run = jax.jit(lambda v, x: model.apply(v, x, train=False))
  ends = jax.device_get(run(variables, pixels))
  logits = ends.get("logits")
  found = _compared(record, variables, pixels, logits, against)
  if found.status == UNKNOWN and (row := kept().get(what)):
    if image:
      ends = jax.device_get(run(variables, picture(record.preprocess, None)))
    found = _beside(ends, row)
  yield found
  if image and logits is not None:
    for line in first_five(logits[0], record):
      print(f"    {line}")


def _hash(what: str, record: zoo.Record) -> Check:
  """Of the published file where that is at hand, else of our own."""
  if what not in catalog.WEIGHTS:
    path = Path(what)
    path = path / "model.safetensors" if path.is_dir() else path
    return Check("sha256", PASSED, f"{fetch.sha256_of(path)}, of no published file")
  row = catalog.WEIGHTS[what]
  try:
    path = fetch.fetch(row.where, row.sha256, row.beside)
  except FileNotFoundError as error:
    if not zoo.converted_path(what).exists():
      raise
    return Check("sha256", UNKNOWN, f"only the conversion is here: {error}")
  except ValueError as error:
    return Check("sha256", FAILED, str(error))
  found = fetch.sha256_of(path)
  if not row.sha256:
    return Check("sha256", PASSED, f"{found}; none is published to compare it with")
  return Check("sha256", PASSED, f"{found}, as published ({len(row.sha256)} digits)")


def picture(preprocess: zoo.Preprocess | zoo.Line, image: str | None) -> np.ndarray:
  """[1 h w c] normalised: a photograph, or a pattern that is the same everywhere."""
  from PIL import Image

  if image:
    with Image.open(image) as file:
      pixels = preprocess.crop(file.convert("RGB"))
  else:
    height, width = (min(side, PATTERN) for side in pair(preprocess.size))
    # A line comes in the channels that its reader wants, a picture in three.
    channels = len(preprocess.mean) if isinstance(preprocess, zoo.Line) else 3
    y, x, c = np.indices((height, width, channels))
    pixels = ((3 * x + 5 * y + x * y // 31 + 85 * c) % 256).astype(np.uint8)
  return np.asarray(preprocess.normalize(pixels[None]))


def _compared(record, variables, pixels, logits, against) -> Check:
  """Our logits beside those of the original."""
  if logits is None:
    return Check("logits", UNKNOWN, "a backbone has none")
  faults = []
  for name, theirs in _others(record, variables, pixels, logits.shape[-1], against):
    try:
      want = theirs()
    except (ValueError, ImportError) as error:
      faults.append(f"{name}: {error}")
      continue
    return _difference(logits, want, f"{name}, run here")
  reason = "; ".join(faults) or "no original of it is known or installed here"
  return Check("logits", FAILED if against else UNKNOWN, f"not compared: {reason}")


def _others(record, variables, pixels, classes: int, against) -> Iterator[tuple[str, Callable]]:
  """(name, function that gives the logits) of what can be run here or was asked for."""
  if against == "onnxruntime":
    yield "onnxruntime", lambda: _onnxruntime(record, variables, pixels)
    return
  rows = catalog.WEIGHTS
  if record.weights in rows:  # the networks of other libraries may pad or divide in another way
    near = [rows[record.weights].dialect]
  else:
    own = (row for row in rows.values() if row.variant == record.variant)
    near = [row.dialect for row in own if not row.fields]
  for dialect in dict.fromkeys([against] if against else near):
    original = originals.find(record.variant, dialect, record.weights)
    if original is None or not (against or originals.installed(original)):
      continue

    def theirs(original=original, dialect=dialect):
      arrays = export.foreign(variables, record, dialect, originals.names(original, classes))
      return originals.logits(original, arrays, pixels, classes)

    yield originals.library(original), theirs


def output(ends: Mapping[str, np.ndarray], end: str) -> np.ndarray:
  """An end point, or the probabilities of a classifier."""
  if end != "probabilities":
    return ends[end]
  powers = np.exp(ends["logits"] - ends["logits"].max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def _beside(ends: Mapping[str, np.ndarray], row: Golden) -> Check:
  """Our output for the generated picture beside what is kept of the original's."""
  ours, whose = output(ends, row.end), f"{row.by}, kept with the code"
  if ours.shape != row.shape:
    return Check(row.end, FAILED, f"of shape {ours.shape}, {row.shape} of {whose}")
  flat = ours.reshape(-1)
  worst = max(abs(float(flat[i]) - number) for i, number in row.numbers.items()) / row.largest
  status = PASSED if worst <= TOLERANCE else FAILED
  return Check(row.end, status, f"{worst:.1e} from {len(row.numbers)} of those of {whose}")


def _onnxruntime(record: zoo.Record, variables, pixels) -> np.ndarray:
  """The logits of our own ONNX graph in another runtime."""
  import onnxruntime

  model = zoo.create(record.weights or record.variant, **record.fields)
  raw = export.onnx_model(model, variables, record).SerializeToString()
  return onnxruntime.InferenceSession(raw).run(["logits"], {"image": pixels})[0]


def _difference(ours: np.ndarray, want: np.ndarray, whose: str) -> Check:
  if ours.shape != want.shape:
    return Check("logits", FAILED, f"{ours.shape[-1]} of them, {want.shape[-1]} of {whose}")
  worst = float(np.abs(ours - want).max() / np.abs(want).max())
  status = PASSED if worst <= TOLERANCE else FAILED
  return Check("logits", status, f"{worst:.1e} from those of {whose}")


def first_five(logits: np.ndarray, record: zoo.Record) -> list[str]:
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  names = record.classes
  if not names and len(logits) in (1000, 1001):
    names = weights.imagenet_classes(len(logits))
  return [f"{probs[i]:6.1%}  {names[i] if names else f'class {i}'}" for i in np.argsort(-probs)[:5]]
