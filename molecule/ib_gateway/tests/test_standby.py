"""The gateway that was active before the hand-over."""

from testinfra.host import Host

CLIENT = "PYTHONPATH=/opt/ib-gateway/simulator timeout 30 python3 -m gateway_simulator.client"

testinfra_hosts = ["ansible://ibgw-1"]


def test_crash_is_in_the_journal(host: Host) -> None:
    assert "status=9/KILL" in host.check_output("journalctl --no-pager --unit ib-gateway.service")


def test_standby_refuses_and_does_not_start_at_boot(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} 10.78.18.11:4001 version").stderr
    for unit in ("ib-gateway.service", "pst-gate.service", "pst-gateway-watch.service"):
        assert not host.service(unit).is_running
    assert not host.service("ib-gateway.service").is_enabled


def test_program_of_the_active_one_is_on_loopback_only(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} 10.78.18.12:4101 version").stderr


def test_gate_of_the_active_one_knows_no_other_gateway(host: Host) -> None:
    """A host that is neither an application node nor a reader is hung up on, before or after its greeting."""
    error = host.run(f"{CLIENT} 10.78.18.12:4001 version").stderr
    assert "EOFError" in error or "ConnectionResetError" in error
