"""What MongoDB knows of trading: leases, the run lock, processes, orders, breaks. Nothing is changed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .mongodb import SERVER_MS, Document
from .orders import History, Order
from .settings import Process
from .text import Page

STACKS = {
    "instrument": "INSTRUMENT_ORDER_STACK",
    "contract": "CONTRACT_ORDER_STACK",
    "broker": "BROKER_ORDER_STACK",
}
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# The counter that pysystemtrade keeps among the orders; and what it stores for True is sometimes a number.
ACTIVE = {"order_id": {"$ne": "_ORDER_ID_STORE_KEY"}, "active": {"$in": [True, 1]}}
MAX_ORDERS = 10000


@dataclass(frozen=True)
class State:
    """What was read at one time; `now` is the server's clock, in UTC."""

    now: datetime
    leases: Sequence[Document]
    lock: Document
    processes: Sequence[Document]
    stacks: Mapping[str, Sequence[Document]]
    locks: Sequence[Document]
    new_orders: Sequence[Order] = ()


class Database:
    """The questions, each of them short."""

    def __init__(self, connect: Callable[[], Any], platform: str, trading: str) -> None:
        self._connect, self._platform, self._trading = connect, platform, trading
        self._client: Any = None

    def read(self, history: History) -> State:
        from pymongo.errors import ServerSelectionTimeoutError  # noqa: PLC0415

        self._client = client = self._client or self._connect()
        try:
            return self._read(client, history)
        except ServerSelectionTimeoutError:
            # A client that knew a set never finds the one that was made anew after a disaster, whose terms are lower.
            self._client = None
            client.close()
            raise

    def _read(self, client: Any, history: History) -> State:
        now = client.admin.command("hello")["localTime"].replace(tzinfo=UTC)
        platform, trading = client[self._platform], client[self._trading]
        ages = {"_id": 1, "order_id": 1, "locked": 1}
        return State(
            now=now,
            leases=self._all(platform["leases"], {}, None),
            lock=next(iter(self._all(platform["run_lock"], {"_id": "site"}, None)), {}),
            processes=self._all(trading["process_control"], {}, None),
            stacks={name: self._all(trading[collection], ACTIVE, ages) for name, collection in STACKS.items()},
            locks=self._all(trading["locks"], {"lock": "ON"}, {"instrument_code": 1}),
            new_orders=list(history.read(trading["_BROKER_HISTORIC_ORDERS"])),
        )

    @staticmethod
    def _all(collection: Any, query: Document, fields: Document | None) -> list[Document]:
        return list(collection.find(query, fields).limit(MAX_ORDERS).max_time_ms(SERVER_MS))


@dataclass
class Breaks:
    """Counts the breaks between our positions and the broker's: pysystemtrade locks the instrument of each.

    The count outlives a restart of the exporter: it is in a file, with the locks that it has counted already.
    """

    path: Path
    total: int = 0
    seen: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> Breaks:
        try:
            kept = json.loads(path.read_text())
            return cls(path, int(kept["breaks"]), set(kept["locked"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def update(self, locked: Iterable[str]) -> int:
        now = set(locked)
        if now != self.seen:
            self.total += len(now - self.seen)
            self.seen = now
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps({"breaks": self.total, "locked": sorted(now)}) + "\n")
            new.replace(self.path)
        return self.total


class Site:
    """The figures of the site."""

    def __init__(
        self,
        read: Callable[[History], State],
        processes: Sequence[Process],
        breaks: Breaks,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._read, self._processes, self._breaks, self._clock = read, processes, breaks, clock
        self._history = History()
        self._lock = threading.Lock()  # two Prometheus may ask at once

    def render(self) -> str:
        page = Page()
        up = page.gauge("pst_site_up", "1 when the state of trading could be read from MongoDB's primary")
        with self._lock:
            try:
                state = self._read(self._history)
            except Exception as error:  # noqa: BLE001 - whatever the driver raises
                up.add(0)
                page.gauge("pst_site_last_error_info", "Always 1; why it could not be read").add(
                    1, error=type(error).__name__
                )
                return page.render()
            up.add(1)
            self._history.add(state.new_orders)
            lease_figures(page, state)
            lock_figures(page, state)
            process_figures(page, state.processes, self._processes, self._clock())
            order_figures(page, state)
            page.gauge("pst_position_breaks", "Instruments that are locked: the broker has another position").add(
                len(state.locks)
            )
            page.counter(
                "pysystemtrade_position_reconciliation_errors_total",
                "Breaks found between our positions and the broker's",
            ).add(self._breaks.update(str(lock.get("instrument_code")) for lock in state.locks))
            self._history.render(page)
        return page.render()


def lease_figures(page: Page, state: State) -> None:
    held = page.gauge("pst_lease_held", "1 while somebody holds the lease of the placement")
    epoch = page.gauge("pst_lease_granted_epoch", "How often the lease of the placement was granted")
    revoked = page.gauge("pst_lease_revoked", "1 while the kill switch keeps the lease from everybody")
    left = page.gauge("pst_lease_remaining_seconds", "Time until the lease expires")
    holder = page.gauge("pst_lease_holder_info", "Always 1; who holds the lease")
    for lease in state.leases:
        placement = lease["_id"]
        who = lease.get("holder") or {}
        expires = lease.get("expires_at")
        remaining = (expires.replace(tzinfo=UTC) - state.now).total_seconds() if expires else 0.0
        is_held = bool(who) and remaining > 0
        held.add(is_held, placement=placement)
        epoch.add(lease.get("epoch", 0), placement=placement)
        revoked.add(lease.get("revoked") is not None, placement=placement)
        if is_held:
            left.add(remaining, placement=placement)
            holder.add(1, placement=placement, holder=who.get("host", ""), colour=who.get("colour", ""))


def lock_figures(page: Page, state: State) -> None:
    run = state.lock.get("run")
    page.gauge("pst_run_lock_held", "1 while a run that changes the site has the run lock").add(run is not None)
    started = state.lock.get("started")
    if run is None or not started:
        return
    seconds = (state.now - started.replace(tzinfo=UTC)).total_seconds()
    page.gauge("pst_run_lock_age_seconds", "For how long the run has had the run lock").add(
        seconds, run=run, playbook=state.lock.get("playbook", ""), by=state.lock.get("by", "")
    )


def process_figures(page: Page, documents: Sequence[Document], processes: Sequence[Process], now: datetime) -> None:
    """Which processes there have to be now, and which there are. Process control has naive local times."""
    known = {document.get("process_name"): document for document in documents}
    expected = page.gauge("pst_process_expected", "1 while the process is in its window")
    present = page.gauge("pst_process_present", "1 when it runs; for one that runs once a day, also when it has")
    crashed = page.gauge("pst_process_crashed", "1 when process control says that it has crashed")
    stopped = page.gauge("pst_process_stopped", "1 when its status keeps it from running")
    for process in processes:
        document = known.get(process.name, {})
        began = window_began(process, now)
        start = document.get("last_start_time")
        has_run = process.kind == "daily" and began is not None and isinstance(start, datetime) and start >= began
        expected.add(began is not None, process=process.name)
        present.add(bool(document.get("currently_running")) or has_run, process=process.name)
        crashed.add(bool(document.get("recently_crashed")), process=process.name)
        stopped.add(document.get("status", "GO") not in ("GO", "PAUSE"), process=process.name)


def window_began(process: Process, now: datetime) -> datetime | None:
    """When the window that `now` is in began; None outside of all. A window may go past midnight."""
    hours, minutes = map(int, process.start.split(":"))
    stop_hours, stop_minutes = map(int, process.stop.split(":"))
    for back in (0, 1):
        day = now - timedelta(days=back)
        start = day.replace(hour=hours, minute=minutes, second=0, microsecond=0)
        stop = day.replace(hour=stop_hours, minute=stop_minutes, second=0, microsecond=0)
        if stop <= start:
            stop += timedelta(days=1)
        if DAYS[start.weekday()] in process.days and start <= now < stop:
            return start
    return None


def order_figures(page: Page, state: State) -> None:
    """Orders by stack. Their age is that of the document: MongoDB's ids tell when they were made, in UTC."""
    active = page.gauge("pst_stack_orders", "Active orders on a stack")
    locked = page.gauge("pst_stack_orders_locked", "Active orders on a stack that are locked")
    oldest = page.gauge("pst_stack_oldest_order_seconds", "Age of the oldest active order on a stack")
    for stack, documents in state.stacks.items():
        active.add(len(documents), stack=stack)
        locked.add(sum(bool(document.get("locked")) for document in documents), stack=stack)
        ids = [document["_id"] for document in documents]
        made = [key.generation_time for key in ids if hasattr(key, "generation_time")]
        oldest.add((state.now - min(made)).total_seconds() if made else 0, stack=stack)
