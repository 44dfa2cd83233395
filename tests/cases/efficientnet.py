from tests.parity import Case


def shallow():
  """One block of each stack."""
  import timm
  import torch

  net = timm.create_model("efficientnet_lite0")
  net.blocks = torch.nn.Sequential(*(stack[:1] for stack in net.blocks))
  return net


TIMM = {
  "stem": "blocks.0", "stage1": "blocks.1", "stage2": "blocks.2", "stage3": "blocks.4",
  "stage4": "blocks.6", "pooled": "global_pool",
}  # fmt: skip
ELP = {
  "stem": "_blocks.0", "stage1": "_blocks.2", "stage2": "_blocks.4", "stage3": "_blocks.10",
  "stage4": "_blocks.15",
}  # fmt: skip
SMALLEST = ("efficientnet_lite0", {"width": 0.5, "depth": 0.3})
CASES = [
  Case("tf_efficientnet_lite0", "timm:create_model", TIMM, "timm", {"output_stride": 8},
       ("tf_efficientnet_lite0",), {"output_stride": 8}, ((64, 64), (97, 131))),
  *(
    Case(name, "timm:create_model", TIMM, "timm", positional=(name,))
    for prefix in ("", "tf_")
    for name in (f"{prefix}efficientnet_lite{i}" for i in range(5))
  ),
  # The package fixes its padding for one size.
  Case(
    "tf_efficientnet_lite0", "efficientnet_lite_pytorch:EfficientNet.from_name", ELP, "elp",
    positional=("efficientnet-lite0",), sizes=((224, 224),),
  ),
]  # fmt: skip
NAMES = [
  Case(
    f"tf_efficientnet_lite{i}", "efficientnet_lite_pytorch:EfficientNet.from_name", ELP, "elp",
    positional=(f"efficientnet-lite{i}",),
  )
  for i in (1, 2)
]  # fmt: skip
GRADIENTS = Case("efficientnet_lite0", "tests.cases.efficientnet:shallow", {}, "timm",
                 fields={"depth": 0.25})  # fmt: skip
