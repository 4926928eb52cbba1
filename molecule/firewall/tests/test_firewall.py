"""Allowed flows get through and are counted, everything else is dropped and counted."""

import json
from collections.abc import Iterator
from functools import cache

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://fw-mongo"]
ALL = ("fw-lb", "fw-app", "fw-mongo")
LISTEN = """
import signal, socket
kept = [socket.create_server(("", port)) for port in (443, 8080, 27017, 5000)]
signal.pause()
"""
# The time counts from when Python is up: of what is dropped a packet has to have been sent.
CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
"""


@cache
def other(host: Host, name: str) -> Host:
    own = host.backend
    return Host.get_host(f"ansible://{name}", ansible_inventory=own.ansible_inventory, ssh_config=own.ssh_config)


def reaches(host: Host, source: str, target: str, port: int, within: float = 20) -> bool:
    command = "timeout 60 python3 -c %s %s %s %s"
    return bool(other(host, source).run(command, CONNECT, target, str(port), str(within)).rc == 0)


def packets(host: Host, counter: str) -> int:
    with host.sudo():
        listing = json.loads(host.check_output("nft --json list counter inet pst %s", counter))
    return int(next(entry["counter"]["packets"] for entry in listing["nftables"] if "counter" in entry))


@pytest.fixture(scope="module", autouse=True)
def listeners(host: Host) -> Iterator[None]:
    """Every host listens on the ports of all tiers, so that only the firewall can refuse."""
    for name in ALL:
        with other(host, name).sudo():
            other(host, name).check_output(
                "systemctl -q is-active listeners || systemd-run --quiet --collect --unit=listeners python3 -c %s"
                " && timeout 60 sh -c 'until ss -Hltn sport = :5000 | grep -q .; do sleep 0.2; done'",
                LISTEN,
            )
    yield
    for name in ALL:
        with other(host, name).sudo():
            other(host, name).check_output("systemctl stop listeners")


@pytest.mark.parametrize(
    ("source", "target", "port", "counter"),
    [
        ("fw-app", "fw-mongo", 27017, "flow_mongodb"),
        ("fw-lb", "fw-app", 8080, "flow_app"),
        ("fw-app", "fw-lb", 443, "flow_web"),
    ],
)
def test_allowed_flow_connects_and_is_counted(host: Host, source: str, target: str, port: int, counter: str) -> None:
    before = packets(other(host, target), counter)
    assert reaches(host, source, target, port)
    assert packets(other(host, target), counter) == before + 1  # only the packet that opens a connection


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("fw-lb", "fw-mongo", 27017),  # a known port, but another tier
        ("fw-mongo", "fw-app", 8080),
        ("fw-app", "fw-mongo", 443),  # a port that is open on other tiers
        ("fw-app", "fw-mongo", 5000),  # a port of nobody
        ("fw-lb", "fw-app", 22),  # ssh from a host that is no control node
    ],
)
def test_any_other_flow_is_dropped_and_counted(host: Host, source: str, target: str, port: int) -> None:
    before = packets(other(host, target), "dropped")
    assert not reaches(host, source, target, port, within=3)
    assert packets(other(host, target), "dropped") > before


def test_a_host_reaches_itself(host: Host) -> None:
    assert reaches(host, "fw-mongo", "fw-mongo", 5000)


def test_hosts_answer_ping(host: Host) -> None:
    """ICMP stays open: path MTU discovery needs it, and so does whoever looks for a fault."""
    probe = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(5);"
        " s.sendto(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), ('fw-mongo', 0));"
        " assert any(s.recv(64)[20] == 0 for _ in range(5))"
    )
    source = other(host, "fw-lb")
    with source.sudo():
        source.check_output("python3 -c %s", probe)


@pytest.mark.parametrize("name", ["fw-lb", "fw-mongo"])
def test_tables_of_others_are_untouched(host: Host, name: str) -> None:
    """The container engine's name service is such a table."""
    target = other(host, name)
    with target.sudo():
        assert "127.0.0.11" in target.check_output("nft list table ip nat 2>/dev/null")


def test_rules_come_back_after_a_flush_by_the_distributions_service(host: Host) -> None:
    target = other(host, "fw-app")
    with target.sudo():
        target.check_output(
            "systemctl restart nftables.service"
            " && timeout 60 sh -c 'until pst-firewall status | grep -qx current; do sleep 0.2; done'"
        )
        assert "policy drop" in target.check_output("nft list table inet pst")


def test_boot_loads_the_confirmed_rules(host: Host) -> None:
    """This host lost its power in the side effect, with other rules on trial."""
    target = other(host, "fw-lb")
    with target.sudo():
        assert target.service("pst-firewall.service").is_enabled
        assert target.check_output("systemctl is-active pst-firewall.service") == "active"
        assert target.check_output("pst-firewall status") == "current"
