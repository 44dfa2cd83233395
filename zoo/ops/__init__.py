"""Pure `jax.numpy` operations, importable without Flax."""
