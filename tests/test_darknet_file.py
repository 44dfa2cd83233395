"""darknet's `.cfg` and `.weights`: the order of the numbers, the shapes of every kind of layer."""

from pathlib import Path
import struct

import numpy as np
import pytest

from convert import darknet_cfg, readers
from convert.files import UnsafeFile

CFG = """
[net]
height = 21
width=16
channels=3
; a remark
[convolutional]
batch_normalize=1
filters = 8 # as C reads it
size=3
stride=2
pad=1
filters=9
[max]
size=2
stride=2
[conv]
filters=4
groups=2
size=3
padding=1
[route]
layers = -1, 1
[batchnorm]
[local]
filters=2
size=3
pad=1
[connected]
batch_normalize=1
output=5
[conn]
output=6
[soft]
"""
ARRAYS = [  # in the order of the file, by darknet's parser.c
  ("0.bn.bias", (8,)), ("0.bn.weight", (8,)), ("0.bn.running_mean", (8,)),
  ("0.bn.running_var", (8,)), ("0.conv.weight", (8, 3, 3, 3)),
  ("2.conv.bias", (4,)), ("2.conv.weight", (4, 4, 3, 3)),
  ("4.bn.weight", (12,)), ("4.bn.running_mean", (12,)), ("4.bn.running_var", (12,)),
  ("5.local.bias", (2, 6, 4)), ("5.local.weight", (6, 4, 2, 12, 3, 3)),
  ("6.bn.bias", (5,)), ("6.fc.weight", (5, 48)), ("6.bn.weight", (5,)),
  ("6.bn.running_mean", (5,)), ("6.bn.running_var", (5,)),
  ("7.fc.bias", (6,)), ("7.fc.weight", (6, 5)),
]  # fmt: skip
HEADER = struct.pack("<3iq", 0, 2, 0, 32_013_312)


def write(folder: Path, body: np.ndarray, cfg: str = CFG, header: bytes = HEADER) -> Path:
  (folder / "x.cfg").write_text(cfg)
  path = folder / "x.weights"
  path.write_bytes(header + body.astype("<f4").tobytes())
  return path


def numbers() -> np.ndarray:
  return np.arange(sum(np.prod(shape) for _, shape in ARRAYS), dtype=np.float32)


@pytest.mark.parametrize(
  "header", [HEADER, struct.pack("<4i", 0, 1, 0, 5), struct.pack("<3iq", 0, 2, 5, 0)]
)
def test_the_numbers_lie_in_darknets_order(tmp_path, header):
  got, body = readers.read(write(tmp_path, numbers(), header=header)), numbers()
  assert [(name, array.shape) for name, array in got.items()] == ARRAYS
  for name, array in got.items():
    want, body = body[: array.size], body[array.size :]
    np.testing.assert_array_equal(array.ravel(), want, name)
    assert not array.flags.owndata and not array.flags.writeable


def test_backbones_end_after_a_whole_layer_and_nothing_else_does(tmp_path):
  sizes = np.cumsum([0] + [np.prod(shape) for _, shape in ARRAYS])
  whole = {5, 7, 10, 12, 17, 19}  # arrays
  for count, size in enumerate(sizes):
    path = write(tmp_path, numbers()[:size])
    if count in whole:
      assert len(readers.read(path)) == count
    else:
      with pytest.raises(UnsafeFile, match="cut off"):
        readers.read(path)
  with pytest.raises(UnsafeFile, match="do not belong"):
    readers.read(write(tmp_path, np.append(numbers(), 0)))
  write(tmp_path, numbers())
  (tmp_path / "x.cfg").unlink()
  with pytest.raises(UnsafeFile, match="put their cfg at .*x.cfg"):
    readers.read(tmp_path / "x.weights")


SHAPES = {  # (channels, height, width) behind each after (4, 13, 10), by darknet's formulas
  "[maxpool]\nsize=2\nstride=2": (4, 7, 5),
  "[maxpool]\nsize=2\nstride=1": (4, 13, 10),
  "[maxpool]\nstride=3": (4, 5, 4),
  "[avgpool]": (4, 1, 1),
  "[crop]\ncrop_height=7\ncrop_width=6": (4, 7, 6),
  "[upsample]": (4, 26, 20),
  "[reorg]\nstride=2\nreverse=1": (1, 26, 20),
  "[local]\nfilters=3\nsize=3\nstride=2": (3, 6, 4),
  "[convolutional]\nfilters=6\nsize=5\nstride=2\npad=1": (6, 7, 5),
  "[route]\nlayers=-1\ngroups=2\ngroup_id=1": (2, 13, 10),
  "[shortcut]\nfrom=-1": (4, 13, 10),
  "[yolo]\nmask=0,1\nanchors=10,13,  16,30": (4, 13, 10),
}


@pytest.mark.parametrize("layer", SHAPES)
def test_shapes(layer):
  text = f"[net]\nchannels=3\nheight=13\nwidth=10\n[convolutional]\nfilters=4\n{layer}\n"
  *_, last = darknet_cfg.layers(darknet_cfg.parse(text))
  assert last.after == SHAPES[layer]
  if last.section.kind == "yolo":
    assert last.section.numbers("anchors") == (10, 13, 16, 30)
  if last.section.kind in ("route", "shortcut"):
    assert darknet_cfg.sources(last) == (0,)


NET = "[net]\nchannels=3\nheight=13\nwidth=10\n"
BAD = {
  "": "begin with",
  "a=1": "line 1",
  "[convolutional]\nfilters=1": "begin with",
  NET + "filters": "line 5",
  NET + "[convolutional]\nfilters=": "whole number",
  NET + "[convolutional]\nfilters=-1": "impossible shape",
  NET + "[convolutional]\nfilters=999999999": "impossible shape",
  NET + "[convolutional]\nsize=0\nfilters=1": "size=0",
  NET + "[convolutional]\nstride=0": "stride=0",
  NET + "[convolutional]\nfilters=4\ngroups=2": "2 groups of 3",
  NET + "[convolutional]\nfilters=" + "9" * 5000: "impossible shape",
  NET + "[route]\nlayers=-1": "not before",
  NET + "[dropout]\n[route]\nlayers=1": "not before",
  NET + "[dropout]\n[route]\nlayers=a": "has layers",
  NET + "[dropout]\n[route]": "has no layers",
  NET + "[dropout]\n[maxpool]\nstride=2\n[route]\nlayers=-1,-2": "other sizes",
  NET + "[lstm]\noutput=3": "not known",
  NET + "[dropout]": "no layer with weights",
  NET + "#" * (1 << 20): "characters",
  "[net]\nheight=2": "impossible shape",
}


@pytest.mark.parametrize("cfg", BAD, ids=range(len(BAD)))
def test_cfgs_that_are_none(tmp_path, cfg):
  with pytest.raises(UnsafeFile, match=BAD[cfg]) as error:
    readers.read(write(tmp_path, numbers(), cfg))
  assert len(str(error.value)) < 600 and str(error.value).isprintable()
