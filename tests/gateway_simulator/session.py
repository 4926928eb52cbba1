"""One client's connection: handshake, then requests until it leaves. Orders and the account; `data.py` has the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from . import data, market
from .protocol import (
    COMPLETED_ORDER_END,
    COMPLETED_ORDER_ROUTE,
    COMPLETED_ORDER_STATE,
    COMPLETED_ORDER_TERMS,
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
from .state import COMMISSION_PER_UNIT, Contract, Event, Fill, Order, Record, Status

if TYPE_CHECKING:
    from .server import Gateway

NO_REQUEST = -1
KEPT = timedelta(hours=24)  # how long executions and completed orders are told
# Where placeOrder names its algorithm, and after its parameters the what-if flag (a plain order, no combination).
_ALGORITHM = 83
_MARGIN_PER_UNIT = 1000.0
_NOTICES = {
    ErrorCode.CONNECTIVITY_LOST: "Connectivity between IBKR and Trader Workstation has been lost.",
    ErrorCode.CONNECTIVITY_RESTORED: "Connectivity has been restored - data maintained.",
    ErrorCode.MARKET_DATA_FARM_OK: "Market data farm connection is OK:simulator",
    ErrorCode.SECURITY_DEFINITION_FARM_OK: "Sec-def data farm connection is OK:simulator",
}


def _is_what_if(fields: Sequence[str]) -> bool:
    parameters = 1 + 2 * int(fields[_ALGORITHM + 1]) if fields[_ALGORITHM] else 0
    return fields[_ALGORITHM + parameters + 2] == "1"


class Session:
    """A connected client. All its replies go through :meth:`send`, in the order of its requests."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gateway = gateway
        self.client_id: int | None = None
        self.market_data_type = 1
        self._reader = reader
        self._writer = writer
        self._held: list[bytes] = []  # what a frozen gateway does not say
        self._watches_positions = False
        self._handlers: dict[int, Callable[[Sequence[str]], None]] = {
            Request.ACCOUNT_SUMMARY: self._account_summary,
            Request.ACCOUNT_UPDATES: self._account_updates,
            Request.ACCOUNT_UPDATES_MULTI: self._account_updates_multi,
            Request.ALL_OPEN_ORDERS: lambda _: self._open_orders(everybodys=True),
            Request.CANCEL_ORDER: self._cancel_order,
            Request.COMPLETED_ORDERS: self._completed_orders,
            Request.CURRENT_TIME: lambda _: self.send(Reply.CURRENT_TIME, 1, int(time.time())),
            Request.EXECUTIONS: self._executions,
            Request.GLOBAL_CANCEL: self._global_cancel,
            Request.IDS: lambda _: self._next_valid_id(),
            Request.MANAGED_ACCOUNTS: lambda _: self.send(Reply.MANAGED_ACCOUNTS, 1, self.gateway.book.account),
            Request.OPEN_ORDERS: lambda _: self._open_orders(everybodys=False),
            Request.PLACE_ORDER: self._place_order,
            Request.POSITIONS: self._positions,
            **{number: _with_session(handler, self) for number, handler in data.HANDLERS.items()},
        }

    async def run(self) -> None:
        """Serve the client until it leaves or breaks the protocol."""
        await self.gateway.answering()
        await read_greeting(self._reader)
        self.send(SERVER_VERSION, datetime.now().astimezone().strftime("%Y%m%d %H:%M:%S %Z"))
        await self._start(await read_frame(self._reader))
        while True:
            await self._writer.drain()
            fields = await read_frame(self._reader)
            await self.gateway.answering()
            self._handle(fields)

    def send(self, *fields: Field) -> None:
        """Send one message; a frozen gateway keeps it to itself until it thaws."""
        self._held.append(encode(fields))
        self.flush()

    def flush(self) -> None:
        """Send what was held back, unless the gateway is frozen."""
        if not self.gateway.frozen:
            if not self._writer.is_closing():
                self._writer.write(b"".join(self._held))
            self._held.clear()

    def close(self) -> None:
        """Cut the connection once what was sent is out."""
        self._writer.close()

    def error(self, request_id: int, code: ErrorCode, text: str) -> None:
        """Send an error or a notice."""
        self.send(Reply.ERROR, 2, request_id, code, text, "")

    def notice(self, code: ErrorCode) -> None:
        """Send a notice that belongs to no request."""
        self.error(NO_REQUEST, code, _NOTICES[code])

    async def _start(self, fields: Sequence[str]) -> None:
        if int(fields[0]) != Request.START_API:
            raise ProtocolError(f"expected startApi, got message {fields[0]}")
        await self.gateway.logged_in()
        client_id = int(fields[2])
        if not self.gateway.register(client_id, self):
            self.error(NO_REQUEST, ErrorCode.CLIENT_ID_IN_USE, "Unable to connect as the client id is already in use.")
            raise ProtocolError(f"client id {client_id} is in use")
        self.client_id = client_id
        self.send(Reply.MANAGED_ACCOUNTS, 1, self.gateway.book.account)
        self._next_valid_id()
        self.notice(ErrorCode.MARKET_DATA_FARM_OK)
        self.notice(ErrorCode.SECURITY_DEFINITION_FARM_OK)
        if not self.gateway.connected:
            self.notice(ErrorCode.CONNECTIVITY_LOST)

    def _handle(self, fields: Sequence[str]) -> None:
        number = int(fields[0])
        if handler := self._handlers.get(number):
            handler(fields)
        elif number not in data.IGNORED:
            self.error(NO_REQUEST, ErrorCode.UNKNOWN_REQUEST, f"The simulator does not know message {number}")

    def _next_valid_id(self) -> None:
        pending = (order_id + 1 for _, order_id in self.gateway.pending)
        self.send(Reply.NEXT_VALID_ID, 1, max(self.gateway.book.next_order_id, *pending, 1))

    # Orders

    def _place_order(self, fields: Sequence[str]) -> None:
        assert self.client_id is not None
        # After the contract's twelve fields come two for a security id, then the order.
        action, quantity, order_type, limit, aux, time_in_force, _, account, _, _, reference = fields[16:27]
        order = Order(
            account=account or self.gateway.book.account,
            client_id=self.client_id,
            order_id=int(fields[1]),
            contract=Contract(*fields[2:14]),
            action=action,
            quantity=float(quantity or 0),
            order_type=order_type,
            limit_price=limit,
            aux_price=aux,
            time_in_force=time_in_force or "DAY",
            reference=reference,
        )
        if problem := self._problem_of(order):
            self.error(order.order_id, *problem)
            return
        order = Order(**{**vars(order), "contract": self._find(order.contract)[0]})
        if _is_what_if(fields):
            self._what_if(order)
        elif self.gateway.tell_broker(do="place", order=asdict(order)):
            self.gateway.pending.setdefault(order.key, order)
        else:
            self.order_lost(order)

    def _find(self, contract: Contract) -> list[Contract]:
        return market.find_contracts(contract, self.gateway.book.contracts)

    def _problem_of(self, order: Order) -> tuple[ErrorCode, str] | None:
        if self.gateway.read_only:
            return ErrorCode.READ_ONLY, "Error validating request: the API is in read-only mode."
        if order.quantity <= 0 or order.action not in {"BUY", "SELL"}:
            return ErrorCode.ORDER_REJECTED, f"Order rejected - reason:cannot {order.action} {order.quantity:g}"
        if order.account != self.gateway.book.account:
            return ErrorCode.ORDER_REJECTED, f"Order rejected - reason:unknown account {order.account}"
        if order.contract.sec_type == "BAG":
            return ErrorCode.ORDER_REJECTED, "Order rejected - reason:the simulator does not know combinations"
        found = self._find(order.contract)
        if len(found) != 1:
            return ErrorCode.NO_SUCH_CONTRACT, f"{len(found)} contracts fit {order.contract.symbol!r}, wanted one"
        return self._problem_of_change(order, found[0])

    def _problem_of_change(self, order: Order, contract: Contract) -> tuple[ErrorCode, str] | None:
        """An order id that is known changes that order, where it still can be changed."""
        book = self.gateway.book
        known = book.orders.get(order.key) or self.gateway.pending.get(order.key)
        if known is None:
            return None
        if book.status.get(order.key, Status.SUBMITTED) is not Status.SUBMITTED:
            return ErrorCode.DUPLICATE_ORDER_ID, "Duplicate order id"
        if (known.contract.con_id, known.action) != (contract.con_id, order.action):
            return ErrorCode.ORDER_DOES_NOT_MATCH, "Order being modified does not match original order"
        if order.quantity <= book.filled[order.key]:
            return ErrorCode.ORDER_REJECTED, f"Order rejected - reason:{book.filled[order.key]:g} are filled already"
        return None

    def _what_if(self, order: Order) -> None:
        margin = order.quantity * _MARGIN_PER_UNIT
        margins = (0, 0, 0, *(margin, margin, 0), *(margin, margin, 0))
        state: list[Field] = [*margins, COMMISSION_PER_UNIT * order.quantity, "", "", order.contract.currency]
        state += OPEN_ORDER_STATE[len(state) :]
        self._open_order(order, "PreSubmitted", (*OPEN_ORDER_TERMS[:-1], "1"), state)

    def _cancel_order(self, fields: Sequence[str]) -> None:
        assert self.client_id is not None
        key = self.client_id, int(fields[2])
        book = self.gateway.book
        if self.gateway.read_only:
            self.error(key[1], ErrorCode.READ_ONLY, "Error validating request: the API is in read-only mode.")
        elif key not in book.orders and key not in self.gateway.pending:
            text = f"OrderId {key[1]} that needs to be cancelled is not found."
            self.error(key[1], ErrorCode.ORDER_NOT_FOUND, text)
        elif book.status.get(key, Status.SUBMITTED) is not Status.SUBMITTED:
            text = f"OrderId {key[1]} that needs to be cancelled cannot be cancelled, state: {book.status[key].value}."
            self.error(key[1], ErrorCode.ORDER_NOT_CANCELLABLE, text)
        else:
            self.gateway.tell_broker(do="cancel", key=key)

    def _global_cancel(self, _fields: Sequence[str]) -> None:
        if self.gateway.read_only:
            self.error(NO_REQUEST, ErrorCode.READ_ONLY, "Error validating request: the API is in read-only mode.")
        else:
            self.gateway.tell_broker(do="cancel_all")

    def order_lost(self, order: Order) -> None:
        """Say that an order did not reach the broker."""
        text = "Order rejected - reason:no connection to the broker"
        self.error(order.order_id, ErrorCode.ORDER_REJECTED, text)

    def order_changed(self, record: Record, order: Order, fill: Fill | None) -> None:
        """Say what has happened to an order of this client."""
        match Event(record["event"]):
            case Event.REJECTED:
                self.error(order.order_id, ErrorCode.ORDER_REJECTED, f"Order rejected - reason:{record['reason']}")
            case Event.CANCELLED:
                self._order_status(order)
                self.error(order.order_id, ErrorCode.ORDER_CANCELLED, "Order Canceled - reason:")
            case Event.FILLED:
                assert fill is not None
                self._execution(NO_REQUEST, fill)
                self._order_state(order)
                self._commission(fill)
            case _:
                self._order_state(order)

    def _order_state(self, order: Order) -> None:
        self._open_order(order, self._status(order).value)
        self._order_status(order)

    def _status(self, order: Order) -> Status:
        return self.gateway.book.status.get(order.key, Status.PENDING)

    def _order_status(self, order: Order) -> None:
        book = self.gateway.book
        filled, price = book.filled[order.key], book.average_price(order.key)
        self.send(
            Reply.ORDER_STATUS,
            order.order_id,
            self._status(order).value,
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

    def _open_order(
        self,
        order: Order,
        status: str,
        terms: Sequence[Field] = OPEN_ORDER_TERMS,
        state: Sequence[Field] = OPEN_ORDER_STATE,
    ) -> None:
        self.send(
            Reply.OPEN_ORDER,
            order.order_id,
            *self._terms(order),
            order.client_id,
            order.perm_id,
            *terms,
            status,
            *state,
        )

    @staticmethod
    def _terms(order: Order) -> Sequence[Field]:
        """What openOrder and completedOrder both begin with."""
        return (
            *order.contract.short,
            *(order.action, order.quantity, order.order_type, order.limit_price or 0.0, order.aux_price or 0.0),
            *(order.time_in_force, "", order.account, "", 0, order.reference),
        )

    def _open_orders(self, *, everybodys: bool) -> None:
        for order in (*self.gateway.book.open_orders, *self.gateway.pending.values()):
            if everybodys or order.client_id == self.client_id:
                self._order_state(order)
        self.send(Reply.OPEN_ORDER_END, 1)

    def _completed_orders(self, _fields: Sequence[str]) -> None:
        book, since = self.gateway.book, datetime.now(UTC) - KEPT
        for key, order in book.orders.items():
            status, at = book.status[key], book.changed_at[key]
            if status is Status.SUBMITTED or at < since:
                continue
            self.send(
                Reply.COMPLETED_ORDER,
                *self._terms(order),
                order.perm_id,
                *COMPLETED_ORDER_TERMS,
                status.value,
                *COMPLETED_ORDER_STATE,
                book.filled[key],
                *COMPLETED_ORDER_ROUTE,
                at.strftime("%Y%m%d %H:%M:%S UTC"),
                status.value,
                *COMPLETED_ORDER_END,
            )
        self.send(Reply.COMPLETED_ORDERS_END)

    # Fills

    def _executions(self, fields: Sequence[str]) -> None:
        request_id, client_id, account, _, symbol = int(fields[2]), int(fields[3] or 0), *fields[4:7]
        since = datetime.now(UTC) - KEPT
        for fill in self.gateway.book.fills:
            order = fill.order
            wanted = client_id in {0, order.client_id} and account in {"", order.account}
            if wanted and symbol in {"", order.contract.symbol} and fill.at >= since:
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
            fill.at.strftime("%Y%m%d %H:%M:%S UTC"),
            order.account,
            order.contract.exchange,
            "BOT" if order.action == "BUY" else "SLD",
            fill.shares,
            fill.price,
            order.perm_id,
            order.client_id,
            0,
            fill.cumulative,
            fill.average_price,
            order.reference,
            *("", "", "", 1),  # evRule, evMultiplier, modelCode, lastLiquidity
        )

    def _commission(self, fill: Fill) -> None:
        self.send(Reply.COMMISSION, 1, fill.execution_id, fill.commission, fill.order.contract.currency, 0.0, "", "")

    # Account

    def _positions(self, _fields: Sequence[str]) -> None:
        self._watches_positions = True
        for con_id in self.gateway.book.positions:
            self.position_changed(self.gateway.book.contracts[con_id])
        self.send(Reply.POSITION_END, 1)

    def position_changed(self, contract: Contract) -> None:
        """Say what the account holds of a contract, to a client that has asked once."""
        if self._watches_positions:
            book = self.gateway.book
            held = book.positions[contract.con_id]
            self.send(Reply.POSITION, 3, book.account, *contract.short, held.quantity, held.average_cost)

    def _account_updates(self, fields: Sequence[str]) -> None:
        if fields[2] != "1":  # it no longer wants them
            return
        book = self.gateway.book
        for tag, value in book.account_values.items():
            self.send(Reply.ACCOUNT_VALUE, 2, tag, value, "USD", book.account)
        for con_id, held in book.positions.items():
            contract = book.contracts[con_id]
            price = market.price(contract)
            value = round(held.quantity * price, 2)
            gain = round(held.quantity * (price - held.average_cost), 2)
            # This message has the primary exchange where the others have the exchange.
            self.send(
                Reply.PORTFOLIO_VALUE,
                8,
                *contract.short,
                *(held.quantity, price, value, held.average_cost, gain, 0.0, book.account),
            )
        self.send(Reply.ACCOUNT_UPDATE_TIME, 1, datetime.now().astimezone().strftime("%H:%M"))
        self.send(Reply.ACCOUNT_DOWNLOAD_END, 1, book.account)

    def _account_updates_multi(self, fields: Sequence[str]) -> None:
        book, request_id = self.gateway.book, int(fields[2])
        for tag, value in book.account_values.items():
            self.send(Reply.ACCOUNT_UPDATE_MULTI, 1, request_id, book.account, "", tag, value, "USD")
        self.send(Reply.ACCOUNT_UPDATE_MULTI_END, 1, request_id)

    def _account_summary(self, fields: Sequence[str]) -> None:
        book, request_id = self.gateway.book, int(fields[2])
        for tag, value in book.account_values.items():
            self.send(Reply.ACCOUNT_SUMMARY, 1, request_id, book.account, tag, value, "USD")
        self.send(Reply.ACCOUNT_SUMMARY_END, 1, request_id)


def _with_session(handler: data.Handler, session: Session) -> Callable[[Sequence[str]], None]:
    return lambda fields: handler(session, fields)
