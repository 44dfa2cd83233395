"""Costs and end points against published figures; the command that lists them."""

import csv
import io

import pytest

from tests import cases
import zoo
from zoo import __main__ as command
from zoo import listing, weights


def pytest_generate_tests(metafunc):
  if "traced" in metafunc.fixturenames:
    names = sorted(zoo.names(), key=lambda name: -zoo.info(name).params)
    lightest = list({type(zoo.create(name)).__name__: name for name in names}.values())
    metafunc.parametrize("traced", names if metafunc.config.getoption("all_variants") else lightest)


def test_what_is_measured_is_as_traced(traced):
  """The lightest of each module class, or all with --all-variants."""
  pixels = zoo.preprocess(traced)
  found = listing.measure(zoo.create(traced), pixels.size, weights.in_channels(pixels))
  row = f"a line in zoo/measured.csv: {listing.line(traced, pixels.size, *found)}"
  assert listing.known(traced, pixels.size) == found, row


def test_every_variant_is_measured():
  known = {name: listing.known(name, zoo.preprocess(name).size) for name in zoo.names()}
  assert [name for name, row in known.items() if row is None] == []
  colored = {n for n in cases.PARAMS if weights.in_channels(zoo.preprocess(n)) == 3}
  assert {n: known[n][0] for n in colored} == {n: cases.PARAMS[n] for n in colored}
  assert len(colored) >= len(cases.PARAMS) - 1, "mini_xception was published for grey pictures"
  assert listing._measured().keys() == known.keys()


def test_what_is_not_measured_is_traced(monkeypatch):
  want = zoo.info("resnet18")
  monkeypatch.setattr(listing, "_measured", dict)
  assert zoo.info("resnet18") == want


@pytest.mark.parametrize(
  ("name", "giga"),  # torchvision's metadata, to three digits
  [("resnet18", 1.814), ("shufflenet_v2_x1_0", 0.145), ("mobilenet_v3_small", 0.057)],
)
def test_multiply_adds(name, giga):
  assert round(zoo.info(name).multiply_adds / 1e9, 3) == giga


def test_info_is_complete():
  first, again = zoo.info("resnet18"), zoo.info("resnet18")
  assert first == again and first.params == 11_689_512 and first.size == 224
  names = ("stem", "stage1", "stage2", "stage3", "stage4")
  want = tuple(zoo.Feature(*row) for row in zip(names, (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)))
  assert first.features == want == zoo.feature_info("resnet18")


def test_feature_info_of_fields():
  assert [f.stride for f in zoo.feature_info("resnet18", output_stride=8)] == [2, 4, 8, 8, 8]


def test_strides_where_a_margin_is_put_around_the_picture():
  found = {f.name: f.stride for f in zoo.feature_info("unet")}
  stages = {f"stage{i}": 2 ** (i - 1) for i in range(1, 6)}
  assert found == {**stages, "features": 1}


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
