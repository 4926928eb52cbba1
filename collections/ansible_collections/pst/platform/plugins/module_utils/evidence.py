# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report of a planned operation: what became of the requests that were sent while it ran, as JSON and as a page.

Plain Python: the probe (roles/evidence/files/pst_probe.py) gives the account, `evidence_probe` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

Report = dict[str, Any]

# What a report must have at most, where nobody says otherwise.
BARS: Mapping[str, float] = {"failed": 0, "duplicate_posts": 0, "lost_posts": 0, "longest_gap_ms": 1000}
KNOWN_BARS = (*BARS, "p50_ms", "p99_ms", "late_ms", "duration_s")
FAILURES_SHOWN = 100
# The probe may end so long before the operation does: the time that stopping it takes.
UNWATCHED_S = 3.0


def bar_problems(bars: Any) -> Iterator[str]:
    """Yield what is wrong with `evidence_require`: its key, what was seen, what is wanted."""
    if not isinstance(bars, Mapping):
        yield f"evidence_require: seen {bars!r}; wanted a dictionary of {', '.join(KNOWN_BARS)}"
        return
    for name, most in bars.items():
        if name not in KNOWN_BARS:
            yield f"evidence_require.{name}: seen an unknown key; wanted one of {', '.join(KNOWN_BARS)}"
        elif most is not None and (isinstance(most, bool) or not isinstance(most, (int, float)) or most < 0):
            yield f"evidence_require.{name}: seen {most!r}; wanted a number of 0 or more, or null for no bar"


def iso(seconds: float) -> str:
    """Return a moment (seconds since the epoch) in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def build(
    run: Mapping[str, Any],
    account: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    posts: Mapping[str, Any] | None,
    bars: Mapping[str, float | None],
    ended: float,
) -> Report:
    """Return the report.

    `run` says what was asked for (run, operation, site, rate), `account` what the probe saw, `events` what happened
    (`at` in ISO 8601), `posts` how often each POST was carried out (None: nobody could say), `bars` what is wanted at
    most, `ended` when the operation was over (seconds since the epoch).
    """
    started = float(account["started"])
    gaps = [gap | {"events": events_of(gap, started, events)} for gap in account["gaps"]]
    longest = max(gaps, key=lambda gap: gap["seconds"], default=None)
    report: Report = {
        "operation": run["operation"],
        "site": run["site"],
        "run": run["run"],
        "started": iso(started),
        "ended": iso(ended),
        "duration_s": round(ended - started, 3),
        "rate": run["rate"],
        "requests": account["sent"],
        "failed": account["sent"] - account["ok"],
        "failed_by_kind": account["failed"],
        "longest_gap_ms": round(1000 * account["longest_gap_s"]),
        "longest_gap": longest,
        "longest_outage_ms": round(1000 * max(map(outage, gaps))),
        "p50_ms": account["p50_ms"],
        "p99_ms": account["p99_ms"],
        "late_ms": account["late_ms"],
        "posts_acknowledged": account["posted_ok"],
        "duplicate_posts": None if posts is None else posts["posts"] - posts["distinct"],
        "lost_posts": None if posts is None else max(0, account["posted_ok"] - posts["distinct"]),
        "duplicates": [] if posts is None else posts["duplicates"],
        "events": [{"at": event["at"], "what": event["what"], "host": event["host"]} for event in events],
        "failures": [
            {"at": iso(started + failure["at"]), **{key: failure[key] for key in ("kind", "method", "key")}}
            | {"ms": round(1000 * (failure["end"] - failure["at"]))}
            for failure in account["failures"][:FAILURES_SHOWN]
        ],
        "gaps": gaps,
        "seconds": account["seconds"],
        "require": {name: most for name, most in bars.items() if most is not None},
    }
    watched = started + account["duration_s"]
    report["problems"] = [*unmet(report), *unwatched(ended - watched)]
    report["outcome"] = "failed" if report["problems"] else "passed"
    return report


def outage(gap: Mapping[str, Any]) -> float:
    """Return how long a gap is (seconds), less what the probe itself was held up by: that is none of the platform's."""
    return float(gap["seconds"] - gap["own"])


def events_of(gap: Mapping[str, Any], started: float, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events that a gap may come from: the last one before it, and those in it.

    Not one of them alone: what stops a service is noted before the gap, what starts it again may be noted just before
    its first answer, and where requests are few the last success may be older than the event that broke the next one.
    """
    begin, end = started + gap["at"], started + gap["at"] + gap["seconds"]
    times = [datetime.fromisoformat(event["at"]).timestamp() for event in events]
    first = max((number for number, time in enumerate(times) if time <= begin), default=0)
    return [event for event, time in zip(events[first:], times[first:], strict=True) if time <= end]


def unmet(report: Report) -> Iterator[str]:
    """Yield each bar that the report does not meet: the value seen, the value wanted, and what is known of it."""
    for name, most in report["require"].items():
        seen = report["longest_outage_ms" if name == "longest_gap_ms" else name]
        if seen is None:
            why = "the agent could not be asked" if name.endswith("_posts") else "no request succeeded"
            yield f"{name}: seen nothing ({why}); wanted at most {most:g}"
        elif seen > most:
            yield f"{name}: seen {seen:g}{remark(name, report)}; wanted at most {most:g}"


def remark(name: str, report: Report) -> str:
    if name == "failed":
        return f" ({', '.join(f'{kind} {count}' for kind, count in report['failed_by_kind'].items())})"
    if name == "duplicate_posts":
        return f" ({', '.join(report['duplicates'][:3])})"
    if name == "longest_gap_ms" and report["longest_gap"]:
        gap = max(report["gaps"], key=outage)
        near = f"; events: {listing(gap['events'])}" if gap["events"] else ""
        late = f"; and {gap['own']:g} s in which the probe itself was held up" if gap["own"] else ""
        return f" ({gap['at']:.1f} s after the begin{near}{late})"
    return ""


def words(event: Mapping[str, Any]) -> str:
    return f"{event['what']!r} on {event['host']}" if event["host"] else repr(event["what"])


def listing(events: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(words, events))


def unwatched(seconds: float) -> Iterator[str]:
    if seconds > UNWATCHED_S:
        yield (
            f"the probe ended {seconds:.0f} s before the operation: nothing is known of that time; wanted a longer "
            "evidence_max_seconds, or a control node that leaves it alone"
        )


def summary(report: Report) -> str:
    """Return the report in one line."""
    duplicates = "?" if report["duplicate_posts"] is None else report["duplicate_posts"]
    return (
        f"{report['operation']} {report['outcome']}: {report['requests']} requests in {report['duration_s']:.0f} s, "
        f"{report['failed']} failed, longest gap {report['longest_gap_ms']} ms, {duplicates} duplicate posts"
    )


def file_name(report: Report) -> str:
    """Return the name of the report's files, without its ending."""
    return f"{report['operation']}-{datetime.fromisoformat(report['started']):%Y%m%dT%H%M%SZ}"


# The page -------------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, TALL = 1160, 56, 56, 190
LONGEST_LABEL, LETTER, LANE, LANES = 34, 6.3, 15, 8
MOST_BARS = 520
STYLE = """
:root{color-scheme:light dark;--line:#8886;--good:#2a7d4f;--bad:#c0392b;--bar:#3f6fb5;--fault:#b8860b}
body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem} h2{font-size:1.1rem;margin-top:2rem} table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums} .good{color:var(--good)} .bad{color:var(--bad);font-weight:600}
svg{width:100%;height:auto;font:11px system-ui,sans-serif} svg text{fill:currentColor}
"""


def page(report: Report) -> str:
    """Return the report as a page: one file, nothing from outside, readable without scripts. It is well-formed XML."""
    title = f"Evidence: {report['operation']} on {report['site']}"
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width"/>',
            f"<title>{escape(title)}, {report['outcome']}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}: {marked(report['outcome'], good=report['outcome'] == 'passed')}</h1>",
            f"<p>{report['started']} to {report['ended']}, {report['rate']:g} requests a second, ",
            f"run {escape(report['run'])}</p>",
            listed("Problems", report["problems"]),
            figures(report),
            "<h2>Timeline</h2>",
            timeline(report),
            table("Events", ("", "at", "after s", "host", "what"), event_rows(report)),
            table(
                "Failed requests" + (", the first ones" if report["failed"] > len(report["failures"]) else ""),
                ("at", "kind", "method", "after ms", "key"),
                [[row[key] for key in ("at", "kind", "method", "ms", "key")] for row in report["failures"]],
            ),
            table(
                "Longest times without a success",
                ("after s", "ms", "the last event before it, and those in it"),
                [
                    [gap["at"], round(1000 * gap["seconds"]), listing(gap["events"])]
                    for gap in sorted(report["gaps"], key=lambda gap: -gap["seconds"])[:5]
                ],
            ),
            "</body></html>\n",
        )
    )


def marked(text: str, *, good: bool) -> str:
    return f'<span class="{"good" if good else "bad"}">{escape(text)}</span>'


def listed(heading: str, texts: Sequence[str]) -> str:
    items = "".join(f'<li class="bad">{escape(text)}</li>' for text in texts)
    return f"<h2>{heading}</h2><ul>{items}</ul>" if texts else ""


def figures(report: Report) -> str:
    rows = []
    for name in (
        *("requests", "failed", "longest_gap_ms", "duplicate_posts", "lost_posts", "posts_acknowledged"),
        *("p50_ms", "p99_ms", "late_ms", "duration_s"),
    ):
        seen, most = report[name], report["require"].get(name)
        met = most is None or (seen is not None and seen <= most)
        value = marked("unknown" if seen is None else f"{seen:g}" if seen < 10**6 else str(seen), good=met)
        bar = "" if most is None else f"{most:g} at most"
        rows.append(f'<tr><th scope="row">{name}</th><td class="n">{value}</td><td>{bar}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h2>{escape(heading)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def since(report: Report, at: str) -> float:
    """Return the seconds between the begin of the report and a moment."""
    return (datetime.fromisoformat(at) - datetime.fromisoformat(report["started"])).total_seconds()


def event_rows(report: Report) -> list[list[Any]]:
    return [
        [number, event["at"], f"{since(report, event['at']):.1f}", event["host"], event["what"]]
        for number, event in enumerate(report["events"], 1)
    ]


def timeline(report: Report) -> str:
    """Requests by second, stacked; the 99th percentile of their latency; marks for the events; the longest gap."""
    if not report["seconds"]:
        return "<p>No request was sent.</p>"
    seconds = max(len(report["seconds"]), *(math.ceil(since(report, event["at"])) for event in report["events"]), 1)
    scale = (WIDTH - LEFT - RIGHT) / seconds
    lanes, marks = event_marks(report, scale)
    top = 6 + lanes * LANE
    bottom = top + TALL
    groups = grouped(report["seconds"], math.ceil(len(report["seconds"]) / MOST_BARS))
    most = max(1.0, *(group["ok"] + group["failed"] for group in groups))
    slowest = max((group["p99_ms"] for group in groups if group["p99_ms"] is not None), default=1.0) or 1.0
    parts = ["<title>Requests by second, with latency and events</title>", f"<desc>{escape(summary(report))}</desc>"]
    if gap := report["longest_gap"]:
        label = f"longest gap: {1000 * gap['seconds']:.0f} ms, {gap['at']:.1f} s after the begin"
        parts.append(box(LEFT + gap["at"] * scale, top, gap["seconds"] * scale, TALL, "var(--fault)", label, 0.35))
    for group in groups:
        left, wide = LEFT + group["at"] * scale, group["wide"] * scale
        label = f"{group['at']} s: {group['ok']:g} ok, {group['failed']:g} failed a second, p99 {group['p99_ms']} ms"
        good, bad = (group[kind] / most * (TALL - 10) for kind in ("ok", "failed"))
        parts.append(box(left, bottom - good, wide * 0.9, good, "var(--bar)", label, 0.6))
        if bad:
            parts.append(box(left, bottom - good - max(2.0, bad), wide * 0.9, max(2.0, bad), "var(--bad)", label, 1))
    for line in unbroken(groups):
        points = [
            (LEFT + (group["at"] + group["wide"] / 2) * scale, bottom - group["p99_ms"] / slowest * (TALL - 10))
            for group in line
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--fault)" stroke-width="1.5"/>')
    parts += axes(top, bottom, seconds, scale)
    parts.append(text(2, top + 10, f"{most:g}/s") + text(WIDTH - RIGHT + 4, top + 10, f"{slowest:g} ms"))
    parts.append(text(WIDTH - RIGHT + 4, top + 24, "p99"))
    parts += marks
    height = bottom + 22
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def grouped(seconds: Sequence[Mapping[str, Any]], size: int) -> list[dict[str, Any]]:
    """Put `size` seconds each into one bar: means of the counts, the worst of the latency."""
    groups = []
    for at in range(0, len(seconds), size):
        part = seconds[at : at + size]
        p99 = max((second["p99_ms"] for second in part if second["p99_ms"] is not None), default=None)
        counts = {kind: sum(second[kind] for second in part) / len(part) for kind in ("ok", "failed")}
        groups.append({"at": at, "wide": len(part), "p99_ms": p99, **counts})
    return groups


def unbroken(groups: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the stretches in which some request succeeded: a line over an outage would tell a latency there."""
    line: list[dict[str, Any]] = []
    for group in (*groups, {"p99_ms": None}):
        if group["p99_ms"] is not None:
            line.append(group)
        elif line:
            yield line
            line = []


def axes(top: float, bottom: float, seconds: int, scale: float) -> Iterator[str]:
    yield f'<path d="M{LEFT} {top}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="var(--line)"/>'
    step = next((step for step in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / step <= 15), 3600)
    for second in range(0, seconds + 1, step):
        yield text(LEFT + second * scale, bottom + 15, f"{second} s")


def event_marks(report: Report, scale: float) -> tuple[int, list[str]]:
    """Return the lanes that the labels need, so that none hides another, and the marks."""
    ends: list[float] = []
    placed = []
    for number, event in enumerate(report["events"], 1):
        x = LEFT + max(0.0, since(report, event["at"])) * scale
        label = f"{number} {event['what']}"
        label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        wide = LETTER * len(label) + 8
        turned = x + wide > WIDTH  # it would leave the page: it goes before its mark
        begin = x - wide if turned else x
        lane = next((lane for lane, end in enumerate(ends) if end <= begin), len(ends))
        if lane >= LANES:  # too many at once: what it is stands in the table
            lane, label = LANES - 1, ""
        ends[lane : lane + 1] = [max(begin + wide, *ends[lane : lane + 1], 0)]
        placed.append((x, lane, label, turned, event))
    lanes = len(ends)
    bottom = 6 + lanes * LANE + TALL
    marks = []
    for x, lane, label, turned, event in placed:
        title = escape(f"{event['at']} {event['host']} {event['what']}".replace("  ", " "))
        y = 6 + lane * LANE
        line = f'<path d="M{x:.1f} {y}V{bottom}" stroke="currentColor" stroke-width=".8" stroke-dasharray="3 2"/>'
        words_ = text(x - 3 if turned else x + 3, y + 11, label, "end" if turned else "start")
        marks.append(f"<g><title>{title}</title>{line}{words_}</g>")
    return lanes, marks


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def box(left: float, top: float, width: float, height: float, colour: str, label: str, opacity: float) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{max(0.6, width):.1f}" height="{max(0.0, height):.1f}"'
    return f'<rect {place} fill="{colour}" fill-opacity="{opacity:g}"><title>{escape(label)}</title></rect>'
