"""Releases: what is built is what is installed, and nothing else is accepted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import release, release_build
from ansible_collections.pst.platform.plugins.module_utils.release import Manifest, ReleaseError

HASH = "sha256:" + "0" * 64
LOCK = f"""\
# a comment
pip==26.3 \\
    --hash={HASH} \\
    --hash={HASH}
    # via -r requirements.in
async-timeout==5.0.1 ; python_full_version < '3.11.3' \\
    --hash={HASH}
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash={HASH}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    (tree / "app").mkdir(parents=True)
    (tree / "app/__init__.py").write_text("VERSION = 1\n")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "requirements.txt").write_text(LOCK)
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__/x.pyc").write_text("left out")
    return tree


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for pip: one wheel for each Python, and pip."""
    asked: list[str] = []

    def download(lock: str, python_version: str, architecture: str, cache: Path) -> Path:
        assert "pip==26.3" in lock
        asked.append(python_version)
        folder = tmp_path / f"wheels-{python_version}"
        folder.mkdir(exist_ok=True)
        (folder / "pip-26.3-py3-none-any.whl").write_bytes(b"pip")
        (folder / f"x-1-cp{python_version.replace('.', '')}.whl").write_bytes(python_version.encode())
        return folder

    monkeypatch.setattr(release_build, "download", download)
    # These wheels are none; test_release_sbom.py has real ones.
    monkeypatch.setattr(release_build, "bill_of_materials", lambda *_: b"{}")
    return asked


def recipe(source: Path, **changes: Any) -> release_build.Recipe:
    settings = {
        "source": source,
        "version": "1.0.0",
        "requirements": "requirements.txt",
        "python_versions": ["3.11", "3.13"],
        "architecture": "x86_64",
        "exclude": ["__pycache__"],
    }
    return release_build.Recipe(**(settings | changes))


@pytest.fixture
def artefact(source: Path, wheels: list[str], tmp_path: Path) -> Path:
    return release_build.build(release_build.plan(recipe(source)), tmp_path / "releases", tmp_path)


def repack(artefact: Path, change: dict[str, bytes | None], extra: dict[str, bytes] | None = None) -> None:
    """Rewrite members of an artefact; None drops one."""
    with tarfile.open(artefact) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    members = {name: data for name, data in (members | change | (extra or {})).items() if data is not None}
    with tarfile.open(artefact, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_the_artefact_holds_the_source_the_wheels_and_proof_of_both(artefact: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    manifest, digest = release.unpack(artefact, target)
    assert digest == hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()
    assert (target / "source/app/__init__.py").read_text() == "VERSION = 1\n"
    assert (target / "source/run").stat().st_mode & 0o777 == 0o755
    assert (target / "source/requirements.txt").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in (target / "wheels").iterdir()) == [
        "pip-26.3-py3-none-any.whl",
        "x-1-cp311.whl",
        "x-1-cp313.whl",
    ]
    assert not (target / "source/__pycache__").exists()
    assert manifest.version == "1.0.0"
    assert manifest.built_by
    assert manifest.built_at


def test_the_same_content_is_built_once(source: Path, wheels: list[str], tmp_path: Path) -> None:
    planned = release_build.plan(recipe(source))
    directory = tmp_path / "releases"
    assert not release_build.is_built(planned, directory)
    release_build.build(planned, directory, tmp_path)
    assert release_build.is_built(release_build.plan(recipe(source)), directory)
    assert wheels == ["3.11", "3.13"]
    assert sorted(path.name for path in directory.iterdir()) == ["1.0.0.sbom.cdx.json", "1.0.0.tar.gz"]


def test_a_version_has_one_content_for_ever(artefact: Path, source: Path) -> None:
    (source / "app/__init__.py").write_text("VERSION = 2\n")
    with pytest.raises(ReleaseError, match="A release never changes"):
        release_build.is_built(release_build.plan(recipe(source)), artefact.parent)


def test_builds_are_reproducible(
    source: Path, wheels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (
        release_build.build(release_build.plan(recipe(source)), tmp_path / place, tmp_path) for place in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
    with gzip.open(first) as file:
        assert b"2023-11-14T22:13:20+00:00" in file.read()


@pytest.mark.parametrize("change", ["text", "mode", "name", "python"])
def test_every_kind_of_change_is_another_content(source: Path, change: str) -> None:
    before = release_build.plan(recipe(source, version=""))
    settings: dict[str, Any] = {"version": ""}
    if change == "text":
        (source / "run").write_text("#!/bin/bash\n")
    elif change == "mode":
        (source / "run").chmod(0o644)
    elif change == "name":
        (source / "run").rename(source / "walk")
    else:
        settings["python_versions"] = ["3.13"]
    after = release_build.plan(recipe(source, **settings))
    assert before.version != after.version
    assert after.version == f"0.0.0+{after.content[:12]}"


def test_all_problems_of_a_source_at_once(source: Path) -> None:
    (source / "link").symlink_to("run")
    with pytest.raises(ReleaseError) as caught:
        release_build.plan(recipe(source, version="a/b", requirements="lock.txt"))
    assert len(caught.value.problems) == 3
    assert "'a/b'" in str(caught.value)
    assert "link: a symbolic link" in str(caught.value)
    assert "lock.txt does not exist" in str(caught.value)


def test_a_lock_may_come_from_elsewhere_and_goes_with_the_release(
    source: Path, wheels: list[str], tmp_path: Path
) -> None:
    (source / "requirements.txt").unlink()
    lock = tmp_path / "supplied.txt"
    lock.write_text(LOCK)
    planned = release_build.plan(recipe(source, requirements=str(lock)))
    built = release_build.build(planned, tmp_path / "releases", tmp_path)
    manifest, _ = release.unpack(built, tmp_path / "target")
    assert (tmp_path / "target/source" / manifest.requirements).read_text() == lock.read_text()
    lock.write_text(f"{LOCK}x==2 --hash={HASH}\n")
    assert release_build.plan(recipe(source, requirements=str(lock))).content != planned.content


def test_a_supplied_lock_that_is_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"nowhere\.txt does not exist"):
        release_build.plan(recipe(source, requirements=str(tmp_path / "nowhere.txt")))


def test_a_changed_file_is_refused_by_name_and_sha256(artefact: Path, tmp_path: Path) -> None:
    repack(artefact, {"source/app/__init__.py": b"evil"})
    with pytest.raises(ReleaseError) as caught:
        release.unpack(artefact, tmp_path / "target")
    seen, wanted = (hashlib.sha256(text).hexdigest() for text in (b"evil", b"VERSION = 1\n"))
    assert caught.value.problems == [f"source/app/__init__.py: sha256 is {seen}, wanted {wanted}"]


def test_missing_and_additional_files_are_refused_together(artefact: Path) -> None:
    repack(artefact, {"source/run": None}, extra={"source/more.py": b"", "../outside": b""})
    with pytest.raises(ReleaseError) as caught:
        release.unpack(artefact, None)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "source/more.py",
        "../outside",
        "source/run",
    ]


def test_a_truncated_artefact_is_refused(artefact: Path) -> None:
    artefact.write_bytes(artefact.read_bytes()[:-200])
    with pytest.raises(ReleaseError):
        release.unpack(artefact, None)


def test_a_link_in_the_artefact_is_refused(artefact: Path) -> None:
    with tarfile.open(artefact) as archive:
        raw = archive.extractfile("manifest.json").read()
    manifest = json.loads(raw)
    manifest["files"] = {"source/x": "0" * 64}
    data = json.dumps(manifest).encode()
    with tarfile.open(artefact, "w:gz") as archive:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("source/x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ReleaseError, match="not a file that manifest"):
        release.unpack(artefact, None)


@pytest.mark.parametrize("name", ["/etc/passwd", "source/../../x", "source", "other/x", "source//x", "./source/x", ""])
def test_a_manifest_may_name_only_its_own_folders(name: str) -> None:
    raw = Manifest(version="1", content="", python_versions=[], requirements="r", files={name: "0"}).to_json()
    with pytest.raises(ReleaseError, match="not a path below"):
        Manifest.from_json(raw)


@given(st.text(min_size=1))
def test_no_directory_of_a_release_has_a_separator(version: str) -> None:
    assert not set(release.release_id(version)) & set("./\\@")


def test_an_unfinished_or_foreign_installation_does_not_count(artefact: Path, tmp_path: Path) -> None:
    manifest, digest = release.read_manifest(artefact)
    folder = tmp_path / "releases" / manifest.release_id
    folder.mkdir(parents=True)
    assert not release.is_installed(tmp_path, manifest.version, digest)
    marker = folder / "installed.json"
    marker.write_text(json.dumps({"manifest_sha256": digest, "python": release.python_version()}))
    assert release.is_installed(tmp_path, manifest.version, digest)
    assert not release.is_installed(tmp_path, manifest.version, "another")
    marker.write_text(json.dumps({"manifest_sha256": digest, "python": "3.9"}))
    assert not release.is_installed(tmp_path, manifest.version, digest)
    marker.write_text('{"manifest_sha')
    assert not release.is_installed(tmp_path, manifest.version, digest)


def test_installing_begins_anew_and_marks_last(artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, digest = release.read_manifest(artefact)
    folder = tmp_path / "releases" / manifest.release_id
    (folder / "source").mkdir(parents=True)
    (folder / "source/left-over.py").write_text("")
    monkeypatch.setattr(release, "python_version", lambda: "3.11")

    def killed(command: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        release.install(artefact, tmp_path)
    assert not release.is_installed(tmp_path, manifest.version, digest)
    commands: list[list[str]] = []
    monkeypatch.setattr(release, "_run", commands.append)
    release.install(artefact, tmp_path)
    assert release.is_installed(tmp_path, manifest.version, digest)
    assert not (folder / "source/left-over.py").exists()
    assert "--require-hashes" in commands[1]
    assert "--no-index" in commands[1]


def test_a_release_for_another_python_is_refused(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "python_version", lambda: "3.9")
    with pytest.raises(ReleaseError, match=r"has Python 3\.9, built for 3\.11, 3\.13"):
        release.install(artefact, tmp_path)
    assert not (tmp_path / "releases/1-0-0").exists()


def test_only_old_releases_out_of_use_are_removed(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "wanted", "slotted", "old", "half"]):
        folder = tmp_path / "releases" / name
        folder.mkdir(parents=True)
        if name != "half":
            (folder / "installed.json").write_text("{}")
            os.utime(folder / "installed.json", (1000 - age, 1000 - age))
    (tmp_path / "blue").symlink_to("releases/slotted")
    (tmp_path / "green").symlink_to("releases/gone")
    assert [path.name for path in release.surplus(tmp_path, 1, ["wanted"])] == ["old", "half"]
    assert release.surplus(tmp_path, 5, []) == []


def installed(root: Path, *names: str) -> None:
    """Put releases in place, the newest first."""
    for age, name in enumerate(names):
        folder = root / "releases" / name
        folder.mkdir(parents=True)
        (folder / "installed.json").write_text("{}")
        os.utime(folder / "installed.json", (1000 - age, 1000 - age))


def test_the_way_back_of_a_slot_is_kept(tmp_path: Path) -> None:
    """A slot goes from an old release to one that was installed long after it, and must be able to return."""
    installed(tmp_path, "3", "2", "1", "old")
    blue = tmp_path / "blue"
    blue.symlink_to("releases/old")
    assert release.outgoing(tmp_path, "blue", "3") == "old"
    release.note_previous(tmp_path, "blue", "old")
    assert release.outgoing(tmp_path, "blue", "3") == "", "noted once"
    blue.unlink()
    blue.symlink_to("releases/3")
    assert release.outgoing(tmp_path, "blue", "3") == ""
    assert (tmp_path / "previous/blue").resolve() == tmp_path / "releases/old"
    assert [path.name for path in release.surplus(tmp_path, 1, [])] == ["2", "1"]
    assert release.outgoing(tmp_path, "blue", "old") == "3", "and back again"
    release.note_previous(tmp_path, "blue", "3")
    assert (tmp_path / "previous/blue").resolve() == tmp_path / "releases/3"
    assert [path.name for path in (tmp_path / "previous").iterdir()] == ["blue"]


def test_an_empty_slot_and_one_whose_release_is_gone_have_no_way_back(tmp_path: Path) -> None:
    assert release.outgoing(tmp_path, "blue", "1") == ""
    (tmp_path / "blue").symlink_to("releases/gone")
    assert release.outgoing(tmp_path, "blue", "1") == ""


def test_a_slot_counts_also_below_a_linked_root(tmp_path: Path) -> None:
    installed(tmp_path / "data", "new", "slotted", "wanted", "old")
    (tmp_path / "data/blue").symlink_to("releases/slotted")
    (tmp_path / "pst").symlink_to("data")
    found = release.surplus(tmp_path / "pst", 1, ["wanted"])
    assert [path.name for path in found] == ["old"]


def test_a_release_that_a_process_was_started_from_is_known(tmp_path: Path) -> None:
    root, proc = tmp_path / "pst", tmp_path / "proc"
    (tmp_path / "data").mkdir()
    root.symlink_to("data")
    commands = {
        "1": f"{tmp_path}/data/releases/1-0-0/venv/bin/python\0run.py\0",
        "2": f"python\0{root}/releases/1-1-0/source/agent.py\0",
        "3": f"ls\0{root}/other/releases/2-0-0/\0",
        "self": f"{root}/releases/3-0-0/x",
    }
    for process, command in commands.items():
        (proc / process).mkdir(parents=True)
        (proc / process / "cmdline").write_text(command)
    (proc / "4").mkdir()
    assert release.running(root, proc) == {"1-0-0", "1-1-0"}


def test_a_manifest_of_before_there_were_bills_keeps_its_bytes() -> None:
    manifest = Manifest(version="1", content="", python_versions=[], requirements="r", files={})
    raw = manifest.to_json()
    assert "sbom_sha256" not in json.loads(raw)
    assert Manifest.from_json(raw).to_json() == raw
    assert Manifest.from_json(raw.replace(b"{", b'{"sbom_sha256": "ab",', 1)).sbom_sha256 == "ab"


def test_nothing_is_removed_where_nothing_is_installed(tmp_path: Path) -> None:
    assert release.surplus(tmp_path / "absent", 1, []) == []


def test_markers_are_judged_for_the_host_not_for_this_interpreter() -> None:
    old, new = (release_build.locked(LOCK, version, "x86_64") for version in ("3.11", "3.13"))
    assert [line.split()[0] for line in old] == ["pip==26.3", "async-timeout==5.0.1"]
    assert [line.split()[0] for line in new] == ["pip==26.3"]
    assert old[0].count("--hash=sha256:") == 2


@pytest.mark.parametrize("line", [f"pip>=26 --hash={HASH}", "pip==26.3", "not a requirement !"])
def test_an_unlocked_requirement_is_refused(line: str) -> None:
    with pytest.raises(ReleaseError, match="requirements"):
        release_build.locked(line, "3.11", "x86_64")


def test_a_lock_without_pip_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = release_build.plan(recipe(source))
    monkeypatch.setattr(release_build, "download", lambda *_: tmp_path / "no wheels")
    with pytest.raises(ReleaseError, match="does not lock pip"):
        release_build.build(planned, tmp_path / "releases", tmp_path)
    assert not (tmp_path / "releases").exists()


def test_a_host_says_what_its_slots_and_releases_are(tmp_path: Path) -> None:
    for version, made_for in (("1.0.0", release.python_version()), ("1.1.0", "3.7")):
        folder = tmp_path / "releases" / release.release_id(version)
        folder.mkdir(parents=True)
        manifest = release.Manifest(version, f"content of {version}", ["3.11"], "requirements.txt", {})
        (folder / release.MANIFEST).write_bytes(manifest.to_json())
        (folder / release.MARKER).write_text(json.dumps({"manifest_sha256": "", "python": made_for}))
    (tmp_path / "releases" / "interrupted").mkdir()
    (tmp_path / "blue").symlink_to("releases/1-0-0")
    (tmp_path / "green").symlink_to("releases/1-1-0")
    (tmp_path / "grey").symlink_to("releases/interrupted")
    slots = release.filled_slots(tmp_path)
    assert {colour: (slot["version"], slot["whole"]) for colour, slot in slots.items()} == {
        "blue": ("1.0.0", True),
        "green": ("1.1.0", False),
    }
    assert release.installed(tmp_path).keys() == {"1.0.0", "1.1.0"}
    assert release.filled_slots(tmp_path / "new") == {}
