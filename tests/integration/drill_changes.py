"""make drill-changes: every planned change of the lab under load; no request fails, no POST is carried out twice.

The playbooks themselves send 300 requests a second through the virtual address while they run (roles/evidence) and
write `reports/<operation>-<UTC>.json`; where a playbook has no such verb, this drill does it. The releases are the
reference application under other versions, and three that are broken on purpose. The lab is started where it is not
up; what it held stays, but the release. About 45 minutes; CHANGES_SEED=… repeats the points at which the control
process is killed, CHANGES_KILLS=10 how many.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest

SEED = int(os.environ.get("CHANGES_SEED", str(time.time_ns() % 1_000_000)))
KILLS = int(os.environ.get("CHANGES_KILLS", "10"))
RATE = 300
TOTAL = {"requests": 0, "failed": 0, "duplicate_posts": 0}
ACTIVE = "/etc/haproxy/maps/active.map"
APP = ("--tags", "app")
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
        "duration_s",
        "p99_ms",
        "late_ms",
    )
    lab.record(f"changes_{operation}", **{key: report[key] for key in keys})
    assert report["requests"] > 0
    assert report["failed"] <= failed, report["failures"][:10]
    assert report["duplicate_posts"] == 0
    # Less what the probe itself was held up by.
    assert report["longest_outage_ms"] <= gap_ms


def live() -> str:
    """Return the live slot, as both balancers' disks have it."""
    said = {lab.ssh(host, f"awk '$1 == \"active\" {{print $2}}' {ACTIVE}") for host in lab.BALANCERS}
    assert len(said) == 1, f"the balancers disagree: {said}"
    return said.pop().removeprefix("be_")


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


def settled() -> None:
    """Nothing is left drained, out, or without a holder."""
    for host in lab.APPS:
        assert lab.ssh(host, "ls /run/pst/*/drain 2>/dev/null", check=False) == "", f"{host} is left drained"
    lab.eventually("a holder of every lease", lambda: all(colour for colour, _ in traders().values()), 90)
    lab.wait_until_all_serve()


def test_a_release_goes_blue_green_forth_and_back(sources: Callable[..., list[str]]) -> None:
    old, before = live(), traders()
    with watched("blue-green"):
        lab.succeed(lab.playbook("blue-green", *sources("next")))
    assert live() != old
    assert served() == {(live(), version("next"))}
    after = traders()
    assert {colour for colour, _ in after.values()} == {live()}
    assert all(after[name][1] > before[name][1] for name in before), "trading goes on under new epochs"
    with watched("rollback"):
        lab.succeed(lab.playbook("rollback"))
    assert live() == old
    assert {colour for colour, _ in served()} == {old}
    settled()


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
    with watched("rolling-upgrade"):
        run = lab.playbook("rolling-upgrade", *APP, *broken)
    assert run.code != 0
    assert "runs" in run.output
    assert "again, in traffic and" in run.output
    assert served() == old
    settled()


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
    old, idle = served(), {"blue": "green", "green": "blue"}[live()]
    manifest = f"/srv/pst/{idle}/manifest.json"
    other = 's/"content": "..../"content": "0000/'
    lab.ssh("lab-app3", f"cp {manifest} /root/manifest.json && sed -i '{other}' {manifest}")
    lab.ssh("lab-app3", f"systemctl restart pst-app@{idle}")
    try:
        with watched("blue-green"):
            run = lab.playbook("blue-green", "-e", f"deploy_release={version('tampered')}")
        assert run.code != 0
        assert "one content" in run.output, run.output[-3000:]
        assert served() == old
    finally:
        lab.ssh("lab-app3", f"cat /root/manifest.json > {manifest}; systemctl restart pst-app@{idle}")
    settled()


def test_a_second_run_is_refused_and_a_stale_lock_is_broken_on_demand(sources: Callable[..., list[str]]) -> None:
    assert lab.interrupted("rolling-upgrade", 45, *APP, *sources("locked"))
    run = lab.playbook("blue-green", *sources("second"))
    assert run.code != 0
    assert "rolling-upgrade" in run.output
    assert "run_break_lock" in run.output
    broken = ("-e", "run_break_lock='its control node was lost'")
    lab.succeed(lab.playbook("rolling-upgrade", *APP, *sources("locked"), *broken))
    assert served() == {(live(), version("locked"))}
    settled()


def test_outside_the_window_nothing_starts(sources: Callable[..., list[str]]) -> None:
    day = time.strftime("%a", time.gmtime(time.time() + 3 * 86400))
    windows = json.dumps({"site_maintenance_windows": [{"days": [day], "start": "03:00", "end": "04:00"}]})
    run = lab.playbook("rolling-upgrade", *APP, *sources("late"), "-e", windows)
    assert run.code != 0
    assert f"{day}" in run.output
    assert "03:00" in run.output
    assert "site_maintenance_override" in run.output
    lab.succeed(lab.playbook("rolling-upgrade", *APP, "--check", "-e", windows))


@pytest.mark.parametrize("number", range(KILLS))
def test_a_rolling_upgrade_killed_at_a_random_point_is_resumed(number: int, sources: Callable[..., list[str]]) -> None:
    print(f"CHANGES_SEED={SEED}")
    chance = random.Random(SEED + number)
    given = (*APP, *sources(f"killed{number}"), "-e", "evidence_enabled=false")
    point = round(chance.uniform(10, 120), 1)
    with watched_whole(f"killed-{number}"):
        killed = lab.interrupted("rolling-upgrade", point, *given)
        lab.succeed(lab.playbook("rolling-upgrade", *given, "-e", "run_break_lock='the drill killed it'"))
    lab.record(f"changes_killed_{number}", point=point, killed=killed, seed=SEED)
    assert served() == {(live(), version(f"killed{number}"))}
    settled()


@contextlib.contextmanager
def watched_whole(operation: str, *, gap_ms: float = 1000) -> Iterator[None]:
    """Send requests through the virtual address, whatever runs, and hold what became of them against the bars."""
    url = f"https://trading.{lab.DOMAIN}/version"
    where = (
        "--connect",
        lab.VIP,
        "--ca",
        str(lab.STATE / "pki" / "ca.crt"),
        f"--rate={RATE}",
        "--duration=1800",
        "--new-share=0.1",
    )
    account = lab.REPORTS / f".{operation}.json"
    with lab.tool(lab.PROBE, url, *where, "--output", str(account)) as probe:
        time.sleep(1)  # requests before the change, so that a gap has two sides
        yield
        probe.process.terminate()
        probe.finish()
    seen = json.loads(account.read_text())
    account.unlink()
    report = {
        "requests": seen["sent"],
        "failed": sum(seen["failed"].values()),
        "failures": seen["failures"],
        "longest_gap_ms": round(1000 * seen["longest_gap_s"]),
        "longest_outage_ms": round(1000 * max(gap["seconds"] - gap["own"] for gap in seen["gaps"])),
        "duplicate_posts": 0,
        "duration_s": seen["duration_s"],
        "p99_ms": seen["p99_ms"],
        "late_ms": seen["late_ms"],
    }
    path = lab.REPORTS / f"{operation}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    held(operation, report, gap_ms=gap_ms)


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


def test_the_balancers_change_places() -> None:
    holder = lab.vip_holder()
    with watched_whole("vip-move", gap_ms=1000):
        lab.ssh(holder, "pst-lb release maintenance")
        lab.eventually("the other balancer", lambda: lab.vip_holder() != holder, 10)
        lab.ssh(holder, "pst-lb restore maintenance")


def test_the_load_was_enough() -> None:
    lab.record("changes_total", **TOTAL)
    assert TOTAL["requests"] >= 100_000 or KILLS < 10
    assert TOTAL["failed"] == 0
    assert TOTAL["duplicate_posts"] == 0
