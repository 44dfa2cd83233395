"""What XLA's CPU backend computes once."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo import layers
from zoo.ops.materialized import materialized


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_the_array_itself_to_the_last_bit(dtype):
  bits = jnp.arange(2**16, dtype=jnp.uint16)
  if dtype == "float32":
    bits = bits.astype(jnp.uint32) * 65537
  x = jax.lax.bitcast_convert_type(bits, dtype)
  for found in (materialized(x), jax.jit(materialized)(x)):
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(found).view(bits.dtype), np.asarray(bits))


def test_gradients_pass_forward_and_backward():
  x = jnp.linspace(-2, 2, 5)
  square = lambda x: materialized(x * x).sum()
  np.testing.assert_array_equal(jax.grad(square)(x), 2 * x)
  np.testing.assert_array_equal(jax.jvp(square, (x,), (x,))[1], (2 * x * x).sum())
  np.testing.assert_array_equal(jax.vmap(jax.grad(jax.grad(square)))(x), [2.0] * 5)


@pytest.mark.parametrize("platform,count", [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_other_platforms_get_nothing(platform, count):
  text = export.export(jax.jit(materialized), platforms=[platform])(jnp.ones((2, 3))).mlir_module()
  assert text.count("stablehlo.divide") == count


def test_no_layer_of_a_stage_reads_what_the_blocks_before_the_last_have_made(monkeypatch):
  def most_read() -> int:
    """Operands of the fusion that has most."""
    model = zoo.create("resnet50", depths=(1, 9, 1, 1))
    image = jnp.zeros((1, 64, 64, 3))
    variables = zoo.shapes(model, size=64)
    apply = jax.jit(lambda variables: model.apply(variables, image, train=False)["logits"])
    lines = apply.lower(variables).compile().as_text().splitlines()
    return max(line.split(" fusion(")[1].split(")")[0].count("%") for line in lines
               if " fusion(" in line)  # fmt: skip

  found = most_read()
  monkeypatch.setattr(layers, "materialized", lambda x: x)
  assert found < most_read() // 2
