# %% [markdown]
# # 1. Convolution, pooling and the receptive field, by hand
# A convolution lays a small kernel over every place of a picture, multiplies what lies over each
# other, and adds up. You write that for one place, and compare with the layer that every network of
# the zoo uses.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from train import demo
from zoo.ops import conv as ops

path = sorted((demo.photographs() / "test" / "Watermelon").iterdir())[0]
grey = np.asarray(Image.open(path).convert("L").resize((48, 48)), np.float32) / 255
plt.imshow(grey, cmap="gray")

# %% [markdown]
# ## One number of a convolution
# **TASK.** `window` [3 3] is a part of the picture, `kernel` [3 3] holds the weights. What does the
# convolution give there?


# %%
def at_one_place(window, kernel):
  return np.sum(window * kernel)  # BLANK


# %% [markdown]
# The kernel below answers to edges that stand upright. It goes over all places; a picture of 48
# pixels has 46 of them, as no border is added.

# %%
upright = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
if filled(at_one_place=at_one_place(grey[:3, :3], upright)):
  places = range(46)
  mine = np.array([[at_one_place(grey[i : i + 3, j : j + 3], upright) for j in places]
                   for i in places])  # fmt: skip
  theirs = ops.conv(grey[None, :, :, None], upright[:, :, None, None], padding="VALID")
  np.testing.assert_allclose(mine, theirs[0, :, :, 0], atol=1e-5)
  plt.imshow(mine, cmap="gray")
  print("Right: the layer gives the same 46 x 46 numbers.")

# %% [markdown]
# ## How large the answer is
# **TASK.** A picture has `n` pixels in a row; `padding` more are added at *both* ends; the kernel
# has `kernel` pixels and moves on by `stride`. How many numbers come out?


# %%
def size_after(n, kernel, stride, padding):
  return (n + 2 * padding - kernel) // stride + 1  # BLANK


if filled(size_after=size_after(48, 3, 1, 0)):
  for n, kernel, stride, padding in ((48, 3, 1, 0), (224, 7, 2, 3), (112, 3, 2, 1), (55, 5, 3, 2)):
    layer = partial(ops.conv, stride=(stride, stride), padding=((padding, padding),) * 2)
    y = jax.eval_shape(layer, jnp.zeros((1, n, n, 3)), jnp.zeros((kernel, kernel, 3, 8)))
    assert size_after(n, kernel, stride, padding) == y.shape[1]
  print("Right: 224 pixels become", size_after(224, 7, 2, 3), "in the first layer of a ResNet.")

# %% [markdown]
# ## Pooling
# **TASK.** A pool has no weights: of the numbers in its window it takes the largest.


# %%
def largest(window):
  return np.max(window)  # BLANK


if filled(largest=largest(grey[:2, :2])):
  mine = np.array([[largest(grey[i : i + 2, j : j + 2]) for j in range(0, 48, 2)]
                   for i in range(0, 48, 2)])  # fmt: skip
  theirs = ops.max_pool(grey[None, :, :, None], (2, 2), stride=(2, 2))[0, :, :, 0]
  np.testing.assert_array_equal(mine, theirs)
  print("Right: half as many pixels in each direction,", mine.shape)

# %% [markdown]
# ## The receptive field
# How much of the picture does one number of a deep layer see? After a layer, neighbours lie `jump`
# pixels of the picture apart and see `field` pixels. At first both are 1. A layer with a kernel of
# `k` sees `k` neighbours: its field grows by `(k - 1)` jumps. Then its stride multiplies the jump.
#
# **TASK.** Both after one more layer, from those before it.


# %%
def grown(field, kernel, jump):
  return field + (kernel - 1) * jump  # BLANK


def jumped(jump, stride):
  return jump * stride  # BLANK


# %% [markdown]
# The beginning of a ResNet-18: a convolution of 7 with stride 2, a pool of 3 with stride 2, two
# convolutions of 3. What a number sees is where its gradient by the picture is not zero.

# %%
layers = ((7, 2), (3, 2), (3, 1), (3, 1))


def middle(picture, depth):
  """The number in the middle behind the first `depth` layers, each of which adds up its window."""
  x = picture
  for kernel, stride in layers[:depth]:
    weights = jnp.ones((kernel, kernel, 1, 1))
    x = ops.conv(x, weights, stride=(stride, stride), padding="VALID", plain=True)
  return x[0, x.shape[1] // 2, x.shape[2] // 2, 0]


if filled(grown=grown(1, 7, 1), jumped=jumped(1, 2)):
  field, jump = 1, 1
  for depth, (kernel, stride) in enumerate(layers, start=1):
    field, jump = grown(field, kernel, jump), jumped(jump, stride)
    gradient = jax.jit(jax.grad(middle), static_argnums=1)
    seen = gradient(jnp.zeros((1, 99, 99, 1)), depth)[0, :, :, 0] != 0
    assert field == int(seen.any(1).sum()), (depth, field)
    print(f"after layer {depth}: sees {field} pixels, neighbours are {jump} apart")
  print("Right: the gradient says the same.")
