"""Scenes of photographed cut-outs on photographed backgrounds, with all that is known of them.

One set serves detection, segmentation, captions and retrieval:

  images/SPLIT/000000.jpg              train, val, test
  annotations/instances_SPLIT.json     COCO: boxes, masks as uncompressed run lengths
  annotations/captions_SPLIT.json      COCO: five captions of each picture
  karpathy.json                        the same captions as Karpathy's split files have them
  labels/SPLIT/000000.txt, data.yaml   YOLO: class, then cx cy w h as shares of the picture
  masks/SPLIT/000000.png               as VOC's: 0 background, class + 1, 255 around each thing
  classes.txt                          a class a line; the background is none

The cut-outs are those of Debian's tuxpaint-stamps-default, under the GPL: scenes are made where
they are used and never given away.  In val known cut-outs stand anew; those of test, and its
backgrounds, are in no other split.  A scene is a function of seed, split and number.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from functools import cached_property
import json
from pathlib import Path
import re

import cv2
import numpy as np
from PIL import Image

from train.data import folders, masks
from zoo.text import vocabulary

SPLITS = ("train", "val", "test")
# Class -> folders below the stamps. Cartoons lie in folders of that name.
CLASSES = {
  "bird": ("animals/birds",),
  "fish": ("animals/fish",),
  "insect": ("animals/insects",),
  "hoofed animal": tuple(f"animals/mammals/{kind}" for kind in ("bovines", "deer", "equines")),
  "fruit": ("food/fruit",),
  "vegetable": ("food/vegetables",),
  "flower": ("plants/flowers",),
  "tool": ("household/tools",),
  "vehicle": ("vehicles",),
  "instrument": ("hobbies/music",),
  "hat": ("clothes/hats",),
  "road sign": ("town/roadsigns",),
}
# Not what their folder says, or only a part of it.
STRANGERS = (
  "lobster", "shrimp", "Brown_slug", "Woodlouse", "7spoke256", "wheel_tractor", "sedan_police",
)  # fmt: skip
HELD_OUT = 5  # of so many cut-outs of a class, and of so many backgrounds, one is kept for the test
LEAST = 24  # pixels of a cut-out's shorter side
COVERED = 0.3  # share of a thing that others may hide
GET = (
  "On Debian: apt-get download {package} && dpkg -x {package}_*.deb FOLDER, then "
  "--{flag}=FOLDER/usr/share/{where}"
)


@dataclasses.dataclass(frozen=True)
class CutOut:
  path: Path
  label: int
  name: str  # a noun phrase without its article, such as "crowned crane"; the class without one
  mirrors: bool  # whether it may be turned left for right

  @cached_property
  def pixels(self) -> np.ndarray:
    """[h w 4] uint8, as small as its opaque part."""
    image = Image.open(self.path).convert("RGBA")
    return np.asarray(image.crop(image.getchannel("A").getbbox()))

  @cached_property
  def color(self) -> str:
    """Of its mean, in a word."""
    solid = self.pixels[self.pixels[..., 3] > 127][:, :3]
    return color_name(solid.mean(0))


@dataclasses.dataclass(frozen=True)
class Thing:
  """A cut-out where it stands; what hides it is left out of mask and box."""

  cut_out: CutOut
  mask: np.ndarray  # [h w] bool
  whole: int  # pixels, with those that are hidden

  @property
  def label(self) -> int:
    return self.cut_out.label

  @cached_property
  def box(self) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of what is seen."""
    rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

  @property
  def middle(self) -> np.ndarray:
    return np.array([self.box[0] + self.box[2], self.box[1] + self.box[3]]) / 2


@dataclasses.dataclass(frozen=True)
class Scene:
  image: np.ndarray  # [size size 3] uint8
  things: tuple[Thing, ...]  # from the back to the front
  captions: tuple[str, ...]

  @property
  def mask(self) -> np.ndarray:
    """[size size] uint8: 0 background, class + 1, a border of 255 around each thing."""
    mask = np.zeros(self.image.shape[:2], np.uint8)
    for thing in self.things:
      mask[thing.mask] = thing.label + 1
    for thing in self.things:
      solid = thing.mask.astype(np.uint8)
      edge = cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
      mask[edge > 0] = masks.IGNORED
    return mask


@dataclasses.dataclass(frozen=True)
class Composer:
  """Makes scenes out of one split's cut-outs and backgrounds."""

  cut_outs: tuple[tuple[CutOut, ...], ...]  # of each class
  backgrounds: tuple[np.ndarray, ...]
  size: int
  most: int = 4  # things of a scene

  def scene(self, key: Sequence[int]) -> Scene:
    """The same for the same `key`."""
    rng = np.random.default_rng(key)
    canvas = self._background(rng).astype(np.float32)
    count, things = int(rng.integers(1, self.most + 1)), []
    labels = rng.permutation(len(self.cut_outs))[:count]
    if count > 2 and rng.random() < 0.5:
      labels[1] = labels[0]  # two of a kind
    for label in labels:
      some = self.cut_outs[label]
      cut_out = some[rng.integers(len(some))]
      sprite = _turned(cut_out, rng, self.size, count)
      for _ in range(20):  # tries to find a place
        place = [int(rng.integers(self.size - n + 1)) for n in sprite.shape[:2]]
        if (left := _hidden(things, sprite, place)) is not None:
          mask = _stamped(canvas, sprite, place)
          things = [*left, Thing(cut_out, mask, int(mask.sum()))]
          break
    things = tuple(things)
    return Scene(np.rint(canvas).astype(np.uint8), things, captions(things, rng))

  def _background(self, rng) -> np.ndarray:
    picture = self.backgrounds[rng.integers(len(self.backgrounds))]
    side = int(rng.uniform(0.4, 1) * min(picture.shape[:2]))
    top, left = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    cut = picture[top : top + side, left : left + side]
    cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    return cv2.resize(cut, (self.size, self.size), interpolation=cv2.INTER_AREA)


def _turned(cut_out: CutOut, rng, size: int, count: int) -> np.ndarray:
  """[h w 4] float32 of the cut-out as it is pasted, alpha in 0..1, colours multiplied by it."""
  pixels = cut_out.pixels.astype(np.float32)
  pixels[..., 3] /= 255
  pixels[..., :3] *= pixels[
    ..., 3:
  ]  # so that what is transparent lends no colour to its neighbours
  if cut_out.mirrors and rng.random() < 0.5:
    pixels = pixels[:, ::-1]
  height, width = pixels.shape[:2]
  # Never enlarged by more than a half: such things would be known by their blur.
  share = rng.uniform(0.35, 0.75) if count < 3 else rng.uniform(0.25, 0.5)
  scale = min(share * size / max(height, width), 1.5)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  pixels = _rotated(pixels, rng.uniform(-15, 15))
  pixels[..., :3] = np.clip(pixels[..., :3] * rng.uniform(0.8, 1.2), 0, 255 * pixels[..., 3:])
  return pixels


def _rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
  height, width = pixels.shape[:2]
  turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
  cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
  w, h = int(height * sin + width * cos), int(height * cos + width * sin)
  turn[:, 2] += (w - width) / 2, (h - height) / 2
  return cv2.warpAffine(pixels, turn, (max(w, 1), max(h, 1)), flags=cv2.INTER_LINEAR)


def _hidden(things: Sequence[Thing], sprite: np.ndarray, place) -> list[Thing] | None:
  """`things` behind a sprite, or None where too little of one would be left to see."""
  out, solid = [], _solid(sprite)
  for thing in things:
    mask = thing.mask.copy()
    mask[place[0] : place[0] + solid.shape[0], place[1] : place[1] + solid.shape[1]] &= ~solid
    if mask.sum() < (1 - COVERED) * thing.whole:
      return None
    out.append(dataclasses.replace(thing, mask=mask))
  return out


def _solid(sprite: np.ndarray) -> np.ndarray:
  return sprite[..., 3] >= 0.5


def _stamped(canvas: np.ndarray, sprite: np.ndarray, place) -> np.ndarray:
  """Pastes into `canvas`; returns where, [h w] bool."""
  window = tuple(slice(start, start + n) for start, n in zip(place, sprite.shape))
  canvas[window] = canvas[window] * (1 - sprite[..., 3:]) + sprite[..., :3]
  mask = np.zeros(canvas.shape[:2], bool)
  mask[window] = _solid(sprite)
  return mask


def color_name(rgb) -> str:
  """One of eleven words for a mean colour, 0..255."""
  # Bounds found by looking at the cut-outs.
  hue, saturation, value = cv2.cvtColor(
    np.float32(np.asarray(rgb) / 255).reshape(1, 1, 3), cv2.COLOR_RGB2HSV
  )[0, 0]
  if value < 0.2:
    return "black"
  if saturation < 0.15:
    return "white" if value > 0.75 else "grey"
  if hue < 45 and (value < 0.6 or saturation < 0.4):
    return "brown"
  bounds = ((14, "red"), (42, "orange"), (70, "yellow"), (165, "green"), (255, "blue"),
            (300, "purple"), (335, "pink"), (361, "red"))  # fmt: skip
  return next(name for bound, name in bounds if hue < bound)


def captions(things: Sequence[Thing], rng) -> tuple[str, ...]:
  """Five sentences about a scene: what is there, in which colours, how many, and where."""
  if not things:
    return ("an empty place",) * 5
  one = things[rng.integers(len(things))]
  size = len(one.mask)
  if len(things) == 1:
    first, relation, other = one, None, None
  else:
    first, other = (things[i] for i in rng.permutation(len(things))[:2])
    relation = {"left": "to the left of", "right": "to the right of"}
  simple = [_phrase(t.cut_out) for t in things]
  where = f"{_phrase(one.cut_out)} {_corner(one.middle / size)}"
  if other is None:
    return (
      simple[0], where, f"there is {where}", f"a picture of {simple[0]}",
      f"{_article(one.cut_out.name)} {_corner(one.middle / size)}",
    )  # fmt: skip
  side = _side(first.middle, other.middle)
  words = relation.get(side, side)
  return (
    f"{_phrase(first.cut_out)} {words} {_phrase(other.cut_out)}",
    _counted(things),
    f"there is {where}",
    f"a picture of {_list(simple)}",
    f"{_article(first.cut_out.name)} {words} {_article(other.cut_out.name)}",
  )


def _phrase(cut_out: CutOut) -> str:
  return _article(f"{cut_out.color} {tuple(CLASSES)[cut_out.label]}")


def _article(noun: str) -> str:
  return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _corner(at) -> str:
  """Where a point, in shares of the picture, lies."""
  across = "left" if at[0] < 0.38 else "right" if at[0] > 0.62 else ""
  down = "top" if at[1] < 0.38 else "bottom" if at[1] > 0.62 else ""
  if across and down:
    return f"in the {down} {across} corner"
  if across:
    return f"on the {across}"
  return f"at the {down}" if down else "in the middle"


def _side(of, other) -> str:
  x, y = of - other
  if abs(x) > abs(y):
    return "left" if x < 0 else "right"
  return "above" if y < 0 else "below"


def _counted(things: Sequence[Thing]) -> str:
  labels = [thing.label for thing in things]
  words = {1: "one", 2: "two", 3: "three", 4: "four"}
  parts = []
  for label in dict.fromkeys(labels):
    n, name = labels.count(label), tuple(CLASSES)[label]
    plural = name if n == 1 or name in ("fish", "fruit") else f"{name}s"
    parts.append(f"{words.get(n, n)} {plural}")
  return _list(parts)


def _list(parts: Sequence[str]) -> str:
  return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def composers(stamps: Path, backgrounds: Path, size: int) -> dict[str, Composer]:
  """Of each split.

  Raises:
    ValueError: all that the folders lack, and where it comes from.
  """
  found, faults = cut_outs(stamps), []
  if lacking := [name for name, some in zip(CLASSES, found) if len(some) < 2]:
    faults.append(
      f"{stamps} has no two cut-outs of {', '.join(lacking)}. "
      + GET.format(package="tuxpaint-stamps-default", flag="stamps", where="tuxpaint/stamps")
    )
  photographs = sorted(
    p for p in Path(backgrounds).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")
  )
  if len(photographs) < 2:
    faults.append(
      f"{backgrounds} has {len(photographs)} JPEG photographs, and two are the least. "
      + GET.format(package="mate-backgrounds", flag="backgrounds", where="backgrounds")
    )
  if faults:
    raise ValueError("\n".join(faults))
  kept, held = zip(*(_divided(some, lambda c: c.path.stem) for some in found))
  scenery = [
    tuple(_photograph(path, 4 * size) for path in part)
    for part in _divided(photographs, lambda path: path.name)
  ]
  known = tuple(map(tuple, kept)), scenery[0]
  new = tuple(map(tuple, held)), scenery[1]
  return {split: Composer(*(new if split == "test" else known), size) for split in SPLITS}


def _divided(some: Sequence, name) -> tuple[list, list]:
  """(what is kept, what is held out): by the hash of names, so that it never depends on a seed."""
  order = sorted(some, key=lambda item: folders.digest(0, name(item)))
  n = max(1, round(len(order) / HELD_OUT))
  return order[n:], order[:n]


def _photograph(path: Path, side: int) -> np.ndarray:
  """At least `side` pixels wide and high, if it has as many."""
  with Image.open(path) as image:
    image.draft("RGB", (side, side))
    image = image.convert("RGB")
    scale = side / min(image.size)
    if scale < 1:
      image = image.resize([round(n * scale) for n in image.size], Image.Resampling.BOX)
    return np.asarray(image)


def cut_outs(stamps: Path) -> list[tuple[CutOut, ...]]:
  """The photographed cut-outs of each class, sorted by path."""
  found = []
  for label, (name, places) in enumerate(CLASSES.items()):
    paths = sorted(
      p for place in places for p in (Path(stamps) / place).rglob("*.png")
      if "cartoon" not in p.parts and p.stem not in STRANGERS and not p.stem.endswith("_mirror")
    )  # fmt: skip
    found.append(tuple(
      CutOut(path, label, _noun(path) or name, "nomirror" not in _text(path.with_suffix(".dat")))
      for path in paths if _usable(path)
    ))  # fmt: skip
  return found


def _usable(path: Path) -> bool:
  """Whether it is transparent around something that is large enough."""
  with Image.open(path) as image:
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
  solid = alpha > 127
  return bool(min(alpha.shape) >= LEAST and 0.03 < solid.mean() < 0.99)


def _noun(path: Path) -> str:
  """Out of a description such as "A crowned crane."; "" if it is more than a name."""
  line = _text(path.with_suffix(".txt")).partition("\n")[0].lower()
  match = re.fullmatch(r"an? ([a-z][a-z ’'-]*)\.?", line.strip())
  words = vocabulary.words(match[1]) if match else []
  return " ".join(words) if len(words) <= 3 else ""


def _text(path: Path) -> str:
  return path.read_text("utf-8", "replace") if path.exists() else ""


def write(folder: Path, composers: dict[str, Composer], counts: dict[str, int], seed: int) -> None:
  """So many scenes of each split into an empty folder, laid out as the module says."""
  tables = Tables()
  for number, (split, count) in enumerate(counts.items()):
    for kind in ("images", "labels", "masks"):
      (folder / kind / split).mkdir(parents=True)
    for i in range(count):
      scene, name = composers[split].scene((seed, number, i)), f"{i:06d}"
      Image.fromarray(scene.image).save(folder / f"images/{split}/{name}.jpg", quality=92)
      (folder / f"masks/{split}/{name}.png").write_bytes(masks.indexed(scene.mask))
      (folder / f"labels/{split}/{name}.txt").write_text(_yolo(scene))
      tables.add(split, name, scene)
  (folder / "annotations").mkdir()
  for name, content in tables.files():
    (folder / name).write_text(json.dumps(content, separators=(",", ":")))
  (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
  names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
  paths = "".join(f"{split}: images/{split}\n" for split in counts)
  (folder / "data.yaml").write_text(f"path: .\n{paths}names:\n{names}")


class Tables:
  """The JSON files of a set, as they grow."""

  def __init__(self):
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    self._categories = categories
    self._images: dict[str, list] = {}
    self._instances: dict[str, list] = {}
    self._captions: dict[str, list] = {}
    self._karpathy: list = []
    self._sentences = 0

  def add(self, split: str, name: str, scene: Scene) -> None:
    number = len(self._karpathy) + 1  # of pictures over all splits
    size, file = len(scene.image), f"{name}.jpg"
    self._images.setdefault(split, []).append(
      {"id": number, "file_name": file, "width": size, "height": size}
    )
    instances = self._instances.setdefault(split, [])
    for thing in scene.things:
      x0, y0, x1, y1 = thing.box
      instances.append({
        "id": len(instances) + 1, "image_id": number, "category_id": thing.label + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(thing.mask.sum()), "iscrowd": 0,
        "segmentation": {"size": [size, size], "counts": run_lengths(thing.mask)},
      })  # fmt: skip
    some = self._captions.setdefault(split, [])
    ids = [self._sentences + i for i in range(len(scene.captions))]
    some += [{"id": i, "image_id": number, "caption": c} for i, c in zip(ids, scene.captions)]
    self._sentences += len(ids)
    self._karpathy.append({
      "filepath": f"images/{split}", "filename": file, "imgid": number - 1, "cocoid": number,
      "split": split, "sentids": ids,
      "sentences": [
        {"raw": c, "tokens": vocabulary.words(c), "imgid": number - 1, "sentid": i}
        for i, c in zip(ids, scene.captions)
      ],
    })  # fmt: skip

  def files(self) -> Iterator[tuple[str, dict]]:
    for split, images in self._images.items():
      yield f"annotations/instances_{split}.json", {
        "images": images, "annotations": self._instances[split], "categories": self._categories,
      }  # fmt: skip
      yield f"annotations/captions_{split}.json", {
        "images": images, "annotations": self._captions[split],
      }  # fmt: skip
    yield "karpathy.json", {"dataset": "scenes", "images": self._karpathy}


def run_lengths(mask: np.ndarray) -> list[int]:
  """COCO's: of zeros, of ones, of zeros ... down the columns."""
  flat = np.concatenate([[False], mask.ravel("F"), [False]])
  edges = np.flatnonzero(flat[1:] != flat[:-1])  # a beginning and an end for each run of ones
  lengths = np.diff(np.concatenate([[0], edges, [mask.size]]))
  return lengths.tolist() if lengths[-1] else lengths[:-1].tolist()


def _yolo(scene: Scene) -> str:
  size, lines = len(scene.image), []
  for thing in scene.things:
    x0, y0, x1, y1 = (v / size for v in thing.box)
    lines.append(
      f"{thing.label} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"
    )
  return "".join(lines)
