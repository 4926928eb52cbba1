"""A drained stop, without the guard around it."""

from __future__ import annotations

from datetime import date

import pytest
from fakes import World
from pst_trading.drain import Drain
from pst_trading.processes import ORDER_SENDER
from pst_trading.store import MongoRuns

TRADER = f"pst-run@{ORDER_SENDER}.service"


class Case:
    """One host with a trader, and a drain."""

    def __init__(self, folder):
        self.world = World(folder, hosts=[])
        self.control = self.world.control
        self.control.put_orders(("BROKER_ORDER_STACK", 7), ("INSTRUMENT_ORDER_STACK", 8))
        self.control.change(ORDER_SENDER, status="GO", running=True)
        self.alive = True
        self.trader = self.world.settings.process(ORDER_SENDER)
        self.later = []  # what happens while the drain waits
        runs = MongoRuns(self.world.database())
        self.drain = Drain(
            self.control, self.world.drains, runs, lambda _process: self.alive, "app1",
            lambda: self.world.now, self.wait, lambda: date(2026, 11, 23),
        )  # fmt: skip

    def wait(self, seconds):
        self.world.now += seconds
        if self.later:
            self.later.pop(0)()

    def end(self):
        """End as pysystemtrade does: with the whole entry, the status as it was read."""
        self.alive = False
        self.control.change(ORDER_SENDER, status="STOP", running=False)
        self.control.put_orders()

    def status(self):
        return self.control[ORDER_SENDER].status

    def statuses(self):
        return [status for _, status in self.world.statuses]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def test_stop_is_asked_for_then_the_status_is_as_before(case):
    case.later = [case.end]
    result = case.drain([case.trader], 300)
    assert result.clean
    assert str(result) == "drained"
    assert case.statuses() == ["STOP", "GO"]
    assert case.world.stored["drains"].documents == []


def test_what_is_to_stay_stopped_stays_stopped(case):
    case.later = [case.end]
    assert case.drain([case.trader], 300, stay_stopped=True).clean
    assert case.status() == "STOP"
    assert case.world.stored["drains"].documents == []


def test_a_stop_that_the_process_overwrites_is_asked_for_again(case):
    case.later = [lambda: case.control.change(ORDER_SENDER, status="GO"), lambda: None, case.end]
    assert case.drain([case.trader], 300).clean
    assert case.statuses() == ["STOP", "STOP", "GO"]


@pytest.mark.parametrize("stay_stopped", [False, True])
def test_when_the_time_is_up_the_orders_are_named_and_nothing_has_changed(case, stay_stopped):
    before = case.control[ORDER_SENDER]
    result = case.drain([case.trader], 300, stay_stopped=stay_stopped)
    assert str(result).splitlines() == [
        "time is up: run_stack_handler still runs; 2 active orders:",
        "  INSTRUMENT_ORDER_STACK 8: s/GOLD/20261200, trade , filled ",
        "  BROKER_ORDER_STACK 7: s/GOLD/20261200, trade , filled ",
    ]
    assert not result.clean
    assert case.control[ORDER_SENDER] == before
    assert case.world.stored["drains"].documents == []


def test_it_waits_for_the_orders_too(case):
    def leave_its_orders():
        case.alive = False
        case.control.change(ORDER_SENDER, running=False)

    case.later = [leave_its_orders, lambda: None, case.control.put_orders]
    began = case.world.now
    assert case.drain([case.trader], 300).clean
    assert case.world.now - began == 1.5


def test_an_instrument_order_that_is_not_begun_is_no_business_of_the_drain(case):
    """New ones keep coming, also while the sender has closed its stacks and has still to disconnect."""

    def close_the_stacks():
        case.control.put_orders(("INSTRUMENT_ORDER_STACK", 9), begun=False)

    def leave():
        case.alive = False
        case.control.change(ORDER_SENDER, status="STOP", running=False)

    case.later = [close_the_stacks, leave]
    assert case.drain([case.trader], 300).clean


def test_an_instrument_order_that_was_begun_has_to_be_closed(case):
    def leave():
        case.alive = False
        case.control.change(ORDER_SENDER, status="STOP", running=False)
        case.control.put_orders(("INSTRUMENT_ORDER_STACK", 8))

    case.later = [leave]
    assert [order.order_id for order in case.drain([case.trader], 300).orders] == [8]


def test_a_process_that_dies_has_not_drained(case):
    def die():
        case.alive = False

    case.later = [die]
    result = case.drain([case.trader], 300)
    assert "run_stack_handler died without closing its entry" in result.problem
    assert not result.clean
    assert case.status() == "GO"


def test_orders_that_nobody_looks_after_are_not_clean(case):
    case.alive = False
    case.control.change(ORDER_SENDER, running=False)
    result = case.drain([case.trader], 300)
    assert not result.problem
    assert not result.clean
    assert "1 active orders that nobody looks after" in str(result)
    assert case.statuses() == []


def test_when_the_lease_is_lost_the_note_for_the_next_holder_stays(case):
    lost = []
    case.later = [lambda: lost.append(True)]
    result = case.drain([case.trader], 300, give_up=lambda: bool(lost))
    assert result.lost
    assert case.status() == "STOP"
    assert case.world.drains.under_way([ORDER_SENDER]) == {ORDER_SENDER: "GO"}
