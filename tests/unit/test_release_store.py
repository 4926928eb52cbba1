"""The control node's store: nothing that is in use is removed, and nothing is left of what is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.pst.platform.plugins.module_utils import release_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five releases, 1.4.0 the newest, and a build that was killed."""
    for number in range(5):
        for suffix in (".tar.gz", ".sbom.cdx.json", ".audit.json"):
            path = tmp_path / f"1.{number}.0{suffix}"
            path.write_text("")
            os.utime(path, (1000 + number, 1000 + number))
    (tmp_path / ".2-0-0.tar.gz").write_text("")
    return tmp_path


def versions(paths: list[Path]) -> list[str]:
    return [release_store.version_of(path) for path in paths]


def test_the_newest_are_first_and_a_build_under_way_is_none(store: Path) -> None:
    assert versions(release_store.artefacts(store)) == ["1.4.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"]
    assert release_store.artefacts(store / "absent") == []


def test_old_ones_go_but_none_in_use_by_version_or_by_the_name_of_its_folder(store: Path) -> None:
    assert versions(release_store.surplus(store, 2, [])) == ["1.2.0", "1.1.0", "1.0.0"]
    assert versions(release_store.surplus(store, 2, ["1.2.0", "1-0-0", "9-9-9"])) == ["1.1.0"]
    assert versions(release_store.surplus(store, 10, [])) == []


def test_one_goes_with_all_that_is_beside_it(store: Path) -> None:
    (store / "1.0.0.audit.json").unlink()
    release_store.remove(store / "1.0.0.tar.gz")
    assert sorted(path.name for path in store.glob("1.0.*")) == []
    assert len(list(store.glob("1.1.*"))) == 3


def test_what_was_interrupted_is_found_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith(".tar.gz"):
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        release_store.remove(store / "1.0.0.tar.gz")
    assert "1.0.0" in versions(release_store.surplus(store, 2, []))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "x.json"
    release_store.write(path, b"before")
    assert path.stat().st_mode & 0o777 == 0o644

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        release_store.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
