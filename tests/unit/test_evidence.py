"""The report of an operation: what is counted, what is wanted, what the page shows, and a run from begin to end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pst_probe
import pytest
from conftest import ROOT

from ansible_collections.pst.platform.plugins.module_utils import evidence, evidence_probe
from ansible_collections.pst.platform.plugins.module_utils.evidence_probe import EvidenceError, Run, Settings, wait

START = 1_800_000_000.0
RUN = {"run": "0123456789ab", "operation": "upgrade", "site": "lab", "rate": 10.0}
POSTS = {"posts": 20, "distinct": 20, "duplicates": []}


def account(seconds: int = 10, *failures: pst_probe.Outcome, down: tuple[float, float] = (0, 0)) -> dict[str, Any]:
    """Ten requests a second, every fifth a POST; none between the two moments of `down`."""
    times = [at / 10 for at in range(10 * seconds) if not down[0] <= at / 10 < down[1]]
    good = [
        pst_probe.Outcome(at, at + 0.01, "ok", "GET" if number % 5 else "POST", "") for number, at in enumerate(times)
    ]
    outcomes = sorted([*good, *failures])
    told = pst_probe.account(outcomes, seconds) | pst_probe.details(outcomes, seconds)
    return told | {"late_ms": 1.5, "started": START, "run": RUN["run"]}


def event(after: float, what: str, host: str = "lab-lb1") -> dict[str, Any]:
    return {"at": evidence.iso(START + after), "what": what, "host": host}


def build(told: dict[str, Any], *events: dict[str, Any], **changes: Any) -> evidence.Report:
    given = {"posts": POSTS, "bars": evidence.BARS, "ended": START + told["duration_s"]} | changes
    return evidence.build(RUN, told, events, **given)


LOST = pst_probe.Outcome(3.05, 3.25, "reset", "POST", "0123456789ab-31")


def test_a_quiet_operation_passes_with_the_keys_of_the_contract() -> None:
    report = build(account(), event(1, "begins"))
    assert (report["outcome"], report["problems"]) == ("passed", [])
    assert {key: report[key] for key in ("requests", "failed", "longest_gap_ms", "duplicate_posts", "duration_s")} == {
        "requests": 100,
        "failed": 0,
        "longest_gap_ms": 100,
        "duplicate_posts": 0,
        "duration_s": 10.0,
    }
    assert (report["operation"], report["rate"], report["late_ms"]) == ("upgrade", 10.0, 1.5)
    assert (report["started"], report["ended"]) == ("2027-01-15T08:00:00.000Z", "2027-01-15T08:00:10.000Z")
    assert report["events"] == [{"at": "2027-01-15T08:00:01.000Z", "what": "begins", "host": "lab-lb1"}]
    assert report["p50_ms"] == report["p99_ms"] == 10
    assert report["lost_posts"] == 0
    assert evidence.file_name(report) == "upgrade-20270115T080000Z"
    assert json.loads(json.dumps(report)) == report


def test_a_gap_is_told_with_the_last_event_before_it_and_those_in_it() -> None:
    happened = [event(1, "begins"), event(2, "stops haproxy"), event(5.9, "has started haproxy"), event(8, "ends")]
    report = build(account(down=(4.0, 6.0)), *happened)
    assert report["longest_gap_ms"] == 2100
    assert report["longest_gap"]["at"] == 3.91
    assert [told["what"] for told in report["longest_gap"]["events"]] == ["stops haproxy", "has started haproxy"]
    [problem] = report["problems"]
    assert problem == (
        "longest_gap_ms: seen 2100 (3.9 s after the begin; events: 'stops haproxy' on lab-lb1, "
        "'has started haproxy' on lab-lb1); wanted at most 1000"
    )


def test_a_gap_before_the_first_event_has_none() -> None:
    report = build(account(down=(0.0, 1.5)), event(5, "begins"))
    assert report["longest_gap"]["events"] == []
    assert "1.5" in str(report["longest_gap"]["seconds"])


def test_an_event_in_a_gap_is_told_where_none_was_before() -> None:
    report = build(account(down=(4.0, 6.0)), event(4.5, "restarts haproxy"), event(8, "ends"))
    assert [told["what"] for told in report["longest_gap"]["events"]] == ["restarts haproxy"]


def test_failures_and_duplicates_are_told_and_fail() -> None:
    report = build(account(10, LOST), posts={"posts": 22, "distinct": 20, "duplicates": ["0123456789ab-5"]})
    assert report["problems"] == [
        "failed: seen 1 (reset 1); wanted at most 0",
        "duplicate_posts: seen 2 (0123456789ab-5); wanted at most 0",
    ]
    assert report["failures"] == [
        {"at": "2027-01-15T08:00:03.050Z", "kind": "reset", "method": "POST", "key": "0123456789ab-31", "ms": 200}
    ]


def test_an_acknowledged_post_without_a_trace_is_lost() -> None:
    assert build(account(), posts={"posts": 19, "distinct": 19, "duplicates": []})["problems"] == [
        "lost_posts: seen 1; wanted at most 0"
    ]


def test_what_could_not_be_asked_is_not_taken_for_good() -> None:
    report = build(account(), posts=None)
    assert report["duplicate_posts"] is None
    assert report["problems"] == [
        f"{name}: seen nothing (the agent could not be asked); wanted at most 0"
        for name in ("duplicate_posts", "lost_posts")
    ]
    assert "? duplicate posts" in evidence.summary(report)


def test_a_gap_of_the_probe_is_not_the_platforms() -> None:
    told = account(10, down=(4.0, 6.0))
    for gap in told["gaps"]:
        gap["own"] = 1.5 if gap["seconds"] > 1 else 0
    report = build(told)
    assert (report["longest_gap_ms"], report["longest_outage_ms"], report["outcome"]) == (2100, 600, "passed")
    told["gaps"][0]["own"] = max(told["gaps"], key=lambda gap: gap["seconds"])["own"] = 0.9
    (problem,) = build(told)["problems"]
    assert problem.startswith("longest_gap_ms: seen 1200 (3.9 s after the begin; and 0.9 s in which the probe itself")


@pytest.mark.parametrize("bars", [{}, {"failed": 1}, {"failed": None, "longest_gap_ms": 500}, {"failed": 1.5}])
def test_only_the_bars_that_are_named_count(bars: dict[str, Any]) -> None:
    report = build(account(10, LOST), posts=None, bars=bars)
    assert report["outcome"] == "passed"
    assert report["require"] == {name: most for name, most in bars.items() if most is not None}


def test_a_run_without_a_success_has_no_latency_to_compare() -> None:
    report = build(account(3, LOST, down=(0, 3)), bars={"p99_ms": 50})
    assert report["problems"] == ["p99_ms: seen nothing (no request succeeded); wanted at most 50"]
    assert report["longest_gap_ms"] == 3000


def test_a_probe_that_ended_before_the_operation_proves_nothing() -> None:
    [problem] = build(account(), ended=START + 70)["problems"]
    assert problem.startswith("the probe ended 60 s before the operation")
    assert build(account(), ended=START + 12)["problems"] == []


@pytest.mark.parametrize(
    ("bars", "said"),
    [
        ([], "evidence_require: seen []; wanted a dictionary"),
        ({"fail": 0}, "evidence_require.fail: seen an unknown key; wanted one of failed, "),
        ({"failed": "0"}, "evidence_require.failed: seen '0'; wanted a number"),
        ({"failed": -1}, "evidence_require.failed: seen -1; wanted a number"),
        ({"failed": True}, "evidence_require.failed: seen True; wanted a number"),
    ],
)
def test_wrong_bars_are_told(bars: Any, said: str) -> None:
    [problem] = evidence.bar_problems(bars)
    assert said in problem


def test_the_defaults_of_the_role_are_those_of_the_module() -> None:
    assert not list(evidence.bar_problems(evidence.BARS))
    assert (
        f"evidence_require: {{{', '.join(f'{name}: {most}' for name, most in evidence.BARS.items())}}}"
        in (ROOT / "roles/evidence/defaults/main.yml").read_text()
    )


# --- the page


def page(report: evidence.Report) -> ElementTree.Element:
    """Parse the page: as XML, which is stricter than any browser."""
    written = evidence.page(report)
    for outside in ("http", "<script", "<link", "<img", "@import", "url("):
        assert outside not in written
    return ElementTree.fromstring(written)


def texts(parsed: ElementTree.Element, tag: str) -> list[str]:
    return ["".join(found.itertext()) for found in parsed.iter(tag)]


def test_the_page_shows_figures_events_and_failures() -> None:
    nasty = event(4.5, 'moves <b>"blue" & green</b>', "lab-app1")
    report = build(
        account(10, LOST, down=(4.0, 6.0)), event(1, "begins"), nasty, event(9.9, "is over, after a long wait")
    )
    parsed = page(report)
    [title, *_] = texts(parsed, "title")
    assert title == "Evidence: upgrade on lab, failed"
    assert texts(parsed, "li") == report["problems"]
    cells = texts(parsed, "td")
    assert {"0123456789ab-31", "reset", 'moves <b>"blue" & green</b>', "lab-app1", "2100"} <= set(cells)
    assert [text for text in texts(parsed, "text") if text[0] in "123" and text[1] == " " and text[2] != "s"] == [
        "1 begins",
        '2 moves <b>"blue" & green</b>',
        "3 is over, after a long wait",
    ]
    [svg] = parsed.iter("svg")
    assert svg.get("role") == "img"
    assert svg[0].tag == "title"
    assert "color-scheme:light dark" in texts(parsed, "style")[0]
    assert len(list(parsed.iter("polyline"))) == 2  # not drawn over the outage


def test_the_page_of_hours_has_a_bounded_number_of_bars() -> None:
    told = account(10)
    told["seconds"] = [{"ok": 10, "failed": int(number == 5000), "p99_ms": 1.0} for number in range(10_000)]
    told["duration_s"] = 10_000.0
    parsed = page(build(told, *(event(at, f"event {at}") for at in range(0, 10_000, 100))))
    assert 400 < len(list(parsed.iter("rect"))) <= evidence.MOST_BARS + 5
    assert len(list(parsed.iter("g"))) == 100
    assert any("0.05 failed" in title for title in texts(parsed, "title"))


def test_labels_of_events_do_not_hide_each_other() -> None:
    report = build(account(), *(event(at / 4, f"step {at} of the operation") for at in range(12)))
    lanes, _ = evidence.event_marks(report, 100)
    assert 1 < lanes <= evidence.LANES


def test_the_page_of_a_run_that_sent_nothing_is_still_one() -> None:
    assert "No request was sent" in "".join(page(build(account(0))).itertext())


# --- a run, with a real probe against a stand-in for the platform


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    sys.path.insert(0, str(ROOT / "tests/unit/agent"))
    from servers import localhost_pair  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("stand-in")
    pair = localhost_pair(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "molecule/evidence/files/stand_in.py"
    process = subprocess.Popen([sys.executable, str(script), str(port), str(pair), str(folder / "posts"), "9"])
    assert wait(lambda: listens(port), 20)
    yield {"url": f"https://localhost:{port}", "ca_file": str(pair)}
    process.kill()
    process.wait()


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def settings(stand_in: dict[str, str], **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "operation": "upgrade",
        "site": "lab",
        "url": f"{stand_in['url']}/version",
        "post_url": f"{stand_in['url']}/api/v1/probe",
        "address": "127.0.0.1",
        "ca_file": stand_in["ca_file"],
        "rate": 50.0,
        "max_seconds": 60,
    }
    return Settings(**given | changes)


PROBE = Path(pst_probe.__file__)


def test_a_run_ends_with_an_account_and_what_was_carried_out_twice(tmp_path: Path, stand_in: dict[str, str]) -> None:
    run = Run(tmp_path, "lab")
    assert not run.note("too early", "lab-lb1")
    begun = run.begin(settings(stand_in), "hidden-token", PROBE, 20, 30)
    pid = run.progress()["pid"]
    assert "hidden-token" not in Path(f"/proc/{pid}/cmdline").read_text()
    assert "hidden-token" not in Path(f"/proc/{pid}/environ").read_text()
    assert (run.folder / "headers").stat().st_mode & 0o077 == 0
    assert Run(tmp_path, "lab").note("restarts haproxy", "lab-lb1")
    told = Run(tmp_path, "lab").stop()
    assert told["run"] == begun.run == run.settings.run
    assert told["failed"] == {}
    assert told["ok"] >= 20
    posts = run.posts()
    assert posts
    assert posts["distinct"] == told["posted_ok"]
    report = evidence.build(RUN, told, run.events(), posts, evidence.BARS, time.time())
    assert report["duplicate_posts"] == posts["posts"] - posts["distinct"] > 0
    assert all(key.startswith(begun.run) for key in report["duplicates"])
    assert [noted["what"] for noted in report["events"]] == ["restarts haproxy"]
    page(report)
    run.clear()
    assert not run.exists


def test_a_run_that_was_left_is_found_and_ended(tmp_path: Path, stand_in: dict[str, str]) -> None:
    run = Run(tmp_path, "lab")
    run.begin(settings(stand_in), "", PROBE, 1, 30)
    pid = run.progress()["pid"]
    assert Run(tmp_path, "lab").exists
    assert Run(tmp_path, "lab").stop()["ok"]
    os.waitpid(pid, 0)


def test_a_platform_that_does_not_serve_is_told_and_nothing_runs(
    tmp_path: Path, stand_in: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "lab")

    def once_it_has_told(enough: Callable[[], bool], seconds: float) -> bool:
        """Lose patience only after the probe's first word: its start takes as long as the machine lets it."""
        return wait(lambda: bool(run.progress().get("failed")), 30) and wait(enough, seconds)

    monkeypatch.setattr(evidence_probe, "wait", once_it_has_told)
    asked = settings(stand_in, url=f"{stand_in['url']}/nothing", post_url="")
    with pytest.raises(EvidenceError, match=r"seen 0 successes and the failures \{'status-404': \d+\} within 0.5 s"):
        run.begin(asked, "t", PROBE, 10, 0.5)
    assert not run.exists


def test_a_probe_that_cannot_start_says_why(tmp_path: Path, stand_in: dict[str, str]) -> None:
    run = Run(tmp_path, "lab")
    with pytest.raises(EvidenceError, match=r"the probe did not start: .*wanted: 0 < --rate <= 2000"):
        run.begin(settings(stand_in, rate=0), "t", PROBE, 10, 30)
    assert not run.exists


def test_a_killed_probe_leaves_its_last_totals(tmp_path: Path, stand_in: dict[str, str]) -> None:
    run = Run(tmp_path, "lab")
    run.begin(settings(stand_in), "t", PROBE, 5, 30)
    pid = run.progress()["pid"]
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    with pytest.raises(EvidenceError, match=r"no account: it said nothing; the last that it told were \d+ successes"):
        run.stop()
