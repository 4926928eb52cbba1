"""Print what the account has earned and what it risks, as JSON, out of pysystemtrade's own stores; nothing is changed.

    python -I account_reader.py <folder with private_config.yaml> <source tree of the release>

Run by the slot's Python, which has PyYAML, pyarrow and pymongo. It reads

- positions: the last row of each file of `contract_positions`, which is what pysystemtrade reconciles with the broker;
- fills: the broker's orders in MongoDB, done or not, which have the price of each leg;
- prices: `futures_contract_prices` to value a contract, `futures_adjusted_prices` for the days behind the risk;
- rates: `spotfx_prices`, each against the dollar; point sizes and currencies: the release's `instrumentconfig.csv`.

The definitions are in docs/account-figures.md. A figure that cannot be told is left out, and `missing` says why.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Series = Sequence[tuple[datetime, float]]  # without gaps, the oldest first

DOLLAR = "USD"  # pysystemtrade stores every rate against it
INSTRUMENTS = "data/futures/csvconfig/instrumentconfig.csv"
# An order counts while it is being filled, as its position does; done, it is in the history and for a day in both.
ORDERS = ("BROKER_ORDER_STACK", "_BROKER_HISTORIC_ORDERS")
FIELDS = {
    "_id": 0,
    "order_id": 1,
    "key": 1,
    "fill": 1,
    "filled_price": 1,
    "leg_filled_price": 1,
    "fill_datetime": 1,
}
SELECT_MS, READ_MS = 5000, 30000
BATCH, MAX_ORDERS = 5000, 50000
# The last price of a contract may be followed by hours without one; two years of hours have the days behind the risk.
MARK_ROWS, DAY_ROWS = 500, 14000
# Longer than any exchange is closed. What is older says nothing of today.
MAX_AGE_S = 7 * 86400
DAYS, MIN_DAYS = 512, 250  # changes of price: two years as pysystemtrade takes for its risk, and one at least
TAIL = 0.01
SAME = 1e-6  # positions are whole contracts
NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - pysystemtrade stores local times without a zone


class MissingError(Exception):
    """A figure cannot be told. The message becomes a label: it says why, and stays the same while that lasts."""


@dataclass(frozen=True)
class Instrument:
    point_size: float
    currency: str


@dataclass(frozen=True)
class Fill:
    instrument: str
    contract: str
    quantity: float
    price: float | None


@dataclass
class Book:
    """One contract as its fills make it: what is held, at which mean price, and what was earned by closing."""

    quantity: float = 0.0
    entry: float = 0.0
    realised: float = 0.0  # points times contracts

    def add(self, quantity: float, price: float) -> None:
        if self.quantity * quantity < 0:
            closed = min(abs(quantity), abs(self.quantity)) * (1 if self.quantity > 0 else -1)
            self.realised += closed * (price - self.entry)
            self.quantity += quantity
            if self.quantity * closed < 0:  # from long to short: what is left was entered now
                self.entry = price
        else:
            held = self.quantity + quantity
            self.entry = (self.entry * self.quantity + price * quantity) / held
            self.quantity = held

    def unrealised(self, price: float) -> float:
        return self.quantity * (price - self.entry)


class Store:
    """pysystemtrade's folder of Parquet files, and the clock that says what is old."""

    def __init__(self, root: Path, now: float) -> None:
        self._root, self._now = root, now

    def names(self, kind: str) -> list[str]:
        return sorted(path.stem for path in (self._root / kind).glob("*.parquet"))

    def series(self, kind: str, name: str, column: str | None = None, rows: int = MARK_ROWS) -> Series:
        """The last rows of a column, or of the only one."""
        path = self._root / kind / f"{name}.parquet"
        if not path.exists():
            raise MissingError(f"{kind}: no file")
        try:
            found = read(path, column, rows)
        except Exception as error:  # pysystemtrade does not replace its files atomically: one may be half written
            raise MissingError(f"{kind}: {type(error).__name__}") from error
        if not found:
            raise MissingError(f"{kind}: empty")
        return found

    def fresh(self, kind: str, series: Series) -> Series:
        if self._now - series[-1][0].timestamp() > MAX_AGE_S:
            raise MissingError(f"{kind}: older than {MAX_AGE_S // 86400} days")
        return series


def read(path: Path, column: str | None, rows: int) -> Series:
    import pyarrow.parquet as parquet  # noqa: PLC0415 - the agent itself has none

    with parquet.ParquetFile(path) as file:
        described = file.schema_arrow.pandas_metadata or {}
        index = next(name for name in described.get("index_columns", []) if isinstance(name, str))
        wanted = column or next(name for name in file.schema_arrow.names if name != index)
        table = file.read(columns=[index, wanted], use_threads=False)
    last = table.slice(max(0, table.num_rows - rows))
    pairs = zip(last.column(index).to_pylist(), last.column(wanted).to_pylist(), strict=True)
    return [(at, float(value)) for at, value in pairs if at is not None and value is not None and not isnan(value)]


def fills(*collections: Any) -> Iterator[Fill]:
    """Every fill of every leg, in the order in which they were made. The last collection that has an order is right."""
    found: dict[Any, Document] = {}
    for collection in collections:
        for document in collection.find({}, FIELDS).limit(MAX_ORDERS + 1).batch_size(BATCH).max_time_ms(READ_MS):
            found[document.get("order_id")] = document
    if len(found) > MAX_ORDERS:
        raise SystemExit(f"more than {MAX_ORDERS} orders")
    filled = (document for document in found.values() if any(legs(document.get("fill"))))
    for document in sorted(filled, key=lambda one: (one.get("fill_datetime") or NEVER, one["order_id"])):
        instrument, _, dates = str(document["key"]).partition("/")[2].partition("/")
        contracts, quantities = dates.split("_"), legs(document["fill"])
        one_leg = len(contracts) == 1
        prices = [document.get("filled_price")] if one_leg else legs(document.get("leg_filled_price"))
        prices += [None] * (len(contracts) - len(prices))
        for contract, quantity, price in zip(contracts, quantities, prices, strict=False):
            known = document.get("fill_datetime") is not None and price is not None and not isnan(price)
            if quantity:  # a month without a day is the day 00, as pysystemtrade has it
                yield Fill(instrument, contract.ljust(8, "0"), float(quantity), float(price) if known else None)


def legs(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def instruments(source: Path) -> dict[str, Instrument]:
    with (source / INSTRUMENTS).open(newline="") as file:
        return {row["Instrument"]: Instrument(float(row["Pointsize"]), row["Currency"]) for row in csv.DictReader(file)}


@dataclass
class Account:
    """The figures, in the base currency, and what is missing of them."""

    store: Store
    instruments: Mapping[str, Instrument]
    base: str
    positions: dict[str, dict[str, float]] = field(default_factory=dict)  # by instrument and contract
    fills: dict[str, dict[str, list[Fill]]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # instruments whose position is not known, and why
    missing: list[Document] = field(default_factory=list)
    prices: dict[str, float] = field(default_factory=dict)  # when the oldest price of an instrument was made

    def load(self, found: Iterable[Fill]) -> None:
        names = self.store.names("contract_positions")
        if not names:
            raise SystemExit("contract_positions: no file")
        for name in names:
            instrument, _, contract = name.partition("#")
            try:
                position = self.store.series("contract_positions", name, rows=1)[-1][1]
            except MissingError as error:
                self.broken[instrument] = str(error)
            else:
                self.positions.setdefault(instrument, {})[contract.ljust(8, "0")] = position
        for fill in found:
            self.fills.setdefault(fill.instrument, {}).setdefault(fill.contract, []).append(fill)

    def figures(self) -> Document:
        pnl = {}
        for instrument in sorted(self.positions.keys() | self.fills.keys() | self.broken.keys()):
            try:
                pnl[instrument] = self.pnl(instrument)
            except MissingError as error:
                self.note("pnl", instrument, error)
        return {
            "currency": self.base,
            "pnl": pnl,
            **self.risk(),
            "prices": self.prices,
            "missing": self.missing,
        }

    def note(self, figure: str, instrument: str, error: MissingError) -> None:
        self.missing.append({"figure": figure, "instrument": instrument, "reason": str(error)})

    def pnl(self, instrument: str) -> Document:
        """What was earned with an instrument since the first fill, and the part of it that is still open."""
        if instrument in self.broken:
            raise MissingError(self.broken[instrument])
        held, filled = self.positions.get(instrument, {}), self.fills.get(instrument, {})
        # All prices before the first reason not to go on: their ages are told anyway.
        marks = {contract: self.mark(instrument, contract) for contract, position in held.items() if position}
        realised = unrealised = 0.0
        for contract in sorted(held.keys() | filled.keys()):
            book = Book()
            for fill in filled.get(contract, []):
                if fill.price is None:
                    raise MissingError("a fill has no price or no time")
                book.add(fill.quantity, fill.price)
            if abs(book.quantity - held.get(contract, 0.0)) > SAME:
                raise MissingError("the fills do not add up to the position")
            realised += book.realised
            if contract in marks:
                unrealised += book.unrealised(self.store.fresh("futures_contract_prices", marks[contract])[-1][1])
        value = self.value(instrument)
        return {"total": (realised + unrealised) * value, "unrealized": unrealised * value}

    def mark(self, instrument: str, contract: str) -> Series:
        series = self.store.series("futures_contract_prices", f"{instrument}#{contract}", "FINAL")
        at = series[-1][0].timestamp()
        self.prices[instrument] = min(self.prices.get(instrument, at), at)
        return series

    def value(self, instrument: str) -> float:
        """What a point of one contract is worth now."""
        known = self.instruments.get(instrument)
        if known is None:
            raise MissingError("not in instrumentconfig.csv")
        if known.currency == self.base:
            return known.point_size
        return known.point_size * self.in_dollars(known.currency) / self.in_dollars(self.base)

    def in_dollars(self, currency: str) -> float:
        if currency == DOLLAR:
            return 1.0
        return self.store.fresh("spotfx_prices", self.store.series("spotfx_prices", currency + DOLLAR))[-1][1]

    def risk(self) -> Document:
        """Of the positions of now on the days behind us. A risk without one of them would be another portfolio's."""
        nets = {instrument: sum(contracts.values()) for instrument, contracts in self.positions.items()}
        days, exposure = {}, {}
        failed = [("risk", instrument, MissingError(reason)) for instrument, reason in sorted(self.broken.items())]
        for instrument, net in sorted(nets.items()):
            if abs(net) < SAME or instrument in self.broken:
                continue
            try:
                exposure[instrument] = net * self.value(instrument)
                series = self.store.series("futures_adjusted_prices", instrument, rows=DAY_ROWS)
                days[instrument] = by_day(self.store.fresh("futures_adjusted_prices", series))
            except MissingError as error:
                failed.append(("risk", instrument, error))
        changes = changes_of(days)
        if days and len(next(iter(changes.values()))) < MIN_DAYS:
            shortest = max(days, key=lambda one: min(days[one]))
            failed.append(("risk", shortest, MissingError(f"fewer than {MIN_DAYS} days with a price of all")))
        if failed:
            for one in failed:
                self.note(*one)
            return {}
        earned = {one: [exposure[one] * change for change in values] for one, values in changes.items()}
        portfolio = [sum(values) for values in zip(*earned.values(), strict=True)]
        spread = {one: statistics.stdev(values) for one, values in earned.items()}
        total = sum(spread.values())
        return {
            "var": -quantile(portfolio, TAIL) if portfolio else 0.0,
            "concentration": {one: value / total for one, value in spread.items()} if total else {},
        }


def by_day(series: Series) -> dict[date, float]:
    """The last price of each business day; one of a weekend is Friday's, as pysystemtrade has it."""
    return {at.date() - timedelta(days=max(0, at.weekday() - 4)): price for at, price in series}


def changes_of(days: Mapping[str, Mapping[date, float]]) -> dict[str, list[float]]:
    """The changes of each price over the days since all have one; one that has none on a day stays as it was."""
    if not days:
        return {}
    begin = max(min(prices) for prices in days.values())
    grid = sorted({day for prices in days.values() for day in prices})
    found: dict[str, list[float]] = {}
    for name, prices in days.items():
        last, filled = 0.0, []
        for day in grid:
            last = prices.get(day, last)
            if day >= begin:
                filled.append(last)
        filled = filled[-DAYS - 1 :]
        found[name] = [after - before for before, after in pairwise(filled)]
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """With what lies between two values taken as on a line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def orders(settings: Mapping[str, Any]) -> list[Fill]:
    """By pysystemtrade's own settings and login; what is not set has its default."""
    import pymongo  # noqa: PLC0415 - the agent itself has none

    client: Any = pymongo.MongoClient(
        settings.get("mongo_host", "127.0.0.1"),
        int(settings.get("mongo_port", 27017)),
        appname="pst-account",
        serverSelectionTimeoutMS=SELECT_MS,
        connectTimeoutMS=SELECT_MS,
        socketTimeoutMS=READ_MS,
    )
    with client:
        database = client[settings.get("mongo_db", "production")]
        return list(fills(*(database[name] for name in ORDERS)))


def figures(private: Path, source: Path, now: float) -> Document:
    import yaml  # noqa: PLC0415 - the agent itself has none

    settings = yaml.safe_load((private / "private_config.yaml").read_text()) or {}
    root = settings.get("parquet_store")
    if not isinstance(root, str) or not root.startswith("/"):
        raise SystemExit(f"parquet_store is {root!r}, wanted: an absolute path")
    account = Account(Store(Path(root), now), instruments(source), settings.get("base_currency", DOLLAR))
    account.load(orders(settings))
    return account.figures()


def main() -> int:
    try:
        sys.stdout.write(json.dumps(figures(Path(sys.argv[1]), Path(sys.argv[2]), time.time()), allow_nan=False))
    except Exception as error:  # the last line becomes a label, and the words of a driver change each time
        raise SystemExit(type(error).__name__) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
