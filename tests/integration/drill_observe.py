"""make drill-observe: a fault is injected for real, its alert fires, somebody is told, and told again when it is over.

Waiting times are compressed (OBSERVE_SCALE, 0.1: a minute is six seconds), by the role's own variable; so is how long a
rule looks back. The causes, and what is not that of production: alert_causes.py. Notifications arrive at a webhook on
the control node. For each alert the report says when Prometheus saw it firing, when the message arrived, when the end
of it did, and what else fired meanwhile. Then an hour without the log server (OBSERVE_OUTAGE_S=3600: a real one), what
watching costs a host, and the secrets of the lab in all that is shown. The lab is started where it is not up, and
left with its own settings. OBSERVE_ONLY=RedisDown,UnitFailed runs a part of the alerts. About 45 minutes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import uuid
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lab
import observed
import pytest
import trading
from alert_causes import (
    CAUSES,
    EVALUATE_S,
    FAIL,
    FAILED_NO_MORE,
    GATEWAY,
    NOT_INJECTED,
    REFUSES,
    SCALE,
    SCRAPE_S,
    THRESHOLDS,
    Alert,
    Cause,
    all_of,
    in_mongodb,
    on,
)
from observed import MONITORING, ask, query

OUTAGE_S = float(os.environ.get("OBSERVE_OUTAGE_S", str(3600 * SCALE)))
COST_S = 120
QUIET_S = float(os.environ.get("OBSERVE_QUIET_S", str(3600 * SCALE)))
ONLY = {name for name in os.environ.get("OBSERVE_ONLY", "").split(",") if name}
GROUP_WAIT_S = 1
CONTROL, PORT = "10.78.0.1", 9097
PATIENCE_S = 180
CALM_S = 400  # a job that a fault has ended is failed until its next turn: a part of the oplog comes every 5 minutes
# A balancer of the lab, or a node exporter, that is held back by the others on its machine is no false alarm of a rule.
LOAD = {"HostHighCpuLoad", "HostOutOfMemory", "HostOutOfDiskSpace", "HostClockOff"}

of_a_whole_run = pytest.mark.skipif(bool(ONLY), reason="a part was asked for")
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

    def fired(self, since: float, besides: Set[str] = frozenset()) -> list[str]:
        """Which alerts were said to fire, name and host. The end of one is told again for a quarter of an hour."""
        keys = {one.key for one in self.told(since) if one.status == "firing"}
        return sorted(f"{name} {host}".strip() for name, host in keys if name not in besides | LOAD)

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


@of_a_whole_run
def test_1_a_quiet_hour_tells_nobody_of_anything(sink: Sink) -> None:
    calm()
    time.sleep(GROUP_WAIT_S + 4)  # what resolved just now has been told
    began = time.monotonic()
    time.sleep(QUIET_S)
    told = sink.fired(began)
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
    others = sink.fired(began, {alert.name for alert in wanted} | cause.with_it)
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


@of_a_whole_run
def test_3_maintenance_pages_nobody_and_a_fault_elsewhere_does(sink: Sink) -> None:
    """The same fault on a host that the run touches and on one that it does not."""
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
    told = sink.fired(began)
    REPORT["maintenance"] = {"run": "rolling-upgrade --tags redis", "silenced": list(lab.REDIS), "told": told}
    assert told == [" ".join(elsewhere)]


COUNT = """\
import collections, json, sys
lines = {(record["host"], record["message"]) for record in map(json.loads, sys.stdin)}
print(json.dumps(collections.Counter(host for host, line in lines if line.split()[-1].isdigit())))"""


@of_a_whole_run
def test_4_no_line_is_lost_while_the_log_server_is_away() -> None:
    """An hour's numbered lines of every host: one a second, in as many seconds as the rules' hour has."""
    mark, lines = uuid.uuid4().hex, 3600
    speak = f"seq -f 'drill {mark} %g' {lines} | while read -r line; do echo \"$line\"; sleep {OUTAGE_S / lines}; done"
    speakers = [host for host in lab.HOSTS if host != MONITORING]
    began = time.monotonic()
    lab.ssh(MONITORING, "systemctl stop rsyslog.service")
    try:
        for host in speakers:
            lab.ssh(host, f"systemd-run --quiet --collect --unit=observe-speaker bash -c {shlex.quote(speak)}")
        for host in speakers:
            ended = f"! systemctl is-active --quiet observe-speaker && journalctl -q --grep '{mark} {lines}$' | wc -l"
            said = partial(lab.ssh, host, ended, check=False)
            lab.eventually(f"all lines of {host}", lambda said=said: said() == "1", 2 * OUTAGE_S + 60, 2)
    finally:
        away = time.monotonic() - began
        lab.ssh(MONITORING, "systemctl start rsyslog.service")

    def arrived() -> dict[str, int]:
        """How many different ones of each host are stored."""
        count = f"{observed.STORED} | grep -F 'drill {mark} ' | python3 -c {shlex.quote(COUNT)}"
        return json.loads(lab.ssh(MONITORING, count, timeout=120))

    wanted = dict.fromkeys(speakers, lines)
    with contextlib.suppress(AssertionError):  # what is missing is said below
        lab.eventually("all lines on the server", lambda: arrived() == wanted, 300, 5)
    lost = {host: lines - arrived().get(host, 0) for host in speakers}
    REPORT["logs"] = {"server_away_s": round(away, 1), "lines": lines * len(speakers), "lost": sum(lost.values())}
    print(json.dumps({"logs": REPORT["logs"]}))
    assert not any(lost.values()), lost


def test_5_the_lab_is_as_it_was(sink: Sink) -> None:
    calm()
    lab.wait_until_all_serve()
    if ONLY:
        return
    monitoring()
    run = lab.succeed(lab.playbook("site"))
    assert run.total("changed") == 0, run.changed_tasks()


def test_6_watching_costs_little() -> None:
    """With the lab's own settings; somebody trades meanwhile, and the balancers check."""
    shares = observed.costs(observed.WATCHERS, lab.HOSTS, COST_S)
    REPORT["cost_percent_of_a_core"] = {"seconds": COST_S, "bar": 1.0, "units": observed.WATCHERS, "hosts": shares}
    print(json.dumps({"cost": shares}))
    assert max(share for host, share in shares.items() if host != MONITORING) <= 1.0, shares


def plant(canary: str) -> None:
    """Give a word for a secret wherever somebody may give one. It is wrong: who refuses it may say so, but not it."""
    for path, token in (("/api/v1/status", canary), (f"/version?token={canary}", "")):
        with contextlib.suppress(urllib.error.HTTPError):
            lab.ask(path, token=token)
    observed.page("/", canary)
    lab.ssh("lab-app1", f"logger --tag observe 'login failed, password={canary}'")
    assert in_mongodb("print(client.pst.name)", canary) == "refused"


def test_7_no_secret_is_seen_anywhere(sink: Sink) -> None:
    """Every secret of the lab, and one that was planted, in all that the platform shows of itself."""
    mark, canary = f"mark{uuid.uuid4().hex}", f"Canary{uuid.uuid4().hex}"
    plant(canary)
    lab.ssh("lab-app1", f"logger --tag observe {mark}")  # after it all of the canary's lines are stored
    lab.eventually("the last line", lambda: observed.logged([mark])[1] > 0, 60, 2)
    words = lab.secrets() | {"canary": canary}
    seen = {
        "metrics, targets, rules": observed.metrics(),
        "page": observed.pages(),
        "reports and output": observed.reports(),
        "messages": json.dumps(sink.messages),
    }
    lines, found = observed.logged(line for word in words.values() for line in word.splitlines())
    shown = {where: lab.leaked(text) + ["canary"] * (canary in text) for where, text in seen.items()}
    REPORT["secrets"] = {"searched_for": len(words), "log_lines": lines, "of_them_with_a_secret": found, "shown": shown}
    REPORT["secrets"]["characters"] = {where: len(text) for where, text in seen.items()}
    print(json.dumps({"secrets": REPORT["secrets"]}))
    assert min(len(text) for text in seen.values()) > (0 if ONLY else 1000)
    assert (lines > 1000, found) == (True, 0)
    assert not any(shown.values()), shown
