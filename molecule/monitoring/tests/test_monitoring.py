"""What Prometheus knows, and who may ask it, after an exporter died and came back."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testinfra.backend.base import CommandResult
from testinfra.host import Host

URL = "https://10.78.19.11:9090"
MON, NODE12, NODE13 = "mon", "node12", "node13"

Fetch = Callable[[str, str | None], CommandResult]

testinfra_hosts = ["ansible://mon"]


def query(fetch: Fetch, expression: str) -> list[dict[str, Any]]:
    quoted = "".join(f"%{byte:02x}" for byte in expression.encode())
    answer = json.loads(fetch(f"{URL}/api/v1/query?query={quoted}", "monitoring").stdout)
    assert answer["status"] == "success"
    return answer["data"]["result"]


def test_every_target_is_up(fetch: Fetch) -> None:
    up = {(series["metric"]["job"], series["metric"]["host"]): series["value"][1] for series in query(fetch, "up")}
    assert up == {("node", MON): "1", ("node", NODE12): "1", ("node", NODE13): "1", ("prometheus", MON): "1"}


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
    ours = [address for address in listening if address.endswith((":9100", ":9090"))]
    assert ours
    assert all(address.startswith("10.78.19.") for address in ours)


def test_rules_are_loaded_and_right(host: Host, fetch: Fetch) -> None:
    answer = json.loads(fetch(f"{URL}/api/v1/rules", "monitoring").stdout)
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert "TargetDown" in {rule["name"] for rule in rules}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    tests = Path(__file__).with_name("rules_test.yml").read_text()
    host.check_output(f"echo {shlex.quote(tests)} > /etc/prometheus/rules_test.yml")
    result = host.run(
        "promtool test rules /etc/prometheus/rules_test.yml; s=$?; rm /etc/prometheus/rules_test.yml; exit $s"
    )
    assert result.rc == 0, result.stdout


def test_retention_is_bound(fetch: Fetch) -> None:
    flags = json.loads(fetch(f"{URL}/api/v1/status/flags", "monitoring").stdout)["data"]
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("30d", "20GiB")


def test_exposure(host: Host) -> None:
    for unit in ("prometheus-node-exporter.service", "prometheus.service"):
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]
