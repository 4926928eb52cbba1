"""What the collector of the page makes of what Prometheus and a client see."""

from __future__ import annotations

import json
import math
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pst_console
import pytest
import site_of_the_page as site
from pst_console import CRITICAL, OK, STANDBY, UNKNOWN, WARNING, Age, Collector, Picture, Prometheus, Seen, Settings

from ansible_collections.pst.platform.plugins.module_utils import console, host_status


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return site.settings(tmp_path, output=str(tmp_path / "out"), runs=str(tmp_path / "runs"))


@pytest.fixture
def picture(settings: Settings) -> Callable[[Seen], dict[str, Any]]:
    return lambda seen: Picture(settings, seen, site.NOW).document()


def hosts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host["name"]: host for tier in document["tiers"] for host in tier["hosts"]}


def told(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(problem["state"], problem["where"], problem["what"]) for problem in document["problems"]]


# A site that is well, and one fault at a time ----------------------------------------------------------------------


def test_a_site_that_is_well(picture):
    document = picture(site.seen())
    assert document["verdict"] == OK
    assert document["problems"] == []
    assert {host["state"] for host in hosts(document).values()} == {OK}
    assert [tier["name"] for tier in document["tiers"]][:2] == ["load_balancers", "app_nodes"]
    assert document["traffic"]["holder"] == "lb1"
    assert document["traffic"]["client"]["colour"] == "blue"
    assert document["trading"]["leases"] == [
        {
            "placement": placement,
            "holders": [{"host": host, "colour": "blue"}],
            "epoch": epoch,
            "revoked": 0,
            "state": OK,
        }
        for epoch, (placement, host) in enumerate(site.PLACEMENTS.items(), 7)
    ]
    assert {order["name"]: order["value"] for order in document["trading"]["orders"]} == {
        "broker_order_stack": 1,
        "contract_order_stack": 2,
        "instrument_order_stack": 3,
    }
    assert [slot["state"] for slot in document["slots"]] == ["ready"] * 3
    assert json.dumps(document, allow_nan=False)


def test_what_is_stopped_on_purpose_is_no_fault(picture):
    document = picture(site.seen())
    units = {unit["service"]: unit["state"] for unit in hosts(document)["ibgw2"]["units"]}
    assert units["gateway"] == units["gate"] == STANDBY
    assert {unit["service"]: unit["state"] for unit in hosts(document)["app1"]["units"]}["app green"] == STANDBY


@pytest.mark.parametrize(
    ("state", "wanted", "words"),
    [
        ("failed", CRITICAL, "redis has failed"),
        ("inactive", CRITICAL, "redis is stopped"),
        ("activating", WARNING, "redis is starting"),
        ("deactivating", CRITICAL, "redis is stopping"),
    ],
)
def test_a_unit_that_does_not_run(picture, state, wanted, words):
    document = picture(site.seen(units={("redis1", "redis-server.service"): state}))
    assert told(document) == [(wanted, "redis1", words)]
    assert document["verdict"] == hosts(document)["redis1"]["state"] == wanted


def test_a_failed_unit_is_a_fault_even_where_it_may_be_stopped(picture):
    document = picture(site.seen(units={("ibgw2", "ib-gateway.service"): "failed"}))
    assert told(document) == [(CRITICAL, "ibgw2", "gateway has failed")]


def test_a_host_that_is_down_is_told_once(picture):
    document = picture(site.seen(down=("mongo2",)))
    assert told(document) == [(CRITICAL, "mongo2", "none of its services answers: the host is down, or cut off")]
    assert hosts(document)["mongo2"]["state"] == CRITICAL
    assert {unit["state"] for unit in hosts(document)["mongo2"]["units"]} == {UNKNOWN}


def test_one_target_of_a_host_that_is_down(picture):
    assert told(picture(site.seen(down=("lb2:8404",)))) == [(CRITICAL, "lb2", "haproxy does not answer on port 8404")]


def through_exporter(seen: Seen, member: float) -> Seen:
    """Redis on redis1 as the exporter of the monitoring host tells of it: the exporter itself is well."""
    labels = {"job": "redis", "host": "redis1", "instance": "10.78.0.41:6379"}
    seen.up = [*seen.up, site.sample(1, "up", **labels)]
    seen.metrics = [*seen.metrics, site.sample(member, "redis_up", **labels)]
    return seen


def test_an_exporter_that_answers_says_nothing_of_its_member(picture):
    assert told(picture(through_exporter(site.seen(), 1))) == []
    hung = picture(through_exporter(site.seen(), 0))
    assert told(hung) == [(CRITICAL, "redis1", "redis does not answer on port 6379")]


def test_a_host_is_not_up_because_an_exporter_elsewhere_is(picture):
    document = picture(through_exporter(site.seen(down=("redis1",)), 0))
    assert told(document) == [(CRITICAL, "redis1", "none of its services answers: the host is down, or cut off")]


def test_an_empty_slot_is_not_expected_to_answer(picture):
    seen = site.seen(units={("app1", "pst-app@blue.service"): "inactive"}, down=("app1:8080",))
    assert {target["state"] for target in hosts(picture(seen))["app1"]["targets"]} == {OK, STANDBY}


def test_a_host_that_prometheus_does_not_know(picture):
    seen = site.seen()
    seen.up = [item for item in seen.up if item.label("host") != "redis3"]
    assert told(picture(seen)) == [(UNKNOWN, "redis3", "Prometheus does not scrape it")]


# The lease ----------------------------------------------------------------------------------------------------------


def without_holder(seen: Seen, placement: str) -> Seen:
    def free(item: pst_console.Sample) -> pst_console.Sample:
        held = item.label("__name__") == "pst_lease_holder" and item.label("placement") == placement
        return pst_console.Sample(item.labels, 0.0) if held else item

    seen.metrics = [free(item) for item in seen.metrics]
    return seen


def test_a_lease_that_nobody_holds(picture):
    document = picture(without_holder(site.seen(), "node_2"))
    assert told(document) == [(CRITICAL, "node_2", "nobody holds the lease: nothing of this placement trades")]


def test_a_holder_that_cannot_be_asked_is_not_called_nobody(picture):
    document = picture(site.seen(down=("app3:8080",)))
    assert (UNKNOWN, "node_3", "no agent that answers holds the lease; app3 cannot be asked") in told(document)
    assert document["trading"]["leases"][2]["state"] == UNKNOWN


def test_two_that_hold_one_lease_are_shown(picture):
    seen = site.seen()
    labels = {"host": "app2", "instance": "10.78.0.22:8080", "placement": "node_1"}
    seen.metrics = [*seen.metrics, site.sample(1, "pst_lease_holder", **labels)]
    document = picture(seen)
    assert (WARNING, "node_1", "two hosts say that they hold the lease") in told(document)
    assert [holder["host"] for holder in document["trading"]["leases"][0]["holders"]] == ["app1", "app2"]


def by_exporter(seen: Seen, holder: str = "app2", revoked: float = 0) -> Seen:
    """As the exporter of the site's state tells it, beside what the agents say."""
    of = {"placement": "node_1", "host": "mon1"}
    seen.metrics = [
        *seen.metrics,
        site.sample(float(bool(holder)), "pst_lease_held", **of),
        site.sample(41, "pst_lease_granted_epoch", **of),
        site.sample(revoked, "pst_lease_revoked", **of),
        *([site.sample(1, "pst_lease_holder_info", **of, holder=holder, colour="green")] if holder else []),
    ]
    return seen


def test_the_database_is_believed_before_the_agents(picture):
    assert picture(by_exporter(site.seen()))["trading"]["leases"] == [
        {
            "placement": "node_1",
            "holders": [{"host": "app2", "colour": "green"}],
            "epoch": 41,
            "revoked": 0,
            "state": OK,
        }
    ]
    nobody = picture(by_exporter(site.seen(down=("app1",)), holder=""))
    assert (CRITICAL, "node_1", "nobody holds the lease: nothing of this placement trades") in told(nobody)


def test_a_revoked_lease_is_no_lost_one(picture):
    ((state, where, what),) = told(picture(by_exporter(site.seen(), holder="", revoked=1)))
    assert (state, where) == (WARNING, "node_1")
    assert "kill switch" in what


def test_a_run_under_way_is_told(picture):
    seen = site.seen()
    labels = {"playbook": "rolling-upgrade", "by": "anna", "run": "r1", "host": "mon1"}
    seen.metrics = [*seen.metrics, site.sample(75.4, "pst_run_lock_age_seconds", **labels)]
    wanted = {"playbook": "rolling-upgrade", "by": "anna", "run": "r1", "age": 75}
    assert picture(seen)["trading"]["run"] == wanted
    assert picture(site.seen())["trading"]["run"] is None


def test_the_leaders_are_told(picture):
    seen = site.seen()
    seen.metrics = [
        *seen.metrics,
        *(
            site.sample(1 if host == "mongo2" else 2, "mongodb_replset_my_state", host=host)
            for host in ("mongo1", "mongo2")
        ),
        *(
            site.sample(1, "redis_instance_info", host=host, role=role, redis_version="7.0.15")
            for host, role in (("redis1", "master"), ("redis2", "slave"))
        ),
    ]
    document = picture(seen)
    assert {name: host["leads"] for name, host in hosts(document).items() if host["leads"]} == {
        "mongo2": "primary",
        "redis1": "master",
    }
    assert {"what": "redis", "version": "7.0.15", "hosts": ["redis1", "redis2"]} in document["versions"]


def test_the_address_is_where_the_balancers_have_it(picture):
    seen = site.seen()
    seen.metrics = [
        *seen.metrics,
        site.sample(0, "pst:vip_held", host="lb1"),
        site.sample(1, "pst:vip_held", host="lb2"),
    ]
    assert picture(seen)["traffic"]["holder"] == "lb2", "whoever gets requests"


# Traffic, alerts, ages ----------------------------------------------------------------------------------------------


def test_an_address_that_serves_nobody(picture):
    seen = site.seen()
    seen.client = {"answers": False, "problem": "timed out"}
    assert told(picture(seen))[0] == (CRITICAL, "10.78.0.10", "does not serve clients: timed out")


def test_a_server_without_traffic_counts_in_the_live_slot_only(picture):
    seen = site.seen()
    assert any(item.label("state") == "DOWN" for item in seen.servers)  # the empty slot
    seen.servers = [
        pst_console.Sample({**item.labels, "state": "DOWN"}, 1)
        if (item.label("proxy"), item.label("server"), item.label("host")) == ("be_blue", "app2", "lb1")
        else item
        for item in seen.servers
    ]
    assert told(picture(seen)) == [(WARNING, "app2", "gets no requests in the live slot blue: DOWN at lb1")]


def test_nobody_is_said_to_have_the_address_without_requests(picture):
    seen = site.seen()
    seen.front = [site.sample(0, host="lb1"), site.sample(math.nan, host="lb2")]
    assert picture(seen)["traffic"]["holder"] == ""


def test_alerts_that_fire_are_problems_and_those_that_may_are_not(picture):
    seen = site.seen()
    seen.alerts = [
        {"labels": {"alertname": "A", "severity": "warning", "host": "app1"}, "annotations": {}, "state": "pending"},
        {
            "labels": {"alertname": "B", "severity": "critical", "host": "app2"},
            "annotations": {"summary": "it burns", "runbook_url": "docs/runbooks/b.md"},
            "state": "firing",
            "activeAt": "2027-01-15T07:58:11Z",
        },
        {"labels": {"alertname": "Watchdog", "severity": "none"}, "annotations": {}, "state": "firing"},
    ]
    document = picture(seen)
    assert told(document) == [(CRITICAL, "app2", "alert B: it burns")]
    assert [alert["name"] for alert in document["alerts"]] == ["B", "Watchdog", "A"]
    assert document["alerts"][0]["runbook"] == "docs/runbooks/b.md"


def test_an_age_is_judged_by_its_bounds(picture):
    seen = site.seen()
    age = Age("Backup", "x", "s", 100, 200)
    seen.ages = [(age, [site.sample(value, host=f"h{value}") for value in (99, 100, 200)])]
    document = picture(seen)
    assert [row["state"] for row in document["ages"]] == [WARNING, CRITICAL, OK]  # h100, h200, h99
    assert told(document) == [(CRITICAL, "h200", "Backup: 200 s"), (WARNING, "h100", "Backup: 100 s")]


def test_a_prometheus_that_does_not_answer_is_the_one_problem(picture):
    document = picture(Seen(client={"answers": True}, problem="/api/v1/query: timed out"))
    assert told(document) == [(CRITICAL, "Prometheus", "does not answer: /api/v1/query: timed out")]
    assert {host["state"] for host in hosts(document).values()} <= {UNKNOWN, STANDBY}


def test_figures_that_are_old_are_told(picture):
    seen = site.seen()
    seen.scraped = [site.sample(60, host="lb1")]
    assert told(picture(seen)) == [(CRITICAL, "Prometheus", "has no fresh figures of any host")]


def test_versions_that_differ_stand_side_by_side(picture):
    seen = site.seen()
    seen.metrics = [*seen.metrics, site.sample(1, "haproxy_process_build_info", host="lb3", version="3.0")]
    haproxy = [version for version in picture(seen)["versions"] if version["what"] == "haproxy"]
    assert [(version["version"], version["hosts"]) for version in haproxy] == [
        ("2.6.12", ["lb1", "lb2"]),
        ("3.0", ["lb3"]),
    ]


# Prometheus ---------------------------------------------------------------------------------------------------------


def test_an_answer_of_prometheus():
    body = {"status": "success", "data": {"result": [{"metric": {"host": "a"}, "value": [1.5, "NaN"]}]}}
    asked: list[str] = []

    def get(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 200, json.dumps(body).encode()

    (found,) = Prometheus(get).query('up{a="b c"}')
    assert (found.label("host"), found.label("none"), math.isnan(found.value)) == ("a", "", True)
    assert asked == ["/api/v1/query?query=up%7Ba%3D%22b+c%22%7D"]


@pytest.mark.parametrize(
    "answer",
    [
        (400, b'{"status":"error","error":"parse error"}'),
        (502, b"<html>"),
        (200, b'{"status":"success"}'),
        ConnectionRefusedError("refused"),
        TimeoutError("timed out"),
        ssl.SSLError("certificate required"),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_why(answer):
    def get(path: str) -> tuple[int, bytes]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(pst_console.AskError, match="/api/v1/query: "):
        Prometheus(get).query("up")


def test_units_are_asked_by_their_names(settings):
    query = pst_console.unit_query(settings)
    assert r"pst\\-app@blue\\.service" in query or r"pst\\-app\\@blue\\.service" in query
    assert query.endswith("== 1")


# Charts ---------------------------------------------------------------------------------------------------------------


def test_a_gap_stays_a_gap():
    values = [[100, "1"], [130, "2.00000001"], [190, "NaN"], [250, "3"]]
    assert pst_console.points(values, 100, 220, 30) == [1.0, 2.0, None, None, None]


def test_charts_have_the_panels_in_order_and_say_what_could_not_be_asked(settings):
    def get(path: str) -> tuple[int, bytes]:
        if "pysystemtrade_portfolio_var" in path:
            return 422, b'{"status":"error","error":"too many samples"}'
        result = [{"metric": {"host": "a"}, "values": [[site.NOW - 30, "1"]]}] if "up%7B" in path else []
        return 200, json.dumps({"status": "success", "data": {"result": result}}).encode()

    document = pst_console.charts(settings, Prometheus(get), site.NOW)
    titles = [panel["title"] for panel in document["panels"]]
    assert titles[:5] == [
        "Trading System Health",
        "Order Processing Rate",
        "Position P&L",
        "Risk Metrics",
        "Database Performance",
    ]
    by_title = {panel["title"]: panel for panel in document["panels"]}
    assert by_title["Trading System Health"]["series"][0]["name"] == "System Status a"
    assert "too many samples" in by_title["Risk Metrics"]["problem"]
    assert by_title["Position P&L"]["series"] == []
    assert len(by_title["Trading System Health"]["series"][0]["points"]) == 121


def test_a_legend_is_filled_as_grafana_does():
    assert pst_console.legend("Ops {{host}} {{ type }}{{none}}", {"host": "a", "type": "insert"}) == "Ops a insert"
    assert pst_console.legend("{{none}}", {}) == "value"


# Files ----------------------------------------------------------------------------------------------------------------


class Fake:
    """Prometheus, or what is left of it."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.asked = broken, 0

    def get(self, path: str) -> tuple[int, bytes]:
        self.asked += 1
        if self.broken:
            raise ConnectionRefusedError("refused")
        key = "alerts" if path.startswith("/api/v1/alerts") else "result"
        return 200, json.dumps({"status": "success", "data": {key: []}}).encode()


def collector(settings: Settings, fake: Fake) -> Collector:
    settings.output.mkdir()
    settings.runs.mkdir()
    return Collector(settings, Prometheus(fake.get), None)


def read(settings: Settings, name: str) -> dict[str, Any]:
    return json.loads((settings.output / f"{name}.json").read_text())


def test_a_turn_writes_what_is_due(settings):
    fake = Fake()
    one = collector(settings, fake)
    one.turn(1000.0)
    assert {path.name for path in settings.output.iterdir()} == {"state.json", "charts.json", "runs.json"}
    first = fake.asked
    one.turn(1002.0)
    assert fake.asked - first < first, "charts and load are asked less often than the state"
    assert (read(settings, "state")["at"], read(settings, "charts")["at"]) == (1002.0, 1000.0)
    one.turn(1015.0)
    assert read(settings, "charts")["at"] == 1015.0
    assert (settings.output / "state.json").stat().st_mode & 0o777 == 0o640


def test_a_turn_without_prometheus_writes_that_it_is_gone(settings):
    collector(settings, Fake(broken=True)).turn(1000.0)
    document = read(settings, "state")
    assert document["verdict"] == CRITICAL
    assert "refused" in document["source"]["problem"]
    assert all("refused" in panel["problem"] for panel in read(settings, "charts")["panels"])


def test_runs_are_the_newest_and_unreadable_ones_are_left_out(settings):
    one = collector(settings, Fake())
    for number in range(40):
        path = settings.runs / f"r{number}.json"
        path.write_text(json.dumps({"id": f"r{number}", "started": f"2026-01-01T00:00:{number:02}Z"}))
    (settings.runs / "broken.json").write_text("{")
    one.turn(1000.0)
    found = [run["id"] for run in read(settings, "runs")["runs"]]
    assert found == [f"r{number}" for number in range(39, 9, -1)]
    (settings.runs / "r99.json").write_text(json.dumps({"id": "r99", "started": "2027-01-01"}))
    one.turn(1002.0)
    assert read(settings, "runs")["runs"][0]["id"] == "r99"


def test_runs_that_are_too_old_are_removed(settings):
    settings.runs.mkdir()
    for number in range(pst_console.RUNS_KEPT + 5):
        path = settings.runs / f"{number}.json"
        path.write_text(json.dumps({"id": number, "started": "2026"}))
        os.utime(path, (number, number))
    pst_console.runs(settings.runs)
    left = {path.stem for path in settings.runs.iterdir()}
    assert len(left) == pst_console.RUNS_KEPT
    assert "0" not in left


def test_a_late_turn_is_not_made_up_for(monkeypatch):
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(pst_console.time, "sleep", sleep)
    turns = pst_console.ticks(2, lambda: now[0])
    next(turns)
    now[0] += 0.5
    next(turns)
    now[0] += 7
    next(turns)
    next(turns)
    assert slept == [1.5, 0.0, 2.0]


# What Ansible tells it -----------------------------------------------------------------------------------------------


def test_settings_know_every_service_of_the_status():
    units = {(unit["tier"], unit["unit"]) for unit in site.document()["units"]}
    assert units == {(service.tier, service.unit) for service in host_status.SERVICES}


def test_a_host_outside_of_the_tiers_is_shown_too():
    hostvars = {"x": {"group_names": ["site_lab"], "site_zone": "a", "site_address": "10.0.0.1"}}
    (host,) = console.hosts(["x"], hostvars)
    assert host["tier"] in console.settings({}, [host], [])["tiers"]


def test_the_groups_that_a_run_makes_are_not_told():
    restarted = {
        "group_names": ["dns", "monitoring", "dns_restart", "site_lab"],
        "site_zone": "a",
        "site_address": "10.0.0.1",
    }
    current = restarted | {"group_names": ["dns", "monitoring", "dns_current", "site_lab"]}
    assert console.hosts(["x"], {"x": restarted}) == console.hosts(["x"], {"x": current})
    assert console.hosts(["x"], {"x": restarted})[0]["groups"] == [host_status.EVERY_HOST, "monitoring", "dns"]


REPORT = {
    "run": "20261130-1",
    "operation": "blue-green",
    "outcome": "passed",
    "started": "2026-11-30T01:10:11.100Z",
    "duration_s": 95.2,
    "requests": 28500,
    "failed": 0,
    "longest_gap_ms": 84,
    "longest_gap": {"at": 31.2, "seconds": 0.084, "own": 0.0, "events": []},
    "problems": [],
    "events": [{"at": "2026-11-30T01:10:13.600Z", "host": "app1", "what": "fills the slot"}],
    "seconds": [{"ok": 10, "failed": n % 2, "p99_ms": None if n == 3 else n} for n in range(500)],
    "posts_acknowledged": 3,
}


def test_a_report_in_short_fits_a_page():
    run = console.run(REPORT)
    assert run["events"] == [{"s": 2.5, "host": "app1", "what": "fills the slot"}]
    assert (run["second"], len(run["seconds"])) == (3, 167)
    assert run["seconds"][1] == [10.0, 0.7, 5]
    assert len(json.dumps(run)) < 8000


def test_a_report_without_a_request_is_a_run_all_the_same():
    run = console.run(REPORT | {"seconds": [], "longest_gap": None})
    assert (run["second"], run["seconds"], run["gap"]) == (1, [], None)
