"""FCN on VGG-16: the authors' names, in torch's layouts or Caffe's, which are the same."""

from convert.engine import Rules, deconv
from convert.rules import TORCH_RENAMES

RULES = {"plain": Rules(TORCH_RENAMES, operations=((r"params/upscore\w*/kernel", deconv),))}
