"""The way of the broker's program: installed unattended, under IBC, on a display of its own."""

from testinfra.host import Host

PROGRAM = "10.78.18.13:4001"
CLIENT = "PYTHONPATH=/opt/simulator timeout 30 python3 -m gateway_simulator.client"

testinfra_hosts = ["ansible://ibgw-program"]


def test_frozen_program_was_ended_by_its_watch_and_came_back(host: Host) -> None:
    told = "journalctl --no-pager --output=cat --priority=err --unit=pst-gateway-watch.service"
    assert "it is restarted" in host.check_output(told)
    assert int(host.check_output("systemctl show -P NRestarts ib-gateway.service")) >= 1
    assert host.file("/run/pst/gateway/state.json").contains('"state": "ready"')


def test_program_runs_under_ibc_on_a_display_with_a_cookie(host: Host) -> None:
    assert host.check_output(f"{CLIENT} {PROGRAM} version") == "176"
    assert host.service("ib-gateway-display.service").is_running
    started = host.check_output("journalctl --no-pager --unit ib-gateway.service")
    assert "Starting Gateway with this command" in started
    assert host.file("/opt/ib-gateway/ibgateway/1045/ibgateway1").exists, "only IBC may start the program again"
