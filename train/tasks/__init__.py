"""A task says what to feed the model and what to measure; "loss" is what is minimised.

Every measure is a ratio given for each example: {name: (numerator [b], denominator [b])}. Ratios
add up exactly over devices, padded rows and evaluation batches.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Batch = Mapping[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]


class Task(Protocol):
  inputs: tuple[str, ...]  # keys of the batch that the model takes, in order
  target: str  # key of the batch that says what is right; kept beside the predictions

  def terms(self, out: Mapping[str, jax.Array], batch: Batch) -> Terms:
    """{name: (numerator [b], denominator [b])}, in float32, from the model's end points."""

  def predict(self, out: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What a user wants of the end points, one row for each image."""

  def rank(self, measured: Mapping[str, float]) -> tuple[Any, ...]:
    """Larger for the better of two evaluations."""
