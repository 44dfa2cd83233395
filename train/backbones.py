"""A published classifier as the body of a network that has no checkpoint of its own."""

from collections.abc import Mapping

from flax import traverse_util
import jax

import zoo


def planted(fresh: Mapping, backbone: str, module: str) -> dict:
  """`fresh` variables with those of the checkpoint `backbone` in their top-level module.

  The checkpoint's head, and stages that the network does not have, stay out.

  Raises:
    ValueError: the module is another network.
    FileNotFoundError: the weights are neither cached nor within reach.
  """
  _, known = zoo.load(backbone, num_classes=None)
  whole = dict(jax.device_get(fresh))
  wrong, count = [], 0
  for collection, tree in whole.items():
    if module not in tree:
      continue
    have = traverse_util.flatten_dict(known.get(collection, {}), sep="/")
    want = traverse_util.flatten_dict(tree[module], sep="/")
    count += len(want)
    wrong += [p for p in want if p not in have or have[p].shape != want[p].shape]
    if not wrong:
      given = traverse_util.unflatten_dict({path: have[path] for path in want}, sep="/")
      whole[collection] = {**tree, module: given}
  if wrong:
    raise ValueError(
      f"{backbone} is another network than this one's {module}: {len(wrong)} of {count} arrays do "
      f"not fit, such as {wrong[0]}"
    )
  return whole
