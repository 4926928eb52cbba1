"""pst-backup <command>: the jobs of the timers, and what an operator needs.

  list SET                      what there is of a set
  restore SET --to WHEN …       MongoDB: the whole, or one collection, as it was at the end of a second
  fetch SET --to WHEN …         folders, as they were, into /var/lib/pst-backup/fetched/SET
  job NAME                      what a timer runs: full-SET, oplog-SET, files-SET, init, prune, look, test-REPOSITORY
  record NAME                   what came of a job, for monitoring; systemd runs it after the job
  full SET, oplog SET           a dump, a part of the oplog, now and from this host

Exit status: 0, 1 with one line that says why, 78 where the settings cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pymongo.errors import PyMongoError

from pst_backup import catalog, jobs, keeper, metrics, raw, replay, restore
from pst_backup.catalog import FILES, Snapshot
from pst_backup.restic import Restic, ResticError
from pst_backup.restore import Live, RestoreError
from pst_backup.settings import METRICS, PATH, STATE, Settings, SettingsError, secret

FAILED, BAD_SETTINGS = 1, 78
KNOWN = (
    *jobs.known_errors(), ResticError, keeper.KeeperError, raw.DamagedError, replay.ReplayError, RestoreError,
    PyMongoError, OSError,
)  # fmt: skip


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what the journal and the operator see


def job(settings: Settings, name: str) -> None:
    """Run a job and note what it did. Not chosen: nothing is noted, and the host has no figures of this job."""
    kind, _, what = name.partition("-")
    actions: dict[str, Callable[[], dict[str, float] | None]] = {
        "full": lambda: jobs.full(settings, what, say),
        "oplog": lambda: jobs.oplog(settings, what, say),
        "files": lambda: jobs.files(settings, what, say),
        "test": lambda: keeper.prove(settings, what, STATE / "test", say),
        "init": lambda: keeper.init(settings, say),
        "prune": lambda: keeper.prune(settings, say, time.time()),
        "look": lambda: None,
    }
    if kind not in actions:
        raise SettingsError(f"{name}: seen no such job; wanted one of {', '.join(actions)}")
    (STATE / f"{name}.skipped").unlink(missing_ok=True)
    done = actions[kind]()
    if done is None and kind in ("full", "oplog", "files"):
        (STATE / f"{name}.skipped").touch()
    metrics.note(STATE, name, done or {})


def record(settings: Settings, name: str, folder: Path) -> None:
    """As root, after the job: its figures where the node exporter looks. `SERVICE_RESULT` is systemd's."""
    if not folder.is_dir():
        return
    target = folder / f"pst_backup_{name}.prom"
    succeeded = os.environ.get("SERVICE_RESULT", "success") == "success"
    skipped = STATE / f"{name}.skipped"
    if succeeded and skipped.exists():
        target.unlink(missing_ok=True)  # another host does it now: its figures count
        return
    now = time.time()
    known = metrics.record(STATE, name, succeeded=succeeded, now=now, seconds=_seconds(name, now))
    labels = {"site": settings.site, "job": name}
    parts: list[tuple[Mapping[str, float], Mapping[str, str]]] = [(known, labels)]
    if name == "look" and succeeded:
        parts += [(values, {"site": settings.site, **more}) for values, more in keeper.look(settings)]
    metrics.write(target, metrics.merged(parts))


def _seconds(name: str, now: float) -> float:
    started = STATE / f"{name}.started"
    return max(0.0, now - started.stat().st_mtime) if started.exists() else 0.0


def show(settings: Settings, name: str, max_age: float) -> None:
    snapshots = sorted(Restic(settings.repository(name)).snapshots(), key=lambda s: s.time)
    for one in snapshots:
        say(f"{one.id[:8]}  {catalog.wall(one.time)}  {one.kind:6} {one.host:20} {' '.join(one.tags)}")
    newest = max((one.time for one in snapshots if one.kind == FILES), default=0.0)
    if settings.set(name)["kind"] == "mongodb":
        reached = catalog.last(snapshots)
        newest = reached.seconds - 1 if reached else 0.0
        say(f"MongoDB can be restored up to {catalog.wall(newest)}" if reached else "MongoDB cannot be restored yet")
    if max_age and time.time() - newest > max_age:
        raise RestoreError(
            f"{name}: the newest backup is of {catalog.wall(newest)}; wanted one of the last {max_age:.0f} s"
        )


def selection(namespace: str) -> Callable[[str], bool]:
    if namespace and "." not in namespace:
        raise RestoreError(f"seen {namespace!r}; wanted <database>.<collection>")
    return lambda one: not namespace or one == namespace


def run_restore(settings: Settings, options: argparse.Namespace) -> None:
    """Restore MongoDB. Nothing of the live data changes before all of it stands beside it."""
    name = options.set
    restic = Restic(settings.repository(name))
    plan = catalog.plan(restic.snapshots(), catalog.moment(options.to))
    for line in plan.describe():
        say(line)
    selects = selection(options.namespace)
    if options.plan:
        return
    about = settings.set(name)["mongodb"]
    with settings.account(name).client() as client:
        if not options.while_trading and (who := restore.held(client, about["leases"])):
            wanted = "nobody who holds a lease (kill-switch.yml stops trading)"
            raise RestoreError(f"trading goes on: {', '.join(who)}. Wanted: {wanted}")
    size = int(plan.full.tag("bytes") or 0)
    folder = STATE / "restore"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    restore.room(folder, size, "what is read from the repository")
    restore.room(Path(about["data_dir"]), size, "the restored data beside the live one")
    started = time.monotonic()
    try:
        fetched = restore.fetch(restic, plan, folder, say)
        # Only now: whoever may write is not needed before everything is there and sound.
        user, _, password = secret("login").partition("\n")
        with settings.account(name, user=user, password=password).client() as client:
            place(Live(client), fetched, options, selects, about)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"restored in {time.monotonic() - started:.0f} s")


def place(live: Live, fetched: restore.Fetched, options: argparse.Namespace, selects: Callable[[str], bool],
          about: dict[str, str]) -> None:  # fmt: skip
    if left := restore.clear(live):
        say(f"removed what an earlier restore had left: {', '.join(left)}")
    try:
        found = restore.stage(live, fetched, selects, restore.staged, say)
        restore.require(options.namespace, found.shapes)
        leases = restore.disarm(live, about["leases"], about["locks"], found.shapes, f"restored to {options.to}")
    except Exception:
        restore.clear(live)
        say("the live data was left alone")
        raise
    keep = (about["leases"], about["locks"])
    gone = restore.swap(live, found, selects, keep, say)
    if leases:
        say(f"{leases} leases are revoked: nobody trades until kill-switch.yml -e kill_switch_undo=true")
    say("result: " + json.dumps({
        "collections": len(found.shapes), "documents": found.documents, "operations": found.applied,
        "reached": str(found.reached), "gone": gone, "leases_revoked": leases,
    }))  # fmt: skip


def newest(snapshots: Sequence[Snapshot], target: int | None, host: str) -> Snapshot:
    """The last backup of folders that is not later than a second, of one host or of any."""
    found = [
        s for s in snapshots if s.kind == FILES and (target is None or s.time < target + 1) and host in ("", s.host)
    ]
    if not found:
        raise RestoreError("the repository has no backup of folders of that time and host")
    return max(found, key=lambda s: s.time)


def fetch_files(settings: Settings, options: argparse.Namespace) -> None:
    """Bring folders back, beside what is there: the operator puts them in place."""
    restic = Restic(settings.repository(options.set))
    found = newest(restic.snapshots(), catalog.moment(options.to), options.host)
    folder = STATE / "fetched" / options.set
    say(f"{found.id[:8]} of {catalog.wall(found.time)} from {found.host}")
    if options.plan:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    restic.restore(found.id, folder)
    say(f"restored to {folder}")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "pst-backup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=PATH)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("job", "record"):
        commands.add_parser(name).add_argument("name")
    for name in ("list", "full", "oplog", "restore", "fetch"):
        commands.add_parser(name).add_argument("set")
    commands.choices["list"].add_argument(
        "--max-age", type=float, default=0.0, help="fail where the newest is older (seconds)"
    )
    commands.choices["full"].add_argument("--allow-empty", action="store_true")
    for name in ("restore", "fetch"):
        commands.choices[name].add_argument("--to", required=True, help="a second in ISO 8601, or latest")
        commands.choices[name].add_argument("--plan", action="store_true", help="say what would be restored, and stop")
    commands.choices["restore"].add_argument("--namespace", default="", help="one collection, <database>.<collection>")
    commands.choices["restore"].add_argument("--while-trading", action="store_true")
    commands.choices["fetch"].add_argument("--host", default="")
    return parser.parse_args(words)


def dispatch(settings: Settings, options: argparse.Namespace) -> None:
    if options.command == "job":
        (STATE / f"{options.name}.started").touch()
        job(settings, options.name)
    elif options.command == "record":
        record(settings, options.name, METRICS)
    elif options.command == "list":
        show(settings, options.set, options.max_age)
    elif options.command == "full":
        jobs.full(settings, options.set, say, anywhere=True, allow_empty=options.allow_empty)
    elif options.command == "oplog":
        jobs.oplog(settings, options.set, say, anywhere=True)
    elif options.command == "restore":
        run_restore(settings, options)
    else:
        fetch_files(settings, options)


def main(words: Sequence[str]) -> int:
    options = arguments(words)
    try:
        dispatch(Settings.read(options.config), options)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return BAD_SETTINGS
    except KNOWN as error:
        print(f"<3>{restore.reason(error)}".replace("\n", "\n<3>"), file=sys.stderr)  # noqa: T201 - <3>: an error, for the journal
        return FAILED
    return 0
