"""Training state on disk, by Orbax: saved in the background, checked when it comes back.

A checkpoint holds a whole `State`: step, parameters, statistics, optimizer. The input needs no
state of its own, because the step alone determines every batch (see `train.data.pipeline`). Orbax
names a checkpoint only when it is whole, but does not notice bytes that rot later; so a digest of
all arrays goes with each, and a damaged one is passed over for the one before.
"""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import logging
import os
from pathlib import Path
import re
import shutil

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from train import mesh as meshes
from train.step import State

KEEP = 2  # the last, and the one before in case the last is damaged


class SaveError(OSError):
  """A checkpoint could not be written; the text says why and what to do."""


class Checkpoints:
  """The checkpoints of one run. Use as a context manager: leaving waits for the last save."""

  def __init__(self, folder: Path):
    self.folder = Path(folder).absolute()
    self._bytes = 0  # of the state that was last to be saved
    # What Orbax logs from its threads is said by us, once and in a sentence.
    logging.getLogger("absl").addFilter(_not_orbax)
    # Were folders made in the background, threads would wait ten minutes for one that cannot be.
    at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    # It makes the folder, and removes what a killed run left half-written.
    with self._saving(), ocp.Context(async_options=at_once):
      self._orbax = ocp.training.Checkpointer(
        self.folder,
        preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),
        cleanup_tmp_directories=True,
      )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, SaveError):
      return
    with self._saving():
      self._orbax.close()

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return [c.step for c in self._orbax.checkpoints]

  def save(self, state: State) -> None:
    """Writes `state` in the background; waits first for the save before. Idempotent for a step.

    Raises:
      SaveError: the disk is full or not writable; perhaps that of the save before.
    """
    step = int(state.step)
    if step in self.steps():
      return
    self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    facts = {"digest": digest(state), "layout": layout(state)}
    with self._saving():
      self._orbax.save_async(step, state, force=True, custom_metadata=facts)

  def wait(self) -> None:
    """Returns when the save in the background is on the disk."""
    with self._saving():
      self._orbax.wait()

  def restore(self, like: State) -> State | None:
    """The newest state that is undamaged; None if nothing was ever saved.

    Args:
      like: ShapeDtypeStructs with the shardings that the arrays shall have.

    Raises:
      ValueError: a checkpoint holds other arrays than `like`, or all are damaged.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        state = self._load(step, like)
      except _Damaged as fault:
        damaged.append((step, f"step {step}: {fault}"))
        continue
      for bad, text in damaged:
        print(f"checkpoint of {text}; going on from the one before, of step {step}", flush=True)
        self._orbax.delete(bad)
      return state
    if damaged:
      texts = "\n  ".join(text for _, text in damaged)
      raise ValueError(
        f"every checkpoint in {self.folder} is damaged:\n  {texts}\n"
        "delete that folder to train from the beginning"
      )
    return None

  def _load(self, step: int, like: State) -> State:
    try:
      facts = self._orbax.metadata(step).custom_metadata
    except Exception as error:  # Orbax raises many types for a broken file
      raise _Damaged(f"its description cannot be read ({_first_line(error)})") from error
    if not facts:
      raise _Damaged("its description is lost")
    if (theirs := facts["layout"]) != (ours := layout(like)):
      raise ValueError(_other_layout(self.folder / str(step), theirs, ours))
    try:
      state = self._orbax.load(step, like)
    except Exception as error:
      raise _Damaged(f"it cannot be read ({_first_line(error)})") from error
    if digest(state) != facts["digest"]:
      raise _Damaged("its arrays are not those that were saved (their digest differs)")
    return state

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Turns what Orbax raises on a full or read-only disk into a `SaveError`."""
    try:
      yield
    except (OSError, ValueError) as error:
      if (reason := _disk_reason(error)) is None:
        raise
      # Room for others at once. A thread may still write there; the next start removes that.
      for part in self.folder.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(part, ignore_errors=True)
      whole = [int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit()]
      last = f"the last whole checkpoint is of step {max(whole)}" if whole else "none is saved yet"
      raise SaveError(
        f"cannot save a checkpoint in {self.folder}: {reason} ({_free(self.folder)} free without "
        f"it, up to {self._bytes / 1e6:.0f} MB needed); {last}. "
        "Mend that and run the same command again to go on from there"
      ) from error


class _Damaged(Exception):
  pass


def digest(tree) -> str:
  """SHA-256 of all arrays with their names, types and shapes."""
  total = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(meshes.fetch(array))
    total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
    total.update(array.reshape(-1).view(np.uint8).data)
  return total.hexdigest()


def layout(tree) -> dict[str, str]:
  """{name: "type[shape]"} of all arrays, or of what stands for them."""
  return {
    jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _other_layout(path: Path, theirs: dict[str, str], ours: dict[str, str]) -> str:
  differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
  shown = [f"{k}: {theirs.get(k, 'nothing')} there, {ours.get(k, 'nothing')} here" for k in differ]
  more = f"\n  and {len(differ) - 5} more" if len(differ) > 5 else ""
  return (
    f"{path} holds another network or optimizer:\n  " + "\n  ".join(shown[:5]) + more +
    "\ngive another --workdir, or the version of flaxzoo that wrote it"
  )  # fmt: skip


def _disk_reason(error: Exception) -> str | None:
  """What the system said, if it refused to write. TensorStore only puts it into a ValueError."""
  if isinstance(error, OSError) and error.errno is not None:
    return os.strerror(error.errno)
  if match := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(match[1]))
  return os.strerror(errno.ENOSPC) if "RESOURCE_EXHAUSTED" in str(error) else None


def _free(folder: Path) -> str:
  while not folder.exists():
    folder = folder.parent
  return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB"


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _not_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in record.pathname
