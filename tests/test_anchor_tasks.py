"""The losses of SSD, RetinaNet and Faster R-CNN, and their gradients, beside torchvision's."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from tests.detectors import detection, quick  # noqa: F401 (a fixture)
from train.data.detection_views import View
from train.tasks.rcnn import Rcnn, Sampled, first_stage, second_stage
from train.tasks.retinanet import Retina
from train.tasks.ssd import Ssd
import zoo
from zoo.detect import fpn, rcnn, retinanet
from zoo.ops import match

CLASSES = 4
# Two pictures of 128 pixels: three objects, one of them smaller than any anchor, and one; padded.
BOXES = np.array(
  [
    [[10, 12, 70, 80], [64, 8, 120, 40], [30, 90, 38, 99], [0, 0, 0, 0], [5, 5, 9, 9]],
    [[20, 30, 100, 110], *[[0, 0, 0, 0]] * 4],
  ],
  np.float32,
)
LABELS = np.array([[2, 0, 3, -1, -1], [1, -1, -1, -1, -1]], np.int32)
BATCH = {"boxes": BOXES, "box_label": LABELS, "real": np.ones(2, np.float32)}
steep = partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)
GRIDS = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))


def rows(first_label: int):
  """torchvision's targets; of labels the one that is our 0."""
  import torch

  return [
    {"boxes": torch.tensor(b[k >= 0]), "labels": torch.tensor(k[k >= 0]).long() + first_label}
    for b, k in zip(BOXES, LABELS)
  ]


def random(*shape, seed=0, scale=1.0):
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def torches(*arrays):
  import torch

  return [torch.tensor(a, requires_grad=True) for a in arrays]


def check(task, constant, ours, theirs, losses, batch=BATCH):
  """`ours` are the end points that `theirs`, tensors, hold; gradients as well.

  Args:
    losses: {name of our term: torchvision's}; their sum is what is minimised.
  """

  def loss(heads):
    terms = task.terms(heads | jax.tree.map(jnp.asarray, constant), batch)
    ratio = {name: a.sum() / jnp.maximum(b.sum(), 1) for name, (a, b) in terms.items()}
    return ratio["loss"], ratio

  grads, found = steep(jax.grad(loss, has_aux=True))(ours)
  sum(losses.values()).backward()
  for name, wanted in {**losses, "loss": sum(losses.values())}.items():
    np.testing.assert_allclose(found[name], float(wanted), rtol=1e-4, err_msg=name)
  for name, tensor in zip(ours, theirs, strict=True):
    want = tensor.grad.numpy()
    np.testing.assert_allclose(grads[name], want, atol=1e-4 * abs(want).max(), err_msg=name)


@pytest.mark.parametrize("empty", [False, True])
def test_ssd(empty, detection):  # noqa: F811
  model = zoo.create("ssd300_vgg16", num_classes=CLASSES)
  places = model.priors.on(((16, 16), (8, 8), (4, 4), (2, 2), (2, 2), (1, 1)), (128, 128))
  arrays = random(2, len(places), 1 + CLASSES), random(2, len(places), 4, seed=1)
  theirs = torches(*arrays)
  of, targets = detection._utils, rows(1)
  batch = dict(BATCH)
  if empty:
    batch["box_label"] = np.where([[True], [False]], LABELS, -1)
    targets[1] = {"boxes": targets[1]["boxes"][:0], "labels": targets[1]["labels"][:0]}
  import torch
  from torchvision.ops import box_iou

  anchors = torch.tensor(places)
  index = [
    of.SSDMatcher(0.5)(box_iou(t["boxes"], anchors)) if len(t["boxes"])
    else torch.full((len(anchors),), -1) for t in targets
  ]  # fmt: skip
  state = SimpleNamespace(box_coder=of.BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0)
  head = {"cls_logits": theirs[0], "bbox_regression": theirs[1]}
  wanted = detection.ssd.SSD.compute_loss(state, targets, head, [anchors] * 2, index)
  check(
    Ssd(model), {"anchors": places}, dict(zip(("logits", "deltas"), arrays)), theirs,
    {"kind": wanted["classification"], "place": wanted["bbox_regression"]}, batch,
  )  # fmt: skip


@pytest.mark.parametrize("giou", [False, True])
def test_retinanet(giou, detection):  # noqa: F811
  import torch
  from torchvision.ops import box_iou

  model = zoo.create("retinanet_resnet50_fpn", num_classes=CLASSES)
  places = fpn.priors(retinanet.SIZES, GRIDS, (128, 128))
  arrays = random(2, len(places), CLASSES), random(2, len(places), 4, seed=1, scale=0.3)
  theirs = torches(*arrays)
  of, targets, anchors = detection._utils, rows(0), torch.tensor(places)
  matcher = of.Matcher(0.5, 0.4, allow_low_quality_matches=True)
  index = [matcher(box_iou(t["boxes"], anchors)) for t in targets]
  head = {"cls_logits": theirs[0], "bbox_regression": theirs[1]}
  heads = detection.retinanet
  kind = heads.RetinaNetClassificationHead.compute_loss(
    SimpleNamespace(BETWEEN_THRESHOLDS=-2), targets, head, index
  )
  state = SimpleNamespace(_loss_type="giou" if giou else "l1", box_coder=of.BoxCoder((1.0,) * 4))
  place = heads.RetinaNetRegressionHead.compute_loss(state, targets, head, [anchors] * 2, index)
  check(
    Retina(model, giou), {"anchors": places}, dict(zip(("logits", "deltas"), arrays)), theirs,
    {"kind": kind, "place": place},
  )  # fmt: skip


@pytest.mark.parametrize("name, sizes, grids", [
  ("fasterrcnn_resnet50_fpn", rcnn.SIZES, GRIDS),
  ("fasterrcnn_vgg16", ((16, 32, 64),), ((8, 8),)),
])  # fmt: skip
def test_faster_rcnn(name, sizes, grids, detection):  # noqa: F811
  """Both stages, given the same sampled anchors and regions, on a pyramid and on one map."""
  import torch

  model = zoo.create(name, num_classes=CLASSES)
  places = fpn.priors(sizes, grids, (128, 128))
  sampled = Sampled(model.clone, anchors=64, regions=32)
  keys = jax.random.split(jax.random.key(0), 2)
  real = LABELS >= 0
  index, found = jax.vmap(partial(sampled.some_anchors, places=places))(
    keys, objects=BOXES, real=real
  )
  proposals = np.sort(np.random.default_rng(0).uniform(0, 128, (2, 300, 2, 2)), 2)
  proposals = np.concatenate([proposals.reshape(2, 300, 4), BOXES[:, :1].repeat(20, 1)], 1)
  proposals[:, 300:] += np.random.default_rng(1).normal(0, 3, (2, 20, 4))
  proposals = proposals.astype(np.float32)
  there = np.ones(proposals.shape[:2], bool)
  rois, own = jax.vmap(sampled.some_regions)(keys, proposals, there, BOXES, real)
  assert (np.asarray(own) >= 0).any(1).all() and (np.asarray(own) == match.BACKGROUND).any()
  names = "rpn_logits", "rpn_deltas", "logits", "deltas"
  arrays = (
    random(2, len(places)), random(2, len(places), 4, seed=1),
    random(2, 32, 1 + CLASSES, seed=2), random(2, 32, 4 * (1 + CLASSES), seed=3),
  )  # fmt: skip
  theirs = torches(*arrays)

  # torchvision's own assignment, and its loss with the sampler replaced by the sample
  of, targets, anchors = detection._utils, rows(1), torch.tensor(places)
  net = detection.rpn.RegionProposalNetwork
  masks = [[torch.zeros(len(places), dtype=torch.uint8) for _ in range(2)] for _ in range(2)]
  for i in range(2):
    for kind, chosen in enumerate((found[i] >= 0, found[i] == match.BACKGROUND)):
      masks[kind][i][np.asarray(index[i])[np.asarray(chosen)]] = 1
  state = SimpleNamespace(
    box_similarity=detection.rpn.box_ops.box_iou,
    proposal_matcher=of.Matcher(0.7, 0.3, allow_low_quality_matches=True),
    fg_bg_sampler=lambda labels: masks,
  )
  labels, boxes = net.assign_targets_to_anchors(state, [anchors] * 2, targets)
  for i, label in enumerate(labels):  # every anchor is what it is there
    mine = np.asarray(first_stage(places, BOXES[i], real[i]))
    np.testing.assert_array_equal(np.select([mine >= 0, mine == -1], [1, 0], -1), label.numpy())
  regression = of.BoxCoder((1.0,) * 4).encode(boxes, [anchors] * 2)
  objectness, place = net.compute_loss(
    state, theirs[0].flatten()[:, None], theirs[1].reshape(-1, 4), labels, regression
  )

  heads = detection.roi_heads
  state = SimpleNamespace(
    proposal_matcher=of.Matcher(0.5, 0.5), box_similarity=heads.box_ops.box_iou
  )
  regions = [torch.tensor(np.asarray(r)) for r in rois]
  taken = np.asarray(own) != match.IGNORED
  boxes = [t["boxes"] for t in targets]
  which, labels = heads.RoIHeads.assign_targets_to_proposals(
    state, regions, boxes, [t["labels"] for t in targets]
  )
  for i in range(2):
    mine = np.asarray(second_stage(rois[i], BOXES[i], real[i]))
    np.testing.assert_array_equal(mine[taken[i]], np.asarray(own[i])[taken[i]])
    wanted = np.where(mine >= 0, LABELS[i][np.maximum(mine, 0)] + 1, 0)
    np.testing.assert_array_equal(wanted[taken[i]], labels[i].numpy()[taken[i]])
  keep = torch.tensor(taken)
  regression = of.BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(
    [b[w][k] for b, w, k in zip(boxes, which, keep)], [r[k] for r, k in zip(regions, keep)]
  )
  kind, shape = heads.fastrcnn_loss(
    theirs[2][keep], theirs[3][keep], [x[k] for x, k in zip(labels, keep)], regression
  )
  check(
    Rcnn(),
    {"anchors": places, "rpn_index": index, "rpn_object": found, "rois": rois, "roi_object": own},
    dict(zip(names, arrays)), theirs,
    {"objectness": objectness, "proposals": place, "kind": kind, "place": shape},
  )  # fmt: skip


def test_masks(detection):  # noqa: F811
  """Value and gradient, of the same regions and of objects in bitmaps."""
  import torch

  torch.set_num_threads(1)
  side, boxes = 32, BOXES / 4
  full = np.zeros((2, 5, side, side), np.uint8)
  grid = np.mgrid[:side, :side] + 0.5
  for i, some in enumerate(boxes):
    for j, (x0, y0, x1, y1) in enumerate(some[:3] if i == 0 else some[:1]):
      y, x = (grid[0] - y0) / (y1 - y0), (grid[1] - x0) / (x1 - x0)
      full[i, j] = 255 * ((x > 0) & (y > 0) & (x < 1) & (y < 1) & (x * y < 0.3))
  bitmaps = np.stack([View(None, b, np.zeros(5), m).bitmaps() for b, m in zip(boxes, full)])
  rng = np.random.default_rng(5)
  found = np.array([[0, 2, 1, 0, -1, -2], [0, 0, 0, -1, -1, -2]])
  rois = np.take_along_axis(boxes, np.maximum(found, 0)[..., None], 1)
  rois = (rois + rng.normal(0, 1, rois.shape)).clip(0, side).astype(np.float32)
  logits = random(2, 6, 7, 7, 1 + CLASSES, seed=4)
  theirs = torch.tensor(logits.transpose(0, 1, 4, 2, 3), requires_grad=True)
  keep = torch.tensor(found >= 0)
  wanted = detection.roi_heads.maskrcnn_loss(
    theirs[keep], [torch.tensor(r)[k] for r, k in zip(rois, keep)],
    [torch.tensor(m // 255) for m in full], [torch.tensor(k).long() + 1 for k in LABELS],
    [torch.tensor(f)[k] for f, k in zip(found, keep)],
  )  # fmt: skip
  wanted.backward()

  def loss(logits, found):
    one = partial(Rcnn().masked, canvas=(side, side))
    total, count = jax.vmap(one)(logits, rois, found, boxes, LABELS, bitmaps)
    return total.sum() / jnp.maximum(count.sum(), 1)

  run = steep(jax.value_and_grad(loss))
  value, grad = run(logits, found)
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-4)
  theirs = theirs.grad.numpy().transpose(0, 1, 3, 4, 2)
  np.testing.assert_allclose(grad, theirs, atol=1e-4 * abs(theirs).max())
  value, grad = run(logits, np.minimum(found, -1))
  assert value == 0 and not np.asarray(grad).any(), "no object, no loss"


def small():
  """A Faster R-CNN of a few layers."""
  from zoo.classify.resnet import Block, ResNet

  return zoo.create("fasterrcnn_resnet50_fpn", num_classes=CLASSES, plain=True).clone(
    trunk=partial(ResNet, (1, 1, 1, 1), block=partial(Block, bottleneck=False), width=8),
    pyramid=partial(fpn.FPN, 8),
    head=partial(rcnn.TwoDense, 8),
    before=(20, 20),
    after=(20, 20),
  )


def test_sampled_trains():
  """One compilation whatever the number of objects, none included; gradients reach every array."""
  model = small()
  task = Rcnn()
  sampled = Sampled(model.clone, anchors=32, regions=16, numerics=model.numerics)
  image = random(2, 64, 64, 3)
  variables = quick(partial(model.init, train=False))(jax.random.key(0), image)
  compiled = []

  def loss(params, boxes, label):
    compiled.append(label)
    out, _ = sampled.apply(
      variables | {"params": params}, image, boxes, label, train=True, mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    batch = {"boxes": boxes, "box_label": label, "real": jnp.ones(2)}
    total, weight = task.terms(out, batch)["loss"]
    return total.sum() / weight.sum()

  run = steep(jax.value_and_grad(loss))
  for label in (LABELS, np.full_like(LABELS, -1), np.where(LABELS == 2, LABELS, -1)):
    value, grads = run(variables["params"], BOXES / 2, label)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if label is LABELS:
      assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
  assert len(compiled) == 1


def test_evaluates_all():
  """Without training nothing is sampled: every anchor and every proposal has its object."""
  model = small()
  image = random(1, 64, 64, 3)

  def run(key):
    sampled = Sampled(model.clone, numerics=model.numerics)
    variables = sampled.init(key, image, train=False)
    boxes, label = BOXES[:1] / 2, LABELS[:1]
    out = sampled.apply(variables, image, boxes, label, train=False)
    batch = {"boxes": boxes, "box_label": label, "real": jnp.ones(1)}
    return out, Rcnn().terms(out, batch), Rcnn().predict(out)

  out, terms, found = jax.eval_shape(run, jax.random.key(0))
  assert out["rpn_object"].shape == (1, len(out["anchors"]))
  assert out["roi_object"].shape == out["rois"].shape[:2] == (1, 20)
  assert terms["loss"][0].shape == (1,) and found["boxes"].shape == (1, 100, 4)
