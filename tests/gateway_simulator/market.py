"""The market that there is not: contracts, and prices that depend on the contract and the day alone."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from .state import Contract

MINIMUM_TICK = 0.25
MARKET_ORDERS = frozenset({"MKT", "SNAP MKT", "SNAP MID", "SNAP PRIM", "MIDPRICE", "MOC", "MOO"})
TIME_ZONE = "US/Central"
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9 .]{0,15}")
_SEC_TYPES = frozenset({"FUT", "CONTFUT", "STK", "CASH", "IND"})
_QUARTERS_LISTED = 6
# Of the futures that the reference application trades: pysystemtrade refuses a position with another multiplier.
_MULTIPLIERS = {"MES": "5", "MNQ": "2", "MGC": "10", "ZN": "1000"}
_SECONDS = {"S": 1, "D": 86_400, "W": 604_800, "M": 2_592_000, "Y": 31_536_000}
_BAR_SECONDS = {"sec": 1, "min": 60, "hour": 3600, "day": 86_400, "week": 604_800, "month": 2_592_000}
_MAX_BARS = 1000


def _third_friday(year: int, month: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(4 - first.weekday()) % 7 + 14)


def _expiries(today: date) -> Iterator[str]:
    """Yield the last trading days of the listed quarters."""
    listed, year, month = 0, today.year, 3
    while listed < _QUARTERS_LISTED:
        expiry = _third_friday(year, month)
        if expiry > today:
            listed += 1
            yield expiry.strftime("%Y%m%d")
        year, month = (year + month // 12, month % 12 + 3)


def _expiries_of(wanted: str, today: date) -> list[str]:
    """Return the expiries that a contract's field means: all of them, a month's, or one."""
    if len(wanted) == 8 and wanted.isdigit():
        return [wanted]
    if len(wanted) == 6 and wanted.isdigit() and 1 <= int(wanted[4:]) <= 12:
        return [_third_friday(int(wanted[:4]), int(wanted[4:])).strftime("%Y%m%d")]
    return [] if wanted else list(_expiries(today))


def find_contracts(asked: Contract, known: Mapping[str, Contract]) -> list[Contract]:
    """Return the contracts that a request means, each with all its fields; none where there is no such thing."""
    if not asked.symbol and asked.con_id in known:
        return [known[asked.con_id]]
    if asked.sec_type not in _SEC_TYPES or not _SYMBOL.fullmatch(asked.symbol):
        return []
    if asked.sec_type in {"FUT", "CONTFUT"}:
        found = [_complete(asked, expiry) for expiry in _expiries_of(asked.expiry, datetime.now(UTC).date())]
        return found[:1] if asked.sec_type == "CONTFUT" else found
    return [_complete(asked, "")]


def _complete(asked: Contract, expiry: str) -> Contract:
    currency = asked.currency or "USD"
    sec_type = "FUT" if expiry else asked.sec_type
    number = 1 + zlib.crc32("|".join((asked.symbol, sec_type, expiry, currency)).encode()) % 900_000_000
    return replace(
        asked,
        con_id=str(number),
        sec_type=sec_type,
        expiry=expiry,
        strike="0.0",
        right="",
        multiplier=asked.multiplier or (_MULTIPLIERS.get(asked.symbol, "1") if expiry else ""),
        exchange=asked.exchange or "SMART",
        primary_exchange="",
        currency=currency,
        local_symbol=f"{asked.symbol}{expiry[2:6]}",
        trading_class=asked.trading_class or asked.symbol,
    )


def price(contract: Contract, at: datetime | None = None) -> float:
    """A price that rises and falls by a twentieth over a quarter of a year."""
    base = 50.0 + sum(contract.symbol.encode()) % 100
    days = (at or datetime.now(UTC)).timestamp() / 86_400
    return round(base * (1 + 0.05 * math.sin(days / 14)) / MINIMUM_TICK) * MINIMUM_TICK


def fill_price(contract: Contract, action: str, order_type: str, limit_price: str) -> float | None:
    """Return what an order would fill at now; None for one that has to wait."""
    now = price(contract)
    if order_type in MARKET_ORDERS:
        return now
    if order_type == "LMT":
        limit = float(limit_price or 0)
        return now if (now <= limit if action == "BUY" else now >= limit) else None
    return None


@dataclass(frozen=True)
class Bar:
    """A historical bar."""

    start: datetime
    open: float
    high: float
    low: float
    close: float

    def date_text(self, bar_seconds: int, format_date: int) -> str:
        """Daily bars carry a date; shorter ones a time, or seconds since 1970 where the client asks for them."""
        if bar_seconds >= _SECONDS["D"]:
            return self.start.strftime("%Y%m%d")
        return str(int(self.start.timestamp())) if format_date == 2 else self.start.strftime("%Y%m%d %H:%M:%S UTC")


def bar_length(size: str) -> int:
    """Return the seconds of a bar size such as `5 mins`."""
    count, unit = size.split()
    return int(count) * _BAR_SECONDS[unit.rstrip("s")]


def bars(contract: Contract, end: datetime, duration: str, size: str) -> list[Bar]:
    """Return the bars of a request for history; weekends are closed."""
    count, unit = duration.split()
    length = bar_length(size)
    wanted = min(_MAX_BARS, max(1, int(count) * _SECONDS[unit] // length))
    newest = int(end.timestamp()) // length * length
    starts = (datetime.fromtimestamp(newest - n * length, UTC) for n in range(wanted - 1, -1, -1))
    return [_bar(contract, start, length) for start in starts if start.weekday() < 5]


def _bar(contract: Contract, start: datetime, length: int) -> Bar:
    opened, closed = price(contract, start), price(contract, start + timedelta(seconds=length))
    return Bar(start, opened, max(opened, closed) + MINIMUM_TICK, min(opened, closed) - MINIMUM_TICK, closed)


def parse_end(text: str) -> datetime:
    """Read the end of a request for history: empty is now; the time zone that a client names is taken for UTC."""
    digits = re.sub(r"[^0-9]", "", text)[:14]
    if not digits:
        return datetime.now(UTC)
    return datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
