"""YOLO's losses against darknet's own, and what they promise of any detector's task."""

from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import darknet_cfg, darknet_file, engine, rules
from convert.readers import read
from tests import darknet, parity
from tests.runs import untrained
from tests.test_yolo import needs_darknet
from train.tasks.yolo import Yolo
import zoo
from zoo.ops.boxes import from_cxcywh

# name of the cfg: size of the pictures, share of the channels
NETWORKS = {
  "yolov1-tiny": ((448, 448), 0.125), "yolov2-tiny-voc": ((96, 128), 0.125),
  "yolov3-tiny": ((96, 128), 0.125),
}  # fmt: skip
BATCH = 2


def objects(size, classes: int, rows: int = 12):
  """(boxes, label) of two pictures: of all sizes, two in one place, padding; the second has few."""
  rng = np.random.default_rng(2)
  sides = np.exp(rng.uniform(np.log(0.05), np.log(0.9), (BATCH, rows, 2)))
  middle = rng.uniform(0.05, 0.95, (BATCH, rows, 2))
  middle[0, 1], sides[0, 1] = middle[0, 0] + 1e-3, sides[0, 0] * 1.01
  share = np.concatenate([middle, sides], -1)
  label = rng.integers(0, classes, (BATCH, rows)).astype(np.int32)
  label[0, 9:], label[1, 2:] = -1, -1
  pixels = share * np.array([size[1], size[0]] * 2)
  boxes = np.asarray(from_cxcywh(pixels.astype(np.float32)))
  return np.where(label[..., None] >= 0, boxes, 0), label, share


def shaken(variables):
  """With scales and biases that matter; what a network is trained on normalises the rest."""
  rng = np.random.default_rng(4)

  def shake(path, a):
    if path[-1].key == "kernel":
      return a
    return (a + rng.normal(0, 0.3, a.shape)).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(shake, variables["params"])
  return variables | {"params": params}


def truths(name: str, share, label, classes: int) -> np.ndarray:
  """As darknet's data loader hands them to the last layer."""
  if name.startswith("yolov1"):
    out = np.zeros((BATCH, 7, 7, 1 + classes + 4))
    for b, i in zip(*np.nonzero(label >= 0)):
      x, y, w, h = share[b, i]
      cell = out[b, int(y * 7), int(x * 7)]
      if not cell[0]:
        cell[[0, 1 + label[b, i]]] = 1
        cell[1 + classes :] = x * 7 % 1, y * 7 % 1, w, h
    return out
  out = np.zeros((BATCH, 30 if name.startswith("yolov2") else 90, 5))
  for b in range(BATCH):
    real = label[b] >= 0
    out[b, : real.sum()] = np.concatenate([share[b, real], label[b, real, None]], 1)
  return out


@needs_darknet
@pytest.mark.parametrize("name, fresh", [
  ("yolov1-tiny", False), ("yolov2-tiny-voc", False), ("yolov2-tiny-voc", True),
  ("yolov3-tiny", False),
])  # fmt: skip
def test_equals_darknet(name, fresh, tmp_path):
  """The loss that it prints, and the gradients of its heads where its CPU code has them."""
  size, width = NETWORKS[name]
  image = np.random.default_rng(1).uniform(size=(BATCH, *size, 3)).astype(np.float32)
  model = zoo.create(name.replace("-", "_"), width=width)
  variables = shaken(untrained(model, size))
  text = re.sub(r"(?m)^batch=1", f"batch={BATCH}", darknet.config(name, size, width))
  for key, value in {"momentum": 0, "decay": 0, "learning_rate": 1, "burn_in": 0}.items():
    text = re.sub(rf"(?m)^{key}\s*=.*", f"{key}={value}", text)
  text = re.sub(r"(?m)^policy\s*=.*", "policy=constant", text)
  (tmp_path / "net.cfg").write_text(text)
  renaming = rules.of("yolo", "darknet")
  layers = darknet_cfg.with_weights(darknet_cfg.layers(darknet_cfg.parse(text)))
  shapes = {f"{row.index}.{n}": s for row in layers for n, s in darknet_file._shapes(row)}
  darknet.write_weights(
    tmp_path / "net.weights", text, engine.back(variables, shapes, renaming), (0, 2, 0)
  )
  boxes, label, share = objects(size, model.num_classes)
  truth = truths(name, share, label, model.num_classes)
  printed = darknet.train(tmp_path, image, truth, clear=fresh)
  seen = np.full(BATCH, BATCH if fresh else 32013312, np.int32)
  batch = {"boxes": boxes, "box_label": label, "seen": seen}
  task = Yolo(model)

  heads = {
    k: layer for k, layer in variables["params"].items() if not {"bn", "local"} & layer.keys()
  }
  assert len(heads) == (2 if name == "yolov3-tiny" else 1)

  def loss(heads):
    both = variables | {"params": variables["params"] | heads}
    out, _ = model.apply(both, image, train=True, mutable=["batch_stats"])
    terms = task.terms(out, batch)
    return terms["loss"][0].mean(), terms["printed"][0].mean()

  run = jax.jit(jax.grad(loss, has_aux=True), compiler_options=parity.QUICK_COMPILATION)
  grads, ours = run(heads)
  np.testing.assert_allclose(ours, printed, rtol=1e-4)
  if name.startswith("yolov2"):
    return
  (tmp_path / "after.cfg").write_text(text)
  (tmp_path / "after.npy.weights").rename(tmp_path / "after.weights")
  after = engine.convert(read(tmp_path / "after.weights"), variables, renaming)
  for head, layer in heads.items():
    (kind,) = layer
    for leaf, ours in grads[head][kind].items():
      theirs = layer[kind][leaf] - after["params"][head][kind][leaf]
      scale = np.abs(theirs).max()
      np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-4, err_msg=f"{head} {leaf}")


def raw_maps(model, size=(64, 96)):
  """Random end points of a narrow model, without running it."""
  shapes = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)[0]
  )
  rng = np.random.default_rng(0)
  return {k: rng.normal(size=s.shape).astype(np.float32) for k, s in shapes.items() if "raw" in k}


VARIANTS = ("yolov1_tiny", "yolov2_tiny_voc", "yolov3_tiny")
SIZES = {"yolov1_tiny": (448, 448)}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_compilation_for_any_number_of_objects(name):
  """0 to 100 objects; padding may hold anything and stand anywhere."""
  model = zoo.create(name, width=0.1)
  size = SIZES.get(name, (64, 96))
  out, task = raw_maps(model, size), Yolo(model)
  traced = []

  @partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
  def run(out, batch):
    traced.append(batch)
    return task.terms(out, batch)

  rng = np.random.default_rng(1)
  corner = rng.uniform(0, np.array(size[::-1]) - 10, (1, 100, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(1, 10, (1, 100, 2))], -1)
  boxes, label = boxes.astype(np.float32), rng.integers(0, model.num_classes, (1, 100))
  losses = []
  for count in (0, 1, 7, 50, 100):
    some = np.where(np.arange(100) < count, label, -1).astype(np.int32)
    terms = run(out, {"boxes": boxes, "box_label": some})
    assert all(np.isfinite(v).all() for pair in terms.values() for v in pair)
    losses.append(float(terms["loss"][0][0]))
    if count == 7:  # the same objects in the same order, among others' padding
      place = np.sort(rng.permutation(100)[:7])
      moved, kinds = rng.permutation(boxes, axis=1), np.full((1, 100), -1, np.int32)
      moved[:, place], kinds[:, place] = boxes[:, :7], label[:, :7]
      for term, pair in run(out, {"boxes": moved, "box_label": kinds}).items():
        np.testing.assert_allclose(pair, terms[term], rtol=1e-5, err_msg=term)
  assert losses[0] < losses[1] < losses[-1] and len(traced) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_descent_finds_the_objects(name):
  """The least loss of the raw maps themselves is where `detect` answers what is there."""
  model = zoo.create(name, width=0.1)
  size = SIZES.get(name, (64, 96))
  out, task = raw_maps(model, size), Yolo(model, score=0.3)
  boxes = np.array([[[4, 4, 30, 40], [40, 20, 90, 60], [0, 0, 0, 0]]], np.float32)
  boxes *= np.float32(size[0] / 64)
  label = np.array([[3, 1, -1]], np.int32)
  batch = {"boxes": boxes, "box_label": label}

  @partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
  def descend(out):
    slope = jax.grad(lambda out: task.terms(out, batch)["loss"][0].sum())
    step = lambda i, out: jax.tree.map(lambda x, g: x - 0.15 * g, out, slope(out))
    return jax.lax.fori_loop(0, 800, step, out)

  predict = jax.jit(task.predict, compiler_options=parity.QUICK_COMPILATION)
  found = {k: np.asarray(v[0]) for k, v in predict(descend(out)).items()}
  order = np.argsort(found["box_label"][:2])
  assert found["box_label"].tolist()[2:] == [-1] * (task.limit - 2)
  assert found["box_label"][order].tolist() == [1, 3]
  np.testing.assert_allclose(found["boxes"][order], boxes[0, [1, 0]], atol=0.05 * size[0])


def test_the_better_evaluation():
  task = Yolo(zoo.create("yolov3_tiny"))
  assert task.rank({"ap": 0.3, "loss": 9.0}) > task.rank({"ap": 0.2, "loss": 1.0})
  assert task.rank({"ap": 0.3, "loss": 1.0}) > task.rank({"ap": 0.3, "loss": float("nan")})
