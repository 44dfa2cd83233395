"""RoIAlign against onnxruntime's; RoIPool and masks against NumPy and torchvision's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from train import average_precision
from train.data import detection_views
from zoo.ops import roi

RNG = np.random.default_rng(0)
# Inside, at the border, beyond it, empty, wide, and as large as the picture.
BOXES = np.array(
  [[[8, 8, 40, 50], [0, 0, 3, 3], [-30, -20, 20, 10], [90, 60, 140, 120], [33, 20, 33, 20],
    [5, 40, 120, 44], [0, 0, 128, 96], [127, 95, 129, 97]],
   [[1.5, 2.25, 77.1, 60.6], [100, 10, 160, 20], [-40, 10, -10, 50], [64, 64, 65, 65],
    [10, 10, 11, 90], [0, 0, 31.9, 32.1], [50, 0, 51, 96], [20, 30, 60, 70]]], np.float32,
)  # fmt: skip


def onnx_roi_align(feature, boxes, stride, size, samples, aligned):
  """[b r h w c] by onnxruntime; `feature` [b h w c]."""
  helper = pytest.importorskip("onnx", reason="pip install .[references]").helper
  onnxruntime = pytest.importorskip("onnxruntime", reason="pip install .[references]")
  node = helper.make_node(
    "RoiAlign", ["x", "boxes", "rows"], ["y"], output_height=size[0], output_width=size[1],
    sampling_ratio=samples, spatial_scale=1 / stride, mode="avg",
    coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
  )  # fmt: skip
  kinds = (("x", 1, 4), ("boxes", 1, 2), ("rows", 7, 1))
  inputs = [helper.make_tensor_value_info(n, kind, [None] * rank) for n, kind, rank in kinds]
  out = helper.make_tensor_value_info("y", 1, [None] * 4)
  model = helper.make_model(
    helper.make_graph([node], "g", inputs, [out]), opset_imports=[helper.make_opsetid("", 16)],
    ir_version=8,
  )  # fmt: skip
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  rows = np.repeat(np.arange(len(boxes)), boxes.shape[1])
  feed = {"x": feature.transpose(0, 3, 1, 2), "boxes": boxes.reshape(-1, 4), "rows": rows}
  [y] = session.run(None, feed)
  return y.transpose(0, 2, 3, 1).reshape(*boxes.shape[:2], *size, -1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2])
def test_align_equals_onnxruntime(aligned, samples):
  feature = RNG.normal(size=(2, 12, 16, 3)).astype(np.float32)
  run = jax.jit(partial(roi.roi_align, strides=(8,), size=(7, 5), samples=samples, aligned=aligned))
  want = onnx_roi_align(feature, BOXES, 8, (7, 5), samples, aligned)
  np.testing.assert_allclose(run([feature], BOXES), want, atol=2e-5)


def disc(box, size=(96, 128)):
  """[h w] uint8: 255 within the ellipse that fills a box."""
  y, x = np.mgrid[: size[0], : size[1]] + 0.5
  middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
  return 255 * np.uint8(((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2 <= 1)


def test_mask_targets_equal_onnxruntime():
  """RoIAlign of whole masks with samples as dense as pixels, out of the objects' bitmaps."""
  objects = np.float32(
    [[10, 8, 60, 48], [20.5, 30.25, 119.5, 90], [0, 0, 128, 96], [90, 60, 99, 96]]
  )
  masks = np.stack([disc(box) for box in objects])
  view = detection_views.View(None, objects, np.zeros(4), masks)
  inside = BOXES.clip(0, np.float32([128, 96, 128, 96]))
  inside = np.concatenate([inside, inside[::-1]])  # each object under all boxes
  targets = jax.jit(partial(roi.mask_targets, size=7, canvas=(96, 128)))
  wanted = onnx_roi_align(np.float32(masks[..., None]) / 255, inside, 1, (7, 7), 0, False)[..., 0]
  bitmaps = view.bitmaps()
  for i in range(4):
    each = [np.repeat(a[i : i + 1], len(inside[i]), 0) for a in (bitmaps, objects)]
    # the third is wider than its bitmap, whose cells are then larger than pixels
    atol = 0.1 if i == 2 else 2e-5
    np.testing.assert_allclose(targets(*each, inside[i]), wanted[i], atol=atol, err_msg=str(i))
  assert wanted.max() == 1 and 0.1 < wanted.mean() < 0.9


def test_align_reads_the_level_asked_for():
  maps = [RNG.normal(size=(2, 96 // s, 128 // s, 3)).astype(np.float32) for s in (4, 8, 16)]
  level = RNG.integers(0, 3, BOXES.shape[:2])
  run = jax.jit(partial(roi.roi_align, strides=(4, 8, 16), size=(3, 3)))
  got = run(maps, BOXES, level=level)
  for i in range(3):
    want = run(maps, BOXES, level=np.full_like(level, i))
    np.testing.assert_array_equal(got[level == i], want[level == i])
    want = onnx_roi_align(maps[i], BOXES, (4, 8, 16)[i], (3, 3), 2, False)
    np.testing.assert_allclose(got[level == i], want[level == i], atol=2e-5)


def test_align_of_a_slope_is_the_slope():
  """Bilinear samples of a plane average to its value in the middle of each bin."""
  y, x = np.mgrid[:24, :32].astype(np.float32)
  feature = (2 * x + 3 * y)[None, ..., None]
  run = jax.jit(partial(roi.roi_align, strides=(1,), size=(4, 4)))
  got = run([feature], np.array([[[4.0, 6, 20, 14]]]))[0, 0, ..., 0]
  want = [[2 * (4 + 4 * (j + 0.5)) + 3 * (6 + 2 * (i + 0.5)) for j in range(4)] for i in range(4)]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_align_is_the_same_on_every_platform():
  """Elsewhere than on a CPU rows are gathered first; derivatives are those of that form."""
  table = jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32)

  def axis(bins, cells):
    shape = (1, 21, bins, 4)
    return jnp.asarray(RNG.integers(0, cells, shape)), jnp.asarray(RNG.uniform(size=shape))

  y, x = axis(3, 30), axis(2, 10)
  own = lambda table: roi._weighted(table, y, x)
  other = lambda table: roi._box_by_box(roi._gathered, table, y, x)

  def of(form):
    slope = jax.grad(lambda table: (form(table) ** 2).sum())
    return jax.jit(lambda table: (form(table), *jax.jvp(slope, (table,), (table,))))(table)

  for got, want in zip(of(own), of(other)):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_align_of_float64_is_not_rounded_to_float32():
  box = np.array([[[2.0, 3, 10, 7]]])
  with jax.enable_x64(True):
    feature = jnp.full((1, 12, 16, 1), 1 / 3)
    got = jax.jit(partial(roi.roi_align, strides=(1,), size=(2, 2)))([feature], box)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, 1 / 3, rtol=1e-12)  # its weights are sums of powers of two


def test_align_gradient():
  feature = jnp.asarray(RNG.normal(size=(1, 6, 6, 1)).astype(np.float32))
  boxes = jnp.array([[[1.0, 1, 5, 5]]])
  total = lambda f, b: roi.roi_align([f], b, (1,), size=(2, 2)).sum()
  by_map, by_boxes = jax.jit(jax.grad(total, (0, 1)))(feature, boxes)
  np.testing.assert_allclose(by_map.sum(), 4, rtol=1e-5)  # the weights of each bin sum to 1
  assert not np.any(by_boxes)


def test_levels():
  boxes = np.array([[0, 0, s, s] for s in (1, 111, 112, 223, 224, 447, 448, 5000)], np.float32)
  assert jax.jit(partial(roi.pyramid_level, lowest=2, highest=5))(boxes).tolist() == [
    0,
    0,
    1,
    1,
    2,
    2,
    3,
    3,
  ]


def naive_pool(image, box, stride, size):
  x0, y0, x1, y1 = np.floor(box / stride + 0.5).astype(int)
  out = np.zeros((*size, image.shape[-1]), np.float32)
  for i in range(size[0]):
    for j in range(size[1]):
      h, w = max(y1 - y0 + 1, 1) / size[0], max(x1 - x0 + 1, 1) / size[1]
      rows = slice(*np.clip([y0 + np.floor(i * h), y0 + np.ceil((i + 1) * h)], 0, 12).astype(int))
      columns = slice(
        *np.clip([x0 + np.floor(j * w), x0 + np.ceil((j + 1) * w)], 0, 16).astype(int)
      )
      if image[rows, columns].size:
        out[i, j] = image[rows, columns].max((0, 1))
  return out


def test_pool_equals_loops():
  feature = RNG.normal(size=(2, 12, 16, 3)).astype(np.float32)
  got = jax.jit(partial(roi.roi_pool, stride=8, size=(3, 4)))(feature, BOXES)
  for b in range(2):
    for r in range(8):
      want = naive_pool(feature[b], BOXES[b, r], 8, (3, 4))
      np.testing.assert_array_equal(got[b, r], want)
  grad = jax.jit(jax.grad(lambda f: roi.roi_pool(f, BOXES, 8, size=(3, 4)).sum()))(feature)
  assert np.isfinite(grad).all() and np.any(grad)


def test_masks_are_pasted_as_torchvision_does():
  torch = pytest.importorskip("torch", reason="the original is a torch function")
  parity.import_torchvision()
  from torchvision.models.detection.roi_heads import paste_masks_in_image

  masks = RNG.uniform(size=(8, 28, 28)).astype(np.float32)
  boxes = np.concatenate([BOXES[0, [0, 1, 3, 5, 6]], BOXES[1, [0, 3, 7]]])
  want = paste_masks_in_image(
    torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (96, 128)
  )  # fmt: skip
  got = jax.jit(partial(roi.paste_masks, size=(96, 128)))(masks, boxes)
  np.testing.assert_allclose(got, want[:, 0], atol=1e-5)


def test_pasted_on_the_host():
  """What evaluation pastes is what the network's own pasting is above a half."""
  masks = np.uint8(RNG.uniform(size=(8, 6, 6)).repeat(2, 1).repeat(2, 2) * 255)
  boxes = np.concatenate([BOXES[0], np.float32([[-50, -40, -20, -10], [130, 20, 150, 50]])])
  masks = np.concatenate([masks, masks[:2]])
  whole = np.asarray(roi.paste_masks(jnp.asarray(masks, jnp.float32), boxes, (96, 128)))
  for mask, box, want in zip(masks, boxes, whole):
    have = average_precision.packed.decode(average_precision.pasted(mask, box, 96, 128))
    sure = abs(want - 127.5) > 0.01
    np.testing.assert_array_equal(have[sure], (want > 127.5)[sure])
    assert sure.mean() > 0.99
