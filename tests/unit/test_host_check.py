"""What a host must be, on a made-up root folder and with real sockets on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.pst.platform.plugins.module_utils import host_check

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "proc/meminfo": "MemTotal:       16000000 kB\n",
        "proc/cpuinfo": "flags\t\t: fpu sse avx avx2\n",
        "usr/share/zoneinfo/America/New_York": "TZif",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def whats(
    root: Path, tiers: tuple[str, ...] = (), zone: str = "America/New_York", **minimums: dict[str, float]
) -> list[str]:
    return [f"{problem.what}: {problem.seen}" for problem in host_check.check_host(tiers, minimums, zone, (), 1, root)]


def test_a_good_host_has_no_problem(root: Path) -> None:
    assert whats(root, ("mongodb", "site_lab"), mongodb={"disk_gb": 0.001}) == []


def test_another_system_is_told(root: Path) -> None:
    (root / "etc/os-release").write_text("ID=debian\nVERSION_ID=11\n")
    (problem,) = host_check.check_system(root)
    assert (problem.seen, problem.wanted) == ("debian 11", "debian 12 or 13")


def test_a_host_without_systemd_is_told(root: Path) -> None:
    (root / "run/systemd/system").rmdir()
    assert whats(root) == ["init: no systemd"]


def test_missing_time_zone_data_are_told(root: Path) -> None:
    assert whats(root, zone="Europe/London") == ["time zone data: no /usr/share/zoneinfo/Europe/London"]


def test_a_cpu_without_avx_is_told_for_mongodb_alone(root: Path) -> None:
    (root / "proc/cpuinfo").write_text("flags : fpu sse\n")
    assert whats(root, ("redis",)) == []
    assert whats(root, ("mongodb",), mongodb={"disk_gb": 0.001}) == ["CPU for mongodb: no avx"]


def test_little_memory_is_told_and_the_site_may_lower_the_bar(root: Path) -> None:
    (root / "proc/meminfo").write_text("MemTotal:  1000000 kB\n")
    assert whats(root, ("redis",)) == ["memory for redis: 976 MB"]
    assert whats(root, ("redis",), redis={"memory_mb": 512}) == []


def test_a_small_disk_is_told(root: Path) -> None:
    (problem,) = whats(root, ("redis",), redis={"disk_gb": 10**6})
    assert problem.startswith("disk for redis: ")


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_open_port_and_a_closed_one_are_both_reached(listener: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert host_check.reach(host_check.Peer("p", "127.0.0.1", listener, "f"), 1) == ""
    assert host_check.reach(host_check.Peer("p", "127.0.0.1", closed, "f"), 1) == ""


def test_a_peer_that_stays_silent_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        # A full backlog drops what comes next, as a firewall does.
        filled = [socket.socket() for _ in range(4)]
        for client in filled:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        (problem,) = host_check.check_peers([host_check.Peer("redis1", "127.0.0.1", port, "redis")], 0.2)
        for client in filled:
            client.close()
    assert str(problem.seen) == f"redis1 (127.0.0.1) port {port}: no answer in 0.2 s"
    assert problem.what == "flow redis"


HOSTVARS = {name: {"site_group": "site_t", "site_address": f"192.0.2.{number}"} for number, name in enumerate("abm")}
HOSTVARS["far"] = {"site_group": "site_u", "site_address": "198.51.100.1"}
GROUPS = {"site_t": ["a", "b", "m"], "site_u": ["far"], "app": ["a", "b"], "mongodb": ["m", "far"]}


def test_peers_follow_the_flows_of_the_firewall() -> None:
    flows = [
        {"name": "db", "from": ["app"], "to": ["mongodb"], "ports": [27017]},
        {"name": "vrrp", "from": ["app"], "to": ["app"], "proto": "vrrp"},
        {"name": "exporter", "from": ["mongodb"], "to": ["site"], "ports": [9100]},
        {"name": "web", "from": ["any"], "to": ["app"], "ports": [443]},
    ]
    peers = host_check.peers_of(flows, "a", HOSTVARS, GROUPS)
    assert peers == [{"host": "m", "address": "192.0.2.2", "port": 27017, "flow": "db"}]
    assert [peer["host"] for peer in host_check.peers_of(flows, "m", HOSTVARS, GROUPS)] == ["a", "b"]
    flows[0]["sites"] = "all"
    assert [peer["host"] for peer in host_check.peers_of(flows, "a", HOSTVARS, GROUPS)] == ["m", "far"]


def test_the_flows_of_the_firewall_have_the_shape_that_is_read_here() -> None:
    flows = yaml.safe_load((REPOSITORY / "roles/firewall/defaults/main.yml").read_text())["firewall_flows"]
    assert {peer["port"] for peer in host_check.peers_of(flows, "a", HOSTVARS, {**GROUPS, "app_nodes": ["a"]})} == {
        27017,
        27117,
        27118,
    }


@given(
    offset=st.floats(-5, 5),
    trips=st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)), min_size=1, max_size=5),
)
def test_a_clock_is_called_wrong_only_where_it_is(offset: float, trips: list[tuple[float, float]]) -> None:
    samples = [(100.0, 100.0 + there + offset, 100.0 + there + back) for there, back in trips]
    problem = host_check.clock_problem(samples, limit=0.5)
    if abs(offset) <= 0.5 - 1e-6:
        assert problem is None
    if abs(offset) > 0.5 + min(there + back for there, back in trips) + 1e-6:
        assert problem is not None


def test_a_wrong_clock_is_told_with_its_offset() -> None:
    problem = host_check.clock_problem([(100.0, 102.0, 100.1), (200.0, 202.1, 200.5)], limit=0.5)
    assert problem is not None
    assert problem.seen == "+1.950 s from the control node's (known to ±0.050 s)"


def test_the_report_holds_hosts_without_an_answer() -> None:
    problem = {"what": "init", "seen": "no systemd", "wanted": "systemd as process 1"}
    gone = {"unreachable": True, "msg": "Task failed: Data could not be sent … over ssh: connection refused"}
    rows = host_check.report({"a": {"problems": [problem]}, "b": {"problems": []}, "c": gone})
    assert [(row["host"], row["seen"], row["ok"]) for row in rows] == [
        ("a", "no systemd", False),
        ("c", "connection refused", False),
    ]
