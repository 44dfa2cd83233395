"""The folder of --out: it appears when it is complete, or not at all."""

import os
from pathlib import Path
import shutil
import tempfile


def taken(out: Path) -> str:
  """A sentence where `out` is there already, and is no empty folder."""
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return ""
  return f"--out={out} is there already; delete it or name another folder"


class Output:
  """Files are written below `part`, a folder beside `out`, which `appear` turns into `out`.

  A context: what has not appeared at its end is deleted.

  Raises:
    ValueError: `out` is there already, and is no empty folder.
  """

  def __init__(self, out: Path):
    if said := taken(out):
      raise ValueError(said)
    out.parent.mkdir(parents=True, exist_ok=True)
    self.out, self.part = out, Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))

  def __enter__(self):
    return self

  def __exit__(self, *error) -> None:
    shutil.rmtree(self.part, ignore_errors=True)

  def appear(self) -> None:
    self.part.chmod(0o755)
    os.replace(self.part, self.out)
