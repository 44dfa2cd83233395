"""Attention-OCR beside TF-slim's trunk and a statement of its decoder in torch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity, slim
from tests.test_slim import converted
import zoo
from zoo import catalog

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
TRUNK, SPELLER = "AttentionOcr_v1/conv_tower_fn/INCE", "AttentionOcr_v1/sequence_logit_fn/SQLR"
CLASSES, HIDDEN = 134, 256


def trunk(runtime: slim.Runtime):
  """TF-slim's own Inception-v3, up to the map that Attention-OCR looks at."""
  scopes = slim.arg_scopes()
  code = slim.early("inception_v3", runtime, scopes)

  def run(image):
    runtime.asked.clear()
    with torch.no_grad(), scopes.arg_scope(code.inception_v3_arg_scope()), runtime.scope(TRUNK):
      return code.inception_v3_base(image, final_endpoint="Mixed_5d")[0]

  return run


def decoder(runtime: slim.Runtime, features: int):
  """places [b n features] -> logits [b steps classes], as `attention_decoder` of TensorFlow's
  legacy_seq2seq and `LSTMCell` of its contrib.rnn compute them."""

  def array(name: str, *shape: int, gain: float = 1.0):
    fan = shape[0] if len(shape) == 2 else shape[-1] if len(shape) > 2 else 1
    make = lambda: gain * runtime.rng.normal(size=shape) / fan**0.5
    return runtime.variable(f"{SPELLER}/{name}", make)

  def linear(name: str, x, out: int, gain: float = 1.0):
    kernel = array(f"LSTM/attention_decoder/{name}kernel", x.shape[1], out, gain=gain)
    return x @ kernel + array(f"LSTM/attention_decoder/{name}bias", out, gain=0.3)

  def run(x, steps: int):
    state = torch.zeros(len(x), HIDDEN), torch.zeros(len(x), HIDDEN)  # cell, output
    context, said = torch.zeros(len(x), features), torch.zeros(len(x), CLASSES)
    attention = array("LSTM/attention_decoder/AttnW_0", 1, 1, features, features)[0, 0]
    column = array("LSTM/attention_decoder/AttnV_0", features)
    found = []
    for _ in range(steps):
      y = linear("", torch.cat([said, context], 1), CLASSES, 3.0)
      drive = linear("lstm_cell/", torch.cat([y, state[1]], 1), 4 * HIDDEN, 4.0)
      i, j, f, o = drive.chunk(4, 1)
      cell = torch.sigmoid(f + 1) * state[0] + torch.sigmoid(i) * torch.tanh(j)
      cell = cell.clamp(-2, 2)
      state = cell, torch.sigmoid(o) * torch.tanh(cell)
      query = linear("Attention_0/", torch.cat(state, 1), features)
      scores = (column * torch.tanh(x @ attention + query[:, None])).sum(-1)
      context = (torch.softmax(scores, 1)[..., None] * x).sum(1)
      y = linear("AttnOutputProjection/", torch.cat([state[1], context], 1), HIDDEN)
      logits = y @ array("softmax_w", HIDDEN, CLASSES, gain=4.0) + array("softmax_b", CLASSES)
      said = torch.nn.functional.one_hot(logits.argmax(1), CLASSES).float()
      found.append(logits)
    return torch.stack(found, 1)

  return run


@pytest.mark.parametrize(("views", "coordinates"), [(4, False), (1, True)])
def test_equals_its_authors_code(views, coordinates):
  torch.set_num_threads(1)
  runtime, size, steps = slim.Runtime(), (75, 75 * views), 9
  image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
  tower = trunk(runtime)
  maps = [
    tower(torch.from_numpy(np.ascontiguousarray(v)).as_subclass(slim.sized()))
    for v in np.split(image, views, axis=2)
  ]
  maps = [m.as_subclass(torch.Tensor) for m in maps]
  if coordinates:
    rows, columns = maps[0].shape[1:3]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    one_hot = torch.nn.functional.one_hot
    place = torch.cat([one_hot(row, rows), one_hot(column, columns)], 2).float()
    maps = [torch.cat([m, place.expand(len(m), *place.shape)], 3) for m in maps]
  x = torch.cat(maps, 1).flatten(1, 2)
  with torch.no_grad():
    want = decoder(runtime, x.shape[2])(x, steps).numpy()
  fields = {"views": views, "coordinates": coordinates, "steps": steps, "norm_scale": False,
            "clip": 2.0}  # fmt: skip
  model, variables = converted("", runtime.variables, "attention_ocr", fields, size)
  apply = jax.jit(partial(model.apply, train=False), compiler_options=parity.QUICK_COMPILATION)
  ends = apply(variables, image)
  got = np.asarray(ends["logits"])
  assert len(set(want.argmax(-1).ravel())) > 1  # it says different things
  assert np.abs(got - want).max() / np.abs(want).max() < 1e-4
  np.testing.assert_allclose(ends["attention"].sum(-1), 1, rtol=1e-5)
  assert ends["attention"].shape == (2, steps, x.shape[1])


def test_told_what_it_says_it_says_the_same():
  model = zoo.create("attention_ocr_line", steps=6, num_classes=5)
  size = (75, 96)
  variables = parity.fresh(model, size=size, spread=0.3)
  image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  model = model.clone(numerics=dataclasses.replace(model.numerics, freeze_norm=True))
  run = partial(jax.jit, compiler_options=parity.QUICK_COMPILATION)(
    lambda text, train: model.apply(variables, image, text, train=train), static_argnames="train"
  )
  free = run(None, train=False)
  said = jnp.argmax(free["logits"], -1)
  told = run(said, train=True)
  np.testing.assert_allclose(told["logits"], free["logits"], atol=1e-4)
  other = run((said + 1) % 5, train=True)
  np.testing.assert_allclose(other["logits"][:, 0], free["logits"][:, 0], atol=1e-4)
  assert np.abs(other["logits"][:, 1:] - free["logits"][:, 1:]).max() > 1e-3
  seen = run((said + 1) % 5, train=False)  # who does not train hears itself
  np.testing.assert_array_equal(seen["logits"], free["logits"])


def test_a_text_ends_at_its_first_blank():
  model = zoo.create("attention_ocr_line", num_classes=4)
  tokens = np.array([[1, 1, 2, 0, 3], [0, 1, 2, 3, 1], [3, 2, 1, 2, 3]])
  read = model.read({"logits": 9 * np.eye(4)[tokens]}, 0)
  np.testing.assert_array_equal(read.lengths, [3, 0, 5])
  np.testing.assert_array_equal(read.tokens, [[1, 1, 2, 0, 0], [0] * 5, [3, 2, 1, 2, 3]])
  assert (np.asarray(read.confidence[0]) > 0).tolist() == [True, True, True, False, False]


def test_numbers_of_the_published_form():
  specs = zoo.shapes(zoo.create("attention_ocr"), size=(150, 600))["params"]
  count = sum(spec.size for spec in jax.tree.leaves(specs))
  assert count == 1_853_200  # with scales of norms, which the published file lacks
  assert len(catalog.WEIGHTS["attention_ocr.fsns"].classes) == CLASSES
