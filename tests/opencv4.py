"""OpenCV 4's dnn module, the last that runs Caffe's and darknet's files: out of its wheel, apart.

Our own OpenCV is of version 5, which reads neither. Both cannot be imported into one process.
"""

from pathlib import Path
import subprocess
import sys
import zipfile

import numpy as np

from tests import wheels

WHEEL = "pypi:opencv-python-headless==4.11.0.86"
CODE = """
import sys
import cv2, numpy as np
folder, reader, layer, *files = sys.argv[1:]
net = getattr(cv2.dnn, reader)(*files)
net.setInput(np.load(folder + "/x.npy"))
np.save(folder + "/y.npy", net.forward(layer) if layer else net.forward())
"""


def forward(folder: Path, reader: str, files: tuple[Path, ...], x: np.ndarray, layer: str = ""):
  """The output of `layer`, or of the last, for images [b c h w].

  Args:
    folder: an empty one.
    reader: of cv2.dnn, "readNetFromCaffe" (prototxt, model), "readNetFromDarknet" (cfg, weights).
  """
  with zipfile.ZipFile(wheels.reachable(WHEEL, "")) as wheel:
    wheel.extractall(folder / "cv4")
  np.save(folder / "x.npy", np.ascontiguousarray(x))
  command = [sys.executable, "-c", CODE, str(folder), reader, layer, *map(str, files)]
  subprocess.run(command, check=True, env={"PYTHONPATH": str(folder / "cv4")})
  return np.load(folder / "y.npy")
