"""The loop of every run: start, train, evaluate, save, log; and what a run leaves behind.

A run starts where its workdir stands, else from the weights of --model, else fresh. This is the
only place that saves, restores and logs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from functools import partial
import os
from pathlib import Path
import re
import shlex
import signal
import sys
import threading
import time
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np
import optax

from train import mesh as meshes
from train import metrics, options, pace, workdir
from train.batches import one_ahead
from train.checkpoint import Checkpoints, SaveError
from train.mix import Mix
from train.options import option
from train.step import State, make_eval_step, make_state, make_train_step
from train.tasks import Task
import zoo
from zoo import listing, store


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = option(
    "resnet18", "Variant to train afresh, variant.tag to start from its weights (python -m zoo "
    "lists them), or the workdir or .safetensors of a run to start from.",
  )  # fmt: skip
  data: str = option(
    "", "Folder of photographs, tar:FOLDER or records:FOLDER of shards, or tfds:NAME."
  )
  workdir: str = option("", "Folder of the run. One that holds this run already is gone on with.")
  size: int = option(0, "Pixels of the square input; 0 for the checkpoint's.", lower_bound=0)
  batch: int = option(32, "Images of an update, over all devices.", lower_bound=1)
  mesh: tuple[str, ...] = option(
    (), "How to arrange all devices: data:8 splits the batch, data:4,fsdp:2 also splits the state "
    "in two; all split the batch if not given.", free=True,
  )  # fmt: skip
  epochs: float = option(10.0, "How often training sees each image; need not be whole.")
  steps: int = option(0, "Updates; if not 0, instead of --epochs.", lower_bound=0)
  seed: int = option(0, "Of the fresh head, the order of images and their crops.", lower_bound=0)
  dtype: str = option(
    "float32", "Of the computation; parameters stay float32.", choices=("float32", "bfloat16")
  )
  remat: bool = option(
    False, "Compute blocks again for the gradient instead of keeping what is in them: less memory, "
    "a third more work.",
  )  # fmt: skip
  freeze_norm: bool = option(False, "Batch norms keep the checkpoint's statistics.")
  eval_every: float = option(1.0, "Epochs between evaluations on the val split.", free=True)
  save_every: int = option(
    0, "Updates between checkpoints; 0 saves after each evaluation.", lower_bound=0, free=True
  )
  log_every: int = option(10, "Updates between rows of metrics.csv.", lower_bound=1, free=True)
  threads: int = option(2, "Threads that decode images.", lower_bound=1, free=True)
  ema: float = option(
    0.0, "Share that averages of parameters and statistics keep at an update, such as 0.9998; they "
    "are evaluated too, and the better of both is published. 0 for none.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  patience: int = option(
    0, "Stop after so many evaluations without a better one; 0 for never.", lower_bound=0
  )
  skip: int = option(
    0, "So many updates in a row may be left out because their loss or gradient is not finite.",
    lower_bound=0, free=True,
  )  # fmt: skip
  profile: str = option(
    "", "Updates to trace, such as 20-25; TensorBoard and xprof show what is left in profile/.",
    free=True,
  )  # fmt: skip
  peak: float = option(
    0.0, "TFLOP/s that one device can do in --dtype, to say how much of it the model uses; 0 for "
    "those of a large matrix product, measured at the end.", lower_bound=0.0, free=True,
  )  # fmt: skip
  max_bad: float = option(
    0.05, "Share of images that may be unreadable; they are skipped and listed.",
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
  """What one run trains, and on what, whatever its task."""

  name: str  # of the task, as run.json says it
  task: Task
  model: nn.Module
  record: zoo.Record  # of the weights that the run will publish
  weights: Callable[[], Mapping] | None  # variables to start from; None for random ones
  total: int  # updates
  per_epoch: int  # updates
  tx: optax.GradientTransformation
  rate: Callable[[int], jax.Array]  # learning rate of the update number 0, 1, ...
  mix: Mix  # of the pictures of a batch
  frozen: str  # regular expression of the top-level modules that are held
  train_batches: Callable[[int], Iterator]  # from an update's number on, without end
  eval_batches: Callable[[str], Iterator]  # all of a split
  keys: Mapping[str, Sequence[str]]  # names of the images of each split
  skipped: Sequence[str] = ()  # a sentence for each image left out
  flags: tuple[Any, ...] = ()  # all dataclasses of flags, for run.json
  # (split, rows, predictions) -> what an evaluation measures on the host beside the task's terms
  score: Callable[[str, np.ndarray, Mapping], Mapping[str, float]] | None = None
  phases: tuple[tuple[int, str], ...] = ()  # (updates done, `frozen` from then on), in order
  ready: Callable[[], None] = lambda: None  # makes what the batches need, once the workdir is ours
  published: Callable[[Mapping], Mapping] = lambda variables: variables  # of those that are learned
  # (state of the optimizer, what val measured) -> that state, which knows it
  heard: Callable[[Any, Mapping[str, float]], Any] = lambda opt, measured: opt

  def held(self, done: int) -> str:
    """Regular expression of the modules that are held in the update after `done` others."""
    return next((f for since, f in reversed(self.phases) if since <= done), self.frozen)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One evaluation of a split."""

  split: str
  measured: dict[str, float]
  index: np.ndarray  # [n] rows of the split
  target: np.ndarray  # [n ...] what was right
  predictions: dict[str, np.ndarray]  # each [n ...]


def length(config: Config, per_epoch: int) -> int:
  """Updates in all. Raises ValueError if there are none."""
  total = config.steps or round(config.epochs * per_epoch)
  if total < 1:
    raise ValueError(f"--epochs={config.epochs} is not one update; an epoch has {per_epoch}")
  return total


def run(config: Config, job: Job) -> Outcome:
  """Trains to the end; returns how the best state does on the test split, or on val without one.

  Raises:
    ValueError: the workdir is another run's, or its checkpoints are of no use; a sentence.
    OSError: a file cannot be written; a sentence.
    FloatingPointError: the loss is not finite; a sentence that names the batch, saved beside.
    SystemExit: with status 0, after SIGTERM, when the state is saved.
  """
  folder = Path(config.workdir)
  mesh = meshes.make(config.mesh, batch=config.batch)
  total, per_epoch, held_out = job.total, job.per_epoch, _held_out(job)
  traced = pace.updates(config.profile, total)
  start_of_run, pictures = time.perf_counter(), "image" in job.task.inputs
  record = _describe(config, job)
  seconds = dict.fromkeys(("start", "input", "compile", "train", "evaluate", "save"), 0.0)
  wanted = like(config, job, mesh)
  make_step = partial(
    make_train_step, job.model, job.task, job.tx, jax.random.key(config.seed),
    job.record.preprocess, skip=bool(config.skip), ema=config.ema, mix=job.mix, remat=config.remat,
    shardings=(places(wanted), meshes.replicated(mesh)),
  )  # fmt: skip
  held = train_step = None
  evaluate = Evaluator(job, mesh, seconds)
  with contextlib.ExitStack() as stack:
    if first := jax.process_index() == 0:  # of several processes, one writes
      stack.enter_context(workdir.locked(folder))
      workdir.claim(folder, record, options.free(*job.flags), options.usual(*job.flags))
    stack.enter_context(_going_on(folder))
    with spent(seconds, "start"):
      job.ready()
    terminated = stack.enter_context(_sigterm())
    checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
    with spent(seconds, "start"):
      state = _begin(config, job, checkpoints, wanted)
    start = int(state.step)
    log = metrics.Log(folder, start, per_epoch) if first else metrics.NoLog()
    stack.enter_context(contextlib.closing(log))
    best = Best(folder / "model.safetensors", job)
    watch = Watch(folder, config.skip)
    progress = stack.enter_context(contextlib.closing(metrics.Progress(
      log, job.rate, start=start, total=total, batch=config.batch, every=config.log_every,
      watch=watch, shown=first,
      warn=partial(pace.input_bound, config.threads) if pictures else None,
    )))  # fmt: skip
    tracing = stack.enter_context(pace.Trace(folder / "profile", traced))
    eval_every = max(1, round(config.eval_every * per_epoch))
    save_every = config.save_every or eval_every
    patience = config.patience * eval_every or total
    if best.stale(start, patience):  # it had stopped there
      total = start
    batches = job.train_batches(start) if start < total else iter(())
    for step in range(start + 1, total + 1):
      tracing.before(step)
      if compiles := held != job.held(step - 1):
        progress.drain()
        held = job.held(step - 1)
        train_step = make_step(frozen=held)
      with spent(seconds, "input"):
        asked = time.perf_counter()
        batch = _arrays(next(batches))
        progress.waited(time.perf_counter() - asked)
        watch.keep(step, batch)
        batch = meshes.put_batch(batch, mesh)
      with spent(seconds, "compile" if compiles else "train"):
        state, measured = train_step(state, batch)
        progress.ran(step, measured)
      if compiles:
        progress.restart_clock()
      tracing.after(step, measured)
      last = step == total
      if evaluates := last or step % eval_every == 0:
        progress.drain()
        found = {}
        for name, variables in {"val": state.variables, "val_ema": state.ema}.items():
          if variables:
            found[name] = evaluate("val", variables).measured if "val" in job.keys else {}
            log.write(step, name, found[name])
            with spent(seconds, "save"):
              best.offer(step, variables, found[name], name)
        progress.say(step, found)
        if found["val"]:
          state = state.replace(opt=job.heard(state.opt, found["val"]))
        if not last and best.stale(step, patience):
          say(f"stopped: no evaluation since step {best.step} was better")
          last = True
      stop = _asked_to_stop(terminated, step) and not last
      if last or stop or step % save_every == 0:  # after the evaluation: no resume can miss it
        progress.drain()
        with spent(seconds, "save"):
          checkpoints.save(state)
      if last:
        break
      if stop:
        checkpoints.wait()
        say(f"stopped by SIGTERM at step {step}, which is saved; the same command goes on there")
        sys.exit(0)
      if evaluates:
        progress.restart_clock()
    with spent(seconds, "save"):
      checkpoints.wait()
    outcome = evaluate(held_out, best.variables(mesh))
    # Of classifiers, whose networks `zoo.listing` counts.
    if first and progress.speed and job.name == "classify" and pictures:
      used, sentence = pace.utilisation(
        _multiply_adds(job), progress.speed, devices=mesh.size, dtype=config.dtype,
        peak=config.peak, partly=bool(job.held(total)),
      )  # fmt: skip
      record["utilisation"] = used
      say(sentence)
    if outcome.split == "test":
      log.write(int(state.step), "test", outcome.measured)
  seconds["all"] = time.perf_counter() - start_of_run
  if first:
    _leave(folder, outcome, job.keys[outcome.split])
    record |= {"finished": True, "test": outcome.measured, "seconds": seconds}
    workdir.write(folder, record)
  return outcome


def say(text: str) -> None:
  """Prints a line once, however many processes there are."""
  if jax.process_index() == 0:
    print(text, flush=True)


def like(config: Config, job: Job, mesh) -> State:
  """The state in ShapeDtypeStructs, which say where on the mesh each array is."""
  preprocess = job.record.preprocess
  variables = zoo.shapes(job.model, size=preprocess.size, channels=job.record.in_channels)
  state = jax.eval_shape(partial(make_state, tx=job.tx, ema=bool(config.ema)), variables)
  return meshes.placed(state, meshes.shardings(mesh, state))


def places(wanted: State):
  """The shardings of `like`."""
  return jax.tree.map(lambda x: x.sharding, wanted)


def _begin(config: Config, job: Job, checkpoints: Checkpoints, wanted: State) -> State:
  """The state that the run goes on from: of the workdir, else of the weights, else fresh."""
  state = checkpoints.restore(wanted)
  if state is not None:
    say(f"going on with {config.workdir} at step {int(state.step)}")
    return state
  return begin(config, job, wanted)


def begin(config: Config, job: Job, wanted: State) -> State:
  """The state before the first update: of the weights, else fresh; where `wanted` says."""
  size, channels = job.record.preprocess.size, job.record.in_channels
  if job.weights:
    say(f"starting from {config.model}")
    variables = job.weights()
  else:
    say(f"starting {config.model} from random weights")
    # Of these random numbers a CPU compiles a network's in one second; of the default's, in 20.
    key = jax.random.key(config.seed, impl="rbg")
    variables = zoo.init(job.model, key, size=size, channels=channels)
  variables = jax.device_get(variables)  # which every process has alike
  if not config.freeze_norm and (count := folded_norms(variables, job.held(0))):
    say(
      f"warning: {count} batch norms of {config.model} came folded into their convolutions and do "
      "nothing; the statistics of batches will change what its weights were made for, unless they "
      "are held, by --freeze_norm or in stages by --freeze"
    )
  start = partial(make_state, tx=job.tx, ema=bool(config.ema))
  return jax.jit(start, out_shardings=places(wanted))(variables)


def folded_norms(variables: Mapping, held: str) -> int:
  """How many batch norms, but for modules that are held, are `convert.engine.identity`."""
  stats = traverse_util.flatten_dict(variables.get("batch_stats", {}))
  return sum(
    not re.fullmatch(held, path[0]) and not stats[*path[:-1], "mean"].any()
    and var.min() == var.max() != 1  # as it is in a norm that is new
    for path, var in stats.items() if path[-1] == "var"
  )  # fmt: skip


def _multiply_adds(job: Job) -> int:
  """Of the model, for one image."""
  size, channels = job.record.preprocess.size, job.record.in_channels
  return listing.measure(job.model, size, channels)[1]


@contextlib.contextmanager
def _going_on(folder: Path) -> Iterator[None]:
  """Says of a full disk and the like which run it stopped, and how that goes on."""
  try:
    yield
  except SaveError:
    raise
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    print(
      f"error: the run in {folder} stopped, because another of its {jax.process_count()} processes "
      f"did ({str(error).splitlines()[0][:200]}). Start all of them again by the same commands; "
      "they go on from the last checkpoint", file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)  # an orderly end would wait for the process that is gone, and then abort
  except OSError as error:
    raise OSError(
      f"the run in {folder} stopped: {error}. Mend that and run the same command again; "
      "it goes on from the last checkpoint"
    ) from error


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
  """A list that SIGTERM makes longer, so that the loop can end its step and save."""
  received = []
  # Other threads may not handle signals; with several processes JAX does.
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield received
    return
  before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
  try:
    yield received
  finally:
    signal.signal(signal.SIGTERM, before)


def _asked_to_stop(terminated: list[int], step: int) -> bool:
  """True after SIGTERM; of several processes, after the same step in all of them."""
  if jax.process_count() == 1:
    return bool(terminated)
  return multihost_utils.reached_preemption_sync_point(step)


class Watch:
  """Stops a run whose numbers are not finite, and leaves the batch where that was seen.

  Measures arrive a step late, so the last two batches are kept.
  """

  def __init__(self, folder: Path, limit: int):
    self._folder, self._limit, self._skipped = folder, limit, 0
    self._batches: dict[int, dict[str, np.ndarray]] = {}

  def keep(self, step: int, batch: dict[str, np.ndarray]) -> None:
    self._batches = {s: b for s, b in self._batches.items() if s == step - 1} | {step: batch}

  def __call__(self, step: int, measured: Mapping[str, tuple[float, float]]) -> None:
    """Looks at what the update number `step` measured. Raises FloatingPointError."""
    skipped = measured.get("skipped", (0.0, 1.0))[0] > 0
    self._skipped = self._skipped + 1 if skipped else 0
    broken = sorted(name for name, (total, _) in measured.items() if not np.isfinite(total))
    if not broken and self._skipped <= self._limit:
      return
    rank = jax.process_index()
    path = self._folder / f"broken_step_{step}{f'_process_{rank}' if rank else ''}.npz"
    np.savez(path, **self._batches[step])
    what = (
      f"{', '.join(broken)} of update {step} is not finite" if broken else
      f"{self._skipped} updates in a row, the last of them {step}, had no finite loss or gradient"
    )  # fmt: skip
    raise FloatingPointError(
      f"{what}; its batch is in {path}. Look at that, then try a smaller --lr or more --warmup in "
      "another --workdir, or let such updates be left out by --skip=10"
    )


class Evaluator:
  """Runs the evaluation step over a split; compiled at its first call."""

  def __init__(self, job: Job, mesh, seconds: dict[str, float]):
    self._job, self._mesh, self._seconds = job, mesh, seconds
    everywhere = meshes.replicated(mesh)
    self._step = make_eval_step(job.model, job.task, job.record.preprocess, sharding=everywhere)
    self._compiled = False

  def __call__(self, split: str, variables) -> Outcome:
    meter = metrics.Meter()
    with spent(self._seconds, "evaluate"):
      rows = [_fetch(meter, *out) for out in one_ahead(self._answers(split, variables))]
    if not rows:
      raise ValueError(f"the {split} split has no images")
    predictions, asked = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    target = asked[self._job.task.target]
    measured = meter.means()
    if self._job.score:
      with spent(self._seconds, "evaluate"):
        measured |= self._job.score(split, asked["index"], predictions)
    return Outcome(split, measured, asked["index"], target, predictions)

  def _answers(self, split: str, variables):
    for batch in self._job.eval_batches(split):
      start = time.perf_counter()
      out = self._step(variables, meshes.put_batch(batch, self._mesh))
      if not self._compiled:
        self._compiled, compiling = True, time.perf_counter() - start
        self._seconds["compile"] += compiling
        self._seconds["evaluate"] -= compiling
      yield out


def _fetch(meter: metrics.Meter, measured, predictions, asked):
  """(predictions, asked) of the real rows; adds the measures to `meter`."""
  measured, predictions, asked = jax.device_get((measured, predictions, asked))
  meter.add(measured)
  real = asked["index"] >= 0
  return jax.tree.map(lambda x: x[real], (predictions, asked))


class Best:
  """model.safetensors: the variables of the best evaluation, or of the last without a val split.

  What the best one measured stands in the file, so that a resumed run knows it.
  """

  def __init__(self, path: Path, job: Job):
    self._path, self._job, self._rank, self.step = path, job, None, 0
    if path.exists():
      facts = store.read_record(path).provenance
      measured = facts.get("measured")
      self._rank, self.step = job.task.rank(measured) if measured else None, facts["step"]

  def stale(self, step: int, patience: int) -> bool:
    """True if the best one is at least `patience` updates old."""
    return self.step > 0 and step - self.step >= patience

  def offer(self, step: int, variables, measured: Mapping[str, float], split: str) -> None:
    """Keeps `variables` if they are the best so far."""
    rank = self._job.task.rank(measured) if measured else None
    if rank is not None and self._rank is not None and not rank > self._rank:
      return
    self._rank, self.step = rank, step
    facts = {"step": step, "measured": dict(measured), "split": split if measured else ""}
    provenance = {**self._job.record.provenance, **facts}
    record = dataclasses.replace(self._job.record, provenance=provenance)
    variables = meshes.fetch(variables)
    if jax.process_index() == 0:
      store.save(self._path, self._job.published(variables), record)

  def variables(self, mesh):
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("the best variables are on the disk")
    variables = store.read_variables(self._path)
    return jax.jit(lambda x: x, out_shardings=meshes.shardings(mesh, variables))(variables)


def _describe(config: Config, job: Job) -> dict[str, Any]:
  """run.json of a run that has just begun."""
  script = Path(sys.argv[0]).stem
  return {
    "command": shlex.join(["python", "-m", f"train.{script}", *sys.argv[1:]]),
    "config": options.as_dict(*job.flags),
    "task": job.name,
    "model": job.record.variant,
    "weights": job.record.weights,
    "data": config.data,
    "classes": list(job.record.classes),
    "images": {split: len(keys) for split, keys in job.keys.items()},
    "size": job.record.preprocess.size,
    "preprocess": dataclasses.asdict(job.record.preprocess),
    "skipped": list(job.skipped),
    "finished": False,
    "test": None,
    "seconds": {},
  }


def _leave(folder: Path, outcome: Outcome, keys: Sequence[str]) -> None:
  """Writes predictions.npz in one piece: keys, labels, the task's predictions, split."""
  part = folder / ".predictions.part.npz"
  names = np.array([keys[i] for i in outcome.index], dtype=np.str_)
  np.savez(part, keys=names, labels=outcome.target, split=outcome.split, **outcome.predictions)
  os.replace(part, folder / "predictions.npz")


def _held_out(job: Job) -> str:
  """The split that the run is measured on at its end."""
  for split in ("test", "val"):
    if split in job.keys:
      return split
  raise ValueError("no images are held out to measure the run on: give it more, or a val folder")


def _arrays(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: array for name, array in batch.items() if name != "index"}


@contextlib.contextmanager
def spent(seconds: dict[str, float], what: str) -> Iterator[None]:
  """Adds the wall time of its body to `seconds[what]`."""
  start = time.perf_counter()
  try:
    yield
  finally:
    seconds[what] += time.perf_counter() - start
