"""The guard in a world of fakes: takeover, renewals that fail, adoption, drains, recovery, daily runs, the watchdog."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from datetime import datetime
from functools import partial

import pytest
from fakes import TICK_S, World
from pst_trading import control, guard
from pst_trading.guard import PULSE_S, Pulse
from pst_trading.processes import ORDER_SENDER
from pst_trading.runner import Leave
from pst_trading.settings import DAYS, LeaseSettings
from pst_trading.units import UnitsError, UnitState

TTL, RENEW, MARGIN, DRAIN_AFTER = 15, 2, 3, 5
UNIT = f"pst-run@{ORDER_SENDER}.service"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def trading(world):
    """The world with app1 trading."""
    world.run_until(lambda: world.running(ORDER_SENDER) == ["app1"])
    world.run(3)
    world.log.clear()
    return world


def leave(world, host="app1", placement="trading"):
    """Ask for a leave as the socket does, and let time pass until it is answered."""
    node = world.nodes[host]
    node.runner(placement).keeper.files.out.touch()
    asked = node.runner(placement).leave = Leave()
    world.run_until(asked.done.is_set, 400)
    return asked.result


# --- taking and keeping -----------------------------------------------------------------------------------------------


def test_the_first_in_rank_takes_the_lease_and_runs_what_is_due(world):
    took = world.run_until(lambda: world.running(ORDER_SENDER) == ["app1"])
    assert took < 5
    world.run(60)
    assert world.holders() == ["app1"]
    assert world.nodes["app1"].units.started == [ORDER_SENDER]
    assert world.nodes["app2"].units.started == []
    assert world.holders("strategies") == ["app2"]


def test_the_files_say_who_holds_the_lease_and_until_when(trading):
    files = trading.nodes["app1"].runner().keeper.files
    grant = files.read_grant()
    assert grant.holder.host == "app1"
    assert trading.now < grant.deadline == grant.valid_until - MARGIN
    assert files.environment.read_text() == (
        "PST_LEASE_PLACEMENT=trading\nPST_LEASE_EPOCH=1\nPST_LEASE_HOLDER=app1/blue\n"
    )
    assert files.grant.stat().st_mode & 0o777 == files.environment.stat().st_mode & 0o777 == 0o640
    assert not trading.nodes["app2"].runner().keeper.files.grant.exists()


def test_another_host_takes_over_within_ttl_and_5_s_and_recovers_first(trading):
    trading.lose_host("app1")
    trading.control.put_orders(("BROKER_ORDER_STACK", 7))
    took = trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])
    assert TTL - 2 < took <= TTL + 5
    assert trading.log == ["app2 acquires trading", "recovers", "app2 starts run_stack_handler"]
    assert trading.lease()["epoch"] == 2
    assert trading.lease()["ended"] == "expired"


def test_nothing_starts_while_the_recovery_fails(trading):
    fails = True

    def recover():
        trading.log.append("recovers")
        if fails:
            raise ConnectionError("no gateway")
        return "2 orders cancelled"

    trading.recover = recover
    trading.lose_host("app1")
    trading.run_until(lambda: trading.log.count("recovers") == 4, 90)
    assert trading.holders() == ["app2"]
    assert trading.running(ORDER_SENDER) == []
    assert "no gateway" in trading.nodes["app2"].runner().status()["problem"]
    assert not trading.nodes["app2"].runner().keeper.files.environment.exists()
    fails = False
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])


# --- renewals that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut_off", "unwritable"])
def test_without_renewals_it_kills_before_the_lease_expires(trading, fault):
    runner = trading.nodes["app1"].runner()
    trading.deaf = {ORDER_SENDER}
    setattr(trading, fault, {"app1"})
    sent = runner.keeper.grant.sent_at
    trading.run_until(lambda: not trading.running(ORDER_SENDER))
    assert "app1 kills trading" in trading.log
    assert TTL - MARGIN <= trading.now - sent <= TTL - MARGIN + 2 * TICK_S
    assert not runner.keeper.files.grant.exists()
    assert not runner.keeper.files.environment.exists()
    trading.deaf = set()
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])
    assert trading.log.index("app1 kills trading") < trading.log.index("app2 acquires trading")
    assert "recovers" in trading.log


@pytest.mark.parametrize("seconds", [4, 7, 7.5, 8, 9])
def test_a_silence_of_the_store_that_ends_in_time_is_no_reason_to_stop(trading, seconds):
    trading.cut_off = {"app1", "app2"}
    trading.run(seconds)
    trading.cut_off = set()
    trading.run(30)
    assert trading.statuses == []
    assert trading.nodes["app1"].units.started == [ORDER_SENDER]
    assert trading.running(ORDER_SENDER) == ["app1"]


def test_it_drains_what_it_can_when_renewals_fail(trading):
    sent = trading.nodes["app1"].runner().keeper.grant.sent_at
    trading.unwritable = {"app1", "app2"}
    trading.run_until(lambda: not trading.running(ORDER_SENDER))
    (stopped_at, status), *_ = trading.statuses
    assert status == "STOP"
    assert DRAIN_AFTER <= stopped_at - sent - RENEW <= DRAIN_AFTER + 2
    assert "app1 kills trading" not in trading.log


def test_renewals_that_succeed_again_after_the_drain_let_trading_go_on(trading):
    trading.unwritable = {"app1", "app2"}
    trading.run_until(lambda: not trading.running(ORDER_SENDER))
    trading.unwritable = set()
    trading.run(20)
    assert trading.running(ORDER_SENDER) == ["app1"]
    assert trading.lease()["epoch"] == 1
    assert trading.control[ORDER_SENDER].status == "GO"
    assert trading.stored["drains"].documents == []


def test_who_killed_and_finds_the_store_again_says_so_and_recovers(trading):
    trading.deaf = {ORDER_SENDER}
    trading.cut_off = {"app1", "app2"}
    trading.run_until(lambda: "app1 kills trading" in trading.log)
    trading.cut_off = set()
    trading.deaf = set()
    trading.run_until(lambda: bool(trading.running(ORDER_SENDER)))
    assert "app1 releases trading" in trading.log
    assert trading.lease()["ended"] == "killed"
    assert "recovers" in trading.log


@pytest.mark.parametrize("fault", ["cut_off", "frozen"])
def test_who_does_not_get_the_lease_back_forgets_once_that_processes_were_killed(trading, fault):
    units = trading.nodes["app1"].units
    trading.deaf = {ORDER_SENDER}
    setattr(trading, fault, {"app1"})
    trading.run(TTL + 1)
    trading.deaf = set()
    trading.run_until(lambda: "app2" in trading.running(ORDER_SENDER))
    setattr(trading, fault, set())
    trading.run(15)
    assert trading.running(ORDER_SENDER) == ["app2"]
    assert "app1 kills trading" in trading.log
    assert trading.log.count("app1 forgets run_stack_handler") == 1
    assert units.failed == set()
    units.failed.add(UNIT)
    asked = units.asked
    trading.run(30)
    assert (units.failed, units.asked) == ({UNIT}, asked), "what fails later is to be seen, and costs nothing"


def test_what_is_still_going_down_is_forgotten_when_it_has_failed(trading):
    """systemd learns of a kill a moment later than the guard."""
    units = trading.nodes["app2"].units
    trading.restart_guard("app2")
    states = iter([UnitState("deactivating", "success", job=False)] * 3)
    known = units.state
    units.state = lambda unit: next(states, None) or known(unit)
    units.failed.add(UNIT)
    trading.run(10)
    assert units.failed == set()


def test_a_holder_forgets_no_failure(trading):
    trading.nodes["app1"].units.ends(ORDER_SENDER, crashes=True)
    trading.run(60)
    assert [line for line in trading.log if "forgets" in line] == []


# --- adoption ---------------------------------------------------------------------------------------------------------


def test_a_guard_that_comes_back_in_time_adopts_and_the_trader_does_not_notice(trading):
    trading.crash_guard("app1")
    trading.run(5)
    trading.restart_guard("app1")
    trading.run(30)
    assert trading.holders() == ["app1"]
    assert trading.running(ORDER_SENDER) == ["app1"]
    assert trading.nodes["app1"].units.started == [ORDER_SENDER]
    assert trading.lease()["epoch"] == 1
    assert "app1 kills trading" not in trading.log
    assert "recovers" not in trading.log


def test_an_adopted_lease_starts_nothing_before_a_renewal_has_confirmed_it(trading):
    trading.crash_guard("app1")
    trading.nodes["app1"].units.running.clear()
    trading.cut_off = {"app1"}
    trading.restart_guard("app1")
    trading.run(8)
    assert trading.nodes["app1"].units.started == [ORDER_SENDER]
    assert trading.holders() == []


def test_a_guard_that_comes_back_too_late_kills_first(trading):
    trading.crash_guard("app1")
    trading.cut_off = {"app2"}  # so that the lease is still its own
    trading.run(TTL)
    trading.restart_guard("app1")
    trading.run_until(lambda: bool(trading.holders()))
    killed = trading.log.index("app1 kills trading")
    assert killed < trading.log.index("app1 releases trading") < trading.log.index("app1 acquires trading")
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"])
    assert trading.log.index("recovers") < trading.log.index("app1 starts run_stack_handler")
    assert trading.nodes["app1"].units.started == [ORDER_SENDER] * 2


def test_a_frozen_holder_finds_itself_replaced_and_kills(trading):
    trading.frozen = {"app1"}
    trading.run(40)
    assert trading.holders() == ["app2"]
    trading.frozen = set()
    trading.run(1)
    assert trading.running(ORDER_SENDER) == ["app2"]
    assert "app1 kills trading" in trading.log
    trading.run(30)
    assert trading.holders() == ["app2"]
    assert trading.lease()["epoch"] == 2


def test_what_runs_without_a_lease_is_killed(trading):
    node = trading.nodes["app2"]
    node.units.running[UNIT] = "trading"
    trading.run(2)
    assert trading.running(ORDER_SENDER) == ["app1", "app2"], "the check before a start needs its time to say why"
    trading.run(2)
    assert trading.running(ORDER_SENDER) == ["app1"]
    assert trading.holders() == ["app1"]


def test_a_lease_from_before_the_last_boot_is_too_late(trading):
    """The clock begins anew at each boot."""
    trading.crash_guard("app1")
    trading.nodes["app1"].units.running.clear()
    trading.now -= 500
    trading.restart_guard("app1")
    assert trading.holders() == []
    assert trading.nodes["app1"].runner().keeper.fuse.fired


def test_a_file_that_cannot_be_read_is_no_lease(trading):
    trading.crash_guard("app1")
    trading.nodes["app1"].folder.joinpath("trading.json").write_text("{")
    trading.restart_guard("app1")
    trading.run(1)
    assert "app1 kills trading" in trading.log
    assert trading.running(ORDER_SENDER) == []


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_leave_drains_and_another_host_takes_over_at_once(trading):
    began = trading.now
    assert leave(trading).problem == ""
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])
    assert trading.now - began < 6
    assert trading.lease()["ended"] == "released"
    assert trading.log.index("recovers") < trading.log.index("app1 releases trading"), "clean is what the broker says"
    assert "app1 kills trading" not in trading.log
    assert trading.control[ORDER_SENDER].status == "GO"
    trading.lose_host("app2")
    trading.run(60)
    assert trading.holders() == [], "who has left stays out"
    trading.nodes["app1"].runner().keeper.files.out.unlink()
    trading.run_until(lambda: trading.holders() == ["app1"])


def test_leave_that_cannot_drain_names_the_orders_and_goes_on(trading):
    trading.deaf = {ORDER_SENDER}
    trading.control.put_orders(("BROKER_ORDER_STACK", 7), ("INSTRUMENT_ORDER_STACK", 8))
    began = trading.now
    result = leave(trading)
    assert 300 <= trading.now - began < 303
    assert "run_stack_handler still runs" in str(result)
    assert "BROKER_ORDER_STACK 7" in str(result)
    assert "INSTRUMENT_ORDER_STACK 8" in str(result)
    trading.run(20)
    assert trading.holders() == ["app1"]
    assert trading.running(ORDER_SENDER) == ["app1"]
    assert trading.control[ORDER_SENDER].status == "GO"
    assert trading.lease()["epoch"] == 1
    assert trading.stored["drains"].documents == []


def test_orders_of_a_dead_trader_make_the_next_holder_recover(trading):
    trading.nodes["app1"].units.running.clear()
    trading.control.change(ORDER_SENDER, running=False)
    trading.control.put_orders(("BROKER_ORDER_STACK", 7))
    trading.control.change(ORDER_SENDER, status="NO-RUN")
    assert not leave(trading).problem
    assert trading.lease()["ended"] == "killed"
    trading.run(5)
    assert "recovers" in trading.log


def test_the_wanted_host_gets_the_lease(trading):
    trading.lease()["wanted"] = {"host": "app2", "colour": "blue"}
    took = trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])
    assert took < 8
    assert trading.lease()["wanted"] is None
    assert trading.lease()["ended"] == "released"


def test_wanted_by_nobody_stops_trading_until_it_is_taken_back(trading):
    trading.lease()["wanted"] = {"host": "nobody", "colour": ""}
    trading.run(60)
    assert trading.holders() == []
    assert trading.lease()["ended"] == "released"
    trading.lease()["wanted"] = None
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"], 5)


def test_a_revoked_lease_is_drained_within_its_life_and_comes_back_when_reinstated(trading):
    trading.lease()["revoked"] = {"by": "me", "reason": "test", "at": None}
    trading.run_until(lambda: not trading.running(ORDER_SENDER), 5)
    trading.run(60)
    assert trading.holders() == []
    assert trading.lease()["holder"] is None
    assert trading.nodes["app1"].units.started == [ORDER_SENDER]
    trading.lease()["revoked"] = None
    trading.run_until(lambda: bool(trading.running(ORDER_SENDER)), 10)


def test_a_revoked_lease_is_killed_where_it_cannot_be_drained(trading):
    trading.deaf = {ORDER_SENDER}
    trading.lease()["revoked"] = {"by": "me", "reason": "test", "at": None}
    trading.run_until(lambda: not trading.running(ORDER_SENDER), TTL)
    trading.run(2)
    assert trading.lease()["ended"] == "killed"


def test_a_trader_that_the_kill_switch_killed_is_not_restarted(trading):
    trading.lease()["revoked"] = {"by": "me", "reason": "test", "at": None}
    trading.nodes["app1"].units.kill("trading", 0)
    trading.run(60)
    assert trading.nodes["app1"].units.started == [ORDER_SENDER]


def test_stop_of_the_guard_leaves_everything(trading):
    stopped = trading.nodes["app1"].guard
    stopped.stop(keep=False)
    trading.run_until(stopped.has_left, 10)
    assert trading.lease()["ended"] == "released"
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"], 10)


def test_stop_of_the_guard_kills_what_cannot_be_drained(trading):
    trading.deaf = {ORDER_SENDER}
    stopped = trading.nodes["app1"].guard
    stopped.stop(keep=False)
    trading.run_until(stopped.has_left, 320)
    assert "app1 kills trading" in trading.log
    assert trading.lease()["ended"] == "killed"


def test_a_changed_colour_moves_by_a_drain(trading):
    trading.crash_guard("app1")
    trading.restart_guard("app1", colour="green")
    trading.run_until(lambda: (trading.lease()["holder"] or {}).get("colour") == "green", 20)
    assert trading.lease()["ended"] == "released"
    assert "app1 kills trading" not in trading.log


def test_a_drain_that_died_is_undone_by_the_next_holder(trading):
    trading.drains.begin(ORDER_SENDER, "GO", "app1")
    trading.control.set_status(ORDER_SENDER, "STOP")
    trading.lose_host("app1")
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"])
    assert trading.control[ORDER_SENDER].status == "GO"
    assert trading.stored["drains"].documents == []


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_trader_that_crashes_is_recovered_then_restarted(trading):
    trading.nodes["app1"].units.ends(ORDER_SENDER, crashes=True)
    trading.run_until(lambda: trading.nodes["app1"].units.started == [ORDER_SENDER] * 2, 15)
    assert trading.log.index("recovers") < trading.log.index("app1 starts run_stack_handler")
    assert trading.running(ORDER_SENDER) == ["app1"]


def test_a_service_that_keeps_crashing_is_restarted_more_and_more_slowly(trading):
    starts = []
    for _ in range(7):
        trading.nodes["app1"].units.ends(ORDER_SENDER)
        trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"])
        starts.append(trading.now)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert 25 < gaps[-1] < 35


@pytest.mark.parametrize("status", ["STOP", "NO-RUN"])
def test_a_service_that_was_told_to_stop_is_not_restarted(trading, status):
    trading.control.set_status(ORDER_SENDER, status)
    trading.nodes["app1"].units.ends(ORDER_SENDER)
    trading.run(60)
    assert trading.running(ORDER_SENDER) == []
    assert status in trading.nodes["app1"].runner().status()["processes"][ORDER_SENDER]
    trading.control.set_status(ORDER_SENDER, "GO")
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"], 10)


@pytest.mark.parametrize(
    ("begin", "runs"),
    [
        (datetime.fromisoformat("2026-11-23T00:00"), False),
        (datetime.fromisoformat("2026-11-23T00:01"), True),
        (datetime.fromisoformat("2026-11-23T19:44"), True),
        (datetime.fromisoformat("2026-11-23T19:45"), False),
        (datetime.fromisoformat("2026-11-22T12:00"), False),
    ],
)
def test_a_service_is_started_within_its_window_only(world, begin, runs):
    assert DAYS[datetime.fromisoformat("2026-11-22").weekday()] == "Sun"
    world.begin = begin
    world.run(30)
    assert world.holders() == ["app1"]
    assert bool(world.running(ORDER_SENDER)) is runs


@pytest.fixture
def evening(world):
    """Ten past eight: both daily processes are due, the second after the first."""
    world.begin = datetime.fromisoformat("2026-11-23T20:10")
    world.run_until(lambda: world.running("run_systems") == ["app2"])
    return world


def test_a_daily_process_runs_once_and_the_next_waits_for_it(evening):
    evening.run(10)
    assert evening.running("run_strategy_order_generator") == []
    evening.nodes["app2"].units.ends("run_systems")
    evening.run_until(lambda: evening.running("run_strategy_order_generator") == ["app2"], 15)
    assert evening.run_of("run_systems")["state"] == "succeeded"
    evening.nodes["app2"].units.ends("run_strategy_order_generator")
    evening.run(120)
    leave(evening, "app2", "strategies")
    evening.run_until(lambda: evening.holders("strategies") == ["app1"])
    evening.run(120)
    assert [node.units.started.count("run_systems") for node in evening.nodes.values()] == [0, 1]
    assert [node.units.started.count("run_strategy_order_generator") for node in evening.nodes.values()] == [0, 1]


def test_a_daily_process_that_crashed_has_failed_and_holds_up_the_next(evening):
    evening.nodes["app2"].units.ends("run_systems", crashes=True)
    evening.run(120)
    assert evening.run_of("run_systems")["state"] == "failed"
    assert evening.nodes["app2"].units.started.count("run_systems") == 1
    assert evening.running("run_strategy_order_generator") == []
    evening.runs.finish("run_systems", "2026-11-23", "again", ["failed"])
    evening.run_until(lambda: evening.running("run_systems") == ["app2"], 60)


def test_a_daily_process_whose_host_died_is_run_by_the_next(evening):
    evening.lose_host("app2")
    evening.run_until(lambda: evening.running("run_systems") == ["app1"])
    assert evening.run_of("run_systems")["epoch"] == 2
    evening.nodes["app1"].units.ends("run_systems")
    evening.run(5)
    assert evening.run_of("run_systems")["state"] == "succeeded"


def test_the_order_generator_is_never_run_again_but_reported(evening, caplog):
    evening.nodes["app2"].units.ends("run_systems")
    evening.run_until(lambda: evening.running("run_strategy_order_generator") == ["app2"])
    evening.lose_host("app2")
    evening.run(120)
    assert evening.holders("strategies") == ["app1"]
    assert evening.nodes["app1"].units.started.count("run_strategy_order_generator") == 0
    assert evening.run_of("run_strategy_order_generator")["state"] == "abandoned"
    assert "run_strategy_order_generator of 2026-11-23 was cut off on app2 and is not run again" in caplog.text


def test_a_drained_daily_process_is_run_by_the_next_holder(evening):
    leave(evening, "app2", "strategies")
    assert evening.run_of("run_systems")["state"] == "interrupted"
    evening.run_until(lambda: evening.running("run_systems") == ["app1"])


def test_a_drain_in_vain_leaves_the_daily_run_as_it_was(evening):
    evening.deaf = {"run_systems"}
    assert leave(evening, "app2", "strategies").problem
    assert evening.run_of("run_systems")["state"] == "running"
    evening.run(2)
    evening.nodes["app2"].units.ends("run_systems")
    evening.run(5)
    assert evening.run_of("run_systems")["state"] == "succeeded"


def test_a_daily_run_that_ended_while_no_guard_looked_is_judged_by_process_control(evening):
    evening.crash_guard("app2")
    evening.nodes["app2"].units.ends("run_systems")
    evening.run(3)
    evening.restart_guard("app2")
    evening.run(10)
    assert evening.run_of("run_systems")["state"] == "succeeded"
    assert evening.nodes["app2"].units.started.count("run_systems") == 1


def test_a_daily_process_that_never_began_is_tried_again_but_not_for_ever(world):
    world.begin = datetime.fromisoformat("2026-11-23T20:10")
    units = world.nodes["app2"].units
    units.start = lambda unit: units.started.append(units.name(unit))
    world.run(300)
    assert units.started.count("run_systems") == 5
    assert world.run_of("run_systems")["state"] == "failed"


# --- threads, watchdog, socket ----------------------------------------------------------------------------------------


def test_a_loop_that_does_not_come_round_starves_the_watchdog():
    at = [0.0]
    pulse = Pulse(lambda: at[0])
    quick, slow = pulse.of("killer"), pulse.of("keeper")
    at[0] = PULSE_S
    quick()
    assert pulse.stuck() == []
    at[0] = PULSE_S + 1
    assert pulse.stuck() == ["keeper"]
    slow()
    assert pulse.stuck() == []


def test_a_guard_that_has_lost_a_thread_ends(monkeypatch, caplog):
    codes = []
    monkeypatch.setattr(guard.os, "_exit", codes.append)
    monkeypatch.setattr(guard.logging, "shutdown", lambda: None)
    guard.last_breath(dict.__getitem__, {}, "the key")
    assert codes == [guard.FAILED]
    assert "KeyError: 'the key'" in caplog.text


def test_the_killer_works_while_a_call_to_the_store_hangs(tmp_path):
    """With real threads: the keeper's call never comes back, and its placement is dead in time all the same."""
    short = LeaseSettings(ttl_s=2, renew_s=0.3, margin_s=0.5, drain_after_s=1, rank_delay_s=0)
    world = World(tmp_path, hosts=["app1"], lease=short)
    world.run_until(lambda: world.running(ORDER_SENDER) == ["app1"])
    held = world.nodes["app1"].guard
    hangs, over = threading.Event(), threading.Event()
    keeper = held.runners["trading"].keeper
    begin, started = world.now, time.monotonic()
    for part in (held.killer, keeper):
        part._clock = lambda: begin + time.monotonic() - started
    keeper._store.execute = lambda _request: hangs.wait()
    threads = [
        threading.Thread(target=held.killer.turn, args=(lambda: None, over), daemon=True),
        threading.Thread(target=keeper.turn, args=(lambda: None, over), daemon=True),
    ]
    deadline = keeper.contender.grant.deadline
    try:
        for thread in threads:
            thread.start()
        while world.running(ORDER_SENDER):
            assert keeper._clock() < deadline + 3, "not dead in time"
            threads[0].join(0.01)
        assert keeper._clock() >= deadline
        assert not keeper.files.grant.exists()
    finally:
        over.set()
        hangs.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """A guard with its real threads, and the socket on which systemd listens."""
    address = tmp_path / "notify"
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(address))
    systemd.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    monkeypatch.setattr(guard, "FEED_S", 0.05)
    world = World(tmp_path, hosts=["app1"])
    running = world.nodes["app1"].guard
    thread = threading.Thread(target=running.run, name="the guard")
    thread.start()
    assert systemd.recv(100) == b"READY=1"
    yield running, systemd, partial(control.ask, timeout_s=5, path=tmp_path / "app1" / "guard.sock")
    running.stop(keep=True)
    thread.join(5)
    assert not thread.is_alive()
    systemd.close()


@pytest.mark.parametrize(
    ("told", "kept", "keep"),
    [(signal.SIGTERM, False, False), (signal.SIGTERM, True, True), (signal.SIGHUP, False, True)],
)
def test_sigterm_leaves_and_sighup_keeps(listening, told, kept, keep):
    running, _, _ = listening
    if kept:
        (running.folder / guard.KEEP).touch()
    signal.pthread_kill(next(thread.ident for thread in threading.enumerate() if thread.name == "the guard"), told)
    for _ in range(100):
        if running.stopping:
            break
        time.sleep(0.02)
    assert running.stopping
    assert running.keep is keep


def test_systemd_is_told_that_the_guard_is_alive_until_a_thread_hangs(listening):
    running, systemd, _ = listening
    assert systemd.recv(100) == b"WATCHDOG=1"
    assert systemd.recv(100) == b"WATCHDOG=1"
    running.pulse._last["a thread that hangs"] = running.tools.clock() - PULSE_S - 1
    systemd.settimeout(10 * guard.FEED_S)
    more = 0
    with contextlib.suppress(TimeoutError):
        while systemd.recv(100):
            more += 1
    assert more <= 1, "but for what was on its way"


def test_the_socket_answers(listening):
    _, _, ask = listening
    status = ask({"command": "status"})
    assert set(status["placements"]) == {"trading", "strategies"}
    assert "wanted one of: trading, strategies" in ask({"command": "leave", "placement": "nowhere"})["error"]
    assert "wanted status, leave or join" in ask({"command": "dance", "placement": "trading"})["error"]
    assert "not understood" in ask({})["error"]


def test_without_a_guard_the_socket_says_what_to_look_at(tmp_path):
    with pytest.raises(control.GuardAwayError, match="systemctl status pst-guard"):
        control.ask({"command": "status"}, 1, tmp_path / "guard.sock")


# --- ways around it that were found -----------------------------------------------------------------------------------


def want(trading, host, colour=""):
    trading.nodes["app1"].runner().keeper._store.want("trading", host, colour)


def test_a_hand_over_that_was_refused_may_be_asked_for_again(trading):
    trading.deaf = {ORDER_SENDER}
    want(trading, "nobody")
    trading.run(320)
    assert trading.holders() == ["app1"]
    want(trading, None)
    trading.run(10)
    trading.deaf = set()
    want(trading, "nobody")
    trading.run(30)
    assert trading.lease()["holder"] is None
    assert trading.running(ORDER_SENDER) == []


def test_a_start_that_systemd_does_not_confirm_in_time_counts_as_one(tmp_path):
    trading = World(tmp_path)
    units = trading.nodes["app1"].units
    start, slow = units.start, [True]

    def start_slowly(unit):
        start(unit)
        if slow:
            slow.clear()
            raise UnitsError("systemctl start: not finished after 10 s")

    units.start = start_slowly
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"])
    trading.run(30)
    trading.log.clear()
    units.ends(ORDER_SENDER, crashes=True)
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"], 90)
    assert trading.log.index("recovers") < trading.log.index(f"app1 starts {ORDER_SENDER}")


def test_a_recovery_that_outlives_its_epoch_does_not_stand_for_the_next(trading):
    trading.lose_host("app1")
    times = []

    def recover():
        trading.log.append("recovers")
        times.append(trading.now)
        if len(times) == 1:
            trading.cut_off = {"app2"}
            trading.wait(13)
            trading.cut_off = set()
            trading.wait(20)
        return "nothing was open"

    trading.recover = recover
    trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app2"], 120)
    environment = trading.nodes["app2"].runner().keeper.files.environment.read_text()
    assert f"PST_LEASE_EPOCH={trading.lease()['epoch']}\n" in environment
    assert len(times) >= 2


def test_a_holder_that_cannot_recover_stands_aside(trading):
    """It does not reach the gateway; the other host does."""

    def recover():
        if trading.holders() == ["app2"]:
            raise ConnectionError("no route")
        return "nothing was open"

    trading.recover = recover
    trading.lose_host("app1")
    trading.run_until(lambda: trading.holders() == ["app2"])
    trading.restart_guard("app1")
    took = trading.run_until(lambda: trading.running(ORDER_SENDER) == ["app1"], 300)
    assert took < 200


def test_a_leave_is_not_clean_while_the_broker_has_an_order(trading):
    """The sender closes its stacks even where a cancellation was never confirmed."""

    def recover():
        raise ConnectionError("open: GOLD")

    trading.recover = recover
    leave(trading)
    trading.run_until(lambda: trading.lease()["ended"] == "killed")
