"""The gate before IB Gateway: reads what API clients send, and lets orders through only from the host that may trade.

One view of the lease is shared by all connections. It is as old as its read, and good until the lease would expire by
this host's monotonic clock, counted from before the read. An order is judged at the moment at which it is forwarded,
so one that was read from its socket before a long pause is judged by what holds after the pause.

A connection that has sent orders belongs to the epoch of its first one and is cut when that epoch ends. What it had
sent may still lie unread before a gateway that hangs. So it is over only when the gateway has hung up on it, and until
then no client of the app nodes is let in: whoever asks for the open orders next is told of all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import ibapi, tracing
from .gate_settings import PATH, GateSettings, load
from .settings import BAD_CONFIGURATION, SettingsError
from .streams import Endpoint, keep_alive, on_stop, tell_systemd
from .watch import Clock, LeaseReader, MongoLease, Watch

LOG = logging.getLogger("pst.gate")

CLOSED = Path("/run/pst/gate/closed")  # the kill switch: while it exists no order passes
CONNECT_S = 5.0  # to the gateway on loopback, and for a greeting
SETTLE_S = 10.0  # for the gateway to hang up on a connection that had sent orders
LINGER_S = 30.0  # for it to hang up on any other
MOST_CONNECTIONS = 96  # three times what a gateway takes
CHUNK = 1 << 16


class OrderLog:
    """JSON lines. Opened for each, so that it can be rotated; an order is rare."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; the journal takes it where the disk does not."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        try:
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            LOG.error("%s: %s; the line is %s", self._path, error.strerror, line)  # noqa: TRY400  a full disk, no bug


@dataclass(eq=False)
class Connection:
    """One client and its connection to the gateway."""

    gate: Gate
    address: str
    host: str  # name of the app node; empty for a reader
    opened: float
    client: asyncio.StreamWriter
    client_id: int | None = None
    epoch: int | None = None  # that its orders were sent in
    version: int = 0
    ended: bool = False  # the client is gone, what it sent may not be
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: set[int] = field(default_factory=set)  # numbers of the orders that have passed
    _named: dict[int, str] = field(default_factory=dict)  # orders by their numbers, for what cancels them
    _gateway: asyncio.StreamWriter | None = None
    _requests: asyncio.Task[None] | None = None
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)  # towards the client, one frame at a time

    def __str__(self) -> str:
        return f"{self.host or 'reader'} ({self.address}, client {self.client_id})"

    async def serve(self, requests: asyncio.StreamReader) -> None:
        """Pass messages both ways until the gateway has hung up."""
        upstream = self.gate.upstream
        async with asyncio.timeout(CONNECT_S):
            replies, gateway = await asyncio.open_connection(upstream.host, upstream.port)
        self._gateway = gateway
        try:
            # No time-out of ours on this side: that the gateway hangs up is the proof that it has read everything.
            async with asyncio.timeout(CONNECT_S):
                gateway.write(await self._greeting(requests))
            self._requests = asyncio.create_task(self._pass_requests(requests, gateway))
            await self._pass_replies(replies)
        finally:
            if self._requests is not None:
                self._requests.cancel()
            gateway.transport.abort()

    def cut(self, reason: str) -> None:
        """Hang up on both sides."""
        LOG.warning("%s cut: %s", self, reason)
        self._end()
        if self._requests is not None:
            self._requests.cancel()
        self.client.transport.abort()

    def _end(self) -> None:
        """Hang up on the gateway: it reads what it was sent, then hangs up as well, and ``serve`` returns."""
        if self.ended or self._gateway is None:
            return
        self.ended = True
        with contextlib.suppress(OSError):  # it has hung up already
            self._gateway.write_eof()
        if self.epoch is None:
            asyncio.get_running_loop().call_later(LINGER_S, self._gateway.transport.abort)

    async def _greeting(self, requests: asyncio.StreamReader) -> bytes:
        greeting = await requests.readexactly(len(ibapi.GREETING))
        if greeting != ibapi.GREETING:
            raise ibapi.ProtocolError(f"the greeting {greeting!r}; wanted: {ibapi.GREETING!r}")
        offer = ibapi.capped_offer(await read_body(requests), self.gate.settings.max_version)
        return greeting + ibapi.raw_frame(offer)

    async def _pass_requests(self, requests: asyncio.StreamReader, gateway: asyncio.StreamWriter) -> None:
        try:
            while True:
                body = await read_body(requests)
                order = ibapi.order_message(body)
                watch = tracing.Stopwatch()
                if order is not None and (objection := await self._judge(order)):
                    # Clients of the API take an error for an order's number for the end of that order. Where it may be
                    # at the broker they have to lose the connection instead: the recovery asks what is open there.
                    self._trace(order, watch, objection)
                    if order.request_id in self._sent or order.cancels_one:
                        self.cut(objection)
                        return
                    await self._refuse(order, objection)
                    continue
                if ibapi.kind_of(body) == ibapi.Request.START_API:
                    self.client_id = ibapi.client_id_of(body)
                    LOG.info("%s connected", self)
                gateway.write(ibapi.raw_frame(body))  # nothing is awaited between the verdict and this
                if order is not None:
                    self._trace(order, watch)
                await gateway.drain()
        except (asyncio.IncompleteReadError, OSError):
            self._end()
        except ibapi.ProtocolError as error:
            self.cut(str(error))

    async def _judge(self, order: ibapi.OrderMessage) -> str:
        """Why an order may not pass; empty where it may. Written down either way."""
        try:
            objection = await self.gate.objection(self)
        except asyncio.CancelledError:
            self._write_down(order, "the connection was cut")
            raise
        self._write_down(order, objection)
        # The disk may have taken its time.
        if not objection and (objection := self.gate.objection_now(self)):
            self._write_down(order, objection)
        if not objection:
            self.epoch = self.gate.epoch
            self._sent.add(order.request_id)
        return objection

    def _write_down(self, order: ibapi.OrderMessage, objection: str) -> None:
        self.gate.orders.write(
            {
                "address": self.address,
                "host": self.host,
                "client_id": self.client_id,
                "order_id": order.request_id,
                "message": order.name,
                "reference": order.reference,
                "epoch": self.gate.epoch,
                "verdict": "refused" if objection else "passed",
                "reason": objection,
            }
        )

    def _trace(self, order: ibapi.OrderMessage, watch: tracing.Stopwatch, objection: str = "") -> None:
        named = tracing.order_of(order.reference, self.client_id, order.request_id)
        if order.reference:
            self._named[order.request_id] = named
        more = {"sender": self.host, "client": self.client_id, "epoch": self.gate.epoch}
        refused = {"error": objection} if objection else {}
        tracing.say(self._named.get(order.request_id, named), f"gate: {order.name}", watch, **more, **refused)

    async def _refuse(self, order: ibapi.OrderMessage, objection: str) -> None:
        LOG.warning("%s: %s of %d refused: %s", self, order.name, order.request_id, objection)
        text = f"Read-only: {objection}"
        async with self._sending:
            self.client.write(ibapi.error(self.version, order.request_id, ibapi.Code.READ_ONLY, text))
            await self.client.drain()

    async def _pass_replies(self, replies: asyncio.StreamReader) -> None:
        """Pass frames of any length, piece by piece. Goes on without the client, to see the gateway hang up."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            hello = await read_body(replies)
            version = ibapi.fields_of(hello)[0] if hello else ""
            if not version.isdecimal() or not ibapi.OLDEST <= int(version) <= self.gate.settings.max_version:
                raise ibapi.ProtocolError(f"the gateway answered {hello[:40]!r}; wanted: a version that was offered")
            self.version = int(version)
            await self._to_client(ibapi.raw_frame(hello))
            while True:
                head = await replies.readexactly(4)
                left = ibapi.length_of(head, limit=1 << 32)
                async with self._sending:
                    await self._to_client(head)
                    while left:
                        chunk = await replies.read(min(left, CHUNK))
                        if not chunk:
                            return
                        left -= len(chunk)
                        await self._to_client(chunk)

    async def _to_client(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if not self.client.is_closing():
                self.client.write(data)
                await self.client.drain()


class Gate:
    """All connections, and the rules that they share."""

    def __init__(
        self, settings: GateSettings, watch: Watch, closed: Path = CLOSED, clock: Clock = time.monotonic
    ) -> None:
        self.settings = settings
        self.upstream = Endpoint.parse(settings.upstream)
        self.orders = OrderLog(Path(settings.order_log))
        self._watch = watch
        self._closed = closed
        self._clock = clock
        self._hosts = {address: host for host, address in settings.app_nodes.items()}
        self._open: set[Connection] = set()

    @property
    def epoch(self) -> int | None:
        """The epoch of the view."""
        return self._watch.view.lease.epoch if self._watch.view else None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        address = writer.get_extra_info("peername")[0]
        host = self._hosts.get(address, "")
        connection = Connection(self, address, host, self._clock(), writer)
        try:
            if not host and address not in self.settings.readers:
                LOG.warning("%s is neither an app node nor a reader", address)
                return
            if len(self._open) >= MOST_CONNECTIONS:
                LOG.warning("%s refused: %d connections are open", connection, len(self._open))
                return
            keep_alive(writer)
            if host and (reason := await self._not_settled()):
                LOG.warning("%s refused: %s", connection, reason)
                return
            self._open.add(connection)
            await connection.serve(reader)
        except (OSError, asyncio.IncompleteReadError, ibapi.ProtocolError) as error:
            LOG.warning("%s: %s", connection, str(error) or "no answer in time")
        finally:
            self._open.discard(connection)
            connection.over.set()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def refresh(self) -> bool:
        """Read the lease, and cut the connections whose epoch has ended."""
        view = await self._watch.fresh()
        if view is None:
            return False
        lease = view.lease
        for one in [one for one in self._open if one.epoch is not None and not one.ended]:
            if lease.revoked or (one.epoch, one.host) != (lease.epoch, lease.host):
                one.cut(f"its epoch {one.epoch} has ended; {lease.holder}")
        return True

    async def objection(self, one: Connection) -> str:
        """Why an order on a connection may not pass now; empty where it may."""
        objection = self.objection_now(one)
        # A new holder need not wait for the poll, and nobody is refused on an old view.
        if one.host and (objection or one.epoch is None):
            objection = await self._not_settled() or self.objection_now(one)
        return objection

    def objection_now(self, one: Connection) -> str:
        """The same, by what is known."""
        if not one.host:
            return f"{one.address} may not order"
        if self._closed.exists():
            return f"the gate is closed ({self._closed})"
        if self._watch.view is None:
            return f"the lease cannot be read: {self._watch.failure}"
        if one.epoch not in (None, self.epoch):
            return f"epoch {one.epoch}, in which this connection has sent orders, has ended"
        return self._watch.view.objection(one.host, one.opened, self._clock())

    async def _not_settled(self) -> str:
        """Read the lease and wait until what an ended connection had sent has reached the gateway; or say why not."""
        if not await self.refresh():
            return f"the lease cannot be read: {self._watch.failure}"
        try:
            async with asyncio.timeout(SETTLE_S):
                while leaving := [one for one in self._open if one.ended and one.epoch is not None]:
                    await leaving[0].over.wait()
        except TimeoutError:
            return "the gateway does not hang up on a connection that had sent orders"
        return ""

    def close(self) -> None:
        """Hang up on everybody."""
        for one in list(self._open):
            one.cut("the gate stops")


# The service ----------------------------------------------------------------------------------------------------------


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """Read one frame."""
    return await reader.readexactly(ibapi.length_of(await reader.readexactly(4)))


async def run(settings: GateSettings, reader: LeaseReader) -> None:
    """Serve until told to stop."""
    watch = Watch(reader)
    gate = Gate(settings, watch)
    stopped = asyncio.Event()
    on_stop(stopped.set)
    listen = Endpoint.parse(settings.listen)
    server = await asyncio.start_server(gate.accept, listen.host, listen.port)
    LOG.info("%s before %s, orders of %s", settings.listen, settings.upstream, settings.placement)
    tell_systemd("READY=1")
    while not stopped.is_set():
        await gate.refresh()
        tell_systemd("WATCHDOG=1")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), settings.poll_s)
    server.close()
    gate.close()
    watch.close()


def main(path: Path = PATH) -> int:
    """Run the gate with the settings in a file; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = load(path)
        reader = MongoLease(settings.mongodb, settings.placement)
    except (SettingsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    asyncio.run(run(settings, reader))
    return 0


if __name__ == "__main__":
    sys.exit(main())
