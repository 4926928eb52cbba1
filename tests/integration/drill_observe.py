"""make drill-observe: a fault is injected for real, its alert fires, somebody is told, and told again when it is over.

Waiting times are compressed (OBSERVE_SCALE, 0.1: a minute is six seconds), by the role's own variable; so is how long a
rule looks back. The causes, and what is not that of production: alert_causes.py. Notifications arrive at a webhook on
the control node. For each alert the report says when Prometheus saw it firing, when the message arrived, when the end
of it did, and what else was told meanwhile. The lab is started where it is not up, and left with its own settings.
OBSERVE_ONLY=RedisDown,UnitFailed runs a part. About 45 minutes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lab
import pytest
import trading
from alert_causes import (
    CAUSES,
    EVALUATE_S,
    FAIL,
    FAILED_NO_MORE,
    GATEWAY,
    MONITORING,
    NOT_INJECTED,
    REFUSES,
    SCALE,
    SCRAPE_S,
    THRESHOLDS,
    Alert,
    Cause,
    all_of,
    ask,
    on,
    query,
)

QUIET_S = float(os.environ.get("OBSERVE_QUIET_S", str(3600 * SCALE)))
ONLY = {name for name in os.environ.get("OBSERVE_ONLY", "").split(",") if name}
GROUP_WAIT_S = 1
CONTROL, PORT = "10.78.0.1", 9097
PATIENCE_S = 180
CALM_S = 400  # a job that a fault has ended is failed until its next turn: a part of the oplog comes every 5 minutes
# A balancer of the lab, or a node exporter, that is held back by the others on its machine is no false alarm of a rule.
LOAD = {"HostHighCpuLoad", "HostOutOfMemory", "HostOutOfDiskSpace", "HostClockOff"}

Key = tuple[str, str]  # name and host of an alert


@dataclass(frozen=True)
class Told:
    """One alert of a message."""

    at: float
    key: Key
    status: str


@dataclass
class Sink:
    """What Alertmanager has sent, and when."""

    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def told(self, since: float) -> list[Told]:
        return [
            Told(at, key_of(alert["labels"]), alert["status"])
            for at, message in list(self.messages)
            if at >= since
            for alert in message["alerts"]
        ]

    def of(self, key: Key, since: float) -> list[Told]:
        return [one for one in self.told(since) if one.key == key]

    def is_over(self, key: Key, since: float) -> bool:
        """Tell whether the last message has none of them firing: a message is about all alerts of a name."""
        told = self.of(key, since)
        return all(one.status == "resolved" for one in told if one.at == told[-1].at)


def key_of(labels: dict[str, str]) -> Key:
    return labels["alertname"], labels.get("host", "")


@contextlib.contextmanager
def listening() -> Iterator[Sink]:
    sink = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/alerts":
                sink.messages.append((time.monotonic(), json.loads(body)))
            self.send_response(400 if self.path == "/second" and REFUSES.is_set() else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base has it
            pass

    server = http.server.ThreadingHTTPServer((CONTROL, PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()


def monitoring(*arguments: str) -> None:
    lab.succeed(lab.playbook("site", "--tags", "monitoring", "--limit", MONITORING, *arguments))


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """Compressed rules and two webhooks, for as long as the drill takes."""
    settings = {
        "monitoring_alert_webhooks": [{"url": f"http://{CONTROL}:{PORT}/{path}"} for path in ("alerts", "second")],
        "monitoring_alert_time_scale": SCALE,
        "monitoring_alert_group_wait": GROUP_WAIT_S,
        "monitoring_alert_group_interval": 2,
        "monitoring_scrape_interval": SCRAPE_S,
        "monitoring_evaluation_interval": EVALUATE_S,
        "monitoring_thresholds": THRESHOLDS,
    }
    with listening() as sink:
        try:
            monitoring("-e", json.dumps(settings))
            yield sink
        finally:
            monitoring()


REPORT: dict[str, Any] = {
    "operation": "observe",
    "time_scale": SCALE,
    "time_is_compressed": SCALE != 1,
    "thresholds": THRESHOLDS,
    "scrape_interval_s": SCRAPE_S,
    "evaluation_interval_s": EVALUATE_S,
    "alerts": {},
}


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    yield
    lab.REPORTS.mkdir(exist_ok=True)
    path = lab.REPORTS / f"observe-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    missing = sorted(all_alerts() - set(REPORT["alerts"]) - {"Watchdog"})
    REPORT["not_injected"] = {name: NOT_INJECTED.get(name, "left out of this run, or failed") for name in missing}
    path.write_text(json.dumps(REPORT, indent=2) + "\n")
    print(f"report: {path}")


def all_alerts() -> set[str]:
    return {rule["name"] for group in ask("rules?type=alert")["groups"] for rule in group["rules"]}


def firing() -> set[Key]:
    found = query('ALERTS{alertstate="firing", alertname!="Watchdog"}')
    return {key_of(one["metric"]) for one in found}


def calm(*wanted: Key) -> None:
    """Wait until nothing fires that says something of the lab, and none of what is about to be caused."""

    def quiet() -> bool:
        return not [key for key in firing() if key[0] not in LOAD or key in wanted]

    lab.eventually("no alert", quiet, CALM_S, 2)


def test_1_a_quiet_hour_tells_nobody_of_anything(sink: Sink) -> None:
    if ONLY:
        pytest.skip("a part was asked for")
    calm()
    time.sleep(GROUP_WAIT_S + 4)  # what resolved just now has been told
    began = time.monotonic()
    time.sleep(QUIET_S)
    told = sorted({name for name, _ in (one.key for one in sink.told(began)) if name not in LOAD})
    REPORT["quiet"] = {"seconds": QUIET_S, "stands_for_s": QUIET_S / SCALE, "told": told}
    assert told == []


def key_now(alert: Alert) -> Key:
    return alert.name, trading.active_gateway() if alert.host == GATEWAY else alert.host


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_2_a_cause_is_told_and_its_end_too(sink: Sink, cause: Cause) -> None:
    if ONLY and not ONLY & {alert.name for alert in cause.alerts}:
        pytest.skip("not in OBSERVE_ONLY")
    wanted = {alert: key_now(alert) for alert in cause.alerts}
    calm(*wanted.values())
    patience = max(PATIENCE_S, *(2 * alert.bound_s for alert in wanted))
    detected: dict[Alert, float] = {}

    def all_fire() -> bool:
        now = firing()
        for alert, key in wanted.items():
            if key in now:
                detected.setdefault(alert, time.monotonic())
        return detected.keys() == wanted.keys()

    def all_told(status: str) -> bool:
        return all(any(one.status == status for one in sink.of(key, began)) for key in wanted.values())

    def all_over() -> bool:
        return all(sink.is_over(key, began) for key in wanted.values())

    began = time.monotonic()
    try:
        cause.inject()
        lab.eventually(f"{cause.name} fires", all_fire, patience, 0.3)
        lab.eventually(f"{cause.name} is told", lambda: all_told("firing"), patience, 0.2)
    finally:
        healed = time.monotonic()
        cause.heal()
    lab.eventually("its end is told", all_over, patience, 0.2)
    allowed = {alert.name for alert in wanted} | cause.with_it | LOAD
    others = sorted({name for name, _ in (one.key for one in sink.told(began)) if name not in allowed})
    for alert, key in wanted.items():
        told = sink.of(key, began)
        REPORT["alerts"][alert.name] = {
            "cause": cause.what,
            "bound_s": round(alert.bound_s, 1),
            "detected_s": round(detected[alert] - began, 1),
            "notified_s": round(told[0].at - began, 1),
            "resolved_s": round(max(0.0, told[-1].at - healed), 1),
            "false_alerts": others,
        }
        print(json.dumps({alert.name: REPORT["alerts"][alert.name]}))
    assert others == []
    for alert in wanted:
        found = REPORT["alerts"][alert.name]
        assert found["detected_s"] <= found["bound_s"] * lab.SLACK
        assert found["notified_s"] - found["detected_s"] <= GROUP_WAIT_S + 10


SILENCES = (
    "amtool --alertmanager.url=https://10.78.0.61:9093 --http.config.file=/etc/pst/monitoring/amtool.yml"
    " silence query --quiet"
)


def test_3_maintenance_pages_nobody_and_a_fault_elsewhere_does(sink: Sink) -> None:
    """The same fault on a host that the run touches and on one that it does not."""
    if ONLY:
        pytest.skip("a part was asked for")
    calm()
    silenced, elsewhere = ("UnitFailed", "lab-redis2"), ("UnitFailed", "lab-app2")
    before = lab.ssh(MONITORING, SILENCES)
    began = time.monotonic()
    run = lab.start_playbook(
        "rolling-upgrade", "--tags", "redis", "-e", "evidence_enabled=false", output=subprocess.PIPE
    )
    try:
        lab.eventually("a silence", lambda: lab.ssh(MONITORING, SILENCES) != before, PATIENCE_S, 1)
        os.killpg(run.pid, signal.SIGSTOP)  # the run is under way until all is seen
        try:
            all_of(*(on(host, FAIL) for _, host in (silenced, elsewhere)))()
            lab.eventually("both fire", lambda: {silenced, elsewhere} <= firing(), PATIENCE_S, 0.5)
            lab.eventually("one is told", lambda: sink.of(elsewhere, began), PATIENCE_S, 0.5)
        finally:
            all_of(*(on(host, FAILED_NO_MORE) for _, host in (silenced, elsewhere)))()
        calm()  # before the silence ends
    finally:
        os.killpg(run.pid, signal.SIGCONT)
        output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output[-6000:]
    calm()
    told = sorted({f"{name} {host}" for name, host in (one.key for one in sink.told(began)) if name not in LOAD})
    REPORT["maintenance"] = {"run": "rolling-upgrade --tags redis", "silenced": list(lab.REDIS), "told": told}
    assert told == [" ".join(elsewhere)]


def test_4_the_lab_is_as_it_was(sink: Sink) -> None:
    calm()
    lab.wait_until_all_serve()
    if ONLY:
        return
    monitoring()
    run = lab.succeed(lab.playbook("site"))
    assert run.total("changed") == 0, run.changed_tasks()
