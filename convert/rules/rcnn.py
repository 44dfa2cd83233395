"""Faster and Mask R-CNN of torchvision; published files have older names.

On VGG-16, of its `FasterRCNN` with `vgg16().features[:-1]` as the backbone.
"""

from convert.engine import Rules, chw_to_hwc, deconv
from convert.rules import TORCH_RENAMES, mobilenet_v3, vgg
from convert.rules.retinanet import PYRAMID

PLACES = vgg.positions(vgg.DEPTHS["16"], batch_norm=False)
ON_VGG = ((r"^backbone\.(\d+)\.", lambda m: f"body.{PLACES[int(m[1])]}."),)

ON_MOBILENET = (
  (r"^body\.(?=\d)", "features."),
  *mobilenet_v3.torchvision("large").renames[: -len(TORCH_RENAMES)],
  (r"^(?=conv_stem|bn1|blocks_)", "body."),
)


def torchvision(width: int = 256, body: tuple = ()) -> Rules:
  """`width` is that of the maps, whose regions of 7x7 cells the first dense layer reads."""
  flat = chw_to_hwc(width, 7, 7)
  return Rules(
    (
      *PYRAMID,
      *body,
      (r"^rpn\.head\.", "rpn."),
      (r"^rpn\.conv\.(?=weight$|bias$)", "rpn.conv.0.0."),
      (r"^roi_heads\.", ""),
      (r"^mask_head\.mask_fcn(\d)\.", lambda m: f"mask_head.{int(m[1]) - 1}.0."),
      (r"^(box_head|mask_head)\.(\d)\.(\d)\.", r"\1/\2_\3."),
      (r"^box_head\.(\d)\.", r"box_head/\1."),
      *TORCH_RENAMES,
    ),
    operations=(
      (r"params/box_head/(fc6|5)/kernel", flat),
      (r"params/mask_predictor/conv5_mask/kernel", deconv),
    ),
  )


MOBILE = torchvision(body=ON_MOBILENET)
RULES = {
  "torchvision": torchvision(),
  "torchvision:fasterrcnn_vgg16": torchvision(512, ON_VGG),
  "torchvision:fasterrcnn_mobilenet_v3_large_fpn": MOBILE,
  "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": MOBILE,
}
