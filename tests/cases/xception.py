from tests.parity import Case

TAPS = {"stem": "act2", "stage1": "block2.rep.0", "stage2": "block3.rep.0",
        "stage3": "block12.rep.0", "stage4": "act4"}  # fmt: skip
KERAS = {"stem": "block1_conv2_act", "stage1": "block3_sepconv1_act",
         "stage2": "block4_sepconv1_act", "stage3": "block13_sepconv1_act",
         "stage4": "block14_sepconv2_act"}  # fmt: skip
MINI = {"stem": "activation_1", **{f"stage{i + 1}": f"add{f'_{i}' * (i > 0)}" for i in range(4)}}
CASES = [
  Case("xception", "timm:create_model", TAPS, "timm", positional=("legacy_xception",),
       sizes=((128, 128), (97, 131))),
  Case("xception", "keras.applications:Xception", KERAS, "keras",
       fields={"padding": "tf", "eps": 1e-3}, sizes=((128, 128), (97, 131))),
  Case("xception", "pytorchcv.models.xception:xception", {}, "pytorchcv", sizes=((97, 131),)),
  Case("mini_xception", "tests.parity_keras:mini_xception", MINI, "keras",
       sizes=((48, 48), (61, 75))),
]  # fmt: skip
SMALLEST = ("xception", {"depth": 1})
GRADIENTS = Case("xception", "timm:create_model", {}, "timm", positional=("legacy_xception",))
