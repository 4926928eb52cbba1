# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The bill of materials of a release, in CycloneDX 1.6: the same release gives the same bytes.

It is made of what is in the artefact: the wheels, what they say of themselves, and the lock. It has no time and no
random number, so it can be made again.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO
from uuid import NAMESPACE_OID, uuid5

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from ansible_collections.pst.platform.plugins.module_utils.release import WHEELS, Manifest, ReleaseError

try:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense, License
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

LONGEST_LICENCE = 80
"""Characters; a longer text under "License:" is the licence itself, not its name."""


@dataclass(frozen=True)
class Target:
    """One Python of the hosts: what markers are judged by, and what the lock has for it (canonical name to version)."""

    environment: Mapping[str, str]
    pins: Mapping[str, str]


@dataclass(frozen=True)
class Wheel:
    """A wheel of the wheelhouse, and what it says of itself."""

    file: str
    name: str
    version: Version
    tags: frozenset[Tag]
    about: RawMetadata

    @classmethod
    def read(cls, file: str, stream: IO[bytes]) -> Wheel:
        try:
            name, version, _, tags = parse_wheel_filename(file)
            with zipfile.ZipFile(stream) as archive:
                (inside,) = [path for path in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", path)]
                about, _ = parse_email(archive.read(inside))
        except (InvalidWheelFilename, zipfile.BadZipFile, ValueError) as error:
            raise ReleaseError([f"{WHEELS}/{file}: no wheel that can be read: {error}"]) from error
        return cls(file, name, version, tags, about)

    @property
    def purl(self) -> str:
        return str(PackageURL("pypi", None, self.name, str(self.version), {"file_name": self.file}))

    def fits(self, python_version: str) -> bool:
        """Whether the wheel is for this Python: made for it, for any, or for the stable interface of an older one."""
        digits = python_version.replace(".", "")
        return any(
            tag.interpreter in (f"cp{digits}", f"py{digits}", "py3")
            or (tag.abi == "abi3" and _minor(tag.interpreter) <= _minor(digits))
            for tag in self.tags
        )


def _minor(interpreter: str) -> int:
    """Return 11 for "cp311" and "311"."""
    return int(interpreter.removeprefix("cp")[1:] or 0)


def document(manifest: Manifest, name: str, wheels: Sequence[Wheel], targets: Iterable[Target]) -> bytes:
    """Return the bill: the application with its revision, every wheel with its sha256, and who needs whom."""
    if MISSING:
        wanted = "install requirements.txt of this project again"
        raise ReleaseError(
            [f"the control node has no cyclonedx-python-lib for the bill of materials: {MISSING}; {wanted}"]
        )
    properties = {"pst:content": manifest.content, "pst:revision": manifest.revision}
    application = Component(
        type=ComponentType.APPLICATION,
        name=name,
        version=manifest.version,
        bom_ref=f"{name}@{manifest.version}",
        properties=[Property(name=key, value=value) for key, value in properties.items() if value],
    )
    components = {wheel.file: _component(wheel, manifest.files[f"{WHEELS}/{wheel.file}"]) for wheel in wheels}
    bill = Bom(
        serial_number=uuid5(NAMESPACE_OID, f"{name} {manifest.version} {manifest.content}"),
        components=components.values(),
    )
    bill.metadata.component = application
    bill.metadata.timestamp = None  # the manifest has it; here it would make two builds of one content differ
    bill.register_dependency(application, components.values())  # the lock names all of them
    needs = _needs(wheels, list(targets))
    for wheel in wheels:
        bill.register_dependency(components[wheel.file], [components[needed] for needed in sorted(needs[wheel.file])])
    text: str = JsonV1Dot6(bill).output_as_string(indent=1)
    return f"{text}\n".encode()


def _component(wheel: Wheel, sha256: str) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=wheel.about.get("name", wheel.name),
        version=str(wheel.version),
        bom_ref=wheel.purl,
        purl=PackageURL.from_string(wheel.purl),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        licenses=_licences(wheel.about),
    )


def _licences(about: RawMetadata) -> list[License]:
    """Return what a wheel says of its licence: the SPDX expression, else the old field, else the classifiers."""
    named = about.get("license_expression") or about.get("license", "").strip()
    if named and len(named) <= LONGEST_LICENCE and "\n" not in named:
        return [LicenseFactory().make_from_string(named)]
    classifiers = [entry.split(" :: ") for entry in about.get("classifiers", [])]
    return [
        DisjunctiveLicense(name=parts[-1])
        for parts in classifiers
        if parts[0] == "License" and parts[-1] != "OSI Approved"
    ]


def _needs(wheels: Sequence[Wheel], targets: Sequence[Target]) -> dict[str, set[str]]:
    """Return for each wheel the wheels that it needs, on any of the targets, where they are in the wheelhouse."""
    needs: dict[str, set[str]] = defaultdict(set)
    for target in targets:
        present = [
            wheel
            for wheel in wheels
            if wheel.fits(target.environment["python_version"])
            and wheel.name in target.pins
            and wheel.version == Version(target.pins[wheel.name])
        ]
        files: dict[str, set[str]] = defaultdict(set)
        for wheel in present:
            files[wheel.name].add(wheel.file)
        extras = _extras(present, target)
        for wheel in present:
            for requirement in _requirements(wheel, target, extras[wheel.name]):
                needs[wheel.file] |= files[canonicalize_name(requirement.name)]
    return needs


def _extras(wheels: Iterable[Wheel], target: Target) -> dict[str, set[str]]:
    """Return the extras that the wheels ask of each other, by name: "uvicorn[standard]" asks uvicorn for one."""
    extras: dict[str, set[str]] = defaultdict(set)
    for wheel in wheels:
        for requirement in _requirements(wheel, target, set()):
            extras[canonicalize_name(requirement.name)] |= requirement.extras
    return extras


def _requirements(wheel: Wheel, target: Target, extras: set[str]) -> Iterator[Requirement]:
    for line in wheel.about.get("requires_dist", []):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # of an old wheel; pip would not resolve it either
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**target.environment, "extra": extra}) for extra in ("", *extras)):
            yield requirement
