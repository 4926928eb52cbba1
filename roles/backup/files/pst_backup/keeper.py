"""The jobs of the repositories' host: make them, thin them out, check them, prove by a restore that they are good."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from pst_backup import catalog
from pst_backup.catalog import FILES, FULL, OPLOG
from pst_backup.restic import Restic, ResticError
from pst_backup.restore import Live, fetch, room, stage
from pst_backup.settings import Settings

Say = Callable[[str], None]
Values = dict[str, float]
START_S = 120.0


class KeeperError(Exception):
    """What is wrong with the repositories."""


def init(settings: Settings, say: Say) -> None:
    """Make the repositories that are not there yet."""
    for name in settings.server["repositories"]:
        repository = settings.kept(name)
        if not (Path(repository.place) / "config").exists():
            Restic(repository).init()
            say(f"repository {name} was made")


def arrived(place: str) -> dict[str, float]:
    """When each backup arrived, by this host's own clock."""
    return {path.name: path.stat().st_mtime for path in Path(place, "snapshots").iterdir()}


def prune(settings: Settings, say: Say, now: float) -> None:
    """Thin out: daily and weekly ones of full dumps and folders, parts of the oplog for some days."""
    keep = settings.server["keep"]
    counted = ["--keep-daily", str(keep["daily"]), "--keep-weekly", str(keep["weekly"])]
    problems = []
    for name in settings.server["repositories"]:
        repository = settings.kept(name)
        restic = Restic(repository)
        snapshots = restic.snapshots()
        if found := catalog.suspicious(snapshots, arrived(repository.place), now):
            problems.append(f"{name}: not thinned out, as somebody may want good backups to go: {'; '.join(found[:5])}")
            continue
        restic.forget("--tag", FULL, "--group-by", "", *counted)
        restic.forget("--tag", FILES, "--group-by", "host,paths", *counted)
        restic.forget("--tag", OPLOG, "--group-by", "", "--keep-within", f"{keep['point_in_time_days']}d")
        restic.prune()
        restic.check(settings.server["check_subset"])
        left = len(restic.snapshots())
        say(
            f"{name}: {left} of {len(snapshots)} backups are kept;"
            f" structure and {settings.server['check_subset']} of the data are sound"
        )
    if problems:
        raise KeeperError("\n".join(problems))


def look(settings: Settings) -> list[tuple[Values, dict[str, str]]]:
    """Sizes and ages, without a key."""
    found: list[tuple[Values, dict[str, str]]] = []
    for name in settings.server["repositories"]:
        place = Path(settings.server["folder"], name)
        if not (place / "config").exists():
            raise KeeperError(f"{place}: there is no repository")
        times = arrived(str(place))
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        values: Values = {"repository_bytes": size, "repository_snapshots": len(times)}
        if times:
            values["repository_newest_timestamp_seconds"] = max(times.values())
        found.append((values, {"repository": name}))
    found.append(({"disk_free_bytes": shutil.disk_usage(settings.server["folder"]).free}, {}))
    return found


@contextmanager
def scratch(program: str, folder: Path) -> Iterator[Any]:
    """An empty MongoDB that only this process reaches (the unit has a network of its own), gone afterwards."""
    data = folder / "db"
    data.mkdir(parents=True)
    command = [program, "--dbpath", str(data), "--bind_ip", "127.0.0.1", "--port", "27999", "--quiet",
               "--wiredTigerCacheSizeGB", "0.25", "--logpath", str(folder / "mongod.log"),
               "--unixSocketPrefix", str(folder), "--noscripting",
               "--setParameter", "diagnosticDataCollectionEnabled=false"]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - ours
    try:
        client: Any = pymongo.MongoClient("127.0.0.1", 27999, serverSelectionTimeoutMS=1000)
        deadline = time.monotonic() + START_S
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (
                    (folder / "mongod.log").read_text(errors="replace")[-600:]
                    if (folder / "mongod.log").exists()
                    else ""
                )
                raise KeeperError(f"the scratch MongoDB did not start ({process.poll()}): {log}")
            try:
                client.admin.command("ping")
                break
            except PyMongoError:
                time.sleep(0.2)
        yield client
        client.close()
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prove(settings: Settings, name: str, folder: Path, say: Say) -> Values:
    """Restore the newest state into a scratch MongoDB: counts and hashes are those of the dump, the oplog applies."""
    started = time.time()
    restic = Restic(settings.kept(name))
    plan = catalog.plan(restic.snapshots(), None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        for line in plan.describe():
            say(line)
        fetched = fetch(restic, plan, folder / "fetched", say)
        room(folder, fetched.manifest["bytes"], "the scratch instance")
        with scratch(settings.server["mongod"], folder) as client:
            live = Live(client)
            found = stage(live, fetched, lambda _: True, lambda namespace: namespace, say)
            documents = sum(client[space.partition(".")[0]][space.partition(".")[2]].count_documents({})
                            for space in found.shapes)  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"{name}: restores to {plan.reaches.wall()}, {documents} documents, in {time.time() - started:.0f} s")
    return {
        "documents": documents, "operations": found.applied, "bytes": fetched.manifest["bytes"],
        "point_in_time_timestamp_seconds": plan.reaches.seconds - 1,
    }  # fmt: skip


__all__ = ["KeeperError", "ResticError", "init", "look", "prove", "prune"]
