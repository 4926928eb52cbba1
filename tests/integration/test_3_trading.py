"""Trade once, the short version: orders flow, the worst happens, and the broker's log is the witness.

`make drill-trade-once` is the long one. The tests are in an order; the last one judges them all together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import lab
import pytest
import trade_once
import trading
from trading import GUARD, TRADER, Trading

KILL_SWITCH_SECONDS = 30  # of the whole playbook; the orders have stopped before


@dataclass(frozen=True)
class Watched:
    """What is seen from outside, since when."""

    seen: Trading
    began: datetime
    before: dict[str, Any]  # the platform's books


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    trading.heal()
    with trading.opened(rate=1) as seen:
        before, began = trading.books(), trading.now()
        trading.fill_slowly()
        seen.goes_on(began, 120)
        yield Watched(seen, began, before)


def test_orders_flow_and_one_host_sends_them(watched: Watched) -> None:
    seen = watched.seen
    order = seen.placed(trading.now(), 30)
    assert order["epoch"] == seen.states()[-1]["epoch"]
    assert trading.traders() == [seen.holder()]


def test_a_guard_that_is_killed_comes_back_to_its_lease(watched: Watched) -> None:
    """The trader does not notice: same process, same epoch."""
    seen = watched.seen
    before, host = seen.held(), seen.holder()
    trader, guard = trading.main_pid(host, TRADER), trading.main_pid(host, GUARD)
    trading.send(host, "KILL", GUARD)
    trading.replaced(host, GUARD, guard)
    back = trading.now()
    after = seen.renewed(back)
    seen.placed(back, 30, before["epoch"])
    assert (after["epoch"], after["holder"]) == (before["epoch"], before["holder"])
    assert trading.main_pid(host, TRADER) == trader


def test_a_trader_that_is_killed_in_mid_order_is_started_again(watched: Watched) -> None:
    seen = watched.seen
    before, host = seen.held(), seen.holder()
    pid = trading.main_pid(host, TRADER)
    seen.open_order()
    killed = trading.now()
    trading.send(host, "KILL", TRADER)
    trading.replaced(host, TRADER, pid, 60)
    again = seen.goes_on(trading.now(), 60)
    lab.record("trader_killed", orders_again_s=round((again - killed).total_seconds(), 1))
    assert seen.held()["epoch"] == before["epoch"]


def test_the_wrong_node_is_refused_and_told_who_holds_the_lease(watched: Watched) -> None:
    seen = watched.seen
    host, holder = seen.standbys()[0], seen.holder()
    assert holder in trading.start_on(host)
    assert trading.traders() == [holder]


def test_an_order_by_hand_from_the_wrong_node_does_not_reach_the_broker(watched: Watched) -> None:
    seen = watched.seen
    trading.order_by_hand(seen.standbys()[0])
    seen.placed(trading.now(), 30)  # the broker has taken another one since, so this one would be in the log
    assert not [record for record in seen.orders.seen if record["reference"] == "by-hand"]


def test_another_host_takes_over_from_one_that_lost_its_power(watched: Watched) -> None:
    seen = watched.seen
    before = seen.held()
    host = before["holder"]["host"]
    seen.open_order()
    killed = trading.now()
    lab.engine("kill", lab.container(host))
    try:
        after = seen.taken(before)
        again = seen.goes_on(trading.now(), 60)
    finally:
        trading.boot(host)
    takeover = (trading.when(after, "granted_at") - killed).total_seconds()
    lab.record(
        "trading_host_lost",
        bar_s=trading.TAKEOVER,
        takeover_s=round(takeover, 1),
        orders_again_s=round((again - killed).total_seconds(), 1),
    )
    assert after["epoch"] == before["epoch"] + 1
    assert takeover <= trading.TAKEOVER * lab.SLACK


def test_a_planned_stop_leaves_no_order_behind(watched: Watched) -> None:
    seen = watched.seen
    host = seen.holder()
    seen.open_order()
    started = time.monotonic()
    lab.ssh(host, f"pst-trading stop {trading.HANDLER}", timeout=330)
    stopped = trading.now()
    try:
        lab.record("trader_stopped", seconds=round(time.monotonic() - started, 1))
        assert trading.has_no_trader(host)
        # The trader has stopped; what the broker wrote last may be on its way here.
        lab.eventually("nothing open", lambda: trade_once.open_at_broker(seen.orders.seen) == [], 10)
        # New intents keep coming, and wait; nothing that has been begun may be left.
        begun = [order for order in trading.books()["unfinished"] if not order.startswith("INSTRUMENT_ORDER_STACK")]
        assert begun == []
    finally:
        lab.ssh(host, f"pst-trading start {trading.HANDLER}")
    seen.goes_on(stopped, 60)


def test_the_kill_switch_stops_all_orders_and_its_undo_asks_why(watched: Watched) -> None:
    seen = watched.seen
    seen.open_order()
    pulled = trading.now()
    stop = lab.succeed(lab.playbook("kill-switch", "-e", "kill_switch_reason=test"))
    stopped = trading.now()
    try:
        sent = [trading.when(r) for r in seen.orders.seen if r["event"] == "placed" and trading.when(r) > pulled]
        last = max(((at - pulled).total_seconds() for at in sent), default=0.0)
        lab.record(
            "kill_switch", bar_s=KILL_SWITCH_SECONDS, seconds=round(stop.seconds, 1), last_order_s=round(last, 1)
        )
        assert trading.traders() == []
        refused = lab.playbook("kill-switch", "-e", "kill_switch_undo=true")
        assert refused.code != 0
        assert "kill_switch_reason" in refused.output
        assert not [r for r in seen.orders.seen if r["event"] == "placed" and trading.when(r) > stopped]
    finally:
        undone = trading.now()
        lab.succeed(lab.playbook("kill-switch", "-e", "kill_switch_undo=true", "-e", "kill_switch_reason=test"))
    again = seen.goes_on(undone, 90)
    lab.record("kill_switch_undone", orders_again_s=round((again - undone).total_seconds(), 1))
    assert stop.seconds <= KILL_SWITCH_SECONDS * lab.SLACK


def test_in_all_this_nothing_was_traded_twice_and_nothing_was_left(watched: Watched) -> None:
    seen = watched.seen
    seen.intents.close()

    def settled() -> dict[str, Any]:
        found = trading.books()
        done = not found["unfinished"] and not trade_once.open_at_broker(seen.orders.seen)
        return found if done else {}

    found = lab.eventually("no order is open", settled, 60, 2)
    verdict = trade_once.judge(
        list(seen.orders.seen),
        seen.states(),
        [],
        trade_once.Books.read(found, watched.before),
        trade_once.intents_of(found, seen.intents.seen),
        trade_once.Wanted(0, 0, (), trading.TAKEOVER),
        watched.began,
        trading.now(),
    )
    lab.record("trade_once", orders_sent=verdict.orders_sent, epochs=verdict.epochs, problems=len(verdict.problems))
    assert verdict.epochs >= 2, "nothing was taken over: this would prove nothing"
    assert verdict.passed, "\n".join(verdict.problems)
