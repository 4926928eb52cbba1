# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a playbook that changes something may start now, and if not, when.

Plain Python. Maintenance windows, the sessions of exchanges and the times of processes all become half-open intervals
in UTC, on whole minutes; what is allowed is the windows without the rest. A weekly time is what a clock on the wall of
its zone shows, as pysystemtrade reads it: an hour that the zone skips is not there, one that it repeats is there twice.
"""

from __future__ import annotations

import importlib
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from ansible_collections.pst.platform.plugins.module_utils import trading
from ansible_collections.pst.platform.plugins.module_utils.inventory_check import Contract, Problem, Site, did_you_mean
from ansible_collections.pst.platform.plugins.module_utils.trading import DAYS, TIME, Finding

WINDOWS = "site_maintenance_windows"
CALENDARS = "site_maintenance_calendars"
RESPECTED = "site_maintenance_respect_processes"
OVERRIDE = "site_maintenance_override"
PROCESSES = "trading_processes"
LIBRARY = "exchange_calendars"

HORIZON = timedelta(days=60)
# An inventory must leave a time within so many days.
INVENTORY_HORIZON = timedelta(days=14)
# Room around the horizon for a session that is named after another day than the one it opens on.
CALENDAR_MARGIN = timedelta(days=7)
SHORTEST_OVERRIDE = 10
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)

Row = Mapping[str, Any]


class MaintenanceError(ValueError):
    """What was given cannot be judged; `findings` are all the reasons."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(str(finding) for finding in findings))
        self.findings = tuple(findings)


class Interval(NamedTuple):
    """From `start` on, before `end`; both aware, in UTC."""

    start: datetime
    end: datetime


class Closure(NamedTuple):
    """What keeps a playbook from starting, in words such as "CMES is open", and when; the intervals are merged."""

    words: str
    times: list[Interval]


@dataclass(frozen=True)
class Verdict:
    """Whether to start now.

    `next_allowed` is the first instant from now on, within 60 days, that windows, calendars and processes allow: now
    itself where they do, none where there is none or where nothing but open orders is in the way, which have no end of
    their own (`only_orders`). `until` is the end of that stretch; none where that is not within 60 days.
    """

    allowed: bool
    reasons: list[str]
    next_allowed: datetime | None = None
    until: datetime | None = None
    only_orders: bool = False


@dataclass(frozen=True)
class Weekly:
    """A time of each of some days. An end before the start is on the following day, an equal one a whole day later."""

    days: frozenset[str]
    start: time
    end: time
    zone: ZoneInfo

    def within(self, span: Interval) -> Iterator[Interval]:
        for stretch, offset in stretches(self.zone, span):
            first, last = ((instant + offset).date() for instant in stretch)
            for day in (first + number * DAY for number in range(-1, (last - first).days + 1)):
                if DAYS[day.weekday()] in self.days:
                    yield from clipped([self._on(day, offset)], stretch)

    def _on(self, day: date, offset: timedelta) -> Interval:
        start = datetime.combine(day, self.start, UTC) - offset
        end = datetime.combine(day, self.end, UTC) - offset
        return Interval(start, end if self.end > self.start else end + DAY)


# Until 4.13 the library has CMES open from 17:00 to 17:00. Globex halts from 16:00 to 17:00 every day, crypto futures
# aside, whose hours the calendar does not have anyway (https://www.cmegroup.com/trading-hours.html). A later release of
# the library says so as well (https://github.com/gerrymanoim/exchange_calendars/pull/594): then this changes nothing.
DAILY_BREAKS: Mapping[str, Row] = {
    "CMES": {"days": DAYS, "start": "16:00", "end": "17:00", "zone": "America/Chicago"},
}


# The verdict ----------------------------------------------------------------------------------------------------------


def judge(
    now: datetime,
    zone: str,
    windows: Sequence[Row],
    calendars: Sequence[str] = (),
    processes: Sequence[Row] = (),
    open_orders: int = 0,
    minimum_minutes: int = 0,
) -> Verdict:
    """Whether a start is allowed at `now` (aware).

    `windows` are rows of `days`, `start`, `end` and `zone` (default the site's, `zone`); with none, no time is allowed.
    `calendars` are codes of exchange_calendars: while one of them is open, no start. `processes` are rows of the table
    of processes (`name`, `start`, `stop`, `days`) whose times are left alone. `minimum_minutes`, 0 or more, have to be
    left. Raises MaintenanceError where one of these is wrong, or the library is missing.
    """
    problems = [*zone_findings("site_time_zone", zone), *window_findings(windows), *process_findings(processes)]
    problems += calendar_findings(calendars, library(calendars))
    if minimum_minutes < 0:
        problems.append(Finding("minimum_minutes", str(minimum_minutes), "0 or more"))
    if problems:
        raise MaintenanceError(problems)

    now = now.astimezone(UTC)
    start = now.replace(second=0, microsecond=0)
    span = Interval(start, start + HORIZON)
    opened = merged(found for row in windows for found in weekly(row, "end", zone).within(span))
    closures = [closure for code in calendars for closure in market(str(code), span)]
    closures += [Closure(f"{row['name']} runs", merged(weekly(row, "stop", zone).within(span))) for row in processes]
    free = without(opened, merged(found for closure in closures for found in closure.times))

    minimum = minimum_minutes * MINUTE
    chosen = next((found for found in free if found.end - max(found.start, now) >= minimum), None)
    reasons = []
    if chosen is None or chosen.start > now:
        reasons += closed_by(now, ZoneInfo(zone), span.end, opened, closures)
        reasons = reasons or [f"of the {minimum_minutes} minutes wanted, {minutes_left(free[0], now)} are left"]
    only_orders = not reasons and open_orders > 0
    if open_orders > 0:
        reasons.append(f"{open_orders} order{' is' if open_orders == 1 else 's are'} open")
    return Verdict(
        allowed=not reasons,
        reasons=reasons,
        next_allowed=max(chosen.start, now) if chosen and not only_orders else None,
        until=chosen.end if chosen and chosen.end < span.end else None,
        only_orders=only_orders,
    )


def closed_by(
    now: datetime, zone: ZoneInfo, horizon: datetime, opened: Sequence[Interval], closures: Iterable[Closure]
) -> list[str]:
    reasons = [] if holding(opened, now) else ["no maintenance window is open"]
    for words, times in closures:
        if found := holding(times, now):
            until = f"until {told(found.end, zone)}" if found.end < horizon else f"for the next {HORIZON.days} days"
            reasons.append(f"{words} {until}")
    return reasons


def minutes_left(interval: Interval, now: datetime) -> int:
    return (interval.end - now) // MINUTE


def message(verdict: Verdict, override: str, zone: str) -> str:
    """The one message of a verdict; of a refusal why, when again, and how to go on all the same."""
    here = ZoneInfo(zone) if is_zone(zone) else UTC
    until = f"until {told(verdict.until, here)}" if verdict.until else ""
    if verdict.allowed:
        return f"Allowed {until}".rstrip()
    closed = f"Not a time for changes: {'; '.join(verdict.reasons)}."
    if override:
        return f"{closed} Overridden: {override}"
    if verdict.next_allowed:
        following = f"Next allowed: {told(verdict.next_allowed, here)} ({told(verdict.next_allowed, UTC)}), {until}"
    elif verdict.only_orders:
        following = f"Allowed as soon as no order is open, {until}"
    else:
        following = f"No time within {HORIZON.days} days is known to be allowed"
    return (
        f"{closed} {following.rstrip(', ')}. To go on all the same: -e \"{OVERRIDE}='<why>'\""
        f" (at least {SHORTEST_OVERRIDE} characters, in both kinds of quotes; it is recorded)."
    )


def told(instant: datetime, zone: tzinfo) -> str:
    """An instant for people, such as `Sat 2026-01-03 00:00 EST`; the day in English whatever the locale."""
    local = instant.astimezone(zone)
    return f"{DAYS[local.weekday()]} {local:%Y-%m-%d %H:%M %Z}"


def parsed_now(text: str | None) -> datetime:
    """An instant in ISO format with its offset from UTC; the clock's where there is none."""
    if not text:
        return datetime.now(UTC)
    try:
        now = datetime.fromisoformat(text)
    except ValueError:
        now = datetime.min  # noqa: DTZ901  # naive, as what is refused below
    if now.tzinfo is None:
        raise MaintenanceError([Finding("now", text, "a time in ISO format with its offset: 2026-01-03T00:00-05:00")])
    return now


# Intervals ------------------------------------------------------------------------------------------------------------


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times in order, with those that meet or overlap as one."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1].end:
            result[-1] = Interval(result[-1].start, max(result[-1].end, end))
        else:
            result.append(Interval(start, end))
    return result


def without(intervals: Iterable[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What is left of merged intervals where none of the `others`, merged as well, is."""
    result = []
    for interval in intervals:
        rest = interval
        for other in clipped(others, interval):
            result.append(Interval(rest.start, other.start))
            rest = Interval(other.end, rest.end)
        result.append(rest)
    return [found for found in result if found.start < found.end]


def clipped(intervals: Iterable[Interval], span: Interval) -> Iterator[Interval]:
    for start, end in intervals:
        part = Interval(max(start, span.start), min(end, span.end))
        if part.start < part.end:
            yield part


def holding(intervals: Iterable[Interval], instant: datetime) -> Interval | None:
    return next((found for found in intervals if found.start <= instant < found.end), None)


def stretches(zone: ZoneInfo, span: Interval) -> Iterator[tuple[Interval, timedelta]]:
    """The parts of a span, on whole minutes, in which the zone keeps its offset from UTC, each with that offset."""
    start = day = span.start
    offset = offset_of(zone, start)
    while day < span.end:
        following = min(day + DAY, span.end)
        if offset_of(zone, following) != offset:
            minutes = range((following - day) // MINUTE)
            change = day + bisect_left(minutes, True, key=partial(has_changed, zone, offset, day)) * MINUTE
            if start < change:
                yield Interval(start, change), offset
            start, offset = change, offset_of(zone, change)
        day = following
    yield Interval(start, span.end), offset


def has_changed(zone: ZoneInfo, offset: timedelta, day: datetime, minute: int) -> bool:
    return offset_of(zone, day + minute * MINUTE) != offset


def offset_of(zone: ZoneInfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def weekly(row: Row, end: str, zone: str = "UTC") -> Weekly:
    """A window or a process, which name their end differently. One without a zone is in `zone`."""
    return Weekly(
        days=frozenset(str(day) for day in row.get("days") or trading.PROCESS["days"]),
        start=time.fromisoformat(str(row["start"])),
        end=time.fromisoformat(str(row[end])),
        zone=ZoneInfo(str(row.get("zone") or zone)),
    )


# Exchanges ------------------------------------------------------------------------------------------------------------


def library(calendars: Sequence[str]) -> Any:
    """exchange_calendars, where a calendar is named and it is installed: to import it takes half a second."""
    if not calendars:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of pandas, about the library's own use of it
            return importlib.import_module(LIBRARY)
    except ImportError:
        return None


def market(code: str, span: Interval) -> Iterator[Closure]:
    """The sessions of an exchange, and the time for which the library does not know them."""
    with warnings.catch_warnings(action="ignore"):
        calendar, complete = calendar_of(code, span)
        # A row is the open and the close, with the two times of a break in between where there is one.
        rows = [[value.to_pydatetime() for value in row.dropna()] for _, row in calendar.schedule.iterrows()]
    sessions = merged(
        Interval(start.astimezone(UTC), end.astimezone(UTC))
        for row in rows
        for start, end in zip(row[::2], row[1::2], strict=True)
    )
    known_until = span.end if complete else sessions[-1].end
    if calendar.name in DAILY_BREAKS:
        daily_break = weekly(DAILY_BREAKS[calendar.name], "end")
        sessions = without(sessions, merged(daily_break.within(span)))
    yield Closure(f"{code} is open", list(clipped(sessions, span)))
    if not complete:
        unknown = Interval(known_until, span.end)
        yield Closure(f"the sessions of {code} are not known to {LIBRARY}", list(clipped([unknown], span)))


def calendar_of(code: str, span: Interval) -> tuple[Any, bool]:
    """The calendar for the span alone, which is quick to build; and whether the library knows all of the span."""
    found = library([code])
    start, end = (span.start - CALENDAR_MARGIN).date().isoformat(), (span.end + CALENDAR_MARGIN).date().isoformat()
    try:
        try:
            return found.get_calendar(code, start=start, end=end), True
        except ValueError:
            # Holidays that a government names late are in some calendars to the end of a year only.
            return found.get_calendar(code, start=start), False
    except Exception as error:  # whatever the library or its pandas raises: an override has to get past it
        raise MaintenanceError([Finding(CALENDARS, code, f"a calendar that {LIBRARY} can build: {error}")]) from error


# Rules ----------------------------------------------------------------------------------------------------------------


def zone_findings(key: str, zone: object) -> Iterator[Finding]:
    if not is_zone(zone):
        hint = did_you_mean(str(zone), available_timezones())
        yield Finding(key, str(zone), f"a name of the IANA database, such as America/New_York{hint}")


def is_zone(name: object) -> bool:
    try:
        ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def window_findings(windows: Sequence[Row]) -> Iterator[Finding]:
    for number, row in enumerate(windows):
        key = f"{WINDOWS}[{number}]"
        yield from weekly_findings(key, row, "end")
        if row.get("zone"):
            yield from zone_findings(f"{key}.zone", row["zone"])
        if not row.get("days"):
            yield Finding(f"{key}.days", "no day", f"some of {', '.join(DAYS)}")


def process_findings(processes: Sequence[Row]) -> Iterator[Finding]:
    for row in processes:
        yield from weekly_findings(f"{PROCESSES}.{row.get('name', '')}", row, "stop")


def weekly_findings(key: str, row: Row, end: str) -> Iterator[Finding]:
    for field in ("start", end):
        seen = str(row.get(field, "nothing"))
        if not TIME.fullmatch(seen):
            yield Finding(f"{key}.{field}", seen, "HH:MM from 00:00 to 23:59, in quotes")
    days = row.get("days") or ()
    if isinstance(days, str):
        yield Finding(f"{key}.days", days, f"a list, such as [{days}]")
        return
    for day in days:
        if day not in DAYS:
            yield Finding(f"{key}.days", str(day), f"of {', '.join(DAYS)}{did_you_mean(str(day).capitalize(), DAYS)}")


def calendar_findings(calendars: Sequence[str], found: Any) -> Iterator[Finding]:
    if calendars and found is None:
        wanted = f"the library {LIBRARY} on the control node (`make venv` installs it), or no calendar"
        yield Finding(CALENDARS, ", ".join(map(str, calendars)), wanted)
        return
    known = set(found.get_calendar_names()) if calendars else set()
    for code in calendars:
        if code not in known:
            yield Finding(CALENDARS, str(code), f"a code of {LIBRARY}{did_you_mean(str(code).upper(), known)}")


def override_findings(override: str) -> Iterator[Finding]:
    """What is wrong with the reason for going on; an empty one is none."""
    if 0 < len(override) < SHORTEST_OVERRIDE:
        wanted = (
            f"a reason of at least {SHORTEST_OVERRIDE} characters (in both kinds of quotes, or Ansible takes one word)"
        )
        yield Finding(OVERRIDE, override, wanted)


# The inventory --------------------------------------------------------------------------------------------------------


def check_sites(sites: Sequence[Site], contract: Contract) -> Iterator[Problem]:
    """The windows of each site are well formed and leave a time soon."""
    now = datetime.now(UTC)
    for site in sites:
        for key, seen, wanted in site_findings(site, contract, now):
            yield Problem(site.group, key, seen, wanted, site.hosts[0].origins.get(key.partition("[")[0], ""))


def site_findings(site: Site, contract: Contract, now: datetime) -> Iterator[Finding]:
    if OVERRIDE in site.hosts[0].written:
        wanted = "nothing in an inventory: it is the reason for one run, given with -e"
        yield Finding(OVERRIDE, str(site.hosts[0].written[OVERRIDE]), wanted)
    windows, calendars, respected = (fitting(site, contract, key) for key in (WINDOWS, CALENDARS, RESPECTED))
    found = library(calendars or ())
    table = process_table(site, contract)
    wrong = list(window_findings(windows or ()))
    wrong += calendar_findings(calendars or (), found) if found else ()
    for name in respected or ():
        if table and name not in table:
            wrong.append(Finding(RESPECTED, str(name), f"the name of a process{did_you_mean(str(name), table)}"))
    yield from wrong

    processes = [table[name] for name in respected or () if name in table]
    zone = site.get("site_time_zone")
    if wrong or windows is None or zone is None or not is_zone(zone) or any(process_findings(processes)):
        return  # told, here or by another rule
    try:
        verdict = judge(now, str(zone), windows, (calendars or ()) if found else (), processes)
    except MaintenanceError as error:
        yield from error.findings
        return
    if verdict.next_allowed is None or verdict.next_allowed > now + INVENTORY_HORIZON:
        # Not the instant: a rule's words are the same for every host and every run.
        seen = f"windows of which nothing is left in the next {INVENTORY_HORIZON.days} days"
        closed = [
            *(f"{code} is closed" for code in calendars or ()),
            *(f"{name} does not run" for name in respected or ()),
        ]
        yield Finding(WINDOWS, seen, " and ".join(["a window", *closed]) if closed else "a window")


def fitting(site: Site, contract: Contract, key: str) -> Any:
    """The value of a site's variable, where it is known and has the form of its option."""
    value = site.get(key)
    return value if value is not None and trading.fits(contract.site.get(key, {}), value) else None


def process_table(site: Site, contract: Contract) -> dict[str, dict[str, Any]]:
    """The site's processes by name, as far as the inventory tells."""
    nodes = site.tier("app_nodes")
    settings = trading.effective(nodes[0], contract, trading.ROLE) if nodes else {}
    if PROCESSES not in settings:
        return {}
    table = trading.process_table(settings[PROCESSES], settings.get(f"{PROCESSES}_extra", ()))
    return {str(process["name"]): process for process in table}
