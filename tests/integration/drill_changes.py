"""make drill-changes: every planned change of the lab under load; no request fails, no POST is carried out twice.

The playbooks themselves send 300 requests a second through the virtual address while they run (roles/evidence) and
write `reports/<operation>-<UTC>.json`; where a playbook has no such verb, this drill does the same. The releases are
the reference application under other versions, and three that are broken on purpose. The lab is started where it is
not up; what it held stays, but the release. About an hour; CHANGES_SEED=… repeats the points at which the control
process is killed, CHANGES_KILLS=10 how many.

Figures that no report has are in reports/lab.json, `changes_*`: switch_ms (both colours live), vip_move_failed and
vip_move_gap_ms, redis_handover, the time of three nodes against that of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import lab
import pandas
import pytest
from colours import Colours, both_live_ms, moved_after_s
from exchange_calendars import get_calendar
from test_2_faults import redis_master, redis_writer
from test_2_faults import (
    test_redis_master_is_killed_and_nothing_acknowledged_is_lost as test_redis_master_is_killed,  # noqa: F401 run here too
)

from ansible_collections.pst.platform.plugins.module_utils import evidence
from ansible_collections.pst.platform.plugins.module_utils.evidence_probe import Run, Settings

SEED = int(os.environ.get("CHANGES_SEED", str(time.time_ns() % 1_000_000)))
KILLS = int(os.environ.get("CHANGES_KILLS", "10"))
RATE = 300
TOTAL = {"requests": 0, "failed": 0, "duplicate_posts": 0}
ACTIVE = "/etc/haproxy/maps/active.map"
APP = ("--tags", "app")
QUIET = ("-e", "evidence_enabled=false")  # the drill sends the requests: a killed playbook would leave its own behind
SOAK = ("-e", "app_soak_seconds=2")  # a short watch of each node: the points of the kills shall meet the work
BREAK = ("-e", "run_break_lock='the drill killed it'")
MOVES = 6
HANDOVERS = 3
STAMP = time.strftime("%H%M%S")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Make a release of the reference application, changed where asked; returns the arguments that deploy it."""

    def made(name: str, change: Callable[[Path], None] = lambda _tree: None) -> list[str]:
        tree = tmp_path_factory.getbasetemp() / name
        if not tree.exists():
            shutil.copytree(lab.ROOT / "tests" / "reference_app", tree)
            (tree / "release.txt").write_text(f"{name}\n")
            change(tree)
        given = ("app_release_audit=off", f"app_release_source={tree}", f"app_release_version={version(name)}")
        return [word for setting in given for word in ("-e", setting)]

    return made


def version(name: str) -> str:
    return f"{name}.{STAMP}"


def reports(operation: str) -> set[Path]:
    return set(lab.REPORTS.glob(f"{operation}-*.json"))


@contextlib.contextmanager
def watched(operation: str, *, failed: int = 0, gap_ms: float = 1000) -> Iterator[dict[str, Any]]:
    """Hold the report that a playbook writes against the bars, and add it up."""
    before = reports(operation)
    report: dict[str, Any] = {}
    yield report
    (new,) = reports(operation) - before
    report |= json.loads(new.read_text())
    held(operation, report, failed=failed, gap_ms=gap_ms)


def held(operation: str, report: dict[str, Any], *, failed: int = 0, gap_ms: float = 1000) -> None:
    for key in TOTAL:
        assert report[key] is not None, f"{operation}: {key} is not known"
        TOTAL[key] += report[key]
    keys = (
        "requests",
        "failed",
        "longest_gap_ms",
        "longest_outage_ms",
        "duplicate_posts",
        "lost_posts",
        "duration_s",
        "p99_ms",
        "late_ms",
    )
    lab.record(f"changes_{operation}", **{key: report[key] for key in keys})
    assert report["requests"] >= 0.5 * RATE * report["duration_s"], "most of the requests were not sent"
    assert report["failed"] <= failed, report["failures"][:10]
    assert report["duplicate_posts"] == 0
    assert report["lost_posts"] == 0
    # Less what the probe itself was held up by.
    assert report["longest_outage_ms"] <= gap_ms


@contextlib.contextmanager
def requests(operation: str) -> Iterator[dict[str, Any]]:
    """Send requests as roles/evidence does while the body runs; the report is in the dictionary afterwards."""
    run = Run(lab.REPORTS / ".drill", "lab")
    name = f"https://api.trading.{lab.DOMAIN}"
    asked = Settings(
        operation=operation,
        site="lab",
        url=f"{name}/version",
        post_url=f"{name}/api/v1/probe",
        address=lab.VIP,
        ca_file=str(lab.STATE / "pki" / "ca.crt"),
        rate=RATE,
        max_seconds=3600,
        post_share=0.05,
        new_share=0.1,
    )
    sent = run.begin(asked, lab.secret("app_agent_token"), lab.PROBE, first=RATE, patience_s=30)
    report: dict[str, Any] = {}
    try:
        yield report
    finally:
        ended = time.time()
        account = run.stop()
        known = {"run": sent.run, "operation": operation, "site": "lab", "rate": RATE}
        report |= evidence.build(known, account, run.events(), run.posts(), {}, ended)
        report["started_s"] = account["started"]
        (lab.REPORTS / f"{evidence.file_name(report)}.json").write_text(json.dumps(report, indent=1) + "\n")
        run.clear()


@contextlib.contextmanager
def watched_whole(operation: str, *, gap_ms: float = 1000) -> Iterator[None]:
    """Send requests through the virtual address, whatever runs, and hold what became of them against the bars."""
    with requests(operation) as report:
        yield
    held(operation, report, gap_ms=gap_ms)


def live() -> str:
    """Return the live slot, as both balancers' disks have it."""
    said = {lab.ssh(host, f"awk '$1 == \"active\" {{print $2}}' {ACTIVE}") for host in lab.BALANCERS}
    assert len(said) == 1, f"the balancers disagree: {said}"
    return said.pop().removeprefix("be_")


def idle() -> str:
    return {"blue": "green", "green": "blue"}[live()]


def served(count: int = 12) -> set[tuple[str, str]]:
    """Return slot and release of so many answers through the virtual address."""
    answers = [json.loads(lab.ask("/version")[1]) for _ in range(count)]
    return {(answer["colour"], answer["release"]) for answer in answers}


def traders() -> dict[str, tuple[str, int]]:
    """Return slot and epoch of each lease, as MongoDB has them."""
    found = {}
    for placement in ("trading", "strategies", "operations"):
        lease = json.loads(lab.ssh("lab-app1", f"pst-trading lease show --json --placement {placement}"))
        found[placement] = ((lease["holder"] or {}).get("colour", ""), lease["epoch"])
    return found


STAT = (
    'import socket; s = socket.socket(socket.AF_UNIX); s.connect("/run/haproxy/admin.sock"); '
    's.sendall(b"show stat\\n"); print(s.makefile().read())'
)


def servers(balancer: str, slot: str) -> dict[str, str]:
    """Return what a balancer says of each application node in a slot."""
    lines = lab.ssh(balancer, f"python3 -c '{STAT}'").splitlines()
    rows = (line.split(",") for line in lines if line.startswith(f"be_{slot},"))
    return {row[1]: row[17] for row in rows if row[1] != "BACKEND"}


def drained() -> list[str]:
    """Return all that a run could have left out of something: requests, trading, or the virtual address."""
    left = []
    for host in lab.APPS:
        if lab.ssh(host, "ls /run/pst/*/drain 2>/dev/null", check=False):
            left.append(f"{host} drains")
        guard = json.loads(lab.ssh(host, "pst-trading status --json"))["guard"] or {}
        left += [f"{host} stays out of {name}" for name, seen in guard.items() if seen["stays_out"]]
    for balancer in lab.BALANCERS:
        seen = servers(balancer, live())
        left += [f"{balancer} has {host} {seen.get(host)}" for host in lab.APPS if seen.get(host) != "UP"]
        left += [f"{balancer} is out for {reason}" for reason in lb_state(balancer)["forbidden"]]
    return left


def lb_state(balancer: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(lab.ssh(balancer, "pst-lb state"))
    return state


def settled(everything: bool = True) -> None:
    """Nothing is left drained, out, or without a holder; everything serves, or all but the idle slot."""
    lab.eventually("a holder of every lease", lambda: all(colour for colour, _ in traders().values()), 90)
    # A balancer notices within some seconds; nothing of it waits for somebody.
    lab.eventually("no member left drained", lambda: not (left := drained()) or print(left), 30, 2)
    if everything:
        lab.wait_until_all_serve()


def test_a_release_goes_blue_green_forth_and_back(sources: Callable[..., list[str]]) -> None:
    old, before = live(), traders()
    with Colours() as clients, watched("blue-green") as report:
        lab.succeed(lab.playbook("blue-green", *sources("next")))
    assert live() != old
    switched("blue-green", clients, report)
    assert served() == {(live(), version("next"))}
    after = traders()
    assert {colour for colour, _ in after.values()} == {live()}
    assert all(after[name][1] > before[name][1] for name in before), "trading goes on under new epochs"
    with Colours() as clients, watched("rollback") as report:
        lab.succeed(lab.playbook("rollback"))
    assert live() == old
    switched("rollback", clients, report)
    assert {colour for colour, _ in served()} == {old}
    settled()


def switched(operation: str, clients: Colours, report: dict[str, Any]) -> None:
    """Both colours are live for less than 50 ms; all traffic has moved 2 s after the decision to move it."""
    new = live()
    decided = sorted(event["at"] for event in report["events"] if event["what"] == f"traffic goes to slot {new}")
    assert decided, report["events"]
    at = datetime.fromisoformat(decided[0]).timestamp()
    both, after = both_live_ms(clients.answers, new), moved_after_s(clients.answers, new, at)
    figures = {"switch_ms": both, "switch_bar_ms": 50, "decided_to_moved_s": after, "moved_bar_s": 2}
    lab.record(f"changes_{operation}_switch", **figures, answers=len(clients.answers), errors=clients.errors[:5])
    assert {answer.colour for answer in clients.answers} == {"blue", "green"}, "the switch was not seen"
    assert any(answer.asked > at - 0.2 and answer.colour != new for answer in clients.answers), "too few were asked"
    assert not clients.errors
    assert both < 50
    assert after <= 2


def test_site_yml_leaves_the_release_and_the_slot_as_they_are(sources: Callable[..., list[str]]) -> None:
    before = served()
    run = lab.succeed(lab.playbook("site", *sources("unwanted")))
    assert run.total("changed") == 0, run.changed_tasks()
    assert served() == before


def test_a_canary_gets_all_the_traffic_step_by_step(sources: Callable[..., list[str]]) -> None:
    with watched("canary"):
        lab.succeed(lab.playbook("canary", *sources("canary"), "-e", "canary_step_seconds=15"))
    assert served() == {(live(), version("canary"))}
    settled()


def test_a_rolling_upgrade_of_all_tiers(sources: Callable[..., list[str]]) -> None:
    with watched("rolling-upgrade"):
        changed = (*sources("rolled"), "-e", "mongodb_slow_operation_ms=140")
        lab.succeed(lab.playbook("rolling-upgrade", *changed, timeout=1800))
    assert served() == {(live(), version("rolled"))}
    settled()
    lab.succeed(lab.playbook("site"))  # back to the inventory's settings


def never_ready(tree: Path) -> None:
    app = tree / "dashboard" / "app.py"
    app.write_text(app.read_text() + "\nraise SystemExit('broken on purpose')\n")


def sometimes_wrong(tree: Path) -> None:
    """Answer one request in twenty with 500, once there are many."""
    app = tree / "dashboard" / "app.py"
    broken = (
        "\nfrom itertools import count\n\nREQUESTS = count()\n\n\n@app.before_request\n"
        "def sometimes_wrong():\n    number = next(REQUESTS)\n"
        "    return ('broken on purpose', 500) if number > 20 and number % 20 == 0 else None\n\n\n"
    )
    app.write_text(app.read_text().replace('if __name__ == "__main__":', f'{broken}if __name__ == "__main__":'))


def test_a_release_that_is_never_ready_gets_no_traffic(sources: Callable[..., list[str]]) -> None:
    old, before = served(), traders()
    broken = (*sources("broken", never_ready), "-e", "app_health_timeout_seconds=15")
    with watched("blue-green"):
        run = lab.playbook("blue-green", *broken)
    assert run.code != 0
    assert served() == old
    assert traders() == before
    # It is tried for ever, and here all hosts share two cores: its starts would be the load of what follows.
    slot = idle()
    for host in lab.APPS:
        lab.ssh(host, f"systemctl stop pst-app@{slot} pst-dashboard@{slot}")
    with watched("rolling-upgrade"):
        run = lab.playbook("rolling-upgrade", *APP, *broken)
    assert run.code != 0
    assert "runs" in run.output
    assert "again, in traffic and" in run.output
    assert served() == old
    settled(everything=False)


def test_a_canary_with_errors_is_taken_back(sources: Callable[..., list[str]]) -> None:
    old = served()
    pages = ("https://" + f"trading.{lab.DOMAIN}/", "--connect", lab.VIP, "--ca", str(lab.STATE / "pki" / "ca.crt"))
    with lab.tool(lab.PROBE, *pages, "--rate=60", "--duration=400") as users:
        with watched("canary"):
            run = lab.playbook("canary", *sources("wrong", sometimes_wrong), "-e", "canary_step_seconds=30")
        users.process.terminate()
        seen = users.finish()
    assert run.code != 0
    assert "error" in run.output
    assert served() == old
    errors = [failure["at"] for failure in seen["failures"]]
    assert errors, "the canary's errors have to reach clients, or nothing was tested"
    undone = max(errors) - min(errors)
    lab.record("changes_canary_breach", errors=len(errors), undone_after_s=round(undone, 1), bar_s=60)
    assert undone <= 60
    settled()


def test_a_node_with_another_artefact_keeps_the_release_from_traffic(sources: Callable[..., list[str]]) -> None:
    lab.succeed(lab.playbook("blue-green", *sources("tampered")))
    lab.succeed(lab.playbook("rollback"))
    old, slot = served(), idle()
    manifest = f"/srv/pst/{slot}/manifest.json"
    other = 's/"content": "..../"content": "0000/'
    lab.ssh("lab-app3", f"cp {manifest} /root/manifest.json && sed -i '{other}' {manifest}")
    lab.ssh("lab-app3", f"systemctl restart pst-app@{slot}")
    try:
        with watched("blue-green"):
            run = lab.playbook("blue-green", "-e", f"deploy_release={version('tampered')}")
        assert run.code != 0
        assert "one content" in run.output, run.output[-3000:]
        assert served() == old
    finally:
        lab.ssh("lab-app3", f"cat /root/manifest.json > {manifest}; systemctl restart pst-app@{slot}")
    settled()


def begun(playbook: str) -> bool:
    """Tell whether the newest run is that of this playbook, and has the lock."""
    return any(line["call"] == "begin" and line["done"] and line.get("playbook") == playbook for line in lab.journal())


def proven() -> list[str]:
    """Return the hosts that the newest run has proven."""
    return [line["host"] for line in lab.journal() if line["call"] == "step" and line.get("step_state") == "proven"]


def started(slot: str) -> dict[str, str]:
    """Return when the agent of this slot was last started on each node."""
    show = f"systemctl show --value --property=ExecMainStartTimestampMonotonic pst-app@{slot}"
    return {host: lab.ssh(host, show) for host in lab.APPS}


HELD = re.compile(r"run_lock: seen run \S+ of rolling-upgrade .*? since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.DOTALL)


def unwrapped(run: lab.Run) -> str:
    """Return what a run said, without what the width of the screen has done to it."""
    return re.sub(r"\s+", " ", run.output)


def test_a_second_run_is_refused_and_a_stale_lock_is_broken_on_demand(sources: Callable[..., list[str]]) -> None:
    given = (*APP, *QUIET, *sources("locked"))
    first = lab.start_playbook("rolling-upgrade", *given, output=subprocess.DEVNULL)
    try:
        lab.eventually("the first run has the lock", lambda: begun("rolling-upgrade"), 120)
        site = lab.playbook("site")
        second = lab.playbook("blue-green", *QUIET, *sources("second"))
        assert first.poll() is None, "the first run was over before the second one was refused: nothing was tested"
        seen = (first.pid, site, second)
    finally:
        if first.poll() is None:
            lab.kill(first)
    for run in seen[1:]:
        assert run.code != 0
        assert HELD.search(unwrapped(run)), run.output[-3000:]
        assert "is alive" in unwrapped(run)
    assert site.total("changed") == 0
    # Its process is gone, its lock is not: only who says so goes on.
    for name, arguments in (("blue-green", (*QUIET, *sources("second"))), ("site", ())):
        run = lab.playbook(name, *arguments)
        assert run.code != 0
        assert HELD.search(unwrapped(run)), run.output[-3000:]
        assert "does not exist any more" in unwrapped(run)
    lab.succeed(lab.playbook("rolling-upgrade", *given, *BREAK))
    assert served() == {(live(), version("locked"))}
    settled()


def test_outside_the_window_or_with_a_market_open_nothing_starts(sources: Callable[..., list[str]]) -> None:
    day = time.strftime("%a", time.gmtime(time.time() + 3 * 86400))
    windows = json.dumps({"site_maintenance_windows": [{"days": [day], "start": "03:00", "end": "04:00"}]})
    before = started(live())
    run = lab.playbook("rolling-upgrade", *APP, *sources("late"), "-e", windows)
    assert run.code != 0
    assert re.search(rf"Next allowed: {day} \d{{4}}-\d\d-\d\d 03:00", unwrapped(run)), run.output[-3000:]
    assert "site_maintenance_override" in run.output
    now = pandas.Timestamp.now("UTC").floor("min")
    # There always is one; where only the last is open, no next time is known.
    exchange = next(
        code for code in ("CMES", "XTKS", "XHKG", "XLON", "XTAE", "24/7") if get_calendar(code).is_open_on_minute(now)
    )
    calendars = json.dumps({"site_maintenance_calendars": [exchange]})
    run = lab.playbook("rolling-upgrade", *APP, *sources("late"), "-e", calendars)
    assert run.code != 0
    assert exchange in run.output
    assert ("Next allowed: " in unwrapped(run)) == (exchange != "24/7"), run.output[-3000:]
    assert started(live()) == before
    lab.succeed(lab.playbook("rolling-upgrade", *APP, "--check", "-e", windows))


DURATION: list[float] = []


def test_three_nodes_take_no_more_than_four_times_as_long_as_one(sources: Callable[..., list[str]]) -> None:
    """One: a run that was killed when it had two of the three; the next one leaves those as they are."""
    three = lab.succeed(lab.playbook("rolling-upgrade", *APP, *QUIET, *SOAK, *sources("three"))).seconds
    DURATION.append(three)
    process = lab.start_playbook("rolling-upgrade", *APP, *QUIET, *SOAK, *sources("one"), output=subprocess.DEVNULL)
    try:
        lab.eventually("two nodes are done", lambda: begun("rolling-upgrade") and len(proven()) == 2, 300, 0.1)
    finally:
        lab.kill(process)
    done, before = proven(), started(live())
    one = lab.succeed(lab.playbook("rolling-upgrade", *APP, *QUIET, *SOAK, *sources("one"), *BREAK)).seconds
    after = started(live())
    changed = [host for host in lab.APPS if after[host] != before[host]]
    lab.record(
        "changes_three_nodes_against_one",
        three_s=round(three, 1),
        one_s=round(one, 1),
        ratio=round(three / one, 2),
        bar=4,
    )
    assert sorted([*done, *changed]) == sorted(lab.APPS), "the next run changes what was not proven, and nothing else"
    assert served() == {(live(), version("one"))}
    assert three <= 4 * one
    settled()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_rolling_upgrade_killed_at_a_random_point_is_resumed(number: int, sources: Callable[..., list[str]]) -> None:
    print(f"CHANGES_SEED={SEED}")
    point = random.Random(SEED + number).uniform(0.02, 0.98)
    assert DURATION, "how long a run takes is measured by the test before"
    seconds = point * DURATION[0]
    with watched_whole(f"killed-{number}"):
        for attempt in range(4):  # this run may be faster than the one that was timed
            name = f"killed{number}{'abcd'[attempt]}"
            given = (*APP, *QUIET, *SOAK, *sources(name))
            if killed := lab.interrupted("rolling-upgrade", seconds, *given):
                break
            seconds *= 0.8
        assert killed, "it was over each time before it could be killed"
        had_lock = begun("rolling-upgrade") and not any(line["call"] == "end" for line in lab.journal())
        lost = lab.journal()[-1]["run"]
        done, before, slot = proven() if had_lock else [], started(live()), live()
        lab.succeed(lab.playbook("rolling-upgrade", *given, *BREAK))
        resumed = next(line for line in lab.journal() if line["call"] == "begin")
    after = started(slot)
    lab.record(
        f"changes_killed_{number}",
        share=round(point, 3),
        after_s=round(seconds, 1),
        had_lock=had_lock,
        proven=done,
        seed=SEED,
    )
    if had_lock:
        assert resumed["resumed_from"] == lost, resumed
        assert sorted(step["host"] for step in resumed.get("proven", [])) == sorted(done)
    assert [host for host in done if after[host] != before[host]] == [], "what was proven is not done again"
    assert served() == {(live(), version(name))}
    settled()


def test_a_changed_setting_of_the_balancers_is_reloaded() -> None:
    with watched_whole("balancer-reload"):
        lab.succeed(lab.playbook("site", "--tags", "load_balancer", "-e", "load_balancer_timeout_seconds=61"))
    with watched_whole("balancer-reload-back"):
        lab.succeed(lab.playbook("site", "--tags", "load_balancer"))


def test_certificates_are_rotated() -> None:
    before = lab.ssh("lab-app1", "sha256sum /etc/pst/pki/app/app.crt")
    with watched_whole("certificates"):
        lab.succeed(lab.playbook("site", "-e", '{"pki_force_renew": ["*/*"]}', timeout=1800))
    assert lab.ssh("lab-app1", "sha256sum /etc/pst/pki/app/app.crt") != before
    settled()


def forwarded(balancer: str) -> int:
    """Return how many packets were sent on to the other balancer since keepalived was started."""
    shown = json.loads(lab.ssh(balancer, "nft -j list counter ip pst_second_chance forwarded"))["nftables"]
    return next(int(item["counter"]["packets"]) for item in shown if "counter" in item)


def gap_at(report: dict[str, Any], begin: float, end: float) -> float:
    """Return the longest gap (ms, less what the probe was held up by) that reaches into this time; where all of the
    gaps that the report has lie elsewhere, the shortest of them: it was not longer than that."""
    start = report["started_s"]
    there = [
        gap["seconds"] - gap["own"]
        for gap in report["gaps"]
        if start + gap["at"] <= end and start + gap["at"] + gap["seconds"] >= begin
    ]
    return round(1000 * max(there, default=min(gap["seconds"] for gap in report["gaps"])), 1)


def test_the_balancers_change_places() -> None:
    """Forth and back. Counted apart: an address that moves breaks connections, unless they are carried on."""
    states = {balancer: lb_state(balancer) for balancer in lab.BALANCERS}
    assert all(state["second_chance"] for state in states.values()), states
    moves = []
    for _ in range(MOVES):
        holder = lab.vip_holder()
        (other,) = {*lab.BALANCERS} - {holder}
        before = forwarded(other)
        with requests("vip-move") as report:
            told = json.loads(lab.ssh(holder, "pst-lb release maintenance", timeout=120))
            assert lab.vip_holder() == other
            lab.ssh(holder, "pst-lb restore maintenance")
            time.sleep(1)
        moved = told["moved_at"]
        moves.append(
            {
                "from": holder,
                "requests": report["requests"],
                "vip_move_failed": report["failed"],
                "vip_move_gap_ms": gap_at(report, moved, moved + told["move_ms"] / 1000 + 0.5),
                "duplicate_posts": report["duplicate_posts"],
                "forwarded_packets": forwarded(other) - before,
                **{key: told[key] for key in ("move_ms", "open", "finish_seconds", "broken")},
            }
        )
        print(moves[-1], report["failures"][:5])
        lab.eventually("the other balancer is ready", lambda holder=holder: lb_state(holder)["vrrp"] == "BACKUP", 15)
    gaps = sorted(move["vip_move_gap_ms"] for move in moves)
    figures = {
        "vip_move_failed": max(move["vip_move_failed"] for move in moves),
        "vip_move_gap_ms": gaps[len(gaps) // 2],
    }
    lab.record("changes_vip_move", **figures, failed_bar=2, gap_bar_ms=50, longest_gap_ms=gaps[-1], moves=moves)
    assert all(move["forwarded_packets"] > 0 for move in moves), "no connection was open: nothing was tested"
    assert all(move["vip_move_failed"] <= 2 for move in moves)
    assert all(move["duplicate_posts"] == 0 for move in moves)
    assert figures["vip_move_gap_ms"] <= 50
    assert gaps[-1] <= 50 * lab.SLACK


def test_redis_is_handed_over() -> None:
    """By a client that asks the Sentinels, as the applications do."""
    seen = []
    for _ in range(HANDOVERS):
        master = lab.eventually("one master", redis_master)
        with redis_writer(25, "--patience", "10") as writer:
            time.sleep(5)
            lab.succeed(lab.verb(master, "redis", "handover"))
            result = writer.finish()
        assert redis_master() != master
        seen.append({key: result[key] for key in ("acked", "failed", "retried", "lost", "longest_gap_s")})
    gaps = sorted(one["longest_gap_s"] for one in seen)
    lab.record(
        "redis_handover", bar_s=1, aim_s=0.25, median_gap_s=gaps[len(gaps) // 2], longest_gap_s=gaps[-1], handovers=seen
    )
    assert all((one["lost"], one["failed"]) == (0, 0) for one in seen)
    assert all(one["acked"] > 300 for one in seen)
    assert gaps[len(gaps) // 2] <= 1
    assert gaps[-1] <= 1 * lab.SLACK


def test_the_load_was_enough() -> None:
    lab.record("changes_total", **TOTAL)
    assert TOTAL["requests"] >= 100_000 or KILLS < 10
    assert TOTAL["failed"] == 0
    assert TOTAL["duplicate_posts"] == 0
