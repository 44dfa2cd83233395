from tests.parity import Case

EVEN, ODD = (96, 96), (97, 131)
TV = {
  "large": {"stem": 1, "stage1": 3, "stage2": 6, "stage3": 12, "stage4": 16},
  "small": {"stem": 0, "stage1": 1, "stage2": 3, "stage3": 8, "stage4": 12},
}
TIMM = {
  "large": {"stem": "blocks.0", "stage1": "blocks.1", "stage2": "blocks.2", "stage3": "blocks.4",
            "stage4": "blocks.6"},
  "small": {"stem": "bn1", "stage1": "blocks.0", "stage2": "blocks.1", "stage3": "blocks.3",
            "stage4": "blocks.5"},
}  # fmt: skip
KERAS = {
  "large": {"stage1": "expanded_conv_2_add", "stage2": "expanded_conv_5_add"},
  "small": {"stage2": "expanded_conv_2_add"},
}
TORCH, TF = {"eps": 1e-5}, {"padding": "tf"}


def tv(size, *sizes):
  taps = {end: f"features.{place}" for end, place in TV[size].items()}
  name = f"mobilenet_v3_{size}"
  return Case(name, f"torchvision.models:{name}", taps, sizes=sizes)


def timm(size, name, fields, *sizes, suffix=""):
  return Case(
    f"mobilenet_v3_{size}{suffix}", "timm:create_model", TIMM[size], "timm", positional=(name,),
    fields=fields, sizes=sizes,
  )  # fmt: skip


def keras(size, *sizes, suffix="", **args):
  return Case(
    f"mobilenet_v3_{size}{suffix}", f"keras.applications:MobileNetV3{size.title()}", KERAS[size],
    "keras", {"include_preprocessing": False, **args}, fields=TF, sizes=sizes,
  )  # fmt: skip


# One size will do for another source of a variant that runs at both.
CASES = [
  tv("large", EVEN, ODD),
  tv("small", EVEN, ODD),
  timm("large", "mobilenetv3_large_100", TORCH, EVEN),
  timm("small", "mobilenetv3_small_100", TORCH, ODD),
  timm("large", "tf_mobilenetv3_large_100", TF, EVEN, ODD),
  timm("small", "tf_mobilenetv3_small_100", TF, EVEN),
  timm("large", "tf_mobilenetv3_large_075", TF, EVEN, ODD, suffix="_075"),
  timm("small", "tf_mobilenetv3_small_075", TF, EVEN, ODD, suffix="_075"),
  timm("small", "mobilenetv3_small_050", TORCH, EVEN, ODD, suffix="_050"),
  timm("small", "tf_mobilenetv3_small_minimal_100", TF, EVEN, ODD, suffix="_minimal"),
  keras("large", EVEN),
  keras("small", ODD),
  keras("large", EVEN, ODD, suffix="_minimal", minimalistic=True),
]
GRADIENTS = Case("mobilenet_v3_small", "torchvision.models:mobilenet_v3_small", {})
