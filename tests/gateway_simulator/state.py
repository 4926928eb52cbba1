"""What the broker knows: orders, fills, positions. The append-only order log is the one source of truth."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

START_CASH = 1_000_000.0
COMMISSION_PER_UNIT = 0.85
# How a trader marks its orders: the epoch of its lease, its own number of the order, and what it likes to add.
_REFERENCE = re.compile(r"pst:(\d+):.+")

Record = Mapping[str, Any]
OrderKey = tuple[int, int]


class Status(StrEnum):
    """State of an order, in the broker's words."""

    PENDING = "PendingSubmit"  # the gateway has it, the broker has not confirmed it
    SUBMITTED = "Submitted"
    FILLED = "Filled"
    CANCELLED = "Cancelled"
    REJECTED = "Inactive"


class Event(StrEnum):
    """What can happen to an order, in the words of the log."""

    PLACED = "placed"
    MODIFIED = "modified"
    FILLED = "filled"  # in part or in full: see `shares`
    CANCELLED = "cancelled"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Contract:
    """The twelve fields by which every request and most replies name an instrument."""

    con_id: str
    symbol: str
    sec_type: str
    expiry: str
    strike: str
    right: str
    multiplier: str
    exchange: str
    primary_exchange: str
    currency: str
    local_symbol: str
    trading_class: str

    @property
    def short(self) -> tuple[str, ...]:
        """The eleven fields of most replies: those of the request without the primary exchange."""
        return (
            self.con_id,
            self.symbol,
            self.sec_type,
            self.expiry,
            self.strike or "0",
            self.right,
            self.multiplier,
            self.exchange,
            self.currency,
            self.local_symbol,
            self.trading_class,
        )


@dataclass(frozen=True)
class Order:
    """An order as it was accepted; the broker gives it its permanent id."""

    account: str
    client_id: int
    order_id: int
    contract: Contract
    action: str
    quantity: float
    order_type: str
    limit_price: str
    aux_price: str
    time_in_force: str
    reference: str
    perm_id: int = 0

    @property
    def key(self) -> OrderKey:
        """Order ids are unique per client only."""
        return self.client_id, self.order_id

    @property
    def sign(self) -> int:
        """1 for a purchase."""
        return 1 if self.action == "BUY" else -1

    @property
    def epoch(self) -> int | None:
        """The epoch of the lease that the trader held by its own words."""
        match = _REFERENCE.fullmatch(self.reference)
        return int(match[1]) if match else None

    @classmethod
    def from_record(cls, record: Record) -> Order:
        """Read an order out of a record of the log or of a command."""
        names = {field.name for field in fields(cls)} - {"contract"}
        return cls(contract=Contract(**record["contract"]), **{name: record[name] for name in names})


@dataclass(frozen=True)
class Fill:
    """One execution of an order."""

    execution_id: str
    order: Order
    shares: float
    price: float
    at: datetime
    cumulative: float
    average_price: float

    @property
    def signed_quantity(self) -> float:
        """Positive for a purchase."""
        return self.shares * self.order.sign

    @property
    def commission(self) -> float:
        """A flat rate per unit."""
        return round(self.shares * COMMISSION_PER_UNIT, 2)


@dataclass
class Position:
    """What the account holds of one contract."""

    quantity: float = 0.0
    average_cost: float = 0.0

    def add(self, quantity: float, price: float) -> None:
        """Take a fill in: the average moves when the position grows, and starts anew when it crosses zero."""
        total = self.quantity + quantity
        if self.quantity * quantity >= 0:
            self.average_cost = (self.quantity * self.average_cost + quantity * price) / total if total else 0.0
        elif self.quantity * total < 0:
            self.average_cost = price
        self.quantity = total


class OrderLog:
    """JSON lines, only ever appended to, on disk before anybody hears of them. Also the oracle of the tests."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read() != b"\n":  # torn by a power cut: what follows must not stick to it
                self._file.write(b"\n")

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on disk."""
        self._file.write(json.dumps(record, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def read_log(path: Path) -> Iterator[Record]:
    """Yield the records of a log; the line that a power cut tore was never acknowledged."""
    for line in path.read_bytes().splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


class Book:
    """Orders, fills and positions of one account: the sum of the log's records. Broker and gateways each have one."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.records: list[Record] = []
        self.orders: dict[OrderKey, Order] = {}
        self.status: dict[OrderKey, Status] = {}
        self.changed_at: dict[OrderKey, datetime] = {}
        self.filled: defaultdict[OrderKey, float] = defaultdict(float)
        self.fills: list[Fill] = []
        self.positions: defaultdict[str, Position] = defaultdict(Position)  # by contract id
        self.contracts: dict[str, Contract] = {}

    @property
    def next_order_id(self) -> int:
        """The lowest order id that no client has used."""
        return max((order_id for _, order_id in self.orders), default=0) + 1

    @property
    def open_orders(self) -> list[Order]:
        """Orders that may still fill."""
        return [order for key, order in self.orders.items() if self.status[key] is Status.SUBMITTED]

    @property
    def account_values(self) -> dict[str, float]:
        """The account's tags that pysystemtrade reads."""
        spent = sum(fill.signed_quantity * fill.price + fill.commission for fill in self.fills)
        cash = round(START_CASH - spent, 2)
        held = sum(position.quantity * position.average_cost for position in self.positions.values())
        return {
            "CashBalance": cash,
            "NetLiquidation": round(cash + held, 2),
            "FullExcessLiquidity": cash,
            "FullInitMarginReq": 0.0,
            "FullMaintMarginReq": 0.0,
        }

    def average_price(self, key: OrderKey) -> float:
        """Average price of what an order has got so far."""
        mine = [fill for fill in self.fills if fill.order.key == key]
        return mine[-1].average_price if mine else 0.0

    def apply(self, record: Record) -> Fill | None:
        """Take a record in; return the fill that it reports."""
        event, order, at = Event(record["event"]), Order.from_record(record), datetime.fromisoformat(record["at"])
        key, fill = order.key, None
        self.records.append(record)
        self.orders[key] = order
        self.changed_at[key] = at
        self.contracts[order.contract.con_id] = order.contract
        match event:
            case Event.PLACED | Event.MODIFIED:
                self.status[key] = Status.SUBMITTED
            case Event.CANCELLED:
                self.status[key] = Status.CANCELLED
            case Event.REJECTED:
                self.status[key] = Status.REJECTED
            case Event.FILLED:
                fill = self._fill(record, order, at)
        return fill

    def _fill(self, record: Record, order: Order, at: datetime) -> Fill:
        shares, price = record["shares"], record["price"]
        before = self.filled[order.key]
        total = before + shares
        average = (before * self.average_price(order.key) + shares * price) / total
        fill = Fill(record["execution_id"], order, shares, price, at, total, average)
        self.fills.append(fill)
        self.filled[order.key] = total
        self.positions[order.contract.con_id].add(fill.signed_quantity, price)
        self.status[order.key] = Status.FILLED if total >= order.quantity else Status.SUBMITTED
        return fill


def make_record(event: Event, order: Order, gateway: str, **details: Any) -> Record:
    """Write down what happened to an order, through which gateway, and when."""
    at = datetime.now(UTC).isoformat()
    return {"event": event.value, "at": at, "gateway": gateway, "epoch": order.epoch, **asdict(order), **details}
