"""darknet's `.cfg`: sections of options, and the shapes that flow from layer to layer.

Layers are numbered from 0, the `[net]` before them not counted, as darknet's own log and `[route]`
do. Every space is insignificant, lines that begin with # or ; are remarks, and of an option that
stands twice the first counts (darknet's parser.c and option_list.c).
"""

from collections.abc import Iterator, Mapping
import dataclasses
import re

from convert.files import UnsafeFile, short

Shape = tuple[int, int, int]  # channels, height, width

LENGTH_LIMIT = 1 << 20  # characters of a cfg
SIDE_LIMIT = 1 << 20  # of each axis
LONG = {
  "network": "net", "conv": "convolutional", "conn": "connected", "max": "maxpool",
  "avg": "avgpool", "lrn": "normalization", "soft": "softmax",
}  # fmt: skip
# Kinds whose output has the shape of their input.
SAME = frozenset(
  "activation batchnorm cost dropout iseg l2norm logistic normalization region sam scale_channels "
  "shortcut softmax yolo detection".split()
)


@dataclasses.dataclass(frozen=True)
class Section:
  """One [kind] with its options."""

  kind: str  # in the long form, "convolutional"
  options: Mapping[str, str]

  def integer(self, name: str, default: int) -> int:
    if name not in self.options:
      return default
    return int(self._leading(name, r"[-+]?\d{1,9}"))

  def integers(self, name: str) -> tuple[int, ...]:
    if name not in self.options:
      raise UnsafeFile(f"a [{self.kind}] of its cfg has no {name}")
    parts = self.options[name].rstrip(",").split(",")
    if not all(re.fullmatch(r"[-+]?\d{1,9}", part) for part in parts):
      raise UnsafeFile(f"a [{self.kind}] of its cfg has {name}={short(self.options[name])}")
    return tuple(map(int, parts))

  def numbers(self, name: str) -> tuple[float, ...]:
    """Such as anchors; () where there are none."""
    try:
      return tuple(float(part) for part in self.options.get(name, "").split(",") if part)
    except ValueError:
      raise UnsafeFile(
        f"a [{self.kind}] of its cfg has {name}={short(self.options[name])}, wanted numbers"
      ) from None

  def _leading(self, name: str, pattern: str) -> str:
    """The number that the text begins with, as C's atoi reads it."""
    found = re.match(pattern, self.options[name])
    if not found:
      raise UnsafeFile(
        f"a [{self.kind}] of its cfg has {name}={short(self.options[name])}, wanted a whole number"
      )
    return found[0]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A section below [net], and the shapes around it."""

  index: int
  section: Section
  before: Shape
  after: Shape


def parse(text: str) -> list[Section]:
  """The sections of a cfg; the first is "net". Raises UnsafeFile."""
  if len(text) > LENGTH_LIMIT:
    raise UnsafeFile(f"its cfg has {len(text)} characters, no network needs more than a million")
  sections: list[Section] = []
  for number, line in enumerate(text.splitlines(), start=1):
    line = re.sub(r"\s", "", line)
    if not line or line[0] in "#;":
      continue
    if line.startswith("["):
      kind = line.strip("[]")
      if not re.fullmatch(r"\w{1,32}", kind, re.ASCII):
        raise UnsafeFile(f"line {number} of its cfg is {short(line)}, wanted [kind]")
      sections.append(Section(LONG.get(kind, kind), {}))
      continue
    name, equals, value = line.partition("=")
    if not equals or not sections:
      raise UnsafeFile(f"line {number} of its cfg is {short(line)}, wanted [kind] or name=value")
    sections[-1].options.setdefault(name, value)
  if not sections or sections[0].kind != "net":
    raise UnsafeFile("its cfg does not begin with [net]; it is no network of darknet")
  return sections


def layers(sections: list[Section]) -> list[Layer]:
  """The layers of a parsed cfg with their shapes. Raises UnsafeFile."""
  net = sections[0]
  shape = tuple(net.integer(name, 0) for name in ("channels", "height", "width"))
  _check(shape, "[net]")
  done: list[Layer] = []
  for index, section in enumerate(sections[1:]):
    after = _after(section, shape, done)
    _check(after, f"layer {index} [{section.kind}]")
    done.append(Layer(index, section, shape, after))
    shape = after
  return done


def sources(layer: Layer) -> tuple[int, ...]:
  """Indices of the layers that a [route] joins, or that a [shortcut] adds to the one before."""
  name = "layers" if layer.section.kind == "route" else "from"
  return _absolute(layer.section.integers(name), layer.index)


def _absolute(indices: tuple[int, ...], index: int) -> tuple[int, ...]:
  found = tuple(i if i >= 0 else index + i for i in indices)
  if not all(0 <= i < index for i in found):
    raise UnsafeFile(f"layer {index} of its cfg refers to layers {short(indices)} not before it")
  return found


def _check(shape: Shape, where: str) -> None:
  if not all(0 < n <= SIDE_LIMIT for n in shape):
    raise UnsafeFile(f"{where} of its cfg has the impossible shape {shape}")


def _after(section: Section, before: Shape, done: list[Layer]) -> Shape:
  """The shape behind a layer, by darknet's own formulas."""
  c, h, w = before
  kind, size, stride = section.kind, section.integer("size", 1), section.integer("stride", 1)
  if stride < 1:
    raise UnsafeFile(f"layer {len(done)} of its cfg has stride={stride}")
  if kind == "convolutional":
    pad = size // 2 if section.integer("pad", 0) else section.integer("padding", 0)
    return section.integer("filters", 1), *((n + 2 * pad - size) // stride + 1 for n in (h, w))
  if kind == "local":
    less = 1 if section.integer("pad", 0) else size
    return section.integer("filters", 1), *((n - less) // stride + 1 for n in (h, w))
  if kind == "connected":
    return section.integer("output", 1), 1, 1
  if kind == "maxpool":
    size = section.integer("size", stride)
    pad = section.integer("padding", size - 1)
    return c, *((n + pad - size) // stride + 1 for n in (h, w))
  if kind == "avgpool":
    return c, 1, 1
  if kind == "crop":
    return c, section.integer("crop_height", 1), section.integer("crop_width", 1)
  if kind == "upsample":
    return c, h * section.integer("stride", 2), w * section.integer("stride", 2)
  if kind == "reorg":
    if section.integer("reverse", 0):
      return c // stride**2, h * stride, w * stride
    return c * stride**2, h // stride, w // stride
  if kind == "route":
    return _joined(section, done)
  if kind not in SAME:
    raise UnsafeFile(f"layer {len(done)} of its cfg is a [{kind}], which is not known here")
  return before


def _joined(section: Section, done: list[Layer]) -> Shape:
  """Channels side by side; with `groups`, of each source only the group `group_id`."""
  shapes = [done[i].after for i in _absolute(section.integers("layers"), len(done))]
  groups = section.integer("groups", 1)
  if groups < 1 or any(shape[1:] != shapes[0][1:] for shape in shapes):
    raise UnsafeFile(f"layer {len(done)} of its cfg joins maps of other sizes: {short(shapes)}")
  return sum(shape[0] // groups for shape in shapes), *shapes[0][1:]


def with_weights(done: list[Layer]) -> Iterator[Layer]:
  """Those whose numbers stand in the `.weights`, in its order."""
  kinds = ("convolutional", "connected", "local", "batchnorm")
  return (layer for layer in done if layer.section.kind in kinds)
