# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the site that stands by could take over now: a line for each thing that has to be so.

Plain Python, over what each host of both sites was asked (`parts/dr_look.yml`). Which site stands by is read from the
replica set, never from the inventory, so that after a promotion the lines are about the other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

SHOWN = 3  # of the things that are not well, in one line
LONGEST = 60


class DrError(Exception):
    """What was asked does not say enough to name the two sites."""


class HalfwayError(DrError):
    """The votes are on their way from one site to the other."""


@dataclass(frozen=True)
class Limits:
    """What the site that stands by may be behind, in seconds."""

    mongodb_s: float = 10.0


@dataclass(frozen=True)
class Line:
    """One thing that has to be so."""

    area: str
    check: str
    value: str
    limit: str
    ok: bool

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": "ok" if self.ok else "NOT READY"}


@dataclass(frozen=True)
class Host:
    """What was asked of one host; a part that was not answered is None."""

    name: str
    site: str
    tiers: frozenset[str]
    services: Sequence[Mapping[str, Any]] | None = None
    outlook: Mapping[str, Any] | None = None
    trading: Mapping[str, Any] | None = None  # pst-trading status --json
    slots: Mapping[str, Any] | None = None
    endpoints: Mapping[str, int] | None = None  # exit status of a try to connect
    reason: str = ""

    @classmethod
    def of(cls, name: str, seen: Mapping[str, Any]) -> Host:
        return cls(name=name, **{**seen, "tiers": frozenset(seen["tiers"])})


@dataclass(frozen=True)
class Sites:
    """Which site leads and which stands by."""

    leading: str
    standby: str


def sites_of(hosts: Iterable[Host]) -> Sites:
    """Read from the replica set which site has the votes; a member of either says the same of both."""
    hosts = list(hosts)
    names = sorted({host.site for host in hosts})
    if len(names) != 2:
        raise DrError(f"seen {', '.join(names) or 'no site'}, wanted two sites: give both inventories (-i … -i …)")
    looks = [host for host in hosts if host.outlook and (host.outlook["leads_here"] or host.outlook["leads_there"])]
    found = {_leader(host, names) for host in looks}
    if "" in found:
        raise HalfwayError("both sites have votes: a promotion was broken off in the middle; run it again")
    if len(found) != 1:
        told = "; ".join(f"{host.name} says {_leader(host, names)}" for host in looks) or "no member answers"
        raise DrError(f"which site leads: {told}; wanted one answer")
    (leading,) = found
    return Sites(leading, next(name for name in names if name != leading))


def _leader(host: Host, names: Sequence[str]) -> str:
    """The site that has the votes, as this member sees it; empty where both have some."""
    outlook = host.outlook or {}
    if outlook["leads_here"] and outlook["leads_there"]:
        return ""
    return host.site if outlook["leads_here"] else next(name for name in names if name != host.site)


def readiness(seen: Mapping[str, Mapping[str, Any]], limits: Limits, to: str = "") -> list[dict[str, Any]]:
    """All the lines, those of the site that stands by first.

    None where `to` leads already, or both have votes: a run that was broken off goes on, and has proven them before.
    """
    hosts = [Host.of(name, found) for name, found in seen.items()]
    try:
        sites = sites_of(hosts)
        if to == sites.leading:
            return []
    except HalfwayError as error:
        return [] if to else [Line("sites", "which one leads", str(error), "one leads, one stands by", ok=False).row()]
    except DrError as error:
        return [Line("sites", "which one leads", str(error), "one leads, one stands by", ok=False).row()]
    standby = [host for host in hosts if host.site == sites.standby]
    leading = [host for host in hosts if host.site == sites.leading]
    lines = [
        Line("sites", "leads, stands by", f"{sites.leading}, {sites.standby}", "two sites", ok=True),
        *infrastructure(standby),
        *replication(standby, limits),
        *application(standby, leading),
        *trading(standby, leading, sites),
        *external(standby),
        *primary_site(leading, sites),
    ]
    return [line.row() for line in lines]


def infrastructure(standby: Sequence[Host]) -> Iterator[Line]:
    silent = [f"{host.name} ({host.reason or 'no answer'})" for host in standby if host.services is None]
    answered = len(standby) - len(silent)
    yield Line("infrastructure", "hosts that answer", _of(answered, silent), f"{len(standby)}", ok=not silent)
    services = [row for host in standby for row in host.services or ()]
    # Whose gateways stand by reach nobody through their links: that is how it has to be.
    sick = [
        f"{row['host']} {row['service']}: {row['state']}"
        for row in services
        if not row["ok"] and row["service"] != "link"
    ]
    yield Line(
        "infrastructure",
        "services that are well",
        _of(len(services) - len(sick), sick),
        f"{len(services)}",
        ok=not sick,
    )


def replication(standby: Sequence[Host], limits: Limits) -> Iterator[Line]:
    looks = [host.outlook for host in standby if host.outlook]
    lags: dict[str, float | None] = {}
    for outlook in looks:
        lags |= outlook["lags"]
    members = sum("mongodb" in host.tiers for host in standby)
    known = [lag for lag in lags.values() if lag is not None]
    ok = len(known) == members and max(known, default=0.0) <= limits.mongodb_s
    value = f"{max(known):.1f} s, {len(known)} members" if known else "not known"
    yield Line("replication", "MongoDB behind", value, f"{limits.mongodb_s:g} s, {members} members", ok=ok)


def application(standby: Sequence[Host], leading: Sequence[Host]) -> Iterator[Line]:
    slots = [
        row
        for host in standby
        for row in host.services or ()
        if row["service"] in ("app blue", "app green") and row["state"] == "ready"
    ]
    nodes = sorted(host.name for host in standby if "app_nodes" in host.tiers)
    ready = {row["host"] for row in slots}
    missing = [name for name in nodes if name not in ready]
    yield Line("application", "nodes that are ready", _of(len(ready), missing), f"{len(nodes)}", ok=not missing)
    here, there = _trading_releases(standby), _trading_releases(leading)
    wanted = ", ".join(sorted(there)) or "not known: the other site does not answer"
    value = ", ".join(sorted(here)) or "none"
    yield Line(
        "application", "release that would trade", value, wanted, ok=len(here) == 1 and (not there or here == there)
    )


def _trading_releases(hosts: Sequence[Host]) -> set[str]:
    found = set()
    for host in hosts:
        slots = host.slots or {}
        release = (slots.get("slots") or {}).get(slots.get("trading") or "", {}).get("version")
        if release:
            found.add(str(release))
    return found


def trading(standby: Sequence[Host], leading: Sequence[Host], sites: Sites) -> Iterator[Line]:
    """Nothing may trade where the leases are not, and no gateway may be logged in."""
    states = [host.trading for host in (*standby, *leading) if host.trading and host.trading.get("leases")]
    leases: Mapping[str, Any] = states[0]["leases"] if states else {}
    at = {name: lease.get("site") or "the first to take it" for name, lease in leases.items()}
    elsewhere = [f"{name}: {site}" for name, site in sorted(at.items()) if site == sites.standby]
    value = "; ".join(elsewhere) or ", ".join(sorted({*at.values()})) or "not known"
    yield Line("trading", "leases may be taken at", value, sites.leading, ok=bool(at) and not elsewhere)
    holds = sorted(
        f"{host.name}: {name}"
        for host in standby
        for name, state in ((host.trading or {}).get("guard") or {}).items()
        if state.get("holds")
    )
    yield Line("trading", "held where it stands by", ", ".join(holds) or "nothing", "nothing", ok=not holds)
    guards = [host for host in standby if "app_nodes" in host.tiers]
    away = [host.name for host in guards if not (host.trading or {}).get("guard")]
    yield Line("trading", "guards that wait", _of(len(guards) - len(away), away), f"{len(guards)}", ok=not away)
    gateways = [
        row
        for host in standby
        for row in host.services or ()
        if row["tier"] == "ib_gateways" and row["service"] == "gateway"
    ]
    up = [row["host"] for row in gateways if row["state"] != "standby"]
    yield Line(
        "trading",
        "gateways logged out",
        _of(len(gateways) - len(up), up),
        f"{len(gateways)}",
        ok=not up and bool(gateways),
    )


def external(standby: Sequence[Host]) -> Iterator[Line]:
    asked = {f"{name} from {host.name}": rc == 0 for host in standby for name, rc in (host.endpoints or {}).items()}
    if asked:
        closed = sorted(name for name, ok in asked.items() if not ok)
        yield Line("external", "reached", _of(len(asked) - len(closed), closed), f"{len(asked)}", ok=not closed)


def primary_site(leading: Sequence[Host], sites: Sites) -> Iterator[Line]:
    """For information: a site that does not answer is a reason to take over, not a reason against it."""
    silent = [host.name for host in leading if host.services is None]
    yield Line(sites.leading, "hosts that answer", _of(len(leading) - len(silent), silent), "any", ok=True)


def _of(count: int, others: Sequence[str]) -> str:
    """Say how many, and of the others enough to begin with: status.yml has all of them."""
    told = [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in others[:SHOWN]]
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return f"{count}, not {'; '.join(told)}{more}" if others else f"{count}"


def leases_at(status: Mapping[str, Any], site: str) -> dict[str, list[str]]:
    """The placements whose lease is taken at a site (`here`), and the others, by `pst-trading status --json`.

    Generation comes first, then orders, then all else: the order in which they are stopped.
    """
    order = {name: number for number, name in enumerate(("strategies", "trading"))}
    leases: Mapping[str, Any] = status.get("leases") or {}
    names = sorted(leases, key=lambda name: (order.get(name, len(order)), name))
    here = [name for name in names if leases[name].get("site") == site]
    return {"here": here, "elsewhere": [name for name in names if name not in here]}


def loss(applied: str, heard: Sequence[Mapping[str, Any]], members: Sequence[str]) -> dict[str, Any]:
    """What may be lost where the other site's members are given up: what is known to be missing, and what is not known.

    Operations come from the other site within milliseconds, while heartbeats come every two seconds: where this site's
    newest operation is not older than what the last heartbeat told, nothing is known to be missing, and what may be is
    what was acknowledged there after the last contact.
    """
    told = [entry for entry in heard if entry["host"] in members]
    newest = max((_moment(entry["applied"]) for entry in told if entry.get("applied")), default=None)
    known = max(0.0, (newest - _moment(applied)).total_seconds()) if newest and applied else 0.0
    contact = min((entry["seconds_ago"] for entry in told if entry.get("seconds_ago") is not None), default=None)
    return {
        "applied": applied,
        "newest_heard": newest.isoformat(timespec="milliseconds") if newest else "",
        "known_s": round(known, 3),
        "unknown_s": None if contact is None else round(contact, 3),
    }


# What of a failover is rehearsed, by the names of dr-promote.yml where it has them; and what the last promotion tells.
REHEARSED = ("force MongoDB", "a write by the application", "the leases")
SESSION = "the broker's session"


def durations(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each step with its seconds, up to the next one; the last one marks the end."""
    moments = [_moment(step["at"]) for step in steps]
    took = [round((after - at).total_seconds(), 1) for at, after in pairwise(moments)]
    return [{**step, "s": seconds} for step, seconds in zip(steps, [*took, 0.0], strict=False)]


def rehearsal(steps: Sequence[Mapping[str, Any]], promotions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The steps of a rehearsal, and how long a failover would take: what was measured, and the last session's step."""
    timed = durations(steps)
    done = [report["steps"] for report in promotions if report.get("steps")]
    last = durations(max(done, key=lambda found: str(found[-1]["at"]), default=[]))
    session = next((step["s"] for step in last if step["step"] == SESSION), None)
    measured = {step["step"]: step["s"] for step in timed[:-1]}
    missing = [name for name in REHEARSED if name not in measured]
    rto = None if missing else round(sum(measured[name] for name in REHEARSED) + (session or 0.0), 1)
    return {"steps": timed, "estimated_rto_s": rto, "session_s": session, "not_rehearsed": [SESSION, *missing]}


def answers(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a site's own instance (first of each pair) and that of a rehearsal have answered, as numbers of things.

    Orders come and go while the leading site trades: theirs are told, and need not be the same.
    """
    found = []
    for own, copy in zip(results[::2], results[1::2], strict=True):
        what = own["item"][0]
        pair = [(one["status"], _numbers(one.get("json") or {})) for one in (own, copy)]
        same = pair[0] == pair[1] or (what == "orders" and pair[0][0] == pair[1][0])
        found.append({"what": what, "own": pair[0][1], "copy": pair[1][1], "status": pair[1][0], "same": same})
    return found


def _numbers(answer: Mapping[str, Any]) -> dict[str, Any]:
    """How many things an answer holds; of a version, the release itself."""
    texts = {key: value for key, value in answer.items() if key in ("release", "content")}
    return texts | {key: len(value) for key, value in answer.items() if isinstance(value, list)}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
