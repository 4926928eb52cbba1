"""What a takeover does at the broker: takes back every open order of our clients, and waits until none is active.

Runs before the new holder starts a process. The gate has cut the dead holder's connections by then, so its client ids
are free: an order can be taken back only by the client that sent it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field

from . import ibapi
from .session import ClientIdBusyError, Session, SessionError
from .settings import GatewaySettings, Settings

SETTLE_S = 60.0  # for all orders to be done
RETRY_S = 0.5  # between two tries for a client id that is still in use

Log = Callable[[str], None]


class RecoveryError(Exception):
    """Open orders may be left; the message says which, or what could not be asked."""


@dataclass
class RecoveryReport:
    """What became of the orders that were open."""

    cancelled: list[ibapi.OpenOrder] = field(default_factory=list)
    filled: list[ibapi.OpenOrder] = field(default_factory=list)  # in part or in full, before the cancellation came
    gone: list[ibapi.OpenOrder] = field(default_factory=list)  # no longer open when it was to be taken back
    foreign: int = 0  # open orders of other clients, left alone


@dataclass
class _Outcome:
    """What the gateway has said about orders, by client id and order id."""

    filled: dict[tuple[int, int], float] = field(default_factory=dict)
    cancelled: set[tuple[int, int]] = field(default_factory=set)

    def note(self, state: ibapi.OrderStatus) -> None:
        """Take an orderStatus in."""
        key = state.client_id, state.order_id
        if state.filled:
            self.filled[key] = state.filled
        if state.status in ibapi.CANCELLED:
            self.cancelled.add(key)


def recover(settings: Settings, log: Log, settle_s: float = SETTLE_S) -> RecoveryReport:
    """Take back every open order of our range of clients, or raise RecoveryError."""
    gateway = settings.gateway
    ours = {*gateway.client_ids, *gateway.peer_client_ids}
    deadline = time.monotonic() + settle_s
    outcome = _Outcome()
    seen: dict[tuple[int, int], ibapi.OpenOrder] = {}
    left: list[ibapi.OpenOrder] = []
    foreign = 0
    try:
        with _session(gateway, gateway.recover_client_id, deadline) as asking:
            while True:
                every = _open_orders(asking, outcome)
                left = [order for order in every if order.client_id in ours]
                foreign = len(every) - len(left)
                if not left:
                    break
                if any(order.key in seen for order in left):
                    time.sleep(RETRY_S)  # taken back, and still listed: the gateway is about it
                for order in left:
                    if seen.setdefault(order.key, order) is order:
                        _say(log, "order found open", order)
                _take_back(gateway, left, outcome, deadline)
    except (OSError, ibapi.ProtocolError, SessionError, RecoveryError, ValueError, IndexError) as error:
        rest = f"; open: {'; '.join(map(str, left))}" if left else ""
        raise RecoveryError(f"{gateway.host}:{gateway.port}: {error}{rest}") from error
    report = _report(seen, outcome, foreign)
    for event in ("cancelled", "filled", "gone"):
        for order in getattr(report, event):
            _say(log, f"order {event}", order, filled=outcome.filled.get(order.key, 0))
    return report


def _report(seen: Mapping[tuple[int, int], ibapi.OpenOrder], outcome: _Outcome, foreign: int) -> RecoveryReport:
    report = RecoveryReport(foreign=foreign)
    for key, order in seen.items():
        # What filled in part and was then taken back is told as filled: somebody has to book it.
        if outcome.filled.get(key):
            report.filled.append(order)
        elif key in outcome.cancelled:
            report.cancelled.append(order)
        else:
            report.gone.append(order)
    return report


@contextmanager
def _session(gateway: GatewaySettings, client_id: int, deadline: float) -> Iterator[Session]:
    """A session as a client; waits for the id where the gateway has not noticed yet that its owner is gone."""
    busy: ClientIdBusyError | None = None
    while True:
        with ExitStack() as stack:
            try:
                session = stack.enter_context(closing(Session.connect(gateway.host, gateway.port, deadline)))
                session.start(client_id)
            except ClientIdBusyError as error:
                busy = error
                if time.monotonic() + RETRY_S >= deadline:
                    raise
            except TimeoutError:
                raise busy or TimeoutError("no answer in time") from None  # what it waited for says more
            else:
                if gateway.account not in session.accounts:
                    seen = ", ".join(session.accounts)
                    raise RecoveryError(f"the gateway has the accounts {seen}; wanted: {gateway.account}")
                yield session
                return
        time.sleep(RETRY_S)  # the gateway does not tell when an id becomes free


def _open_orders(session: Session, outcome: _Outcome) -> list[ibapi.OpenOrder]:
    """Every order that the gateway lists as open, of all clients."""
    session.send(ibapi.frame(ibapi.Request.ALL_OPEN_ORDERS, 1))
    orders: dict[tuple[int, int], ibapi.OpenOrder] = {}
    while True:
        message = session.receive()
        kind = int(message[0])
        if kind == ibapi.Reply.OPEN_ORDER:
            order = ibapi.open_order(message)
            orders[order.key] = order
        elif kind == ibapi.Reply.ORDER_STATUS:
            state = ibapi.order_status(message)
            outcome.note(state)
            if state.status in ibapi.DONE:
                orders.pop((state.client_id, state.order_id), None)
        elif kind == ibapi.Reply.OPEN_ORDER_END:
            return list(orders.values())


def _take_back(gateway: GatewaySettings, orders: Sequence[ibapi.OpenOrder], outcome: _Outcome, deadline: float) -> None:
    for client_id in sorted({order.client_id for order in orders}):
        with _session(gateway, client_id, deadline) as session:
            _cancel(session, {order.order_id for order in orders if order.client_id == client_id}, outcome)


def _cancel(session: Session, waiting: set[int], outcome: _Outcome) -> None:
    """Take the orders of one client back, and wait until each is done or the gateway does not know it as open."""
    for order_id in sorted(waiting):
        session.send(ibapi.cancel_order(session.version, order_id))
    while waiting:
        message = session.receive()
        kind = int(message[0])
        if kind == ibapi.Reply.ORDER_STATUS:
            state = ibapi.order_status(message)
            outcome.note(state)
            if state.status in ibapi.DONE:
                waiting.discard(state.order_id)
        elif kind == ibapi.Reply.ERROR and (order_id := int(message[2])) in waiting:
            code = int(message[3])
            if code == ibapi.Code.ORDER_CANCELLED:
                outcome.cancelled.add((session.client_id, order_id))
            if code in ibapi.NOT_OPEN:
                waiting.discard(order_id)
            elif code == ibapi.Code.READ_ONLY:
                raise RecoveryError(f"order {order_id} may not be taken back: {message[4]}")


def _say(log: Log, event: str, order: ibapi.OpenOrder, **more: object) -> None:
    log(json.dumps({"event": event, **asdict(order), **more}))
