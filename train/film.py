"""What is where in a film, or before a camera, frame by frame, by a detector.

  python -m train.film --model=yolov2_tiny.pod clip.mp4 --out=answers
  python -m train.film --model=runs/mine --camera=0 --every=5 --seconds=60 --confidence=0.4

Prints a line for each frame in which something was found.  --out writes a folder: film.mp4, the
frames with boxes drawn over them, and masks where the model finds them, answers.csv (frame,
seconds, class, score, x0 y0 x1 y1 in pixels) and index.html, which plays the film.  Ctrl-C ends a
film early; what was seen until then is written.  The flags of train.find mean the same here.
"""

from collections.abc import Iterator, Sequence
import contextlib
import csv
import dataclasses
from fractions import Fraction
import math
from pathlib import Path
import sys

import av
import cv2
import numpy as np
from tqdm import tqdm

from train import album, find, options, output, page, startup
from train.data import transforms
from train.options import option
from train.predict import readable

# How files of AVI, Matroska and WebM begin, and what MP4 and QuickTime have after four bytes: of
# other files, lists of addresses too, ffmpeg would read what they name.
BEGINS, SECOND = (b"RIFF", b"\x1aE\xdf\xa3"), (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
COLUMNS = ("frame", "seconds", "class", "score", "x0", "y0", "x1", "y1")
USUAL_RATE = 25.0  # frames a second, of a camera that tells none
# Of VP9, which browsers play; as OpenCV asks for it a frame takes twenty times as long.
CODING = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "20", "b": "0"}


@dataclasses.dataclass(frozen=True)
class Config:
  camera: int = option(-1, "Number of a camera to look through, instead of a film.")
  every: int = option(1, "Look at each frame, each second one, ...", lower_bound=1)
  seconds: float = option(0.0, "Stop after these; 0 looks to the end.", lower_bound=0.0)


class Film:
  """Frames [h w 3] uint8 of a file or of a camera.

  Raises:
    ValueError: it is no film, or its frames are too large.
  """

  def __init__(self, path: Path | None, config: Config):
    if path is None:
      self.name, self._source = f"camera {config.camera}", cv2.VideoCapture(config.camera)
      if not self._source.isOpened():
        raise ValueError(f"--camera={config.camera}: no such camera answers")
    else:
      self.name = readable(path)
      with open(path, "rb") as file:
        head = file.read(8)
      self._source = cv2.VideoCapture()
      if head[:4] in BEGINS or head[4:] in SECOND:
        self._source.open(str(path.absolute()), cv2.CAP_FFMPEG)
      if not self._source.isOpened():
        raise ValueError(f"{self.name}: this is no film that can be read: AVI, MP4, QuickTime, "
                         "Matroska, WebM")  # fmt: skip
    width, height, rate, count = (
      self._source.get(what) for what in (
        cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS,
        cv2.CAP_PROP_FRAME_COUNT,
      )
    )  # fmt: skip
    if width * height > transforms.MAX_PIXELS:
      raise ValueError(f"{self.name}: frames of {width:.0f}x{height:.0f} pixels are too large")
    self._every = config.every
    self.rate = rate if 0 < rate < 1000 else USUAL_RATE
    self._last = round(config.seconds * self.rate) if config.seconds else None
    ends = [n for n in (self._last, count if path is not None and count > 0 else None) if n]
    self.total = math.ceil(min(ends) / config.every) if ends else None

  def frames(self) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture) of each frame that is looked at."""
    number = 0
    while (self._last is None or number < self._last) and self._source.grab():
      if number % self._every == 0:
        good, frame = self._source.retrieve()
        if not good:
          return
        yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
      number += 1

  def close(self) -> None:
    self._source.release()


class Folder(output.Output):
  """film.mp4, answers.csv and index.html."""

  def __init__(self, out: Path, film: Film, every: int):
    super().__init__(out)
    self._film, self._every, self._stream = film, every, None
    self._video = av.open(str(self.part / "film.mp4"), "w")
    self._table = open(self.part / "answers.csv", "w", encoding="utf-8", newline="")
    self._rows = csv.writer(self._table)
    self._rows.writerow(COLUMNS)

  def __exit__(self, *error) -> None:
    for file in (self._video, self._table):
      with contextlib.suppress(OSError):  # of what is thrown away now
        file.close()
    super().__exit__(*error)

  def add(self, answer: album.Answer) -> None:
    frame = album.drawn(answer)
    high, wide = frame.shape[0] % 2, frame.shape[1] % 2  # a pixel of colour is two by two
    frame = cv2.copyMakeBorder(frame, 0, high, 0, wide, cv2.BORDER_REPLICATE)
    if self._stream is None:
      rate = Fraction(self._film.rate / self._every).limit_denominator(10_000)
      rate = max(rate, Fraction(1, 10_000))
      self._stream = self._video.add_stream("libvpx-vp9", rate=rate, options=CODING)
      self._stream.height, self._stream.width = frame.shape[:2]
      self._stream.pix_fmt = "yuv420p"
      # Players would take an untold one for another's where frames are large.
      self._stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
    self._video.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    number, one = answer.name, answer.found
    for name, score, box in zip(one.names, one.scores, one.boxes):
      told = (number, f"{number / self._film.rate:.3f}", name, f"{score:.6f}")
      self._rows.writerow((*told, *(f"{v:.2f}" for v in box)))

  def finish(self, frames: int) -> None:
    self._video.mux(self._stream.encode())
    self._video.close()
    self._table.close()
    title = f"Found in {self._film.name}"
    body = [
      f"<h1>{page.escape(title)}</h1>", page.paragraph(f"{frames} frames", soft=True),
      '<video controls style="max-width: 100%" src="film.mp4"></video>',
    ]  # fmt: skip
    (self.part / "index.html").write_text(page.page(title, body), "utf-8")
    self.appear()


def show(answer: album.Answer, rate: float) -> str:
  one = answer.found
  told = ", ".join(f"{name} {100 * score:.0f} %" for name, score in zip(one.names, one.scores))
  return f"{answer.name / rate:8.2f} s  {told}"


def main(argv: Sequence[str], asked: find.Config, config: Config) -> int:
  faults = []
  if not asked.model:
    faults.append("--model is missing")
  if len(argv) != 1 + (config.camera < 0):
    faults.append("name one film, or a camera by --camera=0")
  if asked.maps:
    faults.append(f"--maps={asked.maps} are of photographs: python -m train.find")
  if faults:
    raise ValueError("\n".join(faults))
  startup.set_up_compilation()
  film = Film(Path(argv[1]) if argv[1:] else None, config)
  live = config.camera >= 0
  if live:
    asked = dataclasses.replace(asked, batch=1)  # an answer does not wait for other frames
  seen = 0
  with contextlib.ExitStack() as stack:
    stack.callback(film.close)
    folder = stack.enter_context(Folder(Path(asked.out), film, config.every)) if asked.out else None
    bar = stack.enter_context(tqdm(total=film.total, unit=" images", disable=None))
    with contextlib.suppress(KeyboardInterrupt):
      for answer in find.find(film.frames(), asked, many=live):
        if folder:
          folder.add(answer)
        if len(answer.found):
          tqdm.write(show(answer, film.rate), file=sys.stdout)
        seen += 1
        bar.update()
    if not seen:
      raise ValueError(f"{film.name}: no frame could be read")
    if folder:
      folder.finish(seen)
  if asked.out:
    print(f"film: {(Path(asked.out) / 'index.html').resolve()}")
  return 0


if __name__ == "__main__":
  options.run(main, find.Config, Config, arguments=True, stopped="stopped; nothing was written")
