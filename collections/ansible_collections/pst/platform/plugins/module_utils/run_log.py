# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The log of a playbook's run: a file of JSON lines, sent to the site's log servers when the run is over.

What could not be sent, or was left by a run that was killed, is sent by the next run. The files are kept small: the
oldest are deleted when there are too many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils.redact import redact
from ansible_collections.pst.platform.plugins.module_utils.relp import RelpError, Server, send
from ansible_collections.pst.platform.plugins.module_utils.trace import Part

LONGEST = 8000  # of a message: rsyslog takes 64 kB
MOST_FILES, MOST_BYTES = 200, 50_000_000
PRIORITIES = {"error": 11, "warning": 12, "notice": 13, "info": 14}  # of facility user


@dataclass(frozen=True)
class Target:
    """A site, and where its logs go."""

    site: str
    folder: Path
    servers: tuple[Server, ...]

    @property
    def can_send(self) -> bool:
        """False where the site's certificates are not issued yet."""
        return bool(self.servers) and all(server.certificate.exists() and server.ca.exists() for server in self.servers)


class RunLog:
    """The file of one run for one site."""

    def __init__(self, target: Target, playbook: str, control: str, pid: int | None = None) -> None:
        self.target = target
        self.playbook = playbook
        self.control = control
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{pid or os.getpid()}"
        target.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = target.folder / f"{self.run}.jsonl"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")

    def add(self, level: str, message: str, host: str = "", **data: Any) -> None:
        """One line; `host` is what the line is about, the control node itself where empty."""
        said = redact(message)
        record = {
            "time": datetime.now(UTC).isoformat(),
            "site": self.target.site,
            "host": host or self.control,
            "level": level,
            "process": "ansible",
            "message": said if len(said) <= LONGEST else f"{said[:LONGEST]} … ({len(said)} characters)",
            "data": {"run": self.run, "playbook": self.playbook, **data},
        }
        self.file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


def framed(line: str) -> bytes:
    """A line of a file as a syslog message (RFC 5424), as the hosts send theirs."""
    record = json.loads(line)
    priority = PRIORITIES.get(record["level"], PRIORITIES["info"])
    return f"<{priority}>1 {record['time']} {record['host']} {record['site']} - - - {line.strip()}".encode()


def whole(lines: Iterable[str]) -> list[bytes]:
    """The lines that were written to their end."""
    found = []
    for line in lines:
        try:
            found.append(framed(line))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def waiting(folder: Path, own: Path, is_alive: Callable[[int], bool] = alive) -> list[Path]:
    """Files to send, the oldest first: this run's, and those of runs that are over."""
    return [
        path
        for path in sorted(folder.glob("*.jsonl"))
        if path == own or not is_alive(int(path.stem.rpartition("-")[2] or 0))
    ]


def deliver(
    target: Target,
    own: Path,
    sender: Callable[[Server, Sequence[bytes]], int] = send,
    is_alive: Callable[[int], bool] = alive,
) -> str:
    """Send what waits to every server of the site, and delete it. Returns what is wrong; empty: nothing."""
    prune(target.folder)
    if not target.can_send:
        return ""
    files = waiting(target.folder, own, is_alive)
    lines = [line for path in files for line in whole(path.read_text(errors="replace").splitlines())]
    problems = []
    for server in target.servers:
        try:
            sender(server, lines)
        except RelpError as error:
            problems.append(str(error))
    if not problems:
        for path in files:
            path.unlink(missing_ok=True)
    return "; ".join(problems)


def prune(folder: Path, files: int = MOST_FILES, size: int = MOST_BYTES) -> None:
    """Delete the oldest files beyond the bounds; never the newest."""
    total = 0
    for number, path in enumerate(sorted(folder.glob("*.jsonl"), reverse=True)):
        total += path.stat().st_size
        if number and (number >= files or total > size):
            path.unlink(missing_ok=True)


class Tally:
    """What became of one task on its hosts."""

    def __init__(self, name: str, span: Part) -> None:
        self.name = name
        self.span = span
        self.counts: dict[str, int] = {}

    def count(self, what: str, host: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if what != "skipped":
            self.span.end(host, what)

    def data(self) -> dict[str, Any]:
        error = next((what for what in ("failed", "unreachable") if what in self.counts), "")
        return {"task": self.name, **self.counts, **self.span.fields(error)}
