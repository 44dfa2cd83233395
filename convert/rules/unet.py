"""U-Net: the nested blocks of shiftlab's, and segmentation_models_pytorch's decoder."""

from convert.engine import Rules, deconv
from convert.rules import TORCH_RENAMES

DECONVS = ((r"params/up\d/kernel", deconv),)
SHIFTLAB = Rules((
  (r"\.conv_block(?=\.)", ""),
  (r"^(\w+)\.(\d)\.conv\.", r"\1.conv\2."),
  (r"^(\w+)\.(\d)\.batchNorm\.", r"\1.bn\2."),
  *TORCH_RENAMES,
))  # fmt: skip
SMP = Rules((
  (r"^encoder\.", "backbone."),
  (r"^decoder\.blocks\.(\d)\.conv1\.0\.", r"blocks.\1.conv0."),
  (r"^decoder\.blocks\.(\d)\.conv1\.1\.", r"blocks.\1.bn0."),
  (r"^decoder\.blocks\.(\d)\.conv2\.0\.", r"blocks.\1.conv1."),
  (r"^decoder\.blocks\.(\d)\.conv2\.1\.", r"blocks.\1.bn1."),
  (r"^segmentation_head\.0\.", "final."),
  *TORCH_RENAMES,
))  # fmt: skip
RULES = {
  "shiftlab": SHIFTLAB,
  "smp": SMP,
  "plain": Rules(TORCH_RENAMES, operations=DECONVS),  # our names, torch's layouts
}
