"""Suppression and RoIAlign beside a compiled original: python -m bench.detect

torchvision's operators where they load, else onnxruntime's, on the same inputs in one process,
after a check that both give the same; prints the median of the paired ratios theirs / ours with
their quartiles. Above 1 ours is faster.
"""

from functools import partial
import os
import platform
import time

import jax
import numpy as np

from zoo.ops import nms, roi

ROUNDS = 15
CROWDS = {  # name: boxes, pixels of the picture, kept at most
  "nms of 1000, few stay": (1000, 200, 1000),
  "nms of 1000, most stay": (1000, 3000, 1000),
  "nms of 4000, few stay, 100 wanted": (4000, 400, 100),
  "nms of 4000, most stay, 1000 wanted": (4000, 6000, 1000),
}
MAPS = {"RoIAlign 7x7, 256 boxes of 50x68x256": (50, 68), "... of 100x136x256": (100, 136)}


def crowd(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  low = rng.uniform(0, size, (n, 2))
  boxes = np.concatenate([low, low + rng.uniform(10, 100, (n, 2))], 1).astype(np.float32)
  return boxes, rng.permutation(n).astype(np.float32) / n


def torchvision_peer():
  """(name, nms, roi_align) of a torchvision whose operators are compiled; else raises."""
  import torch
  from torchvision import ops

  ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
  torch.set_num_threads(os.cpu_count())

  def align(feature, boxes):
    return ops.roi_align(feature, [boxes], 7, 1 / 16, 2)

  def keep(boxes, scores, limit):
    return ops.nms(boxes, scores, 0.5)[:limit]

  return "torchvision", keep, align, torch.from_numpy


def onnx_peer():
  from onnx import helper

  from bench import peers

  def session(node, inputs, out, initializers=()):
    infos = [helper.make_tensor_value_info(n, kind, [None] * rank) for n, kind, rank in inputs]
    outs = [helper.make_tensor_value_info(*out[:2], [None] * out[2])]
    graph = helper.make_graph([node], "g", infos, outs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    return peers.session(model.SerializeToString())

  node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "limit", "iou"], ["out"])
  inputs = (("boxes", 1, 3), ("scores", 1, 3), ("limit", 7, 1))
  iou = helper.make_tensor("iou", 1, [1], [0.5])
  nms_session = session(node, inputs, ("out", 7, 2), [iou])
  node = helper.make_node(
    "RoiAlign", ["x", "boxes", "rows"], ["y"], output_height=7, output_width=7, sampling_ratio=2,
    spatial_scale=1 / 16, coordinate_transformation_mode="output_half_pixel",
  )  # fmt: skip
  align_session = session(
    node, (("x", 1, 4), ("boxes", 1, 2), ("rows", 7, 1)), ("y", 1, 4)
  )  # fmt: skip

  def keep(boxes, scores, limit):
    feed = {"boxes": boxes[None], "scores": scores[None, None], "limit": np.array([limit])}
    return nms_session.run(None, feed)[0][:, 2]

  def align(feature, boxes):
    feed = {"x": feature, "boxes": boxes, "rows": np.zeros(len(boxes), np.int64)}
    return align_session.run(None, feed)[0]

  return "onnxruntime", keep, align, np.asarray


def seconds(run) -> float:
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def show(name: str, ours, theirs) -> None:
  ratio = [seconds(theirs) / seconds(ours) for _ in range(ROUNDS)]
  low, middle, high = np.percentile(ratio, (25, 50, 75))
  own = np.median([seconds(ours) for _ in range(ROUNDS)])
  print(f"{name:40}{f'{middle:.2f} ({low:.2f}-{high:.2f})':>24}{1e3 * own:>12.1f}", flush=True)


def main():
  try:
    peer, keep, align, give = torchvision_peer()
  except (ImportError, RuntimeError, NotImplementedError):
    peer, keep, align, give = onnx_peer()
  machine = platform.processor() or platform.machine()
  print(f"{machine}, {os.cpu_count()} cores, {jax.devices()[0]}, jax {jax.__version__}, {peer}")
  print(f"{'theirs / ours, median (quartiles)':40}{'ratio':>24}{'ours ms':>12}")
  for name, (n, size, limit) in CROWDS.items():
    boxes, scores = crowd(n, size)
    run = jax.jit(partial(nms.nms_padded, iou=0.5, limit=limit))
    index, real = map(np.asarray, run(boxes, scores))
    inputs, own = (give(boxes), give(scores)), jax.device_put((boxes, scores))
    np.testing.assert_array_equal(index[real], np.asarray(keep(*inputs, limit)))
    show(name, partial(run, *own), partial(keep, *inputs, limit))
  for name, size in MAPS.items():
    feature = np.random.default_rng(0).normal(size=(1, *size, 256)).astype(np.float32)
    boxes = crowd(256, 16 * size[0] - 100)[0]
    run = jax.jit(partial(roi.roi_align, strides=(16,), size=(7, 7)))
    own = jax.device_put(([feature], boxes[None]))
    inputs = give(np.ascontiguousarray(feature.transpose(0, 3, 1, 2))), give(boxes)
    theirs = np.asarray(align(*inputs)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(run(*own)[0], theirs, atol=1e-4)
    show(name, partial(run, *own), partial(align, *inputs))


if __name__ == "__main__":
  main()
