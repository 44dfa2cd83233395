"""YOLO in torch, by darknet's own numbers of layers: what `python -m bench` runs beside ours.

darknet publishes no such module. This one is built from the table of ours, so its answers say
nothing about that table (tests/test_yolo.py does, beside darknet); its speed is torch's.
"""

import torch
from torch import nn

import zoo
from zoo.detect import yolo

EPSILON = 1e-6  # under the root here and beside it in darknet: 1e-6 of a norm whose spread is 1


class Conv(nn.Module):
  def __init__(self, before: int, row: yolo.Conv):
    super().__init__()
    pad = row.kernel // 2
    self.conv = nn.Conv2d(before, row.features, row.kernel, row.stride, pad, bias=False)
    self.bn = nn.BatchNorm2d(row.features, EPSILON)
    self.act = nn.LeakyReLU(0.1, inplace=True)

  def forward(self, x):
    return self.act(self.bn(self.conv(x)))


class Head(nn.Module):
  def __init__(self, before: int, features: int):
    super().__init__()
    self.conv = nn.Conv2d(before, features, 1)

  def forward(self, x):
    return self.conv(x)


class Route(nn.Module):
  def __init__(self, layers: tuple[int, ...]):
    super().__init__()
    self.layers = layers

  def forward(self, *maps):
    return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


class Net(nn.Module):
  """[b 3 h w] -> [b n], all heads' maps, channels last, one behind the other."""

  def __init__(self, variant: str):
    super().__init__()
    model, outs = zoo.create(variant), [3]  # the channels of each output, the image's first
    for row in model.trunk + model.neck:
      before, name = outs[-1], str(len(outs) - 1)
      match row:
        case yolo.Conv():
          self.add_module(name, Conv(before, row))
          outs.append(row.features)
        case yolo.Pool(2, 2):
          self.add_module(name, nn.MaxPool2d(2))
          outs.append(before)
        case yolo.Pool(kernel, 1):
          low = (kernel - 1) // 2
          pads = (low, kernel - 1 - low) * 2
          pad = nn.ConstantPad2d(pads, -torch.inf)
          self.add_module(name, nn.Sequential(pad, nn.MaxPool2d(kernel, 1)))
          outs.append(before)
        case yolo.Route(layers):
          places = tuple(i if i >= 0 else len(outs) - 1 + i for i in layers)
          self.add_module(name, Route(places))
          outs.append(sum(outs[i + 1] for i in places))
        case yolo.Up():
          self.add_module(name, nn.Upsample(scale_factor=2))
          outs.append(before)
        case yolo.Head(anchors):
          features = len(anchors) * (5 + model.num_classes)
          self.add_module(name, Head(before, features))
          outs += [features, features]  # darknet counts its decoding as another layer
        case _:
          raise ValueError(f"{variant} has a {type(row).__name__}, which is not written here")

  def forward(self, x):
    outs, raw = {}, []
    for name, layer in self.named_children():
      i = int(name)
      if isinstance(layer, Route):
        x = layer(*(outs[j] for j in layer.layers))
      else:
        x = layer(x)
      outs[i] = x
      if isinstance(layer, Head):
        raw.append(x.permute(0, 2, 3, 1).flatten(1))
        outs[i + 1] = x
    return torch.cat(raw, 1)
