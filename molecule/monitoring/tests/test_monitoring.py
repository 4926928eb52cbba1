"""What Prometheus knows, and who may ask it, after an exporter died and came back."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

URL = "https://10.78.19.11:9090"
PKI = "/etc/pst/pki"
MON, NODE12, NODE13 = "mon", "node12", "node13"


def on(name: str) -> pytest.MarkDecorator:
    """Ask on one host only."""
    return pytest.mark.testinfra_hosts(f"ansible://{name}")


@pytest.fixture(autouse=True)
def become(host: Host):
    with host.sudo():
        yield


def fetch(url: str, certificate: str | None) -> str:
    """Return the command that asks with a certificate, on a bare host: Python's own client."""
    load = f"c.load_cert_chain('{PKI}/{certificate}/{certificate}.pem');" if certificate else ""
    program = (
        f"import ssl,urllib.request as u;c=ssl.create_default_context(cafile='{PKI}/ca.crt');{load}"
        f"print(u.urlopen('{url}',timeout=5,context=c).read().decode())"
    )
    return f"python3 -c {shlex.quote(program)}"


def query(host: Host, expression: str) -> list[dict[str, Any]]:
    quoted = "".join(f"%{byte:02x}" for byte in expression.encode())
    answer = json.loads(host.check_output(fetch(f"{URL}/api/v1/query?query={quoted}", "monitoring")))
    assert answer["status"] == "success"
    return answer["data"]["result"]


@on(MON)
def test_every_target_is_up(host: Host) -> None:
    up = {(series["metric"]["job"], series["metric"]["host"]): series["value"][1] for series in query(host, "up")}
    assert up == {("node", MON): "1", ("node", NODE12): "1", ("node", NODE13): "1", ("prometheus", MON): "1"}


@on(MON)
def test_series_have_the_labels_of_the_inventory(host: Host) -> None:
    (series,) = query(host, 'node_uname_info{host="node13"}')
    labels = {name: series["metric"][name] for name in ("site", "tier", "zone", "host", "job", "instance")}
    assert labels == {
        "site": "monitoring",
        "tier": "redis",
        "zone": "b",
        "host": NODE13,
        "job": "node",
        "instance": "10.78.19.13:9100",
    }


@on(MON)
def test_dead_exporter_was_seen(host: Host) -> None:
    (series,) = query(host, 'min_over_time(up{job="node",host="node12"}[30m])')
    assert series["value"][1] == "0"


@on(MON)
def test_state_of_units_is_known(host: Host) -> None:
    found = query(host, 'node_systemd_unit_state{state="active",name="prometheus-node-exporter.service"} == 1')
    assert {series["metric"]["host"] for series in found} == {MON, NODE12, NODE13}


@on(NODE12)
def test_no_answer_without_a_certificate(host: Host) -> None:
    for url in (f"{URL}/-/healthy", "https://10.78.19.13:9100/metrics"):
        refused = host.run(fetch(url, None))
        assert refused.rc != 0
        assert re.search("certificate.required|bad.certificate", refused.stderr, re.IGNORECASE), refused.stderr


@on(NODE12)
def test_answer_with_a_certificate_of_the_site(host: Host) -> None:
    assert "node_load1" in host.check_output(fetch("https://10.78.19.13:9100/metrics", "node"))


def test_nothing_listens_on_every_address(host: Host) -> None:
    listening = [line.split()[3] for line in host.check_output("ss -Hltn").splitlines()]
    ours = [address for address in listening if address.endswith((":9100", ":9090"))]
    assert ours
    assert all(address.startswith("10.78.19.") for address in ours)


@on(NODE12)
def test_new_certificate_is_served_without_a_restart(host: Host) -> None:
    show = "openssl s_client -connect 10.78.19.12:9100 </dev/null 2>/dev/null | openssl x509 -noout -subject"
    pid = host.check_output("systemctl show -P MainPID prometheus-node-exporter.service")
    folder = f"{PKI}/node"
    assert "CN = node12" in host.check_output(show).replace("CN=", "CN = ")
    host.check_output(f"cp -a {folder} /root/node.kept")
    try:
        host.check_output(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=renewed "
            f"-keyout {folder}/node.key -out {folder}/node.crt 2>/dev/null"
        )
        assert "renewed" in host.check_output(show)
    finally:
        host.check_output(f"rm -r {folder} && mv /root/node.kept {folder}")
    assert "node12" in host.check_output(show)
    assert host.check_output("systemctl show -P MainPID prometheus-node-exporter.service") == pid


@on(MON)
def test_rules_are_loaded_and_right(host: Host) -> None:
    answer = json.loads(host.check_output(fetch(f"{URL}/api/v1/rules", "monitoring")))
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert "TargetDown" in {rule["name"] for rule in rules}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    tests = Path(__file__).with_name("rules_test.yml").read_text()
    host.check_output(f"echo {shlex.quote(tests)} > /etc/prometheus/rules_test.yml")
    result = host.run(
        "promtool test rules /etc/prometheus/rules_test.yml; s=$?; rm /etc/prometheus/rules_test.yml; exit $s"
    )
    assert result.rc == 0, result.stdout


@on(MON)
def test_retention_is_bound(host: Host) -> None:
    flags = json.loads(host.check_output(fetch(f"{URL}/api/v1/status/flags", "monitoring")))["data"]
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("30d", "20GiB")


def test_exposure(host: Host) -> None:
    units = ["prometheus-node-exporter.service"] + ["prometheus.service"] * (host.check_output("hostname") == MON)
    for unit in units:
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]
