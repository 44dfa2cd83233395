"""Captioners beside the papers' equations in torch, with the same arrays."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import engine, rules
import zoo
from zoo.layers import Numerics
from zoo.text import caption, decode, vocabulary

torch = pytest.importorskip("torch", reason="pip install flaxzoo[references]")
HIDDEN, CLASSES, CHANNELS = 7, 11, 5
# torch lays an embedding as we do.
EMBED = engine.Operation(lambda array: array, lambda array, shape: array)
RULES = engine.Rules(rules.TORCH_RENAMES, operations=((".*/embedding", EMBED),))
TOKENS = np.array([[1, 4, 9, 2], [1, 10, 3, 0]], np.int32)


class Given(nn.Module):
  """A backbone that has been run: its picture is its map."""

  num_classes: None = None
  numerics: Numerics = Numerics()

  def __call__(self, image, *, train):
    return {"stage4": image, "pooled": image.mean((1, 2))}


class Vinyals(torch.nn.Module):
  """Equations 10 to 12."""

  def __init__(self):
    super().__init__()
    self.image_embed = torch.nn.Linear(CHANNELS, HIDDEN)
    self.embed = torch.nn.Embedding(CLASSES, HIDDEN)
    self.cell = torch.nn.LSTMCell(HIDDEN, HIDDEN)
    self.classifier = torch.nn.Linear(HIDDEN, CLASSES)

  def forward(self, maps, tokens):
    h, c = self.cell(self.image_embed(maps.mean((1, 2))))
    logits = []
    for token in tokens.T:
      h, c = self.cell(self.embed(token), (h, c))
      logits.append(self.classifier(h))
    return {"logits": torch.stack(logits, 1)}


class Xu(torch.nn.Module):
  """Equations 1 to 9, and the gate of section 4.2.1; hard attention looks at one place."""

  def __init__(self, hard):
    super().__init__()
    linear = torch.nn.Linear
    self.hard = hard
    self.init_h, self.init_c = linear(CHANNELS, HIDDEN), linear(CHANNELS, HIDDEN)
    self.attend_image = linear(CHANNELS, HIDDEN)
    self.attend_state = linear(HIDDEN, HIDDEN, bias=False)
    self.attend, self.gate = linear(HIDDEN, 1), linear(HIDDEN, 1)
    self.embed = torch.nn.Embedding(CLASSES, HIDDEN)
    self.cell = torch.nn.LSTMCell(HIDDEN + CHANNELS, HIDDEN)
    self.from_state = linear(HIDDEN, HIDDEN)
    self.from_context = linear(CHANNELS, HIDDEN, bias=False)
    self.classifier = linear(HIDDEN, CLASSES)

  def forward(self, maps, tokens):
    a = maps.flatten(1, 2)
    h, c = self.init_h(a.mean(1)).tanh(), self.init_c(a.mean(1)).tanh()
    logits, attention = [], []
    for token in tokens.T:
      e = self.attend((self.attend_image(a) + self.attend_state(h)[:, None]).tanh())
      alpha = e.softmax(1)
      attention.append(alpha[..., 0])
      if self.hard:
        alpha = torch.nn.functional.one_hot(alpha[..., 0].argmax(1), a.shape[1])[..., None]
      z = self.gate(h).sigmoid() * (alpha * a).sum(1)
      word = self.embed(token)
      h, c = self.cell(torch.cat([word, z], 1), (h, c))
      logits.append(self.classifier(word + self.from_state(h) + self.from_context(z)))
    return {"logits": torch.stack(logits, 1), "attention": torch.stack(attention, 1)}


MODELS = {
  "tell": (caption.ShowAndTell(Given, HIDDEN, CLASSES), Vinyals),
  "soft": (caption.ShowAttendTell(Given, hidden=HIDDEN, num_classes=CLASSES), lambda: Xu(False)),
  "hard": (
    caption.ShowAttendTell(Given, hard=True, hidden=HIDDEN, num_classes=CLASSES), lambda: Xu(True)
  ),
}  # fmt: skip
MAPS = np.random.default_rng(0).normal(size=(2, 3, 4, CHANNELS)).astype(np.float32)


def converted(kind):
  torch.manual_seed(0)
  model, make = MODELS[kind]
  original = make()
  target = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), MAPS)
  state = {name: value.numpy() for name, value in original.state_dict().items()}
  return model, original, engine.convert(state, target, RULES)


@pytest.mark.parametrize("kind", MODELS)
def test_every_step_equals_the_papers(kind):
  model, original, variables = converted(kind)
  got = jax.jit(lambda v, x, t: model.apply(v, x, t, train=False))(variables, MAPS, TOKENS)
  with torch.no_grad():
    want = original(torch.from_numpy(MAPS), torch.from_numpy(TOKENS))
  assert got.keys() == want.keys()
  for end, value in want.items():
    np.testing.assert_allclose(got[end], value, atol=1e-5, err_msg=end)


@pytest.mark.parametrize("kind", MODELS)
def test_search_says_what_teaching_weighs(kind):
  """log p of the sequences that were found, from the model that is shown them."""
  model, _, variables = converted(kind)
  state = model.apply(variables, MAPS, train=False, method="begin")
  step = caption.stepper(model, variables)
  found = jax.jit(lambda s: decode.beam(step, s, 4, 3))(state)
  tokens = jnp.concatenate([jnp.full((2, 1), decode.START), found.tokens[:, 0, :-1]], axis=1)
  logits = model.apply(variables, MAPS, tokens, train=False)["logits"]
  log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), found.tokens[:, 0, :, None], 2)
  real = jnp.arange(4) < found.lengths[:, :1]
  np.testing.assert_allclose((log_probs[..., 0] * real).sum(1), found.log_probs[:, 0], rtol=1e-4)


def test_hard_attention_draws_its_places_when_it_trains():
  model, _, variables = converted("hard")
  model = dataclasses.replace(model, dropout=0.0, parent=None, name=None)

  def run(seed):
    return model.apply(variables, MAPS, TOKENS, train=True, rngs={"dropout": jax.random.key(seed)})

  ends = jax.jit(jax.vmap(run))(jnp.arange(300))
  chosen = np.exp(ends["chosen_log_prob"][:, :, 0])  # the first word's places have one chance each
  attention = np.asarray(ends["attention"][0, :, 0])
  for row in range(2):  # each place is drawn as often as it is likely
    shares = [(abs(chosen[:, row] - p) < 1e-6).mean() for p in attention[row]]
    np.testing.assert_allclose(shares, attention[row], atol=0.08)


@pytest.mark.parametrize("name", caption.VARIANTS)
def test_variants_speak_of_real_pictures(name):
  model = zoo.create(name, num_classes=20, hidden=16, plain=True)
  image = jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32)
  tokens = jax.ShapeDtypeStruct((2, 6), np.int32)
  ends, _ = jax.eval_shape(
    lambda x, t: model.init_with_output(jax.random.key(0), x, t, train=False), image, tokens
  )
  assert ends["logits"].shape == (2, 6, 20)
  assert zoo.stages(name)[-1] == "classifier"


def test_words_there_and_back():
  captions = ["A bird, on a tree.", "a bird's nest", "A tree"]
  classes = vocabulary.build(captions, least=2)
  assert classes == (*vocabulary.SPECIAL, "a", "tree")
  classes = vocabulary.build(captions, least=1)
  assert classes[:6] == (*vocabulary.SPECIAL, "a", "tree") and "bird's" in classes
  tokens = vocabulary.encode([*captions, "a fish"], classes, 4)
  assert tokens.shape == (4, 6)
  assert vocabulary.caption(tokens[0], classes) == "a bird on a"
  assert vocabulary.caption(tokens[1], classes) == "a bird's nest"
  assert tokens[1].tolist()[-2:] == [decode.END, decode.PAD]
  assert vocabulary.caption(tokens[3], classes) == "a <unknown>"
