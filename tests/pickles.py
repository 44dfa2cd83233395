"""Assembles pickles and the files of torch around them by hand, good ones and bad ones."""

import io
import pickle
import struct
import tarfile
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4}}


def text(value: str) -> bytes:
  raw = value.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def number(value) -> bytes:
  """Of any size, also a bool or a float."""
  return pickle.dumps(value, protocol=2)[2:-1]


def name(module: str, thing: str) -> bytes:
  return f"c{module}\n{thing}\n".encode()


def row(*parts: bytes) -> bytes:
  return b"(" + b"".join(parts) + b"t"


def call(module: str, thing: str, *arguments: bytes) -> bytes:
  return name(module, thing) + row(*arguments) + b"R"


def table(**entries: bytes) -> bytes:
  return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def whole(body: bytes) -> bytes:
  return b"\x80\x02" + body + b"."


def storage(key="0", size=4, kind="FloatStorage", *part: bytes) -> bytes:
  return (
    row(text("storage"), name("torch", kind), text(key), text("cpu"), number(size), *part) + b"Q"
  )


def tensor(of: bytes | None = None, offset=0, shape=(4,), strides=(1,)) -> bytes:
  return call(
    "torch._utils", "_rebuild_tensor_v2", storage() if of is None else of, number(offset),
    row(*map(number, shape)), row(*map(number, strides)), b"\x89",
    call("collections", "OrderedDict"),
  )  # fmt: skip


def in_zip(body: bytes, storages=(("0", bytes(16)),), edit=None) -> bytes:
  """A file of torch.save; `edit` may add to the archive."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("x/data.pkl", whole(body))
    archive.writestr("x/byteorder", "little")
    for key, data in storages:
      archive.writestr(f"x/data/{key}", data)
    if edit:
      edit(archive)
  return out.getvalue()


def in_legacy(body: bytes, storages=(("0", bytes(16)),), width=4, system=SYSTEM) -> bytes:
  """A file of torch.save before 1.6; `width` is the bytes of an element."""
  head = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, system))
  keys = pickle.dumps([key for key, _ in storages], protocol=2)
  data = b"".join(struct.pack("<q", len(d) // width) + d for _, d in storages)
  return head + whole(body) + keys + data


def plain(body: bytes) -> bytes:
  return whole(body)


def in_tar(
  names: dict[str, int], tensors: dict[int, tuple], storages: dict[int, tuple], views=(), edit=None
) -> bytes:
  """A file of torch before 0.2.

  Args:
    names: the state dict, name -> key of a tensor or storage.
    tensors: key -> (key of its storage, shape, strides, offset).
    storages: key -> (name of its class, bytes, bytes of an element).
    views: (key, key of the storage it is a part of, offset, elements).
    edit: may change the parts, {name: bytes}.
  """
  head = pickle.dumps({"protocol_version": 1000, "little_endian": True}, protocol=2)
  stored = pickle.dumps(len(storages), protocol=2)
  for key, (kind, data, width) in storages.items():
    stored += whole(row(number(key), text("cpu"), name("torch", kind)))
    stored += struct.pack("<q", len(data) // width) + data
  stored += pickle.dumps(list(views), protocol=2)
  shaped = pickle.dumps(len(tensors), protocol=2)
  for key, (storage, shape, strides, offset) in tensors.items():
    shaped += whole(row(number(key), number(storage), name("torch", "FloatTensor")))
    shaped += struct.pack("<i4x", len(shape))
    shaped += struct.pack(f"<{2 * len(shape) + 1}q", *shape, *strides, offset)
  body = whole(table(**{key: text(str(value)) + b"Q" for key, value in names.items()}))
  parts = {"sys_info": head, "pickle": body, "tensors": shaped, "storages": stored}
  if edit:
    edit(parts)
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
    for part, data in parts.items():
      info = tarfile.TarInfo(part)
      info.size, info.mtime = len(data), 0.5  # a fraction, as torch's: a header of its own
      archive.addfile(info, io.BytesIO(data))
  return out.getvalue()
