"""The weights in the object of a checkpoint: unwrapped, flattened, by name."""

from collections.abc import Iterator

import numpy as np

from convert.files import UnsafeFile, short
from convert.plain_objects import NumpyArray
from convert.torch_file import Scripted, Tensor

# Where checkpoints keep the weights, the averaged ones first: those are what was published.
WRAPPERS = (
  "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema",
  "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights",
)  # fmt: skip
BESIDE = "batch_stats"  # Flax's variables: beside "params", not an alternative to it
# What training leaves beside them.
ASIDE = frozenset(
  "amp args callbacks config criterion ema_optimizer epoch grad_scaler hparams loss lr_scheduler "
  "lr_schedulers opt_state optim optimizer optimizer_state optimizer_state_dict optimizer_states "
  "optimizers rng rng_state scaler scheduler scheduler_state_dict step".split()
)
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
COUNTERS = ("n_averaged",)  # of torch's AveragedModel, beside "module."
DEPTH_LIMIT = 32
NODE_LIMIT = 200_000
NAME_LIMIT = 512  # characters
EXPANSION = 8  # times the file that its arrays may hold together
ALLOWANCE = 64 << 20  # bytes that they may hold whatever the file
Leaf = Tensor | NumpyArray | np.ndarray


def arrays(tree, size: int) -> dict[str, np.ndarray]:
  """{name: array} of a checkpoint that takes `size` bytes as a file. Raises UnsafeFile."""
  leaves = _unprefixed(_leaves(_unwrap(tree)))
  if not leaves:
    kind = f"a {type(tree).__name__}"
    if type(tree) is dict:
      kind += f" of {len(tree)} entries, {', '.join(short(k) for k in list(tree)[:8])}"
    raise UnsafeFile(f"it holds no arrays by name, only {kind}; wanted a state dict")
  total = sum(leaf.nbytes for leaf in leaves.values())
  if total > EXPANSION * size + ALLOWANCE:
    raise UnsafeFile(f"its arrays claim {total} bytes in a file of {size}; refused")
  return {name: leaf if type(leaf) is np.ndarray else leaf.array() for name, leaf in leaves.items()}


def _unwrap(tree):
  """The part of a checkpoint that holds the weights."""
  for _ in range(DEPTH_LIMIT):
    if type(tree) is not dict or any(_is_weight(value) for value in tree.values()):
      return tree
    if BESIDE in tree:
      return {k: v for k, v in tree.items() if k not in ASIDE}
    inner = next((tree[w] for w in WRAPPERS if type(tree.get(w)) is dict and tree[w]), None)
    if inner is None:
      return {k: v for k, v in tree.items() if not (type(k) is str and k.lower() in ASIDE)}
    tree = inner
  raise UnsafeFile("its dictionaries are nested without end; refused")


def _is_leaf(value) -> bool:
  return (
    type(value) in (Tensor, np.ndarray) or type(value) is NumpyArray and value.dtype is not None
  )


def _is_weight(value) -> bool:
  """No lone number such as the best accuracy so far, which some keep as a tensor."""
  return _is_leaf(value) and value.shape != ()


def _leaves(tree) -> dict[str, Leaf]:
  found = {}
  for count, (name, leaf) in enumerate(_walk(tree)):
    if name in found:
      raise UnsafeFile(f"it holds two arrays by the name {short(name)}; refused")
    if count >= NODE_LIMIT:
      raise UnsafeFile(f"it holds more than {NODE_LIMIT} arrays; refused")
    found[name] = leaf
  return found


def _walk(tree) -> Iterator[tuple[str, Leaf]]:
  """(name, leaf) in the order of the file; refuses cycles and trees that share themselves big."""
  waiting, seen = [("", tree, 0)], 0
  while waiting:
    name, node, depth = waiting.pop()
    if _is_leaf(node):
      yield name, node
      continue
    node = node.fields if type(node) is Scripted else node
    if type(node) is dict:
      rows = node.items()
    elif type(node) in (list, tuple):
      rows = enumerate(node)
    else:
      continue
    seen += 1 + len(node)
    if depth > DEPTH_LIMIT or seen > NODE_LIMIT:
      raise UnsafeFile("its dictionaries are nested without end; refused")
    inner = [(_join(name, key), value, depth + 1) for key, value in rows if _may_hold(value)]
    waiting.extend(reversed(inner))


def _may_hold(value) -> bool:
  return type(value) in (dict, list, tuple, Scripted) or _is_leaf(value)


def _join(name: str, key) -> str:
  key = key.decode("latin-1") if type(key) is bytes else str(key)
  if len(name) + len(key) >= NAME_LIMIT or not key.isprintable():
    raise UnsafeFile(f"it holds an array by the name {short(f'{name}.{key}')}; refused")
  return f"{name}.{key}" if name else key


def _unprefixed(leaves: dict) -> dict:
  """Without a prefix that all names have."""
  for prefix in PREFIXES * 2:
    inner = {name: leaf for name, leaf in leaves.items() if name not in COUNTERS}
    if inner and all(name.startswith(prefix) for name in inner):
      leaves = {name.removeprefix(prefix): leaf for name, leaf in inner.items()}
  return leaves
