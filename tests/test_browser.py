"""The pages in a real browser: Chromium without a window, spoken to by its debugging pipe."""

from collections.abc import Iterator
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from tests import runs
from train import predict, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60
# Chromium's pipe is file descriptor 3 to it and 4 from it; this program puts ours there.
LAUNCH = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(ours[0], 3)
os.dup2(ours[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

pytestmark = pytest.mark.skipif(
  CHROMIUM is None, reason="no chromium on this machine (Debian's package chromium has it)"
)


class Tab:
  """One tab of a browser; everything that it reports is kept in `events`."""

  def __init__(self, to_browser: int, from_browser: int):
    self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
    self._session, self.events = {}, []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = {"sessionId": attached["sessionId"]}
    for domain in ("Page", "Log", "Runtime", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params):
    self._number += 1
    message = {"id": self._number, "method": method, "params": params, **self._session}
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while (answer := self._receive()).get("id") != self._number:
      pass
    assert "error" not in answer, answer
    return answer["result"]

  def _receive(self) -> dict:
    until = time.monotonic() + SECONDS
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
      assert ready, f"the browser was silent for {SECONDS} s"
      data = os.read(self._from, 1 << 20)
      assert data, "the browser ended"
      self._rest += data
    text, _, self._rest = self._rest.partition(b"\0")
    message = json.loads(text)
    self.events.append(message)
    return message

  def open(self, url: str, width: int, height: int) -> None:
    """Returns when the page has loaded, pictures included."""
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
    self.events.clear()
    self.call("Page.navigate", url=url)
    while not self.seen("Page.loadEventFired"):
      self._receive()

  def run(self, expression: str):
    result = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    assert "exceptionDetails" not in result, result
    return result["result"]["value"]

  def seen(self, *methods: str) -> list[dict]:
    return [event for event in self.events if event.get("method") in methods]


@contextlib.contextmanager
def browser(profile) -> Iterator[Tab]:
  (there, to_browser), (from_browser, back) = os.pipe(), os.pipe()
  command = [
    CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={profile}",
  ]  # fmt: skip
  process = subprocess.Popen(
    [sys.executable, "-c", LAUNCH, str(there), str(back), *command], pass_fds=(there, back),
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  os.close(there)
  os.close(back)
  try:
    yield Tab(to_browser, from_browser)
  finally:
    process.terminate()
    process.wait(SECONDS)
    os.close(to_browser)
    os.close(from_browser)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """{name: page} of a report and of an album of predictions."""
  folder = tmp_path_factory.mktemp("pages")
  data = runs.photographs(folder / "data")
  run = runs.finished(folder / "run", data)
  with predict.Album(folder / "album", "Title") as album:
    paths = sorted((data / "test").rglob("*.png"))
    for answer in predict.predict(run, paths, maps=("cam",), failed=pytest.fail):
      album.add(answer)
    album.finish(["<b>.jpg: it is cut short"])
  return {
    "report": report.write([run, run], folder / "report.html"),
    "album": folder / "album/index.html",
  }


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  with browser(tmp_path_factory.mktemp("chromium")) as tab:
    yield tab


@pytest.mark.parametrize("name, least", [("report", 15), ("album", 24)])
@pytest.mark.parametrize("width", [1200, 360])
def test_a_page_opens(tab, pages, name, least, width):
  tab.open(pages[name].as_uri(), width, 20000)  # tall, so that pictures loaded late are loaded
  waiting = "Promise.all(Array.from(document.images, i => i.decode())).then(() => 'all')"
  assert tab.run(waiting) == "all"
  widths = tab.run("Array.from(document.images, i => i.naturalWidth)")
  assert len(widths) >= least and min(widths) > 0
  problems = tab.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
  assert not problems and not tab.seen("Network.loadingFailed")
  urls = [e["params"]["request"]["url"] for e in tab.seen("Network.requestWillBeSent")]
  assert urls and all(url.startswith(("file:", "data:")) for url in urls)
  # Nothing hangs over the edge, neither on a desk nor on a phone.
  assert tab.run("document.documentElement.scrollWidth") <= width
  assert tab.run("document.compatMode") == "CSS1Compat"
  assert "<script>alert(1)</script>" in tab.run("document.body.innerText")
