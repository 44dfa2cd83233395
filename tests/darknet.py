"""darknet itself, through its shared library: what it finds with weights that we wrote for it.

Debian's package `darknet` is the original of YOLO v1 to v3. Each call runs in a process of its own,
for darknet ends the process where it meets an error.
"""

from pathlib import Path
import re
import struct
import subprocess
import sys

import numpy as np

from convert import darknet_cfg

LIBRARY = Path("/usr/lib/darknet/libdarknet.so")
CONFIGS = Path("/usr/share/darknet/cfg")
CALL = r"""
import ctypes as c, sys
import numpy as np
cfg, weights, source, out, low, iou, classes = sys.argv[1:]
classes = int(classes)
dk = c.CDLL("/usr/lib/darknet/libdarknet.so")
class Box(c.Structure):
  _fields_ = [(n, c.c_float) for n in "xywh"]
class Detection(c.Structure):
  _fields_ = [("box", Box), ("classes", c.c_int), ("prob", c.POINTER(c.c_float)),
              ("mask", c.POINTER(c.c_float)), ("objectness", c.c_float), ("sort_class", c.c_int)]
floats = c.POINTER(c.c_float)
dk.load_network.restype = c.c_void_p
dk.load_network.argtypes = [c.c_char_p, c.c_char_p, c.c_int]
dk.set_batch_network.argtypes = [c.c_void_p, c.c_int]
dk.network_predict.argtypes = [c.c_void_p, floats]
dk.get_network_boxes.restype = c.POINTER(Detection)
dk.get_network_boxes.argtypes = [c.c_void_p, c.c_int, c.c_int, c.c_float, c.c_float,
                                 c.POINTER(c.c_int), c.c_int, c.POINTER(c.c_int)]
dk.do_nms_sort.argtypes = [c.POINTER(Detection), c.c_int, c.c_int, c.c_float]
net = dk.load_network(cfg.encode(), weights.encode(), 0)
dk.set_batch_network(net, 1)
x = np.ascontiguousarray(np.load(source)[0].transpose(2, 0, 1), np.float32)
dk.network_predict(net, x.ctypes.data_as(floats))
h, w = x.shape[1:]
count = c.c_int()
def rows(found, n):
  return np.array([[d.box.x, d.box.y, d.box.w, d.box.h, *d.prob[:classes]] for d in found[:n]])
def boxes(low):
  return dk.get_network_boxes(net, w, h, low, 0.5, None, 0, c.byref(count))
every = rows(boxes(-1e9), count.value)
found = boxes(float(low))
n = count.value
dk.do_nms_sort(found, n, classes, float(iou))
np.savez(out, every=every, kept=rows(found, n).reshape(n, 4 + classes))
"""
TRAIN = r"""
import ctypes as c, sys
import numpy as np
cfg, weights, source, out, clear = sys.argv[1:]
dk = c.CDLL("/usr/lib/darknet/libdarknet.so")
floats = c.POINTER(c.c_float)
class Matrix(c.Structure):
  _fields_ = [("rows", c.c_int), ("cols", c.c_int), ("vals", c.POINTER(floats))]
class Data(c.Structure):
  _fields_ = [("w", c.c_int), ("h", c.c_int), ("X", Matrix), ("y", Matrix), ("shallow", c.c_int),
              ("num_boxes", c.c_void_p), ("boxes", c.c_void_p)]
def matrix(rows):
  rows = np.ascontiguousarray(rows.reshape(len(rows), -1), np.float32)
  kept.append(rows)
  return Matrix(*rows.shape, (floats * len(rows))(*(row.ctypes.data_as(floats) for row in rows)))
kept = []
dk.load_network.restype = c.c_void_p
dk.load_network.argtypes = [c.c_char_p, c.c_char_p, c.c_int]
dk.train_network.restype = c.c_float
dk.train_network.argtypes = [c.c_void_p, Data]
dk.save_weights.argtypes = [c.c_void_p, c.c_char_p]
net = dk.load_network(cfg.encode(), weights.encode(), int(clear))
given = np.load(source)
x, y = given["image"].transpose(0, 3, 1, 2), given["truth"]
loss = dk.train_network(net, Data(X=matrix(x), y=matrix(y)))
dk.save_weights(net, (out + ".weights").encode())
np.save(out, np.float32(loss))
"""


def config(name: str, size: tuple[int, int] | None = None, width: float = 1.0) -> str:
  """The text of a cfg of darknet's, for pictures of `size` and maps of other widths."""
  text = (CONFIGS / f"{name}.cfg").read_text("latin-1")
  text = re.sub(r"(?m)^\s*(batch|subdivisions)\s*=.*$", r"\1=1", text)
  for side, pixels in zip(("height", "width"), size or ()):
    text = re.sub(rf"(?m)^{side}\s*=.*$", f"{side}={pixels}", text)
  parts = re.split(r"(?m)^(?=\[)", text)
  for i, part in enumerate(parts):
    before_head = i + 1 < len(parts) and re.match(r"\[(yolo|region)", parts[i + 1])
    if not before_head:
      thinner = lambda m: f"filters={round(int(m[1]) * width)}"
      parts[i] = re.sub(r"(?m)^filters\s*=\s*(\d+)", thinner, part)
  return "".join(parts)


def write_weights(path: Path, text: str, arrays, version=(0, 2, 0)) -> None:
  """A `.weights` of named arrays, as `convert` names them, in darknet's order."""
  order = {
    "conv": ("bn.bias", "bn.weight", "bn.running_mean", "bn.running_var", "conv.bias",
             "conv.weight"),
    "rest": ("fc.bias", "local.bias", "fc.weight", "local.weight"),
  }  # fmt: skip
  with open(path, "wb") as file:
    file.write(struct.pack("<3i", *version))
    file.write(struct.pack("<q" if version >= (0, 2) else "<i", 32013312))
    for layer in darknet_cfg.layers(darknet_cfg.parse(text)):
      kind = "conv" if layer.section.kind == "convolutional" else "rest"
      for name in order[kind]:
        if (array := arrays.get(f"{layer.index}.{name}")) is not None:
          file.write(np.ascontiguousarray(array, np.float32).tobytes())


def run(folder: Path, image: np.ndarray, low: float, iou: float, classes: int):
  """(every box, those above `low` after suppression), rows of cx cy w h and each class's score.

  Args:
    folder: holds net.cfg and net.weights.
    image: [1 h w 3] in 0..1; boxes are in its pixels.
  """
  np.save(folder / "x.npy", image)
  names = ("net.cfg", "net.weights", "x.npy", "out.npz")
  numbers = map(str, (low, iou, classes))
  command = [sys.executable, "-c", CALL, *(str(folder / name) for name in names), *numbers]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  out = np.load(folder / "out.npz")
  return out["every"], out["kept"]


def train(folder: Path, image: np.ndarray, truth: np.ndarray, *, clear: bool = False) -> float:
  """The loss that one update prints; the weights after it lie in after.npy.weights.

  Args:
    folder: holds net.cfg and net.weights.
    image: [b h w 3] in 0..1; b is the batch of the cfg.
    truth: [b ...] as the last layer wants it.
    clear: forgets how many pictures the weights have seen.
  """
  np.savez(folder / "train.npz", image=image, truth=truth)
  names = [str(folder / n) for n in ("net.cfg", "net.weights", "train.npz", "after.npy")]
  command = [sys.executable, "-c", TRAIN, *names, str(int(clear))]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return float(np.load(folder / "after.npy"))
