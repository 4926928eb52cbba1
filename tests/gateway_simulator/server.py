"""The gateway: its login with the broker, its API clients, and the command port by which a test makes it misbehave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from .broker import LINE_LIMIT, PING_SECONDS, SILENCE_SECONDS, Action
from .protocol import ErrorCode, ProtocolError
from .session import Session
from .state import Book, Order, OrderKey, Record

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 0.5

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Mode(StrEnum):
    """How the gateway behaves."""

    NORMAL = "normal"
    FROZEN = "frozen"  # takes connections, answers nothing
    NOT_LOGGED_IN = "not_logged_in"  # answers the handshake, then waits for a login that does not come
    SECOND_FACTOR_PENDING = "second_factor_pending"  # the same, waiting for the telephone
    DISCONNECTED = "disconnected"  # has lost the broker (1100) until it is back (1102)
    READ_ONLY = "read_only"  # takes no order (321)


LOGGED_IN = frozenset({Mode.NORMAL, Mode.FROZEN, Mode.READ_ONLY})
ANSWERING = frozenset(Mode) - {Mode.FROZEN}
TAKING_CLIENTS = frozenset({Mode.NORMAL, Mode.READ_ONLY, Mode.DISCONNECTED})
# What IBC writes into its event log then.
EVENTS = {Mode.NORMAL: "LOGGED_IN", Mode.NOT_LOGGED_IN: "LOGIN_STARTED", Mode.SECOND_FACTOR_PENDING: "TWO_FA_REQUIRED"}


class LoginRefusedError(Exception):
    """Another gateway has the user's session."""


@dataclass(frozen=True)
class Identity:
    """Who logs in, from where, and what it does when the user is logged in already."""

    username: str = "user"
    name: str = "gateway"
    action: Action = Action.MANUAL


class Gateway:
    """All API sessions of one gateway, its copy of the broker's book, and its mode."""

    def __init__(
        self,
        connect: Connect,
        identity: Identity | None = None,
        mode: Mode = Mode.NORMAL,
        events: Path | None = None,
    ) -> None:
        self.book = Book("")
        self.pending: dict[OrderKey, Order] = {}  # sent to the broker, not heard of yet
        self.stopped = asyncio.Event()
        self.refused = ""
        self._connect = connect
        self._identity = identity or Identity()
        self._mode = mode
        self._events = events
        self._line: asyncio.StreamWriter | None = None
        self._changed = asyncio.Condition()
        self._clients: dict[int, Session] = {}
        self._open: dict[Session, asyncio.Task[None]] = {}
        self._listener: asyncio.Server | None = None
        self._api: tuple[str, int] = ("127.0.0.1", 0)

    # Mode

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self._mode

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._line is not None

    @property
    def frozen(self) -> bool:
        """Whether it keeps silent."""
        return self._mode is Mode.FROZEN

    @property
    def read_only(self) -> bool:
        """Whether it refuses orders."""
        return self._mode is Mode.READ_ONLY

    async def set_mode(self, mode: Mode) -> None:
        """Change the mode and wait for the login to follow; sessions that waited go on from where they were."""
        LOG.info("mode %s", mode.value)
        self._write_event(mode)
        async with self._changed:
            self._mode = mode
            self._changed.notify_all()
        for session in self._open:
            session.flush()
        if mode not in LOGGED_IN and self._line:
            self._line.close()
        with suppress(TimeoutError):  # the broker may be away
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._reach(lambda: self.connected == (mode in LOGGED_IN))

    def _write_event(self, mode: Mode) -> None:
        """Append to IBC's event log, where its settings name one."""
        if self._events and mode in EVENTS:
            event = {"time": datetime.now(UTC).isoformat(), "type": EVENTS[mode], "detail": mode.value}
            with self._events.open("a") as file:
                file.write(json.dumps(event) + "\n")

    async def answering(self) -> None:
        """Wait while the gateway is frozen."""
        await self._in(ANSWERING)

    async def logged_in(self) -> None:
        """Wait until the gateway has a login, and has once heard from the broker."""
        await self._reach(lambda: self._mode in TAKING_CLIENTS and self.book.account != "")

    async def _in(self, modes: Collection[Mode]) -> None:
        await self._reach(lambda: self._mode in modes)

    async def _reach(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    # The broker

    async def stay_connected(self) -> None:
        """Keep the login with the broker while the mode has one; stop for good where another gateway has it."""
        while not self.stopped.is_set():
            await self._in(LOGGED_IN)
            try:
                await self._converse()
            except LoginRefusedError as error:
                LOG.critical("logged out: %s", error)
                self.refused = str(error)
                self.stopped.set()
            except (TimeoutError, ConnectionError, OSError) as error:
                LOG.warning("no broker: %r", error)
            if self._mode in LOGGED_IN and not self.stopped.is_set():
                await asyncio.sleep(RETRY_SECONDS)

    async def _converse(self) -> None:
        reader, writer = await self._connect()
        pings = asyncio.create_task(self._ping(writer))
        who = self._identity
        try:
            self._write(
                writer,
                login=who.username,
                gateway=who.name,
                action=who.action.value,
                known=len(self.book.records),
            )
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    line = await reader.readline()
                if not line:
                    return
                await self._hear(json.loads(line), writer)
        finally:
            pings.cancel()
            writer.close()
            await self._set_line(None)

    async def _hear(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "record" in message:
            self._deliver(message["record"])
        elif "ready" in message:
            self.book.account = message["account"]
            for session in self._open:
                for key in [key for key in self.pending if key[0] == session.client_id]:
                    session.order_lost(self.pending[key])
            self.pending.clear()
            await self._set_line(writer)
        elif reason := message.get("refused") or message.get("kicked"):
            raise LoginRefusedError(reason)

    def _deliver(self, record: Record) -> None:
        """Take a record into the book, then tell who is concerned."""
        fill = self.book.apply(record)
        order = Order.from_record(record)
        self.pending.pop(order.key, None)
        if session := self._clients.get(order.client_id):
            session.order_changed(record, order, fill)
        if fill:
            for session in self._open:
                session.position_changed(order.contract)

    async def _set_line(self, writer: asyncio.StreamWriter | None) -> None:
        if (writer is None) == (self._line is None):
            return
        async with self._changed:
            self._line = writer
            self._changed.notify_all()
        notice = ErrorCode.CONNECTIVITY_RESTORED if writer else ErrorCode.CONNECTIVITY_LOST
        for session in self._clients.values():
            session.notice(notice)

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._write(writer, do="ping")

    @staticmethod
    def _write(writer: asyncio.StreamWriter, **message: Any) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")

    def tell_broker(self, **command: Any) -> bool:
        """Send a command to the broker; False where it cannot be reached."""
        if self._line is None or self._line.is_closing():
            return False
        self._write(self._line, **command)
        return True

    # API clients

    async def listen(self, host: str, port: int) -> int:
        """Open the API port; return its number."""
        self._listener = await asyncio.start_server(self.serve, host, port)
        self._api = (host, self._listener.sockets[0].getsockname()[1])
        return self._api[1]

    async def restart(self, seconds: float) -> None:
        """Do what the gateway does every night: cut all clients, refuse new ones for a while, keep the login."""
        self.close()
        await asyncio.sleep(seconds)
        if not self.stopped.is_set():
            await self.listen(*self._api)
            LOG.info("restarted after %g s", seconds)

    def close(self) -> None:
        """Close the API port and cut every client."""
        if self._listener:
            self._listener.close()
        self.drop_sessions()

    def drop_sessions(self) -> None:
        """Cut every client."""
        for session, task in self._open.items():
            session.close()
            task.cancel()

    def register(self, client_id: int, session: Session) -> bool:
        """Give a client id to a session, unless another holds it."""
        return self._clients.setdefault(client_id, session) is session

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one API connection to its end. Its client id is free again only when all it sent has been read."""
        session = Session(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._open[session] = task
        try:
            await session.run()
        except (asyncio.IncompleteReadError, ConnectionError):
            LOG.info("client %s left", session.client_id)
        except asyncio.CancelledError:
            LOG.info("client %s cut off", session.client_id)
        except (ProtocolError, ValueError, IndexError) as error:
            LOG.warning("client %s cut: %s", session.client_id, error)
        finally:
            del self._open[session]
            if session.client_id is not None:
                del self._clients[session.client_id]
            session.close()

    # The command port

    async def command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve IBC's command port: a command a line. STOP and RESTART are IBC's, the others ours."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(f"{await self._execute(*line.decode(errors='replace').split())}\n".encode())
                await writer.drain()
        writer.close()

    async def _execute(self, verb: str = "", *arguments: str) -> str:
        text = " ".join((verb, *arguments))
        try:
            match verb.upper(), *arguments:
                case ["STOP"]:
                    self.stopped.set()
                    return "OK Shutting down"
                case ["RESTART"]:
                    await self.restart(0)
                    return "OK Restarting"
                case ["RESTART", seconds]:
                    self._later = asyncio.create_task(self.restart(float(seconds)))
                    return f"OK Restarting, back in {float(seconds):g} s"
                case ["MODE", name]:
                    await self.set_mode(Mode(name))
                    return f"OK {name}"
                case ["KICK"]:
                    await self.set_mode(Mode.NOT_LOGGED_IN)
                    self.drop_sessions()
                    return "OK Logged in elsewhere"
                case ["FILL", delay, parts]:
                    return self._set_filling(float(delay), int(parts), 0)
                case ["REJECT", number]:
                    return self._set_filling(0.05, 1, int(number))
                case ["STATE"]:
                    broker = "" if self.connected else " broker=away"
                    return f"OK {self._mode.value} clients={sorted(self._clients)}{broker}"
        except ValueError:
            pass
        return f"ERROR Invalid command: {text}".rstrip()

    def _set_filling(self, delay: float, parts: int, reject: int) -> str:
        if delay < 0 or parts < 1 or reject < 0:
            raise ValueError
        if not self.tell_broker(do="fill", delay=delay, parts=parts, reject=reject):
            return "ERROR No broker"
        return f"OK fills after {delay:g} s in {parts}, rejects {reject}"


async def dial(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a line to a broker in a process of its own."""
    async with asyncio.timeout(SILENCE_SECONDS):
        return await asyncio.open_connection(host, port, limit=LINE_LIMIT)
