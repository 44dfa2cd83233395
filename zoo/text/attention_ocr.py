"""Attention-OCR: convolutions, and an LSTM that looks at one place for each character.

Wojna et al. 2017, arXiv:1704.03549.  Where the paper's text leaves room, its authors' code is
followed: the trunk is Inception-v3 up to its last 35x35 map, several views of one sign stand side
by side in the picture and their maps below each other, attention compares places with the LSTM's
cell and output, and the next step hears the character that was likeliest.  `coordinates` adds to
each place where it is, a one-hot row and column (the paper's equation 9).  The class "" ends a
text.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from zoo.classify import inception_v3
from zoo.layers import Numerics
from zoo.ops import ctc
from zoo.text import charset, decode
from zoo.text.lstm import gates
from zoo.weights import Line, Weights


class Speller(nn.Module):
  """One character: (what the steps before left, the character to hear) -> (.., end points)."""

  hidden: int
  clip: float  # of the LSTM's cell
  num_classes: int
  numerics: Numerics

  @nn.compact
  def __call__(self, carry, told, x, keys):
    n = self.numerics
    state, context, said = carry
    heard = said if told is None else told
    heard = jax.nn.one_hot(heard, self.num_classes, dtype=context.dtype)  # of -1 it is nothing
    y = n.dense(self.num_classes, name="input")(jnp.concatenate([heard, context], -1))
    drive = n.dense(4 * self.hidden, name="lstm")(jnp.concatenate([y, state[0]], -1))
    drive += jnp.repeat(jnp.array([0, 1, 0, 0], drive.dtype), self.hidden)  # as TensorFlow's cell
    h, c = gates(state, drive, clip=self.clip)
    query = n.dense(x.shape[-1], name="query")(jnp.concatenate([c.astype(h.dtype), h], -1))
    scores = n.dense(1, bias=False, name="attend")(jnp.tanh(keys + query[:, None]))[..., 0]
    attention = nn.softmax(scores.astype(jnp.float32))
    context = jnp.einsum("bn,bnc->bc", attention.astype(x.dtype), x)
    y = n.dense(self.hidden, name="output")(jnp.concatenate([h, context], -1))
    logits = n.dense(self.num_classes, name="classifier")(y)
    said = jnp.argmax(logits, -1).astype(jnp.int32)
    return ((h, c), context, said), {"logits": logits, "attention": attention}


class AttentionOCR(nn.Module):
  """A picture [b h w*views c] -> "features" [b views*h' w' c'] and, given num_classes, "logits"
  [b steps classes] and "attention" [b steps views*h'*w'].

  With `text` [b l] int32, which ends in the class "", a model that trains hears the text's own
  characters instead of those that it said.
  """

  backbone: Callable[..., nn.Module]  # takes num_classes, numerics and name
  annotations: str = "stage2"  # its end point that is looked at
  views: int = 1
  coordinates: bool = False
  hidden: int = 256
  steps: int = 37  # characters at most
  clip: float = 10.0
  num_classes: int | None = 134
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, text=None, *, train: bool):
    n, (b, h, w, c) = self.numerics, image.shape
    if w % self.views:
      raise ValueError(f"{self.views} views share the width evenly, and it is {w}")
    panes = image.reshape(b, h, self.views, w // self.views, c).swapaxes(1, 2)
    panes = panes.reshape(b * self.views, h, w // self.views, c)
    trunk = self.backbone(num_classes=None, numerics=n, name="backbone")
    x = trunk(panes, train=train)[self.annotations]
    x = x.reshape(b, self.views * x.shape[1], *x.shape[2:])
    ends = {"features": x}
    if self.num_classes is None:
      return ends
    if self.coordinates:
      x = jnp.concatenate([x, self._places(*x.shape[:3]).astype(x.dtype)], -1)
    x = x.reshape(b, -1, x.shape[-1])
    keys = n.dense(x.shape[-1], bias=False, name="keys")(x)
    told = None
    if train and text is not None:  # before the first character nothing is heard
      told = jnp.pad(text, ((0, 0), (0, self.steps)), mode="edge")[:, : self.steps - 1]
      told = jnp.pad(told, ((0, 0), (1, 0)), constant_values=-1)
    speak = nn.scan(
      Speller, variable_broadcast="params", split_rngs={"params": False}, out_axes=1,
      in_axes=(nn.broadcast if told is None else 1, nn.broadcast, nn.broadcast), length=self.steps,
    )(self.hidden, self.clip, self.num_classes, n, name="speller")  # fmt: skip
    zero = jnp.zeros((b, self.hidden))
    state = (zero.astype(x.dtype), zero), jnp.zeros_like(x[:, 0]), jnp.full(b, -1, jnp.int32)
    return ends | speak(state, told, x, keys)[1]

  def _places(self, b: int, height: int, width: int):
    """[b height width rows+columns]: of its view the row, of all the column, as ones."""
    rows = height // self.views
    row = jnp.tile(jnp.eye(rows), (self.views, 1))[:, None].repeat(width, 1)
    column = jnp.eye(width)[None].repeat(height, 0)
    place = jnp.concatenate([row, column], -1)
    return jnp.broadcast_to(place, (b, *place.shape))

  def read(self, ends, blank: int) -> ctc.Decoded:
    """What is said before the first `blank`."""
    return decode.spelled(ends["logits"], blank=blank)


TRUNK = partial(inception_v3.InceptionV3, last="stage2")
NUMERICS = Numerics(eps=1e-3, padding="tf")
VARIANTS = {
  "attention_ocr": partial(AttentionOCR, TRUNK, views=4, numerics=NUMERICS),  # of street signs
  "attention_ocr_line": partial(
    AttentionOCR, TRUNK, coordinates=True, steps=24, num_classes=37, numerics=NUMERICS
  ),
}
STAGES = ("backbone", "keys", "speller")
SIGNS = Line(150, 600, (0.5,) * 3, (0.4,) * 3)
UNPUBLISHED = {"attention_ocr_line": Line(64, 256, (0.5,) * 3, (0.4,) * 3)}
# In order of their numbers; where one stands for several quotes or dashes, ASCII's is written.
FSNS = (
  " l'éteinsxguo1870-.parèdcVvbm)CzSy,kÉAhE»D/HM(GPçRf\"2j|N6°5TOU3%9qZBKwW:4LF]ïIJäî;àêXüYô=+\\{}"
  "_Qœñ*!ÜâÇŒû?$ë«€&<æ#®ÂÈ>[ÆùÎÔÿÀÊ@Ï©ËÙ£ŸÛ"
)
WEIGHTS = {
  # The authors' own, trained on French Street Name Signs; no hash is published.
  "attention_ocr.fsns": Weights(
    "attention_ocr", "slim",
    "https://download.tensorflow.org/models/attention_ocr_2017_08_09.tar.gz#model.ckpt-399731", "",
    "Apache-2.0", SIGNS, fields={"norm_scale": False}, classes=charset.of(FSNS, "last")),
}  # fmt: skip
