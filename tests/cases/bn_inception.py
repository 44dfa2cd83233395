from tests.parity import Case

CASES = [
  Case("bn_inception", "pretrainedmodels:bninception",
       {"stem": "conv1_relu_7x7", "stage1": "conv2_relu_3x3"}, "cadene",
       args={"pretrained": None}, sizes=((96, 96), (95, 127))),  # its maps have to be even
  Case("bn_inception", "pytorchcv.models.bninception:bninception", {}, "pytorchcv",
       sizes=((95, 127),)),
]  # fmt: skip
SMALLEST = ("bn_inception", {})
GRADIENTS = Case("bn_inception", "pretrainedmodels:bninception", {}, "cadene",
                 {"pretrained": None})  # fmt: skip
