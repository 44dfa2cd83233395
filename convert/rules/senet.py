"""How the forms of SENet's checkpoints name their arrays, the authors' own in Caffe among them."""

from convert.engine import Rules
from convert.rules import CAFFE_BLOBS, TORCH_RENAMES

PARTS = {
  "1x1_reduce": ("conv1", "bn1"), "3x3": ("conv2", "bn2"), "1x1_increase": ("conv3", "bn3"),
  "1x1_proj": ("downsample_0", "downsample_1"), "1x1_down": ("se/fc1",), "1x1_up": ("se/fc2",),
}  # fmt: skip


def _caffe(m) -> str:
  """conv3_1_1x1_reduce/bn/weight -> layer2_0/bn1/weight"""
  stage, block, part, norm = m.groups()
  return f"layer{int(stage) - 1}_{int(block) - 1}/{PARTS[part][norm is not None]}/"


CAFFE = Rules((
  *CAFFE_BLOBS,
  (r"^conv(\d)_(\d+)_(1x1_[a-z]+|3x3)(/bn)?/", _caffe),
  (r"^conv1(?:_(\d))?/[37]x[37](?:_s2)?/(bn)?/?",
   lambda m: f"{m[2] or 'conv'}{m[1] or 1}/"),  # SENet-154 has three of them
  (r"^classifier/", "fc/"),
))  # fmt: skip
RULES = {
  "caffe": CAFFE,
  "cadene": Rules((
    (r"^layer0\.", ""),
    (r"\.se_module\.", ".se."),
    (r"^last_linear\.", "fc."),
    *TORCH_RENAMES,
  )),
  "timm:senet154": Rules((
    (r"^bn1\.", "bn3."),
    (r"^conv1\.([036])\.", lambda m: f"conv{int(m[1]) // 3 + 1}."),
    (r"^conv1\.([14])\.", lambda m: f"bn{int(m[1]) // 3 + 1}."),
    *TORCH_RENAMES,
  )),
}  # fmt: skip
