# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build a release artefact on the control node: source tree, wheels by lock, manifest. Same content, no build.

Beside it is its bill of materials, whose sha256 the manifest has.
"""

from __future__ import annotations

import fnmatch
import getpass
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ansible_collections.pst.platform.plugins.module_utils.release import (
    MANIFEST,
    SOURCE,
    WHEELS,
    Manifest,
    ReleaseError,
    is_inside,
    read_manifest,
    release_id,
    sha256,
)
from ansible_collections.pst.platform.plugins.module_utils.release_sbom import Target, Wheel, document
from ansible_collections.pst.platform.plugins.module_utils.release_store import ARTEFACT, sbom_of, write

GLIBC = 36
"""Debian 12's glibc is 2.36: a wheel for any manylinux up to that runs on every supported host."""


SUPPLIED_LOCK = "pst-requirements.txt"
"""Name in the release of a lock that does not come with its source."""


@dataclass(frozen=True)
class Recipe:
    """What to build, from what. An empty version is taken from the content: for development.

    A lock with an absolute path is one that is supplied beside the source.
    """

    source: Path
    version: str
    requirements: str
    python_versions: Sequence[str]
    architecture: str
    exclude: Sequence[str]
    name: str = "pysystemtrade"

    @property
    def lock(self) -> Path:
        return self.source / self.requirements

    @property
    def lock_name(self) -> str:
        """Return where the lock is below the release's source."""
        return SUPPLIED_LOCK if Path(self.requirements).is_absolute() else self.requirements


@dataclass(frozen=True)
class Plan:
    """The content of a release, known without building it."""

    recipe: Recipe
    files: dict[str, Path]
    digests: dict[str, str]
    content: str

    @property
    def version(self) -> str:
        return self.recipe.version or f"0.0.0+{self.content[:12]}"

    def artefact(self, directory: Path) -> Path:
        return directory / f"{self.version}{ARTEFACT}"

    def targets(self) -> list[Target]:
        """Return what the lock has for each Python of the hosts."""
        lock, machine = self.recipe.lock.read_text(), self.recipe.architecture
        return [
            Target(environment(python, machine), pins(lock, python, machine)) for python in self.recipe.python_versions
        ]


def plan(recipe: Recipe) -> Plan:
    """Read the source tree. All that speaks against a build is reported at once."""
    problems = []
    if recipe.version and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", recipe.version):
        problems.append(f"version: {recipe.version!r}, wanted: letters, digits and . _ + -, at most 64")
    if not recipe.source.is_dir():
        raise ReleaseError([*problems, f"source: {recipe.source} is not a directory"])
    files = {}
    for path in sorted(_walk(recipe.source, recipe.exclude)):
        name = f"{SOURCE}/{path.relative_to(recipe.source).as_posix()}"
        if path.is_symlink():
            problems.append(f"{path}: a symbolic link; a release holds only files")
        elif is_inside(name):
            files[name] = path
    if recipe.lock_name == SUPPLIED_LOCK and recipe.lock.is_file():
        files[f"{SOURCE}/{SUPPLIED_LOCK}"] = recipe.lock
    if f"{SOURCE}/{recipe.lock_name}" not in files:
        problems.append(f"requirements: {recipe.lock} does not exist")
    if problems:
        raise ReleaseError(problems)
    digests = {name: _digest(path) for name, path in files.items()}
    identity = {
        "files": digests,
        "executables": _executables(files),
        "python_versions": list(recipe.python_versions),
        "requirements": recipe.lock_name,
        "architecture": recipe.architecture,
    }
    content = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Plan(recipe, files, digests, content)


def is_built(planned: Plan, directory: Path) -> bool:
    """Whether the artefact is there. A version has one content for ever: another one is refused."""
    artefact = planned.artefact(directory)
    if not artefact.exists():
        return False
    found = read_manifest(artefact)[0].content
    if found != planned.content:
        seen = f"{artefact}: holds content {found[:12]}, the source has {planned.content[:12]}"
        raise ReleaseError([f"{seen}. A release never changes: give it a new version (app_release_version)"])
    return True


def build(planned: Plan, directory: Path, cache: Path) -> Path:
    """Write the artefact, whole or not at all, after its bill of materials.

    The same content and SOURCE_DATE_EPOCH give the same bytes.
    """
    recipe = planned.recipe
    lock = recipe.lock.read_text()
    wheels = {
        f"{WHEELS}/{wheel.name}": wheel
        for version in recipe.python_versions
        for wheel in sorted(download(lock, version, recipe.architecture, cache).glob("*.whl"))
    }
    if not any(name.startswith(f"{WHEELS}/pip-") for name in wheels):
        raise ReleaseError([f"requirements: {recipe.requirements} does not lock pip, which hosts install with"])
    manifest = Manifest(
        version=planned.version,
        content=planned.content,
        python_versions=list(recipe.python_versions),
        requirements=recipe.lock_name,
        files=planned.digests | {name: _digest(path) for name, path in wheels.items()},
        executables=_executables(planned.files),
        revision=revision(recipe.source),
        built_by=f"{getpass.getuser()}@{platform.node()}",
        built_at=_build_time().isoformat(timespec="seconds"),
    )
    artefact = planned.artefact(directory)
    bill = bill_of_materials(planned, manifest, ((path.name, path.read_bytes()) for path in wheels.values()))
    manifest = replace(manifest, sbom_sha256=hashlib.sha256(bill).hexdigest())
    write(sbom_of(artefact), bill)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=f".{release_id(planned.version)}.", delete=False) as staged:
        try:
            with (
                gzip.GzipFile(fileobj=staged, mode="wb", filename="", mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                _add(archive, MANIFEST, manifest.to_json())
                for name, path in sorted((planned.files | wheels).items()):
                    _add(archive, name, path.read_bytes())
            os.chmod(staged.name, 0o644)
            os.replace(staged.name, artefact)
        except BaseException:
            os.unlink(staged.name)
            raise
    return artefact


def bill_of_materials(planned: Plan, manifest: Manifest, wheels: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the bill of a release, from its wheels (name of the file, bytes)."""
    # One after the other, by name: a wheel of a few has 100 MB.
    read = sorted((Wheel.read(name, io.BytesIO(data)) for name, data in wheels), key=lambda wheel: wheel.file)
    return document(manifest, planned.recipe.name, read, planned.targets())


def has_bill(artefact: Path) -> bool:
    """Whether the bill of materials is beside the artefact, and the one that its manifest names."""
    bill, named = sbom_of(artefact), read_manifest(artefact)[0].sbom_sha256
    return bill.exists() and named in ("", _digest(bill))


def restore_bill(planned: Plan, artefact: Path) -> bool:
    """Write the bill of an artefact that has none, from the artefact; False where it would not be the one it had."""
    manifest, _ = read_manifest(artefact)
    with tarfile.open(artefact) as archive:
        members = (member for member in archive if member.name.startswith(f"{WHEELS}/"))
        wheels = ((Path(member.name).name, _read(archive, member)) for member in members)
        bill = bill_of_materials(planned, manifest, wheels)
    if manifest.sbom_sha256 not in ("", hashlib.sha256(bill).hexdigest()):
        return False
    write(sbom_of(artefact), bill)
    return True


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _walk(folder: Path, exclude: Sequence[str]) -> list[Path]:
    found = []
    for entry in folder.iterdir():
        if any(fnmatch.fnmatch(entry.name, pattern) for pattern in exclude):
            continue
        found += _walk(entry, exclude) if entry.is_dir() and not entry.is_symlink() else [entry]
    return found


def _executables(files: dict[str, Path]) -> list[str]:
    return [name for name, path in files.items() if path.stat().st_mode & 0o100]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return sha256(file)


def _build_time() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)


def revision(source: Path) -> str:
    """Return the commit of the source tree, marked when it differs; empty outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def environment(python_version: str, architecture: str) -> dict[str, str]:
    """Return what markers are judged by on a host."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python_version}.0",
        "os_name": "posix",
        "platform_machine": architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python_version}.0",
        "python_version": python_version,
        "sys_platform": "linux",
    }


def pins(lock: str, python_version: str, architecture: str) -> Mapping[str, str]:
    """Return what a lock has for a target: canonical name to version."""
    named = (line.split()[0].partition("==") for line in locked(lock, python_version, architecture))
    return {canonicalize_name(name): version for name, _, version in named}


def locked(lock: str, python_version: str, architecture: str) -> list[str]:
    """Return the lock's lines that hold for a target, without markers.

    pip evaluates markers for the interpreter that runs it, even with --python-version: so they are evaluated here.
    """
    target = environment(python_version, architecture)
    chosen, problems = [], []
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)(^|\s)#.*$", "", lock)).splitlines():
        text, *hashes = re.split(r"\s--hash=", line.strip())
        if not text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            problems.append(f"requirements: {text!r}: {error}")
            continue
        if not hashes or not str(requirement.specifier).startswith("=="):
            problems.append(f"requirements: {text!r} is not locked, wanted: name==version --hash=sha256:…")
        elif requirement.marker is None or requirement.marker.evaluate(target):
            pins = " ".join(f"--hash={value.strip()}" for value in hashes)
            chosen.append(f"{requirement.name}{requirement.specifier} {pins}")
    if problems:
        raise ReleaseError(problems)
    return chosen


def download(lock: str, python_version: str, architecture: str, cache: Path) -> Path:
    """Return a folder with the wheels of a lock for one Python; filled once, then read from the cache."""
    lines = locked(lock, python_version, architecture)
    key = hashlib.sha256("\n".join([python_version, architecture, *lines]).encode()).hexdigest()[:24]
    target = cache / key
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(GLIBC, 16, -1)]
    tags += [f"manylinux2014_{architecture}", f"linux_{architecture}"]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("\n".join(lines) + "\n")
        wheels = Path(folder, "wheels")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += [
            "--dest",
            str(wheels),
            "--only-binary=:all:",
            "--require-hashes",
            "--requirement",
            str(requirements),
        ]
        command += ["--implementation", "cp", "--python-version", python_version]
        command += [argument for tag in tags for argument in ("--platform", tag)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            raise ReleaseError([f"pip download for Python {python_version}: {result.stderr[-2000:].strip()}"])
        try:
            wheels.rename(target)
        except OSError:  # another build was faster with the same wheels
            if not target.exists():
                raise
            shutil.rmtree(wheels)
    return target
