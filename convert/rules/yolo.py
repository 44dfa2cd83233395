"""darknet's arrays, which carry the number of their layer in the cfg."""

from convert.engine import Operation, Rules

# v1: places first, then the layout of a convolution.
LOCAL = Operation(
  lambda array: array.transpose(0, 1, 4, 5, 3, 2),
  lambda array, shape: array.transpose(0, 1, 5, 4, 2, 3),
)
LOCAL_BIAS = Operation(
  lambda array: array.transpose(1, 2, 0), lambda array, shape: array.transpose(2, 0, 1)
)
# v1: [out c*7*7] -> [7*7*c out].
FLAT = Operation(
  lambda array: array.reshape(len(array), -1, 49).transpose(2, 1, 0).reshape(-1, len(array)),
  lambda array, shape: (
    array.reshape(49, -1, array.shape[1]).transpose(2, 1, 0).reshape(array.shape[1], -1)
  ),
)
RULES = {
  "darknet": Rules(
    ((r"^(\d+)\.", r"layer\1."), (r"\.", "/")),
    operations=(
      (r"params/\w+/local/kernel", LOCAL),
      (r"params/\w+/local/bias", LOCAL_BIAS),
      (r"params/\w+/fc/kernel", FLAT),
    ),
  )
}
