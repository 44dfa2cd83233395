"""Detectors, one family a file: code, then VARIANTS, STAGES and WEIGHTS.

A detector has two methods beside the call, functions of its end points alone, without variables:
  decode(ends)  -> every candidate: boxes [b n 4] in pixels of the network's input, and their scores
                   [b n num_classes]; a box may be one for each class, [b n num_classes 4]
  detect(ends)  -> {"boxes": [b k 4], "scores": [b k], "box_label": [b k] int32}, best first; label
                   -1 is padding.  `score`, `iou`, `limit` and `candidates` are thresholds; their
                   defaults are those that the original publishes
Labels count from 0 and stand for `Weights.classes` in their order; a background is none of them.
"""
