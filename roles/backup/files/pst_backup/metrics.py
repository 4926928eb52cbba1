"""What a job did, for the node exporter's textfile collector.

The job itself notes what it has done; whether it succeeded is told by systemd after it has ended, so a job that was
killed counts as failed. The last success is kept over failures: its age is what counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = {
    "last_run_timestamp_seconds": "When the job last ended.",
    "last_success_timestamp_seconds": "When the job last succeeded.",
    "success": "1 where the last run succeeded.",
    "duration_seconds": "How long the last run took.",
    "bytes": "Size of what the last successful run backed up, or tested.",
    "added_bytes": "What the last successful run added to the repository.",
    "documents": "Documents in the last full dump, or in the scratch instance of the last restore test.",
    "operations": "Operations of the oplog in the last part, or applied in the last restore test.",
    "point_in_time_timestamp_seconds": "Up to which second MongoDB can be restored.",
    "oldest_point_in_time_timestamp_seconds": "From which second on MongoDB can be restored to any second.",
    "repository_bytes": "Size of the repository on its disk.",
    "repository_newest_timestamp_seconds": "When the newest backup arrived in the repository.",
    "repository_snapshots": "Backups in the repository.",
    "disk_free_bytes": "Free space of the repositories' file system.",
}


def note(folder: Path, job: str, values: Mapping[str, Any]) -> None:
    """What a job has done, for `record`."""
    write(folder / f"{job}.done", json.dumps(values))


def record(folder: Path, job: str, *, succeeded: bool, now: float, seconds: float) -> dict[str, float]:
    """What is known of a job after it has ended; kept for the next time."""
    path = folder / f"{job}.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    done = folder / f"{job}.done"
    told: dict[str, float] = json.loads(done.read_text()) if done.exists() else {}
    known |= {"last_run_timestamp_seconds": now, "success": float(succeeded), "duration_seconds": seconds}
    if succeeded:
        known |= {"last_success_timestamp_seconds": now, **told}
    write(path, json.dumps(known))
    done.unlink(missing_ok=True)
    return known


def text(values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    found = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return "".join(
        f"# HELP pst_backup_{name} {HELP[name]}\n# TYPE pst_backup_{name} gauge\n"
        f"pst_backup_{name}{{{found}}} {value:.17g}\n"
        for name, value in sorted(values.items())
    )


def merged(parts: list[tuple[Mapping[str, float], Mapping[str, str]]]) -> str:
    """Several sets of labels in one file: each name has its help once."""
    lines = []
    for name in sorted({name for values, _ in parts for name in values}):
        lines += [f"# HELP pst_backup_{name} {HELP[name]}", f"# TYPE pst_backup_{name} gauge"]
        for values, labels in parts:
            if name in values:
                found = ",".join(f'{label}="{value}"' for label, value in labels.items())
                lines.append(f"pst_backup_{name}{{{found}}} {values[name]:.17g}")
    return "\n".join(lines) + "\n"


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """Replace a file at once, so that nobody reads half of it."""
    staging = path.with_name(f".{path.name}.new")
    staging.write_text(content)
    staging.chmod(mode)
    os.replace(staging, path)
