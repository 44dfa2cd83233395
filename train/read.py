"""Trains a reader of text lines, on pictures of your own or on lines rendered as they are needed.

  python -m train.read --model=crnn.shi --data=rendered --workdir=runs/reader
  python -m train.read --model=crnn --data=FOLDER --workdir=runs/mine

FOLDER holds train/, val/ and test/ with pictures and a gt.txt each: a line FILE<tab>TEXT for every
picture; or an LMDB database each (train/data/lmdb_lines.py). Of rendered lines, val and test are in
fonts that training never sees. The same command goes on with a run that was stopped.
"""

import dataclasses
from functools import partial
from pathlib import Path
import re

from flax import traverse_util
import jax
import jax.numpy as jnp

from train import loop, optim, options, startup
from train.data import lines, lmdb_lines
from train.metrics import show
from train.mix import Mix
from train.options import option
from train.tasks.read import Read, Spell
import zoo
from zoo import catalog
from zoo.text import charset
from zoo.text.attention_ocr import AttentionOCR

RENDERED = "rendered"
# Fonts that come with matplotlib, in which --data=rendered is drawn without --fonts.
SEEN = ("DejaVuSans.", "DejaVuSans-", "DejaVuSerif.", "DejaVuSerif-", "DejaVuSansMono")
UNSEEN = ("STIXGeneral",)


@dataclasses.dataclass(frozen=True)
class Config:
  characters: str = option("", "All that is to be read; the checkpoint's own if not given.")
  width: int = option(0, "Pixels that a line is stretched to; 0 for the model's.", lower_bound=0)
  fonts: str = option(
    "", "Folder of .ttf and .otf files to render with; matplotlib's if not given."
  )
  unseen_fonts: str = option("", "Folder of those for val and test; needed with --fonts.")
  words: str = option("", "File of words to render, one a line; made up if not given.")
  lines: int = option(20000, "Rendered lines of an epoch.", lower_bound=1)


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> loop.Job:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  if faults := [
    f"--{name} is missing" for name in ("data", "workdir") if not getattr(config, name)
  ]:
    raise ValueError("\n".join(faults))
  origin = described(config.model)
  classes = charset.of("".join(dict.fromkeys(own.characters))) if own.characters else origin.classes
  if not classes:
    raise ValueError(f"--characters is missing: {config.model} has none of its own")
  pixels = dataclasses.replace(origin.preprocess, width=own.width or origin.preprocess.size[1])
  splits = rendered(config, own, classes) if config.data == RENDERED else folders(config, classes)
  per_epoch = len(splits["train"].keys) // config.batch
  if not per_epoch:
    raise ValueError(f"--batch={config.batch} is more than the {len(splits['train'].keys)} lines")
  stages = zoo.stages(origin.variant)
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  fields = {
    "num_classes": len(classes), "dtype": getattr(jnp, config.dtype),
    "freeze_norm": config.freeze_norm,
  }  # fmt: skip
  some = {
    "batch": config.batch, "threads": config.threads,
    "process_index": jax.process_index(), "process_count": jax.process_count(),
  }  # fmt: skip
  model = zoo.create(origin.weights or origin.variant, **{**origin.fields, **fields})
  return loop.Job(
    name="read",
    task=(Spell if isinstance(model, AttentionOCR) else Read)(charset.blank_of(classes)),
    model=model,
    record=dataclasses.replace(
      origin, classes=classes, preprocess=pixels,
      fields={**origin.fields, "num_classes": len(classes)},
      provenance={**origin.provenance, "from": config.model, "data": config.data},
    ),
    weights=None if config.model in catalog.VARIANTS
    else partial(weights, config, fields, origin.classes == classes, pixels),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate),
    rate=rate,
    mix=Mix(),
    frozen=optim.frozen(stages, optimizer.freeze),
    train_batches=lambda step: lines.train_batches(
      splits["train"], pixels.crop, classes, seed=config.seed, start_step=step, **some
    ),
    eval_batches=lambda split: lines.eval_batches(splits[split], pixels.crop, classes, **some),
    keys={name: split.keys for name, split in splits.items()},
    flags=(config, optimizer, own),
  )  # fmt: skip


def described(model: str) -> zoo.Record:
  """What is known of a reader: a variant, a checkpoint, or a run's folder or file."""
  if model in catalog.VARIANTS:
    rows = [row for row in catalog.WEIGHTS.values() if row.variant == model]
    pixels, classes = zoo.preprocess(model), rows[0].classes if rows else ()
    record = zoo.Record(model, preprocess=pixels, in_channels=len(pixels.mean), classes=classes)
  else:
    record = zoo.record(model)
  if not isinstance(record.preprocess, zoo.Line):
    raise ValueError(f"{model} is no reader of lines; those are {', '.join(readers())}")
  return record


def readers() -> list[str]:
  return sorted(v for v in zoo.names(task="text") if isinstance(zoo.preprocess(v), zoo.Line))


def weights(config: loop.Config, fields, same: bool, pixels: zoo.Line) -> dict:
  """The checkpoint's variables; with a fresh head unless it names the `same` classes."""
  model, variables = zoo.load(config.model, seed=config.seed, **fields)
  if same:
    return variables
  head = zoo.stages(zoo.record(config.model).variant)[-1]
  flat = traverse_util.flatten_dict(variables, sep="/")
  fresh = zoo.init(
    model, jax.random.key(config.seed), size=pixels.size, channels=len(pixels.mean),
    paths=[path for path in flat if re.fullmatch(f"params/({head})/.*", path)],
  )  # fmt: skip
  return {**variables, "params": {**variables["params"], **fresh["params"]}}


def folders(config: loop.Config, classes) -> dict[str, lines.Lines]:
  """The splits; each a database where there is one, else pictures beside a gt.txt."""
  root = Path(config.data)
  if not root.is_dir():
    raise FileNotFoundError(f"no folder {root}; --data=rendered needs none")
  return {
    name: (lmdb_lines.load if (root / name / lmdb_lines.FILE).exists() else lines.folder)(
      root / name, classes
    )
    for name in ("train", "val", "test")
    if name == "train" or (root / name).is_dir()
  }


def rendered(config: loop.Config, own: Config, classes) -> dict[str, lines.Lines]:
  """Three splits; one line of val and of test for every twenty of an epoch."""
  seen, unseen = fonts(own)
  known = "".join(c for c in classes if c and not c.isspace())
  if own.words:
    words = tuple(Path(own.words).read_text("utf-8").split())
    charset.encode(words, classes)  # names the characters that are strange
  else:
    words = lines.made_up(known, own.lines, config.seed)
  few = max(config.batch, own.lines // 20)
  return {
    "train": lines.Rendered(seen, words, own.lines, config.seed),
    "val": lines.Rendered(unseen, words, few, config.seed + 1),
    "test": lines.Rendered(unseen, words, few, config.seed + 2),
  }


def fonts(own: Config) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
  """(those that training sees, those of val and test)."""
  if bool(own.fonts) != bool(own.unseen_fonts):
    raise ValueError("--fonts and --unseen_fonts are given together: val and test have their own")
  found = []
  for folder, names in ((own.fonts, SEEN), (own.unseen_fonts, UNSEEN)):
    files = sorted(p for p in _font_folder(folder).rglob("*") if p.suffix in (".ttf", ".otf"))
    files = [p for p in files if folder or p.name.startswith(names)]
    if not files:
      raise FileNotFoundError(f"no .ttf and no .otf files in {folder}")
    found.append(tuple(files))
  return tuple(found)


def _font_folder(folder: str) -> Path:
  if folder:
    return Path(folder)
  from matplotlib import get_data_path  # late: it is slow

  return Path(get_data_path()) / "fonts/ttf"


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  outcome = loop.run(config, prepare(config, optimizer, own))
  loop.say(f"{outcome.split}: {show(outcome.measured)}")


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
