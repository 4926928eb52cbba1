"""The judge of the drill is an oracle: it has to find each kind of violation, and nothing where there is none."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[1] / "integration"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


trade_once = load("trade_once")
page = load("trade_once_page")
ledger = load("trading_ledger")
Expect, Fault = trade_once.Expect, trade_once.Fault

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
TTL = 15


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class World:
    """A broker's log and a lease's history, written as the real ones are, a second at a time."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.books: dict[int, dict[str, Any]] = {}
        self.intents: dict[int, float] = {}
        self.faults: list[Any] = []
        self._ids = itertools.count(1)

    # The lease

    def state(self, **changes: Any) -> None:
        first = {"_id": "trading", "holder": None, "ended": None, "revoked": None, "epoch": 0, "renewals": 0}
        self.states.append({**(self.states[-1] if self.states else first), **changes})

    def grant(self, epoch: int, host: str, when: float) -> None:
        holder = {"host": host, "colour": "blue", "instance": f"{host}-{epoch}", "address": ""}
        self.state(epoch=epoch, holder=holder, granted_at=at(when).isoformat(), **self.validity(when))

    def renew(self, when: float) -> None:
        self.state(renewals=self.states[-1]["renewals"] + 1, **self.validity(when))

    def release(self, when: float) -> None:
        self.state(holder=None, ended="released", expires_at=at(when).isoformat())

    @staticmethod
    def validity(when: float) -> dict[str, str]:
        return {"renewed_at": at(when).isoformat(), "expires_at": at(when + TTL).isoformat()}

    # The broker

    def event(self, event: str, order: dict[str, Any], when: float, **details: Any) -> None:
        self.records.append({**order, "event": event, "at": at(when).isoformat(), **details})

    def place(self, epoch: int | None, when: float, quantity: float = 2.0, **more: Any) -> dict[str, Any]:
        """Place an order for a new instrument order, unless another number or origin is given."""
        order_id = next(self._ids)
        number, origin = more.get("number", 1000 + order_id), more.get("origin", order_id)
        order = {
            "client_id": 100,
            "order_id": order_id,
            "action": "BUY" if quantity > 0 else "SELL",
            "quantity": abs(quantity),
            "reference": "by hand" if epoch is None else f"pst:{epoch}:{number}:{origin}",
        }
        self.event("placed", order, when)
        if epoch is not None:
            self.books.setdefault(number, {"fill": 0.0, "active": False})
            self.intents.setdefault(origin, quantity)
        return {**order, "number": number}

    def fill(self, order: dict[str, Any], when: float, shares: float | None = None, *, known: bool = True) -> None:
        shares = order["quantity"] if shares is None else shares
        self.event("filled", {key: order[key] for key in order if key != "number"}, when, shares=shares)
        if known:
            self.books[order["number"]]["fill"] += shares if order["action"] == "BUY" else -shares

    def fault(self, kind: str, when: float, expect: Any = Expect.ANY, trading: float | None = None, **more: Any) -> Any:
        found = Fault(kind, expect, "lab-app1", at(when), at(when + 1), **more)
        found.trading_at = None if trading is None else at(trading)
        self.faults.append(found)
        return found

    # The verdict

    def judge(self, **more: Any) -> Any:
        unfinished, locks = more.pop("unfinished", ()), more.pop("locks", ())
        settings = {"faults": len(self.faults), "minutes": 1, "kinds": (), "takeover_s": TTL + 5.0, **more}
        return trade_once.judge(
            self.records,
            self.states,
            self.faults,
            trade_once.Books(self.books, unfinished, locks),
            self.intents,
            trade_once.Wanted(**settings),
            at(0),
            at(90),
        )


@pytest.fixture
def world() -> World:
    """A quiet minute, with one host lost and its lease taken over."""
    world = World()
    world.grant(1, "lab-app1", 0)
    for second in range(2, 30, 2):
        world.renew(second)
        world.fill(world.place(1, second), second + 1)
    world.fault("holder_host_killed", 30, Expect.TAKEN, 52)
    world.grant(2, "lab-app2", 44)
    for second in range(46, 60, 2):
        world.renew(second)
    world.fill(world.place(2, 51, -3.0), 53, 3.0)
    return world


def test_a_drill_in_which_nothing_went_wrong_passes(world):
    verdict = world.judge()
    assert verdict.problems == []
    assert verdict.passed
    assert verdict.orders_sent == 15
    assert verdict.orders_filled == 15
    assert verdict.epochs == 2
    assert verdict.max_holders_at_once == 1
    assert verdict.takeover_seconds == {"count": 1, "median": 14.0, "p95": 14.0, "max": 14.0}
    assert verdict.trading_again_seconds["max"] == 22.0
    json.dumps(verdict.as_dict())


# Each kind of violation, planted


def test_the_same_broker_order_sent_twice_is_a_duplicate(world):
    world.place(2, 54, number=7, origin=500)
    world.place(2, 55, number=7, origin=501)
    verdict = world.judge()
    assert verdict.duplicate_orders == 1
    assert "broker order 7 was sent 2 times" in verdict.violations["duplicate_orders"][0]
    assert not verdict.passed


def test_a_second_order_for_the_same_instrument_order_is_a_duplicate(world):
    """Under another number, by another holder, after nothing of the first was filled: still the same work."""
    world.place(2, 54, number=7, origin=1)
    verdict = world.judge()
    assert verdict.duplicate_orders == 1
    assert "instrument order 1 was sent 2 times" in verdict.violations["duplicate_orders"][0]


@pytest.mark.parametrize(("filled", "wrong"), [([2.0], 0), ([2.0, 1.0], 1), ([1.0], 0), ([], 0)])
def test_more_filled_than_was_wanted_is_a_duplicate(world, filled, wrong):
    order = world.place(2, 54, 3.0, origin=600)
    world.intents[600] = 2.0
    for shares in filled:
        world.fill(order, 55, shares)
    assert world.judge().duplicate_orders == wrong


def test_an_order_to_the_wrong_side_is_a_duplicate(world):
    order = world.place(2, 54, -1.0, origin=600)
    world.intents[600] = 1.0
    world.fill(order, 55)
    assert world.judge().duplicate_orders == 1


def test_a_duplicate_of_an_order_from_before_the_drill_counts(world):
    early = world.place(1, -100, number=9, origin=700)
    world.records.insert(0, world.records.pop())
    world.place(2, 54, number=9, origin=700)
    assert world.judge().duplicate_orders == 1
    assert world.judge().orders_sent == 16
    assert early["number"] == 9


def test_what_was_doubled_before_the_drill_is_not_its_concern(world):
    for second in (-100, -99):
        world.place(1, second, number=9, origin=700)
        world.records.insert(0, world.records.pop())
    assert world.judge().duplicate_orders == 0


def test_each_way_of_being_a_duplicate_counts_by_itself(world):
    world.place(2, 54, number=7, origin=1)
    order = world.place(2, 54, 3.0, origin=600)
    world.intents[600] = 2.0
    world.fill(order, 55)
    assert world.judge().duplicate_orders == 2


def test_an_order_of_an_old_epoch_is_without_lease(world):
    """After the new holder has traded: the broker's log alone tells."""
    world.place(1, 54)
    verdict = world.judge()
    assert verdict.orders_without_lease == 1
    assert "after an order of epoch 2" in verdict.violations["orders_without_lease"][0]


def test_an_order_between_the_end_of_a_lease_and_the_next_grant_is_without_lease(world):
    """The last renewal was at 28 s, so that the lease ended at 43 s; nobody had another one yet."""
    late = world.place(1, 43.5)
    world.records.sort(key=lambda record: record["at"])
    verdict = world.judge()
    assert verdict.orders_without_lease == 1
    assert late["reference"] in verdict.violations["orders_without_lease"][0]


def test_an_order_after_a_release_is_without_lease(world):
    world.release(56)
    world.place(2, 56.5)
    assert world.judge().orders_without_lease == 1


@pytest.mark.parametrize(("seconds", "wrong"), [(1, 0), (5.5, 1)])
def test_an_order_under_a_revoked_lease_is_without_lease(world, seconds, wrong):
    """The holder has seconds to learn of it: nobody else can have the lease meanwhile."""
    world.state(revoked={"by": "root", "reason": "drill", "at": at(56).isoformat()})
    world.place(2, 56 + seconds)
    world.event("cancelled", {"client_id": 100, "order_id": 16}, 62)
    assert world.judge().orders_without_lease == wrong


def test_an_order_before_its_lease_was_granted_is_without_lease(world):
    world.place(2, 43.9)
    world.records.sort(key=lambda record: record["at"])
    assert any("held epoch 2 from" in text for text in world.judge().violations["orders_without_lease"])


def test_an_order_of_an_epoch_that_never_was_is_without_lease(world):
    world.place(9, 54)
    assert "never had" in world.judge().violations["orders_without_lease"][0]


def test_an_order_by_hand_is_without_lease_and_what_it_fills_is_unmatched(world):
    for second in (54, 56):
        world.fill(world.place(None, second), second + 1, known=False)
    verdict = world.judge()
    assert verdict.orders_without_lease == 2
    assert verdict.unmatched_broker_orders == 2


def test_what_a_frozen_gateway_delivers_late_is_told_apart(world):
    """It was passed while the lease was good; nothing can call it back. It may not come after the next holder's."""
    world.fault("gateway_thawed_late", 29, trading=52, holds_orders=True).undone_at = at(46)
    world.place(1, 47)
    world.records.sort(key=lambda record: record["at"])
    verdict = world.judge()
    assert (verdict.orders_without_lease, verdict.orders_late_from_gateway) == (0, 1)
    world.place(1, 52)
    assert world.judge().orders_without_lease == 1


@pytest.mark.parametrize(("began", "undone"), [(44.5, 46), (29, 40)])
def test_a_frozen_gateway_excuses_no_other_order(world, began, undone):
    """Sent after the end of the term in which the gateway froze, or long after it was thawed."""
    world.fault("gateway_thawed_late", began, trading=52, holds_orders=True).undone_at = at(undone)
    world.place(1, 47)
    world.records.sort(key=lambda record: record["at"])
    assert world.judge().orders_without_lease == 1


def test_two_valid_leases_are_two_holders(world):
    """The last renewal by lab-app1 was at 28 s, good until 43 s."""
    world.states = [state for state in world.states if state["epoch"] == 1]
    world.grant(2, "lab-app2", 42)
    verdict = world.judge()
    assert verdict.max_holders_at_once == 2
    assert not verdict.passed


def test_a_release_ends_a_lease_at_once(world):
    world.release(56)
    world.grant(3, "lab-app1", 56)
    assert world.judge().max_holders_at_once == 1


def test_one_epoch_for_two_hosts_is_found(world):
    world.state(holder={"host": "lab-app3"})
    assert any("has two holders" in problem for problem in world.judge().problems)


def test_an_epoch_that_goes_back_is_found(world):
    world.state(epoch=1)
    assert any("went back from 2 to 1" in problem for problem in world.judge().problems)


def test_an_open_order_without_a_document_is_unmatched(world):
    order = world.place(2, 54)
    assert world.judge().unmatched_broker_orders == 1  # in the books, as done
    world.books[order["number"]]["active"] = True
    assert world.judge().unmatched_broker_orders == 0
    del world.books[order["number"]]
    assert world.judge().unmatched_broker_orders == 1


@pytest.mark.parametrize("event", ["cancelled", "rejected"])
def test_an_order_that_has_ended_is_not_open(world, event):
    order = world.place(2, 54)
    world.event(event, {key: order[key] for key in order if key != "number"}, 55)
    assert world.judge().passed


def test_an_order_that_was_made_larger_is_open_until_all_of_it_is_filled(world):
    order = world.place(2, 54, 1.0, origin=600)
    world.intents[600] = 3.0
    world.event("modified", {**order, "quantity": 3.0}, 55)
    world.fill(order, 56, 1.0)
    assert world.judge().unmatched_broker_orders == 1


@pytest.mark.parametrize("shares", [1.0, 2.0])
def test_a_fill_that_the_platform_does_not_know_is_unmatched(world, shares):
    order = world.place(2, 54)
    world.fill(order, 55, shares, known=False)
    world.fill(order, 55, 2.0 - shares, known=True)
    assert world.judge().unmatched_broker_orders == 1


def test_a_fill_that_only_the_platform_knows_is_unmatched(world):
    world.books[4711] = {"fill": 1.0, "active": False}
    assert "broker order 4711 has filled +0, in the books +1" in world.judge().violations["unmatched_broker_orders"]


def test_what_was_done_before_the_drill_is_not_looked_at_again():
    """But what was under way is, fills from before included."""
    before = {"orders": {"1": {"fill": 2.0, "active": False}, "2": {"fill": 1.0, "active": True}}}
    told = {"orders": {**before["orders"], "2": {"fill": 3.0, "active": False}, "3": {"fill": 0.0, "active": False}}}
    books = trade_once.Books.read({**told, "unfinished": [], "locks": []}, before)
    assert books.orders.keys() == {2, 3}
    world = World()
    world.books = dict(books.orders)
    world.grant(1, "lab-app1", -20)
    early = world.place(1, -10, 3.0, number=2)
    world.fill(early, -9, 1.0, known=False)
    assert world.judge().violations["unmatched_broker_orders"] == [
        "pst:1:2:1 is open at the broker, and not in the books",
        "broker order 2 has filled +1, in the books +3",
    ]
    world.fill(early, 5, 2.0, known=False)
    assert world.judge().unmatched_broker_orders == 0


def test_what_was_wanted_is_told_by_the_books_and_by_those_who_wanted_it():
    told = {"intents": {"1": 2.0, "2": 3.0}}
    assert trade_once.intents_of(told, [{"order_id": 2, "trade": -1.0}]) == {1: 2.0, 2: -1.0}


def test_orders_that_do_not_settle_and_locked_instruments_fail_the_drill(world):
    assert any("not settled" in problem for problem in world.judge(unfinished=["BROKER_ORDER_STACK 7"]).problems)
    assert any("differ: GOLD" in problem for problem in world.judge(locks=["GOLD"]).problems)


# A drill that shows nothing does not pass


def test_a_drill_without_orders_fails(world):
    world.records.clear()
    world.books.clear()
    problems = world.judge().problems
    assert any(problem.startswith("orders_sent: 0") for problem in problems)


def test_a_drill_without_fills_fails(world):
    world.records = [record for record in world.records if record["event"] != "filled"]
    assert any(problem.startswith("orders_filled: 0") for problem in world.judge().problems)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"faults": 2}, "faults: 1, wanted 2"),
        ({"minutes": 20}, "minutes: 1.5, wanted 20"),
        ({"kinds": ["holder_host_killed", "guard_killed"]}, "never ran: guard_killed"),
        ({"takeover_s": 13.0}, "takeover_seconds: p95 14, wanted at most 13"),
    ],
)
def test_a_drill_that_is_too_small_or_too_slow_fails(world, wanted, problem):
    assert problem in world.judge(**wanted).problems


def test_a_fault_after_which_trading_did_not_go_on_fails_the_drill(world):
    world.fault("guard_killed", 55)
    assert "guard_killed on lab-app1: trading did not go on again" in world.judge().problems


def test_a_fault_that_says_what_was_wrong_fails_the_drill(world):
    world.fault("started_on_wrong_node", 55, trading=56).problem = "it was started"
    assert "started_on_wrong_node on lab-app1: it was started" in world.judge().problems


def test_a_lease_that_moved_where_it_should_stay_fails_the_drill(world):
    world.fault("guard_killed", 30, Expect.STAYS, 52)
    assert any("the lease went to lab-app2 (epoch 2), wanted: it stays" in text for text in world.judge().problems)


@pytest.mark.parametrize("expect", [Expect.TAKEN, Expect.MOVES])
def test_a_lease_that_stayed_where_it_should_move_fails_the_drill(world, expect):
    world.fault("holder_host_paused", 54, expect, 58)
    assert any("no other host got the lease" in text for text in world.judge().problems)


def test_a_lease_that_comes_back_to_the_same_host_is_no_takeover(world):
    world.fault("holder_host_killed", 54, Expect.TAKEN, 62)
    world.release(58)
    world.grant(3, "lab-app2", 60)
    assert world.judge().takeover_seconds["count"] == 1  # that of the fixture


# The observer of the lease


def test_changes_of_the_lease_are_applied_as_mongodb_tells_them():
    """An update names what has changed by its path; what it does not name stays."""
    states: dict[str, Any] = {}

    def change(kind: str, **more: Any) -> dict[str, Any]:
        return dict(ledger.apply(states, {"operationType": kind, "documentKey": {"_id": "trading"}, **more}))

    inserted = change("insert", fullDocument={"_id": "trading", "epoch": 0, "holder": None, "revoked": None})
    assert inserted == {"_id": "trading", "epoch": 0, "holder": None, "revoked": None}
    granted = {"updatedFields": {"holder": {"host": "a", "instance": "1"}, "epoch": 1}, "removedFields": []}
    assert change("update", updateDescription=granted)["holder"]["host"] == "a"
    moved = {"updatedFields": {"holder.host": "b", "epoch": 2}, "removedFields": ["revoked"]}
    expected = {"_id": "trading", "epoch": 2, "holder": {"host": "b", "instance": "1"}}
    assert change("update", updateDescription=moved) == expected
    with pytest.raises(SystemExit, match="changed by delete"):
        change("delete")


# The plan and the figures


KINDS = {f"kind{number}": 1 + number % 3 for number in range(25)}


@given(seed=st.integers(0, 10**6), count=st.integers(0, 80))
def test_a_schedule_has_every_kind_and_can_be_repeated(seed, count):
    first = list(itertools.islice(trade_once.schedule(seed, KINDS, count), count + 5))
    assert first == list(itertools.islice(trade_once.schedule(seed, KINDS, count), count + 5))
    assert set(first) <= KINDS.keys()
    if count >= len(KINDS):
        assert set(first[:count]) == KINDS.keys()
    else:
        assert max(Counter(first[:count]).values(), default=1) == 1


def test_schedules_differ():
    plans = {tuple(itertools.islice(trade_once.schedule(seed, KINDS, 60), 60)) for seed in range(20)}
    assert len(plans) == 20


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_a_percentile_is_a_value_that_was_seen(values):
    found = trade_once.summary(values)
    assert found["median"] <= found["p95"] <= found["max"] == round(max(values), 2)
    assert {found["median"], found["p95"]} <= {round(value, 2) for value in values}
    assert sum(round(value, 2) <= found["p95"] for value in values) >= 0.95 * len(values)


# The page


def test_the_page_shows_the_violations_and_needs_nothing_from_outside(world):
    world.place(1, 54)
    world.fault("guard_killed", 55, trading=56, detail="<b>&")
    verdict = world.judge()
    terms, _ = trade_once.terms_of(world.states)
    text = page.render(verdict, world.faults, terms, trade_once.placements(world.records), seed=7)
    assert "after an order of epoch 2" in text
    assert "&lt;b&gt;&amp;" in text
    assert "holder_host_killed" in text
    assert "seed 7" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("<svg") == 1


def test_the_page_of_a_drill_that_broke_off_at_once_can_be_written():
    world = World()
    verdict = world.judge()
    assert not verdict.passed
    assert "failed" in page.render(verdict, [], [], [], seed=1)
