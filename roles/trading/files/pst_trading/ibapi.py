"""The API of IB Gateway on the wire: frames of NUL-terminated text fields, and the few messages that we read or send.

Only the versions between OLDEST and NEWEST are spoken: placeOrder and cancelOrder have one layout there, and a gateway
that is offered 201 or more may switch to an encoding that the gate cannot read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

OLDEST, NEWEST = 145, 178
MAX_FRAME = 1 << 20
GREETING = b"API\0"
NO_REQUEST = -1

_LENGTH = struct.Struct(">I")
_OFFER = re.compile(rb"v(\d{1,4})\.\.(\d{1,4})( .*)?", re.DOTALL)
_NUMBER = re.compile(rb"[1-9][0-9]{0,2}")
_ADVANCED_REJECT, _CANCEL_TIME = 166, 169  # versions since which an error and a cancelOrder have one field more
_BINARY = 200  # message ids from here on are of the encoding that the offer excludes


class ProtocolError(Exception):
    """The peer does not speak the API as we know it."""


class Request(IntEnum):
    """Messages of a client."""

    PLACE_ORDER = 3
    CANCEL_ORDER = 4
    ALL_OPEN_ORDERS = 16
    EXERCISE_OPTIONS = 21
    GLOBAL_CANCEL = 58
    START_API = 71


class Reply(IntEnum):
    """Messages of the gateway."""

    ORDER_STATUS = 3
    ERROR = 4
    OPEN_ORDER = 5
    NEXT_VALID_ID = 9
    MANAGED_ACCOUNTS = 15
    OPEN_ORDER_END = 53


class Code(IntEnum):
    """Codes of an error message."""

    ORDER_NOT_FOUND = 135
    CANNOT_CANCEL = 161
    ORDER_REJECTED = 201
    ORDER_CANCELLED = 202
    READ_ONLY = 321
    CLIENT_ID_IN_USE = 326
    CANCEL_NOT_FOUND = 10147
    CANCEL_WRONG_STATE = 10148


ORDERS = {
    Request.PLACE_ORDER: "placeOrder",
    Request.CANCEL_ORDER: "cancelOrder",
    Request.EXERCISE_OPTIONS: "exerciseOptions",
    Request.GLOBAL_CANCEL: "reqGlobalCancel",
}
# Where each of them has its request id, placeOrder its reference, startApi its client id.
_REQUEST_ID = {Request.PLACE_ORDER: 1, Request.CANCEL_ORDER: 2, Request.EXERCISE_OPTIONS: 2}
_ORDER_REFERENCE = 26
_CLIENT_ID = 2


def frame(*fields: object) -> bytes:
    """One message, with its length before it."""
    body = "".join(f"{int(field) if isinstance(field, bool | IntEnum) else field}\0" for field in fields).encode()
    return _LENGTH.pack(len(body)) + body


def raw_frame(body: bytes) -> bytes:
    """A body as it is, with its length before it."""
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes, limit: int = MAX_FRAME) -> int:
    """The length of the body that follows these four bytes."""
    length: int = _LENGTH.unpack(head)[0]
    if length > limit:
        raise ProtocolError(f"a frame of {length} bytes; wanted: at most {limit}")
    return length


def fields_of(body: bytes) -> list[str]:
    """The fields of a message."""
    return body.decode(errors="replace").split("\0")[:-1]


def kind_of(body: bytes) -> int:
    """The id of a client's message, or ProtocolError.

    One spelling only: a gateway may read ``+3`` or ``03`` as 3 as well, and then an order would pass as something else.
    """
    word = body.partition(b"\0")[0]
    if not _NUMBER.fullmatch(word) or int(word) >= _BINARY:
        raise ProtocolError(f"a message that begins with {body[:12]!r}; wanted: an id below {_BINARY}")
    return int(word)


def capped_offer(offer: bytes, newest: int = NEWEST) -> bytes:
    """The range of versions in a greeting, narrowed to what can be read."""
    match = _OFFER.fullmatch(offer)
    if match is None:
        raise ProtocolError(f"the greeting {offer[:40]!r}; wanted: such as v{OLDEST}..{newest}")
    low, high = max(int(match[1]), OLDEST), min(int(match[2]), newest)
    if low > high:
        raise ProtocolError(f"the versions {offer[:40]!r}; wanted: some of {OLDEST}..{newest}")
    return b"v%d..%d%s" % (low, high, match[3] or b"")


def error(version: int, request_id: int, code: int, text: str) -> bytes:
    """An error message, as the gateway sends it."""
    rest = ("",) if version >= _ADVANCED_REJECT else ()
    return frame(Reply.ERROR, 2, request_id, code, text, *rest)


def start_api(client_id: int) -> bytes:
    """What opens a session."""
    return frame(Request.START_API, 2, client_id, "")


def cancel_order(version: int, order_id: int) -> bytes:
    """What takes an order of the same client back."""
    rest = ("",) if version >= _CANCEL_TIME else ()
    return frame(Request.CANCEL_ORDER, 1, order_id, *rest)


def client_id_of(body: bytes) -> int | None:
    """The client id in a startApi."""
    return _number(fields_of(body), _CLIENT_ID)


@dataclass(frozen=True)
class OrderMessage:
    """What the gate reads of a message that can move an order."""

    name: str
    request_id: int
    reference: str

    @property
    def cancels_one(self) -> bool:
        return self.name == ORDERS[Request.CANCEL_ORDER]


def order_message(body: bytes) -> OrderMessage | None:
    """A message that can move an order; None for any other."""
    try:
        kind = Request(kind_of(body))
    except ValueError:
        return None
    if kind not in ORDERS:
        return None
    fields = fields_of(body)
    number = _number(fields, _REQUEST_ID[kind]) if kind in _REQUEST_ID else None
    reference = fields[_ORDER_REFERENCE] if kind is Request.PLACE_ORDER and len(fields) > _ORDER_REFERENCE else ""
    return OrderMessage(ORDERS[kind], NO_REQUEST if number is None else number, reference)


def _number(fields: Sequence[str], index: int) -> int | None:
    try:
        return int(fields[index])
    except (IndexError, ValueError):
        return None


# Orders, as a session is told of them ---------------------------------------------------------------------------------

CANCELLED = frozenset({"Cancelled", "ApiCancelled"})
DONE = CANCELLED | {"Filled"}
# Answers to a cancelOrder after which the list of open orders tells the truth.
NOT_OPEN = frozenset(
    {
        Code.ORDER_NOT_FOUND,
        Code.CANNOT_CANCEL,
        Code.ORDER_REJECTED,
        Code.ORDER_CANCELLED,
        Code.CANCEL_NOT_FOUND,
        Code.CANCEL_WRONG_STATE,
    }
)


@dataclass(frozen=True)
class OpenOrder:
    """An order that the gateway lists as open, whoever sent it."""

    client_id: int
    order_id: int
    perm_id: int
    symbol: str
    action: str
    quantity: str
    reference: str

    @property
    def key(self) -> tuple[int, int]:
        """Order ids are unique per client only."""
        return self.client_id, self.order_id

    def __str__(self) -> str:
        return f"{self.action} {self.quantity} {self.symbol} (client {self.client_id}, order {self.order_id})"


@dataclass(frozen=True)
class OrderStatus:
    """How far an order is."""

    order_id: int
    status: str
    filled: float
    client_id: int


def open_order(fields: Sequence[str]) -> OpenOrder:
    """Read an openOrder."""
    return OpenOrder(
        order_id=int(fields[1]),
        symbol=fields[11] or fields[3],
        action=fields[13],
        quantity=fields[14],
        reference=fields[23],
        client_id=int(fields[24]),
        perm_id=int(fields[25]),
    )


def order_status(fields: Sequence[str]) -> OrderStatus:
    """Read an orderStatus."""
    return OrderStatus(
        order_id=int(fields[1]), status=fields[2], filled=float(fields[3] or 0), client_id=int(fields[9])
    )
