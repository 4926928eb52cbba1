"""The gate as an application node meets it, with the lease moved by hand."""

import json
import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

from tests.stalls import Stalls

GATE = "10.78.18.12:4001"
TRADER = "PYTHONPATH=/opt/ib-gateway/simulator timeout 180 python3 /opt/trader.py"
LEASE = "PYTHONPATH=/usr/local/lib/pst python3 -P /opt/lease.py"

RECOVER = """
from pst_trading import recover, settings
report = recover.recover(settings.load(), print)
print("cancelled", len(report.cancelled), "foreign", report.foreign)
"""

testinfra_hosts = ["ansible://ibgw-store"]


def until(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def lines(output: str) -> list[tuple[float, str]]:
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in output.splitlines()]


def trading(host: Host, verb: str, client_id: int) -> Callable[[], str]:
    """Start a trader; what is returned tells what it has said so far."""
    file = f"/root/{verb}"
    host.check_output(f"rm -f {file}; sh -c '{TRADER} {verb} {GATE} {client_id} > {file} 2>&1 &'")
    return lambda: host.run(f"cat {file}").stdout


@pytest.fixture
def gateway(host: Host) -> Host:
    own = host.backend
    return Host.get_host(
        "ansible://ibgw-2?sudo=true", ansible_inventory=own.ansible_inventory, ssh_config=own.ssh_config
    )


@pytest.fixture(autouse=True)
def _end_the_lease(host: Host):
    yield
    host.check_output(f"{LEASE} release")


def test_an_order_of_the_holder_passes(host: Host) -> None:
    host.check_output(f"{LEASE} hold ibgw-store 600")
    said = [text for _, text in lines(host.check_output(f"{TRADER} order {GATE} 101"))]
    assert said == ["passed", "alive"]


def test_an_order_of_another_host_is_refused_and_its_connection_lives(host: Host) -> None:
    host.check_output(f"{LEASE} hold ibgw-app 600")
    (_, refused), (_, alive) = lines(host.check_output(f"{TRADER} order {GATE} 102"))
    assert refused.startswith("refused Read-only: ibgw-app/blue holds the lease of trading")
    assert refused.endswith("this is ibgw-store")
    assert alive == "alive"


def test_the_old_holder_is_cut_when_the_lease_moves(host: Host) -> None:
    host.check_output(f"{LEASE} hold ibgw-store 600")
    said = trading(host, "until-cut", 103)
    until(lambda: "passed" in said())
    with Stalls() as stalled:
        host.check_output(f"{LEASE} hold ibgw-app 600")
        moved = time.monotonic()
        until(lambda: "cut" in said())
    (_, passed), (cut_at, cut) = lines(said())
    assert (passed, cut) == ("passed", "cut")
    assert cut_at - moved < 6 + stalled.seconds


def test_orders_stop_within_the_ttl_when_mongodb_is_away(host: Host) -> None:
    # So long that the trader is up while it lasts, on a busy machine as well.
    host.check_output(f"{LEASE} hold ibgw-store 40")
    held = time.monotonic()
    with Stalls() as stalled:
        trader = trading(host, "until-refused", 104)
        until(lambda: "passed" in trader())
        host.check_output("systemctl kill --signal STOP mongod.service")
        try:
            until(lambda: "alive" in trader())
        finally:
            host.check_output("systemctl kill --signal CONT mongod.service")
    (passed_at, passed), (refused_at, refused), (_, alive) = lines(trader())
    assert (passed, refused.split()[0], alive) == ("passed", "refused", "alive")
    assert refused_at - passed_at > 2
    assert refused_at - held < 40 + 10 + stalled.seconds, "after the ttl, and after two reads that got no answer"


@pytest.fixture
def link(host: Host):
    host.check_output(
        "systemd-run --quiet --unit=link --setenv=PYTHONPATH=/usr/local/lib/pst python3 -P -m pst_trading link"
    )
    until(lambda: host.run("ss -Hltn src 127.0.0.1:4001").stdout)
    yield "127.0.0.1:4001"
    host.check_output("systemctl stop link")


def recover(host: Host):
    return host.run(f"PYTHONPATH=/usr/local/lib/pst python3 -P - <<'EOF'\n{RECOVER}\nEOF")


def test_the_link_finds_the_gateway_that_is_active(host: Host, link: str) -> None:
    host.check_output(f"{LEASE} hold ibgw-store 600")
    assert "passed" in host.check_output(f"{TRADER} order {link} 111")


def test_the_recovery_takes_back_what_rests_for_the_holder_and_for_nobody_else(host: Host, link: str) -> None:
    host.check_output(f"{LEASE} hold ibgw-store 600")
    host.check_output(f"{TRADER} order {link} 121; {TRADER} order {link} 122; {TRADER} order {link} 950")
    host.check_output(f"{LEASE} hold ibgw-app 600")
    refused = recover(host)
    assert refused.rc != 0
    # The gate cuts: an error would say that the order has ended.
    assert "; open: " in refused.stderr
    assert "(client 121, order" in refused.stderr
    host.check_output(f"{LEASE} hold ibgw-store 600")
    done = recover(host)
    assert done.rc == 0, done.stderr
    taken = {(event["client_id"], event["event"]) for event in map(json.loads, done.stdout.splitlines()[:-1])}
    assert {(121, "order cancelled"), (122, "order cancelled")} <= taken
    assert 950 not in {client for client, _ in taken}
    assert recover(host).stdout.split()[:2] == ["cancelled", "0"]


def test_the_kill_switch_stops_the_holder_until_it_is_undone(host: Host, gateway: Host) -> None:
    host.check_output(f"{LEASE} hold ibgw-store 600")
    gateway.check_output("touch /run/pst/gate/closed")
    try:
        (_, refused), _ = lines(host.check_output(f"{TRADER} order {GATE} 105"))
        assert "the gate is closed" in refused
    finally:
        gateway.check_output("rm /run/pst/gate/closed")
    assert "passed" in host.check_output(f"{TRADER} order {GATE} 105")


def test_every_order_is_on_record_at_the_gate_and_none_but_those_reached_the_broker(host: Host, gateway: Host) -> None:
    host.check_output(f"{LEASE} hold ibgw-app 600")
    host.check_output(f"{TRADER} order {GATE} 106")
    host.check_output(f"{LEASE} hold ibgw-store 600")
    host.check_output(f"{TRADER} order {GATE} 107")
    records = [json.loads(line) for line in gateway.check_output("cat /var/log/pst/gate-orders.jsonl").splitlines()]
    verdicts = {(record["client_id"], record["verdict"]) for record in records if record["client_id"] in (106, 107)}
    assert verdicts == {(106, "refused"), (107, "passed")}
    log = host.check_output("cat /var/lib/private/ib-gateway-broker/orders.jsonl").splitlines()
    placed = {json.loads(line).get("client_id") for line in log}
    assert 107 in placed
    assert 106 not in placed
