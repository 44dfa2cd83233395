"""How Keras, pytorchcv and TF-slim name a NASNet's arrays; Cadene's and timm's names are ours."""

from convert.engine import KERAS_LEAVES, Rules, keras_layout
from convert.rules import TORCH, TORCH_RENAMES, slim

SEPARABLE = (
  (r"\.conv(\d)\.conv\.dw_conv\.", r".separable_\1.depthwise_conv2d."),
  (r"\.conv(\d)\.conv\.pw_conv\.", r".separable_\1.pointwise_conv2d."),
  (r"(_left|_right)\.conv(\d)\.bn\.", r"\1.bn_sep_\2."),
  (r"\.comb(\d)_", r".comb_iter_\1_"),
)
REST = (
  (r"\.path(\d)\.", r".path_\1."),
  (r"^features\.stem(\d)_unit", lambda m: f"cell_stem_{int(m[1]) - 1}"),
  (r"^output\.fc\.", "last_linear."),
  *TORCH_RENAMES,
)
PYTORCHCV = Rules((
  *SEPARABLE,
  (r"^features\.init_block\.", "conv0."),
  (r"\.path\.bn\.", ".final_path_bn."),
  (r"\.path\.path", ".path"),
  (r"\.conv1x1_prev\.", ".conv_prev_1x1."),
  (r"\.conv1x1\.", ".conv_1x1."),
  (r"^features\.stage1\.unit(\d)", lambda m: f"cell_{int(m[1]) - 1}"),
  (r"^features\.stage(\d)\.unit1\.", lambda m: f"reduction_cell_{int(m[1]) - 2}."),
  (r"^features\.stage(\d)\.unit(\d)", lambda m: f"cell_{6 * int(m[1]) - 8 + int(m[2])}"),
  *REST,
))  # fmt: skip
PYTORCHCV_PNASNET = Rules((
  *SEPARABLE,
  (r"^features\.init_block\.", "conv_0."),
  (r"^features\.stage1\.unit1\.", "cell_stem_1."),
  (r"^features\.stage1\.unit(\d)", lambda m: f"cell_{int(m[1]) - 2}"),
  (r"^features\.stage(\d)\.unit(\d)", lambda m: f"cell_{4 * int(m[1]) - 5 + int(m[2])}"),
  (r"^(cell_(?:stem_1|0|5|9)\.conv_prev_1x1\.)bn", r"\1final_path_bn"),
  *REST,
))  # fmt: skip


def _keras(repeats: int) -> Rules:
  """Keras leaves numbers out in counting cells, and ends a layer's name with its cell's."""
  cells = {"stem_1": "cell_stem_0", "stem_2": "cell_stem_1"}
  cells |= {f"reduce_{(i + 1) * repeats}": f"reduction_cell_{i}" for i in range(2)}
  first = (0, repeats + 1, 2 * repeats + 1)
  cells |= {str(n + i): f"cell_{6 * s + i}" for s, n in enumerate(first) for i in range(repeats)}
  halving = ("stem_2", *map(str, first))
  ids = "(stem_[12]|reduce_\\d+|\\d+)(?=/)"

  def cell(form):
    return lambda m: f"{cells[m[m.lastindex]]}/{m.expand(form)}"

  def adjust(m):
    name = "final_path_bn" if m[1] in halving else "conv_prev_1x1/bn"
    return f"{cells[m[1]]}/{name}"

  return Rules(
    (
      (r"^.*/(?=[^/]+/[^/]+$)", ""),  # scopes, which layers' names repeat
      (r"^stem_conv1", "conv0/conv"),
      (r"^stem_bn1", "conv0/bn"),
      (r"^predictions", "last_linear"),
      # reduction_left4 is the left side of the fifth sum, though Keras calls it the fourth's.
      (r"_reduction_left4_", "_reduction_left5_"),
      (rf"^separable_conv_(\d)_bn_[a-z]+_(left|right)(\d)_{ids}",
       lambda m: f"{cells[m[4]]}/comb_iter_{int(m[3]) - 1}_{m[2]}/bn_sep_{m[1]}"),
      (rf"^separable_conv_(\d)_[a-z]+_(left|right)(\d)_{ids}",
       lambda m: f"{cells[m[4]]}/comb_iter_{int(m[3]) - 1}_{m[2]}/separable_{m[1]}"),
      (r"/(depthwise|pointwise)_kernel", r"/\1_conv2d/\1_kernel"),
      (rf"^(?:normal|reduction)_conv_1_{ids}", cell("conv_1x1/conv")),
      (rf"^(?:normal|reduction)_bn_1_{ids}", cell("conv_1x1/bn")),
      (rf"^adjust_conv_projection_{ids}", cell("conv_prev_1x1/conv")),
      (rf"^adjust_conv_(\d)_{ids}", cell(r"path_\1/conv")),
      (rf"^adjust_bn_{ids}", adjust),
    ),
    KERAS_LEAVES,
    keras_layout,
  )  # fmt: skip


def _slim(repeats: int, halving: str = "") -> Rules:
  """Its cells are counted through; `halving` comes before the parts of `zoo`'s Halve."""

  def cell(m):
    s, i = divmod(int(m[1]), repeats)
    return f"cell_{6 * s + i if not halving else m[1]}/"

  return slim(
    (r"^aux_\d+/.*", ""),
    (r"^conv0(_bn)?/", lambda m: f"{'conv_0' if halving else 'conv0'}/{'bn' if m[1] else 'conv'}/"),
    (r"^final_layer/FC/", "last_linear/"),
    (r"^cell_(\d+)/", cell),
    (r"/comb_iter_(\d)/(left|right)/", r"/comb_iter_\1_\2/"),
    (r"/bn_sep_\dx\d_", "/bn_sep_"),
    (r"/separable_\dx\d_(\d)/(depthwise|pointwise)", r"/separable_\1/\2_conv2d/\2"),
    (r"(_left|_right)/1x1/", r"\1/conv/"),
    (r"/bn_1/", "/bn/"),
    (r"/1x1/", "/conv_1x1/conv/"),
    (r"/beginning_bn/", "/conv_1x1/bn/"),
    (r"/prev_1x1/", "/conv_prev_1x1/conv/"),
    (r"/prev_bn/", "/conv_prev_1x1/bn/"),
    (r"/path(\d)_conv/", rf"/{halving}path_\1/conv/"),
    (r"/final_path_bn/", f"/{halving}final_path_bn/"),
  )


RULES = {
  "cadene": TORCH,
  "slim:nasnetamobile": _slim(4),
  "slim:nasnetalarge": _slim(6),
  "slim:pnasnet5large": _slim(4, "conv_prev_1x1/"),
  "pytorchcv": PYTORCHCV,
  "pytorchcv:pnasnet5large": PYTORCHCV_PNASNET,
  "keras:nasnetamobile": _keras(4),
  "keras:nasnetalarge": _keras(6),
}
