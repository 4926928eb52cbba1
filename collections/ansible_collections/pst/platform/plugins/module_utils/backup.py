# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which jobs of the backup a host has, and what it is told about its sets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MONGODB, FILES = "mongodb", "files"
DAY_MINUTES = 1440


def of_host(sets: Sequence[Mapping[str, Any]], groups: Collection[str]) -> list[Mapping[str, Any]]:
    """The sets of a host in these groups."""
    return [one for one in sets if set(one["groups"]) & set(groups)]


def told(
    sets: Sequence[Mapping[str, Any]], groups: Collection[str], site: str, server: str, mongodb: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What the program is told of the sets of its host. `server` is `<name>:<port>`."""
    found = {}
    for one in of_host(sets, groups):
        repository = f"{site}-{one['name']}"
        entry = {"kind": one["kind"], "repository": repository, "url": f"rest:https://{server}/{repository}/"}
        if one["kind"] == MONGODB:
            entry["mongodb"] = dict(mongodb)
        else:
            entry |= {"paths": list(one["paths"]), "exclude": list(one.get("exclude", ()))}
        found[one["name"]] = entry
    return found


def jobs(
    sets: Sequence[Mapping[str, Any]], groups: Collection[str], server: bool, site: str, times: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The jobs of a host: `name`, `kind`, `at` (systemd's calendar, empty: by hand only), `daily`."""
    found = []
    for one in of_host(sets, groups):
        if one["kind"] == MONGODB:
            found.append(daily("full", one["name"], times["full"]))
            minutes = int(times["oplog_minutes"])
            found.append(
                {
                    "name": f"oplog-{one['name']}",
                    "kind": "oplog",
                    "at": f"*:0/{minutes}" if minutes < 60 else "*:00",
                    "daily": False,
                }
            )
        else:
            found.append(daily("files", one["name"], times["files"] if one.get("scheduled", True) else ""))
    if server:
        found.append({"name": "init", "kind": "init", "at": "", "daily": False})
        found.append(daily("prune", "", times["prune"]))
        found.append({"name": "look", "kind": "look", "at": "*:0/5", "daily": False})
        found += [daily("test", f"{site}-{one['name']}", times["test"]) for one in sets if one["kind"] == MONGODB]
    return found


def daily(kind: str, what: str, at: str) -> dict[str, Any]:
    return {"name": f"{kind}-{what}".rstrip("-"), "kind": kind, "at": f"*-*-* {at}:00" if at else "", "daily": bool(at)}


def minutes(clock: str) -> int:
    hours, _, rest = clock.partition(":")
    return int(hours) * 60 + int(rest)


def problems(window: Mapping[str, str], times: Mapping[str, str], oplog_minutes: int) -> list[str]:
    """What is wrong with the times, each with the key, the value seen and the value wanted."""
    start, end = minutes(window["start"]), minutes(window["end"])
    length = (end - start) % DAY_MINUTES or DAY_MINUTES
    found = [
        f"{key}: seen {at}; wanted a time in backup_window, {window['start']} to {window['end']}"
        for key, at in times.items()
        if (minutes(at) - start) % DAY_MINUTES >= length
    ]
    if 60 % oplog_minutes:
        found.append(f"backup_oplog_minutes: seen {oplog_minutes}; wanted a part of an hour, such as 5")
    return found


def htpasswd(passwords: Mapping[str, str]) -> str:
    """The server's file of passwords. They are random and long, so that a slow hash would add nothing; the client's
    certificate is asked for before."""
    lines = []
    for user, password in sorted(passwords.items()):
        digest = base64.b64encode(hashlib.sha1(password.encode(), usedforsecurity=False).digest()).decode()
        lines.append(f"{user}:{{SHA}}{digest}\n")
    return "".join(lines)
