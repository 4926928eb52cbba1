"""The world behind the gateways: one account, one session per user name, orders that outlive every gateway.

A gateway talks to it in JSON lines. It logs in with its user name and IBC's ExistingSessionDetectedAction, gets the
records that it has not seen, then every new one; it sends orders and cancellations. `python3 -m gateway_simulator` has
one of these inside, unless it is given --broker: two gateways of one user share this process:
``python3 -m gateway_simulator.broker --order-log FILE``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from . import market
from .state import Book, Event, Order, OrderKey, OrderLog, Status, make_record, read_log

LOG = logging.getLogger(__name__)
LINE_LIMIT = 1 << 20
PING_SECONDS = 1.0
SILENCE_SECONDS = 5.0
FIRST_PERM_ID = 1_000_001

Message = Mapping[str, Any]


class Action(StrEnum):
    """ExistingSessionDetectedAction of IBC: what a gateway does when its user name is logged in elsewhere."""

    MANUAL = "manual"  # a person answers the dialog; none is here
    PRIMARY = "primary"
    PRIMARY_OVERRIDE = "primaryoverride"
    SECONDARY = "secondary"


def may_displace(new: Action, existing: Action) -> bool:
    """Say who stays: a primary is never displaced, a secondary never displaces, the newest override wins."""
    return new in {Action.PRIMARY, Action.PRIMARY_OVERRIDE} and existing is not Action.PRIMARY


@dataclass(frozen=True)
class Filling:
    """How orders are treated: all of it after a delay, in parts a delay apart; the next few are rejected."""

    delay: float = 0.05
    parts: int = 1
    reject: int = 0


@dataclass(eq=False)
class Login:
    """A gateway's session with the broker."""

    username: str
    gateway: str
    action: Action
    writer: asyncio.StreamWriter

    def send(self, **message: Any) -> None:
        """Send one message, unless the gateway has gone."""
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


class Broker:
    """Accepts orders, fills them, and tells the gateway that is logged in."""

    def __init__(self, account: str, order_log: Path, filling: Filling | None = None) -> None:
        self.book = Book(account)
        self.filling = filling or Filling()
        self._log = OrderLog(order_log)
        self._logins: dict[str, Login] = {}
        self._working: dict[OrderKey, asyncio.Task[None]] = {}
        for record in read_log(order_log):
            self.book.apply(record)

    def start(self) -> None:
        """Work the orders that a stop of the broker interrupted."""
        for order in self.book.open_orders:
            self._work(order)

    def close(self) -> None:
        """Stop working orders, close every session and the log."""
        for task in self._working.values():
            task.cancel()
        for login in self._logins.values():
            login.writer.close()
        self._log.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one gateway to its end; one that is silent for too long has lost its session."""
        login: Login | None = None
        try:
            login = self._log_in(json.loads(await reader.readline()), writer)
            while login and self._logins.get(login.username) is login:
                async with asyncio.timeout(SILENCE_SECONDS):
                    line = await reader.readline()
                if not line:
                    break
                self._execute(login, json.loads(line))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, KeyError) as error:
            LOG.warning("gateway %s cut: %r", login and login.gateway, error)
        finally:
            if login and self._logins.get(login.username) is login:
                del self._logins[login.username]
                LOG.info("a user has logged out at %s", login.gateway)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _log_in(self, message: Message, writer: asyncio.StreamWriter) -> Login | None:
        login = Login(message["login"], message["gateway"], Action(message["action"]), writer)
        existing = self._logins.get(login.username)
        if existing:
            if not may_displace(login.action, existing.action):
                login.send(refused=f"this user is logged in at {existing.gateway} as {existing.action.value}")
                return None
            existing.send(kicked=f"this user has logged in at {login.gateway}")
            existing.writer.close()
        self._logins[login.username] = login
        # Who it is stays here: a login is among what no log may tell.
        LOG.info("a user has logged in at %s", login.gateway)
        for record in self.book.records[message["known"] :]:
            login.send(record=record)
        login.send(ready=True, account=self.book.account)
        return login

    def _execute(self, login: Login, message: Message) -> None:
        match message["do"]:
            case "ping":
                login.send(pong=True)
            case "place":
                self._place(login, Order.from_record(message["order"]))
            case "cancel":
                self._cancel(tuple(message["key"]), login.gateway)
            case "cancel_all":
                for order in self.book.open_orders:
                    self._cancel(order.key, login.gateway)
            case "fill":
                self.filling = Filling(message["delay"], message["parts"], message["reject"])
            case unknown:
                raise ValueError(f"unknown command {unknown!r}")

    def _place(self, login: Login, order: Order) -> None:
        known = self.book.orders.get(order.key)
        if known is None:
            perm_id = FIRST_PERM_ID + len(self.book.orders)
            event = Event.REJECTED if self.filling.reject else Event.PLACED
            details = {"reason": "the broker rejects orders"} if self.filling.reject else {}
            self.filling = replace(self.filling, reject=max(0, self.filling.reject - 1))
        elif self.book.status[order.key] is Status.SUBMITTED:
            perm_id, event, details = known.perm_id, Event.MODIFIED, {}
        else:
            return  # done meanwhile: the gateway has been told
        order = replace(order, perm_id=perm_id)
        self._commit(event, order, login.gateway, **details)
        if event is not Event.REJECTED:
            self._work(order)

    def _cancel(self, key: Sequence[int], gateway: str) -> None:
        order = self.book.orders.get((key[0], key[1]))
        if order and self.book.status[order.key] is Status.SUBMITTED:
            if task := self._working.pop(order.key, None):
                task.cancel()
            self._commit(Event.CANCELLED, order, gateway)

    def _work(self, order: Order) -> None:
        if task := self._working.pop(order.key, None):
            task.cancel()
        if market.fill_price(order.contract, order.action, order.order_type, order.limit_price) is not None:
            self._working[order.key] = asyncio.create_task(self._fill(order, self.filling))

    async def _fill(self, order: Order, filling: Filling) -> None:
        """Fill what is left of an order; whole units, as a futures exchange does."""
        part = float(math.ceil((order.quantity - self.book.filled[order.key]) / filling.parts))
        while (left := order.quantity - self.book.filled[order.key]) > 0:
            await asyncio.sleep(filling.delay)
            number = sum(fill.order.key == order.key for fill in self.book.fills) + 1
            self._commit(
                Event.FILLED,
                order,
                "",
                execution_id=f"sim.{order.perm_id}.{number:02d}",
                price=market.price(order.contract),
                shares=min(part, left),
            )
        del self._working[order.key]

    def _commit(self, event: Event, order: Order, gateway: str, **details: Any) -> None:
        """On disk first, then in the book, then told."""
        record = make_record(event, order, gateway, **details)
        self._log.append(record)
        self.book.apply(record)
        for login in self._logins.values():
            login.send(record=record)


async def run(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    broker = Broker(options.account, options.order_log, Filling(options.fill_delay, options.fill_parts))
    broker.start()
    server = await asyncio.start_server(broker.serve, *options.listen, limit=LINE_LIMIT)
    LOG.info("broker of %s on %s:%d", options.account, *options.listen)
    await stopped.wait()
    server.close()
    broker.close()


def address(text: str) -> tuple[str, int]:
    """Read host:port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def add_broker_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what a broker needs, whether it runs by itself or inside a gateway."""
    parser.add_argument("--account", default="DU1000001", help="managed account; paper accounts start with D")
    parser.add_argument("--order-log", type=Path, help="JSON lines, appended to; replayed at start")
    parser.add_argument("--fill-delay", type=float, default=0.05, metavar="SECONDS", help="before each part of a fill")
    parser.add_argument("--fill-parts", type=int, default=1, metavar="NUMBER", help="pieces that an order fills in")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="gateway_simulator.broker", description=__doc__)
    add_broker_arguments(parser)
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 4100), metavar="HOST:PORT")
    options = parser.parse_args(arguments)
    if options.order_log is None:
        parser.error("--order-log is required")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
