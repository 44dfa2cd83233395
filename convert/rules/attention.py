"""How pytorchcv names the arrays of a Residual Attention Network."""

from convert.engine import Rules
from convert.rules import PYTORCHCV_RENAMES

RULES = {
  "pytorchcv": Rules((
    (r"^features\.post_activ\.bn\.", "norm."),
    (r"\.middle_block\.conv(\d)\.(conv|bn)\.", r".mask_\2\1."),
    (r"\.(hg\.\w+_seq\.)?(\w+)\.(res_blocks\.)?blocks\.block(\d+)\.",
     lambda m: f".{m[2].removesuffix('_blocks')}.{int(m[4]) - 1}."),
    (r"\.hg\.skip_seq\.(skip\d)\.skip1\.", r".\1.0."),
    (r"\.final_block\.", ".final.0."),
    *PYTORCHCV_RENAMES,
  )),
}  # fmt: skip
