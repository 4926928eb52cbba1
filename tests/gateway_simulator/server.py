"""The gateway as its clients see it, and the command port by which a test makes it misbehave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum

from .protocol import ProtocolError
from .session import Session
from .state import Book

LOG = logging.getLogger(__name__)


class Mode(StrEnum):
    """How the gateway behaves."""

    NORMAL = "normal"
    FROZEN = "frozen"  # takes connections, answers nothing
    NOT_LOGGED_IN = "not_logged_in"  # answers the handshake, then waits for a login that does not come


class Gateway:
    """All sessions of one gateway, and its mode."""

    def __init__(self, book: Book, mode: Mode = Mode.NORMAL) -> None:
        self.book = book
        self._mode = mode
        self._changed = asyncio.Condition()
        self._clients: dict[int, Session] = {}
        self._open: set[Session] = set()
        self.stopped = asyncio.Event()

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self._mode

    async def set_mode(self, mode: Mode) -> None:
        """Change the mode; sessions that waited go on from where they were."""
        async with self._changed:
            self._mode = mode
            self._changed.notify_all()
        LOG.info("mode %s", mode.value)

    async def answering(self) -> None:
        """Wait while the gateway is frozen."""
        await self._reach({Mode.NORMAL, Mode.NOT_LOGGED_IN})

    async def logged_in(self) -> None:
        """Wait until the gateway has a session with the broker."""
        await self._reach({Mode.NORMAL})

    async def _reach(self, modes: Iterable[Mode]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._mode in modes)

    def register(self, client_id: int, session: Session) -> bool:
        """Give a client id to a session, unless another holds it."""
        return self._clients.setdefault(client_id, session) is session

    def drop_sessions(self) -> None:
        """Cut every connection, as the gateway's nightly restart does."""
        for session in self._open:
            session.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one API connection to its end."""
        session = Session(self, reader, writer)
        self._open.add(session)
        try:
            await session.run()
        except (asyncio.IncompleteReadError, ConnectionError):
            LOG.info("client %s left", session.client_id)
        except (ProtocolError, ValueError, IndexError) as error:
            LOG.warning("client %s cut: %s", session.client_id, error)
        finally:
            self._open.discard(session)
            if session.client_id is not None:
                del self._clients[session.client_id]
            session.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve IBC's command port: a command a line. STOP and RESTART are IBC's, MODE and STATE ours."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(f"{await self._execute(*line.decode(errors='replace').split())}\n".encode())
                await writer.drain()
        writer.close()

    async def _execute(self, verb: str = "", argument: str = "") -> str:
        match verb.upper():
            case "STOP":
                self.stopped.set()
                return "OK Shutting down"
            case "RESTART":
                self.drop_sessions()
                return "OK Restarting"
            case "MODE" if argument in {mode.value for mode in Mode}:
                await self.set_mode(Mode(argument))
                return f"OK {argument}"
            case "STATE":
                return f"OK {self._mode.value} clients={sorted(self._clients)}"
            case _:
                return f"ERROR Invalid command: {verb} {argument}".rstrip()
