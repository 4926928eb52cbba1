"""What a client and an intruder see of the active gateway, after it hung and crashed."""

import json

from testinfra.host import Host

ACTIVE = "10.78.18.11:4001"
CLIENT = "PYTHONPATH=/opt/ib-gateway/simulator timeout 10 python3 -m gateway_simulator.client"

testinfra_hosts = ["ansible://ibgw-active"]


def command(host: Host, line: str) -> str:
    return host.check_output(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/7462; echo {line} >&3; read -r a <&3; echo $a'")


def test_fill_outlived_the_crash_once(host: Host) -> None:
    assert "status=9/KILL" in host.check_output("journalctl --no-pager --unit ib-gateway.service")
    messages = [json.loads(line) for line in host.check_output(f"{CLIENT} {ACTIVE} executions").splitlines()]
    fills = [message for message in messages if message[0] == "11"]
    assert [(fill[4], fill[19]) for fill in fills] == [("IBM", "100.0")]
    log = host.file("/var/lib/ib-gateway/orders.jsonl").content_string.splitlines()
    assert [json.loads(line)["event"] for line in log] == ["placed", "filled"]


def test_frozen_gateway_holds_the_port_and_answers_nothing(host: Host) -> None:
    assert command(host, "MODE frozen") == "OK frozen"
    try:
        assert "TimeoutError" in host.run(f"{CLIENT} {ACTIVE} version").stderr
    finally:
        assert command(host, "MODE normal") == "OK normal"
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


def test_own_restart_cuts_sessions_and_keeps_the_process(host: Host) -> None:
    before = host.check_output("systemctl show -P MainPID ib-gateway.service")
    host.check_output("systemctl reload ib-gateway.service")
    assert host.check_output("systemctl show -P MainPID ib-gateway.service") == before
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


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


def test_exposure(host: Host) -> None:
    for unit in ("ib-gateway.service", "ib-gateway-forward.service"):
        result = host.run(f"systemd-analyze security --threshold=20 --no-pager {unit}")
        assert result.rc == 0, result.stdout[-200:]
