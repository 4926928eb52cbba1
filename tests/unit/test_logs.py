"""Searching the logs, and keeping them small."""

from __future__ import annotations

import gzip
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pst_logs
import pst_logs_keep
import pytest

NOW = datetime(2026, 11, 30, 14, 30, tzinfo=UTC)


def record(message: str, at: str = "2026-11-30T14:10:00.000001+00:00", **fields: Any) -> dict[str, Any]:
    return {"from": "192.0.2.1", "time": at, "site": "lab", "host": "app1", "level": "info", "process": "p"} | {
        "message": message,
        **fields,
    }


def put(folder: Path, *records: dict[str, Any], packed: bool = False, ending: str = "", site: str = "lab") -> Path:
    """Write records into the file of the first one's hour."""
    at = records[0]["time"]
    path = folder / site / at[:10] / f"{at[11:13]}.jsonl{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in records).encode()
    if packed:
        path = path.with_suffix(".jsonl.gz")
        with path.open("ab") as file:
            file.write(gzip.compress(text))
    else:
        with path.open("ab") as file:
            file.write(text)
    return path


def found(folder: Path, limit: int = 0, **asked: Any) -> list[str]:
    query = pst_logs.Query(**({"since": NOW - timedelta(hours=1), "until": NOW} | asked))
    return [entry["message"] for entry in pst_logs.search(folder, query, "*", limit)[0]]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("now", NOW),
        ("15m", NOW - timedelta(minutes=15)),
        ("1d 6h", NOW - timedelta(hours=30)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2026-11-30T10:00:00Z", datetime(2026, 11, 30, 10, tzinfo=UTC)),
        ("2026-11-30T10:00:00-05:00", datetime(2026, 11, 30, 15, tzinfo=UTC)),
    ],
)
def test_a_time_is_understood(text: str, wanted: datetime) -> None:
    assert pst_logs.moment(text, NOW) == wanted


def test_a_time_without_a_zone_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    pst_logs.time.tzset()
    try:
        assert pst_logs.moment("2026-11-30 09:15", NOW) == datetime(2026, 11, 30, 14, 15, tzinfo=UTC)
        assert pst_logs.moment("09:15", NOW) == datetime(2026, 11, 30, 14, 15, tzinfo=UTC)
        assert pst_logs.moment("today", NOW) == datetime(2026, 11, 30, 5, tzinfo=UTC)
        assert pst_logs.moment("yesterday", NOW) == datetime(2026, 11, 29, 5, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        pst_logs.time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "15", "15 parsecs", "25:00", "2026-13-01"])
def test_a_time_that_is_not_understood_says_so(text: str) -> None:
    with pytest.raises(pst_logs.UsageError, match="is not understood; wanted such as 15m"):
        pst_logs.moment(text, NOW)


# --- search -----------------------------------------------------------------------------------------------------------


def test_only_the_time_asked_for(tmp_path: Path) -> None:
    put(tmp_path, record("early", "2026-11-30T13:29:59.9+00:00"), record("in", "2026-11-30T13:30:00+00:00"))
    put(tmp_path, record("late", "2026-11-30T14:30:01+00:00"))
    assert found(tmp_path) == ["in"]


def test_files_of_other_hours_are_not_opened(tmp_path: Path) -> None:
    put(tmp_path, record("in"))
    (tmp_path / "lab/2026-11-30/12.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "lab/2026-11-29").mkdir()
    (tmp_path / "lab/2026-11-29/14.jsonl.gz").write_bytes(b"no gzip")
    assert found(tmp_path) == ["in"]


def test_compressed_renamed_and_late_lines_are_one(tmp_path: Path) -> None:
    put(tmp_path, record("1", "2026-11-30T14:00:01+00:00"), packed=True)
    put(tmp_path, record("2", "2026-11-30T14:00:02+00:00"), packed=True)
    put(tmp_path, record("3", "2026-11-30T14:00:03+00:00"), ending=".part")
    put(tmp_path, record("4", "2026-11-30T14:00:04+00:00"))
    assert found(tmp_path) == ["1", "2", "3", "4"]


def test_a_line_that_was_sent_twice_is_shown_once(tmp_path: Path) -> None:
    put(tmp_path, record("a"), packed=True)
    put(tmp_path, record("a"), record("b"))
    assert found(tmp_path) == ["a", "b"]


def test_in_the_order_of_time_and_the_newest_where_they_are_many(tmp_path: Path) -> None:
    at = [f"2026-11-30T14:00:{second:02}+00:00" for second in (5, 3, 9, 1, 7)]
    put(tmp_path, *(record(time[17:19], time) for time in at))
    assert found(tmp_path) == ["01", "03", "05", "07", "09"]
    assert found(tmp_path, limit=2) == ["07", "09"]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = put(tmp_path, record("whole"))
    with path.open("ab") as file:
        file.write(b'{"time": "2026-11-30T14:10:0')
    assert found(tmp_path) == ["whole"]
    put(tmp_path, record("next"))
    assert found(tmp_path) == ["whole", "next"]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"hosts": ["app1"]}, ["a", "b"]),
        ({"hosts": ["app*"]}, ["a", "b", "c"]),
        ({"hosts": ["app1"], "processes": ["risk"]}, ["b"]),
        ({"units": ["pst-run@stack"]}, ["a"]),
        ({"units": ["pst-run@*", "mongod.service"]}, ["a", "b", "d"]),
        ({"level": "warning"}, ["b", "d"]),
        ({"level": "error"}, ["d"]),
        ({"colour": "blue"}, ["a"]),
        ({"release": "1.80-*"}, ["a"]),
    ],
)
def test_fields(tmp_path: Path, asked: dict[str, Any], wanted: list[str]) -> None:
    put(
        tmp_path,
        record("a", unit="pst-run@stack.service", process="stack", colour="blue", release="1.80-abc"),
        record("b", unit="pst-run@risk.service", process="risk", level="warning"),
        record("c", host="app2", level="no such level"),
        record("d", host="mongo1", unit="mongod.service", level="critical"),
    )
    assert found(tmp_path, **asked) == wanted


def test_an_order_is_found_by_its_field_and_by_what_is_said(tmp_path: Path) -> None:
    messages = (
        "sent",
        "{'instrument_order_id': 7, 'contract_order_id': 41, 'broker_order_id': 12} filled",
        "order 12 done",
        "order 123 done",
        "12 apples, order 13",
        "order 12-a",
    )
    put(tmp_path, record("sent", order="12"), *map(record, messages[1:]), record("data", data={"order_id": 12}))
    assert found(tmp_path, order="12") == ["sent", messages[1], messages[2], "data"]
    assert found(tmp_path, order="41") == [messages[1]]


def test_words_and_patterns(tmp_path: Path) -> None:
    put(tmp_path, record("Position BREAK for SP500"), record("position held"), record('über C:\\ "x"'))
    assert found(tmp_path, texts=["break", "sp500"]) == ["Position BREAK for SP500"]
    assert found(tmp_path, texts=["ÜBER"]) == ['über C:\\ "x"']
    assert found(tmp_path, texts=['"x"']) == ['über C:\\ "x"']
    assert found(tmp_path, pattern=re.compile("^pos.*held$")) == ["position held"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = pst_logs.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def recent(tmp_path: Path) -> Path:
    at = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    put(tmp_path, record("filled\033[2J\nroot: x", at, order="7", pid=9, colour="blue"), record("other", at))
    return tmp_path


def test_the_command_prints_a_line_and_json(recent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--folder", str(recent), "--order", "7")
    assert code == 0
    assert re.fullmatch(r"\S+ \S+ app1 p\[9\] info: filled \[2J root: x  \(blue, order 7\)\n", out), out
    code, out, _ = run(capsys, "--folder", str(recent), "--json", "filled")
    assert json.loads(out)["order"] == "7"
    assert run(capsys, "--folder", str(recent), "--count")[:2] == (0, "2\n")


def test_the_commands_exit_status(recent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--folder", str(recent), "no such words")[0] == 1
    assert run(capsys, "--folder", str(recent), "--count", "no such words")[:2] == (1, "0\n")
    code, _, err = run(capsys, "--folder", str(recent), "--since", "soon")
    assert (code, "time 'soon' is not understood" in err) == (2, True)
    assert run(capsys, "--folder", str(recent / "none"))[0] == 2
    assert run(capsys, "--folder", str(recent), "--regexp", "(")[0] == 2
    assert run(capsys, "--folder", str(recent), "--since", "1h", "--until", "2h")[0] == 2


def test_where_there_are_more_it_says_so(recent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--folder", str(recent), "--limit", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "the newest 1 of 2" in err


# --- keeping ----------------------------------------------------------------------------------------------------------

LIMITS = pst_logs_keep.Limits(days=30, gb=1, free_mb=100, idle_minutes=30)


def aged(path: Path, minutes: float) -> Path:
    at = NOW.timestamp() - minutes * 60
    os.utime(path, (at, at))
    return path


def compress(folder: Path) -> tuple[int, int]:
    """Returns how many files were compressed, and how often rsyslog was told."""
    told: list[None] = []
    return pst_logs_keep.compress(folder, NOW, 30, lambda: told.append(None)), len(told)


def delete(folder: Path, limits: pst_logs_keep.Limits = LIMITS, free_mb: float = 1e6) -> int:
    return pst_logs_keep.delete(folder, NOW, limits, lambda: free_mb)


def test_an_hour_that_is_over_is_compressed_and_found(tmp_path: Path) -> None:
    path = aged(put(tmp_path, record("old", "2026-11-30T13:40:00+00:00")), 31)
    busy = aged(put(tmp_path, record("late", "2026-11-30T12:40:00+00:00")), 29)
    current = aged(put(tmp_path, record("now", "2026-11-30T14:00:00+00:00")), 40)
    assert compress(tmp_path) == (1, 1)
    assert sorted(p.name for p in path.parent.iterdir()) == ["12.jsonl", "13.jsonl.gz", "14.jsonl"]
    assert busy.exists()
    assert current.exists()
    assert found(tmp_path) == ["old", "now"]
    assert compress(tmp_path) == (0, 0)


def test_a_late_line_is_added_to_what_is_compressed(tmp_path: Path) -> None:
    for word in ("one", "two"):
        aged(put(tmp_path, record(word, "2026-11-30T13:40:00+00:00")), 31)
        assert compress(tmp_path)[0] == 1
    assert found(tmp_path) == ["one", "two"]


def test_a_run_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    part = put(tmp_path, record("one", "2026-11-30T13:40:00+00:00"), ending=".part")
    part.with_suffix(".gz.new").write_bytes(b"half")
    aged(put(tmp_path, record("two", "2026-11-30T13:41:00+00:00")), 31)
    assert compress(tmp_path) == (1, 0)
    assert found(tmp_path) == ["one", "two"]
    assert compress(tmp_path) == (1, 1)
    assert found(tmp_path) == ["one", "two"]
    assert sorted(p.name for p in part.parent.iterdir()) == ["13.jsonl.gz"]


def test_what_is_too_old_is_deleted_with_its_day(tmp_path: Path) -> None:
    old = aged(put(tmp_path, record("x", "2026-10-30T10:00:00+00:00"), packed=True), 31 * 1440)
    kept = put(tmp_path, record("y", "2026-10-31T10:00:00+00:00"), packed=True)
    put(tmp_path, record("now"))
    assert delete(tmp_path) == 1
    assert not old.parent.exists()
    assert kept.exists()


def test_a_day_ahead_is_deleted_by_the_time_of_its_writing(tmp_path: Path) -> None:
    put(tmp_path, record("now"))
    ahead = aged(put(tmp_path, record("x", "2031-01-01T10:00:00+00:00"), packed=True), 31 * 1440)
    put(tmp_path, record("x", "2031-01-01T11:00:00+00:00"))
    assert delete(tmp_path) == 1
    assert not ahead.exists()


def test_the_oldest_go_while_all_is_too_large_but_never_the_hour_that_is_written(tmp_path: Path) -> None:
    paths = [put(tmp_path, record("x" * 1000, f"2026-11-{day}T10:00:00+00:00")) for day in (10, 20, 30)]
    size = paths[0].stat().st_size
    assert delete(tmp_path, pst_logs_keep.Limits(30, 2.5 * size / 1e9, 0, 30)) == 1
    assert [path.exists() for path in paths] == [False, True, True]
    assert delete(tmp_path, pst_logs_keep.Limits(30, 0, 0, 30)) == 1
    assert [path.exists() for path in paths] == [False, False, True]


def test_where_the_disk_is_full_the_last_day_is_kept(tmp_path: Path) -> None:
    days = ("2026-11-28", "2026-11-29", "2026-11-30")
    paths = [put(tmp_path, record("x", f"{day}T10:00:00+00:00")) for day in days]
    assert delete(tmp_path, free_mb=10) == 1
    assert [path.exists() for path in paths] == [False, True, True]


def test_figures_are_prometheus(tmp_path: Path) -> None:
    path = put(tmp_path, record("x", "2026-11-30T10:40:00+00:00"))
    values = dict(line.split() for line in pst_logs_keep.figures(tmp_path, NOW).splitlines() if line[0] != "#")
    assert float(values["pst_logs_bytes"]) == path.stat().st_size
    assert float(values["pst_logs_oldest_timestamp_seconds"]) == datetime(2026, 11, 30, 10, tzinfo=UTC).timestamp()
    assert float(values["pst_logs_kept_timestamp_seconds"]) == NOW.timestamp()
