# %% [markdown]
# # 6. Where did it look, and what looks alike
# The vector of a photograph is the mean of a map of vectors. So the head can be asked at every
# place of the map where the class is; and two photographs are alike if their vectors point the same
# way.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from train import demo, startup
import zoo
from zoo import explain, retrieve

startup.set_up_compilation()
folder = demo.photographs() / "test"
kinds = ("Granny-Smith", "Orange", "Red-Delicious", "Watermelon")
paths = [path for kind in kinds for path in sorted((folder / kind).iterdir())[:4]]
model, variables = zoo.load("resnet18.broccoli")
preprocess = zoo.preprocess("resnet18.broccoli")
views = np.stack([preprocess.crop(Image.open(path).convert("RGB")) for path in paths])
ends = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, preprocess.normalize(views))
print({name: end.shape for name, end in ends.items()})

# %% [markdown]
# ## The class activation map
# The logit of a class is `mean(stage4) @ kernel[:, c] + bias[c]`. The mean can wait: the same
# product at every place is a map of where the class is.
#
# **TASK.** The map [h w] of one photograph from `places` [h w d], its stage4, and `weights` [d],
# the kernel's column of the class.


# %%
def class_map(places, weights):
  return places @ weights  # BLANK


number = int(ends["logits"][0].argmax())
column = jnp.asarray(variables["params"]["fc"]["kernel"])[:, number]
if filled(class_map=class_map(ends["stage4"][0], column)):
  mine = class_map(ends["stage4"][0], column)
  theirs = explain.cam(model, variables, preprocess.normalize(views[:1]), np.array([number]))[0]
  np.testing.assert_allclose(mine, theirs, rtol=1e-2, atol=1e-2)
  bias = variables["params"]["fc"]["bias"][number]
  np.testing.assert_allclose(mine.mean() + bias, ends["logits"][0, number], rtol=1e-3)
  plt.imshow(views[0])
  plt.imshow(jax.image.resize(mine, views[0].shape[:2], "bilinear"), alpha=0.5, cmap="jet")
  print("Right: zoo.explain.cam draws the same map, and its mean is the logit less the bias.")

# %% [markdown]
# ## What looks alike
# **TASK.** Vectors [n d] at unit length: each divided by the root of the sum of its squares.


# %%
def unit(vectors):
  return vectors / jnp.sqrt(jnp.sum(vectors**2, 1, keepdims=True))  # BLANK


# %% [markdown]
# **TASK.** The cosine of each of `queries` [q d] with each of `rows` [n d], all of unit length:
# [q n].


# %%
def cosine(queries, rows):
  return queries @ rows.T  # BLANK


flat = jnp.array([[3.0, 4.0]])
if filled(unit=unit(flat), cosine=cosine(flat, flat)):
  vectors = unit(ends["pooled"])
  np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, rtol=1e-4)
  scores = np.array(cosine(vectors, vectors))
  np.fill_diagonal(scores, -1)  # a photograph does not find itself
  mine = scores.argmax(1)
  theirs, _ = retrieve.nearest(vectors, np.asarray(vectors), 1, exclude=np.arange(len(paths)))
  np.testing.assert_array_equal(mine, theirs[:, 0])
  for path, other in zip(paths, mine):
    print(f"{path.parent.name:14} is most like {paths[other].parent.name}")
  right = np.mean([path.parent == paths[other].parent for path, other in zip(paths, mine)])
  assert right > 0.5
  print(f"Right: {right:.0%} find their own kind, of which nobody told the network.")
