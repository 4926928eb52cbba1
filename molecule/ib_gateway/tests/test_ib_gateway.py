"""The gateway that is active after the hand-over, and what protects it."""

import json
import time

from testinfra.host import Host

CLIENT = "PYTHONPATH=/opt/ib-gateway/simulator timeout 30 python3 -m gateway_simulator.client 10.78.18.12:4001"

testinfra_hosts = ["ansible://ibgw-2"]


def command(host: Host, line: str) -> str:
    return host.check_output(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/7462; echo {line} >&3; read -r a <&3; echo $a'")


def state(host: Host) -> str:
    return json.loads(host.file("/run/pst/gateway/state.json").content_string)["state"]


def reached(host: Host, wanted: str) -> bool:
    end = time.monotonic() + 20
    while state(host) != wanted and time.monotonic() < end:
        time.sleep(0.5)
    return state(host) == wanted


def test_the_gateway_host_may_read(host: Host) -> None:
    assert host.check_output(f"{CLIENT} version") == "176"


def test_fill_outlived_the_crash_and_the_hand_over_once(host: Host) -> None:
    messages = [json.loads(line) for line in host.check_output(f"{CLIENT} executions").splitlines()]
    fills = [message for message in messages if message[0] == "11"]
    assert [(fill[4], fill[19]) for fill in fills] == [("IBM", "100.0")]


def test_frozen_gateway_holds_the_port_and_is_called_frozen(host: Host) -> None:
    assert reached(host, "ready")
    assert command(host, "MODE frozen") == "OK frozen"
    try:
        assert "TimeoutError" in host.run(f"{CLIENT} version").stderr
        assert reached(host, "frozen")
    finally:
        assert command(host, "MODE normal") == "OK normal"
    assert reached(host, "ready")


def test_own_restart_cuts_sessions_and_keeps_the_process(host: Host) -> None:
    before = host.check_output("systemctl show -P MainPID ib-gateway.service")
    host.check_output("systemctl reload ib-gateway.service")
    assert host.check_output("systemctl show -P MainPID ib-gateway.service") == before
    assert host.check_output(f"{CLIENT} version") == "176"


def test_port_is_closed_while_the_gateway_is_stopped(host: Host) -> None:
    host.check_output("systemctl stop ib-gateway.service")
    try:
        assert "refused" in host.run(f"{CLIENT} version").stderr
        assert not host.file("/run/pst/gateway/state.json").exists
    finally:
        host.check_output("systemctl start ib-gateway.service")
    assert host.run(f"for i in $(seq 50); do {CLIENT} version && exit; done; exit 1").rc == 0


def test_secrets_are_readable_by_their_service_only(host: Host) -> None:
    settings = host.file("/etc/pst/ib-gateway/config.ini")
    assert (settings.user, settings.mode) == ("ib-gateway", 0o400)
    assert host.run("runuser -u nobody -- cat /etc/pst/ib-gateway/config.ini").rc != 0
    assert host.run("runuser -u pst-gate -- cat /etc/pst/ib-gateway/config.ini").rc != 0
    assert host.run("runuser -u ib-gateway -- cat /etc/pst/ib-gateway/config.ini").rc == 0
    assert host.run("runuser -u ib-gateway -- cat /etc/pst/trading/gate_password").rc != 0
    assert host.run("runuser -u pst-gate -- cat /etc/pst/trading/gate_password").rc == 0


def test_secrets_are_in_no_journal_and_no_command_line(host: Host) -> None:
    for password in (
        "sed -n s/^IbPassword=//p /etc/pst/ib-gateway/config.ini",
        "cat /etc/pst/trading/gate_password",
    ):
        assert len(host.check_output(password)) >= 16
        host.check_output("journalctl --no-pager > /root/journal; cat /proc/[0-9]*/cmdline > /root/lines")
        for file in ("journal", "lines"):
            assert host.run(f"{password} | grep -qFf - /root/{file}").rc == 1


def test_events_of_the_login_are_told_at_their_priority(host: Host) -> None:
    command(host, "MODE second_factor_pending")
    try:
        assert reached(host, "second_factor_pending")
        told = "journalctl --no-pager --output=cat --priority=warning --unit=pst-gateway-watch.service"
        assert "gateway second_factor_pending" in host.check_output(told)
    finally:
        command(host, "MODE normal")
    assert reached(host, "ready")


def test_exposure(host: Host) -> None:
    for unit in ("ib-gateway.service", "pst-gate.service", "pst-gateway-watch.service"):
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]


def test_memory_of_the_gate(host: Host) -> None:
    pid = host.check_output("systemctl show -P MainPID pst-gate.service")
    resident = int(host.check_output(f"awk '/^VmRSS/ {{print $2}}' /proc/{pid}/status"))
    assert resident < 60 * 1024
