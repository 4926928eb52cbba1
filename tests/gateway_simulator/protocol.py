"""The TWS API on the wire: frames of NUL-terminated text fields, at one fixed server version."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Sequence
from enum import IntEnum

SERVER_VERSION = 176
MAX_FRAME = 1 << 20
_GREETING = b"API\0"
_OFFER = re.compile(r"v(\d+)\.\.(\d+)(?: .*)?")


def _values(table: str) -> tuple[str, ...]:
    return tuple(entry.partition("=")[2] for entry in table.split())


# The fields of an openOrder message between its permanent id and its status, with the value of a plain order …
OPEN_ORDER_TERMS = _values(
    """
    outsideRth=0 hidden=0 discretionaryAmt=0 goodAfterTime= deprecated= faGroup= faMethod= faPercentage= faProfile=
    modelCode= goodTillDate= rule80A= percentOffset= settlingFirm= shortSaleSlot=0 designatedLocation= exemptCode=-1
    auctionStrategy=0 startingPrice= stockRefPrice= delta= stockRangeLower= stockRangeUpper= displaySize= blockOrder=0
    sweepToFill=0 allOrNone=0 minQty= ocaType=3 eTradeOnly=0 firmQuoteOnly=0 nbboPriceCap= parentId=0 triggerMethod=0
    volatility= volatilityType= deltaNeutralOrderType= deltaNeutralAuxPrice= continuousUpdate=0 referencePriceType=
    trailStopPrice= trailingPercent= basisPoints= basisPointsType= comboLegsDescription= comboLegs=0 orderComboLegs=0
    smartComboRoutingParams=0 scaleInitLevelSize= scaleSubsLevelSize= scalePriceIncrement= hedgeType=
    optOutSmartRouting=0 clearingAccount= clearingIntent=IB notHeld=0 deltaNeutralContract=0 algoStrategy=
    solicited=0 whatIf=0
    """
)
# … and those after its status.
OPEN_ORDER_STATE = _values(
    """
    initMarginBefore= maintMarginBefore= equityWithLoanBefore= initMarginChange= maintMarginChange=
    equityWithLoanChange= initMarginAfter= maintMarginAfter= equityWithLoanAfter= commission= minCommission=
    maxCommission= commissionCurrency= warningText= randomizeSize=0 randomizePrice=0 conditions=0 adjustedOrderType=
    triggerPrice= trailStopPrice= lmtPriceOffset= adjustedStopPrice= adjustedStopLimitPrice= adjustedTrailingAmount=
    adjustableTrailingUnit=0 softDollarTierName= softDollarTierValue= softDollarTierDisplayName= cashQty=
    dontUseAutoPriceForHedge=0 isOmsContainer=0 discretionaryUpToLimitPrice=0 usePriceMgmtAlgo=0 duration= postToAts=
    autoCancelParent=0 minTradeQty= minCompeteSize= competeAgainstBestOffset= midOffsetAtWhole= midOffsetAtHalf=
    """
)

# A completedOrder message has fewer of them between its permanent id and its status …
COMPLETED_ORDER_TERMS = _values(
    """
    outsideRth=0 hidden=0 discretionaryAmt=0 goodAfterTime= faGroup= faMethod= faPercentage= faProfile= modelCode=
    goodTillDate= rule80A= percentOffset= settlingFirm= shortSaleSlot=0 designatedLocation= exemptCode=-1 startingPrice=
    stockRefPrice= delta= stockRangeLower= stockRangeUpper= displaySize= sweepToFill=0 allOrNone=0 minQty= ocaType=3
    triggerMethod=0 volatility= volatilityType= deltaNeutralOrderType= deltaNeutralAuxPrice= continuousUpdate=0
    referencePriceType= trailStopPrice= trailingPercent= comboLegsDescription= comboLegs=0 orderComboLegs=0
    smartComboRoutingParams=0 scaleInitLevelSize= scaleSubsLevelSize= scalePriceIncrement= hedgeType= clearingAccount=
    clearingIntent=IB notHeld=0 deltaNeutralContract=0 algoStrategy= solicited=0
    """
)
# … and after it, with the quantity filled, the time and the word for how it ended in three gaps.
COMPLETED_ORDER_STATE = _values(
    """
    randomizeSize=0 randomizePrice=0 conditions=0 trailStopPrice= lmtPriceOffset= cashQty= dontUseAutoPriceForHedge=0
    isOmsContainer=0 autoCancelDate=
    """
)
COMPLETED_ORDER_ROUTE = _values(
    "refFuturesConId=0 autoCancelParent=0 shareholder= imbalanceOnly=0 routeMarketableToBbo=0 parentPermId=0"
)
COMPLETED_ORDER_END = _values(
    "minTradeQty= minCompeteSize= competeAgainstBestOffset= midOffsetAtWhole= midOffsetAtHalf="
)

Field = str | int | float | bool


class ProtocolError(Exception):
    """The peer does not speak the TWS API."""


class Request(IntEnum):
    """Message ids that a client sends."""

    MARKET_DATA = 1
    CANCEL_MARKET_DATA = 2
    PLACE_ORDER = 3
    CANCEL_ORDER = 4
    OPEN_ORDERS = 5
    ACCOUNT_UPDATES = 6
    EXECUTIONS = 7
    IDS = 8
    CONTRACT_DETAILS = 9
    SET_SERVER_LOG_LEVEL = 14
    AUTO_OPEN_ORDERS = 15
    ALL_OPEN_ORDERS = 16
    MANAGED_ACCOUNTS = 17
    HISTORICAL_DATA = 20
    CANCEL_HISTORICAL_DATA = 25
    CURRENT_TIME = 49
    GLOBAL_CANCEL = 58
    MARKET_DATA_TYPE = 59
    POSITIONS = 61
    ACCOUNT_SUMMARY = 62
    CANCEL_ACCOUNT_SUMMARY = 63
    CANCEL_POSITIONS = 64
    START_API = 71
    ACCOUNT_UPDATES_MULTI = 76
    CANCEL_ACCOUNT_UPDATES_MULTI = 77
    HISTORICAL_TICKS = 96
    COMPLETED_ORDERS = 99


class Reply(IntEnum):
    """Message ids that the gateway sends."""

    TICK_PRICE = 1
    TICK_SIZE = 2
    ORDER_STATUS = 3
    ERROR = 4
    OPEN_ORDER = 5
    ACCOUNT_VALUE = 6
    PORTFOLIO_VALUE = 7
    ACCOUNT_UPDATE_TIME = 8
    NEXT_VALID_ID = 9
    CONTRACT_DATA = 10
    EXECUTION = 11
    MANAGED_ACCOUNTS = 15
    HISTORICAL_DATA = 17
    TICK_STRING = 46
    CURRENT_TIME = 49
    CONTRACT_DATA_END = 52
    OPEN_ORDER_END = 53
    ACCOUNT_DOWNLOAD_END = 54
    EXECUTION_END = 55
    TICK_SNAPSHOT_END = 57
    MARKET_DATA_TYPE = 58
    COMMISSION = 59
    POSITION = 61
    POSITION_END = 62
    ACCOUNT_SUMMARY = 63
    ACCOUNT_SUMMARY_END = 64
    ACCOUNT_UPDATE_MULTI = 73
    ACCOUNT_UPDATE_MULTI_END = 74
    TICK_PARAMETERS = 81
    HISTORICAL_TICKS = 96
    HISTORICAL_TICKS_BID_ASK = 97
    HISTORICAL_TICKS_LAST = 98
    COMPLETED_ORDER = 101
    COMPLETED_ORDERS_END = 102


class ErrorCode(IntEnum):
    """Error and notice codes of the gateway."""

    DUPLICATE_ORDER_ID = 103
    ORDER_DOES_NOT_MATCH = 105
    NO_SUCH_CONTRACT = 200
    ORDER_REJECTED = 201
    ORDER_CANCELLED = 202
    UNKNOWN_REQUEST = 320
    READ_ONLY = 321
    CLIENT_ID_IN_USE = 326
    CONNECTIVITY_LOST = 1100
    CONNECTIVITY_RESTORED = 1102
    MARKET_DATA_FARM_OK = 2104
    SECURITY_DEFINITION_FARM_OK = 2158
    ORDER_NOT_FOUND = 10147
    ORDER_NOT_CANCELLABLE = 10148


def encode(fields: Sequence[Field]) -> bytes:
    """Return one frame. Booleans travel as 1 and 0."""
    body = "".join(f"{int(field) if isinstance(field, bool | IntEnum) else field}\0" for field in fields).encode()
    return struct.pack(">I", len(body)) + body


async def _read_body(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    if length > MAX_FRAME:
        raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
    return await reader.readexactly(length)


async def read_frame(reader: asyncio.StreamReader) -> list[str]:
    """Read the fields of one frame."""
    return (await _read_body(reader)).decode(errors="replace").split("\0")[:-1]


async def read_greeting(reader: asyncio.StreamReader) -> None:
    """Read the client's greeting and check that it takes our server version."""
    greeting = await reader.readexactly(len(_GREETING))
    if greeting != _GREETING:
        raise ProtocolError(f"expected {_GREETING!r}, got {greeting!r}")
    offer = (await _read_body(reader)).decode(errors="replace")
    match = _OFFER.fullmatch(offer)
    if match is None or not int(match[1]) <= SERVER_VERSION <= int(match[2]):
        raise ProtocolError(f"version {SERVER_VERSION} is not in the client's offer {offer!r}")
