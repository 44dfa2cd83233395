"""python -m train.caption and train.describe: captions, a run, what it says; bad input."""

from functools import partial
import json
import shutil

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import stamps
from tests.parity import QUICK_COMPILATION as QUICK
from train import caption, caption_report, describe, loop, optim
from train.data import captions
from zoo import catalog
from zoo.layers import Numerics
from zoo.text import caption as captioners, decode, vocabulary

pytestmark = pytest.mark.usefixtures("arguments_only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return stamps.write(tmp_path_factory.mktemp("scenes"))


class Strided(nn.Module):
  """A backbone of one layer."""

  num_classes: None = None
  numerics: Numerics = Numerics()

  @nn.compact
  def __call__(self, image, *, train):
    x = self.numerics.conv(6, 8, 8, padding=0, bias=True, name="conv1")(image)
    return {"stage4": x, "pooled": x.mean((1, 2))}


def narrow(monkeypatch):
  small = partial(captioners.ShowAttendTell, Strided, hidden=8)
  monkeypatch.setitem(catalog.VARIANTS, "show_attend_tell", small)


def test_cocos_and_karpathys_files_say_the_same(folder):
  coco, karpathy = captions.load(folder), captions.load(folder / "karpathy.json")
  assert coco.keys() == karpathy.keys() == {"train", "val", "test"}
  for split, some in coco.items():
    assert some.keys == karpathy[split].keys and some.captions == karpathy[split].captions
    assert all(len(c) == 5 for c in some.captions)
  assert coco["test"].data(3) == (folder / "images/test/000003.jpg").read_bytes()


def test_all_that_is_wrong_with_captions_is_said_at_once(folder, tmp_path):
  table = json.loads((folder / "karpathy.json").read_text())
  table["images"][0]["sentences"] = [{"raw": " ... "}]
  table["images"][1]["filename"] = "lost.jpg"
  table["images"][2]["split"] = "restval"
  shutil.copytree(folder / "images", tmp_path / "images")
  (tmp_path / "dataset.json").write_text(json.dumps(table))
  with pytest.raises(ValueError) as error:
    captions.load(tmp_path / "dataset.json")
  assert "images/train/000000.jpg has no caption" in str(error.value)
  assert "there is no" in str(error.value) and "lost.jpg" in str(error.value)
  (tmp_path / "dataset.json").write_text('{"images": [{"filename": "a.jpg"}]}')
  with pytest.raises(ValueError, match="dataset.json is no file of Karpathy's.*KeyError: 'split'"):
    captions.load(tmp_path / "dataset.json")
  with pytest.raises(ValueError, match="there is no annotations/captions_train.json"):
    captions.load(tmp_path)
  (tmp_path / "annotations").mkdir()
  rows = {"images": [], "annotations": [{"id": 7, "image_id": 1, "caption": "a bird"}]}
  (tmp_path / "annotations/captions_train.json").write_text(json.dumps(rows))
  with pytest.raises(ValueError, match="caption 7 is of no picture that is listed"):
    captions.load(tmp_path)
  with pytest.raises(FileNotFoundError, match="wanted a folder of COCO's files"):
    captions.load(tmp_path / "nowhere")


def test_rows_are_pictures_and_one_of_their_captions(folder):
  source = captions.load(folder)["train"]
  classes = vocabulary.build([c for some in source.captions for c in some], 1)
  augment = caption.transforms.Augment((1.0, 1.0), flip=0.0)
  hears = lambda rng: np.arange(12) == 3
  make = captions.train_row(source, classes, 32, 10, augment, hears)
  said = set()
  for seed in range(20):
    row = make((2, np.random.default_rng(seed)))
    said.add(vocabulary.caption(row["tokens"], classes))
    assert row["image"].shape == (32, 32, 3) and row["own"].sum() == 1
  short = {" ".join(vocabulary.words(c)[:10]) for c in source.captions[2]}
  assert said == short
  look = captions.eval_row(source, classes, lambda image: np.asarray(image), 30, False)
  told = [vocabulary.caption(look(i)["tokens"], classes) for i in range(5)]
  assert told == [" ".join(vocabulary.words(source.captions[i][i])) for i in range(5)]
  assert look(-1)["real"] == 0


def test_scheduled_sampling_hears_the_models_own_words():
  """Where one word is certain, hearing oneself is hearing that word."""
  model = captioners.ShowAndTell(Strided, 8, 9, 0.0)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
  tokens = jnp.array([[1, 4, 5, 2], [1, 6, 7, 2]])
  variables = jax.jit(
    lambda: model.init(jax.random.key(0), image, tokens, train=False), compiler_options=QUICK
  )()
  variables["params"]["classifier"]["bias"] = jnp.zeros(9).at[8].set(100.0)

  @partial(jax.jit, compiler_options=QUICK)
  def run(tokens, own):
    noise = {"dropout": jax.random.key(1)}
    return model.apply(variables, image, tokens, own, train=True, rngs=noise)["logits"]

  @partial(jax.jit, compiler_options=QUICK)
  def plain(tokens, own):  # evaluation hears the truth
    return model.apply(variables, image, tokens, own, train=False)["logits"]

  never = jnp.zeros((2, 4), bool)
  truth = plain(tokens, never)
  np.testing.assert_allclose(run(tokens, never), truth, atol=1e-5)
  own = never.at[0, 2].set(True)
  heard = run(tokens.at[0, 2].set(8), never)
  np.testing.assert_allclose(run(tokens, own), heard, atol=1e-5)
  assert abs(heard[0, 2:] - truth[0, 2:]).max() > 1e-3
  np.testing.assert_allclose(plain(tokens, own), truth, atol=1e-5)


def test_a_run_trains_scores_and_describes(folder, tmp_path, monkeypatch, capsys):
  narrow(monkeypatch)
  workdir = tmp_path / "run"
  config = loop.Config(
    model="show_attend_tell", data=str(folder), workdir=str(workdir), batch=4, steps=2, size=32
  )
  own = caption.Config(least=1, sampling=0.5, beam=2, longest=6)
  outcome = loop.run(config, caption.prepare(config, optim.Config(), own))
  assert outcome.split == "test" and {"loss", "nats", "word"} <= outcome.measured.keys()
  said, rows, scores = caption.spoken(config, own, "test")
  assert [row["image"] for row in rows] == [f"images/test/{i:06d}.jpg" for i in range(4)]
  for row in rows:
    assert len(vocabulary.words(row["caption"])) <= 6 and len(row["references"]) == 5
    assert row["neighbour"] in {c[0] for c in captions.load(folder)["train"].captions}
  assert list(scores)[0] == "model" and len(scores) == 3
  caption.leave(workdir, said, rows, scores)
  maps = np.load(workdir / "attention.npy")
  assert maps.shape[0] == 4 and maps.shape[2:] == (4, 4)
  np.testing.assert_allclose(maps[:, 0].sum((1, 2)), 1, atol=1e-2)
  page = caption_report.write(workdir).read_text()
  assert "cannot be shown" not in page and "images/test/000002.jpg" in page
  assert page.count("<article") > 8 and "most frequent caption" in page

  photo = str(folder / "images/val/000001.jpg")
  (tmp_path / "broken.jpg").write_text("no picture")
  config = describe.Config(model=str(workdir), out=str(tmp_path / "out"), beam=2, longest=6)
  assert describe.main(["", photo, str(tmp_path / "broken.jpg")], config) == 1
  said = capsys.readouterr()
  assert "000001.jpg: " in said.out and "broken.jpg: it is text" in said.err
  (answer,) = json.loads((tmp_path / "out/answers.json").read_text())
  assert -50 < answer["log_prob"] < 0 and len(answer["others"]) == 1
  assert (tmp_path / "out/0001_01.png").exists()


def test_attention_is_drawn_for_each_word():
  tokens = np.array([[4, 5, decode.END, 0], [4, decode.END, 0, 0]])
  attention = np.zeros((4, 9))
  attention[0, 4], attention[1, 0], attention[2] = 1.0, 0.5, 1 / 9
  classes = (*vocabulary.SPECIAL, "a", "bird")
  said = describe._said(classes, tokens, np.array([3, 2]), np.array([-1.0, -np.inf]), attention)
  assert said.text == "a bird" and said.words == ("a", "bird", "(end)") and said.others == ()
  seen = dict(describe.looks(np.full((30, 30, 3), 128, np.uint8), said))
  assert list(seen) == ["a", "bird", "(end)"]
  reds = {word: image[..., 0].astype(int) for word, image in seen.items()}
  assert np.unravel_index(reds["a"].argmax(), (30, 30)) != (0, 0)
  assert reds["bird"][2, 2] > reds["bird"][25, 25] and np.ptp(reds["(end)"]) == 0


def test_what_is_missing_is_said(folder, tmp_path):
  faults = {
    "--data is missing\n--workdir is missing\nresnet18 says nothing; captioners are show_and": dict(
      model="resnet18"
    ),
    'unknown model "?.?show_and_tel"?.?; did you mean': dict(model="show_and_tel"),
    "--batch=32 is more than the 8 training pictures": dict(
      model="show_and_tell", data=str(folder), workdir=str(tmp_path)
    ),
  }
  for said, fields in faults.items():
    with pytest.raises(ValueError, match=said):
      caption.prepare(loop.Config(**fields), optim.Config(), caption.Config(least=1))
  config = loop.Config(model="show_and_tell", data=str(folder), workdir=str(tmp_path))
  with pytest.raises(ValueError, match="no word occurs --least=999 times in 40 captions"):
    caption.prepare(config, optim.Config(), caption.Config(least=999))
  with pytest.raises(ValueError, match="resnet18.tv1 says nothing"):
    describe.captioner("resnet18.tv1")
  with pytest.raises(ValueError, match="name a model and photographs"):
    describe.main([""], describe.Config())
