"""Requests for reference and market data: answered from `market`, the same to every client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from . import market
from .protocol import ErrorCode, Field, Reply, Request
from .state import Contract

if TYPE_CHECKING:
    from .session import Session

Handler = Callable[["Session", Sequence[str]], None]

# Requests that need no answer: what they stop or set, the simulator does not do.
IGNORED = frozenset(
    {
        Request.AUTO_OPEN_ORDERS,
        Request.CANCEL_ACCOUNT_SUMMARY,
        Request.CANCEL_ACCOUNT_UPDATES_MULTI,
        Request.CANCEL_HISTORICAL_DATA,
        Request.CANCEL_MARKET_DATA,
        Request.CANCEL_POSITIONS,
        Request.SET_SERVER_LOG_LEVEL,
    }
)
_BID, _ASK, _LAST, _BID_SIZE, _ASK_SIZE, _LAST_SIZE, _LAST_TIME = 1, 2, 4, 0, 3, 5, 45
_SIZE = 10
_TICKS = 10


def _find(session: Session, request_id: int, fields: Sequence[str]) -> list[Contract]:
    """Return the contracts that a request names; say so where there is none."""
    asked = Contract(*fields)
    if found := market.find_contracts(asked, session.gateway.book.contracts):
        session.gateway.book.contracts.update({contract.con_id: contract for contract in found})
    else:
        text = "No security definition has been found for the request"
        session.error(request_id, ErrorCode.NO_SUCH_CONTRACT, text)
    return found


def _contract_details(session: Session, fields: Sequence[str]) -> None:
    request_id = int(fields[2])
    found = _find(session, request_id, fields[3:15])
    for contract in found:
        today = datetime.now(UTC)
        hours = ";".join(
            f"{day:%Y%m%d}:CLOSED" if day.weekday() > 4 else f"{day:%Y%m%d}:0000-{day:%Y%m%d}:2359"
            for day in (today + timedelta(days=ahead) for ahead in range(6))
        )
        session.send(
            Reply.CONTRACT_DATA,
            request_id,
            *(contract.symbol, contract.sec_type, contract.expiry, contract.strike, contract.right, contract.exchange),
            *(contract.currency, contract.local_symbol, contract.symbol, contract.trading_class, contract.con_id),
            *(market.MINIMUM_TICK, contract.multiplier, "LMT,MKT", contract.exchange, 1, 0, contract.symbol),
            *(contract.primary_exchange, contract.expiry[:6], "", "", "", market.TIME_ZONE, hours, hours, "", 0, 0),
            *(1, contract.symbol, "IND", "", contract.expiry, "", 1, 1, 1),
        )
    if found:
        session.send(Reply.CONTRACT_DATA_END, 1, request_id)


def _historical_data(session: Session, fields: Sequence[str]) -> None:
    request_id = int(fields[1])
    found = _find(session, request_id, fields[2:14])
    if not found:
        return
    end_text, size, duration, _, _, format_date = fields[15:21]
    end, length = market.parse_end(end_text), market.bar_length(size)
    bars = market.bars(found[0], end, duration, size)
    rows: list[Field] = []
    for bar in bars:
        rows += [bar.date_text(length, int(format_date)), bar.open, bar.high, bar.low, bar.close, 1000, bar.close, 100]
    start = bars[0].start if bars else end
    times = (moment.strftime("%Y%m%d %H:%M:%S UTC") for moment in (start, end))
    session.send(Reply.HISTORICAL_DATA, request_id, *times, len(bars), *rows)


def _historical_ticks(session: Session, fields: Sequence[str]) -> None:
    request_id = int(fields[1])
    found = _find(session, request_id, fields[2:14])
    if not found:
        return
    what, now, price = fields[18], int(time.time()), market.price(found[0])
    half = market.MINIMUM_TICK / 2
    reply, tick = {
        "BID_ASK": (Reply.HISTORICAL_TICKS_BID_ASK, (0, price - half, price + half, _SIZE, _SIZE)),
        "TRADES": (Reply.HISTORICAL_TICKS_LAST, (0, price, _SIZE, found[0].exchange, "")),
    }.get(what, (Reply.HISTORICAL_TICKS, (0, price, _SIZE)))
    count = min(_TICKS, int(fields[17]))
    rows = [value for ago in range(count, 0, -1) for value in (now - ago, *tick)]
    session.send(reply, request_id, count, *rows, 1)


def _market_data(session: Session, fields: Sequence[str]) -> None:
    """One set of ticks: prices here do not move while anybody looks."""
    request_id = int(fields[2])
    found = _find(session, request_id, fields[3:15])
    if not found:
        return
    price, half = market.price(found[0]), market.MINIMUM_TICK / 2
    session.send(Reply.MARKET_DATA_TYPE, 1, request_id, session.market_data_type)
    session.send(Reply.TICK_PARAMETERS, request_id, market.MINIMUM_TICK, "simulator", 3)
    for price_tick, size_tick, value in (
        (_BID, _BID_SIZE, price - half),
        (_ASK, _ASK_SIZE, price + half),
        (_LAST, _LAST_SIZE, price),
    ):
        session.send(Reply.TICK_PRICE, 6, request_id, price_tick, value, _SIZE, 0)
        session.send(Reply.TICK_SIZE, 6, request_id, size_tick, _SIZE)
    session.send(Reply.TICK_STRING, 6, request_id, _LAST_TIME, int(time.time()))
    if fields[17] == "1":  # a snapshot
        session.send(Reply.TICK_SNAPSHOT_END, 1, request_id)


def _market_data_type(session: Session, fields: Sequence[str]) -> None:
    session.market_data_type = int(fields[2])


HANDLERS: Mapping[int, Handler] = {
    Request.CONTRACT_DETAILS: _contract_details,
    Request.HISTORICAL_DATA: _historical_data,
    Request.HISTORICAL_TICKS: _historical_ticks,
    Request.MARKET_DATA: _market_data,
    Request.MARKET_DATA_TYPE: _market_data_type,
}
