"""Pickles that attack whoever reads them, by what they try; assembled, never run here."""

import struct

from tests import pickles as p


def commands(command: str) -> dict[str, bytes]:
  """Ways to make an unpickler run a shell command."""
  c, python = p.text(command), p.text(f"__import__('os').system({command!r})")
  system = p.name("posix", "system")
  inner = p.whole(p.call("os", "system", c))
  return {
    "os.system": p.call("os", "system", c),
    "posix.system": system + p.row(c) + b"R",
    "subprocess": p.call("subprocess", "getoutput", c),
    "eval": p.call("builtins", "eval", python),
    "exec of python 2": p.call("__builtin__", "eval", python),
    "stack global": p.text("os") + p.text("system") + b"\x93" + p.row(c) + b"R",
    "inst": b"(" + c + b"ios\nsystem\n",
    "obj": b"(" + p.name("os", "_wrap_close") + p.call("os", "popen", c) + c + b"o",
    "newobj": p.name("subprocess", "Popen") + p.row(b"](" + p.text("sh") + p.text("-c") + c + b"e")
    + b"\x81",
    "newobj with names": p.name("subprocess", "Popen")
    + p.row(b"](" + p.text("sh") + p.text("-c") + c + b"e") + b"}\x92",
    "getattr": p.call("builtins", "getattr", p.call("builtins", "__import__", p.text("os")),
                      p.text("system")) + p.row(c) + b"R",
    "dotted name": b"\x80\x04" + p.text("argparse") + p.text("_os.system") + b"\x93" + p.row(c)
    + b"R",
    "attributes": p.call("argparse", "Namespace") + b"}" + p.text("x") + p.call("os", "system", c)
    + b"sb",
    "nested storage": p.call("torch.storage", "_load_from_bytes", p.number(inner)),
    "in a key": b"}" + p.call("os", "system", c) + b"Ns",
    "thrown away": p.call("os", "system", c) + b"0" + p.table(a=p.tensor()),
    "as a hook": p.call("torch._tensor", "_rebuild_from_type_v2", system, b"N", p.row(c), b"N"),
    "in a default": p.call("collections", "defaultdict", system),
    "runstring": p.call("numpy.testing._private.utils", "runstring", python, b"}"),
    "persistent": p.row(p.call("os", "system", c)) + b"Q",
  }  # fmt: skip


def doubled(times: int) -> bytes:
  """A tuple of 2**times shared elements."""
  return b")" + b"2\x86" * times


def repeated(value: bytes, use: bytes, times: int) -> bytes:
  """A list of `use`, each of which may recall `value` as h\\x00."""
  return value + b"q\x000](" + use * times + b"e"


SPREAD = p.tensor(shape=(1 << 20, 1 << 20), strides=(0, 0))
LEGACY_STORAGE = p.in_legacy(p.storage(size=1 << 18), [("0", bytes(1 << 20))])
LAUGHS = b"}" + b"".join(
  b"q%c0}(%sh%c%sh%cu" % (i, p.text("a"), i, p.text("b"), i) for i in range(31)
)

PICKLES = {
  "instruction by extension": b"\x82\x01",
  "persistent text": b"Pid\n",
  "unknown instruction": b"\xff",
  "out-of-band buffer": b"\x97",
  "no end": b"](" * 3,
  "empty stack": b"0",
  "no mark": b"t",
  "missing memo": b"h\x07",
  "negative memo": b"Np-1\n",
  "key without value": b"}(Nu",
  "append to text": p.text("a") + b"Na",
  "call of a tuple": b"))R",
  "call without arguments": p.name("collections", "OrderedDict") + b"NR",
  "wrong arguments": p.call("torch._utils", "_rebuild_tensor_v2", b"N"),
  "tensor of no storage": p.tensor(of=b"N"),
  "attributes of a number": b"K\x01}b",
  "named type called": p.call("torch", "FloatStorage", p.number(1 << 40)),
  "names that are no texts": b"K\x01K\x02\x93",
  "terminal escapes": p.name("\x1b[31mos", "system"),
  "text of 2**40 bytes": b"\x8d" + struct.pack("<Q", 1 << 40) + b"a",
  "bytes of 2**62": b"\x8e" + struct.pack("<Q", 1 << 62),
  "integer of 2**31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1),
  "integer of -1 bytes": b"\x8b" + struct.pack("<i", -1),
  "frame of 2**60": b"\x95" + struct.pack("<Q", 1 << 60),
  "line without end": b"I" + b"1" * 100_000,
  "number of 4000 digits": b"}I" + b"1" * 4000 + b"\nNs",
  "number that is none": b"Iabc\n",
  "memo bomb": b"]" + b"\x94" * 110_000,
  "many marks": b"(" * 110_000,
  "many lists": b"]" * 110_000,
  "deep list": b"(" * 40_000 + b"l" * 40_000,
  "deep list in a dictionary": b"}" + p.text("a") + b"(" * 20_000 + b"l" * 20_000 + b"s",
  "deep tuples": b")" + b"\x85" * 50_000,
  "deep tuple as a token": b")" + b"\x85" * 50_000 + b"Q",
  "list in itself": p.table(a=b"]q\x00h\x00a"),
  "dictionary in itself": b"}q\x00" + p.text("a") + b"h\x00s",
  "wrapped in itself": b"}q\x00" + p.text("model") + b"h\x00s",
  "2**60 shared tuples": p.table(a=doubled(60)),
  "2**60 shared tuples as a token": doubled(60) + b"Q",
  "2**60 shared tuples as a key": b"}" + doubled(60) + b"Ns",
  "2**60 shared tuples as a shape": p.call("torch", "Size", doubled(60)),
  "2**60 shared tuples as arguments": p.name("torch", "Size") + doubled(60) + b"R",
  "2**31 shared dictionaries": LAUGHS,
  "keys that collide": b"}(" + b"".join(p.number(i * (2**61 - 1)) + b"N" for i in range(99)) + b"u",
  "bytes made over and over": repeated(
    p.text("a" * (1 << 20)),
    p.name("_codecs", "encode") + b"(h\x00" + p.text("latin1") + b"tR", 5000,
  ),
  "list copied over and over": repeated(
    b"](" + b"N" * 100_000 + b"e", p.name("builtins", "set") + b"(h\x00tR", 5000
  ),
  "dictionary copied over and over": repeated(
    b"}(" + b"".join(p.number(i) + b"N" for i in range(50_000)) + b"u",
    p.name("collections", "OrderedDict") + b"(h\x00tR", 5000,
  ),
  "storage read over and over": repeated(
    p.number(LEGACY_STORAGE), p.name("torch.storage", "_load_from_bytes") + b"(h\x00tR", 3000
  ),
  "storage that is a tensor": p.call("torch.storage", "_load_from_bytes", p.number(
    p.in_legacy(p.tensor()))),
  "storage in a storage": p.call("torch.storage", "_load_from_bytes", p.number(p.in_legacy(
    p.call("torch.storage", "_load_from_bytes", p.number(LEGACY_STORAGE)), []))),
  "numpy of another type": p.call("numpy.core.multiarray", "_reconstruct",
                                  p.name("builtins", "object"), p.row(), b"N"),
  "numpy state": p.call("numpy.core.multiarray", "_reconstruct", p.name("numpy", "ndarray"),
                        p.row(), b"N") + p.row(b"N") + b"b",
  "numpy of 2**40": p.call("numpy._core.numeric", "_frombuffer", p.text(""),
                           p.call("numpy", "dtype", p.text("f8")), p.row(p.number(1 << 40)),
                           p.text("C")),
  "numpy order": p.call("numpy", "dtype", p.text("f8")) + p.row(b"N", p.text("x")) + b"b",
  "name of a megabyte": b"}" + p.text("a" * (1 << 20)) + p.call(
    "numpy._core.numeric", "_frombuffer", p.text(""), p.call("numpy", "dtype", p.text("f8")),
    p.row(p.number(0)), p.text("C")) + b"s",
}  # fmt: skip

TENSORS = {
  "huge storage": p.tensor(p.storage(size=1 << 50)),
  "storage too long by one": p.tensor(p.storage(size=5)),
  "storage too short": p.tensor(p.storage(size=3), shape=(3,)),
  "negative storage": p.tensor(p.storage(size=-4)),
  "storage of a fraction": p.tensor(p.storage(size=4.0)),
  "storage of 40000 bits": p.tensor(p.storage(size=1 << 40_000)),
  "storage under a path": p.tensor(p.storage("../../../etc/passwd")),
  "storage that is missing": p.tensor(p.storage("1")),
  "storage of no class": p.tensor(
    p.row(p.text("storage"), b"N", p.text("0"), b"N", b"K\x04") + b"Q"
  ),
  "storage of another module": p.tensor(
    p.row(p.text("storage"), p.name("builtins", "int"), p.text("0"), b"N", b"K\x04") + b"Q"
  ),
  "storage said twice": p.tensor() + b"0" + p.tensor(p.storage(kind="LongStorage")),
  "a module instead of a storage": p.row(p.text("module"), b"N", b"N", b"N") + b"Q",
  "shape beyond": p.tensor(shape=(5,)),
  "offset beyond": p.tensor(offset=1),
  "offset of 2**63": p.tensor(offset=1 << 63, shape=(1,)),
  "negative offset": p.tensor(offset=-1, shape=(1,)),
  "offset of a fraction": p.tensor(offset=0.5, shape=(1,)),
  "offset true": p.tensor(offset=True, shape=(1,)),
  "stride beyond": p.tensor(shape=(2,), strides=(4,)),
  "negative stride": p.tensor(offset=3, strides=(-1,)),
  "strides that overflow": p.tensor(shape=(3, 3), strides=(1 << 63, 1 << 63)),
  "strides missing": p.tensor(strides=()),
  "negative shape": p.tensor(shape=(-1,)),
  "shape that overflows": p.tensor(shape=(1 << 32, 1 << 32), strides=(0, 0)),
  "shape of a number": p.call("torch._utils", "_rebuild_tensor_v2", p.storage(), b"K\x00",
                              b"K\x04", b"K\x01"),
  "100 axes": p.tensor(shape=(1,) * 100, strides=(1,) * 100),
  "spread to 4 TB": SPREAD,
  "spread many times": b"}(" + b"".join(
    p.text(str(i)) + p.tensor(shape=(1 << 20,), strides=(0,)) for i in range(100)) + b"u",
  "unknown type": p.call("torch._utils", "_rebuild_tensor_v3", p.storage(), b"K\x00",
                         p.row(b"K\x01"), p.row(b"K\x01"), b"\x89", b"N",
                         p.name("torch", "FloatStorage")),
  "two of a name": b"}(" + p.text("a.b") + p.tensor() + p.text("a") + p.table(b=p.tensor()) + b"u",
  "name of a newline": b"}(" + p.text("a\nb") + p.tensor() + b"u",
}  # fmt: skip
