from tests.parity import Case


def shallow():
  """Version 1 with one block of each kind."""
  from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1

  net = InceptionResnetV1(classify=True, num_classes=10)
  net.repeat_1, net.repeat_2, net.repeat_3 = net.repeat_1[:1], net.repeat_2[:1], net.repeat_3[:1]
  return net


STEM = {"stem": "conv2d_2b", "stage1": "conv2d_4a"}
V2 = STEM | {"stage2": "repeat", "stage3": "repeat_1", "stage4": "conv2d_7b"}
V1 = STEM | {"stage2": "repeat_1", "stage3": "repeat_2", "stage4": "block8", "pooled": "last_bn"}
KERAS = {"stage2": "block35_10_ac", "stage3": "block17_20_ac", "stage4": "conv_7b_ac"}
CASES = [
  Case("inception_resnet_v2", "timm:create_model", V2, "timm",
       positional=("inception_resnet_v2",), sizes=((128, 128), (97, 131))),
  Case("inception_resnet_v1", "facenet_pytorch.models.inception_resnet_v1:InceptionResnetV1",
       V1, "facenet", args={"classify": True, "num_classes": 8631},
       fields={"num_classes": 8631}, sizes=((128, 128), (97, 131))),
  Case("inception_resnet_v1", "pytorchcv.models.inceptionresnetv1:inceptionresnetv1", {},
       "pytorchcv", sizes=((97, 131),)),
  Case("inception_resnet_v2", "keras.applications:InceptionResNetV2", KERAS, "keras",
       fields={"norm_scale": False}, sizes=((97, 131),)),
]  # fmt: skip
NAMES = [
  Case("inception_resnet_v2", "pretrainedmodels:inceptionresnetv2", {}, "cadene",
       positional=(1000, None)),
]  # fmt: skip
SMALLEST = ("inception_resnet_v1", {"depths": (1, 1, 1)})
GRADIENTS = Case("inception_resnet_v1", "tests.cases.inception_resnet:shallow", {}, "facenet",
                 fields={"num_classes": 10, "depths": (1, 1, 1)})  # fmt: skip
