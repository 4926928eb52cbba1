# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the page's collector (roles/console) is told of the site, and what a run leaves for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ansible_collections.pst.platform.plugins.module_utils import dashboards, host_status

Document = dict[str, Any]

# The tiers in the order in which a request passes them, with their headings. A host of two is shown in the first.
TIERS: Mapping[str, str] = {
    "load_balancers": "Balancers",
    "app_nodes": "Application and trading",
    "mongodb": "MongoDB",
    "redis": "Redis",
    "ib_gateways": "IB Gateway",
    "monitoring": "Monitoring",
    "backup": "Backup",
    "dns": "DNS",
}
OTHER = "Others"


HOUR, DAY = 3600, 86400
# What grows old on every platform. What a site does not measure has no row. Seconds: worth a look, a fault.
AGES: Sequence[Mapping[str, Any]] = (
    {
        "title": "MongoDB: replication lag",
        "expression": "max by (member) (mongodb_replset_member_lag_seconds)",
        "warning": 10,
        "critical": 60,
    },
    {
        "title": "Redis: silence of the master",
        "expression": "max by (host) (redis_master_last_io_seconds_ago >= 0)",
        "warning": 10,
        "critical": 60,
    },
    {
        "title": "Last backup",
        "expression": "time() - max by (exported_job) (pst_backup_last_success_timestamp_seconds)",
        "warning": 26 * HOUR,
        "critical": 8 * DAY,
    },
)


def hosts(names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[Document]:
    """The hosts of the site as the page places them."""
    found = []
    for name in sorted(names):
        variables = hostvars[name]
        # Of the tiers alone: a run adds groups of its own, of those that it restarts, and the next run has others.
        groups = [tier for tier in TIERS if tier in variables["group_names"]]
        found.append(
            {
                "name": str(name),
                "tier": next(iter(groups), OTHER.lower()),
                "zone": str(variables["site_zone"]),
                "address": str(variables["site_address"]),
                "groups": [host_status.EVERY_HOST, *groups],
            }
        )
    return found


def settings(of_site: Mapping[str, Any], site_hosts: Sequence[Document], ages: Sequence[Mapping[str, Any]]) -> Document:
    """The whole settings file of the collector."""
    present = {group for host in site_hosts for group in host["groups"]}
    units = [
        {
            "tier": service.tier,
            "service": service.name,
            "unit": service.unit,
            "optional": service.optional,
        }
        for service in host_status.SERVICES
        if service.tier in present
    ]
    defaults = {"unit": "s"}
    return {
        **of_site,
        "tiers": {**TIERS, OTHER.lower(): OTHER},
        "hosts": list(site_hosts),
        "units": units,
        "ages": [{**defaults, **age} for age in (*AGES, *ages)],
        "panels": dashboards.page_panels(),
    }


# Runs -----------------------------------------------------------------------------------------------------------------

# A timeline that a page draws in a thousand pixels needs no more.
MOST_SECONDS, MOST_EVENTS, MOST_TEXT = 240, 60, 300


def run(report: Mapping[str, Any]) -> Document:
    """A report of `evidence` in short: what the page shows of it."""
    started = datetime.fromisoformat(report["started"])
    width = -(-len(report["seconds"]) // MOST_SECONDS) or 1
    gap = report.get("longest_gap")
    return {
        "id": report["run"],
        "operation": report["operation"],
        "outcome": report["outcome"],
        "started": report["started"],
        "duration_s": report["duration_s"],
        "requests": report["requests"],
        "failed": report["failed"],
        "longest_gap_ms": report["longest_gap_ms"],
        "gap": {"at": gap["at"], "seconds": gap["seconds"]} if gap else None,
        "problems": [str(problem)[:MOST_TEXT] for problem in report["problems"]],
        "events": [
            {
                "s": round((datetime.fromisoformat(event["at"]) - started).total_seconds(), 1),
                "host": event["host"],
                "what": event["what"][:MOST_TEXT],
            }
            for event in report["events"][:MOST_EVENTS]
        ],
        "second": width,
        "seconds": grouped(report["seconds"], width),
    }


def grouped(seconds: Sequence[Mapping[str, Any]], width: int) -> list[list[float | None]]:
    """By `width` seconds: requests that succeeded and that failed, a second, and the worst 99th percentile."""
    found: list[list[float | None]] = []
    for place in range(0, len(seconds), width):
        part = seconds[place : place + width]
        slowest = max((second["p99_ms"] for second in part if second["p99_ms"] is not None), default=None)
        counts = [round(sum(second[kind] for second in part) / len(part), 1) for kind in ("ok", "failed")]
        found.append([*counts, slowest])
    return found
