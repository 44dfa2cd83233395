"""oneDNN's convolution and product, which jaxlib's CPU backend holds and XLA itself never calls.

No promised interface: `usable` says whether this processor gains by them and whether this jaxlib
answers them rightly. BUILD.md, "Speed", has the measurements.
"""

from functools import cache
import json
from pathlib import Path
import sys

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

KNOWN = ((0, 10), (0, 12))  # versions of jaxlib that were tried; a wrong call may end the process
SPACE = dict(batch_dim=0, feature_dim=3, spatial_dims=[1, 2])  # [b h w c]
KERNEL = dict(input_feature_dim=2, output_feature_dim=3, spatial_dims=[0, 1])


def conv(x, kernel, *, stride, pads, dilation, groups):
  """As `lax.conv_general_dilated` of [b h w c] with [kh kw c/groups f], in float32."""
  if min(map(min, pads)) < 0:  # oneDNN does not crop
    crops = [(min(low, 0), min(high, 0), 0) for low, high in pads]
    x = lax.pad(x, np.float32(0), ((0, 0, 0), *crops, (0, 0, 0)))
    pads = [(max(low, 0), max(high, 0)) for low, high in pads]
  config = {
    "dims": 4,
    "input": {"dims": 4, "data": SPACE},
    "kernel": {"dims": 4, "filter": KERNEL},
    "output": {"dims": 4, "data": SPACE},
    "window": {
      "pad_left": [low for low, _ in pads],
      "pad_right": [high for _, high in pads],
      "strides": stride,
      "window_dilations": dilation,
    },
    "feature_groups": groups,
  }
  size = [
    (n + low + high - (k - 1) * d - 1) // s + 1
    for n, k, s, (low, high), d in zip(x.shape[1:3], kernel.shape, stride, pads, dilation)
  ]
  return _call("conv", config, (x.shape[0], *size, kernel.shape[-1]), x, kernel)


def product(a, b):
  """The transpose of a [n p], times b [n q]: [p q], in float32."""
  return _call("matmul", {"transpose_a": True}, (a.shape[1], b.shape[1]), a, b)


def _call(name, config, shape, *operands):
  target = {"conv": "__onednn$convolution", "matmul": "__onednn$matmul"}[name]
  call = jax.ffi.ffi_call(
    target, jax.ShapeDtypeStruct(shape, jnp.float32), custom_call_api_version=2,
    legacy_backend_config=json.dumps({f"onednn_{name}_config": config}),
  )  # fmt: skip
  return call(*operands)


@cache
def usable() -> bool:
  """Of the CPU that this runs on."""
  if sys.platform != "linux" or jax.__version_info__[:2] not in KNOWN:
    return False
  if "avx512f" not in Path("/proc/cpuinfo").read_text():
    return False
  with jax.ensure_compile_time_eval(), jax.default_device(jax.devices("cpu")[0]):
    x, kernel = (np.arange(n, dtype=np.float32).reshape(shape) for n, shape in PROBE)
    args = dict(stride=(2, 1), pads=((1, 0), (1, 2)), dilation=(1, 2), groups=2)
    want = lax.conv_general_dilated(
      x, kernel, args["stride"], args["pads"], rhs_dilation=args["dilation"],
      feature_group_count=args["groups"], dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    try:
      got = jax.jit(lambda x, kernel: conv(x, kernel, **args))(x, kernel)
      square = jax.jit(product)(x[0, 0], x[0, 1])
    except (jax.errors.JaxRuntimeError, ValueError):
      return False
    return bool(
      np.allclose(got, want, rtol=1e-4) and np.allclose(square, x[0, 0].T @ x[0, 1], rtol=1e-4)
    )


PROBE = ((2 * 7 * 8 * 4, (2, 7, 8, 4)), (3 * 3 * 2 * 6, (3, 3, 2, 6)))
