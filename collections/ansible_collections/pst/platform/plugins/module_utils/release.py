# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A release on a host: proven file by file, installed without a network, complete or not there.

An artefact is a tar.gz of `manifest.json` (first), `source/…` and `wheels/…`. On a host it becomes
`<root>/releases/<id>/{manifest.json,source,wheels,venv}`, and `installed.json`, written last, says that it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

MANIFEST = "manifest.json"
MARKER = "installed.json"
SOURCE, WHEELS, VENV = "source", "wheels", "venv"
PREVIOUS = "previous"
BLOCK = 1 << 20


class ReleaseError(Exception):
    """All that is wrong with a release, at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Manifest:
    """What a release is. `content` covers source, lock and Python versions; built_* only say where it comes from."""

    version: str
    content: str
    python_versions: list[str]
    requirements: str
    files: dict[str, str] = field(repr=False)
    executables: list[str] = field(default_factory=list, repr=False)
    revision: str = ""
    built_by: str = ""
    built_at: str = ""
    sbom_sha256: str = ""

    def to_json(self) -> bytes:
        fields = asdict(self)
        if not self.sbom_sha256:  # a manifest of before there was one keeps its bytes, and so its sha256
            del fields["sbom_sha256"]
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Manifest:
        try:
            manifest = cls(**json.loads(raw))
        except (ValueError, TypeError) as error:
            raise ReleaseError([f"{MANIFEST}: {error}"]) from error
        strange = [name for name in manifest.files if not is_inside(name)]
        if strange:
            raise ReleaseError([f"{MANIFEST}: {name!r} is not a path below {SOURCE}/ or {WHEELS}/" for name in strange])
        return manifest

    @property
    def release_id(self) -> str:
        return release_id(self.version)


def release_id(version: str) -> str:
    """Return the directory name: pysystemtrade takes a dot in a configured path for a separator, so there is none."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", version)


def is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and len(path.parts) > 1
        and path.parts[0] in (SOURCE, WHEELS)
    )


def sha256(stream: IO[bytes], copy_to: IO[bytes] | None = None) -> str:
    digest = hashlib.sha256()
    while block := stream.read(BLOCK):
        digest.update(block)
        if copy_to:
            copy_to.write(block)
    return digest.hexdigest()


def read_manifest(artefact: Path) -> tuple[Manifest, str]:
    """Return the manifest of an artefact and its sha256; reads only the first member."""
    try:
        with tarfile.open(artefact, "r|gz") as archive:
            return _first_member(archive)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ReleaseError([f"{artefact}: {error}"]) from error


def _first_member(archive: tarfile.TarFile) -> tuple[Manifest, str]:
    member = archive.next()
    stream = archive.extractfile(member) if member and member.isreg() and member.name == MANIFEST else None
    if stream is None:
        raise ReleaseError([f"the first member is not {MANIFEST}"])
    raw = stream.read()
    return Manifest.from_json(raw), hashlib.sha256(raw).hexdigest()


def unpack(artefact: Path, target: Path | None) -> tuple[Manifest, str]:
    """Prove every file against the manifest, and write them below `target` unless it is None (only verify)."""
    problems: list[str] = []
    seen: set[str] = set()
    try:
        with tarfile.open(artefact, "r|gz") as archive:
            manifest, digest = _first_member(archive)
            for member in iter(archive.next, None):
                wanted = manifest.files.get(member.name)
                stream = archive.extractfile(member) if member.isreg() else None
                if wanted is None or stream is None or member.name in seen:
                    problems.append(f"{member.name}: not a file that {MANIFEST} names once")
                    continue
                seen.add(member.name)
                found = _store(stream, member.name, target, executable=member.name in manifest.executables)
                if found != wanted:
                    problems.append(f"{member.name}: sha256 is {found}, wanted {wanted}")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ReleaseError([f"{artefact}: {error}", *problems]) from error
    missing = sorted(manifest.files.keys() - seen)
    problems += [f"{name}: missing, wanted sha256 {manifest.files[name]}" for name in missing]
    if problems:
        raise ReleaseError(problems)
    if target is not None:
        (target / MANIFEST).write_bytes(manifest.to_json())
    return manifest, digest


def _store(stream: IO[bytes], name: str, target: Path | None, *, executable: bool) -> str:
    if target is None:
        return sha256(stream)
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        found = sha256(stream, file)
    path.chmod(0o755 if executable else 0o644)
    return found


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def is_installed(root: Path, version: str, manifest_sha256: str) -> bool:
    """A release counts only when it is whole, this very one, and made for the Python that the host has now."""
    try:
        marker = json.loads((root / "releases" / release_id(version) / MARKER).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(marker == {"manifest_sha256": manifest_sha256, "python": python_version()})


def install(artefact: Path, root: Path) -> Manifest:
    """Install an artefact; what an interrupted run left of it is thrown away first."""
    manifest, _ = read_manifest(artefact)
    if python_version() not in manifest.python_versions:
        wanted = ", ".join(manifest.python_versions)
        raise ReleaseError([f"release {manifest.version}: this host has Python {python_version()}, built for {wanted}"])
    target = root / "releases" / manifest.release_id
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    manifest, digest = unpack(artefact, target)
    _make_venv(target, manifest)
    _run([str(target / VENV / "bin/python"), "-m", "compileall", "-q", str(target / SOURCE)])
    os.sync()  # the marker must not reach the disk before what it vouches for
    staged = target / f"{MARKER}.new"
    staged.write_text(json.dumps({"manifest_sha256": digest, "python": python_version()}))
    staged.rename(target / MARKER)
    return manifest


def _make_venv(target: Path, manifest: Manifest) -> None:
    """Build the environment from the wheels alone, by the pip among them: the host needs nothing but python3."""
    venv, wheels = target / VENV, target / WHEELS
    pip = next(iter(wheels.glob("pip-*.whl")), None)
    if pip is None:
        raise ReleaseError(
            [f"release {manifest.version}: no pip among its wheels; {manifest.requirements} must lock it"]
        )
    _run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    command = [str(venv / "bin/python"), f"{pip}/pip", "--isolated", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["install", "--quiet", "--no-index", "--find-links", str(wheels), "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(target / SOURCE / manifest.requirements)]
    _run(command)


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        output = (result.stderr or result.stdout)[-2000:].strip()
        raise ReleaseError([f"{' '.join(command)}: exit {result.returncode}: {output}"])


def outgoing(root: Path, slot: str, identity: str) -> str:
    """Return the id of the release that `identity` is about to replace in a slot; "" where there is none to note."""
    held, noted = _linked(root / slot), _linked(root / PREVIOUS / slot)
    return "" if held in (identity, noted) else held


def _linked(link: Path) -> str:
    return link.resolve().name if link.is_symlink() and link.exists() else ""


def note_previous(root: Path, slot: str, identity: str) -> None:
    """Keep the way back: `previous/<slot>` links to what the slot held before, so it is not cleared away."""
    (root / PREVIOUS).mkdir(exist_ok=True)
    staged = root / PREVIOUS / f".{slot}.new"
    staged.unlink(missing_ok=True)
    staged.symlink_to(f"../releases/{identity}")
    staged.rename(root / PREVIOUS / slot)


def running(root: Path, proc: Path = Path("/proc")) -> set[str]:
    """Return the ids of the releases that a process was started from: it may import from its release at any time."""
    roots = b"|".join(re.escape(os.fsencode(path)) for path in {root, root.resolve()})
    started_from = re.compile(rb"(?:%s)/releases/([^/\0]+)/" % roots)
    found: set[str] = set()
    for command in proc.glob("[0-9]*/cmdline"):
        try:
            found.update(os.fsdecode(name) for name in started_from.findall(command.read_bytes()))
        except OSError:  # the process is gone
            continue
    return found


def surplus(root: Path, keep: int, spare: Iterable[str]) -> list[Path]:
    """Return the releases to remove: neither among the `keep` newest, nor in a slot or before in it, nor in `spare`."""
    root = root.resolve()  # where it is a link itself, the slots would point elsewhere than to what is listed here
    releases = [path for path in (root / "releases").glob("*") if path.is_dir()]
    links = [*root.glob("*"), *(root / PREVIOUS).glob("*")]
    used = {link.resolve() for link in links if link.is_symlink()}
    used |= {root / "releases" / name for name in spare}
    by_age = sorted(releases, key=_installed_at, reverse=True)
    return [path for path in by_age[keep:] if path not in used]


def installed(root: Path) -> dict[str, dict[str, Any]]:
    """The complete releases of this host by version. One that is not `whole` was made for another Python."""
    found = {}
    for marker in sorted((root / "releases").glob(f"*/{MARKER}"), key=lambda path: path.stat().st_mtime):
        manifest = Manifest.from_json((marker.parent / MANIFEST).read_bytes())
        found[manifest.version] = {
            "version": manifest.version,
            "content": manifest.content,
            "path": str(marker.parent),
            "whole": json.loads(marker.read_bytes())["python"] == python_version(),
        }
    return found


def filled_slots(root: Path) -> dict[str, dict[str, Any]]:
    """What the slots hold, by colour: the release that each link names."""
    by_path = {Path(release["path"]).resolve(): release for release in installed(root).values()}
    slots = {path.name: path.resolve() for path in sorted(root.glob("*")) if path.is_symlink()}
    return {colour: by_path[path] for colour, path in slots.items() if path in by_path}


def _installed_at(release: Path) -> float:
    marker = release / MARKER
    return marker.stat().st_mtime if marker.exists() else 0.0


def summary(manifest: Manifest, manifest_sha256: str) -> dict[str, Any]:
    """What a playbook needs to know of a release."""
    return {
        "version": manifest.version,
        "id": manifest.release_id,
        "revision": manifest.revision,
        "content": manifest.content,
        "manifest_sha256": manifest_sha256,
        "python_versions": manifest.python_versions,
    }
