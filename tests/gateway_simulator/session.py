"""One client's connection: handshake, then requests until it leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from .protocol import (
    OPEN_ORDER_STATE,
    OPEN_ORDER_TERMS,
    SERVER_VERSION,
    ErrorCode,
    Field,
    ProtocolError,
    Reply,
    Request,
    encode,
    read_frame,
    read_greeting,
)
from .state import Contract, Fill, Order, Status

if TYPE_CHECKING:
    from .server import Gateway

NO_REQUEST = -1
# Where placeOrder names its algorithm, and after its parameters the what-if flag (a plain order, no combination).
_ALGORITHM = 83


def _is_what_if(fields: Sequence[str]) -> bool:
    parameters = 1 + 2 * int(fields[_ALGORITHM + 1]) if fields[_ALGORITHM] else 0
    return fields[_ALGORITHM + parameters + 2] == "1"


class Session:
    """A connected client. All its replies go through :meth:`send`, in the order of its requests."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateway = gateway
        self._reader = reader
        self._writer = writer
        self.client_id: int | None = None
        self._handlers: dict[int, Callable[[Sequence[str]], None]] = {
            Request.PLACE_ORDER: self._place_order,
            Request.CANCEL_ORDER: self._cancel_order,
            Request.OPEN_ORDERS: self._open_orders,
            Request.ALL_OPEN_ORDERS: self._open_orders,
            Request.ACCOUNT_UPDATES: self._account_updates,
            Request.ACCOUNT_UPDATES_MULTI: self._account_updates_multi,
            Request.COMPLETED_ORDERS: lambda _: self.send(Reply.COMPLETED_ORDERS_END),
            Request.CURRENT_TIME: lambda _: self.send(Reply.CURRENT_TIME, 1, int(time.time())),
            Request.EXECUTIONS: self._executions,
            Request.IDS: lambda _: self._next_valid_id(),
            Request.POSITIONS: self._positions,
        }

    async def run(self) -> None:
        """Serve the client until it leaves or breaks the protocol."""
        await self._gateway.answering()
        await read_greeting(self._reader)
        self.send(SERVER_VERSION, datetime.now().astimezone().strftime("%Y%m%d %H:%M:%S %Z"))
        await self._start(await read_frame(self._reader))
        while True:
            await self._writer.drain()
            fields = await read_frame(self._reader)
            await self._gateway.answering()
            self._handle(fields)

    def send(self, *fields: Field) -> None:
        """Send one message."""
        self._writer.write(encode(fields))

    def close(self) -> None:
        """Cut the connection once what was sent is out."""
        self._writer.close()

    def _error(self, request_id: int, code: ErrorCode, text: str) -> None:
        self.send(Reply.ERROR, 2, request_id, code, text, "")

    async def _start(self, fields: Sequence[str]) -> None:
        if int(fields[0]) != Request.START_API:
            raise ProtocolError(f"expected startApi, got message {fields[0]}")
        await self._gateway.logged_in()
        client_id = int(fields[2])
        if not self._gateway.register(client_id, self):
            self._error(NO_REQUEST, ErrorCode.CLIENT_ID_IN_USE, "Unable to connect as the client id is already in use.")
            raise ProtocolError(f"client id {client_id} is in use")
        self.client_id = client_id
        self.send(Reply.MANAGED_ACCOUNTS, 1, self._gateway.book.account)
        self._next_valid_id()
        self._error(NO_REQUEST, ErrorCode.MARKET_DATA_FARM_OK, "Market data farm connection is OK:simulator")
        self._error(NO_REQUEST, ErrorCode.SECURITY_DEFINITION_FARM_OK, "Sec-def data farm connection is OK:simulator")

    def _handle(self, fields: Sequence[str]) -> None:
        handler = self._handlers.get(int(fields[0]))
        if handler is None:
            self._error(NO_REQUEST, ErrorCode.UNKNOWN_REQUEST, f"The simulator does not know message {fields[0]}")
        else:
            handler(fields)

    def _next_valid_id(self) -> None:
        self.send(Reply.NEXT_VALID_ID, 1, self._gateway.book.next_order_id)

    # Orders

    def _place_order(self, fields: Sequence[str]) -> None:
        assert self.client_id is not None
        book = self._gateway.book
        order_id = int(fields[1])
        # After the contract's twelve fields come two for a security id, then the order.
        action, quantity, order_type, limit, aux, time_in_force, _, account, _, _, reference = fields[16:27]
        order = Order(
            account=account or book.account,
            client_id=self.client_id,
            order_id=order_id,
            perm_id=1_000_000 + len(book.orders) + 1,
            contract=Contract(*fields[2:14]),
            action=action,
            quantity=float(quantity or 0),
            order_type=order_type,
            limit_price=limit,
            aux_price=aux,
            time_in_force=time_in_force or "DAY",
            reference=reference,
        )
        if order.key in book.orders:
            self._error(order_id, ErrorCode.DUPLICATE_ORDER_ID, "Duplicate order id")
        elif reason := self._refusal(order, fields):
            self._error(order_id, ErrorCode.ORDER_REJECTED, f"Order rejected - reason:{reason}")
        else:
            book.place(order)
            self._order_state(order)
            if order.order_type == "MKT":
                fill = book.fill(order)
                self._execution(NO_REQUEST, fill)
                self._order_state(order, fill)
                self._commission(fill)

    def _refusal(self, order: Order, fields: Sequence[str]) -> str | None:
        if order.quantity <= 0 or order.action not in {"BUY", "SELL"}:
            return f"cannot {order.action} {order.quantity}"
        if order.account != self._gateway.book.account:
            return f"unknown account {order.account}"
        if order.contract.sec_type == "BAG" or _is_what_if(fields):
            return "the simulator knows neither combinations nor what-if orders"
        return None

    def _cancel_order(self, fields: Sequence[str]) -> None:
        assert self.client_id is not None
        book = self._gateway.book
        order = book.orders.get((self.client_id, int(fields[2])))
        if order is None or book.status[order.key] is not Status.SUBMITTED:
            self._error(int(fields[2]), ErrorCode.ORDER_NOT_FOUND, f"Can't find order with id = {fields[2]}")
            return
        book.cancel(order)
        self._order_status(order)
        self._error(order.order_id, ErrorCode.ORDER_CANCELLED, "Order Canceled - reason:")

    def _order_state(self, order: Order, fill: Fill | None = None) -> None:
        self._open_order(order)
        self._order_status(order, fill)

    def _order_status(self, order: Order, fill: Fill | None = None) -> None:
        filled = fill.order.quantity if fill else 0.0
        price = fill.price if fill else 0.0
        self.send(
            Reply.ORDER_STATUS,
            order.order_id,
            self._gateway.book.status[order.key].value,
            filled,
            order.quantity - filled,
            price,
            order.perm_id,
            0,
            price,
            order.client_id,
            "",
            0,
        )

    def _open_order(self, order: Order) -> None:
        self.send(
            Reply.OPEN_ORDER,
            order.order_id,
            *order.contract.short,
            *(order.action, order.quantity, order.order_type, order.limit_price or 0.0, order.aux_price or 0.0),
            *(order.time_in_force, "", order.account, "", 0, order.reference, order.client_id, order.perm_id),
            *OPEN_ORDER_TERMS,
            self._gateway.book.status[order.key].value,
            *OPEN_ORDER_STATE,
        )

    def _open_orders(self, _fields: Sequence[str]) -> None:
        for order in self._gateway.book.open_orders:
            self._order_state(order)
        self.send(Reply.OPEN_ORDER_END, 1)

    # Fills

    def _executions(self, fields: Sequence[str]) -> None:
        request_id = int(fields[2])
        for fill in self._gateway.book.fills:
            self._execution(request_id, fill)
            self._commission(fill)
        self.send(Reply.EXECUTION_END, 1, request_id)

    def _execution(self, request_id: int, fill: Fill) -> None:
        order = fill.order
        self.send(
            Reply.EXECUTION,
            request_id,
            order.order_id,
            *order.contract.short,
            fill.execution_id,
            datetime.fromisoformat(fill.at).strftime("%Y%m%d %H:%M:%S UTC"),
            order.account,
            order.contract.exchange,
            "BOT" if order.action == "BUY" else "SLD",
            order.quantity,
            fill.price,
            order.perm_id,
            order.client_id,
            0,
            order.quantity,
            fill.price,
            order.reference,
            *("", "", "", 1),  # evRule, evMultiplier, modelCode, lastLiquidity
        )

    def _commission(self, fill: Fill) -> None:
        self.send(Reply.COMMISSION, 1, fill.execution_id, fill.commission, fill.order.contract.currency, 0.0, "", "")

    # Account

    def _positions(self, _fields: Sequence[str]) -> None:
        book = self._gateway.book
        for contract, held in book.positions.items():
            self.send(Reply.POSITION, 3, book.account, *contract.short, held.quantity, held.average_cost)
        self.send(Reply.POSITION_END, 1)

    def _account_updates(self, _fields: Sequence[str]) -> None:
        book = self._gateway.book
        for tag, value in book.account_values.items():
            self.send(Reply.ACCOUNT_VALUE, 2, tag, value, "USD", book.account)
        self.send(Reply.ACCOUNT_UPDATE_TIME, 1, datetime.now().astimezone().strftime("%H:%M"))
        self.send(Reply.ACCOUNT_DOWNLOAD_END, 1, book.account)

    def _account_updates_multi(self, fields: Sequence[str]) -> None:
        book, request_id = self._gateway.book, int(fields[2])
        for tag, value in book.account_values.items():
            self.send(Reply.ACCOUNT_UPDATE_MULTI, 1, request_id, book.account, "", tag, value, "USD")
        self.send(Reply.ACCOUNT_UPDATE_MULTI_END, 1, request_id)
