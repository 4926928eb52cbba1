"""make drill-pysystemtrade: the real pysystemtrade, deployed on the lab by the same roles and variables.

Where it comes from is yours to say; this project carries none of it:

    PYSYSTEMTRADE_SOURCE=https://….git PYSYSTEMTRADE_REF=v1.80 make drill-pysystemtrade
    PYSYSTEMTRADE_SOURCE=/…/pysystemtrade-1.80.tar.gz PYSYSTEMTRADE_SHA256=… make drill-pysystemtrade

Its processes start under the guard, process control works, STOP drains, another host takes over, the dashboard answers
behind the balancers. The lab is made anew for it, and removed afterwards. About 10 minutes. The broker is the
simulator; nothing is traded.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import lab
import pytest
import trading
from trading import HANDLER, TRADER

SOURCE = os.environ.get("PYSYSTEMTRADE_SOURCE", "")
LOCK = lab.ROOT / "roles" / "app" / "files" / "locks" / "pysystemtrade-1.80.txt"
VERSION = "pysystemtrade-1.80"
WEEK = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
DAILY = "run_cleaners"
SETTINGS: dict[str, Any] = {
    "app_release_source": SOURCE,
    "app_release_source_ref": os.environ.get("PYSYSTEMTRADE_REF", ""),
    "app_release_source_checksum": f"sha256:{os.environ['PYSYSTEMTRADE_SHA256']}"
    if "PYSYSTEMTRADE_SHA256" in os.environ
    else "",
    "app_release_version": VERSION,
    "app_release_requirements": str(LOCK),
    "app_release_python_versions": ["3.11"],
    "trading_private_config_extra": {},
    # Both at any hour and day, so that the drill need not wait for a window. The others keep pysystemtrade's.
    "trading_processes_extra": [
        {"name": HANDLER, "start": "00:00", "stop": "23:59", "days": WEEK},
        {"name": DAILY, "start": "00:00", "stop": "23:59", "days": WEEK},
    ],
}


def processes() -> dict[str, dict[str, Any]]:
    """Process control, as an agent tells it through the balancers."""
    _, body = lab.ask("/api/v1/processes", token=lab.secret("app_agent_token"))
    return {process["process"]: process for process in json.loads(body)["processes"]}


def trader() -> str:
    """Return the one host whose handler process control says to be running, and which runs it."""
    hosts = trading.traders()
    entry = processes()[HANDLER]
    assert len(hosts) == 1, f"{TRADER} runs on {hosts}, wanted one host"
    assert entry["running"], f"process control has {entry}, wanted a running {HANDLER}"
    assert entry["process_id"] == trading.main_pid(hosts[0], TRADER), f"process control has {entry}"
    return hosts[0]


@pytest.fixture(scope="session", autouse=True)
def platform() -> Iterator[None]:
    """A lab of its own, not that of conftest.py: the reference application's state is not for the real one."""
    assert SOURCE, "PYSYSTEMTRADE_SOURCE is empty, wanted: the repository or the archive of a pysystemtrade like v1.80"
    made = lab.anew("-e", json.dumps(SETTINGS))
    lab.record("pysystemtrade_deployed", seconds=round(made.seconds, 1))
    yield
    lab.succeed(lab.playbook("lab-down"))


def test_its_dashboard_answers_behind_the_balancers() -> None:
    version = json.loads(lab.ask("/version")[1])
    assert version["release"] == VERSION, version
    status, page = lab.ask("/", timeout=60)
    assert status == 200
    assert "stack-tl" in page, page[:500]  # its traffic lights


def test_its_page_of_processes_is_safe() -> None:
    trading_on = lab.eventually("the handler runs", trader, 180, 2)
    for host in lab.APPS:
        page = trading.on_loopback(host, "/processes")
        assert HANDLER in page
        assert "mongodb://" not in page
    assert trader() == trading_on


def test_its_handler_stays_and_talks_to_the_broker() -> None:
    host = lab.eventually("the handler runs", trader, 180, 2)
    before = processes()[HANDLER]["last_activity"]
    pid = trading.main_pid(host, TRADER)
    lab.eventually(
        "a method of it has run since",
        lambda: processes()[HANDLER]["last_activity"] not in (None, before),
        180,
        2,
    )
    assert trading.main_pid(host, TRADER) == pid


def test_a_daily_process_runs_once_and_has_succeeded_by_process_control() -> None:
    def ended() -> bool:
        entry = processes()[DAILY]
        return bool(entry["last_end"]) and not entry["running"] and not entry["crashed"]

    lab.eventually(f"{DAILY} has run", ended, 300, 2)


def test_stop_drains() -> None:
    host = lab.eventually("the handler runs", trader, 180, 2)
    began = time.monotonic()
    lab.ssh(host, f"pst-trading stop {HANDLER}", timeout=330)
    lab.record("pysystemtrade_stopped", seconds=round(time.monotonic() - began, 1))
    entry = processes()[HANDLER]
    assert (entry["status"], entry["running"], entry["crashed"]) == ("STOP", False, False), entry
    assert trading.has_no_trader(host)
    lab.ssh(host, f"pst-trading start {HANDLER}")
    lab.eventually("the handler runs again", trader, 180, 2)


def test_another_host_takes_over_from_one_that_lost_its_power() -> None:
    host = lab.eventually("the handler runs", trader, 180, 2)
    began = time.monotonic()
    lab.engine("kill", lab.container(host))
    try:
        lab.eventually("the handler runs elsewhere", lambda: trader() != host, 180, 1)
        lab.record("pysystemtrade_taken_over", seconds=round(time.monotonic() - began, 1))
    finally:
        trading.boot(host)
