"""What the broker knows: orders, fills, positions. The append-only order log is the one source of truth."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

START_CASH = 1_000_000.0
COMMISSION_PER_UNIT = 0.85


class Status(StrEnum):
    """State of an order, in the broker's words."""

    SUBMITTED = "Submitted"
    FILLED = "Filled"
    CANCELLED = "Cancelled"


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
    """An order as it was accepted."""

    account: str
    client_id: int
    order_id: int
    perm_id: int
    contract: Contract
    action: str
    quantity: float
    order_type: str
    limit_price: str
    aux_price: str
    time_in_force: str
    reference: str

    @property
    def key(self) -> tuple[int, int]:
        """Order ids are unique per client only."""
        return self.client_id, self.order_id


@dataclass(frozen=True)
class Fill:
    """One execution of an order; the simulator fills in one piece."""

    execution_id: str
    order: Order
    price: float
    at: str

    @property
    def signed_quantity(self) -> float:
        """Positive for a purchase."""
        return self.order.quantity if self.order.action == "BUY" else -self.order.quantity

    @property
    def commission(self) -> float:
        """A flat rate per unit."""
        return round(self.order.quantity * COMMISSION_PER_UNIT, 2)


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
    """JSON lines, only ever appended to, on disk before the client hears of them. Also the oracle of the tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read() != b"\n":  # torn by a power cut: what follows must not stick to it
                self._file.write(b"\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._path.read_bytes().splitlines():
            with suppress(json.JSONDecodeError):  # the line that a power cut tore was never acknowledged
                yield json.loads(line)

    def append(self, event: str, record: Mapping[str, Any]) -> None:
        """Write one event and wait until it is on disk."""
        line = {"event": event, "at": datetime.now(UTC).isoformat(), **record}
        self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _price(contract: Contract, limit_price: str) -> float:
    """The simulator has no market: it takes the limit, else a price that depends on the symbol alone."""
    with suppress(ValueError):
        return float(limit_price)
    return 50.0 + sum(contract.symbol.encode()) % 100


def _order(record: Mapping[str, Any]) -> Order:
    names = {field.name for field in fields(Order)} - {"contract"}
    return Order(contract=Contract(**record["contract"]), **{name: record[name] for name in names})


class Book:
    """Orders, fills and positions of one account. Rebuilt from the log at start, so that they outlive the process."""

    def __init__(self, account: str, log: OrderLog) -> None:
        self.account = account
        self.orders: dict[tuple[int, int], Order] = {}
        self.status: dict[tuple[int, int], Status] = {}
        self.fills: list[Fill] = []
        self.positions: defaultdict[Contract, Position] = defaultdict(Position)
        self._log = log
        for record in log:
            self._apply(record["event"], record)

    def __enter__(self) -> Book:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._log.close()

    @property
    def next_order_id(self) -> int:
        """The lowest order id that no client has used."""
        return max((order.order_id for order in self.orders.values()), default=0) + 1

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

    def place(self, order: Order) -> None:
        """Accept an order."""
        self._commit("placed", asdict(order))

    def fill(self, order: Order) -> Fill:
        """Fill an order in full."""
        price = _price(order.contract, order.limit_price)
        self._commit("filled", asdict(order) | {"execution_id": f"sim.{order.perm_id}.01", "price": price})
        return self.fills[-1]

    def cancel(self, order: Order) -> None:
        """Take an order back."""
        self._commit("cancelled", asdict(order))

    def _commit(self, event: str, record: Mapping[str, Any]) -> None:
        self._log.append(event, record)
        self._apply(event, {"at": datetime.now(UTC).isoformat(), **record})

    def _apply(self, event: str, record: Mapping[str, Any]) -> None:
        order = _order(record)
        self.orders[order.key] = order
        self.status[order.key] = {
            "placed": Status.SUBMITTED,
            "filled": Status.FILLED,
            "cancelled": Status.CANCELLED,
        }[event]
        if event == "filled":
            fill = Fill(record["execution_id"], order, record["price"], record["at"])
            self.fills.append(fill)
            self.positions[order.contract].add(fill.signed_quantity, fill.price)
