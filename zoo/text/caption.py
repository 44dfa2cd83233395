"""Captions: Show and Tell; Show, Attend and Tell with soft and hard attention.

Vinyals et al. 2014, arXiv:1411.4555; Xu et al. 2015, arXiv:1502.03044.  `begin` looks at pictures,
`step` says what comes after a word, `__call__` does both for whole captions that are known; greedy
and beam search are in `zoo.text.decode`.  Where the second paper's text leaves room, its authors'
code is followed: states begin through tanh.  Hard attention looks at the likeliest place when it
does not train.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.classify import inception_v3, resnet, vgg
from zoo.layers import Numerics
from zoo.text import decode
from zoo.text.lstm import LSTMCell, State


class ShowAndTell(nn.Module):
  """[b h w c], tokens [b t] -> "logits" [b t classes] of what comes after each token.

  The picture is the LSTM's first word.  Without tokens, of what comes after the start alone.
  """

  backbone: Callable[..., nn.Module]  # a variant of the zoo: takes num_classes, numerics and name
  hidden: int = 512
  num_classes: int = 10000  # words, with those of `decode`
  dropout: float = 0.3
  numerics: Numerics = Numerics()

  def setup(self):
    n = self.numerics
    self.encoder = self.backbone(num_classes=None, numerics=n)
    self.image_embed = nn.Dense(self.hidden, dtype=n.dtype)
    self.embed = nn.Embed(self.num_classes, self.hidden, dtype=n.dtype)
    self.cell = LSTMCell(self.hidden, n)
    self.drop = nn.Dropout(self.dropout)
    self.classifier = nn.Dense(self.num_classes, dtype=n.dtype)

  def __call__(self, image, tokens=None, own=None, *, train: bool):
    return _tell(self, image, tokens, own, train)

  def begin(self, image, *, train: bool) -> State:
    x = self.encoder(image, train=train)["pooled"]
    zero = jnp.zeros((x.shape[0], self.hidden))
    x = self.drop(self.image_embed(x), deterministic=not train)
    return self.cell((zero.astype(x.dtype), zero), x)

  def hear(self, state: State, word, *, train: bool):
    """(state, what `say` wants to know, end points) after an embedded word [b hidden]."""
    state = self.cell(state, self.drop(word, deterministic=not train))
    return state, (state[0],), {}

  def say(self, h, *, train: bool):
    """{"logits": [... classes]} of what comes next."""
    return {"logits": self.classifier(self.drop(h, deterministic=not train))}

  def step(self, state: State, token, *, train: bool):
    """(state, {"logits": [b classes]}) after a token [b]."""
    return _step(self, state, token, train)


class ShowAttendTell(nn.Module):
  """As `ShowAndTell`, looking at one place for each word: also "attention" [b t h*w].

  Hard attention draws its places when it trains, with the noise of dropout, and then says how
  likely they were: "chosen_log_prob" [b t], for the paper's equation 11.
  """

  backbone: Callable[..., nn.Module]
  annotations: str = "stage4"  # the backbone's end point that is looked at
  hard: bool = False
  hidden: int = 512
  num_classes: int = 10000
  dropout: float = 0.5
  numerics: Numerics = Numerics()

  def setup(self):
    n = self.numerics
    dense = partial(nn.Dense, self.hidden, dtype=n.dtype)
    self.encoder = self.backbone(num_classes=None, numerics=n)
    self.init_h, self.init_c = dense(), dense()
    self.attend_image, self.attend_state = dense(), dense(use_bias=False)
    self.attend, self.gate = nn.Dense(1, dtype=n.dtype), nn.Dense(1, dtype=n.dtype)
    self.embed = nn.Embed(self.num_classes, self.hidden, dtype=n.dtype)
    self.cell = LSTMCell(self.hidden, n)
    self.drop = nn.Dropout(self.dropout)
    self.from_state, self.from_context = dense(), dense(use_bias=False)
    self.classifier = nn.Dense(self.num_classes, dtype=n.dtype)

  def __call__(self, image, tokens=None, own=None, *, train: bool):
    return _tell(self, image, tokens, own, train)

  def begin(self, image, *, train: bool):
    """(LSTM's state, annotations [b h*w c], what attention compares them by [b h*w hidden])."""
    x = self.encoder(image, train=train)[self.annotations]
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    mean = x.mean(1)
    h, c = jnp.tanh(self.init_h(mean)), jnp.tanh(self.init_c(mean))
    return (h, c.astype(jnp.float32)), x, self.attend_image(x)

  def hear(self, state, word, *, train: bool):
    """(state, what `say` wants to know, {"attention" [b h*w] ...}) after an embedded word."""
    cell, x, keys = state
    scores = self.attend(jnp.tanh(keys + self.attend_state(cell[0])[:, None]))[..., 0]
    attention = nn.softmax(scores.astype(jnp.float32))
    looked, ends = self._look(attention, train)
    context = jnp.einsum("bn,bnc->bc", looked.astype(x.dtype), x)
    context = nn.sigmoid(self.gate(cell[0])) * context
    cell = self.cell(cell, jnp.concatenate([word, context], axis=-1))
    return (cell, x, keys), (cell[0], word, context), ends

  def say(self, h, word, context, *, train: bool):
    """{"logits": [... classes]} of what comes next; equation 7."""
    h = self.drop(h, deterministic=not train)
    y = word + self.from_state(h) + self.from_context(context)
    return {"logits": self.classifier(self.drop(y, deterministic=not train))}

  def step(self, state, token, *, train: bool):
    """(state, {"logits" [b classes], "attention" [b h*w] ...}) after a token [b]."""
    return _step(self, state, token, train)

  def _look(self, attention, train: bool):
    """(how much of each place is seen [b h*w], end points)."""
    ends = {"attention": attention}
    if not self.hard:
      return attention, ends
    if train:
      place = jax.random.categorical(self.make_rng("dropout"), jnp.log(attention))
      chosen = jnp.take_along_axis(attention, place[:, None], 1)[:, 0]
      ends["chosen_log_prob"] = jnp.log(chosen)
    else:
      place = jnp.argmax(attention, axis=-1)
    return nn.one_hot(place, attention.shape[-1]), ends


def _step(model, state, token, train: bool):
  state, known, ends = model.hear(state, model.embed(token), train=train)
  return state, ends | model.say(*known, train=train)


def _tell(model, image, tokens, own, train: bool):
  """Every end point of `model.step` behind each of the tokens [b t], as [b t ...].

  Where `own` [b t] is true, a model that trains hears the word that it drew behind the one before,
  instead of the token: scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).
  """
  if tokens is None:
    tokens = jnp.full((image.shape[0], 1), decode.START, jnp.int32)
  if not train:
    own = None

  def hearing(model, state, word):
    state, *found = model.hear(state, word, train=train)
    return state, found

  def telling(model, carry, heard):
    state, word = carry
    token, own = heard
    state, ends = model.step(state, jnp.where(own, word, token), train=train)
    word = jax.random.categorical(model.make_rng("dropout"), ends["logits"].astype(jnp.float32))
    return (state, word.astype(token.dtype)), ends

  body = nn.scan(
    hearing if own is None else telling,
    variable_broadcast="params", split_rngs={"params": False, "dropout": True},
    in_axes=1, out_axes=1,
  )  # fmt: skip
  state = model.begin(image, train=train)
  if own is None:  # words and what is said need not wait: their gradients are of all steps at once
    _, (known, ends) = body(model, state, model.embed(tokens))
    return ends | model.say(*known, train=train)
  return body(model, (state, tokens[:, 0]), (tokens, own))[1]


def stepper(model, variables):
  """The step that `zoo.text.decode` asks for; `begin`'s result is the state."""

  def step(state, token):
    state, ends = model.apply(variables, state, token, train=False, method="step")
    return state, ends["logits"]

  return step


INCEPTION, VGG19, RESNET18, RESNET50 = (
  inception_v3.VARIANTS["inception_v3"],
  partial(vgg.VARIANTS["vgg19"], hidden=None),
  resnet.VARIANTS["resnet18"],
  resnet.VARIANTS["resnet50"],
)
VARIANTS = {
  "show_and_tell": partial(ShowAndTell, INCEPTION, numerics=INCEPTION().numerics),
  "show_and_tell_resnet50": partial(ShowAndTell, RESNET50),
  "show_attend_tell": partial(ShowAttendTell, VGG19),  # conv5_4, 14x14 places at 224
  "show_attend_tell_hard": partial(ShowAttendTell, VGG19, hard=True),
  "show_attend_tell_resnet18": partial(ShowAttendTell, RESNET18),
  "show_attend_tell_resnet50": partial(ShowAttendTell, RESNET50),
}
SPOKEN = "embed|cell|from_.*"
STAGES = {
  name: ("encoder", "image_embed", SPOKEN, "classifier")
  if "attend" not in name
  else ("encoder", "init_.*|attend.*|gate", SPOKEN, "classifier")
  for name in VARIANTS
}
WEIGHTS = {}
