from tests.parity import Case

NASNET = {
  "stem": "conv0", "stage1": "cell_stem_1.conv_1x1.act", "stage2": "reduction_cell_0.conv_1x1.act",
  "stage3": "reduction_cell_1.conv_1x1.act", "stage4": "act",
}  # fmt: skip
CADENE = {end: path.replace("act", "relu") for end, path in NASNET.items()}
PNASNET = {
  "stem": "conv_0", "stage1": "cell_stem_1.conv_1x1.act", "stage2": "cell_4.conv_1x1.act",
  "stage3": "cell_8.conv_1x1.act", "stage4": "act",
}  # fmt: skip
SMALLEST = (
  "nasnetamobile",
  {"repeats": 1, "width": 16, "stem": 8, "plain": True},
)  # plain forms compile faster
ODD = ((97, 131),)
# Cadene's and pytorchcv's networks pad as TensorFlow does where all maps behind the stem are even.
CASES = [
  Case(
    "nasnetamobile", "pretrainedmodels:nasnetamobile", CADENE, "cadene",
    args={"num_classes": 1000, "pretrained": None}, sizes=((96, 96),),
  ),
  Case(
    "nasnetalarge", "timm:create_model", NASNET, "timm", positional=("nasnetalarge",),
    fields={"count_pad": True},
  ),
  Case("pnasnet5large", "timm:create_model", PNASNET, "timm", positional=("pnasnet5large",)),
  Case(
    "nasnetamobile", "keras.applications:NASNetMobile",
    {"stem": "stem_bn1", "stage4": "activation_187"}, "keras",
    fields={"count_pad": True, "max_zeros": True}, sizes=ODD,
  ),
]  # fmt: skip
NAMES = [Case("nasnetalarge", "keras.applications:NASNetLarge", {}, "keras")]
GRADIENTS = Case(
  "nasnetamobile", "pytorchcv.models.nasnet:get_nasnet", {}, "pytorchcv",
  {"repeat": 1, "penultimate_filters": 24 * 16, "init_block_channels": 8, "final_pool_size": 7,
   "extra_padding": True, "skip_reduction_layer_input": False, "in_size": (224, 224)},
  fields=SMALLEST[1],
)  # fmt: skip
