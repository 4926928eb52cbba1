"""The mounted store: whether it is there, and whether it takes a write now."""

from __future__ import annotations

import os
import threading
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
PROBE = ".pst-probe"


def mounts(table: Path = MOUNTS) -> dict[str, tuple[str, bool]]:
    """Return type and whether it is read-only of what is mounted last on each path."""
    found = {}
    for line in table.read_text().splitlines():
        before, after = line.split(" - ", 1)
        words = before.split()
        found[words[4]] = (after.split()[0], "ro" in words[5].split(","))
    return found


def writable(path: str, table: Path = MOUNTS) -> bool:
    """Say whether the volume is mounted there to be written."""
    return mounts(table).get(path) == ("fuse.glusterfs", False)


def mount_problem(store: str, public: str, table: Path = MOUNTS) -> str:
    """Return what is wrong with the two mounts, if anything."""
    there = mounts(table)
    if there.get(store, ("nothing", False))[0] != "fuse.glusterfs":
        return f"{store}: seen {there.get(store, ('nothing', False))[0]}, wanted the volume (fuse.glusterfs)"
    if there.get(public) != ("fuse.glusterfs", True):
        kind, read_only = there.get(public, ("nothing", False))
        return f"{public}: seen {kind}{', read-only' if read_only else ''}, wanted the volume, read-only"
    return ""


def write_problem(store: str, host: str, seconds: float) -> str:
    """Return why a write does not reach the store within that time; empty where it does."""
    outcome = [f"{store}: a write is not finished after {seconds:g} s"]

    def write() -> None:
        try:
            path = Path(store) / f"{PROBE}-{host}"
            with path.open("wb") as file:
                file.write(b"probe\n")
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        except OSError as error:
            outcome[0] = f"{store}: {error.strerror}"
        else:
            outcome[0] = ""

    # In a thread: what waits for a file system cannot be ended.
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(seconds)
    return outcome[0]
