from tests.parity import Case

TAPS = {"stem": "Conv2d_2b_3x3", "stage1": "Conv2d_4a_3x3", "stage2": "Mixed_5d",
        "stage3": "Mixed_6e", "stage4": "Mixed_7c"}  # fmt: skip
KERAS = {"stage2": "mixed2", "stage3": "mixed7", "stage4": "mixed10"}
CASES = [
  Case("inception_v3", "torchvision.models:inception_v3", TAPS,
       args={"transform_input": False, "init_weights": False}, sizes=((128, 128), (97, 131))),
  Case("inception_v3", "keras.applications:InceptionV3", KERAS, "keras",
       fields={"aux": False, "padding": "tf", "norm_scale": False}, sizes=((97, 131),)),
  Case("inception_v3", "pytorchcv.models.inceptionv3:inceptionv3", {}, "pytorchcv",
       fields={"aux": False}, sizes=((97, 131),)),
]  # fmt: skip
SMALLEST = ("inception_v3", {})
GRADIENTS = Case("inception_v3", "torchvision.models:inception_v3", {},
                 args={"aux_logits": False, "transform_input": False, "init_weights": False},
                 fields={"aux": False})  # fmt: skip
