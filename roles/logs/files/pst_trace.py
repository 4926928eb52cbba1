#!/usr/bin/python3 -EsB
"""Print what followed from a request, an order or a run of a playbook, as a tree with durations.

A span is a line of the site's logs with the fields `trace_id`, `span_id`, `span` (its name), `start` and `seconds`
(docs/tracing.md). Given is the id of a trace, a request (X-Request-Id), an order, or a run. The balancer's line of a
request, and lines that name an order, are added to the spans. --otlp exports them to a file or to an OTLP endpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pst_logs

TRACE_ID, SPAN_ID = re.compile(r"(?!0{32})[0-9a-f]{32}"), re.compile(r"(?!0{16})[0-9a-f]{16}")
# The fields that name what a span is about, and those that are the span itself.
NAMES = ("order_id", "request_id", "run", "journal")
OWN = ("trace_id", "span_id", "parent_span_id", "span", "start", "seconds", "error", "kind", "took")
MARK = b'"trace_id"'
SKEW = timedelta(milliseconds=1)  # that is not worth a word
LONGEST_NAME = 90
MOST_REQUESTS = 50  # of a trace, for each of which the balancers' lines are searched
NEAR = timedelta(minutes=10)  # the balancer's line of a request
BATCH = 500  # spans of one request to the endpoint
TIMEOUT_S = 20
SITE_CA = Path("/etc/pst/pki/ca.crt")
SEMANTIC = {"method": "http.request.method", "path": "url.path", "code": "http.response.status_code"}
INTERNAL, SERVER, ERROR = 1, 2, 2  # SpanKind and StatusCode of OTLP


class ExportError(Exception):
    """The spans did not arrive; they can be sent again."""


@dataclass(frozen=True)
class Span:
    trace_id: str
    span_id: str
    parent: str
    name: str
    start: datetime
    seconds: float
    site: str = ""
    host: str = ""
    process: str = ""
    error: str = ""
    kind: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)


# --- lines of the logs -> spans ---------------------------------------------------------------------------------------


def digest(*words: str) -> str:
    return hashlib.sha256("/".join(words).encode()).hexdigest()


def sender(record: pst_logs.Record) -> dict[str, Any]:
    program = str(record.get("unit") or record.get("process") or "").removesuffix(".service")
    return {"site": str(record.get("site", "")), "host": str(record.get("host", "")), "process": program}


def spans_of(record: pst_logs.Record) -> Iterator[Span]:
    """The span that a line tells, and one for each host of a task; nothing where the line is none, or is not right."""
    data = record.get("data")
    if not isinstance(data, dict) or "trace_id" not in data:
        return
    trace_id, span_id, parent = (str(data.get(name, "")) for name in ("trace_id", "span_id", "parent_span_id"))
    if not TRACE_ID.fullmatch(trace_id) or not SPAN_ID.fullmatch(span_id):
        return
    try:
        start = datetime.fromisoformat(data["start"]).astimezone(UTC)
        seconds = min(max(float(data["seconds"]), 0.0), 1e9)
        span = Span(
            trace_id,
            span_id,
            parent if SPAN_ID.fullmatch(parent) else "",
            str(data.get("span") or record.get("message")),
            start,
            seconds,
            error=str(data.get("error", "")),
            kind=str(data.get("kind", "")),
            about={key: value for key, value in data.items() if key not in OWN},
            **sender(record),
        )
        yield span
        for host, took in (data.get("took") or {}).items():
            yield replace(
                span,
                span_id=digest(span_id, host)[:16],
                parent=span_id,
                name=host,
                host=host,
                start=start + timedelta(seconds=float(took["at"])),
                seconds=max(float(took["seconds"]), 0.0),
                error=took["was"] if took["was"] in ("failed", "unreachable") else "",
                about={"was": took["was"]},
            )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return


def moment(record: pst_logs.Record, order: str) -> Span:
    """A line that names an order, as a span without a duration."""
    ids = digest("order", order)
    own = digest(json.dumps({**record, "_time": 0}, sort_keys=True))
    name = str(record.get("message"))
    return Span(ids[:32], own[:16], ids[32:48], name, record["_time"], 0.0, **sender(record))


def naming(fields: Iterable[str], what: str) -> re.Pattern[str]:
    """What a line says that has this value in one of these fields, or is of an order by its reference at the broker."""
    word = re.escape(what)
    return re.compile(rf"(?:{'|'.join(fields)})\W{{1,4}}{word}(?![\w./-])|\bpst:\d+:\d+:{word}(?![\w./-])")


def names_order(record: pst_logs.Record, order: str) -> bool:
    """Whether a line is about this instrument order, as pysystemtrade names it, or by its reference."""
    said = f"{record.get('message')} {json.dumps(record.get('data', ''))}"
    return naming(["instrument_order_id"], order).search(said) is not None


def balancers(records: Iterable[pst_logs.Record], request: Span) -> Iterator[Span]:
    """What the balancer says of a request, as the parent of the application's span."""
    for record in records:
        try:
            said = json.loads(record["message"])
            seconds = float(said["ms"]["total"]) / 1000
            if record.get("process") != "haproxy" or said["id"] != request.about["request_id"]:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        # It writes the line when the answer has ended.
        start = record["_time"] - timedelta(seconds=max(seconds, 0.0))
        about = {**said["ms"], "server": said.get("server"), "retries": said.get("retries"), "code": said.get("status")}
        name, span_id = f"balancer: {request.name}", digest("balancer", said["id"])[:16]
        yield Span(request.trace_id, span_id, request.parent, name, start, max(seconds, 0.0), about=about,
                   kind="server", **sender(record))  # fmt: skip


# --- finding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logs:
    folder: Path
    since: datetime
    until: datetime
    site: str = "*"

    def lines_with(self, text: str, pattern: re.Pattern[str] | None = None) -> list[pst_logs.Record]:
        query = pst_logs.Query(self.since, self.until, texts=[text], pattern=pattern)
        return pst_logs.search(self.folder, query, self.site, 0)[0]


def find(logs: Logs, what: str) -> dict[str, list[Span]]:
    """The traces that are, or are about, what was asked for: their spans by their ids."""
    records = logs.lines_with(what, naming(("trace_id", *NAMES), what))
    wanted = {
        span.trace_id: None
        for record in records
        for span in spans_of(record)
        if what == span.trace_id or what in [str(span.about[name]) for name in NAMES if name in span.about]
    }
    moments = [moment(record, what) for record in records if names_order(record, what) and not [*spans_of(record)]]
    if moments:
        wanted[moments[0].trace_id] = None
    found = {}
    for trace_id in wanted:
        spans = [span for record in logs.lines_with(trace_id) for span in spans_of(record) if span.trace_id == trace_id]
        spans += [span for span in moments if span.trace_id == trace_id]
        found[trace_id] = with_balancers(logs, spans)
    return found


def with_balancers(logs: Logs, spans: Sequence[Span]) -> list[Span]:
    known, answered = {span.span_id for span in spans}, dict[str, str]()
    added, changed = list[Span](), list[Span]()
    for span in spans:
        request = str(span.about.get("request_id", ""))
        # Not what the application asked on in its turn, and once for a request that was sent again to another host.
        if request and span.parent not in known and (request in answered or len(answered) < MOST_REQUESTS):
            if request not in answered:
                near = replace(logs, since=span.start - NEAR, until=span.end + NEAR)
                balancer = next(balancers(near.lines_with(request), span), None)
                added += [balancer] if balancer else []
                answered[request] = balancer.span_id if balancer else span.parent
            span = replace(span, parent=answered[request])  # noqa: PLW2901
        changed.append(span)
    return [*added, *changed]


# --- printing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A span in the tree. `behind`: so many seconds before its parent it began, by the clock of another host."""

    branch: str
    span: Span
    behind: float = 0.0
    lost: str = ""  # the parent that was not found


def tree(spans: Iterable[Span], least: float = 0.0) -> list[Line]:
    """Each span once, under its parent, in the order of time.

    What has no parent among the spans stands at the top, also a part of a circle. What took less than `least`, did not
    fail, and has no part that is shown, is left out.
    """
    by_id = kept(spans, least)
    children: dict[str, list[Span]] = {}
    for span in sorted(by_id.values(), key=lambda span: (span.start, -span.seconds, span.name, span.span_id)):
        parent = span.parent if span.parent in by_id and span.parent != span.span_id else ""
        children.setdefault(parent, []).append(span)
    lines, seen = list[Line](), set[str]()

    def descend(root: Span) -> None:
        waiting = [(root, "", "", by_id.get(root.parent))]
        while waiting:
            span, branch, below, parent = waiting.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            lost = span.parent if parent is None else ""
            lines.append(Line(branch, span, behind(span, parent), lost))
            under = children.get(span.span_id, [])
            for one in reversed(under):
                ends = one is under[-1]
                waiting.append((one, f"{below}{'└─ ' if ends else '├─ '}", f"{below}{'   ' if ends else '│  '}", span))

    for span in [*children.get("", ()), *by_id.values()]:
        if span.span_id not in seen:
            descend(span)
    return lines


def kept(spans: Iterable[Span], least: float) -> dict[str, Span]:
    """The spans by their ids, of two with one id the first, without those that are too short to be shown."""
    by_id: dict[str, Span] = {}
    for span in spans:
        by_id.setdefault(span.span_id, span)
    wanted = set[str]()
    for span in by_id.values():
        above: Span | None = span if span.seconds >= least or span.error else None
        while above and above.span_id not in wanted:
            wanted.add(above.span_id)
            above = by_id.get(above.parent)
    return {span_id: span for span_id, span in by_id.items() if span_id in wanted}


def behind(span: Span, parent: Span | None) -> float:
    if parent is None or parent.host == span.host or parent.start - span.start <= SKEW:
        return 0.0
    return (parent.start - span.start).total_seconds()


def printable(text: str) -> str:
    """One line stays one line, whatever was said: a control character could steer the terminal."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 1]}…"


def shown(trace_id: str, spans: Sequence[Span], least: float = 0.0, *, attributes: bool = False) -> str:
    """A trace in words."""
    lines = tree(spans, least)
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    at = start.astimezone().isoformat(sep=" ", timespec="milliseconds")
    count = len({span.span_id for span in spans})
    head = f"trace {trace_id}  {at}  {(end - start).total_seconds():.3f} s  {count} spans"
    names = [line.branch + printable(line.span.name) for line in lines]
    places = [printable(f"{line.span.host} {line.span.process}".strip()) for line in lines]
    name_width, place_width = max(map(len, names), default=0), max(map(len, places), default=0)
    texts = [head]
    for line, name, place in zip(lines, names, places, strict=True):
        span = line.span
        notes = [f"error: {printable(span.error)}"] if span.error else []
        notes += [f"the clock of {span.host} is {line.behind:.3f} s or more behind"] if line.behind else []
        notes += [f"part of {line.lost}, which is not in the logs"] if line.lost else []
        notes += [f"{key}={printable(str(value))}" for key, value in span.about.items()] if attributes else []
        begins, took = (span.start - start).total_seconds(), f"{span.seconds:.3f} s" if span.seconds else "·"
        said = f"{name:{name_width}}  {place:{place_width}}  +{begins:.3f}  {took:>11}  {'  '.join(notes)}"
        texts.append(said.rstrip())
    return "\n".join(texts)


# --- OTLP, https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding -------------------------------------------


def otlp(spans: Iterable[Span]) -> dict[str, Any]:
    """An ExportTraceServiceRequest as JSON: a resource for each program of each host."""
    resources: dict[tuple[str, str, str], list[Span]] = {}
    for span in spans:
        resources.setdefault((span.site, span.host, span.process), []).append(span)
    return {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": pairs({"service.namespace": site, "host.name": host, "service.name": process})
                },
                "scopeSpans": [{"scope": {"name": "pst"}, "spans": [otlp_span(span) for span in of_resource]}],
            }
            for (site, host, process), of_resource in sorted(resources.items())
        ]
    }


def otlp_span(span: Span) -> dict[str, Any]:
    start = (span.start - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        **({"parentSpanId": span.parent} if span.parent else {}),
        "name": span.name,
        "kind": SERVER if span.kind == "server" else INTERNAL,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + round(span.seconds * 1e9)),
        "attributes": pairs({SEMANTIC.get(key, f"pst.{key}"): value for key, value in span.about.items()}),
        "status": {"code": ERROR, "message": span.error} if span.error else {},
    }


def pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": otlp_value(value)} for key, value in values.items() if value is not None]


def otlp_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value if isinstance(value, str) else json.dumps(value)}


def deliver(spans: Sequence[Span], target: str) -> None:
    """Write to a file (`-`: to standard output), or send to an endpoint; its path is added as the standard has it."""
    if not re.match(r"https?://", target):
        text = json.dumps(otlp(spans)) + "\n"
        if target == "-":
            sys.stdout.write(text)
        else:
            Path(target).write_text(text)
        return
    context = ssl.create_default_context()
    if SITE_CA.exists():
        context.load_verify_locations(SITE_CA)
    for first in range(0, len(spans), BATCH):
        body = json.dumps(otlp(spans[first : first + BATCH])).encode()
        request = urllib.request.Request(  # noqa: S310 (http or https, as was just seen)
            f"{target.rstrip('/')}/v1/traces", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310
                answer.read()
        except (OSError, urllib.error.HTTPError) as error:
            raise ExportError(f"{target}: {error}") from error


def export_new(folder: Path, places: Path, target: str) -> None:
    """Send the spans of the lines that were added since the last time; the first time only those to come.

    The files are the queue: where the endpoint does not answer, the next time goes on with what it has not taken, until
    the hour is compressed.
    """
    files = sorted(folder.glob("*/*/*.jsonl"))
    if not places.exists():
        save(places, {str(path): path.stat().st_size for path in files})
        return
    before = json.loads(places.read_text())
    known = {str(path): before.get(str(path), 0) for path in files}
    for path in files:
        for place, spans in new_spans(path, known[str(path)]):
            if spans:
                deliver(spans, target)
            known[str(path)] = place
            save(places, known)


def new_spans(path: Path, place: int) -> Iterator[tuple[int, list[Span]]]:
    """The spans of the whole lines from `place` on, and the place after them: some at a time, whatever waits there."""
    spans = list[Span]()
    with path.open("rb") as file:
        # A file that is shorter than it was has been begun anew.
        place = place if place <= path.stat().st_size else 0
        file.seek(place)
        for line in file:
            if not line.endswith(b"\n"):
                break
            place += len(line)
            record = pst_logs.parsed(line) if MARK in line else None
            spans += spans_of(record) if record else ()
            if len(spans) >= BATCH:
                yield place, spans
                spans = []
    yield place, spans


def save(places: Path, known: Mapping[str, int]) -> None:
    new = places.with_suffix(".new")
    new.write_text(json.dumps(known))
    new.replace(places)


# --- the command ------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pst-trace", description=__doc__)
    add = top.add_argument
    add("what", nargs="?", default="", help="id of a trace, a request, an order or a run")
    add("-s", "--since", default="1d", help="15m, 2h, today, 14:30, 2026-11-30 or 2026-11-30T14:30Z (default: 1d)")
    add("-u", "--until", default="now", help="as --since (default: now)")
    add("--site", default="*", help="of this site only")
    add("-m", "--min", type=float, default=0.0, metavar="SECONDS", help="leave out what took less and did not fail")
    add("-a", "--attributes", action="store_true", help="with all that a span tells")
    add("--otlp", metavar="TARGET", help="export instead: to a file, - or an endpoint such as http://collector:4318")
    add("--export-new", type=Path, metavar="FILE", help="export what is new to --otlp; FILE remembers how far that was")
    add("--folder", type=Path, default=pst_logs.FOLDER, help=argparse.SUPPRESS)
    return top


def logs_of(options: argparse.Namespace, now: datetime) -> Logs:
    # Clocks of the hosts differ a little: what has just been said may bear a time to come.
    until = now + timedelta(minutes=5) if options.until == "now" else pst_logs.moment(options.until, now)
    return Logs(options.folder, pst_logs.moment(options.since, now), until, options.site)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: found; 1: nothing found, or not exported; 2: not understood, or not allowed."""
    top = parser()
    options = top.parse_args(arguments)
    if bool(options.what) == bool(options.export_new) or (options.export_new and not options.otlp):
        top.error("wanted: the id of a trace, a request, an order or a run; or --export-new with --otlp")
    try:
        pst_logs.check_folder(options.folder)
        if options.export_new:
            export_new(options.folder, options.export_new, options.otlp)
            return 0
        found = find(logs_of(options, datetime.now(UTC)), options.what)
        if options.otlp and found:
            deliver([span for spans in found.values() for span in spans], options.otlp)
            return 0
    except pst_logs.UsageError as error:
        sys.stderr.write(f"pst-trace: {error}\n")
        return 2
    except ExportError as error:
        sys.stderr.write(f"pst-trace: {error}\n")
        return 1
    texts = [shown(trace_id, spans, options.min, attributes=options.attributes) for trace_id, spans in found.items()]
    sys.stdout.write("\n\n".join(texts) + "\n" if texts else "")
    if not texts:
        sys.stderr.write(f"pst-trace: nothing of {options.what} since {options.since}; a longer time is --since\n")
    return 0 if texts else 1


if __name__ == "__main__":
    sys.exit(main())
