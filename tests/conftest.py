"""What several test files share."""

import os
import warnings

import pytest

from tests import photographs
from train import startup

startup.own_convolutions()  # as scripts do: some are compared, bit by bit, with what runs here
startup.collect_seldom()
# Before anybody imports Keras: an import that fails for want of TensorFlow leaves half of it.
os.environ.setdefault("KERAS_BACKEND", "jax")


def pytest_addoption(parser):
  parser.addoption("--all-variants", action="store_true", help="contract, listing: every one")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  return photographs.make(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments_only():
  """Programs take weights as arguments: those that close over them are compiled several times as
  long, and kept with all weights by the cache."""
  import jax

  before = jax.config.jax_captured_constants_warn_bytes
  jax.config.update("jax_captured_constants_warn_bytes", 100_000)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message="(A large amount of|Closed-over) constant")
    yield
  jax.config.update("jax_captured_constants_warn_bytes", before)
