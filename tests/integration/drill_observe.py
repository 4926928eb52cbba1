"""make drill-observe: a fault is injected for real, its alert fires, somebody is told, and told again when it is over.

Waiting times are compressed (OBSERVE_SCALE, 0.1: a minute is six seconds), by the role's own variable; thresholds are
those of production. Notifications arrive at a webhook on the control node. For each cause the report says when
Prometheus saw the alert firing, when the message arrived, when the end of it did, and what else was told meanwhile.
The lab is started where it is not up, and left with its own settings. OBSERVE_ONLY=RedisDown,UnitFailed runs a part.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lab
import pytest

SCALE = float(os.environ.get("OBSERVE_SCALE", "0.1"))
QUIET_S = float(os.environ.get("OBSERVE_QUIET_S", "60"))
ONLY = [name for name in os.environ.get("OBSERVE_ONLY", "").split(",") if name]
SCRAPE_S = EVALUATE_S = 5
GROUP_WAIT_S = 1
CONTROL, PORT = "10.78.0.1", 9097
MONITORING = "lab-mon1"
PROMETHEUS = "https://10.78.0.61:9090"
PATIENCE_S = 180
# A balancer of the lab, or a node exporter, that is held back by the others on its machine is no false alarm of a rule.
LOAD = {"HostHighCpuLoad", "HostOutOfMemory", "HostOutOfDiskSpace", "HostClockOff"}


@dataclass(frozen=True)
class Cause:
    """What is done to the lab, which alert has to come of it, and which others may."""

    alert: str
    host: str  # as the alert names it; empty: the alert is about no host
    what: str
    inject: Callable[[], object]
    heal: Callable[[], object]
    wait_s: float  # the alert's `for`, before it is compressed
    seen_after_s: float = 0  # how long the exporter may take to see it, beyond a scrape
    with_it: frozenset[str] = frozenset()


def on(host: str, command: str) -> Callable[[], object]:
    return lambda: lab.ssh(host, command)


def dead(unit: str) -> str:
    """Kill a unit and keep it dead, as a program does that cannot start again."""
    folder = f"/run/systemd/system/{unit}.d"
    return (
        f"mkdir -p {folder} && printf '[Service]\\nRestart=no\\n' >{folder}/zz.conf && systemctl daemon-reload"
        f" && systemctl kill --signal KILL {unit}"
    )


def alive(unit: str) -> str:
    return (
        f"rm -rf /run/systemd/system/{unit}.d && systemctl daemon-reload && systemctl reset-failed {unit}; "
        f"systemctl start {unit}"
    )


def all_of(*steps: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


WRONG_CERTIFICATE = (
    "cp -a /etc/pst/pki/node /root/node.kept && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    " -days 1 -subj /CN=nobody -keyout /etc/pst/pki/node/node.key -out /etc/pst/pki/node/node.crt"
)
RIGHT_CERTIFICATE = "rm -r /etc/pst/pki/node && mv /root/node.kept /etc/pst/pki/node"

CAUSES = [
    Cause(
        "RedisDown",
        "lab-redis3",
        "kill: SIGKILL to Redis, which does not start again",
        on("lab-redis3", dead("redis-server.service")),
        on("lab-redis3", alive("redis-server.service")),
        60,
        with_it=frozenset({"UnitFailed", "RedisReplicaMissing"}),
    ),
    Cause(
        "MongoDBDown",
        "lab-mongo3",
        "freeze: SIGSTOP to mongod",
        on("lab-mongo3", "systemctl kill --signal STOP mongod.service"),
        on("lab-mongo3", "systemctl kill --signal CONT mongod.service"),
        60,
        seen_after_s=5,  # the exporter gives up after 4 s
        with_it=frozenset({"MongoDBReplicationLag", "TargetDown"}),
    ),
    Cause(
        "TargetDown",
        "lab-ibgw2",
        "cut: the monitoring host's packets to the node exporter are dropped",
        on(
            "lab-ibgw2",
            "nft add table inet observe && nft add chain inet observe input '{ type filter hook input priority -200; }'"
            " && nft add rule inet observe input tcp dport 9100 drop",
        ),
        on("lab-ibgw2", "nft delete table inet observe"),
        60,
        seen_after_s=5,  # the scrape's own limit
    ),
    Cause(
        "UnitFailed",
        "lab-app2",
        "break: a unit that ends with an error",
        on("lab-app2", "systemd-run --unit=observe-drill /bin/false"),
        on("lab-app2", "systemctl reset-failed observe-drill.service"),
        60,
    ),
    Cause(
        "CertificateInvalid",
        "lab-ibgw2",
        "break: the node exporter shows a certificate of nobody",
        on("lab-ibgw2", WRONG_CERTIFICATE),
        on("lab-ibgw2", RIGHT_CERTIFICATE),
        60,
        seen_after_s=4 * SCRAPE_S + 10,  # certificates are looked at every fourth scrape
        with_it=frozenset({"TargetDown"}),
    ),
    Cause(
        "PrometheusReloadFailed",
        MONITORING,
        "break: the configuration of Prometheus is garbage",
        on(
            MONITORING,
            "cp -a /etc/prometheus/prometheus.yml /root/prometheus.kept; echo garbage >>/etc/prometheus/prometheus.yml;"
            " systemctl reload prometheus.service; true",
        ),
        on(MONITORING, "mv /root/prometheus.kept /etc/prometheus/prometheus.yml; systemctl reload prometheus.service"),
        60,
    ),
    Cause(
        "TradingSystemDown",
        "lab-app3",
        "kill: SIGKILL to the live slot's agent, which does not start again",
        on("lab-app3", dead("pst-app@blue.service")),
        on("lab-app3", alive("pst-app@blue.service")),
        60,
        with_it=frozenset({"UnitFailed"}),
    ),
    Cause(
        "VipNotHeldOnce",
        "",
        "kill: keepalived is stopped on both balancers",
        all_of(*(on(host, "systemctl stop keepalived.service") for host in lab.BALANCERS)),
        all_of(*(on(host, "systemctl start keepalived.service") for host in lab.BALANCERS)),
        30,
        with_it=frozenset({"VipFlapping"}),
    ),
    Cause(
        "LeaseWithoutHolder",
        "",
        "kill: the guards of all application nodes are stopped",
        all_of(*(on(host, "systemctl stop pst-guard.service") for host in lab.APPS)),
        all_of(*(on(host, "systemctl start pst-guard.service") for host in lab.APPS)),
        60,
        seen_after_s=15,  # a lease that is not given back lasts so long
        with_it=frozenset({"TradingProcessAbsent"}),
    ),
]


@dataclass
class Sink:
    """What Alertmanager has sent, and when."""

    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, since: float) -> list[tuple[float, dict[str, Any]]]:
        return [(at, alert) for at, message in list(self.messages) if at >= since for alert in message["alerts"]]


@contextlib.contextmanager
def listening() -> Iterator[Sink]:
    sink = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sink.messages.append((time.monotonic(), json.loads(body)))
            self.send_response(200)
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
    """Compressed rules and a webhook, for as long as the drill takes."""
    settings = {
        "monitoring_alert_webhooks": [{"url": f"http://{CONTROL}:{PORT}/alerts"}],
        "monitoring_alert_time_scale": SCALE,
        "monitoring_alert_group_wait": GROUP_WAIT_S,
        "monitoring_alert_group_interval": 2,
        "monitoring_scrape_interval": SCRAPE_S,
        "monitoring_evaluation_interval": EVALUATE_S,
    }
    with listening() as sink:
        monitoring("-e", json.dumps(settings))
        try:
            yield sink
        finally:
            monitoring()


REPORT: dict[str, Any] = {
    "operation": "observe",
    "time_scale": SCALE,
    "time_is_compressed": SCALE != 1,
    "scrape_interval_s": SCRAPE_S,
    "evaluation_interval_s": EVALUATE_S,
    "alerts": {},
}


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    yield
    lab.REPORTS.mkdir(exist_ok=True)
    path = lab.REPORTS / f"observe-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    REPORT["not_injected"] = sorted(all_alerts() - set(REPORT["alerts"]) - {"Watchdog"})
    path.write_text(json.dumps(REPORT, indent=2) + "\n")
    print(f"report: {path}")


def ask(path: str) -> Any:
    context = ssl.create_default_context(cafile=str(lab.STATE / "pki" / "ca.crt"))
    context.load_cert_chain(lab.STATE / "pki" / MONITORING / "monitoring.pem")
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/{path}", timeout=10, context=context) as answer:
        return json.loads(answer.read())["data"]


def all_alerts() -> set[str]:
    return {rule["name"] for group in ask("rules?type=alert")["groups"] for rule in group["rules"]}


def firing() -> set[tuple[str, str]]:
    """Name and host of each alert that fires."""
    found = ask("query?query=" + urllib.parse.quote('ALERTS{alertstate="firing", alertname!="Watchdog"}'))["result"]
    return {(one["metric"]["alertname"], one["metric"].get("host", "")) for one in found}


def unexpected(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {one for one in found if one[0] not in LOAD}


def test_1_a_quiet_time_tells_nobody_of_anything(sink: Sink) -> None:
    lab.eventually("no alert", lambda: not unexpected(firing()), PATIENCE_S, 2)
    time.sleep(GROUP_WAIT_S + 4)  # what resolved just now has been told
    began = time.monotonic()
    time.sleep(QUIET_S)
    told = [alert["labels"]["alertname"] for _, alert in sink.alerts(began) if alert["labels"]["alertname"] not in LOAD]
    REPORT["quiet"] = {"seconds": QUIET_S, "stands_for_s": QUIET_S / SCALE, "told": told}
    assert told == []


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.alert)
def test_2_a_cause_is_told_and_its_end_too(sink: Sink, cause: Cause) -> None:
    if ONLY and cause.alert not in ONLY:
        pytest.skip("not in OBSERVE_ONLY")
    lab.eventually("no alert", lambda: not unexpected(firing()), PATIENCE_S, 2)
    wanted = (cause.alert, cause.host)

    def told(status: str, since: float) -> float | None:
        times = [
            at
            for at, alert in sink.alerts(since)
            if (alert["labels"]["alertname"], alert["labels"].get("host", "")) == wanted and alert["status"] == status
        ]
        return min(times, default=None)

    began = time.monotonic()
    cause.inject()
    try:
        lab.eventually(f"{cause.alert} fires", lambda: wanted in firing(), PATIENCE_S, 0.3)
        detected = time.monotonic() - began
        notified = lab.eventually(f"{cause.alert} is told", lambda: told("firing", began), PATIENCE_S, 0.2) - began
    finally:
        healed = time.monotonic()
        cause.heal()
    resolved = lab.eventually("its end is told", lambda: told("resolved", healed), PATIENCE_S, 0.2) - healed
    others = {
        alert["labels"]["alertname"]
        for _, alert in sink.alerts(began)
        if alert["labels"]["alertname"] not in {cause.alert} | cause.with_it | LOAD
    }
    bound = max(1, round(cause.wait_s * SCALE)) + 2 * SCRAPE_S + EVALUATE_S + cause.seen_after_s
    REPORT["alerts"][cause.alert] = {
        "cause": cause.what,
        "bound_s": round(bound, 1),
        "detected_s": round(detected, 1),
        "notified_s": round(notified, 1),
        "resolved_s": round(resolved, 1),
        "false_alerts": sorted(others),
    }
    print(json.dumps({cause.alert: REPORT["alerts"][cause.alert]}))
    assert others == set()
    assert detected <= bound * lab.SLACK
    assert notified - detected <= GROUP_WAIT_S + 10


def test_3_the_lab_is_as_it_was(sink: Sink) -> None:
    lab.eventually("no alert", lambda: not unexpected(firing()), PATIENCE_S, 2)
    lab.wait_until_all_serve()
