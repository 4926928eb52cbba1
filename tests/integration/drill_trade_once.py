"""make drill-trade-once: whatever breaks, nothing is traded twice, nothing without the lease, nothing is left behind.

A generated schedule of faults runs on the lab while orders flow: for at least 20 minutes, at least 60 faults, each kind
at least once. The seed is printed, so that a schedule can be repeated: TRADE_ONCE_SEED=… make drill-trade-once.
TRADE_ONCE_MINUTES makes a shorter rehearsal. After each fault the broker has to get orders again within a bound.

The verdict (trade_once.py) is read from the broker's order log and from a change stream of the lease, and written to
reports/trade-once-<UTC>.json, with a page beside it. About 35 minutes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import lab
import trade_once
import trade_once_page
import trading
from test_2_faults import mongodb_primary
from trade_once import Expect, Fault
from trading import GUARD, TRADER, TTL, Trading

SEED = int(os.environ.get("TRADE_ONCE_SEED", str(time.time_ns() % 1_000_000)))
MINUTES = float(os.environ.get("TRADE_ONCE_MINUTES", "20"))
FAULTS_PER_MINUTE = 3
ORDERS_PER_SECOND = 0.5
SETTLE_S = 180.0
FAILURES = (AssertionError, OSError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it does, what it may do to the lease, how soon orders have to flow again, how often."""

    run: Callable[[Drill], None]
    expect: Expect
    within: float
    weight: int
    holds_orders: bool


KINDS: dict[str, Kind] = {}


def kind(
    expect: Expect, within: float = 90, weight: int = 2, *, holds_orders: bool = False
) -> Callable[[Callable[[Drill], None]], Callable[[Drill], None]]:
    """Register a kind of fault under its function's name. The function returns when the fault is undone."""

    def register(run: Callable[[Drill], None]) -> Callable[[Drill], None]:
        KINDS[run.__name__] = Kind(run, expect, within, weight, holds_orders)
        return run

    return register


class Drill:
    """One run: the faults so far, and the one that is under way."""

    def __init__(self, seen: Trading, seed: int) -> None:
        self.trading = seen
        self.faults: list[Fault] = []
        self.chance = random.Random(seed)
        self._fault = Fault("", Expect.ANY)

    def begin(self, target: str, detail: str = "") -> None:
        """The fault happens now."""
        self._fault.target, self._fault.at = target, trading.now()
        self._fault.detail = detail

    def note(self, detail: str) -> None:
        self._fault.detail = detail

    def last(self, seconds: tuple[float, float]) -> None:
        """Let a fault last. This is its length; what follows is awaited."""
        time.sleep(self.chance.uniform(*seconds))

    def do(self, name: str) -> bool:
        """Do one fault, undo it, and wait until trading goes on; False where it does not."""
        what = KINDS[name]
        fault = self._fault = Fault(name, what.expect, holds_orders=what.holds_orders)
        self.faults.append(fault)
        try:
            self.trading.open_order()
            what.run(self)
            fault.undone_at = trading.now()
            fault.trading_at = self.trading.goes_on(fault.undone_at, what.within)
        except FAILURES as error:
            fault.problem = str(error)[:2000]
            try:
                trading.heal()
                fault.trading_at = self.trading.goes_on(trading.now(), 180)
            except FAILURES as still:
                fault.problem += f"\nand after all was healed: {still}"
        seconds = (fault.trading_at - fault.at).total_seconds() if fault.trading_at and fault.at else float("nan")
        text = fault.problem.partition("\n")[0] or fault.detail
        print(
            f"{len(self.faults):3} {name:28} {fault.target:12} orders again after {seconds:5.1f} s  {text}", flush=True
        )
        return fault.trading_at is not None


# Guard and trader -----------------------------------------------------------------------------------------------------


@kind(Expect.STAYS, weight=4)
def guard_killed(drill: Drill) -> None:
    host = drill.trading.holder()
    pid = trading.main_pid(host, GUARD)
    drill.begin(host)
    trading.send(host, "KILL", GUARD)
    trading.replaced(host, GUARD, pid)


@kind(Expect.STAYS)
def guard_stopped(drill: Drill) -> None:
    """SIGSTOP: the watchdog kills it, and the next one goes on with the lease."""
    host = drill.trading.holder()
    pid = trading.main_pid(host, GUARD)
    drill.begin(host)
    trading.send(host, "STOP", GUARD)
    trading.replaced(host, GUARD, pid)


@kind(Expect.TAKEN)
def guard_thawed_late(drill: Drill) -> None:
    """Frozen without a watchdog, while its trader goes on: what ends the trading is the gate alone."""
    freeze(drill, traders=False)


@kind(Expect.TAKEN)
def trader_thawed_late(drill: Drill) -> None:
    """Guard and trader frozen until the lease has moved, the trader thawed first, with nobody to kill it."""
    freeze(drill, traders=True)


def freeze(drill: Drill, *, traders: bool) -> None:
    before = drill.trading.held()
    host = before["holder"]["host"]
    trading.watchdog(host, on=False)
    drill.trading.renewed(trading.now())
    drill.trading.open_order()
    drill.begin(host)
    trading.send(host, "STOP", GUARD)
    if traders:
        trading.send(host, "STOP", TRADER)
    drill.trading.taken(before)
    if traders:
        trading.send(host, "CONT", TRADER)
        drill.trading.placed(trading.now(), 60)
    trading.send(host, "CONT", GUARD)
    lab.eventually(f"{host} runs no trader", lambda: trading.has_no_trader(host))
    trading.watchdog(host, on=True)


@kind(Expect.STAYS, weight=4)
def trader_killed(drill: Drill) -> None:
    host = drill.trading.holder()
    pid = trading.main_pid(host, TRADER)
    drill.begin(host)
    trading.send(host, "KILL", TRADER)
    trading.replaced(host, TRADER, pid, 60)


@kind(Expect.STAYS)
def trader_stopped(drill: Drill) -> None:
    """SIGSTOP, shorter than the lease."""
    host = drill.trading.holder()
    drill.begin(host)
    trading.send(host, "STOP", TRADER)
    drill.last((2, 10))
    trading.send(host, "CONT", TRADER)


@kind(Expect.MOVES)
def moved_by_hand(drill: Drill) -> None:
    before = drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(host)
    lab.ssh(host, f"pst-trading leave {trading.PLACEMENT}", timeout=330)
    drill.trading.taken(before)
    lab.ssh(host, f"pst-trading join {trading.PLACEMENT}")


# Hosts ----------------------------------------------------------------------------------------------------------------


@kind(Expect.TAKEN, weight=3)
def holder_host_killed(drill: Drill) -> None:
    before = drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(host)
    lab.engine("kill", lab.container(host))
    drill.trading.taken(before)
    trading.boot(host)


@kind(Expect.MOVES)
def holder_host_shut_down(drill: Drill) -> None:
    before = drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(host)
    lab.engine("stop", "--time", "45", lab.container(host))
    drill.trading.taken(before)
    trading.boot(host)


@kind(Expect.TAKEN, weight=3)
def holder_host_paused(drill: Drill) -> None:
    """The whole host stands still, and comes back with a trader that knows nothing of it."""
    before = drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(host)
    lab.engine("pause", lab.container(host))
    drill.trading.taken(before)
    lab.engine("unpause", lab.container(host))
    lab.eventually(f"{host} runs no trader", lambda: trading.has_no_trader(host))


@kind(Expect.STAYS)
def standby_rebooted(drill: Drill) -> None:
    host = drill.chance.choice(drill.trading.standbys())
    drill.begin(host)
    lab.engine("restart", "--time", "30", lab.container(host))
    trading.boot(host)
    lab.eventually(f"the guard of {host} is ready", lambda: trading.guard_is_ready(host))


@kind(Expect.ANY, within=150, weight=1)
def app_nodes_started_at_once(drill: Drill) -> None:
    drill.begin("all app nodes")
    lab.engine("kill", *map(lab.container, lab.APPS))
    trading.boot(*lab.APPS)


# MongoDB --------------------------------------------------------------------------------------------------------------


@kind(Expect.ANY)
def mongod_primary_killed(drill: Drill) -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    drill.begin(primary)
    trading.send(primary, "KILL", "mongod.service")


@kind(Expect.ANY)
def mongod_primary_thawed_late(drill: Drill) -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    drill.begin(primary)
    trading.send(primary, "STOP", "mongod.service")
    drill.trading.renewed(trading.now(), 60)  # by another primary
    trading.send(primary, "CONT", "mongod.service")


@kind(Expect.ANY)
def mongod_host_killed(drill: Drill) -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    drill.begin(primary)
    lab.engine("kill", lab.container(primary))
    drill.trading.renewed(trading.now(), 60)
    trading.boot(primary)


@kind(Expect.ANY)
def mongod_host_paused(drill: Drill) -> None:
    primary = lab.eventually("one primary", mongodb_primary)
    drill.begin(primary)
    lab.engine("pause", lab.container(primary))
    drill.trading.renewed(trading.now(), 60)
    lab.engine("unpause", lab.container(primary))


@kind(Expect.TAKEN)
def guard_cut_from_mongodb(drill: Drill) -> None:
    """What the holder says is lost."""
    cut(drill, "out")


@kind(Expect.TAKEN)
def mongodb_cut_from_guard(drill: Drill) -> None:
    """What the holder is answered is lost: its renewals may arrive, and it cannot know."""
    cut(drill, "in")


def cut(drill: Drill, direction: str) -> None:
    before = drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(host)
    trading.cut_from_mongodb(host, direction)
    drill.trading.taken(before)
    trading.mend(host)


# Gateway --------------------------------------------------------------------------------------------------------------


@kind(Expect.ANY, within=120)
def gateway_killed(drill: Drill) -> None:
    host = trading.active_gateway()
    pid = trading.main_pid(host, "ib-gateway.service")
    drill.begin(host)
    trading.send(host, "KILL", "ib-gateway.service")
    trading.replaced(host, "ib-gateway.service", pid, 60)


@kind(Expect.ANY, within=150)
def gateway_stopped(drill: Drill) -> None:
    host = trading.active_gateway()
    drill.begin(host)
    trading.send(host, "STOP", "ib-gateway.service")
    drill.last((3, 15))
    trading.send(host, "CONT", "ib-gateway.service")


@kind(Expect.TAKEN, within=150, holds_orders=True)
def gateway_thawed_late(drill: Drill) -> None:
    """Frozen with what it was sent, until another host has the lease."""
    gateway, before = trading.active_gateway(), drill.trading.held()
    host = before["holder"]["host"]
    drill.begin(gateway, f"and {host} killed")
    trading.send(gateway, "STOP", "ib-gateway.service")
    lab.engine("kill", lab.container(host))
    drill.trading.taken(before)
    trading.send(gateway, "CONT", "ib-gateway.service")
    trading.boot(host)


@kind(Expect.ANY, within=150, weight=1)
def gateway_host_killed(drill: Drill) -> None:
    host = trading.active_gateway()
    drill.begin(host)
    lab.engine("kill", lab.container(host))
    trading.boot(host)


@kind(Expect.ANY, within=150)
def gate_cut_from_mongodb(drill: Drill) -> None:
    """A gate that cannot read the lease lets no order pass once the one that it knows has run out."""
    host = trading.active_gateway()
    drill.begin(host)
    began = trading.now()
    trading.cut_from_mongodb(host, "out")
    try:
        drill.last((TTL + 8, TTL + 12))
        passed = [r for r in drill.trading.orders.seen if r["event"] == "placed" and trading.when(r) > began]
    finally:
        trading.mend(host)
    last = max(((trading.when(record) - began).total_seconds() for record in passed), default=0.0)
    drill.note(f"the last order passed {last:.1f} s after the cut")
    assert last <= TTL + 1, (
        f"an order passed {last:.1f} s after the gate was cut from MongoDB, wanted at most {TTL:g} s"
    )


@kind(Expect.ANY, within=180, weight=1)
def gateway_handed_over(drill: Drill) -> None:
    host = trading.active_gateway()
    drill.begin(host)
    lab.succeed(lab.playbook("gateway-handover"))
    assert trading.active_gateway() != host, f"{host} is still the active gateway"


# Clocks ---------------------------------------------------------------------------------------------------------------


@kind(Expect.STAYS, within=150)
def clock_set_forward(drill: Drill) -> None:
    jump(drill, 60)


@kind(Expect.STAYS, within=150)
def clock_set_back(drill: Drill) -> None:
    jump(drill, -60)


def jump(drill: Drill, seconds: int) -> None:
    """Guard and trader of the holder see their wall clock jump, and later jump back.

    The processes of pysystemtrade time what they do by the wall clock: one that was set back does nothing for as long.
    """
    host = drill.trading.holder()
    drill.begin(host, f"{seconds:+d} s")
    trading.set_clock(host, seconds)
    set_at = trading.now()
    drill.trading.renewed(set_at)
    drill.trading.goes_on(set_at, 60 + abs(seconds))
    trading.set_clock(host, 0)
    drill.trading.renewed(trading.now())


# People ---------------------------------------------------------------------------------------------------------------


@kind(Expect.STAYS)
def started_on_wrong_node(drill: Drill) -> None:
    host, holder = drill.chance.choice(drill.trading.standbys()), drill.trading.holder()
    drill.begin(host)
    said = trading.start_on(host)
    assert holder in said, f"the refusal does not name {holder}:\n{said}"


@kind(Expect.STAYS)
def ordered_by_hand(drill: Drill) -> None:
    host = drill.chance.choice(drill.trading.standbys())
    drill.begin(host)
    trading.order_by_hand(host)


@kind(Expect.STAYS)
def processes_page_opened(drill: Drill) -> None:
    """Upstream's page closes the entry of every process that it does not find on its own host."""
    host = drill.trading.holder()
    pid = trading.main_pid(host, TRADER)
    drill.begin("every node")
    for node in lab.APPS:
        shows_nothing_secret(trading.on_loopback(node, "/processes"))
    for _ in lab.APPS:
        shows_nothing_secret(lab.ask("/processes")[1])
    running = trading.books()["running"]
    assert trading.HANDLER in running, f"process control says that {running} run, wanted {trading.HANDLER}"
    assert trading.main_pid(host, TRADER) == pid, f"{TRADER} on {host} was started again"


def shows_nothing_secret(page: str) -> None:
    assert trading.HANDLER in page, f"the page does not show {trading.HANDLER}: {page[:500]}"
    assert "mongodb://" not in page, "the page shows the database's URI"


# The drill ------------------------------------------------------------------------------------------------------------


def settle(drill: Drill) -> dict[str, Any]:
    """No more intents; wait until all that are there are done. Returns the books, settled or not."""
    drill.trading.intents.close()
    found: dict[str, Any] = {}

    def done() -> bool:
        found.update(trading.books())
        return not found["unfinished"] and not trade_once.open_at_broker(drill.trading.orders.seen)

    try:
        lab.eventually("no order is open", done, SETTLE_S, 2)
    except AssertionError as error:
        print(error)  # the judge says it as well, for each order
    assert found, "the books could not be read"
    return found


def write(drill: Drill, found: trade_once.Verdict) -> Path:
    """Keep the report, for programs and for people."""
    lab.REPORTS.mkdir(exist_ok=True)
    path = lab.REPORTS / f"trade-once-{trading.now():%Y%m%dT%H%M%SZ}.json"
    terms, _ = trade_once.terms_of(drill.trading.states())
    whole = {
        **found.as_dict(),
        "seed": SEED,
        "ttl_seconds": TTL,
        "fault_log": [asdict(fault) for fault in drill.faults],
        "terms": [asdict(term) for term in terms],
    }
    path.write_text(json.dumps(whole, indent=2, default=lambda value: value.isoformat()) + "\n")
    orders = trade_once.placements(drill.trading.orders.seen)
    orders = [order for order in orders if drill.faults and drill.faults[0].at and order.at >= drill.faults[0].at]
    path.with_suffix(".html").write_text(trade_once_page.render(found, drill.faults, terms, orders, SEED))
    return path


def prepare(seen: Trading) -> None:
    """Clocks that can be set, for the trader that runs as well; orders that take their time."""
    trading.give_clocks(lab.APPS)
    holder = seen.holder()
    pid = trading.main_pid(holder, TRADER)
    if pid:
        trading.send(holder, "KILL", TRADER)
        trading.replaced(holder, TRADER, pid, 60)
    trading.fill_slowly()
    seen.goes_on(trading.now(), 120)


def run(drill: Drill, plan: Sequence[str], minutes: float) -> None:
    """Do the planned faults, and more of them until the time is over; stop where trading does not go on."""
    deadline = time.monotonic() + minutes * 60
    more = trade_once.schedule(SEED, {name: what.weight for name, what in KINDS.items()}, len(plan))
    for number, name in zip(count(1), more, strict=False):
        if number > len(plan) and time.monotonic() >= deadline:
            return
        if not drill.do(name):
            return


def test_whatever_breaks_nothing_is_traded_twice() -> None:
    """The verdict is the broker's."""
    faults = round(MINUTES * FAULTS_PER_MINUTE)
    plan = list(islice(trade_once.schedule(SEED, {name: what.weight for name, what in KINDS.items()}, faults), faults))
    print(
        f"TRADE_ONCE_SEED={SEED} TRADE_ONCE_MINUTES={MINUTES:g}: {faults} faults of {len(set(plan))} kinds", flush=True
    )
    trading.heal()
    with trading.opened(ORDERS_PER_SECOND, SEED) as seen:
        drill = Drill(seen, SEED)
        try:
            prepare(seen)
            before, began = trading.books(), trading.now()
            run(drill, plan, MINUTES)
        finally:
            trading.heal()
            trading.take_clocks(lab.APPS)
        books = settle(drill)
        found = trade_once.judge(
            list(seen.orders.seen),
            seen.states(),
            drill.faults,
            trade_once.Books.read(books, before),
            trade_once.intents_of(books, seen.intents.seen),
            trade_once.Wanted(faults, MINUTES, sorted(set(plan)), trading.TAKEOVER),
            began,
            trading.now(),
        )
        path = write(drill, found)
    print(f"{path}: {'passed' if found.passed else 'FAILED'}, {found.faults} faults, {found.orders_sent} orders")
    assert found.passed, "\n".join(found.problems)
