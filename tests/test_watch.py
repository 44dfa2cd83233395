"""python -m train.predict --watch: pictures that come while it runs, whole or half, and its end."""

import contextlib
import io
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image
import pytest

from tests import photographs, runs
from train import predict, watch

SECONDS = 120  # for what has been slow to come


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("watch")
  data = runs.photographs(folder / "data")
  return runs.finished(folder / "run", data), data


class Lines:
  """What a process says, line by line."""

  def __init__(self, stream):
    self._lines = queue.Queue()
    threading.Thread(target=lambda: [self._lines.put(x) for x in stream], daemon=True).start()

  def next(self) -> str:
    return self._lines.get(timeout=SECONDS).rstrip("\n")

  def rest(self) -> list[str]:
    time.sleep(0.5)
    return [self._lines.get().rstrip("\n") for _ in range(self._lines.qsize())]


@contextlib.contextmanager
def started(model, folder, cache, *flags):
  process = subprocess.Popen(
    [sys.executable, "-m", "train.predict", f"--model={model}", "--watch", "--top=2", *flags,
     str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env=photographs.environment(cache) | {"JAX_LOG_COMPILES": "1"},
  )  # fmt: skip
  try:
    yield process, Lines(process.stdout), Lines(process.stderr)
  finally:
    process.kill()
    process.wait()


def answer(model, path) -> list[str]:
  found = next(predict.predict(model, [path], top=2, failed=pytest.fail))
  return [label for label, _ in found.top]


def test_pictures_are_answered_as_they_come(run, cache, tmp_path):
  model, data = run
  inbox = tmp_path / "inbox"
  inbox.mkdir()
  shutil.copy(data / "test/angle/0.png", inbox / "old.png")
  with started(model, inbox, cache) as (process, said, complained):
    assert said.next() == f"watching {inbox}; Ctrl-C ends it"
    shutil.copy(data / "test/both/1.png", inbox / "new.png")
    assert said.next() == str(inbox / "new.png")
    assert [said.next().split(" %  ")[1] for _ in range(2)] == answer(model, inbox / "new.png")

    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(
      whole, "jpeg"
    )
    half = len(whole.getvalue()) // 2
    (inbox / "deep").mkdir()
    with open(inbox / "deep/slow.jpg", "wb", buffering=0) as file:
      file.write(whole.getvalue()[:half])
      assert said.rest() == [] and time.sleep(4 * watch.LOOK) is None
      file.write(whole.getvalue()[half:])
    assert said.next() == str(inbox / "deep/slow.jpg")
    assert len([said.next() for _ in range(2)]) == 2

    (inbox / "text.jpg").write_text("hello")
    (inbox / "notes.txt").write_text("hello")
    (inbox / "gone.jpg").write_bytes(whole.getvalue()[:half])
    (inbox / "gone.jpg").unlink()
    heard = [complained.next()]
    while not heard[-1].startswith("not answered"):
      heard.append(complained.next())
    assert heard[-1].startswith(f"not answered: {inbox / 'text.jpg'}: it is text, not a picture")

    shutil.copy(data / "test/math/0.png", inbox / "new.png")  # another one of that name
    assert said.next() == str(inbox / "new.png")
    assert [said.next().split(" %  ")[1] for _ in range(2)] == answer(model, inbox / "new.png")
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 1, "something could not be read"
    assert said.rest() == ["no longer watching"]
    heard += complained.rest()
    assert len([line for line in heard if "Compiling jit(step)" in line]) == 1
    assert not [line for line in heard if "Traceback" in line]


def test_ctrl_c_ends_it(run, cache, tmp_path):
  model, data = run
  with started(model, tmp_path, cache) as (process, said, complained):
    said.next()
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert said.rest() == ["no longer watching"]
    assert any("Compiling jit(step)" in line for line in complained.rest()), "before the first came"


def test_what_cannot_be_watched_is_said_at_once(run, tmp_path):
  model, _ = run
  config = predict.Config(model=str(model), watch=True, out="answers")
  words = ["program", str(tmp_path), str(tmp_path / "none"), __file__]
  with pytest.raises(ValueError) as fault:
    watch.demand(words, config)
  assert str(fault.value).splitlines() == [
    f"{tmp_path / 'none'}: --watch wants folders that are there",
    f"{__file__}: --watch wants folders that are there",
    "--watch prints its answers; leave --out away",
  ]


def test_a_picture_that_never_becomes_whole_is_named_once(tmp_path, monkeypatch):
  monkeypatch.setattr(watch, "LOOK", 0.01)
  monkeypatch.setattr(watch, "SETTLED", 0.1)
  stopped, failures = threading.Event(), []
  thread = threading.Thread(
    target=lambda: list(watch.arrivals([tmp_path], {}, stopped, failures.append))
  )
  thread.start()
  (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  time.sleep(1)
  stopped.set()
  thread.join(5)
  assert not thread.is_alive() and len(failures) == 1
  assert failures[0].startswith(f"{tmp_path / 'torn.png'}: ")
