"""What is in a repository, and which of it leads to a point in time. No I/O.

A full dump is the state of MongoDB at one operation time. A chunk holds every operation after `after` up to and with
`until`. A restore takes the last full dump that is not later than the target, and chunks without a gap up to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

FULL, OPLOG, FILES = "full", "oplog", "files"
FUTURE_S = 3600.0  # a clock may be so wrong; anything later was made to push good backups out of the retention
BACKDATED_S = 86400.0  # a backup takes less than a day from its start to when the repository has it


class CatalogError(Exception):
    """Why the repository does not lead to what was asked for, in words for the operator."""


@dataclass(frozen=True, order=True)
class Stamp:
    """MongoDB's operation time: a second, and the number of the operation in it."""

    seconds: int
    ordinal: int

    def __str__(self) -> str:
        return f"{self.seconds}.{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> Stamp:
        seconds, _, ordinal = text.partition(".")
        return cls(int(seconds), int(ordinal))

    def wall(self) -> str:
        return wall(self.seconds)


def wall(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True)
class Snapshot:
    """One backup in a repository, as restic tells it."""

    id: str
    time: float
    host: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Snapshot:
        # restic writes nanoseconds, which Python does not read.
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", str(told["time"])))
        return cls(str(told["id"]), moment.timestamp(), str(told.get("hostname", "")), tuple(told.get("tags") or ()))

    @property
    def kind(self) -> str:
        return next((kind for kind in (FULL, OPLOG, FILES) if kind in self.tags), "")

    def tag(self, name: str) -> str:
        return next((tag.partition("=")[2] for tag in self.tags if tag.startswith(f"{name}=")), "")

    @property
    def after(self) -> Stamp:
        return Stamp.parse(self.tag("after"))

    @property
    def until(self) -> Stamp:
        return Stamp.parse(self.tag("until"))


def fulls(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The full dumps, the oldest state first."""
    return sorted((s for s in snapshots if s.kind == FULL), key=lambda s: s.until)


def chunks(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    return sorted((s for s in snapshots if s.kind == OPLOG), key=lambda s: (s.after, s.until))


def last(snapshots: Iterable[Snapshot]) -> Stamp | None:
    """Up to where the repository has everything that followed its last full dump; None where there is no full dump."""
    snapshots = list(snapshots)
    newest = fulls(snapshots)[-1:]
    return chain(newest[0], snapshots)[1] if newest else None


def chain(full: Snapshot, snapshots: Iterable[Snapshot]) -> tuple[list[Snapshot], Stamp]:
    """The chunks that follow a full dump without a gap, and up to where they reach."""
    found, reached = [], full.until
    for chunk in chunks(snapshots):
        if chunk.after <= reached < chunk.until:
            found.append(chunk)
            reached = chunk.until
    return found, reached


@dataclass(frozen=True)
class Plan:
    """What leads to a point in time. Every operation of the seconds up to `target`, that one included, is in it."""

    full: Snapshot
    chunks: tuple[Snapshot, ...]
    target: int | None  # None: to the end of what there is
    reaches: Stamp

    def describe(self) -> list[str]:
        to = f"{wall(self.target)}, that second included" if self.target is not None else "the end of the repository"
        return [
            f"restores to {to}",
            f"full dump {self.full.id[:8]} of {self.full.until.wall()}: {self.full.tag('documents') or '?'} documents",
            f"and {len(self.chunks)} parts of the oplog, which reach to {self.reaches.wall()}",
        ]


def plan(snapshots: Sequence[Snapshot], target: int | None) -> Plan:
    """What leads to the end of the second `target`."""
    known = fulls(snapshots)
    if not known:
        raise CatalogError("the repository has no full dump")
    usable = [full for full in known if target is None or full.until.seconds <= target]
    if not usable:
        raise CatalogError(f"the first full dump is of {known[0].until.wall()}; wanted one before {wall(target or 0)}")
    full = usable[-1]
    following, reaches = chain(full, snapshots)
    if target is None:
        return Plan(full, tuple(following), None, reaches)
    if reaches.seconds <= target:
        later = [s for s in chunks(snapshots) if s.after > reaches]
        gap = f"; the next part begins at {later[0].after.wall()}, so what is between is in no backup" if later else ""
        raise CatalogError(
            f"the backups reach to {reaches.wall()}, not to the end of {wall(target)}{gap}. "
            f"Wanted: a second from {full.until.wall()} to {wall(reaches.seconds - 1)}, or `latest`"
        )
    needed = [chunk for chunk in following if chunk.after.seconds <= target]
    return Plan(full, tuple(needed), target, reaches)


def moment(text: str) -> int | None:
    """The second that an operator named: `latest`, or ISO 8601; without a zone, the host's, which is the site's."""
    if text == "latest":
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise CatalogError(f"seen {text!r}; wanted `latest` or a time such as 2026-11-30T02:15:07Z") from None
    if found.microsecond:
        raise CatalogError(f"seen {text!r}; wanted a whole second")
    return int((found if found.tzinfo else found.astimezone()).timestamp())


def suspicious(snapshots: Iterable[Snapshot], arrived: Mapping[str, float], now: float) -> list[str]:
    """Backups whose time is not when they arrived.

    A client that was taken over cannot delete, but it can add: backups with made-up times would push the good ones out
    of the retention. The time of the file in the repository is the server's own.
    """
    problems = []
    for snapshot in snapshots:
        came = arrived.get(snapshot.id)
        if snapshot.time > now + FUTURE_S:
            problems.append(f"{snapshot.id[:8]} of {snapshot.host} is dated {wall(snapshot.time)}, in the future")
        elif came is not None and abs(came - snapshot.time) > BACKDATED_S:
            when = f"{wall(snapshot.time)} and arrived {wall(came)}"
            problems.append(f"{snapshot.id[:8]} of {snapshot.host} is dated {when}")
    return problems
