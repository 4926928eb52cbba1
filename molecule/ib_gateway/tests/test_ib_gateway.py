"""What a client and an intruder see of the two gateways, after the active one hung and crashed."""

import json

import pytest
from testinfra.host import Host

ACTIVE = "10.78.18.11:4001"
STANDBY = "10.78.18.12:4001"
PROGRAM = "10.78.18.13:4001"
CLIENT = "PYTHONPATH=/opt/ib-gateway/simulator timeout 10 python3 -m gateway_simulator.client"


def on(name: str) -> pytest.MarkDecorator:
    """Ask on one host only."""
    return pytest.mark.testinfra_hosts(f"ansible://{name}")


@pytest.fixture(autouse=True)
def become(host: Host):
    with host.sudo():
        yield


def command(host: Host, line: str) -> str:
    return host.check_output(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/7462; echo {line} >&3; read -r a <&3; echo $a'")


@on("ibgw-standby")
def test_handshake_through_the_forwarder_from_another_host(host: Host) -> None:
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


@on("ibgw-standby")
def test_program_itself_is_on_loopback_only(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} 10.78.18.11:4101 version").stderr


@on("ibgw-standby")
def test_standby_refuses_and_does_not_start_at_boot(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} {STANDBY} version").stderr
    for unit in ("ib-gateway.service", "ib-gateway-forward.socket"):
        assert not host.service(unit).is_running
        assert not host.service(unit).is_enabled


@on("ibgw-active")
def test_fill_outlived_the_crash_once(host: Host) -> None:
    assert "status=9/KILL" in host.check_output("journalctl --no-pager --unit ib-gateway.service")
    messages = [json.loads(line) for line in host.check_output(f"{CLIENT} {ACTIVE} executions").splitlines()]
    fills = [message for message in messages if message[0] == "11"]
    assert [(fill[4], fill[19]) for fill in fills] == [("IBM", "100.0")]
    log = host.file("/var/lib/ib-gateway/orders.jsonl").content_string.splitlines()
    assert [json.loads(line)["event"] for line in log] == ["placed", "filled"]


@on("ibgw-active")
def test_frozen_gateway_holds_the_port_and_answers_nothing(host: Host) -> None:
    assert command(host, "MODE frozen") == "OK frozen"
    try:
        assert "TimeoutError" in host.run(f"{CLIENT} {ACTIVE} version").stderr
    finally:
        assert command(host, "MODE normal") == "OK normal"
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


@on("ibgw-active")
def test_own_restart_cuts_sessions_and_keeps_the_process(host: Host) -> None:
    before = host.check_output("systemctl show -P MainPID ib-gateway.service")
    host.check_output("systemctl reload ib-gateway.service")
    assert host.check_output("systemctl show -P MainPID ib-gateway.service") == before
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


@on("ibgw-active")
def test_port_is_closed_while_the_gateway_is_stopped(host: Host) -> None:
    host.check_output("systemctl stop ib-gateway.service")
    try:
        assert "refused" in host.run(f"{CLIENT} {ACTIVE} version").stderr
    finally:
        host.check_output("systemctl start ib-gateway.service")
    assert host.run(f"for i in $(seq 50); do {CLIENT} {ACTIVE} version && exit; done; exit 1").rc == 0


def test_login_is_readable_by_the_service_only(host: Host) -> None:
    settings = host.file("/etc/pst/ib-gateway/config.ini")
    assert (settings.user, settings.mode) == ("ib-gateway", 0o400)
    assert host.run("runuser -u nobody -- cat /etc/pst/ib-gateway/config.ini").rc != 0
    assert host.run("runuser -u ib-gateway -- cat /etc/pst/ib-gateway/config.ini").rc == 0


def test_login_is_in_no_journal_and_no_command_line(host: Host) -> None:
    password = "sed -n s/^IbPassword=//p /etc/pst/ib-gateway/config.ini"
    assert len(host.check_output(password)) >= 16
    assert host.run(f"{password} | grep -qFf - /etc/pst/ib-gateway/config.ini").rc == 0
    assert host.run(f"journalctl --no-pager > /tmp/journal; {password} | grep -qFf - /tmp/journal").rc == 1
    assert host.run(f"cat /proc/[0-9]*/cmdline > /tmp/lines; {password} | grep -qFf - /tmp/lines").rc == 1


@on("ibgw-active")
def test_exposure(host: Host) -> None:
    for unit in ("ib-gateway.service", "ib-gateway-forward.service"):
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]


@on("ibgw-program")
def test_program_runs_under_ibc_on_a_display_with_a_cookie(host: Host) -> None:
    client = "PYTHONPATH=/opt/simulator timeout 10 python3 -m gateway_simulator.client"
    assert host.check_output(f"{client} {PROGRAM} version") == "176"
    assert host.service("ib-gateway-display.service").is_running
    started = host.check_output("journalctl --no-pager --unit ib-gateway.service")
    assert "Starting Gateway with this command" in started
    assert host.file("/opt/ib-gateway/ibgateway/1045/ibgateway1").exists, "only IBC may start the program again"
