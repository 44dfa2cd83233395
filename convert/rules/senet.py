"""How the two forms of SENet's checkpoints name their arrays."""

from convert.engine import Rules
from convert.rules import TORCH_RENAMES

RULES = {
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
