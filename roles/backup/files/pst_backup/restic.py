"""restic, with its errors in plain words. Nothing secret is on a command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pst_backup.catalog import Snapshot

PROGRAM = "/usr/bin/restic"
LOCK_WAIT_S = 900.0
LOCK_POLL_S = 10.0
EXPLAINED = (
    (r"wrong password or no key found", "the key (backup_secrets) does not open this repository"),
    (r"401 Unauthorized|403 Forbidden", "the repository's server refuses the password, or what was wanted"),
    (r"no space left on device|507 Insufficient|disk quota", "no space is left on a disk"),
    (r"connection refused|no route to host|i/o timeout|no such host|connection reset|broken pipe|EOF",
     "the repository cannot be reached"),
    (r"ciphertext verification failed|invalid data returned|contains (\d+ )?error|does not match|not readable|corrupt",
     "the repository is damaged: data in it is not what was written"),
    (r"unable to open config file|Is there a repository|does not exist", "there is no repository"),
)  # fmt: skip


class ResticError(Exception):
    """What restic could not do, and why as far as its words tell."""


@dataclass(frozen=True)
class Repository:
    """A repository: in a folder (on its own host) or at a server (`rest:https://host:port/name/`)."""

    name: str
    place: str
    key_file: Path
    cache: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    ca: str = ""
    certificate: str = ""

    def location(self) -> str:
        if not self.user:
            return self.place
        scheme, _, rest = self.place.partition("://")
        return f"{scheme}://{quote(self.user)}:{quote(self.password, safe='')}@{rest}"

    def options(self) -> list[str]:
        found = ["--password-file", str(self.key_file)]
        found += ["--cache-dir", str(self.cache)] if self.cache else ["--no-cache"]
        found += ["--cacert", self.ca] if self.ca else []
        found += ["--tls-client-cert", self.certificate] if self.certificate else []
        return found


def explain(text: str) -> str:
    """What restic's words mean, or its last words where they are not known."""
    for pattern, meaning in EXPLAINED:
        if re.search(pattern, text, re.IGNORECASE):
            return meaning
    return next(iter(essence(text)[-1:]), "it said nothing")


def essence(text: str) -> list[str]:
    """The lines that say something: without traces of the stack and progress."""
    noise = re.compile(r"^\s|^(github\.com|runtime|main|golang\.org)[./]|^(ReadFile|Read|Stat|Open)$")
    lines = (told(line) for line in text.splitlines() if line.strip() and not noise.match(line))
    return [line[:300] for line in lines if line]


def told(line: str) -> str:
    """A line of restic's; since 0.17 `--json` makes objects of errors as well."""
    if not line.startswith("{"):
        return line
    try:
        found = json.loads(line)
    except ValueError:
        return line
    error = found.get("error")
    what = error.get("message", "") if isinstance(error, dict) else error or found.get("message", "")
    return f"{found.get('item', '')} {what}".strip() if "error" in str(found.get("message_type")) else ""


class Restic:
    """The commands that are needed of one repository."""

    def __init__(
        self,
        repository: Repository,
        program: str = PROGRAM,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.repository = repository
        self.program = program
        self.sleep = sleep
        self.clock = clock

    def run(self, *arguments: str, cwd: Path | None = None, ok: Sequence[int] = (0,)) -> str:
        """Run a command; wait while another one has the repository locked."""
        command = [self.program, *self.repository.options(), *arguments]
        deadline = self.clock() + LOCK_WAIT_S
        while True:
            done = subprocess.run(  # noqa: S603 - our own arguments
                command, cwd=cwd, env=self.environment(), capture_output=True, text=True, check=False
            )
            if done.returncode in ok:
                return done.stdout
            said = done.stdout + done.stderr
            if "already locked" not in said or self.clock() >= deadline:
                break
            self.sleep(LOCK_POLL_S)
        # Its own words first: who looks at the journal reads the last line.
        why = f"repository {self.repository.name}: restic {arguments[0]} failed: {explain(said)}"
        raise ResticError("\n".join([*essence(said)[-4:], why]))

    def environment(self) -> Mapping[str, str]:
        keep = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
        return {**keep, "RESTIC_REPOSITORY": self.repository.location(), "GOMAXPROCS": "2"}

    def init(self) -> None:
        self.run("init")

    def snapshots(self, *tags: str) -> list[Snapshot]:
        chosen = [word for tag in tags for word in ("--tag", tag)]
        return [Snapshot.of(told) for told in json.loads(self.run("snapshots", "--json", *chosen) or "null") or ()]

    def backup(self, paths: Sequence[str], tags: Sequence[str], *, host: str, cwd: Path | None = None,
               exclude: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
        """Back up; returns restic's summary. A file that could not be read fails it (restic's status 3)."""
        self.run("unlock")  # of locks whose process has gone; a live one stays
        told = self.run(
            "backup", "--json", "--quiet", "--host", host, *(word for tag in tags for word in ("--tag", tag)),
            *(word for pattern in exclude for word in ("--exclude", pattern)), "--", *paths, cwd=cwd,
        )  # fmt: skip
        for line in reversed(told.splitlines()):
            if line.startswith("{") and '"summary"' in line:
                found: dict[str, Any] = json.loads(line)
                return found
        raise ResticError(f"repository {self.repository.name}: restic backup told no summary")

    def restore(self, snapshot: str, folder: Path) -> None:
        self.run("restore", snapshot, "--target", str(folder))

    def forget(self, *arguments: str) -> None:
        self.run("forget", *arguments)

    def prune(self) -> None:
        self.run("unlock")
        self.run("prune")

    def check(self, subset: str) -> None:
        """Check the structure, and read a part of the data back."""
        self.run("check", "--read-data-subset", subset)
