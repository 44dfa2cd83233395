"""Trains a network that says in a sentence what is in a picture.

  python -m train.caption --model=show_attend_tell_resnet18 --backbone=resnet18.broccoli \\
    --data=FOLDER --workdir=runs/mine
  python -m train.caption --model=show_and_tell_resnet50 --data=dataset_coco.json --workdir=runs/it

--data is a folder of COCO's caption files, or Karpathy's file beside the pictures' folders; see
train/data/captions.py.  The same command goes on with a run that was stopped.  At the end the best
state describes the held-out pictures: the workdir holds captions.json, scores.json (BLEU, ROUGE-L,
CIDEr-D, beside those of captions that look at nothing but neighbours) and report.html.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
from functools import partial
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from train import backbones, caption_report, caption_scores, describe, loop, optim, options, startup
from train.data import captions, threaded, transforms
from train.metrics import show
from train.mix import Mix
from train.options import option
from train.tasks.caption import Caption
import zoo
from zoo import catalog
from zoo.text import caption, vocabulary


@dataclasses.dataclass(frozen=True)
class Config:
  backbone: str = option(
    "", "Published classifier (variant.tag) whose weights a fresh --model looks with."
  )
  least: int = option(
    5, "Words that occur less often in the training captions are unknown.", lower_bound=1
  )
  longest: int = option(20, "Words of a caption; what is behind is cut off.", lower_bound=1)
  hidden: int = option(0, "Units of the LSTM; 0 for the model's own.", lower_bound=0)
  dropout: float = option(
    -1.0, "Of what the LSTM says; negative for the model's own.", upper_bound=0.95
  )
  crop: float = option(
    0.9, "A training view has at least this share of the picture's area.",
    lower_bound=0.05, upper_bound=1.0,
  )  # fmt: skip
  flip: float = option(
    0.0, "Probability of left for right, of which captions may speak.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  smoothing: float = option(0.0, "Label smoothing.", lower_bound=0.0, upper_bound=1.0)
  stochastic: float = option(
    1.0, "How much it matters that soft attention looks everywhere once.", lower_bound=0.0
  )
  sampling: float = option(
    0.0, "Share of words that the model hears from itself at the end of training, rising from 0.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  beam: int = option(3, "Captions that the search keeps at the end.", lower_bound=1, free=True)
  penalty: float = option(
    0.7, "They are ranked by log p / length**penalty.", lower_bound=0.0, free=True
  )
  report: bool = option(True, "Describe held-out pictures and write the report.", free=True)


def prepare(config: loop.Config, optimizer: optim.Config, own: Config) -> loop.Job:
  """Everything that can be found wrong before the first compilation.

  Raises:
    ValueError, OSError: sentences for the user.
  """
  faults = [f"--{name} is missing" for name in ("data", "workdir") if not getattr(config, name)]
  try:
    origin = described(config.model, own.backbone)
  except (ValueError, OSError) as error:
    faults.append(str(error))
  if faults:
    raise ValueError("\n".join(faults))
  splits = captions.load(config.data)
  told = [c for some in splits["train"].captions for c in some]
  classes = origin.classes or vocabulary.build(told, own.least)
  if len(classes) == len(vocabulary.SPECIAL):
    raise ValueError(f"no word occurs --least={own.least} times in {len(told)} captions")
  length = min(own.longest, max(len(vocabulary.words(c)) for c in told))
  count = len(splits["train"].keys)
  per_epoch = count // config.batch
  if not per_epoch:
    raise ValueError(f"--batch={config.batch} is more than the {count} training pictures")
  stages = zoo.stages(origin.variant)
  total = loop.length(config, per_epoch)
  rate = optim.schedule(optimizer, total=total, warmup=round(optimizer.warmup * per_epoch))
  kept = {
    **origin.fields, "num_classes": len(classes),
    **({"hidden": own.hidden} if own.hidden else {}),
    **({"dropout": own.dropout} if own.dropout >= 0 else {}),
  }  # fmt: skip
  fields = {"dtype": getattr(jnp, config.dtype), "freeze_norm": config.freeze_norm}
  size = config.size or origin.preprocess.size
  pixels = dataclasses.replace(origin.preprocess, size=size, resize=size, squash=True)
  augment = transforms.Augment((own.crop, 1.0), flip=own.flip)
  share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  model = zoo.create(origin.weights or origin.variant, **kept, **fields)
  inputs = ("image", "tokens", "own") if own.sampling else ("image", "tokens")
  return loop.Job(
    name="caption",
    task=Caption(own.smoothing, own.stochastic, inputs=inputs),
    model=model,
    record=dataclasses.replace(
      origin, classes=classes, preprocess=pixels, fields=kept,
      provenance={**origin.provenance, "from": own.backbone or config.model, "data": config.data},
    ),
    weights=starting(config, own, model, {**kept, **fields}, size),
    total=total,
    per_epoch=per_epoch,
    tx=optim.make(optimizer, stages, rate),
    rate=rate,
    mix=Mix(),
    frozen=optim.frozen(stages, optimizer.freeze),
    train_batches=partial(
      train_batches, config, own, splits["train"], classes, size, length, augment, total, share
    ),
    eval_batches=lambda split: threaded.batches(
      threaded.eval_rows(len(splits[split].keys), batch=config.batch, **share),
      captions.eval_row(splits[split], classes, pixels.crop, length, bool(own.sampling)),
      config.threads,
    ),
    keys={name: source.keys for name, source in splits.items()},
    flags=(config, optimizer, own),
  )  # fmt: skip


def described(model: str, backbone: str = "") -> zoo.Record:
  """What is known of a captioner: a variant, or a run's folder or file.

  Of a variant with a published backbone, its pixels are those of the backbone.
  """
  if not Path(model).exists() and "." not in model and "/" not in model:
    catalog.lookup(model, catalog.VARIANTS, "model")
  fresh = model in catalog.VARIANTS
  record = zoo.Record(model) if fresh else zoo.record(model)
  if record.variant not in caption.VARIANTS:
    raise ValueError(f"{model} says nothing; captioners are {', '.join(caption.VARIANTS)}")
  if backbone and not fresh:
    raise ValueError(f"--backbone is for a fresh --model; {model} has weights of its own")
  if backbone:
    record = dataclasses.replace(record, preprocess=zoo.record(backbone).preprocess)
  return record


def starting(config: loop.Config, own: Config, model, fields, size: int):
  """What gives the variables to start from; None for random ones."""
  if own.backbone:

    def planted():
      known = backbones.under("encoder", own.backbone)
      return backbones.planted(
        model, own.backbone, known, ("encoder",), size=size, seed=config.seed
      )

    return planted
  if config.model in catalog.VARIANTS:
    return None
  return lambda: zoo.load(config.model, seed=config.seed, **fields)[1]


def train_batches(config, own: Config, source, classes, size, length, augment, total, share, step):
  """From update number `step` on; how often the model hears itself rises with the number."""
  rows = threaded.train_rows(
    len(source.keys), batch=config.batch, seed=config.seed, start_step=step, **share
  )
  if not own.sampling:
    make = captions.train_row(source, classes, size, length, augment, None)
    return threaded.batches(rows, make, config.threads)

  def numbered():
    for number, some in enumerate(rows, start=step):
      yield [(number, row) for row in some]

  def make(row):
    number, row = row
    often = own.sampling * number / total
    hears = lambda rng: (rng.random(length + 2) < often) & (np.arange(length + 2) > 0)
    return captions.train_row(source, classes, size, length, augment, hears)(row)

  return threaded.batches(numbered(), make, config.threads)


def spoken(
  config: loop.Config, own: Config, split: str
) -> tuple[list[describe.Said], list[dict], dict[str, dict]]:
  """(what is said of each picture of a split, the same beside people's captions, scores).

  Scores are the model's, and those of captions that were written for other pictures.
  """
  splits = captions.load(config.data)
  source, known = splits[split], splits["train"]
  pixels, say = describe.captioner(
    config.workdir, beam=own.beam, penalty=own.penalty, longest=own.longest, batch=config.batch
  )
  view = lambda some, i: pixels.crop(Image.fromarray(transforms.decode(some.data(i))))
  said = say([view(source, i) for i in range(len(source.keys))])
  rows = [
    {
      "image": key,
      "caption": s.text,
      "words": s.words,
      "log_prob": s.log_prob,
      "references": list(truth),
    }
    for key, s, truth in zip(source.keys, said, source.captions)
  ]
  told = [c for some in known.captions for c in some]
  common = Counter(" ".join(vocabulary.words(c)) for c in told).most_common(1)[0][0]
  near = neighbours(config.workdir, pixels, known, source, view, config.batch)
  found = {
    "model": [s.text for s in said],
    "nearest training picture's caption": [known.captions[i][0] for i in near],
    "most frequent caption": [common] * len(rows),
  }
  for row, caption_ in zip(rows, found["nearest training picture's caption"]):
    row["neighbour"] = caption_
  scores = {who: caption_scores.score(texts, source.captions) for who, texts in found.items()}
  return said, rows, scores


def neighbours(workdir: str, pixels, known, source, view: Callable, batch: int) -> np.ndarray:
  """[n] the picture of `known` that is most like each of `source`, by the encoder's mean map."""
  network, variables = zoo.load(workdir)
  encoder = network.backbone(num_classes=None, numerics=network.numerics)
  of = {name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree}

  @jax.jit
  def embed(of, image):
    ends = encoder.apply(of, pixels.normalize(image), train=False)
    x = ends[getattr(network, "annotations", "pooled")]
    x = x.reshape(x.shape[0], -1, x.shape[-1]).mean(1).astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

  def all_of(some):
    rows = []
    for i in range(0, len(some.keys), batch):
      picture = [view(some, min(k, len(some.keys) - 1)) for k in range(i, i + batch)]
      rows.append(np.asarray(embed(of, np.stack(picture))))
    return np.concatenate(rows)[: len(some.keys)]

  return (all_of(source) @ all_of(known).T).argmax(1)


def leave(folder: Path, said: Sequence[describe.Said], rows, scores) -> None:
  """Writes captions.json and scores.json, and attention.npy [n word h w] of a model that looks."""
  if said[0].attention is not None:
    most = max(len(s.words) for s in said)
    maps = [np.pad(s.attention, ((0, most - len(s.words)), (0, 0), (0, 0))) for s in said]
    np.save(folder / "attention.npy", np.stack(maps).astype(np.float16))
  for name, content in (("captions.json", rows), ("scores.json", scores)):
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / name).write_text(text + "\n", "utf-8")


def main(
  _, processes: startup.Config, config: loop.Config, optimizer: optim.Config, own: Config
) -> None:
  startup.set_up_compilation()
  startup.join(processes)
  outcome = loop.run(config, prepare(config, optimizer, own))
  loop.say(f"{outcome.split}: {show(outcome.measured)}")
  if own.report and jax.process_index() == 0:
    said, rows, scores = spoken(config, own, outcome.split)
    leave(Path(config.workdir), said, rows, scores)
    for who, found in scores.items():
      print(f"{show(found)}  {who}")
    page = caption_report.write(Path(config.workdir))
    print(f"report: {page.resolve()}")


if __name__ == "__main__":
  options.run(main, startup.Config, loop.Config, optim.Config, Config)
