"""How well objects were found: COCO's AP by pycocotools, VOC's of our own; who was taken for whom.

Crowds and objects marked as difficult are neither missed nor wrongly found.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import io
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as packed

from train.data.detection import Objects
from zoo.detect.found import Found

OVERLAP = 0.5  # IoU from which VOC counts an object as found
SHOWN = 0.25  # confidence from which an answer counts in the confusion


class Curve(NamedTuple):
  """Precision over recall of one class, from the surest detection on."""

  recall: np.ndarray  # [d] in 0..1
  precision: np.ndarray  # [d]
  objects: int

  @property
  def area(self) -> float:
    """AP as VOC 2010 and later have it: under the curve that never rises."""
    recall = np.concatenate([[0], self.recall, [1]])
    envelope = np.maximum.accumulate(np.concatenate([self.precision, [0]])[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope)) if self.objects else float("nan")

  @property
  def eleven(self) -> float:
    """AP as VOC 2007 has it: the mean of the best precision at recalls of 0, .1 .. 1 and beyond."""
    best = [self.precision[self.recall >= r].max(initial=0) for r in np.linspace(0, 1, 11)]
    return float(np.mean(best)) if self.objects else float("nan")


@dataclasses.dataclass(frozen=True)
class Scores:
  # Of all classes: ap, ap50, ap75, voc07, voc; where there are masks mask_ap, mask_ap50, mask_ap75.
  measures: dict[str, float]
  each: np.ndarray  # [c 2] AP and AP50 of each class by COCO's rules; NaN without an object
  curves: list[Curve]  # of each class, at VOC's overlap


def score(objects: Sequence[Objects], found: Sequence[Found], classes: int) -> Scores:
  """Of pictures in one order; of each picture the best 100 detections count."""
  measures, each = coco(objects, found, classes)
  if all(one.masks is not None for one in (*objects, *found)):
    masks, _ = coco(objects, found, classes, masks=True)
    measures |= {f"mask_{name}": value for name, value in masks.items()}
  curves = [curve(objects, found, label) for label in range(classes)]
  measures |= {
    "voc07": _mean([c.eleven for c in curves]), "voc": _mean([c.area for c in curves]),
  }  # fmt: skip
  return Scores(measures, each, curves)


def _mean(values) -> float:
  values = np.asarray(values, float)
  return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def coco(objects: Sequence[Objects], found: Sequence[Found], classes: int, *, masks: bool = False):
  """({"ap", "ap50", "ap75"}, [c 2] AP and AP50 of each class), as pycocotools finds them.

  Args:
    masks: compare masks, not boxes.
  """
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  sizes = [(one.height, one.width) for one in found]
  images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)]
  kinds = [{"id": label, "name": str(label)} for label in range(classes)]
  with contextlib.redirect_stdout(io.StringIO()):  # it tells of every stage
    sides = []
    for rows in (list(_truths(objects)), list(_answers(found))):
      for number, row in enumerate(rows, start=1):
        row["id"] = number
      side = COCO()
      side.dataset = {"images": images, "categories": kinds, "annotations": rows, "info": {}}
      side.createIndex()
      sides.append(side)
    run = COCOeval(*sides, iouType="segm" if masks else "bbox")
    run.evaluate()
    run.accumulate()
  table = run.eval["precision"][..., 0, 2]  # [IoU recall class], all areas, 100 detections
  table = np.where(table < 0, np.nan, table)
  pick = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
  measures = {name: _mean(table[some]) for name, some in pick.items()}
  each = [[_mean(table[some, :, c]) for some in (pick["ap"], pick["ap50"])] for c in range(classes)]
  return measures, np.array(each).reshape(classes, 2)


def _truths(objects: Sequence[Objects]):
  for image, marks in enumerate(objects, start=1):
    masks = marks.masks or (None,) * len(marks.labels)
    rows = zip(marks.boxes.tolist(), marks.labels.tolist(), marks.plain, masks)
    for (x0, y0, x1, y1), label, plain, mask in rows:
      yield {
        "image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0), "iscrowd": int(not plain), "segmentation": mask,
      }  # fmt: skip


def _answers(found: Sequence[Found]):
  for image, one in enumerate(found, start=1):
    masks = [None] * len(one) if one.masks is None else one.masks
    rows = zip(one.boxes_xywh.tolist(), one.labels.tolist(), one.scores.tolist(), masks)
    for box, label, sure, mask in rows:
      yield {
        "image_id": image, "category_id": label, "bbox": box, "score": sure,
        "area": box[2] * box[3], "iscrowd": 0, "segmentation": mask,
      }  # fmt: skip


def all_pasted(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """`pasted` of masks [n m m] and boxes [n 4] in one picture, [n] of objects."""
  rows = zip(masks, boxes)
  return np.array([pasted(mask, box, height, width) for mask, box in rows], object)


def pasted(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> dict:
  """A mask [m m] uint8, 0 to 255, of a box in a picture, as pycocotools packs it.

  As `zoo.ops.roi.paste_masks`, where it is more than a half; only the pixels of the box are looked
  at, which makes it fast for pictures of any size.
  """
  side = len(mask) + 2
  middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * (side / (side - 2))
  x0, y0 = np.trunc(middle - half).astype(int)
  x1, y1 = np.trunc(middle + half).astype(int)
  shape = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
  grown = np.pad(np.float32(mask), 1)
  large = cv2.resize(grown, tuple(map(int, shape)), interpolation=cv2.INTER_LINEAR) > 127.5
  out = np.zeros((height, width), np.uint8, order="F")
  left, top = max(x0, 0), max(y0, 0)
  part = large[top - y0 : max(height - y0, 0), left - x0 : max(width - x0, 0)]
  if not part.size:
    return packed.encode(out)
  out[top : top + part.shape[0], left : left + part.shape[1]] = part
  return packed.encode(out)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[n m] IoU of boxes [n 4] and [m 4]."""
  low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
  inside = np.maximum(high - low, 0).prod(-1)
  area = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(-1)
  union = area(a)[:, None] + area(b)[None] - inside
  return np.where(union > 0, inside / np.where(union > 0, union, 1), 0)


def curve(objects: Sequence[Objects], found: Sequence[Found], label: int) -> Curve:
  """By VOC's rules: a detection may claim the object that it overlaps most, once."""
  sure, right, count = [], [], 0
  for marks, one in zip(objects, found):
    mine, own = marks.labels == label, one.only(one.labels == label)
    own = own.only(np.argsort(-own.scores, kind="stable"))
    plain = marks.plain[mine]
    count += int(plain.sum())
    near = overlaps(own.boxes, marks.boxes[mine])
    taken = np.zeros(len(plain), bool)
    for row, confidence in zip(near, own.scores):
      best = int(row.argmax()) if len(row) else -1
      if best >= 0 and row[best] >= OVERLAP and not plain[best]:
        continue  # of a difficult object: neither right nor wrong
      hit = best >= 0 and row[best] >= OVERLAP and not taken[best]
      if hit:
        taken[best] = True
      sure.append(confidence)
      right.append(hit)
  order = np.argsort(-np.array(sure), kind="stable")
  right = np.array(right, bool)[order]
  hits = np.cumsum(right)
  return Curve(hits / max(count, 1), hits / np.arange(1, len(right) + 1), count)


def matched(marks: Objects, one: Found, confidence: float = SHOWN) -> list[tuple[int, int]]:
  """(object, detection) of a picture, the surest first, whatever the classes; each at most once."""
  near = overlaps(one.boxes, marks.boxes)
  free, pairs = np.ones(len(marks.labels), bool), []
  for i in np.argsort(-one.scores, kind="stable"):
    if one.scores[i] < confidence or not free.any():
      break
    own = np.where(free, near[i], -1)
    same = np.where(marks.labels == one.labels[i], own, -1)  # its own class before the others
    best = int((same if same.max() >= OVERLAP else own).argmax())
    if own[best] >= OVERLAP:
      free[best] = False
      pairs.append((best, int(i)))
  return pairs


def confusion(objects: Sequence[Objects], found: Sequence[Found], classes: int) -> np.ndarray:
  """[c+1 c+1] int: objects of a class (row) found as one (column); last: none there, none found."""
  counts = np.zeros((classes + 1, classes + 1), int)
  for marks, one in zip(objects, found):
    pairs = matched(marks, one)
    for i, j in pairs:
      if marks.plain[i]:
        counts[marks.labels[i], one.labels[j]] += 1
    missed = marks.plain.copy()
    missed[[i for i, _ in pairs]] = False
    np.add.at(counts, (marks.labels[missed], classes), 1)
    extra = one.scores >= SHOWN
    extra[[j for _, j in pairs]] = False
    np.add.at(counts, (classes, one.labels[extra]), 1)
  return counts
