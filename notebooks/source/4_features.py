# %% [markdown]
# # 4. Features and a linear head
# The cheapest way to another task: the network stays as it is and sees every photograph once; what
# it sees is kept, and one linear layer is trained on that. With your own folder,
# `python -m train.classify --cache_features` does the same.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from train import demo, startup
import zoo

startup.set_up_compilation()
folder = demo.photographs()
classes = sorted(path.name for path in (folder / "train").iterdir())
model, variables = zoo.load("resnet18.broccoli", num_classes=None)  # a backbone: no head
preprocess = zoo.preprocess("resnet18.broccoli").at(96)  # small, for a laptop
print(len(classes), "classes")

# %% [markdown]
# ## What the network sees
# **TASK.** Of the end points of the backbone, the one that is the mean of the last stage over its
# places: one vector for each photograph. Chapter 3 printed their names.


# %%
def seen(ends):
  return ends["pooled"]  # BLANK


@jax.jit
def run(variables, views):
  return model.apply(variables, preprocess.normalize(views), train=False)


def features(split, each):
  """(features [n d], labels [n])."""
  rows, labels = [], []
  for label, name in enumerate(classes):
    paths = sorted((folder / split / name).iterdir())[:each]
    views = [preprocess.crop(Image.open(path).convert("RGB")) for path in paths]
    rows += list(np.asarray(seen(run(variables, np.stack(views)))))
    labels += [label] * each
  return np.stack(rows), np.array(labels)


ready = filled(seen=seen({"pooled": np.zeros((1, 512))}))
if ready:
  x, y = features("train", 8)
  held, wanted = features("test", 8)
  assert x.shape == (112, 512)
  print("Right:", x.shape[0], "photographs, each of them", x.shape[1], "numbers.")

# %% [markdown]
# ## The gradient of a linear head
# The logits are `x @ kernel + bias`, the loss is the cross-entropy of chapter 2. Its gradient by
# the logits is short: the probabilities minus 1 at the right class, divided by the number of
# images.
#
# **TASK.** That gradient [n c] goes back through `x @ kernel`: what is the gradient by `kernel`
# [d c]?


# %%
def kernel_gradient(x, by_logits):
  return x.T @ by_logits  # BLANK


def by_logits(x, y, kernel, bias):
  return (jax.nn.softmax(x @ kernel + bias) - jax.nn.one_hot(y, len(classes))) / len(x)


def loss(kernel, bias, x, y):
  logs = jax.nn.log_softmax(x @ kernel + bias)
  return -jnp.mean(logs[jnp.arange(len(y)), y])


small, some = np.eye(3, 5, dtype=np.float32), np.array([0, 3, 7])
kernel, bias = jnp.zeros((5, len(classes))), jnp.zeros(len(classes))
if filled(kernel_gradient=kernel_gradient(small, by_logits(small, some, kernel, bias))):
  mine = kernel_gradient(small, by_logits(small, some, kernel, bias))
  np.testing.assert_allclose(mine, jax.grad(loss)(kernel, bias, small, some), atol=1e-6)
  print("Right: jax.grad says the same.")

# %% [markdown]
# ## Training
# **TASK.** One step of gradient descent: the kernel after it, from the kernel, its gradient and the
# rate.


# %%
def descended(kernel, gradient, rate):
  return kernel - rate * gradient  # BLANK


trained = filled(
  kernel_gradient=kernel_gradient(small, by_logits(small, some, kernel, bias)),
  descended=descended(1.0, 2.0, 0.1),
)
trained = trained and ready
if trained:

  @jax.jit
  def step(kernel, bias):
    gradient = by_logits(x, y, kernel, bias)
    kernel = descended(kernel, kernel_gradient(x, gradient), 0.02)
    return kernel, descended(bias, gradient.sum(0), 0.02)

  kernel, bias = jnp.zeros((512, len(classes))), jnp.zeros(len(classes))
  for i in range(301):
    if i % 100 == 0:
      print(f"step {i}: loss {loss(kernel, bias, x, y):.3f}")
    kernel, bias = step(kernel, bias)
  assert loss(kernel, bias, x, y) < 0.5
  print("Right: that took no time at all, since the network did not run.")

# %% [markdown]
# ## How good it is, class by class
# **TASK.** The share of right answers among the photographs of class `c`.


# %%
def accuracy_of(c, answers, labels):
  return np.mean(answers[labels == c] == c)  # BLANK


if filled(accuracy_of=accuracy_of(1, np.array([1, 0, 1]), np.array([1, 1, 0]))):
  assert accuracy_of(1, np.array([1, 0, 1]), np.array([1, 1, 0])) == 0.5
  if trained:
    answers = np.asarray(jnp.argmax(held @ kernel + bias, -1))
    each = [accuracy_of(c, answers, wanted) for c in range(len(classes))]
    for name, share in zip(classes, each):
      print(f"{share:7.1%}  {name}")
    print(f"mean of the classes {np.mean(each):.1%}, over all {np.mean(answers == wanted):.1%}")
  print("Right.")
