"""A checkpoint in several files, and the JSON index beside them: {"weight_map": {array: file}}.

As the Hugging Face libraries write it, of `.safetensors` or of torch's `.bin`.
"""

from pathlib import Path

import numpy as np

from convert.files import UnsafeFile, json_object, short

INDEXES = ("*.safetensors.index.json", "*.bin.index.json")
SIZE_LIMIT = 100 << 20  # bytes of the index
SHARD_LIMIT = 10_000
NAME_LIMIT = 255  # bytes, of most file systems
SIGN = b'"weight_map"'


def matches(data: np.ndarray, path: Path) -> bool:
  named = path.name.endswith(".index.json") or SIGN in data[:4096].tobytes()
  return data[0] == ord("{") and named


def shards(data: np.ndarray, path: Path) -> dict[Path, list[str]]:
  """The names of the arrays in each file of the index. Raises UnsafeFile."""
  if len(data) > SIZE_LIMIT:
    raise UnsafeFile(f"an index of {len(data)} bytes is far longer than any; refused")
  table = json_object(data.tobytes(), "its index").get("weight_map")
  if type(table) is not dict or not table:
    raise UnsafeFile(f"its weight_map must give a file for each array, found {short(table)}")
  found: dict[Path, list[str]] = {}
  for array, name in table.items():
    if not _is_file_name(name):
      raise UnsafeFile(
        f"its index looks for {short(array)} in {short(name)}; wanted the name of a file beside it"
      )
    found.setdefault(path.parent / name, []).append(array)
  if len(found) > SHARD_LIMIT:
    raise UnsafeFile(f"its index names {len(found)} files; refused")
  if missing := [shard.name for shard in found if not shard.is_file()]:
    raise UnsafeFile(f"{len(missing)} files of its index are not beside it: {short(missing)}")
  return found


def _is_file_name(name) -> bool:
  """Of a file beside the index, which every system can have."""
  if type(name) is not str or not name.isprintable() or name[:1] in ("", "."):
    return False
  return len(name.encode()) <= NAME_LIMIT and not {*name} & {*"/\\:"}


def joined(parts: dict[Path, dict], wanted: dict[Path, list[str]]) -> dict[str, np.ndarray]:
  """The arrays of all shards. Raises UnsafeFile unless each holds what the index says."""
  out, faults = {}, []
  for shard, arrays in parts.items():
    faults += [f"{short(name)} is not in {shard.name}" for name in wanted[shard]
               if name not in arrays]  # fmt: skip
    faults += [f"{short(name)} in {shard.name} is not in the index" for name in arrays
               if name not in wanted[shard]]  # fmt: skip
    out |= arrays
  if faults:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise UnsafeFile(f"its index and its files disagree: {'; '.join(faults[:3])}{more}")
  return out
