"""Prints where the arrays of an HDF5 file stand, as JSON; run by `convert.hdf5_file`, on its own.

The HDF5 library is written in C and may crash, or not end, on a damaged file (of some thousand with
one to eight flipped bits, one made it crash). So it runs in a process with limits, that reads the
structure and hardly any array.
"""

import base64
import contextlib
import io
import json
import mmap
import sys

MEMORY_LIMIT = 4 << 30  # bytes of addresses, most of them of libraries
SECONDS = 20  # of the processor
NODE_LIMIT = 50_000
DEPTH_LIMIT = 32
CHUNK_LIMIT = 100_000
ATTRIBUTE_LIMIT = 16 << 20  # bytes
INLINE_LIMIT = 1 << 16  # bytes of arrays that stand among the structure
NAMES = (
  "layer_names",
  "weight_names",
  "name",
)  # attributes of Keras, some cut into name0, name1 ...


class Refused(Exception):
  """The sentence to print."""


class Window(io.RawIOBase):
  """A part of a file as a file, without a copy."""

  def __init__(self, data: memoryview):
    self.data, self.at = data, 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=0):
    self.at = (0, self.at, len(self.data))[whence] + offset
    return self.at

  def readinto(self, buffer):
    size = max(0, min(len(buffer), len(self.data) - self.at))
    buffer[:size] = self.data[self.at : self.at + size]
    self.at += size
    return size


def limit() -> None:
  with contextlib.suppress(ImportError):  # not on Windows
    import resource

    for kind, value in (("AS", MEMORY_LIMIT), ("CPU", SECONDS), ("CORE", 0), ("FSIZE", 1 << 20)):
      resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (value, value))


def nodes(h5py, file):
  """Every dataset of a file, and those attributes of its groups that name layers."""
  groups, datasets, seen = {}, [], set()
  waiting = [("", file, 0)]
  while waiting:
    path, group, depth = waiting.pop()
    place = h5py.h5o.get_info(group.id)
    key = (place.fileno, place.addr)
    if key in seen or depth > DEPTH_LIMIT:
      raise Refused(f"its group {path!r} is inside itself or nested without end")
    seen.add(key)
    groups[path] = attributes(h5py, group)
    inner = []
    for name in group:
      inside = f"{path}/{name}" if path else name
      if len(groups) + len(datasets) + len(waiting) + len(inner) > NODE_LIMIT:
        raise Refused(f"it holds more than {NODE_LIMIT} groups and arrays")
      if type(group.get(name, getlink=True)) is not h5py.HardLink:
        raise Refused(f"{inside!r} is a link to elsewhere, which weights do not need")
      node = group[name]
      if isinstance(node, h5py.Group):
        inner.append((inside, node, depth + 1))
      elif isinstance(node, h5py.Dataset):
        datasets.append(dataset(h5py, inside, node))
    waiting += reversed(inner)
  return {"groups": groups, "datasets": datasets}


def attributes(h5py, group) -> dict:
  """The names in a group's attributes, those that were cut put together."""
  found, total = {}, 0
  for name in sorted(group.attrs, key=lambda name: (len(name), name)):
    stem = name.rstrip("0123456789")
    if stem not in NAMES:
      continue
    kind = h5py.h5a.open(group.id, name.encode())
    if 0 in kind.shape:
      found.setdefault(stem, [])
      continue
    total += kind.get_storage_size()
    if total > ATTRIBUTE_LIMIT:
      raise Refused(f"its names take {total} bytes")
    value = group.attrs[name]
    values = [value] if isinstance(value, (str, bytes)) else list(value)
    texts = [v.decode() if isinstance(v, bytes) else v for v in values]
    if not all(isinstance(text, str) for text in texts):
      raise Refused(f"its attribute {name!r} holds no names")
    found[stem] = found.get(stem, []) + texts
  return found


def dataset(h5py, path: str, node) -> dict:
  """Type, shape and place of an array: "offset", "chunks" or, where it is inline, "data"."""
  plan = node.id.get_create_plist()
  if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
    raise Refused(f"{path!r} stands in another file")
  row = {"path": path, "dtype": node.dtype.str, "shape": list(node.shape or ()), "kind": "none"}
  if node.shape is None or node.dtype.hasobject or node.dtype.kind not in "biufc":
    return row | {"kind": "other"}
  layout = plan.get_layout()
  if layout == h5py.h5d.COMPACT:
    if node.nbytes > INLINE_LIMIT:
      raise Refused(f"{path!r} claims {node.nbytes} bytes among the structure")
    return row | {"kind": "inline", "data": base64.b64encode(node[()].tobytes()).decode()}
  if layout == h5py.h5d.CONTIGUOUS:
    offset = node.id.get_offset()
    return row if offset is None else row | {"kind": "plain", "offset": offset}
  if node.id.get_num_chunks() > CHUNK_LIMIT:
    raise Refused(f"{path!r} is cut into more than {CHUNK_LIMIT} pieces")
  filters = [list(plan.get_filter(i)[::2]) for i in range(plan.get_nfilters())]
  chunks = []
  node.id.chunk_iter(
    lambda c: chunks.append([list(c.chunk_offset), c.byte_offset, c.size, c.filter_mask])
  )
  return row | {"kind": "chunks", "chunk": list(node.chunks), "filters": filters, "chunks": chunks}


def main(path: str, begin: int, size: int) -> None:
  import h5py

  limit()
  with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
    window = Window(memoryview(data)[begin : begin + size])
    try:
      with h5py.File(window, "r") as file:
        out = nodes(h5py, file)
    except Refused as refused:
      out = {"refused": str(refused)}
    except Exception as error:  # noqa: BLE001  of a library that raises what it likes
      out = {"refused": f"HDF5 says: {error}"}
    window.data.release()
  json.dump(out, sys.stdout)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
