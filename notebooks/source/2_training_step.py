# %% [markdown]
# # 2. A small network and its training step
# A training step is four lines: logits, loss, gradient, update. You write them for a small network
# that tells four kinds of fruit apart.

# %%
from flax import linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from PIL import Image

from train import demo

CLASSES = ("Granny-Smith", "Orange", "Red-Delicious", "Watermelon")


def pictures(split, each):
  """(images [n 32 32 3] of -1..1, labels [n]) of real photographs."""
  images, labels = [], []
  for label, name in enumerate(CLASSES):
    for path in sorted((demo.photographs() / split / name).iterdir())[:each]:
      images.append(np.asarray(Image.open(path).convert("RGB").resize((32, 32)), np.float32))
      labels.append(label)
  return np.stack(images) / 127.5 - 1, np.array(labels)


images, labels = pictures("train", 24)
print(images.shape, labels.shape)

# %% [markdown]
# The network: two convolutions that halve the picture, the mean over all places, one linear layer.


# %%
class Small(nn.Module):
  """[b 32 32 3] -> logits [b 4]."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(16, (3, 3), (2, 2), name="conv1")(x))
    x = nn.relu(nn.Conv(32, (3, 3), (2, 2), name="conv2")(x))
    return nn.Dense(len(CLASSES), name="fc")(x.mean((1, 2)))


model = Small()
params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
print(jax.tree.map(jnp.shape, params))

# %% [markdown]
# ## The loss
# A softmax makes probabilities of logits; the cross-entropy is minus the logarithm of the one that
# the right class gets, in the mean over the images.
#
# **TASK.** From `logs` [b c], the logarithms of all probabilities, and `labels` [b].


# %%
def cross_entropy(logits, labels):
  logs = jax.nn.log_softmax(logits)
  return -jnp.mean(logs[jnp.arange(len(labels)), labels])  # BLANK


some = np.array([[2.0, 1, 0, -1], [0, 0, 3, 0]], np.float32)
if filled(cross_entropy=cross_entropy(some, np.array([0, 1]))):
  theirs = optax.softmax_cross_entropy_with_integer_labels(some, np.array([0, 1])).mean()
  np.testing.assert_allclose(cross_entropy(some, np.array([0, 1])), theirs, rtol=1e-6)
  print(f"Right: {theirs:.4f}. Who knows nothing of four classes has {np.log(4):.4f}.")

# %% [markdown]
# ## The gradient and the update
# **TASK.** `jax.value_and_grad` makes of `loss` a function that gives its value and its gradient by
# `params`. Then optax turns the gradient into an update, and `optax.apply_updates` adds that.

# %%
tx = optax.adam(1e-2)


def loss(params, images, labels):
  return cross_entropy(model.apply({"params": params}, images), labels)


def gradient(params, images, labels):
  return jax.value_and_grad(loss)(params, images, labels)  # BLANK


def updated(params, updates):
  return optax.apply_updates(params, updates)  # BLANK


# %%
ready = filled(
  cross_entropy=cross_entropy(some, np.array([0, 1])),
  gradient=gradient(params, images[:2], labels[:2]) if cross_entropy(some, labels[:2]) is not ...
  else ...,
  updated=updated(params, params),
)  # fmt: skip
if ready:

  @jax.jit
  def step(params, opt, images, labels):
    value, grads = gradient(params, images, labels)
    updates, opt = tx.update(grads, opt, params)
    return updated(params, updates), opt, value

  opt, values, learned = tx.init(params), [], params
  for _ in range(60):
    learned, opt, value = step(learned, opt, images, labels)
    values.append(float(value))
  assert values[-1] < 0.6 * values[0]
  plt.plot(values)
  print(f"Right: in 60 steps the loss fell from {values[0]:.2f} to {values[-1]:.2f}.")

# %% [markdown]
# ## Is it right about photographs that it never saw?
# **TASK.** The share of images whose largest logit is that of their class.


# %%
def accuracy(logits, labels):
  return jnp.mean(jnp.argmax(logits, -1) == labels)  # BLANK


if filled(accuracy=accuracy(some, np.array([0, 1]))):
  assert float(accuracy(some, np.array([0, 1]))) == 0.5
  print("Right: one of two.")
  if ready:
    held, wanted = pictures("test", 20)
    share = float(accuracy(model.apply({"params": learned}, held), wanted))
    print(f"{share:.0%} of {len(held)} test photographs; guessing gets 25 %.")
