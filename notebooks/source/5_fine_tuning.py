# %% [markdown]
# # 5. Fine-tuning with a rate for each stage
# The first stages of a network see edges and textures, which serve every task; the last ones see
# what ImageNet asked for. So the first are held, later ones learn slowly, and the fresh head fast.
# `--freeze`, `--layer_decay` and `--head_lr` of `train.classify` do this.

# %%
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from train import demo, startup
import zoo

startup.set_up_compilation()
folder = demo.photographs()
classes = sorted(path.name for path in (folder / "train").iterdir())
model, variables = zoo.load("resnet18.broccoli", num_classes=len(classes))  # with a fresh head
preprocess = zoo.preprocess("resnet18.broccoli").at(96)
STAGES = zoo.stages("resnet18")  # regular expressions of modules, from the input to the head
print(STAGES)


def photographs(split, each):
  """(views [n 96 96 3], labels [n])."""
  views, labels = [], []
  for label, name in enumerate(classes):
    for path in sorted((folder / split / name).iterdir())[:each]:
      views.append(preprocess.crop(Image.open(path).convert("RGB")))
      labels.append(label)
  return np.stack(views), np.array(labels)


# %% [markdown]
# ## Which stage a module belongs to
# **TASK.** The number of the first of `STAGES` that matches the whole name;
# `re.fullmatch(pattern, name)` is true if it does.


# %%
def stage_of(name):
  return next(i for i, p in enumerate(STAGES) if re.fullmatch(p, name))  # BLANK


found = filled(stage_of=stage_of("layer3_1"))
if found:
  for name in ("conv1", "bn1", "layer1_0", "layer3_1", "layer4_1", "fc"):
    print(f"{name:9} is of stage {stage_of(name)}")
  assert [stage_of(name) for name in ("bn1", "layer3_1", "fc")] == [0, 3, 5]
  print("Right.")

# %% [markdown]
# ## The rates
# The head learns at `rate`. The stage right before it has a tenth of that; each one before it has
# `decay` times the rate of the next.
#
# **TASK.** The rate of stage `i` of `last` stages before the head, counted from 0. Stage `last - 1`
# is the one right before the head.


# %%
def rate_of(i, last, rate, decay):
  return 0.1 * rate * decay ** (last - 1 - i)  # BLANK


rated = filled(rate_of=rate_of(4, 5, 0.1, 0.5))
if rated:
  np.testing.assert_allclose([rate_of(i, 5, 0.1, 0.5) for i in (4, 3, 2)], [0.01, 0.005, 0.0025])
  print("Right.")

# %% [markdown]
# ## The update
# Stages 0 to 2 are held: their gradient is not even computed. `optax.partition` gives each of the
# others an optimizer of its own.
#
# **TASK.** The parameters that learn: those of a stage that is not among the held ones.

# %%
HELD = 3


def learns(stage):
  return stage >= HELD  # BLANK


if filled(learns=learns(5)) and found and rated:
  assert [learns(i) for i in range(6)] == [False] * 3 + [True] * 3
  params = variables["params"]
  learned = {name: tree for name, tree in params.items() if learns(stage_of(name))}
  held = {name: tree for name, tree in params.items() if name not in learned}
  rates = {i: rate_of(i, 5, 3e-3, 0.5) for i in (3, 4)} | {5: 3e-3}
  stages = {name: stage_of(name) for name in learned}
  tx = optax.partition({i: optax.adam(rate) for i, rate in rates.items()}, stages)

  def loss(learned, views, labels):
    whole = {**variables, "params": {**held, **learned}}
    logits = model.apply(whole, preprocess.normalize(views), train=False)["logits"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(learned, opt, views, labels):
    value, grads = jax.value_and_grad(loss)(learned, views, labels)
    updates, opt = tx.update(grads, opt, learned)
    return optax.apply_updates(learned, updates), opt, value

  views, labels = photographs("train", 8)
  order = np.random.default_rng(0).permutation(len(views)).reshape(-1, 28)
  opt, after, values = tx.init(learned), learned, []
  for rows in (*order, *order):
    after, opt, value = step(after, opt, views[rows], labels[rows])
    values.append(float(value))
    print(f"loss {value:.3f}")

  def moved(name):
    """How far a module's parameters went, as a share of their size."""
    old, new = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree[name])])
                for tree in (learned, after))  # fmt: skip
    return float(jnp.linalg.norm(new - old) / jnp.linalg.norm(old))

  print({name: round(moved(name), 4) for name in sorted(learned)})
  assert moved("layer3_1") < moved("layer4_1") < moved("fc")
  assert values[-1] < 0.7 * values[0]
  print("Right: the nearer to the head, the farther it went.")
