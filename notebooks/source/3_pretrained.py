# %% [markdown]
# # 3. A pretrained network, and what it sees
# `zoo.load` brings a ResNet-18 with the weights that it learned on ImageNet. It was trained on
# pixels of one form, and it gives all of its end points, not only the last.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from train import demo, startup
import zoo
from zoo import explain, weights

startup.set_up_compilation()
model, variables = zoo.load("resnet18.broccoli")
preprocess = zoo.preprocess("resnet18.broccoli")
names = weights.imagenet_classes()
folder = demo.photographs() / "test"
paths = [sorted((folder / kind).iterdir())[0] for kind in ("Granny-Smith", "Orange")]
views = np.stack([preprocess.crop(Image.open(path).convert("RGB")) for path in paths])
print(preprocess)

# %% [markdown]
# ## Pixels as the network wants them
# **TASK.** `pixels` are numbers of 0..255. Bring them to 0..1, take `mean` away and divide by
# `std`; both are of pixels in 0..1, one number for each of red, green and blue.


# %%
def normalized(pixels, mean, std):
  return (pixels / 255 - mean) / std  # BLANK


if filled(normalized=normalized(views, np.array(preprocess.mean), np.array(preprocess.std))):
  mine = normalized(views, np.array(preprocess.mean), np.array(preprocess.std))
  np.testing.assert_allclose(mine, preprocess.normalize(views), atol=1e-4)
  print("Right: every checkpoint's record has its own two.")

# %% [markdown]
# ## End points
# One call gives a dictionary: the stem, four stages, the mean over places and the logits.

# %%
image = preprocess.normalize(views)
ends = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
print({name: end.shape for name, end in ends.items()})

# %% [markdown]
# ## The five most probable classes
# **TASK.** Probabilities [b c] of logits [b c]: exponentials, divided by their sum.


# %%
def softmax(logits):
  return jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)  # BLANK


# %% [markdown]
# **TASK.** The numbers of the five largest of `probs` [c], the largest first.


# %%
def first_five(probs):
  return np.argsort(-probs)[:5]  # BLANK


if filled(softmax=softmax(ends["logits"]), first_five=first_five(np.arange(9.0))):
  probs = np.asarray(softmax(ends["logits"]))
  np.testing.assert_allclose(probs, jax.nn.softmax(ends["logits"]), rtol=1e-4)
  assert list(first_five(np.arange(9.0))) == [8, 7, 6, 5, 4]
  for path, own in zip(paths, probs):
    print(path.parent.name)
    for c in first_five(own):
      print(f"  {own[c]:6.1%}  {names[c]}")
  assert names[probs[0].argmax()] == "Granny Smith"
  print("Right, but for the orange, which it takes for a lemon: chapters 4 and 5 see to that.")

# %% [markdown]
# ## Where it looked
# Grad-CAM weighs the channels of the last stage by how much the class's logit rises with them.
#
# **TASK.** Which classes shall be explained: the most probable one of each picture, [b].


# %%
def most_probable(logits):
  return jnp.argmax(logits, -1)  # BLANK


if filled(most_probable=most_probable(ends["logits"])):
  classes = most_probable(ends["logits"])
  maps = explain.grad_cam(model, variables, image, classes)
  print("one map of", maps.shape[1:], "for each picture")
  for i, view in enumerate(views):
    large = jax.image.resize(maps[i], view.shape[:2], "bilinear")
    plt.subplot(1, len(views), i + 1)
    plt.imshow(view)
    plt.imshow(large, alpha=0.5, cmap="jet")
    plt.title(names[int(classes[i])])
  np.testing.assert_array_equal(classes, np.asarray(ends["logits"]).argmax(1))
  print("Right.")
