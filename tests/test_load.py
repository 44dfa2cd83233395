"""What `zoo.load` promises beyond the front door: the cache, files of runs, numbers, misfits."""

import dataclasses
import hashlib
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from convert import readers
import zoo
from zoo import catalog, fetch, store, weights

VARIANT = "mobilenetv2_035"
FIELDS = {"depth": 0.3, "eps": 1e-3, "padding": "tf"}  # small, with numbers of its own
TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
         "var": "running_var"}  # fmt: skip


def flat(variables) -> dict:
  return traverse_util.flatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def arrays():
  """Random variables of the checkpoint, {path: array}."""
  rng = np.random.default_rng(0)
  target = flat(zoo.shapes(zoo.create(VARIANT, **FIELDS)))
  return {path: rng.normal(size=a.shape).astype(np.float32) for path, a in target.items()}


@pytest.fixture
def published(tmp_path, monkeypatch, arrays):
  """ "mobilenetv2_035.test", a checkpoint in timm's names; returns the list of what was fetched."""
  file = tmp_path / "published.safetensors"
  foreign = {}
  for path, array in arrays.items():
    module, _, leaf = path.partition("/")[2].rpartition("/")
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
    name = re.sub(r"(?<=blocks)_(\d)_(\d)", r".\1.\2", module).replace("/", ".")
    foreign[f"{name}.{TORCH[leaf]}"] = np.ascontiguousarray(array.transpose(axes))
  safetensors.numpy.save_file(foreign, file)
  sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
  pixels = zoo.Preprocess(size=96, resize=110)
  row = zoo.Weights(VARIANT, "timm", "hf:us/test/model.safetensors", sha256, "MIT", pixels,
                    fields=FIELDS)  # fmt: skip
  monkeypatch.setitem(catalog.WEIGHTS, f"{VARIANT}.test", row)
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path / "cache"))
  asked = []

  def fetched(where, sha256="", beside=()):
    asked.append(where)
    return file

  monkeypatch.setattr(fetch, "fetch", fetched)
  return asked


NAME = f"{VARIANT}.test"


def same(got, want, but=()):
  got, want = flat(got), want
  assert got.keys() == want.keys()
  differ = {p for p in want if p not in but and not np.array_equal(got[p], want[p])}
  assert not differ


def test_fields_of_a_run_leave_those_of_the_checkpoint(published):
  model = zoo.create(NAME, dtype=jnp.bfloat16, freeze_norm=True, num_classes=None)
  n = model.numerics
  assert (n.eps, n.padding, n.dtype, n.freeze_norm) == (1e-3, "tf", jnp.bfloat16, True)
  assert (model.depth, model.num_classes) == (0.3, None)
  assert zoo.create(NAME, eps=1e-5).numerics.eps == 1e-5  # asked for, so given
  assert zoo.create(VARIANT).numerics.eps == 1e-5  # the variant itself is untouched


def test_load_is_the_checkpoint_and_is_fetched_once(published, arrays, monkeypatch):
  model, variables = zoo.load(NAME)
  same(variables, arrays)
  assert published == ["hf:us/test/model.safetensors"]
  assert (model.numerics.eps, model.numerics.padding) == (1e-3, "tf")
  known = zoo.record(NAME)
  assert (known.variant, known.weights) == (VARIANT, NAME)
  assert zoo.preprocess(NAME).size == 96

  monkeypatch.setattr(readers, "read", None)  # nor is anything converted again
  model, variables = zoo.load(NAME)
  same(variables, arrays)
  assert len(published) == 1

  def base(array):
    return base(array.base) if isinstance(array.base, np.ndarray) else array

  kernel = flat(variables)["params/conv_head/kernel"]
  assert isinstance(base(kernel), np.memmap) and not kernel.flags.writeable
  header = store.read_record(zoo.converted_path(NAME))
  assert header.provenance["license"] == "MIT"
  assert header.provenance["where"] == "hf:us/test/model.safetensors"


def test_another_image_size_takes_the_same_variables(published):
  model, variables = zoo.load(NAME)
  for height, width in ((96, 96), (64, 160)):
    image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    ends = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
    assert ends["logits"].shape == (2, 1000)
    assert ends["stem"].shape[1:3] == (height // 2, width // 2)


def test_a_saved_file_loads_back(published, arrays, tmp_path):
  classes = ("cup", "jug", "pot")
  mine = {p: a[..., :3] if "classifier" in p else a for p, a in arrays.items()}
  known = zoo.Record(
    VARIANT, NAME, {"num_classes": 3, "freeze_norm": True}, classes=classes,
    preprocess=dataclasses.replace(zoo.preprocess(NAME), channels="BGR", mean=(0.1, 0.2, 0.3)),
  )  # fmt: skip
  path = tmp_path / "run" / "model.safetensors"
  store.save(path, traverse_util.unflatten_dict(mine, sep="/"), known)
  for place in (path, path.parent, str(path)):  # the folder of a run will do
    model, variables = zoo.load(place)
    same(variables, mine)
    assert zoo.record(place) == known and zoo.preprocess(place) == known.preprocess
    assert (model.num_classes, model.depth) == (3, 0.3)
    assert (model.numerics.eps, model.numerics.freeze_norm) == (1e-3, True)
  assert published == []
  assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_files_that_are_not_ours(tmp_path):
  foreign = tmp_path / "theirs.safetensors"
  safetensors.numpy.save_file({"conv1.weight": np.zeros(3, np.float32)}, foreign)
  with pytest.raises(ValueError, match="was not written by flaxzoo.*python -m convert"):
    zoo.load(foreign)
  with pytest.raises(FileNotFoundError, match="no weights at .*nowhere.safetensors"):
    zoo.load("nowhere.safetensors")
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="a training run writes model.safetensors there"):
    zoo.load(tmp_path / "empty")


def test_graft_lists_all_misfits_in_one_error():
  def tree(**shapes):
    return {"params": {name: {"kernel": np.zeros(shape)} for name, shape in shapes.items()}}

  have = tree(conv1=(3, 3, 3, 8), conv2=(3, 3, 8, 8), extra=(4,), fc=(8, 10))
  want = tree(conv1=(5, 5, 3, 8), conv2=(3, 3, 8, 9), more=(4,), fc=(8, 2))
  with pytest.raises(ValueError) as error:
    weights.graft(have, want, None, "fc")
  assert str(error.value).splitlines() == [
    "the weights do not fit the model:",
    "  missing params/more/kernel (4,)",
    "  shape   params/conv1/kernel (5, 5, 3, 8) <- (3, 3, 3, 8)",
    "  shape   params/conv2/kernel (3, 3, 8, 9) <- (3, 3, 8, 8)",
    "  unused  params/extra/kernel (4,)",
  ]
