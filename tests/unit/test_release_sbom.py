"""The bill of materials: it names what is in the artefact, and the same release gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from ansible_collections.pst.platform.plugins.module_utils import release, release_build, release_sbom
from ansible_collections.pst.platform.plugins.module_utils.release import Manifest, ReleaseError
from ansible_collections.pst.platform.plugins.module_utils.release_sbom import Wheel
from ansible_collections.pst.platform.plugins.module_utils.release_store import sbom_of

HASH = f"sha256:{'0' * 64}"
LOCK = f"""\
pip==26.3 --hash={HASH}
uvicorn==0.40 --hash={HASH}
H11==0.16 --hash={HASH}
uv_loop==1.0 ; python_version < '3.13' --hash={HASH}
click==8.3 --hash={HASH}
"""
UVICORN = (
    "Requires-Dist: h11>=0.8\nRequires-Dist: uv-loop; extra == 'standard'\nRequires-Dist: absent\nRequires-Dist: ?\n"
)
CLICK = "Requires-Dist: uvicorn[standard]\nRequires-Dist: h11; python_version >= '3.13'\n"


def wheel(name: str, version: str, metadata: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x/vendored-1.dist-info/METADATA"), "Name: vendored\n")
        text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}\nText.\n"
        archive.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"), text)
    return stream.getvalue()


WHEELS = {
    "pip-26.3-py3-none-any.whl": wheel("pip", "26.3", "License-Expression: MIT\n"),
    "uvicorn-0.40-py3-none-any.whl": wheel("uvicorn", "0.40", f"License: BSD-3-Clause\n{UVICORN}"),
    "h11-0.16-py2.py3-none-any.whl": wheel("H11", "0.16", "Classifier: License :: OSI Approved :: MIT License\n"),
    "click-8.3-py3-none-any.whl": wheel("click", "8.3", f"License: a\n  long\n  text\n{CLICK}"),
}
FOR_311 = {"uv_loop-1.0-cp311-cp311-manylinux_2_28_x86_64.whl": wheel("uv_loop", "1.0")}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> release_build.Plan:
    source = tmp_path / "source"
    source.mkdir()
    (source / "requirements.txt").write_text(LOCK)

    def download(lock: str, python_version: str, architecture: str, cache: Path) -> Path:
        folder = tmp_path / f"wheels-{python_version}"
        folder.mkdir(exist_ok=True)
        for name, data in (WHEELS | (FOR_311 if python_version == "3.11" else {})).items():
            (folder / name).write_bytes(data)
        return folder

    monkeypatch.setattr(release_build, "download", download)
    return release_build.plan(
        release_build.Recipe(source, "1.0.0", "requirements.txt", ["3.11", "3.13"], "x86_64", [], "the-app")
    )


@pytest.fixture
def artefact(planned: release_build.Plan, tmp_path: Path) -> Path:
    pytest.importorskip("cyclonedx")
    return release_build.build(planned, tmp_path / "releases", tmp_path)


@pytest.fixture
def bill(artefact: Path) -> dict[str, Any]:
    return json.loads(sbom_of(artefact).read_bytes())


def test_it_names_every_wheel_with_its_proof(bill: dict[str, Any]) -> None:
    found = {component["purl"].partition("?")[0]: component for component in bill["components"]}
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert sorted(found) == [
        "pkg:pypi/click@8.3",
        "pkg:pypi/h11@0.16",
        "pkg:pypi/pip@26.3",
        "pkg:pypi/uv-loop@1.0",
        "pkg:pypi/uvicorn@0.40",
    ]
    pip = found["pkg:pypi/pip@26.3"]
    assert (pip["name"], pip["version"], pip["type"]) == ("pip", "26.3", "library")
    sha256 = hashlib.sha256(WHEELS["pip-26.3-py3-none-any.whl"]).hexdigest()
    assert pip["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert pip["purl"].endswith("?file_name=pip-26.3-py3-none-any.whl")


def test_it_says_what_the_wheels_say_of_their_licences(bill: dict[str, Any]) -> None:
    found = {component["name"]: component.get("licenses") for component in bill["components"]}
    assert found == {
        "pip": [{"license": {"id": "MIT"}}],
        "uvicorn": [{"license": {"id": "BSD-3-Clause"}}],
        "H11": [{"license": {"name": "MIT License"}}],
        "click": None,
        "uv_loop": None,
    }


def test_it_says_what_the_application_is(planned: release_build.Plan, artefact: Path, bill: dict[str, Any]) -> None:
    application = bill["metadata"]["component"]
    assert (application["type"], application["name"], application["version"]) == ("application", "the-app", "1.0.0")
    assert {entry["name"]: entry["value"] for entry in application["properties"]} == {"pst:content": planned.content}
    manifest = replace(release.read_manifest(artefact)[0], revision="abc")
    raw = release_sbom.document(manifest, "the-app", [], [])
    properties = json.loads(raw)["metadata"]["component"]["properties"]
    assert {"name": "pst:revision", "value": "abc"} in properties


def test_it_says_who_needs_whom_where_both_are_in_the_wheelhouse(bill: dict[str, Any]) -> None:
    def name(reference: str) -> str:
        return reference.removeprefix("pkg:pypi/").partition("@")[0]

    found = {name(entry["ref"]): sorted(map(name, entry.get("dependsOn", []))) for entry in bill["dependencies"]}
    assert found == {
        "the-app": ["click", "h11", "pip", "uv-loop", "uvicorn"],
        "click": ["h11", "uvicorn"],  # h11 by the marker of 3.13
        "uvicorn": ["h11", "uv-loop"],  # uv-loop by the extra that click asks for, on 3.11 only
        "h11": [],
        "pip": [],
        "uv-loop": [],
    }


def test_it_is_valid(artefact: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    pytest.importorskip("jsonschema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert validator.validate_str(sbom_of(artefact).read_text()) is None


def test_the_manifest_proves_it_and_the_same_release_gives_the_same_bytes(
    planned: release_build.Plan, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sbom_of(artefact).read_bytes()
    assert release.read_manifest(artefact)[0].sbom_sha256 == hashlib.sha256(first).hexdigest()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    again = release_build.build(planned, tmp_path / "again", tmp_path)
    assert sbom_of(again).read_bytes() == first
    release.unpack(again, None)


def test_a_lost_or_changed_one_is_made_again_from_the_artefact(planned: release_build.Plan, artefact: Path) -> None:
    before = sbom_of(artefact).read_bytes()
    assert release_build.has_bill(artefact)
    sbom_of(artefact).write_text("{}")
    assert not release_build.has_bill(artefact)
    assert release_build.restore_bill(planned, artefact)
    assert sbom_of(artefact).read_bytes() == before
    sbom_of(artefact).unlink()
    assert not release_build.has_bill(artefact)


def test_an_artefact_of_before_there_were_bills_gets_one(planned: release_build.Plan, artefact: Path) -> None:
    without_bill_in_manifest(artefact)
    sbom_of(artefact).unlink()
    assert release_build.is_built(planned, artefact.parent)
    assert not release_build.has_bill(artefact)
    digest = hashlib.sha256(artefact.read_bytes()).hexdigest()
    assert release_build.restore_bill(planned, artefact)
    assert release_build.has_bill(artefact)
    assert hashlib.sha256(artefact.read_bytes()).hexdigest() == digest


def test_another_bill_than_the_one_that_was_proven_is_not_put_in_its_place(
    planned: release_build.Plan, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbom_of(artefact).unlink()
    monkeypatch.setattr(release_build, "document", lambda *_: b"by another version of the library")
    assert not release_build.restore_bill(planned, artefact)
    assert not sbom_of(artefact).exists()


def without_bill_in_manifest(artefact: Path) -> None:
    with tarfile.open(artefact) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    manifest = json.loads(members["manifest.json"])
    del manifest["sbom_sha256"]
    members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(artefact, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("file", "python_version", "fits"),
    [
        ("a-1-py3-none-any.whl", "3.11", True),
        ("a-1-py2.py3-none-any.whl", "3.13", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "3.11", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "3.13", False),
        ("a-1-cp39-abi3-manylinux_2_17_x86_64.whl", "3.13", True),
        ("a-1-cp312-abi3-manylinux_2_17_x86_64.whl", "3.11", False),
    ],
)
def test_a_wheel_is_for_some_pythons(file: str, python_version: str, fits: bool) -> None:
    assert Wheel.read(file, io.BytesIO(wheel("a", "1"))).fits(python_version) is fits


@pytest.mark.parametrize(("file", "data"), [("x.whl", wheel("x", "1")), ("x-1-py3-none-any.whl", b"no archive")])
def test_a_wheel_that_cannot_be_read_is_named(file: str, data: bytes) -> None:
    with pytest.raises(ReleaseError, match=f"wheels/{file}"):
        Wheel.read(file, io.BytesIO(data))


def test_a_wheel_with_no_or_two_metadata_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/x.py", "")
    with pytest.raises(ReleaseError, match="no wheel that can be read"):
        Wheel.read("a-1-py3-none-any.whl", stream)


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_sbom, "MISSING", ImportError("No module named 'cyclonedx'"))
    manifest = Manifest(version="1", content="", python_versions=[], requirements="r", files={})
    with pytest.raises(ReleaseError, match=r"cyclonedx-python-lib.*No module named 'cyclonedx'.*requirements\.txt"):
        release_sbom.document(manifest, "x", [], [])


def test_names_and_versions_are_compared_as_pip_does() -> None:
    read = Wheel.read("uv_loop-1.0-py3-none-any.whl", io.BytesIO(wheel("uv_loop", "1.0")))
    assert (read.name, read.version) == ("uv-loop", Version("1"))
