"""Costs and end points against published figures; the command that lists them."""

import csv
import io

import pytest

import zoo
from zoo import __main__ as command


@pytest.fixture(autouse=True, scope="module")
def fresh_cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FLAXZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.mark.parametrize(
  ("name", "giga"),  # torchvision's metadata, to three digits
  [("resnet18", 1.814), ("shufflenet_v2_x1_0", 0.145), ("mobilenet_v3_small", 0.057)],
)
def test_multiply_adds(name, giga):
  assert round(zoo.info(name).multiply_adds / 1e9, 3) == giga


def test_info_is_remembered_and_complete():
  first, again = zoo.info("resnet18"), zoo.info("resnet18")
  assert first == again and first.params == 11_689_512 and first.size == 224
  names = ("stem", "stage1", "stage2", "stage3", "stage4")
  want = tuple(zoo.Feature(*row) for row in zip(names, (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)))
  assert first.features == want == zoo.feature_info("resnet18")


def test_feature_info_of_fields():
  assert [f.stride for f in zoo.feature_info("resnet18", output_stride=8)] == [2, 4, 8, 8, 8]


def test_every_model_says_which_pixels_it_takes():
  for name in zoo.names():
    assert zoo.preprocess(name).size, name


def test_unknown_variant():
  with pytest.raises(ValueError, match="did you mean 'resnet18'"):
    zoo.info("resnet1B")


def test_table_and_csv(capsys):
  command.main(["--filter=shufflenet_v2_x1_0"])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split()[:2] == ["variant", "params"]
  assert lines[1].split()[:4] == ["shufflenet_v2_x1_0", "2.28", "145", "224"]
  command.main(["--filter=*v2_x1_0", "--csv"])
  rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
  assert rows[0]["params"] == "2278604" and rows[0]["top1"] == "69.362"
  assert {row["weights"] for row in rows} == {"shufflenet_v2_x1_0.tv", "shufflenet_v2_x1_0.pcv"}


def test_a_filter_that_fits_nothing(capsys):
  with pytest.raises(SystemExit):
    command.main(["--filter=nothing"])
  assert "no variant fits 'nothing'" in capsys.readouterr().err
