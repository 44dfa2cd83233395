"""A few of the demo's real photographs, for tests that train on them."""

from pathlib import Path
import shutil

import pytest

from train import demo


def photographs() -> Path:
  """The demo's folder {train,test}/class/*.jpg; skips a test where it cannot be fetched."""
  pytest.importorskip("pyarrow", reason="the photographs come as a parquet file (the demo extra)")
  try:
    return demo.photographs()
  except FileNotFoundError as error:
    pytest.skip(str(error))


def indoor(folder: Path, train: int, test: int) -> Path:
  """folder/Images/class/*.jpg with TrainImages.txt and TestImages.txt, as MIT Indoor 67 lies.

  Args:
    train, test: photographs of each class.
  """
  source = photographs()
  for split, each in (("train", train), ("test", test)):
    lines = []
    for path in sorted((source / split).iterdir()):
      (folder / "Images" / path.name).mkdir(parents=True, exist_ok=True)
      for photograph in sorted(path.iterdir())[:each]:
        shutil.copy(photograph, folder / "Images" / path.name)
        lines.append(f"{path.name}/{photograph.name}\n")
    (folder / f"{split.capitalize()}Images.txt").write_text("".join(lines))
  return folder
