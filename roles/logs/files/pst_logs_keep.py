#!/usr/bin/python3 -I
"""Compress the hours of the site's logs that are over, and delete the oldest, by age, by size and by free space.

A file that is to be compressed is renamed first, and rsyslog told to open its files anew, so that a late line goes into
a file of its own and nothing is added to what is being read. What a run that was killed has renamed, the next one
compresses. A compressed file is replaced by one rename.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

FOLDER = Path("/var/log/pst-logs")
METRICS = Path("/var/lib/prometheus/node-exporter/pst_logs.prom")
SETTLE_S = 2.0
HEADER = {
    "pst_logs_bytes": "Size of the logs that are kept.",
    "pst_logs_oldest_timestamp_seconds": "Start of the oldest hour that is kept.",
    "pst_logs_kept_timestamp_seconds": "When pst-logs-keep has last ended well.",
}


@dataclass(frozen=True)
class Limits:
    days: int
    gb: float
    free_mb: int
    idle_minutes: int


def hours(folder: Path) -> list[Path]:
    """All files of logs, the oldest hour first."""
    return sorted(
        (path for path in folder.glob("*/????-??-??/??.jsonl*") if path.suffix != ".new"),
        key=lambda path: (path.parent.name, path.name[:2]),
    )


def idle(folder: Path, now: datetime, minutes: int) -> Iterator[Path]:
    """Files of hours that are over and to which nothing was added for some time."""
    current = (now.strftime("%Y-%m-%d"), now.strftime("%H"))
    for path in hours(folder):
        over = (path.parent.name, path.name[:2]) < current
        if path.suffix == ".jsonl" and over and path.stat().st_mtime < now.timestamp() - minutes * 60:
            yield path


def compress(folder: Path, now: datetime, minutes: int, reopen: Callable[[], None]) -> int:
    """Compress what is idle; returns how many files that were."""
    renamed = False
    for path in idle(folder, now, minutes):
        part = path.with_suffix(".jsonl.part")
        if not part.exists():  # one that is left from a run that was killed comes first
            path.rename(part)
            renamed = True
    if renamed:
        reopen()
    parts = [path for path in hours(folder) if path.suffix == ".part"]
    for part in parts:
        packed = part.with_suffix(".gz")
        new = packed.with_suffix(".gz.new")
        with new.open("wb") as out:
            if packed.exists():
                with packed.open("rb") as before:
                    shutil.copyfileobj(before, out)
            with part.open("rb") as lines, gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as zipped:
                shutil.copyfileobj(lines, zipped, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        new.chmod(0o640)
        new.rename(packed)
        part.unlink()
    return len(parts)


def delete(folder: Path, now: datetime, limits: Limits, free_mb: Callable[[], float]) -> int:
    """Delete what is too old, then the oldest while all is too large; returns how many files that were."""
    oldest_day = (now - timedelta(days=limits.days)).strftime("%Y-%m-%d")
    all_hours = hours(folder)
    total = sum(path.stat().st_size for path in all_hours)
    deleted = 0
    recent = (now - timedelta(days=1)).strftime("%Y-%m-%d")
    for path in all_hours[:-1]:  # never the hour that is written
        # Where something else fills the disk, deleting the last day's logs would only hide what it is.
        full = total > limits.gb * 1e9 or (free_mb() < limits.free_mb and path.parent.name < recent)
        # The day of a host whose clock was wrong may lie ahead: then the time of the writing counts.
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")
        if not full and min(path.parent.name, written) >= oldest_day:
            continue
        total -= path.stat().st_size
        path.unlink()
        deleted += 1
    for day in folder.glob("*/????-??-??"):
        if not any(day.iterdir()) and day.name < now.strftime("%Y-%m-%d"):
            day.rmdir()
    return deleted


def figures(folder: Path, now: datetime) -> str:
    """What Prometheus is told, in its text format."""
    kept = hours(folder)
    oldest = datetime.fromisoformat(f"{kept[0].parent.name}T{kept[0].name[:2]}:00:00+00:00") if kept else now
    values = (sum(path.stat().st_size for path in kept), oldest.timestamp(), now.timestamp())
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value:.0f}\n"
        for (name, text), value in zip(HEADER.items(), values, strict=True)
    )


def reopen() -> None:
    """Tell rsyslog to close its files; it opens a new one for the next line."""
    show = ("systemctl", "show", "--property=MainPID", "--value", "rsyslog.service")
    pid = int(subprocess.run(show, capture_output=True, text=True, check=True).stdout)  # noqa: S603 (own words)
    if pid:
        os.kill(pid, signal.SIGHUP)
        time.sleep(SETTLE_S)


def export(text: str, path: Path) -> None:
    """For the textfile collector of the node exporter, where there is one."""
    if path.parent.is_dir():
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="pst-logs-keep", description=__doc__)
    parser.add_argument("--days", type=int, required=True, help="delete what is older")
    parser.add_argument("--gb", type=float, required=True, help="delete the oldest while all is larger")
    parser.add_argument("--free-mb", type=int, required=True, help="delete the oldest while less is free")
    parser.add_argument("--idle-minutes", type=int, required=True, help="compress what is untouched for so long")
    options = parser.parse_args()
    now = datetime.now(UTC)
    limits = Limits(options.days, options.gb, options.free_mb, options.idle_minutes)
    packed = compress(FOLDER, now, limits.idle_minutes, reopen)
    deleted = delete(FOLDER, now, limits, lambda: shutil.disk_usage(FOLDER).free / 1e6)
    export(figures(FOLDER, now), METRICS)
    if packed or deleted:
        sys.stdout.write(f"compressed {packed} files, deleted {deleted}\n")


if __name__ == "__main__":
    main()
