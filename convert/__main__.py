"""Converts published checkpoints to this project's weight files.

python -m convert resnet50.tv1                     fetches the file, converts it into the cache
python -m convert resnet50.tv1 --file=F --out=G    from a local file to another place
python -m convert --list [WORD ...]                published checkpoints whose name has the words
python -m convert --names F                        name, shape and type of every array of a file
python -m convert --identify F                     which network, in whose names, a file holds
python -m convert WHAT --to=torch [--out=G]        the way back: a checkpoint, a file of ours or a
                                                   run's folder, to torch, keras, safetensors in
                                                   another library's names, to onnx or stablehlo
python -m convert verify WHAT [--against=timm]     hash, arrays, and logits beside the original's
"""

from collections.abc import Callable, Iterable
import dataclasses
from functools import partial
import os
from pathlib import Path
import sys

from absl import app, flags, logging
from flax import traverse_util
import numpy as np

from convert import readers
from convert.commands import export, identify, verify
import zoo
from zoo import catalog, fetch, store, weights


@dataclasses.dataclass(frozen=True)
class Options:
  file: str | None = None  # foreign file to convert
  out: str | None = None  # file or folder to write
  list: bool = False
  names: str | None = None  # foreign file to look into
  identify: str | None = None  # foreign file to recognise
  to: str | None = None  # format of the way back
  dialect: str | None = None  # in which the way back names its arrays
  against: str | None = None  # library whose logits to verify with
  image: str | None = None  # photograph to verify with


def define_flags() -> Callable[[], Options]:
  """Defines the flags; returns a function that reads them."""
  flags.DEFINE_string("file", None, "Foreign file to convert; without it, it is fetched.")
  flags.DEFINE_string("out", None, "Where to write; without it, where zoo.load looks for it.")
  flags.DEFINE_boolean("list", False, "List the published checkpoints.")
  flags.DEFINE_string("names", None, "Foreign file whose arrays to list.")
  flags.DEFINE_string("identify", None, "Foreign file whose network to recognise.")
  flags.DEFINE_enum("to", None, list(export.FORMATS), "Format to write a model of ours in.")
  flags.DEFINE_string("dialect", None, "Library whose names --to gives the arrays.")
  flags.DEFINE_enum("against", None, verify.AGAINST, "Whose logits to verify with.")
  flags.DEFINE_string("image", None, "Photograph to verify with; shows its five first classes.")
  fields = [f.name for f in dataclasses.fields(Options)]
  return lambda: Options(**{name: flags.FLAGS[name].value for name in fields})


def check(options: Options, words: list[str]) -> str:
  """The command that is asked for.

  Raises:
    ValueError: the flags and words do not make sense together.
  """
  asked = [c for c in ("list", "names", "identify", "to") if getattr(options, c)]
  asked += ["verify"] * (words[:1] == ["verify"])
  if not asked or options.file:
    asked += ["convert"] * bool(options.file or options.out or not asked)
  if len(asked) > 1 or (words and asked[0] in ("names", "identify")):
    raise ValueError(
      "one thing at a time: VARIANT.TAG with --file and --out, WHAT --to=FORMAT with --dialect and "
      "--out, verify WHAT with --against and --image, --list, --names=F, or --identify=F"
    )
  [command] = asked
  for flag, wants in WANTS.items():
    if getattr(options, flag) and command not in wants:
      raise ValueError(f"--{flag} goes with {' or '.join(wants)}, not with {command}")
  if not words[command == "verify" :] and command in ("convert", "to", "verify"):
    raise ValueError("which checkpoint? python -m convert VARIANT.TAG; --list shows all")
  if len(words) > 1 and (options.file or options.out):
    raise ValueError(f"--file and --out need one checkpoint, found {len(words)}: {' '.join(words)}")
  return command


# Flag -> the commands that read it.
WANTS = {
  "file": ("convert",), "out": ("convert", "to"), "dialect": ("to",), "against": ("verify",),
  "image": ("verify",),
}  # fmt: skip


def list_checkpoints(words: list[str]) -> None:
  """Prints one line for each published checkpoint whose name has all words."""
  rows = [("checkpoint", "variant", "top1", "licence", "from")]
  for name, row in sorted(catalog.WEIGHTS.items()):
    if all(word in name for word in words):
      top1 = "" if row.top1 is None else f"{row.top1:.2f}"
      rows.append((name, row.variant, top1, row.license, row.where))
  if len(rows) == 1:
    raise ValueError(f"no checkpoint's name has {' and '.join(words)}; --list alone shows all")
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def list_arrays(path: Path) -> None:
  """Prints one line for each array of a foreign file."""
  arrays = readers.read(path)
  width = max(map(len, arrays))
  for name, array in arrays.items():
    print(f"{name:{width}}  {str(array.shape):20}  {array.dtype}")
  print(f"{len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers")


def convert(name: str, file: str | None, out: str | None) -> None:
  """Converts checkpoint `name` and prints what became of its arrays."""
  row = catalog.WEIGHTS[name]
  source = Path(file) if file else fetch.fetch(row.where, row.sha256, row.beside)
  variables, record = zoo.from_foreign(name, source)
  digest = fetch.sha256_of(source)
  published = not file or (row.sha256 and digest.startswith(row.sha256))
  provenance = {**record.provenance, "sha256": digest}
  if not published:  # somebody's own weights in the same dialect
    provenance |= {"where": source.name, "license": "not stated"}
  path = _place(name, out, published)
  store.save(path, variables, dataclasses.replace(record, provenance=provenance))
  print(f"{name} from {source}")
  if not published and row.sha256:
    print(f"  this is not the published file, whose sha256 begins with {row.sha256}")
  _account(name, record.foreign, variables)
  if odd := weights.not_finite(variables):
    print(f"  not finite {_few(odd)}")
  print(f"  licence    {provenance['license']}")
  print(f"  sha256     {digest} of the source")
  print(f"             {fetch.sha256_of(path)} of the result")
  print(f"  written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _place(name: str, out: str | None, published: bool) -> Path:
  if out:
    return Path(out) / f"{name}.safetensors" if Path(out).is_dir() else Path(out)
  return zoo.converted_path(name) if published else Path(f"{name}.safetensors")


def _account(name: str, arrays: Iterable[str], variables: dict) -> None:
  """Prints how many arrays of the file were used and which were not."""
  have = traverse_util.flatten_dict(variables, sep="/")
  rules, arrays = zoo.rules_of(name), list(arrays)
  dropped = [array for array in arrays if not rules.place(array, have)[0]]
  used = len(arrays) - len(dropped)
  print(f"  arrays     {len(arrays)} in the file, {used} used, {len(dropped)} dropped", end="")
  print(f" ({_few(dropped)})" if dropped else "")
  sizes = {kind: _size(kind, have) for kind in variables}
  print(f"  numbers    {', '.join(f'{size:,} {kind}' for kind, size in sizes.items())}")


def _few(names: list[str]) -> str:
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(kind: str, arrays: dict[str, np.ndarray]) -> int:
  return sum(array.size for path, array in arrays.items() if path.startswith(f"{kind}/"))


def known(names: Iterable[str]) -> None:
  """Raises ValueError that lists all names that are no published checkpoint."""
  faults = []
  for name in names:
    if name not in catalog.WEIGHTS:
      tags = [w for w in catalog.WEIGHTS if w.partition(".")[0] == name]
      hint = f"; it has {', '.join(tags)}" if tags else catalog.suggest(name, catalog.WEIGHTS)
      faults.append(f"no published checkpoint is named {name!r}{hint}")
  if faults:
    raise ValueError("\n  ".join([*faults, "python -m convert --list shows all"]))


def way_back(what: str, options: Options) -> None:
  """Writes a model of ours in another's format and prints where."""
  path = export.export(what, options.to, options.out, options.dialect)
  print(f"{what} to {options.to}")
  print(f"  sha256     {fetch.sha256_of(path)}")
  print(f"  written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


def main(options: Options, words: list[str]) -> int:
  """Runs the command; returns the status to exit with."""
  command = check(options, words)
  if command == "list":
    list_checkpoints(words)
  elif command == "names":
    list_arrays(Path(options.names))
  elif command == "identify":
    return identify.show(Path(options.identify))
  elif command == "verify":
    return max(verify.show(what, options.against, options.image) for what in words[1:])
  elif command == "to":
    for what in words:
      way_back(what, options)
  else:
    known(words)
    for name in words:
      convert(name, options.file, options.out)
  return 0


def guarded(read: Callable[[], Options], argv: list[str]) -> None:
  """What is wrong with the user's input ends in a sentence."""
  logging.set_verbosity(logging.WARNING)
  try:
    status = main(read(), argv[1:])
    sys.stdout.flush()
    sys.exit(status)
  except BrokenPipeError:  # of `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(partial(guarded, define_flags()))
