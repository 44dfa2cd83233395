"""The two views of a picture, and batches as a function of the step."""

import ast
import io
import itertools
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
import pytest

from tests import parity
from train.data import pipeline, randaugment, transforms
from train.data.sources import FolderSource
from train.data.transforms import Augment
from zoo.weights import Preprocess


def jpeg(height=40, width=56, seed=0, **options) -> bytes:
  coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  image.save(file, "JPEG", **{"quality": 90, **options})
  return file.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
  """22 photographs of different shapes; the label is the number."""
  root = tmp_path_factory.mktemp("photographs")
  keys = tuple(f"{i:02d}.jpg" for i in range(22))
  for i, key in enumerate(keys):
    (root / key).write_bytes(jpeg(30 + i, 60 - i, seed=i))
  return FolderSource(root, keys, np.arange(22, dtype=np.int32))


def take(count, source, **options):
  options = {"batch": 4, "size": 24, "seed": 7} | options
  batches = pipeline.train_batches(source, **options)
  taken = list(itertools.islice(batches, count))
  batches.close()
  return taken


def assert_equal_batches(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# ---- training batches


def test_batches_hold_the_contract(source):
  (batch,) = take(1, source)
  shapes = {key: (value.shape, str(value.dtype)) for key, value in batch.items()}
  assert shapes == {
    "image": ((4, 24, 24, 3), "uint8"), "label": ((4,), "int32"), "real": ((4,), "float32"),
  }  # fmt: skip
  assert batch["real"].all()


def test_any_number_of_threads_gives_the_same_bits(source):
  want = take(7, source, threads=1)
  for threads in (0, 2, 5):
    assert_equal_batches(take(7, source, threads=threads), want)


def test_resumes_at_any_step_by_the_step_alone(source):
  want = take(13, source)
  for start in (1, 4, 5, 6, 11):  # an epoch has 5 steps
    assert_equal_batches(take(2, source, start_step=start), want[start : start + 2])


def test_epochs_show_each_picture_once_in_a_new_order(source):
  epochs = np.stack([b["label"] for b in take(50, source)]).reshape(10, 20)
  assert all(len(set(epoch)) == 20 for epoch in epochs)  # 5 full batches of 22 pictures
  assert len({tuple(epoch) for epoch in epochs}) == 10
  left_out = [set(range(22)) - set(epoch) for epoch in epochs]
  assert len(set.union(*left_out)) > 2  # not the same two every time


def test_augmentation_differs_between_epochs_and_seeds(tmp_path):
  (tmp_path / "a.jpg").write_bytes(jpeg())
  one = FolderSource(tmp_path, ("a.jpg",), np.zeros(1, np.int32))
  views = [b["image"].tobytes() for b in take(8, one, batch=1)]
  views += [b["image"].tobytes() for b in take(8, one, batch=1, seed=8)]
  assert len(set(views)) == 16


def test_processes_share_each_batch(source):
  whole = take(8, source)
  parts = [take(8, source, process_index=i, process_count=2) for i in range(2)]
  for batch, *both in zip(whole, *parts):
    for name, rows in batch.items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in both]), rows)
  resumed = take(3, source, process_index=1, process_count=2, start_step=5)
  assert_equal_batches(resumed, parts[1][5:])


def test_wrong_sizes_are_sentences(source):
  with pytest.raises(ValueError, match="22 training images, fewer than one batch of 32; set the"):
    pipeline.train_batches(source, batch=32, size=24, seed=0)
  with pytest.raises(ValueError, match="at least one image, not 0"):
    pipeline.train_batches(source, batch=0, size=24, seed=0)
  with pytest.raises(ValueError, match="batch of 4 cannot be shared by 3 processes"):
    pipeline.train_batches(source, batch=4, size=24, seed=0, process_count=3)
  with pytest.raises(ValueError, match="seed must be within"):
    pipeline.train_batches(source, batch=4, size=24, seed=-1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_file_is_named(source, tmp_path, threads):
  (tmp_path / "good.jpg").write_bytes(jpeg())
  (tmp_path / "bad.jpg").write_bytes(jpeg()[:-300])
  pair = FolderSource(tmp_path, ("good.jpg", "bad.jpg"), np.zeros(2, np.int32))
  with pytest.raises(ValueError, match="cannot decode bad.jpg: it is cut short .* and run again"):
    take(1, pair, batch=2, threads=threads)
  with pytest.raises(ValueError, match="cannot decode bad.jpg"):
    list(pipeline.eval_batches(pair, batch=2, view=Preprocess().crop, threads=threads))


def test_no_more_is_read_ahead_than_a_few_batches(source):
  class Counting:
    keys, reads = source.keys, 0

    def __len__(self):
      return len(source)

    def __getitem__(self, index):
      self.reads += 1
      return source[index]

  counting = Counting()
  take(1, counting, threads=2)
  assert 4 <= counting.reads <= 4 * (1 + 2 + 1)


# ---- evaluation batches


def test_evaluation_sees_all_rows_once_and_pads_the_last_batch(source):
  preprocess = Preprocess(size=20, resize=24)
  batches = list(pipeline.eval_batches(source, batch=8, view=preprocess.crop))
  assert [b["real"].sum() for b in batches] == [8, 8, 6]
  index = np.concatenate([b["index"] for b in batches])
  np.testing.assert_array_equal(index, [*range(22), -1, -1])
  last = batches[-1]
  assert last["image"].shape == (8, 20, 20, 3)
  assert not last["image"][6:].any() and not last["label"][6:].any()
  assert {k: str(v.dtype) for k, v in last.items()} == {
    "image": "uint8", "label": "int32", "real": "float32", "index": "int32",
  }  # fmt: skip
  pixels = Image.fromarray(transforms.decode(source[3]["image"]))
  np.testing.assert_array_equal(batches[0]["image"][3], preprocess.crop(pixels))


def test_evaluation_of_a_part_is_spread_evenly(source):
  batches = pipeline.eval_batches(source, batch=5, view=Preprocess().crop, limit=5)
  assert [list(b["index"]) for b in batches] == [[0, 4, 8, 13, 17]]
  batches = pipeline.eval_batches(source, batch=50, view=Preprocess().crop, limit=99)
  assert [b["real"].sum() for b in batches] == [22]


def test_evaluation_by_two_processes(source):
  options = {"batch": 8, "view": Preprocess(size=8, resize=8).crop, "process_count": 2}
  parts = [list(pipeline.eval_batches(source, process_index=i, **options)) for i in range(2)]
  assert [len(part) for part in parts] == [3, 3]
  seen = np.concatenate([b["index"] for both in zip(*parts) for b in both])
  assert seen.tolist() == [*range(22), -1, -1]


SHAPES = [(300, 400), (301, 399), (97, 131), (131, 98), (224, 224), (256, 256), (257, 255),
          (60, 900)]  # fmt: skip
VIEWS = [
  Preprocess(),
  Preprocess(size=223, resize=255),
  Preprocess(size=96, resize=97, interpolation="bicubic"),
  Preprocess(size=131, resize=128),  # larger than the picture: black around it
  Preprocess(size=128, resize=131).at(75),
  Preprocess(size=64, resize=70, squash=True),
]


@pytest.mark.parametrize("preprocess", VIEWS, ids=lambda p: f"{p.size}of{p.resize}")
def test_evaluation_view_equals_torchvision(preprocess):
  parity.import_torchvision()
  from torchvision import transforms as original

  side = (preprocess.resize, preprocess.resize) if preprocess.squash else preprocess.resize
  mode = original.InterpolationMode(preprocess.interpolation)
  view = original.Compose(
    [original.Resize(side, mode, antialias=True), original.CenterCrop(preprocess.size)]
  )
  for shape in SHAPES:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    np.testing.assert_array_equal(preprocess.crop(image), np.asarray(view(image)), str(shape))


# ---- the training view


def test_crops_keep_scale_and_ratio():
  rng = np.random.default_rng(0)
  augment = Augment(scale=(0.2, 0.4), ratio=(0.7, 1.4))
  boxes = np.array([transforms.crop_box(rng, 300, 400, augment) for _ in range(2000)])
  top, left, height, width = boxes.T
  assert (top >= 0).all() and (top + height <= 300).all()
  assert (left >= 0).all() and (left + width <= 400).all()
  share, ratio = height * width / (300 * 400), width / height
  assert 0.198 < share.min() < 0.21 and 0.39 < share.max() < 0.403
  assert 0.69 < ratio.min() < 0.72 and 1.37 < ratio.max() < 1.42
  assert abs(np.median(np.log(ratio))) < 0.04  # as often wide as high
  assert share.mean() == pytest.approx(0.3, abs=0.01)  # uniform
  assert top.min() == 0 and (top + height).max() == 300  # reaches the borders


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 1000)])
def test_crops_of_thin_pictures(shape):
  rng = np.random.default_rng(0)
  for _ in range(20):
    top, left, height, width = transforms.crop_box(rng, *shape, Augment())
    assert 1 <= height <= shape[0] - top and 1 <= width <= shape[1] - left
  assert transforms.train_view(jpeg(*shape), rng, 16, Augment()).shape == (16, 16, 3)


def test_without_augmentation_the_middle_square_is_shown():
  assert transforms.crop_box(None, 40, 56, None) == (0, 8, 40, 40)
  assert transforms.crop_box(None, 57, 40, None) == (8, 0, 40, 40)
  data = jpeg(40, 56)
  view = transforms.train_view(data, np.random.default_rng(0), 40, None)
  np.testing.assert_array_equal(view, transforms.decode(data)[:, 8:48])


def test_flip_is_a_mirror_and_happens_as_often_as_asked():
  data = jpeg()
  views = [
    transforms.train_view(data, np.random.default_rng(0), 24, Augment(flip=flip)) for flip in (0, 1)
  ]
  np.testing.assert_array_equal(views[0], views[1][:, ::-1])
  rng, still = np.random.default_rng(0), Augment(scale=(1, 1), ratio=(1, 1))
  plain = transforms.train_view(data, rng, 24, None)
  flips = [np.array_equal(transforms.train_view(data, rng, 24, still), plain) for _ in range(200)]
  assert 70 < sum(flips) < 130


def turned(orientation, height, width) -> tuple[bytes, np.ndarray]:
  """A photograph with an EXIF tag, and its pixels as stored."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = jpeg(height, width, exif=exif)
  return data, np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_of_a_turned_picture(orientation):
  data, stored = turned(orientation, 33, 50)
  upright, header = transforms.decode(data), transforms.read_jpeg_header(data)
  assert header.upright == upright.shape[:2]
  for seed in range(5):
    box = transforms.crop_box(np.random.default_rng(seed), *header.upright, Augment())
    (top, left, h, w), (y, x, p, q) = box, header.stored_box(*box)
    want = upright[top : top + h, left : left + w]
    np.testing.assert_array_equal(
      transforms._upright(stored[y : y + p, x : x + q], orientation), want
    )
    view = transforms.train_view(data, np.random.default_rng(seed), 16, Augment(flip=0))
    assert np.abs(view.astype(int) - transforms.resize(want, 16)).max() <= 1


@pytest.mark.parametrize("orientation,height,width", [(1, 1200, 1600), (1, 1203, 901),
                                                      (8, 1203, 901)])  # fmt: skip
def test_reduced_decoding_shows_the_same_crop(orientation, height, width):
  data, stored = turned(orientation, height, width)
  header = transforms.read_jpeg_header(data)
  factors = set()
  for seed in range(6):
    view = transforms.train_view(data, np.random.default_rng(seed), 32, Augment(flip=0))
    box = header.stored_box(
      *transforms.crop_box(np.random.default_rng(seed), *header.upright, Augment())
    )
    _, factor = transforms._decode_reduced(data, header, min(box[2:]) / 32, header.height)
    top, left, h, w = (v // factor * factor for v in box)
    want = transforms.resize(stored[top : top + h, left : left + w], 32)
    assert np.abs(view.astype(int) - transforms._upright(want, orientation)).mean() < 0.6
    assert min(box[2:]) / factor >= 32
    factors.add(factor)
  assert max(factors) > 2


@pytest.mark.parametrize("options", [
  {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"restart_marker_blocks": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_rows_below_a_crop_are_not_decoded_and_change_nothing(options, factor):
  data = jpeg(133, 90, **options)
  header = transforms.read_jpeg_header(data)
  whole, _ = transforms._decode_reduced(data, header, factor, header.height)
  assert whole.shape == (-(-133 // factor), -(-90 // factor), 3)
  for bottom in range(1, 134):
    top, reduced = transforms._decode_reduced(data, header, factor, bottom)
    assert reduced == factor and len(top) <= (bottom - 1) // factor + 3
    np.testing.assert_array_equal(top[: bottom // factor], whole[: bottom // factor])


def test_files_that_are_not_whole_or_not_baseline_are_read_to_the_end():
  assert transforms.read_jpeg_header(jpeg(64, 48)).height_at is not None
  assert transforms.read_jpeg_header(jpeg(64, 48, progressive=True)).height_at is None
  short = jpeg(64, 48)[:-40]
  assert transforms.read_jpeg_header(short).height_at is None
  rng = np.random.default_rng(0)
  with pytest.raises(transforms.UnreadableImage, match="cut short"):
    transforms.train_view(short, rng, 8, Augment(scale=(0.08, 0.09)))


def test_resize_averages_when_shrinking_and_interpolates_when_enlarging():
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  blocks = noise.reshape(16, 4, 16, 4, 3).mean((1, 3))
  assert np.abs(transforms.resize(noise, 16) - blocks).max() <= 1
  ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
  large = transforms.resize(ramp, 32)
  assert (np.diff(large[0, :, 0].astype(int)) >= 0).all() and len(set(large[0, :, 0])) > 25


@pytest.mark.parametrize("ratio", [1.2, 1.5, 1.75])
def test_resize_is_near_the_antialiased_triangle(ratio):
  """On noise, which shows every filter; both sides by ratios of their own."""
  pixels = np.random.default_rng(0).integers(0, 256, (264, 240, 3), dtype=np.uint8)
  size = (round(240 / ratio),) * 2
  want = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)
  error = np.abs(transforms.resize(pixels, size[0]) - want).mean()
  assert error < 0.6 * np.abs(cv2.resize(pixels, size) - want).mean()
  if ratio >= 1.5:
    area = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    assert error < 0.7 * np.abs(area - want).mean()


def test_impossible_augmentation():
  with pytest.raises(ValueError, match="scale must rise .* ratio must be .* flip is a prob"):
    Augment(scale=(0.5, 1.5), ratio=(2, 1), flip=3)


# ---- imports


def test_slow_libraries_are_imported_when_needed_only():
  slow = {"grain", "tensorflow_datasets", "tensorflow"}
  for path in Path(pipeline.__file__).parent.glob("*.py"):
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.Import):
        assert not slow & {name.name for name in node.names}, path
      if isinstance(node, ast.ImportFrom):
        assert node.module not in slow, path


# ---- RandAugment, erasing, repetition


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_equal_torchvisions(name):
  parity.import_torchvision()
  from torchvision.transforms import InterpolationMode, autoaugment

  # Posterize, solarize and the like are not symmetric; where a sign is drawn, both are tried.
  theirs = {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
  pixels = np.random.default_rng(3).integers(0, 256, (37, 52, 3), dtype=np.uint8)
  image, (signed, operation) = Image.fromarray(pixels), randaugment.OPERATIONS[name]
  space = autoaugment.RandAugment()._augmentation_space(31, (37, 52))[theirs]
  assert signed == space[1]
  for level in (0, 9, 21, 30):
    for sign in (1, -1) if signed else (1,):
      magnitude = sign * float(space[0][level]) if space[0].ndim else 0.0
      want = autoaugment._apply_op(
        image, theirs, magnitude, InterpolationMode.NEAREST, list(randaugment.FILL)
      )
      ours = np.asarray(operation(image, sign * level / 30)).astype(int)
      differs = (np.abs(ours - np.asarray(want)) > 0).any(-1).mean()
      # Shears and rotations may fall to the other of two neighbours by rounding.
      assert differs <= (0.02 if name.startswith(("shear", "rotate")) else 0), (level, sign)


def test_operations_are_drawn_anew_and_none_leaves_the_picture():
  pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
  draw = lambda seed, count: randaugment.randaugment(
    pixels, np.random.default_rng(seed), count=count, magnitude=15
  )
  np.testing.assert_array_equal(draw(0, 0), pixels)
  assert len({draw(seed, 2).tobytes() for seed in range(12)}) > 8


def test_erasing_fills_a_box_with_noise():
  view, shares = np.zeros((60, 80, 3), np.uint8), []
  for seed in range(30):
    hit = transforms.erased(view, np.random.default_rng(seed)).any(-1)
    rows, columns = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert hit.sum() > 0.99 * box  # whole, but for noise that is black
    shares.append(box / hit.size)
  assert 0.015 < min(shares) < 0.1 and 0.25 < max(shares) < 0.36
  assert not view.any()


def test_balanced_classes_are_drawn_alike(tmp_path):
  """Nine pictures of one class, one of another: half of what is shown is that one."""
  for i in range(10):
    (tmp_path / f"{i}.jpg").write_bytes(jpeg(seed=i))
  labels = np.array([0] * 9 + [1], np.int32)
  source = FolderSource(tmp_path, tuple(f"{i}.jpg" for i in range(10)), labels)
  options = {"batch": 10, "size": 8, "seed": 0, "augment": None}
  shown = [b["label"] for b in take(20, source, **options, balance=True)]
  assert 0.4 < np.mean(shown) < 0.6
  assert np.mean([b["label"] for b in take(5, source, **options)]) == 0.1
  assert len({tuple(part) for part in shown}) > 10  # each epoch draws anew
  assert_equal_batches(
    take(20, source, **options, balance=True)[7:9],
    take(2, source, **options, balance=True, start_step=7, threads=0),
  )
  for b in take(3, source, **options, balance=True, repeat=2):
    np.testing.assert_array_equal(b["image"][::2], b["image"][1::2])


def test_a_file_that_goes_away_in_the_run_is_named(source, tmp_path):
  """What a thread of the input dies of comes to the one that asks for a batch."""
  for key in source.keys:
    (tmp_path / key).parent.mkdir(exist_ok=True)
    (tmp_path / key).write_bytes((source.root / key).read_bytes())
  moved = FolderSource(tmp_path, source.keys, source.labels)
  batches = pipeline.train_batches(moved, batch=4, size=8, seed=0, threads=2)
  next(batches)
  (tmp_path / source.keys[3]).unlink()
  with pytest.raises(OSError, match=f"No such file.*{source.keys[3]}"):
    for _ in range(20):
      next(batches)


def test_repeated_views_of_the_same_pictures(source):
  batches = pipeline.train_batches(source, batch=8, size=24, seed=0, repeat=2)
  seen = []
  for batch in itertools.islice(batches, 4):  # two epochs of two updates
    first, second = (batch["label"][i::2] for i in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert (batch["image"][::2] != batch["image"][1::2]).any()
    seen.append(list(first))
  epochs = [seen[0] + seen[1], seen[2] + seen[3]]
  assert all(len(set(epoch)) == 8 for epoch in epochs) and epochs[0] != epochs[1]
