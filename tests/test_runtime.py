"""train.predict --runtime=onnxruntime: the same answers, by a graph that is checked and kept."""

import numpy as np
from PIL import Image
import pytest

from tests.test_export import saved
from train import predict, runtime
import zoo

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install flaxzoo[references]")


@pytest.fixture
def model(tmp_path, monkeypatch):
  """A small classifier's file; the cache is a folder of the test's own."""
  monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "cache")
  saved(tmp_path / "model.safetensors", "mobilenetv2_035", num_classes=7, depth=0.3)
  return tmp_path / "model.safetensors"


def test_both_runtimes_answer_alike(model, tmp_path, monkeypatch):
  photo = tmp_path / "photo.png"
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(photo)
  answers = {
    by: next(predict.predict(model, [photo], top=7, by=by, failed=pytest.fail))
    for by in predict.RUNTIMES
  }
  want, got = (dict(answers[by].top) for by in predict.RUNTIMES)
  assert want.keys() == got.keys()
  assert [got[label] for label in want] == pytest.approx(list(want.values()), abs=1e-5)
  [kept] = (tmp_path / "cache" / "onnx").iterdir()
  before = kept.stat().st_mtime_ns
  next(predict.predict(model, [photo], by="onnxruntime", failed=pytest.fail))
  assert kept.stat().st_mtime_ns == before
  with monkeypatch.context() as patch:  # another version's graph may be another
    patch.setattr(runtime, "version", lambda *_: "another")
    next(predict.predict(model, [photo], by="onnxruntime", failed=pytest.fail))
  assert len([*kept.parent.iterdir()]) == 2


def test_a_graph_that_answers_otherwise_is_not_used(model, tmp_path, monkeypatch):
  network, variables = zoo.load(model)
  monkeypatch.setattr(runtime, "TOLERANCE", -1.0)
  with pytest.raises(ValueError, match="differ by .* use --runtime=xla"):
    runtime.onnxruntime_logits(network, variables, zoo.record(model))
  assert not list(tmp_path.glob("cache/onnx/*"))
