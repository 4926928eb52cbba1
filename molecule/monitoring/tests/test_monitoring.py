"""What Prometheus knows, and who may ask it, after an exporter died and came back."""

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

URL = "https://10.78.19.11:9090"
UNITS = (
    "prometheus-node-exporter.service",
    "prometheus.service",
    "prometheus-alertmanager.service",
    "prometheus-redis-exporter.service",
    "pst-exporter.service",
)
MON, NODE12, NODE13 = "mon", "node12", "node13"

Fetch = Callable[[str, str | None], CommandResult]

testinfra_hosts = ["ansible://mon"]


def query(fetch: Fetch, expression: str) -> list[dict[str, Any]]:
    quoted = "".join(f"%{byte:02x}" for byte in expression.encode())
    answer = json.loads(fetch(f"{URL}/api/v1/query?query={quoted}", "monitoring").stdout)
    assert answer["status"] == "success"
    return answer["data"]["result"]


UP = {
    **{("node", host): "1" for host in (MON, NODE12, NODE13)},
    **{(job, MON): "1" for job in ("prometheus", "alertmanager", "site", "certificates")},
    ("mongodb", NODE12): "1",
    ("redis", NODE13): "1",
    ("sentinel", NODE13): "1",
}


@pytest.fixture(autouse=True)
def _every_target_is_up(fetch: Fetch) -> None:
    """A scrape that was missed because the machine stood still takes the target's figures away until the next one."""
    deadline = time.monotonic() + 60
    while True:
        up = query(fetch, "min_over_time(up[5s])")
        seen = {(series["metric"]["job"], series["metric"]["host"]): series["value"][1] for series in up}
        if seen == UP:
            break
        assert time.monotonic() < deadline, seen
        time.sleep(1)


def test_every_target_is_up(fetch: Fetch) -> None:
    up = {(series["metric"]["job"], series["metric"]["host"]): series["value"][1] for series in query(fetch, "up")}
    assert up == UP


def one(fetch: Fetch, expression: str) -> float:
    (series,) = query(fetch, expression)
    return float(series["value"][1])


def test_the_exporters_say_what_the_servers_say(fetch: Fetch) -> None:
    assert one(fetch, 'mongodb_up{job="mongodb",host="node12",instance="10.78.19.12:27017"}') == 1
    assert one(fetch, "mongodb_replset_my_state") == 1
    assert one(fetch, 'rate(mongodb_op_counters_total{type="command"}[1m])') > 0
    assert one(fetch, "mongodb_oplog_window_seconds") > 0
    assert one(fetch, 'mongodb_wiredtiger_cache_bytes{type="max"}') == 256 * 1024 * 1024
    assert one(fetch, 'redis_up{job="redis",host="node13"}') == 1
    assert one(fetch, 'redis_commands_processed_total{job="redis"}') > 0
    assert one(fetch, 'redis_sentinel_masters{job="sentinel"}') == 1
    assert one(fetch, 'count(redis_sentinel_master_status{job="sentinel",master_name="pst"})') == 1
    assert one(fetch, "pst_site_up") == 1


def test_the_certificates_that_are_shown_are_known(fetch: Fetch) -> None:
    days = {
        (series["metric"]["service"], series["metric"]["host"]): float(series["value"][1])
        for series in query(fetch, "(max_over_time(pst_certificate_expiry_timestamp_seconds[30m]) - time()) / 86400")
    }
    services = {("node", MON), ("mongodb", NODE12), ("redis", NODE13), ("sentinel", NODE13), ("alertmanager", MON)}
    assert services <= set(days)
    assert all(88 < left <= 90 for left in days.values()), days


def test_somebody_was_told_when_redis_died_and_when_it_was_back(host: Host, fetch: Fetch) -> None:
    messages = [json.loads(line) for line in host.check_output("cat /root/alerts.jsonl").splitlines()]
    told = [m for m in messages if m["groupLabels"].get("alertname") == "RedisDown"]
    assert (told[0]["status"], told[-1]["status"]) == ("firing", "resolved")
    assert {(message["path"], message["token"]) for message in told} == {("/alerts", "Bearer scenario-token")}
    alert = told[0]["alerts"][0]
    assert alert["labels"]["host"] == NODE13
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/alert-redis-down.md"
    switch = [message for message in messages if message["path"] == "/watchdog"]
    assert len(switch) > 3, "the dead man's switch"
    assert {m["groupLabels"]["alertname"] for m in switch} == {"Watchdog"}
    assert not [m for m in messages if m["path"] == "/alerts" and m["groupLabels"]["alertname"] == "Watchdog"]


def test_nobody_was_told_of_a_host_that_was_silenced_and_the_silence_has_ended(host: Host, fetch: Fetch) -> None:
    messages = [json.loads(line) for line in host.check_output("cat /root/alerts.jsonl").splitlines()]
    assert not [alert for message in messages for alert in message["alerts"] if alert["labels"].get("host") == NODE12]
    silences = json.loads(fetch("https://10.78.19.11:9093/api/v2/silences", "monitoring").stdout)
    assert {(one["createdBy"], one["status"]["state"]) for one in silences} == {("scenario", "expired")}
    assert {(m["name"], m["value"], m["isRegex"]) for one in silences for m in one["matchers"]} == {
        ("host", NODE12, True)
    }


def test_only_a_certificate_of_monitoring_may_ask_the_exporter(fetch: Fetch) -> None:
    assert "pst_site_up 1" in fetch("https://10.78.19.11:9216/site", "monitoring").stdout
    assert "403" in fetch("https://10.78.19.11:9216/site", "node").stderr


def test_no_password_is_on_a_command_line_or_in_a_file_that_others_may_read(host: Host) -> None:
    assert "scenario-monitor" not in host.check_output("ps -eo args")
    assert host.run("runuser -u nobody -- cat /etc/pst/monitoring/redis.env").rc != 0
    assert host.run("runuser -u nobody -- ls /etc/pst/monitoring").rc != 0


def test_series_have_the_labels_of_the_inventory(fetch: Fetch) -> None:
    (series,) = query(fetch, 'node_uname_info{host="node13"}')
    labels = {name: series["metric"][name] for name in ("site", "tier", "zone", "host", "job", "instance")}
    assert labels == {
        "site": "monitoring",
        "tier": "redis",
        "zone": "b",
        "host": NODE13,
        "job": "node",
        "instance": "10.78.19.13:9100",
    }


def test_dead_exporter_was_seen(fetch: Fetch) -> None:
    (series,) = query(fetch, 'min_over_time(up{job="node",host="node12"}[30m])')
    assert series["value"][1] == "0"


def test_state_of_units_is_known(fetch: Fetch) -> None:
    found = query(fetch, 'node_systemd_unit_state{state="active",name="prometheus-node-exporter.service"} == 1')
    assert {series["metric"]["host"] for series in found} == {MON, NODE12, NODE13}


def test_nothing_listens_on_every_address(host: Host) -> None:
    listening = [line.split()[3] for line in host.check_output("ss -Hltn").splitlines()]
    ours = [
        address for address in listening if address.endswith((":9100", ":9090", ":9093", ":9094", ":9121", ":9216"))
    ]
    assert ours
    assert all(address.startswith("10.78.19.") for address in ours)


def test_rules_are_loaded_and_right(host: Host, fetch: Fetch) -> None:
    answer = json.loads(fetch(f"{URL}/api/v1/rules", "monitoring").stdout)
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert "TargetDown" in {rule["name"] for rule in rules}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    for path in sorted(Path(__file__).parent.glob("rules/*.yml")):
        there = f"/etc/prometheus/rules/{path.stem}_test"
        host.check_output(f"echo {shlex.quote(path.read_text())} > {there}")
        result = host.run(f"promtool test rules {there}; s=$?; rm {there}; exit $s")
        assert result.rc == 0, f"{path.name}: {result.stdout}"


def test_retention_is_bound(fetch: Fetch) -> None:
    flags = json.loads(fetch(f"{URL}/api/v1/status/flags", "monitoring").stdout)["data"]
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("30d", "20GiB")


def test_exposure(host: Host) -> None:
    for unit in UNITS:
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]
