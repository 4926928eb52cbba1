# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Audit the lock of a release against the databases of known vulnerabilities, by pip-audit, in bounded time.

"clean" means that a database knew every package and no vulnerability of it. pip-audit itself says "No known
vulnerabilities found" also where it found no package at all, as behind a mirror that serves files only.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from ansible_collections.pst.platform.plugins.module_utils.release import ReleaseError
from ansible_collections.pst.platform.plugins.module_utils.release_store import write

CLEAN, VULNERABLE, UNREACHABLE = "clean", "vulnerable", "unreachable"
DATABASES = ("pypi", "osv")
"""pip-audit's services, the first that answers for every package counts."""
LIMIT = 60.0
"""Seconds for all databases together."""
ANSWER_TIMEOUT = 10
"""Seconds for one answer of a database."""
LONGEST_REASON = 160

Package = tuple[str, Version]
Ask = Callable[[str, float], dict[str, Any]]


class UnansweredError(Exception):
    """Why a database gave no answer."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a package of the release. An ignored one is kept for the record."""

    package: str
    version: str
    id: str
    aliases: list[str]
    fixed_in: list[str]
    ignored: bool

    def __str__(self) -> str:
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fix"
        return f"{self.package} {self.version} {self.id} ({fixed})"


@dataclass(frozen=True)
class Audit:
    """What a database knew of a content, when. `reason` says what was not answered."""

    status: str
    content: str
    audited_at: str
    packages: int
    database: str = ""
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Audit:
        fields = json.loads(raw)
        return cls(**fields | {"findings": [Finding(**finding) for finding in fields["findings"]]})

    def line(self) -> str:
        """Return the result in one line, for people."""
        ignored = [finding.id for finding in self.findings if finding.ignored]
        note = f"; ignored: {', '.join(ignored)}" if ignored else ""
        if self.status == UNREACHABLE:
            return f"not audited: the database cannot be reached ({self.reason}{note})"
        if self.status == CLEAN:
            return f"clean ({self.packages} packages{note})"
        open_ones = [finding for finding in self.findings if not finding.ignored]
        names = {finding.package for finding in open_ones}
        note += f"; {self.reason}" if self.reason else ""
        vulnerabilities = _count(len(open_ones), "vulnerability", "vulnerabilities")
        packages = _count(len(names), "package", "packages")
        return f"{vulnerabilities} in {packages}: {', '.join(map(str, open_ones))}{note}"


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def recorded(path: Path, content: str) -> Audit | None:
    """Return the audit beside an artefact; None where there is none of this content that can be read."""
    try:
        found = Audit.from_json(path.read_bytes())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.content == content else None


def gate(path: Path, content: str, mode: str, audit_it: Callable[[], Audit], *, due: bool) -> Audit | None:
    """Audit where it is `due`, keep the result at `path`, and refuse by `mode` (off, report, require).

    With "require" a recorded result that is not clean is not good enough: the database is asked again. A database that
    cannot be reached takes nothing away from what is recorded.
    """
    if mode == "off":
        return None
    before = recorded(path, content)
    required = mode == "require"
    if not due and not (required and (before is None or before.status != CLEAN)):
        return before
    result = audit_it()
    if before and before.status != UNREACHABLE and result.status == UNREACHABLE:
        result = replace(result, reason=f"{result.reason}; {before.status} on {before.audited_at}")
    else:
        write(path, result.to_json())
    if required and result.status != CLEAN:
        wanted = "wanted: clean. Lock fixed versions, list ids in app_release_audit_ignore, or set it to report"
        raise ReleaseError([f"app_release_audit is require, the release is {result.line()}; {wanted}"])
    return result


def audit(
    pins: Sequence[Mapping[str, str]], content: str, ignore: Sequence[str], ask: Ask, limit: float = LIMIT
) -> Audit:
    """Ask one database after the other until one knows every package, at most for `limit` seconds.

    `pins` has the lock of each Python, name to version. A vulnerability that is found counts, whatever is not known.
    """
    wanted = {(canonicalize_name(name), Version(version)) for lock in pins for name, version in lock.items()}
    result = Audit(UNREACHABLE, content, datetime.now(UTC).isoformat(timespec="seconds"), len(wanted))
    reasons: list[str] = []
    end = time.monotonic() + limit
    for left, database in zip(range(len(DATABASES), 0, -1), DATABASES, strict=True):
        try:
            known, findings = _read(ask(database, (end - time.monotonic()) / left), set(ignore))
        except UnansweredError as error:
            reasons.append(f"{database}: {error}")
            continue
        unknown = sorted(f"{name} {version}" for name, version in wanted - known)
        if unknown:
            some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
            reasons.append(f"{database}: does not know {len(unknown)} of {len(wanted)} packages: {some}")
        if any(not finding.ignored for finding in findings):
            reason = reasons[-1] if unknown else ""
            return replace(result, status=VULNERABLE, database=database, findings=findings, reason=reason)
        if not unknown:
            return replace(result, status=CLEAN, database=database, findings=findings)
    return replace(result, reason="; ".join(reasons))


def _read(answer: dict[str, Any], ignore: set[str]) -> tuple[set[Package], list[Finding]]:
    """Return the packages that the database knows, and what it has against them, from pip-audit's JSON."""
    known: set[Package] = set()
    findings = []
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            continue
        known.add((canonicalize_name(package["name"]), Version(package["version"])))
        for vulnerability in package["vulns"]:
            names = {vulnerability["id"], *vulnerability["aliases"]}
            findings.append(
                Finding(
                    package=package["name"],
                    version=package["version"],
                    id=vulnerability["id"],
                    aliases=sorted(vulnerability["aliases"]),
                    fixed_in=vulnerability["fix_versions"],
                    ignored=bool(names & ignore),
                )
            )
    return known, sorted(findings, key=lambda finding: (finding.package, finding.version, finding.id))


def pip_audit(pins: Sequence[Mapping[str, str]], cache: Path) -> Ask:
    """Return what asks a database through pip-audit, in a process of its own that ends in time."""
    if importlib.util.find_spec("pip_audit") is None:
        wanted = "install requirements.txt of this project again, or set app_release_audit: off"
        raise ReleaseError([f"app_release_audit: the control node has no pip-audit; {wanted}"])

    def ask(database: str, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        packages = []
        for layer in layers(pins):
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
                # Without markers, which would be judged for this Python, and without hashes, which pip has proven.
                requirements.writelines(f"{name}=={version}\n" for name, version in sorted(layer.items()))
                requirements.flush()
                command = [sys.executable, "-m", "pip_audit", "--requirement", requirements.name]
                command += ["--no-deps", "--disable-pip", "--vulnerability-service", database]
                command += ["--cache-dir", str(cache), "--timeout", str(ANSWER_TIMEOUT), "--progress-spinner", "off"]
                command += ["--format", "json", "--aliases", "on", "--desc", "off"]
                packages += _run(command, end - time.monotonic())["dependencies"]
        return {"dependencies": packages}

    return ask


def layers(pins: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the packages of all locks, each once: pip-audit refuses two versions of one package in a run."""
    found: list[dict[str, str]] = []
    for name, version in sorted({(name, version) for lock in pins for name, version in lock.items()}):
        layer = next((layer for layer in found if name not in layer), None)
        if layer is None:
            found.append(layer := {})
        layer[name] = version
    return found


def _run(command: Sequence[str], timeout: float) -> dict[str, Any]:
    """Return pip-audit's JSON. Its exit status is 1 for a vulnerability and for a failure alike."""
    if timeout <= 0:
        raise UnansweredError("no time left")
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise UnansweredError(f"no answer in {timeout:.0f} s") from error
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError as error:
        last = (result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1]
        without_connection = re.match(r"requests\.exceptions\.(\w+)", last)
        reason = f"no connection ({without_connection[1]})" if without_connection else last[:LONGEST_REASON]
        raise UnansweredError(reason) from error
    return answer
