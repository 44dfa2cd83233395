"""Pictures of every kind and every fault, and what a folder of faults answers."""

import io
import re
import zlib

import numpy as np
from PIL import Image, ImageOps
import pytest
import simplejpeg

from train.data import datasets, folders, transforms
from train.data.transforms import UnreadableImage, decode


def picture(height=37, width=53, seed=0) -> Image.Image:
  """Smooth colours, so that JPEG keeps them."""
  coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
  return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind="JPEG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
  return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


# ---- what can be read


@pytest.mark.parametrize("options", [
  {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True},
  {"quality": 20}, {"restart_marker_blocks": 2}, {"optimize": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(37, 53), (64, 48), (1, 1), (7, 200)], ids=str)
def test_jpeg_equals_pillow_to_the_last_bit(options, size):
  data = encode(picture(*size), **options)
  header = transforms.read_jpeg_header(data)
  assert (header.height, header.width, header.orientation) == (*size, 1)
  np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are no orientations
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(picture(), kind, exif=exif)
  want = by_pillow(data)
  assert want.shape[:2] == ((53, 37) if orientation in (5, 6, 7, 8) else (37, 53))
  np.testing.assert_array_equal(decode(data), want)


def test_orientation_in_xmp():
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
  data = encode(picture(), xmp=xmp)
  assert decode(data).shape == (53, 37, 3)
  np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_broken_exif_counts_as_upright():
  data = encode(picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
  np.testing.assert_array_equal(decode(data), decode(encode(picture())))


@pytest.mark.parametrize("kind,mode", [
  ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "1"), ("PNG", "P"), ("GIF", "P"),
  ("BMP", "RGB"), ("TIFF", "CMYK"), ("TIFF", "YCbCr"), ("WEBP", "RGB"), ("PNG", "RGB"),
])  # fmt: skip
def test_colour_modes(kind, mode):
  data = encode(picture().convert(mode), kind)
  np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_ycck_jpeg_has_the_right_colours():
  # Adobe's four-colour files hold inverted ink: 255 is none.
  inverted = 255 - np.asarray(Image.new("RGB", (32, 32), (250, 10, 10)).convert("CMYK"))
  data = simplejpeg.encode_jpeg(inverted, quality=95, colorspace="CMYK", colorsubsampling="444")
  assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
  assert np.abs(decode(data).astype(int) - (250, 10, 10)).max() < 12


def test_jpeg_of_unconverted_rgb():
  data = encode(picture(), keep_rgb=True)
  assert simplejpeg.decode_jpeg_header(data)[2] == "RGB"
  np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_16_bit_grey_keeps_its_range():
  ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  for kind in ("PNG", "TIFF"):
    pixels = decode(encode(Image.fromarray(ramp), kind))
    np.testing.assert_array_equal(pixels[..., 0], np.round(ramp / 257))
    assert (pixels == pixels[..., :1]).all()


def test_pixels_without_a_known_range_are_refused():
  deep = np.full((4, 4), 70000, np.int32)
  with pytest.raises(UnreadableImage, match="32-bit integers; save it with 8 or 16 bits"):
    decode(encode(Image.fromarray(deep), "TIFF"))
  with pytest.raises(UnreadableImage, match="floating point"):
    decode(encode(Image.fromarray(deep.astype(np.float32)), "TIFF"))


def test_transparency_is_laid_over_white():
  image = picture().convert("RGBA")
  image.putalpha(Image.linear_gradient("L").resize(image.size))
  alpha = np.asarray(image)[..., 3:].astype(float) / 255
  want = np.asarray(image)[..., :3] * alpha + 255 * (1 - alpha)
  for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
    assert np.abs(decode(encode(image, kind, **options)) - want).max() <= 1
  grey = Image.merge("LA", (Image.new("L", (3, 2), 0), Image.new("L", (3, 2), 0)))
  assert (decode(encode(grey, "PNG")) == 255).all()


def test_one_transparent_colour_becomes_white():
  palette = Image.new("P", (4, 3), 1)
  palette.putpalette([0, 0, 0, 255, 0, 0])
  red = Image.new("RGB", (4, 3), "red")
  for image, key in ((palette, 1), (red, (255, 0, 0)), (Image.new("L", (4, 3), 9), 9)):
    assert (decode(encode(image, "PNG", transparency=key)) == 255).all()
    assert (decode(encode(image, "PNG")) < 255).any()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind):
  frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
  options = {"lossless": True} if kind == "WEBP" else {}
  pixels = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
  assert pixels.shape == (10, 20, 3)
  assert (pixels == (255, 0, 0)).all()


def test_the_content_counts_not_the_name(tmp_path):
  (tmp_path / "a.jpg").write_bytes(encode(picture(), "PNG"))
  assert folders.fault_of(tmp_path / "a.jpg") == ""


# ---- what cannot


@pytest.mark.parametrize("data,sentence", [
  (b"", "the file is empty"),
  (b"<!DOCTYPE html><html>not found", "it is text, not a picture: it begins with '<!DOCTYPE html>"),
  (b"\xef\xbb\xbfHello", "it is text, not a picture: it begins with 'Hello'"),
  (bytes(range(200)), "in no picture format that is known here"),
  (b"\xff\xd8\xff", "in no picture format that is known here, or its beginning is damaged"),
])  # fmt: skip
def test_no_pictures(data, sentence):
  with pytest.raises(UnreadableImage, match=re.escape(sentence)):
    decode(data)


@pytest.mark.parametrize("kind,options", [
  ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {}),
  ("BMP", {}), ("TIFF", {"compression": "tiff_deflate"}),
], ids=str)  # fmt: skip
def test_cut_short_at_any_place(kind, options, tmp_path):
  """Refused, or whole to the last pixel; and the quick look finds what decoding finds."""
  data = encode(picture(), kind, **options)
  whole, refused = decode(data), 0
  ends = {*range(0, len(data), max(1, len(data) // 30)), len(data) - 2, len(data) - 1}
  for end in sorted(ends):
    (tmp_path / "x.jpg").write_bytes(data[:end])
    fault = folders.fault_of(tmp_path / "x.jpg")
    try:
      np.testing.assert_array_equal(decode(data[:end]), whole)
      assert fault == ""
    except UnreadableImage as error:
      assert fault == str(error)
      refused += 1
  assert refused > len(ends) * 0.8
  with pytest.raises(UnreadableImage, match="cut short|cut off"):
    decode(data[: len(data) * 2 // 3])


def test_noise_in_a_file_never_gets_past_unreadable_image():
  rng = np.random.default_rng(0)
  for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
    data = encode(picture(), kind)
    for _ in range(30):
      damaged = bytearray(data)
      for at in rng.integers(len(data), size=3):
        damaged[at] = rng.integers(256)
      try:
        assert decode(bytes(damaged)).dtype == np.uint8
        view = transforms.train_view(bytes(damaged), rng, 16, transforms.Augment())
        assert view.shape == (16, 16, 3)
      except UnreadableImage:
        pass


def test_too_many_pixels_are_refused_before_they_are_unpacked():
  data = encode(picture())
  with pytest.raises(UnreadableImage, match="53 x 37 pixels are more than the 1,000 that are read"):
    decode(data, max_pixels=1000)
  bomb = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
  bomb[16:24] = (60000).to_bytes(4, "big") * 2  # claims 3.6 thousand million pixels
  bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
  with pytest.raises(UnreadableImage, match="claims more than the 178,956,970 pixels"):
    decode(bytes(bomb))


# ---- folders


def make(root, **classes: int):
  """folder/class/0.jpg, 1.jpg ...; a double underscore parts folders."""
  for name, count in classes.items():
    folder = root / name.replace("__", "/")
    folder.mkdir(parents=True)
    for i in range(count):
      (folder / f"{i}.jpg").write_bytes(encode(picture(seed=i)))
  return root


def faults(root, **options) -> list[str]:
  with pytest.raises(ValueError) as error:
    datasets.load(str(root), **options)
  return str(error.value).splitlines()


def test_all_faults_in_one_list(tmp_path):
  root = make(tmp_path / "fruit", train__apple=3, train__pear=2, train__plum=0, val__apple=1,
              val__pear=1, val__plum=1, test__apple=1, test__fig=1)  # fmt: skip
  (root / "train/apple/0.jpg").write_text("an apple")
  (root / "train/apple/1.jpg").write_bytes(b"")
  (root / "train/pear/0.jpg").write_bytes(encode(picture())[:-200])
  (root / "train/pear/1.HEIC").write_bytes(b"....ftypheic")
  (root / "val/stray.png").write_bytes(encode(picture(), "PNG"))
  (root / "val/plum/0.jpg").write_bytes(b"")
  (root / "val/plum/gone.jpg").symlink_to("nowhere.jpg")
  suffixes = ".bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
  lines = faults(root)
  cut = [i for i, line in enumerate(lines) if "train/pear/0.jpg" in line]
  assert lines.pop(cut[0]).startswith("    train/pear/0.jpg: it is cut short (image file is trunc")
  assert lines == [
    f"the folder {root} cannot be used:",
    "  train/fig is missing, a class that another split has",
    f"  train/plum is a class without images; add {suffixes} files or remove it",
    "  val/fig is missing, a class that another split has",
    "  val/plum has no photograph that can be read, of 2; mend them or remove the folder",
    "  test/pear is missing, a class that another split has",
    "  test/plum is missing, a class that another split has",
    "  7 of 13 photographs cannot be used (53.8%, more than the 5.0% that max_bad allows):",
    "    train/apple/0.jpg: it is text, not a picture: it begins with 'an apple'",
    "    train/apple/1.jpg: the file is empty",
    "    train/pear/1.HEIC: .heic files are not read; save it as .jpg or .png",
    "    val/plum/0.jpg: the file is empty",
    "    val/plum/gone.jpg: it cannot be opened: No such file or directory",
    "    val/stray.png: it lies beside the class folders, in no class",
  ]


def test_few_bad_files_are_skipped_and_listed(tmp_path):
  root = make(tmp_path / "d", a=10, b=10)
  (root / "a/3.jpg").write_text("oops")
  data = datasets.load(root)
  assert data.skipped == ("a/3.jpg: it is text, not a picture: it begins with 'oops'",)
  assert sum(map(len, data.splits.values())) == 19
  assert not any("a/3.jpg" in source.keys for source in data.splits.values())
  assert (
    "1 of 20 photographs cannot be used (5.0%, more than the 4.0% that max_bad allows):"
    in (faults(root, max_bad=0.04)[1])
  )
  with pytest.raises(ValueError, match="max_bad is a share of the photographs, .* not 5"):
    datasets.load(root, max_bad=5)


def test_a_long_list_is_cut(tmp_path, monkeypatch):
  monkeypatch.setattr(folders, "LISTED", 2)
  root = make(tmp_path / "d", a=4, b=4)
  for i in range(4):
    (root / f"a/{i}.jpg").write_bytes(b"")
  assert faults(root)[-3:] == [
    "    a/0.jpg: the file is empty", "    a/1.jpg: the file is empty", "    and 2 more",
  ]  # fmt: skip


def test_folders_that_are_no_data_set(tmp_path):
  make(tmp_path / "flowers", rose=2)
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("")
  make(tmp_path / "flat", **{".": 0})
  (tmp_path / "flat/1.jpg").write_bytes(encode(picture()))
  assert faults(tmp_path / "flower") == [
    f"no folder {tmp_path / 'flower'}; did you mean {tmp_path / 'flowers'}? (a TFDS set is written "
    "tfds:NAME)"
  ]
  assert "there is no" in faults(tmp_path / "x/y/z")[0]
  assert faults(tmp_path / "flowers")[1:] == ["  there is one class only, rose; wanted two or more"]
  assert faults(tmp_path / "empty")[1:] == [
    "  there are no class folders; wanted one for each class, empty/rose/photo.jpg"
  ]
  assert "is a file, not a folder" in faults(tmp_path / "file")[1]
  assert "no class folders" in faults(tmp_path / "flat")[1]
  assert "1.jpg: it lies beside the class folders" in faults(tmp_path / "flat")[-1]


def test_confused_splits(tmp_path):
  assert faults(make(tmp_path / "a", val__x=1, test__x=1))[1] == (
    "  there is test, val but no folder train"
  )
  mixed = make(tmp_path / "b", train__x=1, train__y=1, z=1)
  assert faults(mixed)[1].startswith("  folders of splits (train) and others (z) lie side by side")
  twice = make(tmp_path / "c", train__x=2, train__y=2, val__x=1, val__y=1, valid__x=1, valid__y=1)
  assert faults(twice)[1] == "  the folders val, valid are the same split; keep one"
  assert "no class has two photographs" in faults(make(tmp_path / "d", x=1, y=1))[1]
  # An airport's classes: photographs lie right below, so these are no splits.
  vehicles = datasets.load(make(tmp_path / "e", train=5, bus=5))
  assert vehicles.classes == ("bus", "train")


def test_sound_files_are_not_decoded(tmp_path, monkeypatch):
  root = make(tmp_path / "d", a=3, b=3)
  (root / "a/x.png").write_bytes(encode(picture(), "PNG"))
  (root / "a/x.gif").write_bytes(encode(picture(), "GIF"))
  (root / "a/padded.jpg").write_bytes(encode(picture()) + b"\0" * 20)
  decoded = []
  monkeypatch.setattr(transforms, "decode", lambda data: decoded.append(data))
  datasets.load(root)
  assert not decoded
  trailing = encode(picture()) + b"appended by a camera"
  (root / "b/trailing.jpg").write_bytes(trailing)
  datasets.load(root)
  assert decoded == [trailing]
