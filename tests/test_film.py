"""python -m train.film: every frame answered as train.find answers it, and a film that plays."""

import csv
from fractions import Fraction
import os
from types import SimpleNamespace

import av
from av.video.reformatter import Colorspace
import cv2
import numpy as np
import pytest

from tests.test_detect_find import trained  # noqa: F401 (a fixture)
from train import album, film, find
from train.film import Config
import zoo

pytestmark = pytest.mark.usefixtures("arguments_only")

FRAMES, RATE, SIZE = 9, 10.0, (62, 84)


def write(path, code="MJPG"):
  """Noise that moves."""
  noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
  large = cv2.resize(noise, (SIZE[1] + FRAMES, SIZE[0]), interpolation=cv2.INTER_CUBIC)
  size = SIZE[::-1]
  writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), RATE, size)
  for i in range(FRAMES):
    writer.write(np.ascontiguousarray(large[:, i : i + SIZE[1]]))
  writer.release()
  return path


def frames_of(path):
  source, frames = cv2.VideoCapture(str(path)), []
  while (row := source.read())[0]:
    frames.append(row[1][..., ::-1])
  return frames, source.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("every", [1, 4])
def test_each_frame_as_a_photograph(every, trained, tmp_path, capsys):  # noqa: F811
  path = write(tmp_path / "clip.avi")
  asked = find.Config(model=trained, confidence=0.01, max_detections=3, batch=2,
                      out=str(tmp_path / "out"))  # fmt: skip
  assert film.main(["film", str(path)], asked, Config(every=every)) == 0
  frames, _ = frames_of(path)
  assert len(frames) == FRAMES
  numbers = range(0, FRAMES, every)
  wanted = {a.name: a for a in find.find([(i, frames[i]) for i in numbers], asked)}
  with open(tmp_path / "out/answers.csv") as file:
    rows = list(csv.DictReader(file))
  assert rows
  told = [(i, name, f"{score:.6f}") for i in numbers
          for name, score in zip(wanted[i].found.names, wanted[i].found.scores)]  # fmt: skip
  assert [(int(r["frame"]), r["class"], r["score"]) for r in rows] == told
  assert all(float(r["seconds"]) == pytest.approx(int(r["frame"]) / RATE) for r in rows)
  drawn, rate = frames_of(tmp_path / "out/film.mp4")
  assert len(drawn) == len(numbers) and rate == pytest.approx(RATE / every)
  for i, frame in zip(numbers, drawn):
    assert frame.shape == (*SIZE, 3)
    # Much is lost; the picture with its boxes is nearer than that without.
    near, far = (
      np.abs(frame - np.float32(image)).mean()
      for image in (album.drawn(wanted[i]), frames[i])
    )
    assert near < far or not len(wanted[i].found)
  assert 'src="film.mp4"' in (tmp_path / "out/index.html").read_text()
  assert " s  " in capsys.readouterr().out


def test_a_camera_is_answered_frame_by_frame_by_a_folded_network(
  trained,  # noqa: F811
  tmp_path,
  monkeypatch,
):
  path, answers = write(tmp_path / "clip.avi"), {}
  source, capture, fold, folded = cv2.VideoCapture(str(path)), cv2.VideoCapture, zoo.fold, []
  monkeypatch.setattr(zoo, "fold", lambda *given, **how: folded.append(how) or fold(*given, **how))
  for name, argv, camera in (("file", ["film", str(path)], -1), ("camera", ["film"], 0)):
    monkeypatch.setattr(cv2, "VideoCapture", lambda *number: source if number else capture())
    out = tmp_path / name
    asked = find.Config(model=trained, confidence=0.01, max_detections=3, out=str(out))
    assert film.main(argv, asked, Config(camera=camera)) == 0
    with open(out / "answers.csv") as file:
      answers[name] = list(csv.DictReader(file))
  assert folded == [{"size": (64, 64), "cpu_batch": 1}], "of the camera's only"
  assert answers["file"] and len(answers["file"]) == len(answers["camera"])
  for ours, theirs in zip(answers["camera"], answers["file"]):
    assert (ours["frame"], ours["class"]) == (theirs["frame"], theirs["class"])
    numbers = [[float(row[name]) for name in film.COLUMNS[3:]] for row in (ours, theirs)]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=0.02)


def test_odd_sides(tmp_path):
  image = np.full((5, 7, 3), 200, np.uint8)
  source = SimpleNamespace(name="a", rate=RATE)
  with film.Folder(tmp_path / "out", source, 1) as folder:
    folder.add(album.Answer(0, image, find.nothing(("cat",))))
    folder.finish(1)
  (frame,), _ = frames_of(tmp_path / "out/film.mp4")
  assert frame.shape == (6, 8, 3) and abs(frame.astype(int) - 200).max() < 5


def test_nothing_is_left_where_the_disk_is_full(tmp_path):
  source = SimpleNamespace(name="a", rate=RATE)
  with pytest.raises(OSError), film.Folder(tmp_path / "out", source, 1) as folder:
    folder.add(album.Answer(0, np.zeros((8, 8, 3), np.uint8), find.nothing(("cat",))))
    folder._table.close()
    folder._table = open("/dev/full", "w")
    folder._table.write("a")
    raise OSError("an answer cannot be written")
  assert not os.listdir(tmp_path)


def test_colours_are_those_that_a_player_shows(tmp_path):
  """Of frames as large as these players expect ITU-R 709's colours, unless they are told."""
  image = np.zeros((720, 1280, 3), np.uint8)
  image[:, :640], image[:, 640:] = (220, 30, 30), (20, 40, 230)
  source = SimpleNamespace(name="a", rate=30000 / 1001)
  with film.Folder(tmp_path / "out", source, 1) as folder:
    folder.add(album.Answer(0, image, find.nothing(("cat",))))
    folder.finish(1)
  with av.open(str(tmp_path / "out/film.mp4")) as made:
    (stream,) = made.streams.video
    assert stream.average_rate == Fraction(30000, 1001)
    (frame,) = made.decode(stream)
  assert frame.colorspace == Colorspace.ITU601
  shown = frame.to_ndarray(format="rgb24").astype(int)
  assert abs(shown - image)[:, [200, 1000]].max() < 5


def test_it_ends_when_asked_to(trained, tmp_path):  # noqa: F811
  asked = find.Config(model=trained, confidence=0.01, out=str(tmp_path / "out"))
  path = write(tmp_path / "clip.avi")
  assert film.main(["film", str(path)], asked, Config(seconds=0.5)) == 0
  assert len(frames_of(tmp_path / "out/film.mp4")[0]) == 5
  with pytest.raises(ValueError, match="is there already; delete it"):
    film.main(["film", str(path)], asked, Config())
  assert sorted(os.listdir(tmp_path / "out")) == ["answers.csv", "film.mp4", "index.html"]


def test_what_is_wrong_is_said(trained, tmp_path):  # noqa: F811
  (tmp_path / "empty.mp4").write_bytes(b"")
  (tmp_path / "cut.avi").write_bytes(b"RIFF" + bytes(40))
  (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile clip.avi\n")
  write(tmp_path / "clip.avi")
  (tmp_path / "photo.jpg").write_bytes(b"x")
  asked = find.Config(model=trained, out=str(tmp_path / "out"))
  for name in ("empty.mp4", "list.mp4", "cut.avi", "photo.jpg"):
    with pytest.raises(ValueError, match=f"{name}: this is no film that can be read"):
      film.main(["film", str(tmp_path / name)], asked, Config())
  with pytest.raises(OSError, match="missing.mp4"):
    film.main(["film", str(tmp_path / "missing.mp4")], asked, Config())
  with pytest.raises(ValueError, match="camera=63: no such camera answers"):
    film.main(["film"], asked, Config(camera=63))
  with pytest.raises(ValueError) as error:
    film.main(["film"], find.Config(maps="grad_cam"), Config())
  assert len(str(error.value).splitlines()) == 3
  assert not (tmp_path / "out").exists()
  assert not [name for name in os.listdir(tmp_path) if name.startswith(".out")]
