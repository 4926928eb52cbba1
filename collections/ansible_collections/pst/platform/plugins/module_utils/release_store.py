# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The control node's store of releases: `<version>.tar.gz`, and its bill of materials and audit beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.pst.platform.plugins.module_utils.release import release_id

ARTEFACT, SBOM, AUDIT = ".tar.gz", ".sbom.cdx.json", ".audit.json"


def version_of(artefact: Path) -> str:
    return artefact.name.removesuffix(ARTEFACT)


def sbom_of(artefact: Path) -> Path:
    return artefact.with_name(version_of(artefact) + SBOM)


def audit_of(artefact: Path) -> Path:
    return artefact.with_name(version_of(artefact) + AUDIT)


def artefacts(directory: Path) -> list[Path]:
    """Return what is stored, the newest first. One that is still being written begins with a dot, and is none."""
    found = [path for path in directory.glob(f"*{ARTEFACT}") if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def surplus(directory: Path, keep: int, in_use: Iterable[str]) -> list[Path]:
    """Return the artefacts to remove: neither among the `keep` newest nor in use.

    `in_use` has versions, or ids as the links of slots name them. Two versions may have one id: both are in use then.
    """
    used = {release_id(name) for name in in_use}
    return [path for path in artefacts(directory)[keep:] if release_id(version_of(path)) not in used]


def remove(artefact: Path) -> None:
    """Remove an artefact with all that is beside it, itself last: what was interrupted is found again."""
    for path in (audit_of(artefact), sbom_of(artefact), artefact):
        path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as staged:
        try:
            staged.write(data)
            os.fchmod(staged.fileno(), 0o644)
            staged.flush()
            os.replace(staged.name, path)
        except BaseException:
            os.unlink(staged.name)
            raise
