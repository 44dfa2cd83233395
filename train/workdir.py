"""run.json: what a workdir holds, so that only the same run goes on in it."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import json
import os
from pathlib import Path
import platform
from typing import Any

OURS = ("checkpoints", "metrics.csv", "model.safetensors", "predictions.npz")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Keeps other processes out of `workdir`; the system ends that even when this one is killed.

  Raises:
    ValueError: another process trains there.
    OSError: the folder cannot be written; a sentence.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / ".lock", "a+")
  except OSError as error:
    raise OSError(
      f"cannot write in --workdir={workdir}: {error.strerror}; mend that or name another folder"
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise ValueError(
        f"{workdir} is in use: {file.read().strip() or 'another process'} trains there; wait for "
        "it, stop it, or give another --workdir"
      ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    yield


def claim(
  workdir: Path, run: Mapping[str, Any], free: set[str], usual: Mapping[str, Any] = {}
) -> None:
  """Makes `workdir` the folder of `run`, new or gone on with.

  Args:
    run: what run.json shall hold; "config" are the flags.
    free: flags that may differ from those of the run that is there.
    usual: values of flags that a run of an older version need not know.

  Raises:
    ValueError: another run lives there; says what differs.
    OSError: the folder cannot be written.
  """
  path = workdir / "run.json"
  if path.exists():
    if faults := _differences(read(workdir), run, free | {"workdir"}, usual):
      raise ValueError(
        f"{workdir} holds another run:\n  " + "\n  ".join(faults) +
        "\ngive another --workdir, or the same flags to go on with that run"
      )  # fmt: skip
  elif found := [name for name in OURS if (workdir / name).exists()]:
    raise ValueError(
      f"{workdir} has {', '.join(found)} but no run.json, so it is not the folder of a run; "
      "give another --workdir"
    )
  if not (path.exists() and read(workdir)["finished"]):
    write(workdir, run)


def read(workdir: Path) -> dict[str, Any]:
  """The contents of run.json. Raises ValueError if it is not JSON."""
  try:
    return json.loads((workdir / "run.json").read_text())
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{workdir / 'run.json'} is damaged ({error}); delete {workdir} or give another --workdir"
    ) from error


def write(workdir: Path, run: Mapping[str, Any]) -> None:
  """Writes run.json in one piece."""
  workdir.mkdir(parents=True, exist_ok=True)
  part = workdir / ".run.json.part"
  part.write_text(json.dumps(run, indent=2) + "\n")
  os.replace(part, workdir / "run.json")


def _differences(old: Mapping, new: Mapping, free: set[str], usual: Mapping) -> list[str]:
  plain, usual = json.loads(json.dumps((new, usual)))  # tuples become lists, as in the file
  before, now = usual | old.get("config", {}), plain["config"]
  flags = [
    f"--{name}={_brief(before.get(name))} there, --{name}={_brief(now.get(name))} now"
    for name in sorted((before.keys() | now.keys()) - free)
    if before.get(name) != now.get(name)
  ]
  facts = [
    f"{name}: {_brief(old.get(name))} there, {_brief(plain[name])} now"
    for name in ("task", "classes", "images")
    if old.get(name) != plain[name]
  ]
  return flags + facts


def _brief(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= 80 else text[:77] + "..."
