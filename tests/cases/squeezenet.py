from tests.parity import Case

CASES = [
  Case("squeezenet1_0", "torchvision.models:squeezenet1_0",
       {"stem": "features.1", "stage1": "features.5", "stage2": "features.10",
        "stage3": "features.12"}),
  Case("squeezenet1_1", "torchvision.models:squeezenet1_1",
       {"stem": "features.1", "stage1": "features.4", "stage2": "features.7",
        "stage3": "features.12"}),
  Case("squeezenet1_0", "pytorchcv.models.squeezenet:squeezenet_v1_0", {}, "pytorchcv"),
]  # fmt: skip
SMALLEST = ("squeezenet1_1", {})
GRADIENTS = Case("squeezenet1_1", "torchvision.models:squeezenet1_1", {})
