"""The jobs of a host that holds state: dumps of MongoDB, parts of its oplog, folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pst_backup import catalog, mongo
from pst_backup.catalog import FILES, FULL, OPLOG
from pst_backup.restic import Restic
from pst_backup.restore import RestoreError, room
from pst_backup.settings import STATE, Settings

Say = Callable[[str], None]
Values = dict[str, float]


class JobError(Exception):
    """Why a job failed, in words for the operator."""


def spool(name: str) -> Path:
    """An empty folder. Its place is always the same, so that restic finds what it has already."""
    folder = STATE / "spool" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def chosen(settings: Settings, name: str, say: Say, *, anywhere: bool) -> str:
    """The member that this host reads from; empty where another host does the work, unless it may be done anywhere."""
    account = settings.account(name)
    said = mongo.states(account)
    best = mongo.elected(said)
    if not best:
        raise JobError(f"none of {', '.join(account.hosts)} answers as primary or secondary")
    if not anywhere and best.partition(":")[0].partition(".")[0] != settings.host:
        say(f"{best} does this")
        return ""
    return best


def full(
    settings: Settings, name: str, say: Say, *, anywhere: bool = False, allow_empty: bool = False
) -> Values | None:
    """A full dump; None where another host does it."""
    member = chosen(settings, name, say, anywhere=anywhere)
    if not member:
        return None
    account = settings.account(name)
    restic = Restic(settings.repository(name))
    before = catalog.fulls(restic.snapshots(FULL))
    folder = spool(name)
    try:
        with account.client(member) as client:
            about = before[-1].tag("bytes") if before else ""
            room(folder, max(int(about or 0), mongo.size_on_disk(client)), "the dump")
            manifest = mongo.dump(client, folder, {"site": settings.site, "host": settings.host})
        had = int(before[-1].tag("documents") or 0) if before else 0
        if had and not manifest["documents"] and not allow_empty:
            raise JobError(f"MongoDB has no documents; the dump before had {had}. Wanted: a restore, or --allow-empty")
        tags = [FULL, f"until={manifest['at']}", f"documents={manifest['documents']}", f"bytes={manifest['bytes']}"]
        told = restic.backup(["."], tags, host=settings.host, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    at = catalog.Stamp.parse(manifest["at"])
    say(f"full dump {told['snapshot_id'][:8]} of {at.wall()} from {member}: {manifest['documents']} documents,"
        f" {manifest['bytes']} bytes")  # fmt: skip
    return {
        "documents": manifest["documents"], "bytes": manifest["bytes"], "added_bytes": told["data_added"],
        "point_in_time_timestamp_seconds": at.seconds - 1,
    }  # fmt: skip


def oplog(settings: Settings, name: str, say: Say, *, anywhere: bool = False) -> Values | None:
    """The operations since the last part; None where another host does it."""
    member = chosen(settings, name, say, anywhere=anywhere)
    if not member:
        return None
    account = settings.account(name)
    restic = Restic(settings.repository(name))
    after = catalog.last(restic.snapshots())
    if after is None:
        say("the repository has no full dump yet: one is taken")
        return full(settings, name, say, anywhere=True)
    folder = spool(f"{name}-oplog")
    try:
        with account.client(member) as client:
            manifest = mongo.follow(client, after, folder, {"site": settings.site, "host": settings.host})
        if manifest is None:
            full(settings, name, say, anywhere=True)
            raise JobError(
                f"the oplog of {member} no longer reaches back to {after.wall()}: what was between then and now is in"
                " no backup. A full dump was taken; parts go on from it. Make the oplog larger (mongodb_oplog_size_mb)"
            )
        tags = [OPLOG, f"after={manifest['after']}", f"until={manifest['until']}"]
        told = restic.backup(["."], tags, host=settings.host, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    until = catalog.Stamp.parse(manifest["until"])
    say(f"oplog {told['snapshot_id'][:8]} from {member} up to {until.wall()}: {manifest['count']} operations")
    return {
        "operations": manifest["count"], "bytes": manifest["bytes"], "added_bytes": told["data_added"],
        "point_in_time_timestamp_seconds": until.seconds - 1,
    }  # fmt: skip


def files(settings: Settings, name: str, say: Say) -> Values | None:
    """Folders. None where this host has none of them."""
    found = settings.set(name)
    paths = [path for path in found["paths"] if Path(path).exists()]
    if not paths:
        say(f"none of {', '.join(found['paths'])} is on this host")
        return None
    tags = [FILES, f"set={name}"]
    told = Restic(settings.repository(name)).backup(paths, tags, host=settings.host, exclude=found.get("exclude", ()))
    size = told["total_bytes_processed"]
    say(f"{name} {told['snapshot_id'][:8]}: {told['total_files_processed']} files, {size} bytes")
    return {"bytes": size, "added_bytes": told["data_added"]}


def known_errors() -> tuple[type[Exception], ...]:
    return (JobError, RestoreError, mongo.DumpError, catalog.CatalogError)
