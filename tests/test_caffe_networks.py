"""Caffe's networks by their authors' names of layers: OpenCV runs them beside ours."""

from pathlib import Path

import jax
import numpy as np
import pytest

from convert import engine, readers, rules
from tests import graphs, opencv4, parity
import zoo
from zoo import catalog, traces
from zoo.classify.googlenet import WIDTHS

RNG = np.random.default_rng(0)


class Net:
  """A network as text, layer upon layer, and its random blobs."""

  def __init__(self, size: int):
    self.text = [f'input: "data" input_dim: 1 input_dim: 3 input_dim: {size} input_dim: {size}']
    self.layers, self.top, self.channels = [], "data", 3

  def add(self, kind: str, name: str, params: str = "", bottoms=(), top: str = "") -> None:
    bottoms, top = bottoms or (self.top,), top or name
    wires = "".join(f' bottom: "{bottom}"' for bottom in bottoms)
    self.text.append(f'layer {{ name: "{name}" type: "{kind}"{wires} top: "{top}" {params} }}')
    self.top = top

  def relu(self, name: str) -> None:
    self.add("ReLU", f"relu_{name}", top=self.top)

  def blobs(self, kind: str, name: str, shape: tuple[int, ...], bias=True, gain=1.0) -> None:
    weight = gain * RNG.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
    pairs = (weight, shape), (0.1 * RNG.normal(size=shape[0]), shape[:1])
    made = [graphs.blob(a.astype("<f4").tobytes(), dims) for a, dims in pairs[: 1 + bias]]
    self.layers.append(graphs.layer(*made, name=name.encode(), kind=kind.encode()))

  def conv(
    self, name: str, out: int, kernel: int, stride=1, pad=0, group=1, bottom="", norm=(), bias=True,
    gain=1.0,
  ) -> None:  # fmt: skip
    """`norm` names layers of statistics and of scales; a ReLU follows where it is (), not None."""
    self.add(
      "Convolution", name,
      f"convolution_param {{ num_output: {out} kernel_size: {kernel} stride: {stride} pad: {pad} "
      f"group: {group} bias_term: {str(bias).lower()} }}", (bottom,) if bottom else (),
    )  # fmt: skip
    self.blobs("Convolution", name, (out, self.channels // group, kernel, kernel), bias, gain)
    if norm:
      self.norm(*norm, out)
    elif norm is not None:
      self.relu(name)
    if not bottom:
      self.channels = out

  def norm(self, statistics: str, scales: str, channels: int, top: str = "") -> None:
    param = "batch_norm_param { use_global_stats: true }"
    self.add("BatchNorm", statistics, param, top=top or self.top)
    self.add("Scale", scales, "scale_param { bias_term: true }", top=self.top)
    mean, shift = 0.1 * RNG.normal(size=(2, channels))
    var, scale = RNG.uniform(0.5, 1.5, size=(2, channels))
    for kind, name, some in (
      ("BatchNorm", statistics, (2 * mean, 2 * var, np.full(1, 2.0))),  # sums over two batches
      ("Scale", scales, (scale, shift)),
    ):
      made = [graphs.blob(a.astype("<f4").tobytes(), a.shape) for a in some]
      self.layers.append(graphs.layer(*made, name=name.encode(), kind=kind.encode()))

  def pool(self, name: str, kernel: int = 3, kind: str = "MAX", more: str = "") -> None:
    self.add(
      "Pooling", name, f"pooling_param {{ pool: {kind} kernel_size: {kernel} stride: 2 {more} }}"
    )  # fmt: skip

  def pool_all(self, name: str) -> None:
    self.add("Pooling", name, "pooling_param { pool: AVE global_pooling: true }")

  def dense(self, name: str, out: int, cells: int = 1) -> None:
    self.add("InnerProduct", name, f"inner_product_param {{ num_output: {out} }}")
    self.blobs("InnerProduct", name, (out, cells * self.channels))
    self.channels = out

  def write(self, folder: Path) -> tuple[Path, Path]:
    files = folder / "net.prototxt", folder / "net.caffemodel"
    files[0].write_text("\n".join(self.text))
    files[1].write_bytes(graphs.caffe(*self.layers))
    return files


def vgg(depths, widths) -> Net:
  net = Net(224)
  for s, (depth, width) in enumerate(zip(depths, widths), start=1):
    for i in range(1, depth + 1):
      net.conv(f"conv{s}_{i}", width, 3, pad=1)
    net.pool(f"pool{s}", 2)
  return classified(net, 49)


def classified(net: Net, cells: int) -> Net:
  net.dense("fc6", 64, cells)
  net.relu("fc6")
  net.dense("fc7", 64)
  net.relu("fc7")
  net.dense("fc8", 10)
  return net


def alexnet(widths) -> Net:
  net = Net(227)
  kernels, pads, groups = (11, 5, 3, 3, 3), (0, 2, 1, 1, 1), (1, 2, 1, 2, 2)
  for i, (width, kernel, pad, group) in enumerate(zip(widths, kernels, pads, groups), start=1):
    net.conv(f"conv{i}", width, kernel, 4 if i == 1 else 1, pad, group)
    if i < 3:
      net.add("LRN", f"norm{i}", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
    if i in (1, 2, 5):
      net.pool(f"pool{i}")
  return classified(net, 36)


def squeezenet(width: int, kernel: int, pools: tuple[int, ...]) -> Net:
  net = Net(131)
  net.conv("conv1", width, kernel, 2)
  for i in range(2, 10):
    if i in pools:
      net.pool(f"pool{i - 1}")
    squeeze = 16 * (i // 2)
    net.conv(f"fire{i}/squeeze1x1", squeeze, 1)
    sides = [f"fire{i}/expand1x1", f"fire{i}/expand3x3"]
    for pad, side in enumerate(sides):
      net.conv(side, 4 * squeeze, 2 * pad + 1, pad=pad, bottom=f"fire{i}/squeeze1x1")
    net.add("Concat", f"fire{i}/concat", "", sides)
    net.channels = 8 * squeeze
  net.conv("conv10", 10, 1)
  net.pool_all("pool10")
  return net


def resnet(depths: tuple[int, ...], letters: bool, width: int) -> Net:
  """He's; the first convolution has a bias where blocks have letters alone."""
  net = Net(97)
  net.conv("conv1", 64, 7, 2, 3, norm=("bn_conv1", "scale_conv1"), bias=letters)
  net.relu("conv1")
  net.pool("pool1")
  for s, depth in enumerate(depths, start=2):
    inner = width * 2 ** (s - 2)
    for i in range(depth):
      block = f"{s}{chr(ord('a') + i)}" if letters or s == 2 or not i else f"{s}b{i}"
      stride, source, sides = (2 if s > 2 and i == 0 else 1), net.top, []
      norm = lambda branch, block=block: (
        f"bn{block}_branch{branch}",
        f"scale{block}_branch{branch}",
      )
      if i == 0:
        net.conv(f"res{block}_branch1", 4 * inner, 1, stride, norm=norm("1"), bottom=source,
                 bias=False)  # fmt: skip
        sides.append(net.top)
        net.top = source
      for branch, out, kernel, step in (("2a", inner, 1, stride), ("2b", inner, 3, 1),
                                        ("2c", 4 * inner, 1, 1)):  # fmt: skip
        net.conv(f"res{block}_branch{branch}", out, kernel, step, kernel // 2, norm=norm(branch),
                 bias=False)  # fmt: skip
        if branch != "2c":
          net.relu(f"{block}{branch}")
      net.add("Eltwise", f"res{block}", "", (*(sides or [source]), net.top))
      net.relu(block)
  net.pool_all("pool5")
  net.dense("fc1000", 10)
  return net


def seresnet(depths: tuple[int, ...], groups: int, wide: bool = False) -> Net:
  """The authors': what their own Axpy layer does is a product of two layers and a sum."""
  net, norm = Net(97), lambda name: (f"{name}/bn", f"{name}/bn/scale")
  stem = (("conv1/7x7_s2", 64, 7, 2),)
  if wide:
    stem = ("conv1_1/3x3_s2", 64, 3, 2), ("conv1_2/3x3", 64, 3, 1), ("conv1_3/3x3", 128, 3, 1)
  for name, width, kernel, stride in stem:
    net.conv(name, width, kernel, stride, kernel // 2, norm=norm(name), bias=False)
    net.relu(name)
  net.pool("pool1/3x3_s2")
  for s, depth in enumerate(depths, start=2):
    out = 64 * 2**s
    inner = out if wide else out // 4 if groups == 1 else out // 2
    for i in range(1, depth + 1):
      block, stride, source, before = f"conv{s}_{i}", 1 + (s > 2 and i == 1), net.top, net.channels
      first, second = (stride, 1) if groups == 1 else (1, stride)
      for part, width, kernel, step, group in (
        ("1x1_reduce", inner // (1 + wide), 1, first, 1), ("3x3", inner, 3, second, groups),
        ("1x1_increase", out, 1, 1, 1),
      ):  # fmt: skip
        name = f"{block}_{part}"
        net.conv(name, width, kernel, step, kernel // 2, group, norm=norm(name), bias=False)
        if part != "1x1_increase":
          net.relu(name)
      grown = net.top
      net.pool_all(f"{block}_global_pool")
      net.conv(f"{block}_1x1_down", out // 16, 1)
      net.conv(f"{block}_1x1_up", out, 1, norm=None, gain=1e-3)  # so that gates are half open
      net.add("Sigmoid", f"{block}_prob", top=net.top)
      net.add("Scale", f"{block}_times", "scale_param { axis: 0 }", (grown, net.top))
      gated = net.top
      if i == 1:
        net.top, net.channels = source, before
        name = f"{block}_1x1_proj"
        kernel = 3 if wide and stride == 2 else 1
        net.conv(name, out, kernel, stride, kernel // 2, norm=norm(name), bias=False)
        source = net.top
      net.add("Eltwise", block, "", (source, gated))
      net.relu(block)
  net.pool_all("pool5/7x7_s1")
  net.dense("classifier", 10)
  return net


def mobilenet(width: float) -> Net:
  net, norm = Net(97), lambda name: (f"{name}/bn", f"{name}/scale")

  def conv(name, out, kernel, stride=1, group=1):
    net.conv(name, out, kernel, stride, kernel // 2, group, norm=norm(name), bias=False)
    net.relu(name)

  conv("conv1", int(32 * width), 3, 2)
  plan = (("2_1", 64, 1), ("2_2", 128, 2), ("3_1", 128, 1), ("3_2", 256, 2), ("4_1", 256, 1),
          ("4_2", 512, 2), *((f"5_{i}", 512, 1) for i in range(1, 6)), ("5_6", 1024, 2),
          ("6", 1024, 1))  # fmt: skip
  for name, out, stride in plan:
    conv(f"conv{name}/dw", net.channels, 3, stride, net.channels)
    conv(f"conv{name}/sep", int(out * width), 1)
  net.pool_all("pool6")
  net.conv("fc7", 10, 1, norm=None)
  return net


def mobilenet2() -> Net:
  """As deep, and as wide behind its 1x1 convolutions, as theirs; it ends a quarter as wide."""
  net = Net(97)

  def conv(name, out, kernel=1, stride=1, group=1, act=True):
    norm = f"{name}/bn", f"{name}/scale"
    net.conv(name, out, kernel, stride, kernel // 2, group, norm=norm, bias=False)
    if act:
      net.relu(name)

  conv("conv1", 8, 3, 2)
  plan = (((2, 1), 8, 1, 1), ((2, 2), 8, 6, 2), ((3, 1), 8, 6, 1), ((3, 2), 8, 6, 2),
          *(((4, i), 8 if i < 3 else 16 if i < 7 else 24, 6, 1 + (i == 7)) for i in range(1, 8)),
          ((5, 1), 24, 6, 1), ((5, 2), 24, 6, 1), ((5, 3), 40, 6, 2),
          ((6, 1), 40, 6, 1), ((6, 2), 40, 6, 1), ((6, 3), 80, 6, 1))  # fmt: skip
  for (s, i), out, widen, stride in plan:
    name, source, before = f"conv{s}_{i}", net.top, net.channels
    conv(f"{name}/expand", before * widen)
    conv(f"{name}/dwise", net.channels, 3, stride, net.channels)
    conv(f"{name}/linear", out, act=False)
    if stride == 1 and before == out:
      net.add("Eltwise", f"block_{s}_{i}", "", (source, net.top))
  conv("conv6_4", 1280)
  net.pool_all("pool6")
  net.conv("fc7", 10, 1, norm=None)
  return net


def googlenet() -> Net:
  """At its full width: its numbers are counted."""
  net = Net(225)
  net.conv("conv1/7x7_s2", 64, 7, 2, 3)
  net.pool("pool1/3x3_s2")
  net.add("LRN", "pool1/norm1", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
  net.conv("conv2/3x3_reduce", 64, 1)
  net.conv("conv2/3x3", 192, 3, pad=1)
  net.add("LRN", "conv2/norm2", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
  for place, widths in WIDTHS.items():
    if place.endswith("a"):
      net.pool(f"pool{int(place[0]) - 1}/3x3_s2")
    name, source, before, sides = f"inception_{place}", net.top, net.channels, []
    for part, kernel, i in (("1x1", 1, 0), ("3x3", 3, 2), ("5x5", 5, 4), ("pool_proj", 1, 5)):
      net.top, net.channels = source, before
      if part == "pool_proj":
        pool = "pooling_param { pool: MAX kernel_size: 3 stride: 1 pad: 1 }"
        net.add("Pooling", f"{name}/pool", pool)
      elif kernel > 1:
        net.conv(f"{name}/{part}_reduce", widths[i - 1], 1)
      net.conv(f"{name}/{part}", widths[i], kernel, pad=kernel // 2)
      sides.append(net.top)
    net.add("Concat", f"{name}/output", "", sides)
    net.channels = widths[0] + widths[2] + widths[4] + widths[5]
  net.pool_all("pool5/7x7_s1")
  net.dense("loss3/classifier", 10)
  return net


def densenet(growth: int, depths: tuple[int, ...]) -> Net:
  net = Net(96)  # all pooled maps are even
  net.conv("conv1", 2 * growth, 7, 2, 3, norm=("conv1/bn", "conv1/scale"), bias=False)
  net.relu("conv1")
  net.pool("pool1", more="pad: 1 ceil_mode: false")

  def before(name, layer, out, kernel=1):
    """Norm and ReLU, apart from what they are of, and a convolution."""
    net.norm(f"{name}/bn", f"{name}/scale", net.channels, top=f"{name}/bn")
    net.relu(name)
    if layer:
      net.conv(layer, out, kernel, pad=kernel // 2, norm=None, bias=False)

  for s, depth in enumerate(depths, start=2):
    for i in range(1, depth + 1):
      name, source, width = f"conv{s}_{i}", net.top, net.channels
      before(f"{name}/x1", f"{name}/x1", 4 * growth)
      before(f"{name}/x2", f"{name}/x2", growth, 3)
      net.add("Concat", f"concat_{s}_{i}", "", (source, net.top))
      net.channels = width + growth
    last = s == len(depths) + 1
    before(f"conv{s}_blk", "" if last else f"conv{s}_blk", net.channels // 2)
    if not last:
      net.pool(f"pool{s}", 2, "AVE")
  net.pool_all("pool5")
  net.conv("fc6", 10, 1, norm=None)
  return net


VGG, ALEXNET = (8, 16, 24, 32, 512), (8, 16, 24, 24, 256)  # fc6 flattens as many as published
THIN = {
  "vgg16.caffe": (lambda: vgg((2, 2, 3, 3, 3), VGG), {"widths": VGG, "hidden": 64}),
  "vgg19.caffe": (lambda: vgg((2, 2, 4, 4, 4), VGG), {"widths": VGG, "hidden": 64}),
  "alexnet_caffe.bvlc": (lambda: alexnet(ALEXNET), {"widths": ALEXNET, "hidden": 64}),
  "squeezenet1_0.caffe": (lambda: squeezenet(96, 7, (2, 5, 9)), {}),
  "squeezenet1_1.caffe": (lambda: squeezenet(64, 3, (2, 4, 6)), {}),
  "resnet50.caffe": (lambda: resnet((3, 4, 6, 3), True, 8), {"width": 8}),
  "legacy_seresnet50.caffe": (lambda: seresnet((3, 4, 6, 3), 1), {}),
  "legacy_seresnext50_32x4d.caffe": (lambda: seresnet((3, 4, 6, 3), 32), {}),
  "googlenet.bvlc": (googlenet, {}),
  "mobilenetv1_100.caffe": (lambda: mobilenet(0.25), {"width": 0.25}),
  "mobilenetv2_100.caffe": (mobilenet2, {"width": 0.25}),
  "densenet121.caffe": (lambda: densenet(8, (6, 12, 24, 16)), {"growth": 8}),
  "legacy_senet154.caffe": (lambda: seresnet((1, 2, 1, 1), 64, True), {"depths": (1, 2, 1, 1)}),
  "resnet101.caffe": (lambda: resnet((3, 4, 23, 3), False, 8), {"width": 8}),
}
SIZES = {
  "googlenet": 225,
  "squeezenet": 131,
  "resne": 97,
  "mobilenet": 97,
  "densenet": 96,
  "senet": 97,
}


@pytest.mark.parametrize("name", THIN)
def test_equals_opencv(name, tmp_path):
  made, fields = THIN[name]
  files = made().write(tmp_path)
  row, arrays = catalog.WEIGHTS[name], readers.read(files[1])
  model = zoo.create(row.variant, **{**row.fields, "num_classes": 10, **fields})
  family = catalog.FAMILY[row.variant].__name__.rpartition(".")[2]
  rule = rules.of(family, row.dialect, row.variant)
  size = next((n for kind, n in SIZES.items() if kind in name), row.preprocess.size)
  with traces.norms_behind() as norms:
    target = zoo.shapes(model, size=size)
  folded = engine.folded(arrays, target, rule, norms)
  variables = engine.convert(arrays, target, rule, folded)
  parity.check_way_back(arrays, variables, rule, folded)
  if name == "googlenet.bvlc":  # without the auxiliary heads; with 1000 classes 6_998_552
    assert sum(a.size for a in arrays.values()) == 6_998_552 - 990 * 1025
  image = 50 * RNG.normal(size=(1, size, size, 3)).astype(np.float32)  # so that LRN matters
  want = opencv4.forward(tmp_path, "readNetFromCaffe", files, image.transpose(0, 3, 1, 2))
  apply = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])
  got, want = np.asarray(apply(variables, image)), want.reshape(1, 10)
  assert np.abs(want).max() > 1e-3
  assert np.abs(got - want).max() / np.abs(want).max() < 1e-4
