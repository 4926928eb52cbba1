#!/usr/bin/python3 -I
"""Search the logs of the site.

Each hour of a day has a file of JSON lines (roles/logs/templates/rsyslog.conf.j2 writes them); those that are old are
compressed. Only the files of the time asked for are read. Times without a zone are this host's.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import gzip
import heapq
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

FOLDER = Path("/var/log/pst-logs")
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emerg")
COLOURS = {"warning": "33", "error": "31", "critical": "1;31", "alert": "1;31", "emerg": "1;31"}
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d|w)")
SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
FILE = re.compile(r"(\d{4}-\d{2}-\d{2})/(\d{2})\.jsonl(\.part|\.gz)?")
FOLLOW_S = 0.5
BEGINNING = b'{"from":'

Record = dict[str, Any]


class UsageError(Exception):
    """What was asked cannot be understood; the message says why."""


def moment(text: str, now: datetime) -> datetime:
    """A time (ISO, `today`, `yesterday`, HH:MM) or a span before now (`15m`, `2h`, `1d 6h`)."""
    words = text.strip().lower()
    midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    if words == "now":
        return now
    if words in ("today", "yesterday"):
        return (midnight if words == "today" else midnight - timedelta(days=1)).astimezone(UTC)
    if SPAN.sub("", words).strip() == "" and words:
        return now - timedelta(seconds=sum(float(n) * SECONDS[unit] for n, unit in SPAN.findall(words)))
    try:
        if match := re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", words):
            hour, minute, second = (int(part or 0) for part in match.groups())
            return midnight.replace(hour=hour, minute=minute, second=second).astimezone(UTC)
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        wanted = "wanted such as 15m, 2h, today, 14:30, 2026-11-30 or 2026-11-30T14:30:00Z"
        raise UsageError(f"time {text!r} is not understood; {wanted}") from None


@dataclass(frozen=True)
class Query:
    """What is looked for. Patterns are those of a shell; several of one kind are alternatives, kinds add up."""

    since: datetime
    until: datetime
    hosts: Sequence[str] = ()
    units: Sequence[str] = ()
    processes: Sequence[str] = ()
    level: str = ""  # or worse
    order: str = ""
    colour: str = ""
    release: str = ""
    texts: Sequence[str] = ()  # all of them, whatever their case
    pattern: re.Pattern[str] | None = None
    order_pattern: re.Pattern[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.order:
            # Of several orders that a line names (an instrument's, a contract's, a broker's), one is its field.
            named = rf"(?<![A-Za-z])order\w*[\"']?\s?[\s:=#]\s?[\"']?{re.escape(self.order)}(?![\w-])"
            object.__setattr__(self, "order_pattern", re.compile(named, re.IGNORECASE))

    @property
    def needles(self) -> list[bytes]:
        """What each line that is looked for contains, as it is written: most lines need not be parsed."""
        words = [self.order, *self.texts]
        # Of the only pattern of a kind, the longest part that is literal.
        for patterns in (self.hosts, self.units, self.processes):
            words += [max(re.split(r"[*?\[\]]", patterns[0]), key=len)] if len(patterns) == 1 else []
        plain = (text for text in words if text.isascii() and not set(text) & set('"\\/'))
        return [text.lower().encode() for text in plain if text]

    def takes(self, record: Record) -> bool:
        return (
            self.since <= record["_time"] <= self.until
            and _any(self.hosts, record.get("host"))
            and _any(self.units, record.get("unit"), ".service")
            and _any(self.processes, record.get("process"))
            and (not self.level or _severity(record.get("level")) >= LEVELS.index(self.level))
            and self.colour in ("", record.get("colour"))
            and (not self.release or fnmatch.fnmatchcase(str(record.get("release", "")), self.release))
            and self._takes_order(record)
            and self._takes_text(record)
        )

    def _takes_order(self, record: Record) -> bool:
        if self.order_pattern is None or str(record.get("order")) == self.order:
            return True
        return bool(self.order_pattern.search(f"{record.get('message')} {json.dumps(record.get('data', ''))}"))

    def _takes_text(self, record: Record) -> bool:
        if not self.texts and self.pattern is None:
            return True
        said = str(record.get("message"))
        said += " " + json.dumps(record["data"], ensure_ascii=False) if "data" in record else ""
        lower = said.lower()
        return all(text.lower() in lower for text in self.texts) and (
            self.pattern is None or bool(self.pattern.search(said))
        )


def _any(patterns: Sequence[str], value: Any, ending: str = "") -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(str(value or ""), p) or (ending and fnmatch.fnmatchcase(str(value or ""), p + ending))
        for p in patterns
    )


def _severity(level: Any) -> int:
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("info")


def files(folder: Path, query: Query, site: str = "*") -> list[Path]:
    """The files of the hours asked for, in the order of their time."""
    first, last = (t.astimezone(UTC).strftime("%Y-%m-%d %H") for t in (query.since, query.until))
    found = []
    for path in folder.glob(f"{site}/*/*"):
        match = FILE.fullmatch(f"{path.parent.name}/{path.name}")
        if match and first <= f"{match[1]} {match[2]}" <= last:
            found.append((match[1], match[2], path))
    return [path for *_, path in sorted(found)]


def opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def parsed(line: bytes) -> Record | None:
    """A line that was written to its end; after one that was cut by a crash the next one follows at once."""
    try:
        record = json.loads(line)
        record["_time"] = datetime.fromisoformat(record["time"])
    except (ValueError, KeyError, TypeError):
        start = line.rfind(BEGINNING)
        return parsed(line[start:]) if start > 0 else None
    return record if isinstance(record, dict) else None


def matching(lines: Iterable[bytes], query: Query) -> Iterator[Record]:
    needles = query.needles
    for line in lines:
        if needles:
            lower = line.lower()
            if not all(needle in lower for needle in needles):
                continue
        record = parsed(line)
        if record is not None and query.takes(record):
            yield record


def search(folder: Path, query: Query, site: str, limit: int) -> tuple[list[Record], int]:
    """The newest records, oldest first, and how many there are; each once: after an outage a line may come again."""
    newest: list[tuple[datetime, int, Record]] = []
    seen: set[int] = set()
    count = 0
    hour = ("", "")
    for path in files(folder, query, site):
        if hour != (hour := (path.parent.name, path.name[:2])):
            seen.clear()  # the same line is in the same hour
        try:
            with opened(path) as lines:
                for record in matching(lines, query):
                    identity = hash(json.dumps({**record, "_time": 0}, sort_keys=True))
                    if identity in seen:
                        continue
                    seen.add(identity)
                    count += 1
                    entry = (record["_time"], count, record)
                    if limit and len(newest) >= limit:
                        heapq.heappushpop(newest, entry)
                    else:
                        heapq.heappush(newest, entry)
        except (OSError, EOFError) as error:  # compressed or deleted meanwhile, or cut: the rest is still worth it
            sys.stderr.write(f"pst-logs: {path}: {error}\n")
    return [record for *_, record in sorted(newest, key=lambda entry: entry[:2])], count


def shown(record: Record, *, as_json: bool, colours: bool) -> str:
    if as_json:
        return json.dumps({key: value for key, value in record.items() if key != "_time"}, ensure_ascii=False)
    when = record["_time"].astimezone().isoformat(sep=" ", timespec="milliseconds")
    pid = f"[{record['pid']}]" if "pid" in record else ""
    level = record.get("level", "info")
    facts = [str(record[key]) for key in ("colour", "release") if key in record]
    facts += [f"order {record['order']}"] if "order" in record else []
    data = record.get("data")
    # One line stays one line, whatever was said: a control character could steer the terminal.
    said = "".join(c if c.isprintable() else " " for c in str(record.get("message", "")))
    text = f"{when} {record.get('host', '?')} {record.get('process', '?')}{pid} {level}: {said}"
    text += f" {json.dumps(data, ensure_ascii=False)}" if data else ""
    text += f"  ({', '.join(facts)})" if facts else ""
    return f"\033[{COLOURS[level]}m{text}\033[0m" if colours and level in COLOURS else text


def follow(folder: Path, query: Query, site: str) -> Iterator[Record]:
    """Records as they arrive. Lines of an hour that is over still come, from a host that was cut off."""
    places: dict[Path, int] = {path: path.stat().st_size for path in folder.glob(f"{site}/*/*.jsonl")}
    while True:
        for path in sorted(folder.glob(f"{site}/*/*.jsonl")):
            place = places.get(path, 0)
            if path.stat().st_size <= place:
                continue
            with path.open("rb") as file:
                file.seek(place)
                lines = file.readlines()
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()
            places[path] = place + sum(map(len, lines))
            yield from matching(lines, query)
        time.sleep(FOLLOW_S)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pst-logs", description=__doc__)
    add = top.add_argument
    add("text", nargs="*", help="words that the message contains, all of them, whatever their case")
    add("-s", "--since", default="1h", help="15m, 2h, today, 14:30, 2026-11-30 or 2026-11-30T14:30Z (default: 1h)")
    add("-u", "--until", default="now", help="as --since (default: now)")
    add("-H", "--host", action="append", default=[], help="name of a host, * and ? allowed; may be given again")
    add(
        "-U",
        "--unit",
        action="append",
        default=[],
        help="systemd unit, such as pst-app@blue or mongod; may be given again",
    )
    add("-p", "--process", action="append", default=[], help="process, such as run_stack_handler; may be given again")
    add("-l", "--level", choices=LEVELS, default="", help="this level or worse")
    add("-o", "--order", default="", help="what is said of this order")
    add("-c", "--colour", choices=("blue", "green"), default="", help="of this slot")
    add("-r", "--release", default="", help="of this release, * and ? allowed")
    add("-e", "--regexp", help="regular expression that the message matches")
    add("--site", default="*", help="of this site only")
    add("-n", "--limit", type=int, default=1000, help="the newest so many (default: 1000; 0: all)")
    add("-f", "--follow", action="store_true", help="go on with what arrives; ends with Ctrl-C")
    add("-j", "--json", action="store_true", help="one JSON object a line")
    add("--count", action="store_true", help="only how many there are")
    add("--folder", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    return top


def query_of(options: argparse.Namespace, now: datetime) -> Query:
    try:
        pattern = re.compile(options.regexp) if options.regexp else None
    except re.error as error:
        raise UsageError(f"--regexp {options.regexp!r}: {error}") from None
    since = moment(options.since, now)
    # Clocks of the hosts differ a little: what has just been said may bear a time to come.
    until = now + timedelta(minutes=5) if options.until == "now" else moment(options.until, now)
    if since > until:
        raise UsageError(f"--since {options.since} is after --until {options.until}")
    return Query(
        since, until, options.host, options.unit, options.process, options.level, options.order, options.colour,
        options.release, options.text, pattern,
    )  # fmt: skip


def check_folder(folder: Path) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"{folder}: not there, or not to be read: is this a log server, and are you root?")


def main(arguments: Sequence[str] | None = None) -> int:
    """0: found; 1: nothing found; 2: not understood, or not allowed."""
    options = parser().parse_args(arguments)
    colours = sys.stdout.isatty() and not options.json
    try:
        query = query_of(options, datetime.now(UTC))
        check_folder(options.folder)
        records, count = search(options.folder, query, options.site, 1 if options.count else options.limit)
        if options.count:
            sys.stdout.write(f"{count}\n")
            return 0 if count else 1
        for record in records:
            sys.stdout.write(shown(record, as_json=options.json, colours=colours) + "\n")
        if count > len(records):
            sys.stderr.write(f"pst-logs: the newest {len(records)} of {count}; --limit 0 for all\n")
        if options.follow:
            sys.stdout.flush()
            endless = dataclasses.replace(query, until=datetime.max.replace(tzinfo=UTC))
            for record in follow(options.folder, endless, options.site):
                sys.stdout.write(shown(record, as_json=options.json, colours=colours) + "\n")
                sys.stdout.flush()
    except UsageError as error:
        sys.stderr.write(f"pst-logs: {error}\n")
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
