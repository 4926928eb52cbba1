"""One host trades at a time: by systemd, by hand, moved, stopped, lost. The order log of the gateway is the judge."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

from tests.stalls import Stalls

SCENARIO = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = AnsibleRunner(os.environ["ANSIBLE_INVENTORY"])
TRADER = "pst-run@run_stack_handler.service"
GENERATOR = "pst-run@run_strategy_order_generator.service"
TTL_S = 15
RANK_DELAY_S = 4.9  # of the second host of a placement; see side_effect.yml
WAIT_S = 90


def on(name: str) -> Host:
    return INVENTORY.get_host(name, ssh_config=f"{SCENARIO}/state/ssh/config")


def root(name: str, command: str) -> str:
    host = on(name)
    with host.sudo():
        return str(host.check_output(command))


def wait_for(condition: Callable[[], Any], what: str, within: float = WAIT_S) -> float:
    """Return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within, f"not {what} within {within} s"
        time.sleep(0.2)
    return time.monotonic() - started


def active(name: str, unit: str = TRADER) -> bool:
    return str(on(name).run(f"systemctl is-active {unit}").stdout).strip() == "active"


def lease(asked: str, placement: str = "trading") -> dict[str, Any]:
    shown = json.loads(root(asked, f"pst-trading lease show --placement {placement} --json"))
    assert shown["_id"] == placement
    return shown


def holder(asked: str, placement: str = "trading") -> str | None:
    held_by = lease(asked, placement)["holder"]
    return held_by["host"] if held_by else None


def verdict() -> dict[str, Any]:
    command = (
        "PYTHONPATH=/opt/ib-gateway/simulator python3 -m gateway_simulator.oracle /var/lib/ib-gateway/orders.jsonl"
    )
    host = on("trd-gateway")
    with host.sudo():
        return json.loads(host.run(command).stdout)


def more_orders() -> None:
    sent = verdict()["orders_sent"]
    wait_for(lambda: verdict()["orders_sent"] > sent, f"more than {sent} orders")


def is_back(name: str) -> bool:
    try:
        return active(name, "pst-guard.service")
    except RuntimeError:  # ssh: it boots
        return False


def main_pid(name: str) -> str:
    return root(name, f"systemctl show --property=MainPID --value {TRADER}").strip()


def test_each_placement_is_on_the_host_that_it_prefers() -> None:
    assert (holder("trd-app1"), holder("trd-app2", "operations")) == ("trd-app1", "trd-app2")
    wait_for(lambda: active("trd-app1"), "trading on trd-app1")
    assert not active("trd-app2")
    environment = root("trd-app1", f"tr '\\0' '\\n' < /proc/{main_pid('trd-app1')}/environ")
    assert f"PST_LEASE_EPOCH={lease('trd-app1')['epoch']}" in environment.splitlines()
    assert "PYSYS_PRIVATE_CONFIG_DIR=/etc/pst/blue" in environment.splitlines()


def test_orders_reach_the_broker_from_the_holder() -> None:
    more_orders()
    seen = verdict()
    assert (seen["duplicate_orders"], seen["orders_without_lease"]) == ([], [])


def test_a_daily_process_ran_once_and_was_judged() -> None:
    read = (
        "from pst_trading import settings, store; s = settings.load(); "
        "runs = store.connect(s.mongodb)['pst']['runs'].find(); "
        "print([(run['_id']['process'], run['state'], run['attempt']) for run in runs])"
    )
    command = f'PYTHONPATH=/usr/local/lib/pst python3 -c "{read}"'
    wait_for(lambda: "'succeeded'" in root("trd-app2", command), "the run of run_cleaners judged")
    assert root("trd-app2", command).strip() == "[('run_cleaners', 'succeeded', 1)]"


def test_root_cannot_start_it_on_the_wrong_host_and_is_told_who_trades() -> None:
    host = on("trd-app2")
    with host.sudo():
        assert host.run(f"systemctl start {TRADER}").rc != 0
        said = host.check_output(f"journalctl --unit {TRADER} --lines 20 --output cat")
    assert "this host does not hold the lease of trading: held by trd-app1/blue, epoch" in said
    assert not active("trd-app2")


def test_systemctl_does_not_stop_what_trades() -> None:
    host = on("trd-app1")
    with host.sudo():
        refused = host.run(f"systemctl stop {TRADER}")
    assert refused.rc != 0
    assert "Operation refused" in refused.stderr
    assert active("trd-app1")


@pytest.mark.parametrize("name", ["trd-app1", "trd-app2"])
def test_what_holds_a_secret_is_for_those_who_need_it(name: str) -> None:
    host = on(name)
    with host.sudo():
        for path, group, mode in (
            ("/etc/pst/blue/private_config.yaml", "pst", 0o640),
            ("/etc/pst/trading/trading.json", "pst", 0o640),
            ("/etc/pst/trading/mongodb_password", "root", 0o600),
        ):
            file = host.file(path)
            assert (file.user, file.group, file.mode) == ("root", group, mode), path


@pytest.mark.parametrize(("unit", "most"), [("pst-guard", 3.0), ("pst-gateway-link", 1.5), (TRADER, 1.5)])
def test_units_are_confined(unit: str, most: float) -> None:
    said = root("trd-app1", f"systemd-analyze security --no-pager {unit}").strip().splitlines()[-1]
    assert float(said.split(":")[1].split()[0]) <= most, said


def test_the_guard_needs_little() -> None:
    pid = root("trd-app1", "systemctl show --property=MainPID --value pst-guard.service").strip()
    resident = root("trd-app1", f"awk '/^VmRSS/ {{print $2}}' /proc/{pid}/status")
    assert int(resident) < 40 * 1024


def test_the_trader_moves_on_request_and_leaves_no_order_behind() -> None:
    epoch = lease("trd-app1")["epoch"]
    root("trd-app1", "pst-trading lease want trd-app2/blue --wait 120")
    assert lease("trd-app2")["epoch"] == epoch + 1
    assert not active("trd-app1")
    wait_for(lambda: active("trd-app2"), "trading on trd-app2")
    more_orders()
    root("trd-app1", "pst-trading lease want trd-app1/blue --wait 120")
    wait_for(lambda: active("trd-app1"), "trading on trd-app1")
    seen = verdict()
    assert (seen["duplicate_orders"], seen["orders_without_lease"]) == ([], [])


def kill_switch(**variables: str) -> subprocess.CompletedProcess[str]:
    given = json.dumps({f"kill_switch_{key}": value for key, value in variables.items()})
    command = ["ansible-playbook", str(PROJECT / "playbooks/kill-switch.yml"), "-e", given]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)


def test_the_kill_switch_stops_everything_and_its_undo_wants_a_reason() -> None:
    began = time.monotonic()
    with Stalls() as stalled:
        stopped = kill_switch(reason="a test")
    took = time.monotonic() - began
    assert stopped.returncode == 0, stopped.stdout
    assert "Stopped: a majority of MongoDB has the leases revoked" in stopped.stdout
    print(f"kill switch: {took:.1f} s")
    assert lease("trd-app1")["revoked"]["reason"] == "a test"
    assert not active("trd-app1")
    assert not active("trd-app2")
    sent = verdict()["orders_sent"]
    assert kill_switch(reason="again").returncode == 0
    assert kill_switch(undo="true").returncode != 0
    assert lease("trd-app1")["revoked"]["reason"] == "a test"
    assert verdict()["orders_sent"] == sent
    undone = kill_switch(undo="true", reason="tested")
    assert undone.returncode == 0, undone.stdout
    wait_for(lambda: active("trd-app1") or active("trd-app2"), "trading again")
    more_orders()
    assert took < 30 + stalled.seconds


def test_a_lost_host_is_replaced_within_the_lease_and_nothing_is_sent_twice() -> None:
    wait_for(lambda: holder("trd-app2"), "held")
    if holder("trd-app2") != "trd-app1":
        root("trd-app2", "pst-trading lease want trd-app1/blue --wait 120")
    wait_for(lambda: active("trd-app1"), "trading on trd-app1")
    more_orders()
    container = f"pst-{os.environ['MOLECULE_SCENARIO_NAME']}-trd-app1"
    subprocess.run(["docker", "kill", container], check=True, capture_output=True, timeout=30)
    try:
        with Stalls() as stalled:
            lost = lease("trd-app2")
            wait_for(lambda: holder("trd-app2") == "trd-app2", "taken over")
        granted_at, expired_at = (
            datetime.fromisoformat(moment) for moment in (lease("trd-app2")["granted_at"], lost["expires_at"])
        )
        took = (granted_at - expired_at).total_seconds()
        print(f"takeover: {took:.1f} s after the lease's end, machine stood still for {stalled.seconds:.1f} s")
        wait_for(lambda: active("trd-app2"), "trading on trd-app2")
        more_orders()
    finally:
        subprocess.run(["docker", "start", container], check=True, capture_output=True, timeout=30)
    wait_for(lambda: is_back("trd-app1"), "back")
    assert holder("trd-app2") == "trd-app2", "a lease stays where it is"
    seen = verdict()
    assert (seen["duplicate_orders"], seen["orders_without_lease"]) == ([], [])
    assert (lost["holder"]["host"], lost["ttl_ms"]) == ("trd-app1", 1000 * TTL_S)
    assert 0 <= took <= RANK_DELAY_S + 5 + stalled.seconds
