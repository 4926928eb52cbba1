"""When a playbook may start: windows, summer time, exchanges, processes; the plugin; the rules of an inventory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inventory_check import CONTRACT, change, make_site, validate

from ansible_collections.pst.platform.plugins.module_utils import inventory_check
from ansible_collections.pst.platform.plugins.module_utils import maintenance as rules

NEW_YORK, LONDON = "America/New_York", "Europe/London"
ALWAYS = [{"days": list(rules.DAYS), "start": "00:00", "end": "00:00"}]
NIGHT = [{"days": ["Sat"], "start": "22:00", "end": "04:00"}]  # over midnight, into the Sunday on which clocks change
PRODUCTION = yaml.safe_load((ROOT / "inventories/production/group_vars/site_production/main.yml").read_text())
IANA = "a name of the IANA database, such as America/New_York"
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

with_library = pytest.mark.skipif(
    importlib.util.find_spec(rules.LIBRARY) is None, reason="exchange_calendars is not installed"
)


def at(text: str, zone: str = NEW_YORK) -> datetime:
    """The instant of a time on the wall of a zone; `~` before it is the second one of a repeated hour."""
    wall = datetime.fromisoformat(text.lstrip("~")).replace(tzinfo=ZoneInfo(zone), fold=text.startswith("~"))
    return wall.astimezone(UTC)


def judge(now: datetime, windows: Any, zone: str = NEW_YORK, **given: Any) -> rules.Verdict:
    return rules.judge(now, zone, windows, **given)


def openings(first: datetime, windows: Any, zone: str, days: int = 1, **given: Any) -> list[tuple[str, str]]:
    """Beginning and end of what is allowed in some days, in UTC."""
    found, now = [], first
    while (verdict := judge(now, windows, zone, **given)).next_allowed and verdict.until:
        if verdict.next_allowed >= first + days * DAY:
            break
        found.append(tuple(f"{instant:%d %H:%M}" for instant in (verdict.next_allowed, verdict.until)))
        now = verdict.until
    return found


# Windows --------------------------------------------------------------------------------------------------------------


def window(start: str, end: str, *days: str, zone: str | None = None) -> list[dict[str, Any]]:
    return [{"days": list(days) or ["Sun"], "start": start, "end": end, "zone": zone}]


@pytest.mark.parametrize(
    ("now", "windows", "allowed", "following", "until"),
    [
        pytest.param("2026-01-07T12:00", window("11:00", "13:00", "Wed"), True, "07T12:00", "07T13:00", id="inside"),
        pytest.param("2026-01-07T11:00", window("11:00", "13:00", "Wed"), True, "07T11:00", "07T13:00", id="at start"),
        pytest.param("2026-01-07T13:00", window("11:00", "13:00", "Wed"), False, "14T11:00", "14T13:00", id="at end"),
        pytest.param(
            "2026-01-07T10:59:59", window("11:00", "13:00", "Wed"), False, "07T11:00", "07T13:00", id="before"
        ),
        pytest.param(
            "2026-01-07T12:59:59", window("11:00", "13:00", "Wed"), True, "07T12:59:59", "07T13:00", id="last"
        ),
        pytest.param(
            "2026-01-08T03:00", window("22:00", "04:00", "Wed"), True, "08T03:00", "08T04:00", id="night after"
        ),
        pytest.param(
            "2026-01-07T03:00", window("22:00", "04:00", "Wed"), False, "07T22:00", "08T04:00", id="night before"
        ),
        pytest.param(
            "2026-01-10T05:00", window("06:00", "06:00", "Sat"), False, "10T06:00", "11T06:00", id="day from 6"
        ),
        pytest.param(
            "2026-01-09T23:00",
            window("00:00", "00:00", "Sat") + window("00:00", "16:00", "Sun"),
            False,
            "10T00:00",
            "11T16:00",
            id="two that meet are one",
        ),
        pytest.param("2026-01-07T12:00", ALWAYS, True, "07T12:00", None, id="always"),
        pytest.param("2026-01-07T12:00", [], False, None, None, id="none"),
        pytest.param(
            "2026-01-07T12:00", window("18:00", "19:00", "Wed", zone=LONDON), False, "07T13:00", "07T14:00", id="zone"
        ),
    ],
)
def test_a_window(now: str, windows: Any, allowed: bool, following: str | None, until: str | None) -> None:
    verdict = judge(at(now), windows)
    assert verdict.allowed is allowed
    assert verdict.next_allowed == (at(f"2026-01-{following}") if following else None)
    assert verdict.until == (at(f"2026-01-{until}") if until else None)
    assert verdict.reasons == ([] if allowed else ["no maintenance window is open"])


# In UTC. New York's clocks change on 8 March 2026 at 07:00 and 1 November at 06:00; London's on 29 March and 25 October
# at 01:00.
@pytest.mark.parametrize(
    ("zone", "day", "windows", "found"),
    [
        pytest.param(NEW_YORK, "2026-03-07", NIGHT, [("08 03:00", "08 08:00")], id="New York, spring, 5 hours"),
        pytest.param(LONDON, "2026-03-28", NIGHT, [("28 22:00", "29 03:00")], id="London, spring, 5 hours"),
        pytest.param(NEW_YORK, "2026-10-31", NIGHT, [("01 02:00", "01 09:00")], id="New York, autumn, 7 hours"),
        pytest.param(LONDON, "2026-10-24", NIGHT, [("24 21:00", "25 04:00")], id="London, autumn, 7 hours"),
        pytest.param(
            NEW_YORK, "2026-03-08", window("02:30", "04:00"), [("08 07:00", "08 08:00")], id="begins in the gap"
        ),
        pytest.param(
            NEW_YORK, "2026-03-08", window("01:00", "02:30"), [("08 06:00", "08 07:00")], id="ends in the gap"
        ),
        pytest.param(
            NEW_YORK, "2026-03-08", window("01:00", "02:00"), [("08 06:00", "08 07:00")], id="ends at the gap"
        ),
        pytest.param(NEW_YORK, "2026-03-08", window("02:00", "03:00"), [], id="is the gap"),
        pytest.param(LONDON, "2026-03-29", window("01:10", "01:50"), [], id="in London's gap"),
        pytest.param(
            NEW_YORK,
            "2026-11-01",
            window("01:10", "01:40"),
            [("01 05:10", "01 05:40"), ("01 06:10", "01 06:40")],
            id="twice",
        ),
        pytest.param(
            LONDON,
            "2026-10-25",
            window("00:30", "01:30"),
            [("24 23:30", "25 00:30"), ("25 01:00", "25 01:30")],
            id="ends twice",
        ),
        pytest.param(NEW_YORK, "2026-11-01", window("01:00", "02:00"), [("01 05:00", "01 07:00")], id="is the fold"),
        pytest.param(
            NEW_YORK, "2026-03-08", window("00:00", "00:00"), [("08 05:00", "09 04:00")], id="a day of 23 hours"
        ),
        pytest.param(
            LONDON, "2026-10-25", window("00:00", "00:00"), [("24 23:00", "26 00:00")], id="a day of 25 hours"
        ),
    ],
)
def test_summer_time(zone: str, day: str, windows: Any, found: list[tuple[str, str]]) -> None:
    assert openings(at(f"{day}T00:00", zone), windows, zone) == found


def test_both_hours_of_a_fold_are_told_apart() -> None:
    windows = window("01:30", "01:40")
    assert judge(at("2026-11-01T01:35"), windows).allowed
    assert not judge(at("2026-11-01T01:50"), windows).allowed
    assert judge(at("2026-11-01T01:50"), windows).next_allowed == at("~2026-11-01T01:30")
    assert judge(at("~2026-11-01T01:35"), windows).allowed


def test_the_clock_of_the_machine_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 7, 17, tzinfo=UTC)
    told = set()
    for zone in ("UTC", "Asia/Tokyo", NEW_YORK):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        verdict = judge(now, window("18:00", "19:00", "Wed"))
        told.add((verdict.next_allowed, rules.message(verdict, "", NEW_YORK)))
    monkeypatch.undo()
    time.tzset()
    assert len(told) == 1


# Processes, orders, minutes -------------------------------------------------------------------------------------------


def test_a_process_is_left_alone_over_midnight() -> None:
    processes = [{"name": "run_backups", "start": "23:00", "stop": "01:00", "days": ["Fri"]}]
    verdict = judge(at("2026-01-10T00:30"), ALWAYS, processes=processes)
    assert not verdict.allowed
    assert verdict.reasons == ["run_backups runs until Sat 2026-01-10 01:00 EST"]
    assert verdict.next_allowed == at("2026-01-10T01:00")
    assert judge(at("2026-01-09T22:59"), ALWAYS, processes=processes).until == at("2026-01-09T23:00")
    assert judge(at("2026-01-09T00:30"), ALWAYS, processes=processes).allowed


def test_a_process_in_a_repeated_hour_runs_twice_as_pysystemtrade_reads_the_clock() -> None:
    processes = [{"name": "run_x", "start": "01:10", "stop": "01:40", "days": ["Sun"]}]
    assert openings(at("2026-11-01T00:00"), ALWAYS, NEW_YORK, 0.07, processes=processes) == [
        ("01 04:00", "01 05:10"),
        ("01 05:40", "01 06:10"),
    ]


def test_the_days_of_a_process_are_pysystemtrades_where_none_are_given() -> None:
    processes = [{"name": "run_x", "start": "00:00", "stop": "23:59"}]
    assert judge(at("2026-01-10T12:00"), ALWAYS, processes=processes).allowed
    assert not judge(at("2026-01-09T12:00"), ALWAYS, processes=processes).allowed


def test_an_open_order_is_refused_without_a_time_of_its_own() -> None:
    verdict = judge(at("2026-01-07T12:00"), window("11:00", "13:00", "Wed"), open_orders=2)
    assert (verdict.allowed, verdict.reasons, verdict.next_allowed) == (False, ["2 orders are open"], None)
    assert verdict.until == at("2026-01-07T13:00")
    assert "Allowed as soon as no order is open, until Wed 2026-01-07 13:00 EST." in rules.message(
        verdict, "", NEW_YORK
    )
    always = rules.message(judge(at("2026-01-07T12:00"), ALWAYS, open_orders=1), "", NEW_YORK)
    assert "1 order is open. Allowed as soon as no order is open. To go on" in always
    outside = judge(at("2026-01-07T10:00"), window("11:00", "13:00", "Wed"), open_orders=1)
    assert outside.next_allowed == at("2026-01-07T11:00")
    assert outside.reasons == ["no maintenance window is open", "1 order is open"]


@pytest.mark.parametrize(("now", "allowed"), [("12:30", True), ("12:30:01", False), ("12:31", False)])
def test_the_minutes_wanted_have_to_be_left(now: str, allowed: bool) -> None:
    windows = window("11:00", "13:00", "Wed") + window("20:00", "20:29", "Wed") + window("10:00", "10:30", "Thu")
    verdict = judge(at(f"2026-01-07T{now}"), windows, minimum_minutes=30)
    assert verdict.allowed is allowed
    if not allowed:
        assert verdict.reasons == ["of the 30 minutes wanted, 29 are left"]
        assert verdict.next_allowed == at("2026-01-08T10:00")  # Wednesday's second is too short


def test_nothing_within_sixty_days_is_told() -> None:
    verdict = judge(at("2026-01-07T12:00"), ALWAYS, processes=[{**ALWAYS[0], "name": "run_x", "stop": "00:00"}])
    assert (verdict.allowed, verdict.next_allowed, verdict.until) == (False, None, None)
    assert verdict.reasons == ["run_x runs for the next 60 days"]
    assert "No time within 60 days is known to be allowed." in rules.message(verdict, "", NEW_YORK)


def test_a_refusal_names_what_is_closed_both_times_and_the_way_on() -> None:
    verdict = judge(at("2026-01-07T12:00"), window("17:05", "17:55", "Wed"))
    assert rules.message(verdict, "", NEW_YORK) == (
        "Not a time for changes: no maintenance window is open. Next allowed: Wed 2026-01-07 17:05 EST"
        " (Wed 2026-01-07 22:05 UTC), until Wed 2026-01-07 17:55 EST. To go on all the same:"
        """ -e "site_maintenance_override='<why>'" (at least 10 characters, in both kinds of quotes; it is recorded)."""
    )


def test_everything_wrong_is_told_at_once() -> None:
    bad = [{"days": ["Sunn"], "start": 1025, "end": "24:00", "zone": "Europe/Lodnon"}, {"days": [], "start": "00:00"}]
    with pytest.raises(rules.MaintenanceError) as error:
        judge(at("2026-01-07T12:00"), bad, "Nowhere", minimum_minutes=-1, processes=[{"name": "x", "start": "1"}])
    assert [str(finding) for finding in error.value.findings] == [
        f"site_time_zone: seen Nowhere; wanted {IANA}",
        "site_maintenance_windows[0].start: seen 1025; wanted HH:MM from 00:00 to 23:59, in quotes",
        "site_maintenance_windows[0].end: seen 24:00; wanted HH:MM from 00:00 to 23:59, in quotes",
        "site_maintenance_windows[0].days: seen Sunn; wanted of Mon, Tue, Wed, Thu, Fri, Sat, Sun (did you mean Sun?)",
        f"site_maintenance_windows[0].zone: seen Europe/Lodnon; wanted {IANA} (did you mean Europe/London?)",
        "site_maintenance_windows[1].end: seen nothing; wanted HH:MM from 00:00 to 23:59, in quotes",
        "site_maintenance_windows[1].days: seen no day; wanted some of Mon, Tue, Wed, Thu, Fri, Sat, Sun",
        "trading_processes.x.start: seen 1; wanted HH:MM from 00:00 to 23:59, in quotes",
        "trading_processes.x.stop: seen nothing; wanted HH:MM from 00:00 to 23:59, in quotes",
        "minimum_minutes: seen -1; wanted 0 or more",
    ]


# Exchanges ------------------------------------------------------------------------------------------------------------


@with_library
def test_a_half_day_closes_the_exchange_early() -> None:
    """The day after Thanksgiving: XNYS closes at 13:00."""
    verdict = judge(at("2026-11-27T12:59"), ALWAYS, calendars=["XNYS"])
    assert verdict.reasons == ["XNYS is open until Fri 2026-11-27 13:00 EST"]
    assert verdict.next_allowed == at("2026-11-27T13:00")
    assert verdict.until == at("2026-11-30T09:30")
    assert judge(at("2026-11-27T13:00"), ALWAYS, calendars=["XNYS"]).allowed
    assert not judge(at("2026-11-30T13:00"), ALWAYS, calendars=["XNYS"]).allowed


@with_library
def test_a_holiday_is_closed() -> None:
    """Good Friday 2026 is 3 April: CMES is closed from Thursday's halt to Sunday 18:00, XNYS on Thanksgiving."""
    windows = window("09:00", "12:00", "Thu", "Fri")
    verdict = judge(at("2026-04-02T10:00"), windows, calendars=["CMES"])
    assert verdict.next_allowed == at("2026-04-03T09:00")
    assert judge(at("2026-04-04T09:00"), ALWAYS, calendars=["CMES"]).until == at("2026-04-05T18:00")
    assert judge(at("2026-04-10T10:00"), windows, calendars=["CMES"]).reasons[0].startswith("CMES is open until")
    assert judge(at("2026-11-26T12:00"), ALWAYS, calendars=["XNYS"]).allowed


@with_library
def test_globex_halts_every_day_whatever_the_library_says() -> None:
    found = openings(at("2026-01-05T00:00"), ALWAYS, NEW_YORK, 7, calendars=["CMES"])
    halts = [(f"{day:02} 22:00", f"{day:02} 23:00") for day in (5, 6, 7, 8)]
    assert found == [*halts, ("09 22:00", "11 23:00")]
    assert openings(at("2026-01-05T00:00"), ALWAYS, NEW_YORK, 7, calendars=["NYMEX"]) == found  # another name of it


@with_library
@pytest.mark.parametrize("week", ["2026-01-05", "2026-03-02", "2026-03-09", "2026-07-06", "2026-10-26", "2026-11-02"])
def test_the_windows_of_production_are_open_each_day_with_its_calendars(week: str) -> None:
    """In weeks without a holiday, also where only one of New York and the window's zone were on summer time."""
    windows, calendars = PRODUCTION[rules.WINDOWS], PRODUCTION[rules.CALENDARS]
    now, found = at(f"{week}T00:00"), []
    while (verdict := judge(now, windows, calendars=calendars)).next_allowed < at(f"{week}T00:00") + 7 * DAY:
        here = [instant.astimezone(ZoneInfo(NEW_YORK)) for instant in (verdict.next_allowed, verdict.until)]
        found.append(tuple(f"{instant:%a %H:%M}" for instant in here))
        now = verdict.until
    weekdays = [(f"{day} 17:05", f"{day} 17:55") for day in ("Mon", "Tue", "Wed", "Thu", "Fri")]
    assert found == [*weekdays, ("Sat 00:00", "Sun 16:00")]


@with_library
def test_every_calendar_has_to_be_closed() -> None:
    """ICE is open while Globex halts."""
    verdict = judge(at("2026-01-07T17:10"), ALWAYS, calendars=["CMES", "IEPA"])
    assert verdict.reasons == ["IEPA is open until Wed 2026-01-07 18:00 EST"]
    assert verdict.next_allowed == at("2026-01-09T18:00")


@with_library
def test_a_break_at_noon_is_closed() -> None:
    verdict = judge(at("2026-01-07T11:00", "Asia/Hong_Kong"), ALWAYS, "Asia/Hong_Kong", calendars=["XHKG"])
    assert verdict.next_allowed == at("2026-01-07T12:00", "Asia/Hong_Kong")
    assert verdict.until == at("2026-01-07T13:00", "Asia/Hong_Kong")


@with_library
def test_an_unknown_code_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(rules.MaintenanceError) as error:
        judge(at("2026-01-07T12:00"), ALWAYS, calendars=["xnys", "XNSY", "nothing like it"])
    assert [str(finding) for finding in error.value.findings] == [
        "site_maintenance_calendars: seen xnys; wanted a code of exchange_calendars (did you mean XNYS?)",
        "site_maintenance_calendars: seen XNSY; wanted a code of exchange_calendars (did you mean XNYS?)",
        "site_maintenance_calendars: seen nothing like it; wanted a code of exchange_calendars",
    ]


@with_library
def test_a_calendar_is_quick_to_build() -> None:
    rules.library(["CMES"])
    before = time.process_time()
    judge(at("2026-01-07T12:00"), ALWAYS, calendars=["CMES"])
    assert time.process_time() - before < 1


class Shanghai:
    """A library whose one calendar ends with 2026, as some do until the government has named the holidays."""

    name = "XSHG"

    def __init__(self, start: str = "", end: str = "") -> None:
        if end > "2026-12-31":
            raise ValueError("The XSHG holidays are only recorded to the year 2026")
        if start > "2026-12-31":
            raise ValueError("The XSHG holidays are only recorded to the year 2026")
        self.schedule = self

    @staticmethod
    def get_calendar_names() -> list[str]:
        return ["XSHG"]

    @staticmethod
    def get_calendar(_code: str, start: str = "", end: str = "") -> Shanghai:
        return Shanghai(start, end)

    def iterrows(self) -> Any:
        for day in (29, 30, 31):
            yield day, Row(datetime(2026, 12, day, hour, tzinfo=UTC) for hour in (1, 7))


class Row(list):
    def dropna(self) -> Any:
        class Stamp(datetime):
            def to_pydatetime(self) -> datetime:
                return self

        return [Stamp.combine(found.date(), found.timetz()) for found in self]


def test_where_a_calendar_ends_the_exchange_counts_as_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "library", lambda _calendars: Shanghai)
    windows = window("06:00", "10:00", *rules.DAYS, zone="UTC")
    verdict = judge(datetime(2026, 12, 30, 5, tzinfo=UTC), windows, "UTC", calendars=["XSHG"])
    assert verdict.next_allowed == datetime(2026, 12, 30, 7, tzinfo=UTC)
    verdict = judge(datetime(2026, 12, 31, 8, tzinfo=UTC), windows, "UTC", calendars=["XSHG"])
    assert verdict.next_allowed is None
    assert verdict.reasons == ["the sessions of XSHG are not known to exchange_calendars for the next 60 days"]
    with pytest.raises(rules.MaintenanceError, match="seen XSHG; wanted a calendar that exchange_calendars can build"):
        judge(datetime(2027, 2, 1, tzinfo=UTC), windows, "UTC", calendars=["XSHG"])


def test_a_missing_library_is_told_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, rules.LIBRARY, None)
    assert judge(at("2026-01-07T12:00"), ALWAYS).allowed
    with pytest.raises(
        rules.MaintenanceError, match="seen CMES, XNYS; wanted the library exchange_calendars on the con"
    ):
        judge(at("2026-01-07T12:00"), ALWAYS, calendars=["CMES", "XNYS"])


# Any windows ----------------------------------------------------------------------------------------------------------

times = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from([0, 1, 30, 59]))
zones = st.sampled_from([NEW_YORK, LONDON, "UTC", "Asia/Kolkata", "Australia/Lord_Howe", "America/Havana"])
days = st.lists(st.sampled_from(rules.DAYS), min_size=1, max_size=7, unique=True)
any_windows = st.lists(
    st.fixed_dictionaries({"days": days, "start": times, "end": times, "zone": zones}), min_size=1, max_size=3
)
any_processes = st.lists(
    st.fixed_dictionaries({"name": st.just("run_x"), "start": times, "stop": times, "days": days}), max_size=2
)


def within(first: str, days: int) -> st.SearchStrategy[datetime]:
    beginning = datetime.fromisoformat(f"{first}T00:00Z")
    return st.integers(0, days * 86400).map(lambda second: beginning + timedelta(seconds=second))


# Around the days on which clocks change, and any other.
instants = st.one_of(within("2026-03-05", 32), within("2026-10-20", 15), within("2026-01-01", 365))


def shown(row: Any, end: str, zone: str, now: datetime) -> bool:
    """Whether the clock on the wall shows a time of the row: what pysystemtrade would ask, by no interval at all."""
    wall = now.astimezone(ZoneInfo(row.get("zone") or zone))
    clock, today, yesterday = f"{wall:%H:%M}", rules.DAYS[wall.weekday()], rules.DAYS[wall.weekday() - 1]
    if row[end] > row["start"]:
        return today in row["days"] and row["start"] <= clock < row[end]
    return (today in row["days"] and clock >= row["start"]) or (yesterday in row["days"] and clock < row[end])


@given(any_windows, any_processes, zones, instants)
def test_a_verdict_is_what_the_clocks_on_the_walls_show(windows: Any, processes: Any, zone: str, now: datetime) -> None:
    wanted = any(shown(row, "end", zone, now) for row in windows)
    wanted = wanted and not any(shown(row, "stop", zone, now) for row in processes)
    assert judge(now, windows, zone, processes=processes).allowed is wanted


@given(any_windows, any_processes, zones, instants, st.integers(0, 600), st.data())
@settings(max_examples=60)
def test_the_next_time_is_allowed_and_nothing_before_it(
    windows: Any, processes: Any, zone: str, now: datetime, minutes: int, data: Any
) -> None:
    given = {"processes": processes, "minimum_minutes": minutes}
    verdict = judge(now, windows, zone, **given)
    last = verdict.next_allowed or now + rules.HORIZON
    if verdict.next_allowed:
        assert now <= last <= now + rules.HORIZON
        assert verdict.allowed is (last == now)
        following = judge(last, windows, zone, **given)
        assert following.allowed
        if verdict.until and verdict.until < now + rules.HORIZON:
            assert following.until == verdict.until
            assert verdict.until - last >= minutes * MINUTE
            assert not judge(verdict.until, windows, zone, **given).allowed
    # Not up to the horizon: a stretch that it cuts short may be long enough when it is judged later.
    gap = int((last - now) / MINUTE) - (0 if verdict.next_allowed else minutes)
    for minute in data.draw(st.lists(st.integers(0, gap - 1), max_size=8)) if gap > 0 else ():
        between = judge(now + minute * MINUTE, windows, zone, **given)
        assert not between.allowed
        if verdict.next_allowed:
            assert between.next_allowed == last


@with_library
@given(any_windows, instants, st.sampled_from(["CMES", "XNYS", "XHKG"]), st.data())
@settings(max_examples=15)
def test_the_next_time_with_an_exchange_is_allowed_too(windows: Any, now: datetime, code: str, data: Any) -> None:
    verdict = judge(now, windows, calendars=[code])
    if verdict.next_allowed:
        assert judge(verdict.next_allowed, windows, calendars=[code]).allowed
        gap = int((verdict.next_allowed - now) / MINUTE)
        for minute in data.draw(st.lists(st.integers(0, gap - 1), max_size=3)) if gap > 0 else ():
            assert not judge(now + minute * MINUTE, windows, calendars=[code]).allowed


# The action plugin ----------------------------------------------------------------------------------------------------


@pytest.fixture
def play(tmp_path: Path):
    def play(arguments: dict[str, Any], *options: str) -> tuple[int, dict[str, Any], str]:
        given = {"zone": NEW_YORK, "windows": window("17:05", "17:55", "Wed"), "now": "2026-01-07T12:00-05:00"}
        task = {"pst.platform.maintenance_window": given | arguments, "register": "found", "ignore_errors": True}
        show = {
            "ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": str(tmp_path / "out"), "mode": "0600"}
        }
        end = {"ansible.builtin.fail": {"msg": "failed"}, "when": "found is failed"}
        tasks = [task, {**show, "check_mode": False}, end]
        playbook = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
        (tmp_path / "play.yml").write_text(json.dumps(playbook))
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml"]
        command += ["-e", f"ansible_python_interpreter={sys.executable}", *options]
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, json.loads((tmp_path / "out").read_text()), done.stdout + done.stderr

    return play


def test_outside_the_window_it_is_refused_with_the_next_time(play) -> None:
    code, found, _ = play({})
    assert code != 0
    assert found["failed"]
    assert not found["changed"]
    assert (found["allowed"], found["overridden"], found["override"]) == (False, False, "")
    assert found["reasons"] == ["no maintenance window is open"]
    assert found["next_allowed"] == "2026-01-07T17:05-05:00"
    assert found["until"] == "2026-01-07T17:55-05:00"
    assert "Next allowed: Wed 2026-01-07 17:05 EST (Wed 2026-01-07 22:05 UTC)" in found["msg"]
    assert "-e \"site_maintenance_override='<why>'\"" in found["msg"]


def test_inside_it_is_allowed(play) -> None:
    code, found, _ = play({"now": "2026-01-07T22:30Z", "override": "not needed here"})
    assert code == 0
    assert (found["allowed"], found["overridden"], found["override"]) == (True, False, "not needed here")
    assert (found["reasons"], found["next_allowed"]) == ([], "2026-01-07T17:30-05:00")
    assert found["msg"] == "Allowed until Wed 2026-01-07 17:55 EST"


def test_a_reason_overrides_all_and_is_returned(play) -> None:
    code, found, said = play({"override": " gateway must be replaced ", "open_orders": 1})
    assert code == 0
    assert (found["allowed"], found["overridden"], found["override"]) == (False, True, "gateway must be replaced")
    assert found["reasons"] == ["no maintenance window is open", "1 order is open"]
    assert "1 order is open. Overridden: gateway must be replaced" in " ".join(said.split())


@pytest.mark.parametrize("now", ["2026-01-07T12:00-05:00", "2026-01-07T17:30-05:00"], ids=["outside", "inside"])
def test_a_short_reason_is_refused(play, now: str) -> None:
    code, found, _ = play({"override": "because", "now": now})
    assert code != 0
    assert (found["allowed"], found["overridden"]) == (False, False)
    assert "site_maintenance_override: seen because; wanted a reason of at least 10 characters" in found["msg"]


@pytest.mark.parametrize(
    "arguments", [{}, {"open_orders": 3}, {"override": "no"}, {"windows": window("5", "6")}, {"now": "today"}], ids=str
)
def test_check_mode_reports_and_never_refuses(play, arguments: dict[str, Any]) -> None:
    code, found, said = play(arguments, "--check")
    assert code == 0
    assert not found["failed"]
    assert not found["allowed"]
    assert found["reasons"]
    assert "Without --check: Not a time for changes: " in " ".join(said.split())


def test_what_cannot_be_judged_is_refused_and_can_be_overridden(play) -> None:
    bad = {"windows": window("17:05", "24:00"), "now": "2026-01-07T12:00"}
    code, found, _ = play(bad)
    assert code != 0
    assert found["reasons"] == [
        "now: seen 2026-01-07T12:00; wanted a time in ISO format with its offset: 2026-01-03T00:00-05:00"
    ]
    code, found, _ = play(bad | {"now": "2026-01-07T12:00Z", "override": "the inventory is being repaired"})
    assert code == 0
    assert found["reasons"] == [
        "site_maintenance_windows[0].end: seen 24:00; wanted HH:MM from 00:00 to 23:59, in quotes"
    ]
    assert found["overridden"]


@with_library
def test_with_an_open_market_it_is_refused(play) -> None:
    code, found, _ = play({"windows": ALWAYS, "calendars": ["CMES"]})
    assert code != 0
    assert found["reasons"] == ["CMES is open until Wed 2026-01-07 17:00 EST"]
    assert found["next_allowed"] == "2026-01-07T17:00-05:00"


# The inventory --------------------------------------------------------------------------------------------------------

TRADING = yaml.safe_load((ROOT / "roles/trading/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]


def problems_of(**site: Any) -> list[str]:
    contract = inventory_check.Contract(CONTRACT.site, CONTRACT.host, {**CONTRACT.roles, ("trading", "main"): TRADING})
    found = rules.check_sites(inventory_check.sites_of(make_site(**site).values()), contract)
    return [str(problem) for problem in found]


WEEK = ", ".join(rules.DAYS)
NOTHING = "windows: seen windows of which nothing is left in the next 14 days; wanted a window"
INVENTORIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "good": ({rules.WINDOWS: window("00:00", "00:00")}, []),
    "good with a process": ({rules.WINDOWS: window("00:00", "00:00"), rules.RESPECTED: ["run_backups"]}, []),
    "malformed": (
        {rules.WINDOWS: window("0:00", "16:00", "Sat", "Sunday", zone="Europe/Lodnon")},
        [
            "windows[0].start: seen 0:00; wanted HH:MM from 00:00 to 23:59, in quotes",
            f"windows[0].days: seen Sunday; wanted of {WEEK}",
            f"windows[0].zone: seen Europe/Lodnon; wanted {IANA} (did you mean Europe/London?)",
        ],
    ),
    "no window": ({rules.WINDOWS: []}, [NOTHING]),
    "a process all the time": (
        {rules.WINDOWS: window("20:30", "21:00", "Mon", "Tue"), rules.RESPECTED: ["run_backups"]},
        [f"{NOTHING} and run_backups does not run"],
    ),
    "no such process": (
        {rules.WINDOWS: ALWAYS, rules.RESPECTED: ["run_backup"]},
        ["respect_processes: seen run_backup; wanted the name of a process (did you mean run_backups?)"],
    ),
    "an override for ever": (
        {rules.WINDOWS: ALWAYS, rules.OVERRIDE: "we always do"},
        ["override: seen we always do; wanted nothing in an inventory: it is the reason for one run, given with -e"],
    ),
    # Told by others: by the check of the options, by that of the site's zone.
    "no list": ({rules.WINDOWS: "always"}, []),
    "no times": ({rules.WINDOWS: [{"days": ["Sat"]}]}, []),
    "no zone": ({rules.WINDOWS: ALWAYS, "site_time_zone": "Europe/Lodnon"}, []),
}
WITH_CALENDARS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such exchange": (
        {rules.WINDOWS: ALWAYS, rules.CALENDARS: ["CMES", "XNSY"]},
        ["calendars: seen XNSY; wanted a code of exchange_calendars (did you mean XNYS?)"],
    ),
    "an exchange that never closes": (
        {rules.WINDOWS: ALWAYS, rules.CALENDARS: ["24/7"]},
        [f"{NOTHING} and 24/7 is closed"],
    ),
}


@pytest.mark.parametrize("case", [*INVENTORIES, *(pytest.param(case, marks=with_library) for case in WITH_CALENDARS)])
def test_the_windows_of_an_inventory_are_checked(case: str) -> None:
    site, wanted = (INVENTORIES | WITH_CALENDARS)[case]
    told = [problem.replace(" [site_test]", "").removesuffix(" (in main.yml:7)") for problem in problems_of(**site)]
    assert told == [f"site_maintenance_{problem}" for problem in wanted]


def test_calendars_are_not_judged_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, rules.LIBRARY, None)
    assert problems_of(**{rules.WINDOWS: ALWAYS, rules.CALENDARS: ["NYSX"]}) == []


def test_a_site_without_windows_is_told() -> None:
    inventory = make_site()
    change(inventory, "all", **{rules.WINDOWS: None})
    told = [str(problem) for problem in inventory_check.check(inventory.values(), CONTRACT, validate)]
    assert len(told) == 1
    assert told[0].startswith("site_maintenance_windows [site_test]: seen nothing; wanted list of dict (Times in which")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("inventories/*/group_vars/*/main.yml")), ids=lambda path: path.parent.name
)
def test_the_examples_leave_a_time(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    calendars = values[rules.CALENDARS] if importlib.util.find_spec(rules.LIBRARY) else []
    verdict = judge(at("2026-01-05T12:00"), values[rules.WINDOWS], calendars=calendars)
    assert verdict.next_allowed
    assert verdict.next_allowed < at("2026-01-05T12:00") + DAY
