"""COCO's classes under the numbers of its annotations, 1 to 90, ten of which name nothing."""

from zoo.detect import yolo

_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# darknet's spelling -> COCO's own
_SPELLED = {
  "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch",
  "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv",
}  # fmt: skip
_names = (_SPELLED.get(name, name) for name in yolo.COCO)
CLASSES = tuple("N/A" if i in _UNUSED else next(_names) for i in range(1, 91))
