"""What the standby, and a client on it, see."""

from testinfra.host import Host

ACTIVE = "10.78.18.11:4001"
STANDBY = "10.78.18.12:4001"
CLIENT = "PYTHONPATH=/opt/ib-gateway/simulator timeout 10 python3 -m gateway_simulator.client"

testinfra_hosts = ["ansible://ibgw-standby"]


def test_handshake_through_the_forwarder_from_another_host(host: Host) -> None:
    assert host.check_output(f"{CLIENT} {ACTIVE} version") == "176"


def test_program_itself_is_on_loopback_only(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} 10.78.18.11:4101 version").stderr


def test_standby_refuses_and_does_not_start_at_boot(host: Host) -> None:
    assert "refused" in host.run(f"{CLIENT} {STANDBY} version").stderr
    for unit in ("ib-gateway.service", "ib-gateway-forward.socket"):
        assert not host.service(unit).is_running
        assert not host.service(unit).is_enabled
