"""Where arrays live: one mesh over the devices of all processes.

Its axes are "data" and "fsdp". A batch is split over both; the state is split over "fsdp" alone
(fully sharded data parallelism, as in ZeRO, arXiv:1910.02054) and is the same along "data". XLA
inserts the communication.
"""

from collections.abc import Sequence
import math

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

AXES = ("data", "fsdp")
SMALL = 4096  # numbers; to gather an array of fewer costs more than to keep it everywhere


def make(
  shape: Sequence[str] = (), devices: Sequence[jax.Device] | None = None, *, batch: int = 0
) -> Mesh:
  """The mesh that `shape` describes, such as ("data:4", "fsdp:2"); all on "data" if empty.

  `Mesh` has Auto axes, which Flax's layers need; `jax.make_mesh` has not.

  Args:
    batch: rows that will be split over it; 0 asks nothing.

  Raises:
    ValueError: the sizes are no numbers, name other axes, or do not multiply to all devices; or
      these cannot share the batch evenly.
  """
  devices = np.array(devices or jax.devices())
  sizes = _sizes(shape) if shape else {"data": devices.size}
  if math.prod(sizes.values()) != devices.size:
    raise ValueError(
      f"--mesh={','.join(shape)} is for {math.prod(sizes.values())} devices; there are "
      f"{devices.size}: wanted sizes whose product is that, such as data:{devices.size}"
    )
  mesh = Mesh(devices.reshape([sizes.get(axis, 1) for axis in AXES]), AXES)
  if batch % mesh.size:
    raise ValueError(
      f"--batch={batch} cannot be split over {mesh.size} devices: wanted a multiple, such as "
      f"{even(batch, mesh)}"
    )
  return mesh


def local(batch: int) -> Mesh:
  """The devices of this process, or one of them for a batch of fewer rows."""
  devices = jax.local_devices()
  return make(devices=devices if batch >= len(devices) else devices[:1])


def even(batch: int, mesh: Mesh) -> int:
  """Rows of the least batch that holds `batch` and that the mesh's devices share evenly."""
  return -(-batch // mesh.size) * mesh.size


def _sizes(shape: Sequence[str]) -> dict[str, int]:
  parts = [part.partition(":") for part in shape]
  sizes = {axis: int(size) for axis, _, size in parts if size.isdecimal() and int(size)}
  if len(sizes) < len(parts) or sizes.keys() - set(AXES):
    raise ValueError(
      f"cannot read --mesh={','.join(shape)}; wanted such as data:8 or data:4,fsdp:2"
    )
  return sizes


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def shardings(mesh: Mesh, tree):
  """Of each array: its longest axis that divides evenly is split over "fsdp", else it is whole."""
  parts = mesh.shape["fsdp"]

  def one(array):
    even = [i for i, n in enumerate(array.shape) if n % parts == 0]
    if parts == 1 or not even or math.prod(array.shape) < SMALL:
      return replicated(mesh)
    axis = max(even, key=lambda i: array.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(one, tree)


def placed(tree, where):
  """The arrays of `tree` as ShapeDtypeStructs, each with its sharding out of the tree `where`."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, where
  )


def rows(mesh: Mesh) -> NamedSharding:
  """Of a batch: its first axis is split over the mesh."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(batch, mesh: Mesh):
  """Arrays of this process's rows -> global arrays split over the mesh by their first axis."""
  split = rows(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)


def fetch(tree):
  """All of each array as NumPy's, in every process; all processes must ask at the same time."""

  def one(array):
    whole = not isinstance(array, jax.Array) or array.is_fully_addressable
    if whole or array.is_fully_replicated:
      return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)

  return jax.tree.map(one, tree)
