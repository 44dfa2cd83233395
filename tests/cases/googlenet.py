from tests.parity import Case

CASES = [
  Case("googlenet", "torchvision.models:googlenet",
       {"stem": "conv1", "stage1": "conv3", "stage2": "inception3b", "stage3": "inception4e",
        "stage4": "inception5b"},
       args={"transform_input": False, "init_weights": False}),
]  # fmt: skip
SMALLEST = ("googlenet", {})
GRADIENTS = Case("googlenet", "torchvision.models:googlenet", {},
                 args={"transform_input": False, "init_weights": False})  # fmt: skip
