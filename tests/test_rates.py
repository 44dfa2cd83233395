"""The learning-rate finder: what it tries, suggests, draws and leaves alone."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from tests import test_loop
from tests.test_step import STAGES
from train import optim, rates


def test_the_suggestion_is_where_the_loss_falls_fastest():
  tried = np.logspace(-6, 0, 100)
  place = np.log10(tried)
  losses = 2 - 1.5 / (1 + np.exp(-4 * (place + 3))) + 40 * np.maximum(place + 1.5, 0) ** 2
  fastest, least = rates.suggestion(tried, losses)
  assert 10**-3.2 < fastest < 10**-2 and 10**-2 < least < 10**-1  # a little late, being smoothed
  with pytest.raises(ValueError, match="the loss falls at no rate from 1e-06 to"):
    rates.suggestion(tried, np.linspace(1, 3, 100))


def test_smoothing_has_no_pull_of_its_beginning():
  np.testing.assert_allclose(rates.smoothed(np.full(5, 3.0)), 3.0)
  assert rates.smoothed(np.array([1.0, 2.0]))[1] == pytest.approx((0.09 + 0.2) / 0.19)


def test_rates_rise_until_the_loss_explodes(tmp_path, capsys, monkeypatch):
  config, job = test_loop.make(tmp_path / "run")
  optimizer = optim.Config(optimizer="sgd", head_lr=1.0)
  make_tx = lambda rate: optim.make(optimizer, STAGES, lambda step: 30 * rate(step))
  tried, losses = rates.find(config, job, make_tx)
  assert len(tried) == len(losses) < 100  # stopped by the loss
  np.testing.assert_allclose(tried[1:] / tried[:-1], (1e6) ** (1 / 99))
  assert not losses[-1] < 4 * losses.min() and losses.min() < losses[0]
  with monkeypatch.context() as three:
    three.setattr(jax, "devices", lambda: [None] * 3)
    with pytest.raises(ValueError, match="--batch=4 cannot be split over 3 devices"):
      rates.find(config, job, make_tx)
  monkeypatch.setattr(rates, "find", lambda *_: (tried, losses))
  picture = tmp_path / "rates.png"
  rates.run(config, job, make_tx, picture)
  assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"
  assert "suggested: --lr=" in capsys.readouterr().out
  assert [path.name for path in tmp_path.iterdir()] == ["rates.png"]
