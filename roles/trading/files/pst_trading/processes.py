"""pysystemtrade's own state in MongoDB: process control, order stacks, client ids. Names and types are its own.

Process control is written by its processes as whole documents, read before and written after, without a comparison.
So a status that we set may be overwritten with the old one a moment later: who needs it sets it again until it is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from .lease import Document
from .store import majority, translated

# Sends orders to the broker: what it leaves behind when it dies has to be cancelled before anything else trades.
ORDER_SENDER = "run_stack_handler"

STACKS = ("INSTRUMENT_ORDER_STACK", "CONTRACT_ORDER_STACK", "BROKER_ORDER_STACK")
ORDER_ID_STORE = "_ORDER_ID_STORE_KEY"  # the counter of the stack, no order
REFUSING = ("STOP", "NO-RUN")

# On a fresh database pysystemtrade makes its indexes only when a collection is opened for the second time.
UNIQUE_INDEXES = {
    "process_control": ("process_name",),
    "IBClientTracker": ("client_id",),
    **dict.fromkeys(STACKS, ("order_id",)),
    "_STRATEGY_HISTORIC_ORDERS": ("order_id",),
    "_CONTRACT_HISTORIC_ORDERS": ("order_id",),
    "_BROKER_HISTORIC_ORDERS": ("order_id",),
    "locks": ("instrument_code",),
    "futures_roll_status": ("instrument_code",),
    "temporary_override_collection": ("instrument_code",),
    "temporary_close_collection": ("instrument_code",),
    "spread_costs": ("instrument_code",),
    "limit_status": ("instrument_strategy_key", "period_days"),
    "overide_status": ("key", "dict_name"),
}


@dataclass(frozen=True)
class ProcessState:
    """What process control says of one process."""

    name: str
    status: str = "GO"
    running: bool = False
    crashed: bool = False
    last_start: datetime | None = None
    last_end: datetime | None = None
    newest_activity: datetime | None = None

    @property
    def may_start(self) -> bool:
        return self.status not in REFUSING


@dataclass(frozen=True)
class Order:
    """An order on one of the stacks that is not done."""

    stack: str
    order_id: int
    key: str
    trade: str
    fill: str
    begun: bool = True  # an instrument order is once it has a contract order: until then it is a wish

    def __str__(self) -> str:
        return f"{self.stack} {self.order_id}: {self.key}, trade {self.trade}, filled {self.fill}"


class ProcessControl(Protocol):
    def states(self, names: Iterable[str]) -> dict[str, ProcessState]: ...

    def set_status(self, name: str, status: str) -> None: ...

    def close_dead(self, names: Sequence[str], now: datetime) -> list[str]: ...

    def active_orders(self) -> list[Order]: ...

    def any_running(self) -> bool: ...

    def free_client_ids(self, ids: range) -> int: ...


class MongoProcessControl:
    """The real one. Dates are naive and local, as pysystemtrade writes them."""

    def __init__(self, database: Any) -> None:
        self._database = majority(database)
        self._control = self._database["process_control"]

    def states(self, names: Iterable[str]) -> dict[str, ProcessState]:
        """Return the state of each process; one that never ran may be started."""
        wanted = list(names)
        with translated():
            found = {d["process_name"]: d for d in self._control.find({"process_name": {"$in": wanted}})}
        return {name: _state(name, found.get(name, {})) for name in wanted}

    def set_status(self, name: str, status: str) -> None:
        """Set the status and nothing else; a process that never ran gets its first document."""
        first = {"currently_running": 0.0, "process_id": 0.0, "recently_crashed": 0.0, "running_methods": {}}
        first |= {"last_start_time": None, "last_end_time": None}
        with translated():
            self._control.update_one(
                {"process_name": name}, {"$set": {"status": status}, "$setOnInsert": first}, upsert=True
            )

    def close_dead(self, names: Sequence[str], now: datetime) -> list[str]:
        """Close the entries that a process left which was killed; returns whose those were."""
        closed = []
        for name in names:
            with translated():
                done = self._control.update_one(
                    {"process_name": name, "currently_running": {"$nin": [0, False, None]}},
                    {
                        "$set": {
                            "currently_running": 0.0,
                            "process_id": 0.0,
                            "recently_crashed": 1.0,
                            "last_end_time": now,
                        }
                    },
                )
            if done.matched_count:
                closed.append(name)
        return closed

    def active_orders(self) -> list[Order]:
        with translated():
            return [
                _order(stack, document)
                for stack in STACKS
                for document in self._database[stack].find(
                    {"order_id": {"$ne": ORDER_ID_STORE}, "active": {"$nin": [0, False, None]}}
                )
            ]

    def any_running(self) -> bool:
        with translated():
            return self._control.find_one({"currently_running": {"$nin": [0, False, None]}}) is not None

    def free_client_ids(self, ids: range) -> int:
        """Free the ids of the range, which nobody does: a process that ends keeps its own."""
        with translated():
            done = self._database["IBClientTracker"].delete_many({"client_id": {"$gte": ids.start, "$lt": ids.stop}})
        return int(done.deleted_count)

    def create_indexes(self) -> list[str]:
        """Create the unique indexes that are missing; returns which."""
        made = []
        for collection, keys in UNIQUE_INDEXES.items():
            with translated():
                before = set(self._database[collection].index_information())
                name = self._database[collection].create_index([(key, 1) for key in keys], unique=True)
            if name not in before:
                made.append(f"{collection}.{name}")
        return made


def _state(name: str, document: Document) -> ProcessState:
    times = [
        time
        for entry in (document.get("running_methods") or {}).values()
        for time in (entry if isinstance(entry, list) else [])
        if isinstance(time, datetime)
    ]
    return ProcessState(
        name=name,
        status=str(document.get("status", "GO")),
        running=bool(document.get("currently_running")),
        crashed=bool(document.get("recently_crashed")),
        last_start=_time(document.get("last_start_time")),
        last_end=_time(document.get("last_end_time")),
        newest_activity=max(times, default=None),
    )


def _time(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _order(stack: str, document: Document) -> Order:
    return Order(
        stack=stack,
        order_id=int(document["order_id"]),
        key=str(document.get("key", "")),
        trade=str(document.get("trade", "")),
        fill=str(document.get("fill", "")),
        begun=stack != STACKS[0] or bool(document.get("children")),
    )
