"""Passes requests to the slot's dashboard on loopback, as they come and only once.

A request is sent at most once: what is tried again is a connection that was refused, before anything was sent. Each has
a connection of its own, so there is no connection that the dashboard may close while a request is on its way. HTTP is
h11's, uvicorn's own protocol library.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import h11

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# RFC 9110, 7.6.1, and what is said between two neighbours only.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te")
) | {b"trailer", b"transfer-encoding", b"upgrade"}
BLOCK = 64 * 1024
REFUSED_PAUSE_S = 0.05
# Loopback accepts or refuses at once; only a machine that stands still takes longer.
CONNECT_TIMEOUT_S = 5


class ProxyError(Exception):
    """The dashboard gave no answer; `code` is what the client is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class TooLargeError(Exception):
    """The client sends more than is passed on."""


@dataclass(frozen=True)
class Limits:
    body: int
    timeout_s: float
    refused_s: float = 2.0


def end_to_end(headers: Iterable[tuple[bytes, bytes]], also: frozenset[bytes] = frozenset()) -> Headers:
    """Leave out what holds for one connection only, also by the names that `Connection` lists."""
    kept = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower() for name, value in kept if name == b"connection" for word in value.split(b",") if word
    }
    return [(name, value) for name, value in kept if name not in HOP_BY_HOP | named | also]


class Exchange:
    """One request and its answer on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._reader, self._writer, self._timeout_s = reader, writer, timeout_s
        self._http = h11.Connection(h11.CLIENT)
        self.answered = False

    async def send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(self._timeout_s):
                self._http.receive_data(await self._reader.read(BLOCK))
        return event

    async def head(self) -> h11.Response:
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionResetError("closed before the answer")

    async def body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    def close(self) -> None:
        self._writer.transport.abort()


class Dashboard:
    """The program behind the agent."""

    # Answered by the wrapper that runs the dashboard, so it costs no page.
    HEALTH = b"/.pst/health"

    def __init__(self, port: int, limits: Limits, address: str = "127.0.0.1") -> None:
        self._address, self._limits = (address, port), limits

    async def _connect(self, patience_s: float) -> Exchange:
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience_s
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return Exchange(*await asyncio.open_connection(*self._address), self._limits.timeout_s)
            except ConnectionRefusedError:
                if clock() >= deadline:
                    raise
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def health(self) -> bytes:
        """Return what the dashboard says of itself; raise where it does not answer."""
        exchange = await self._connect(0)
        try:
            await exchange.send(h11.Request(method="GET", target=self.HEALTH, headers=[("Host", "localhost")]))
            await exchange.send(h11.EndOfMessage())
            head = await exchange.head()
            body = b"".join([block async for block in exchange.body()])
        finally:
            exchange.close()
        if head.status_code != 200:
            raise ConnectionError(f"{self.HEALTH.decode()} answers {head.status_code}, wanted: 200")
        return body

    async def handle(self, scope: Message, receive: Receive, send: Send, request_id: bytes) -> None:
        """Pass one request. Raises ProxyError or TooLargeError as long as the client has not been answered."""
        headers = end_to_end(scope["headers"], frozenset((b"expect", b"x-request-id", b"content-length")))
        sent_length = dict(scope["headers"]).get(b"content-length")
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if sent_length is not None and int(sent_length) > self._limits.body:
            raise TooLargeError
        if sent_length is not None:
            headers.append((b"content-length", sent_length))
        elif chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        headers += [(b"x-request-id", request_id), (b"connection", b"close")]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        try:
            request = h11.Request(method=scope["method"], target=target, headers=headers)
        except h11.LocalProtocolError as error:
            raise ProxyError(400, str(error)) from error
        try:
            exchange = await self._connect(self._limits.refused_s)
        except OSError as error:  # a time-out too
            raise ProxyError(503, f"the dashboard does not answer: {type(error).__name__}") from error
        try:
            await self._pass(exchange, request, receive, send)
        finally:
            exchange.close()

    async def _pass(self, exchange: Exchange, request: h11.Request, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(exchange, request, receive))
        answer = asyncio.create_task(self._answer(exchange, send))
        try:
            # The dashboard may answer before it has read everything; a client may leave before it is answered.
            await asyncio.wait((sender, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and sender.done():
                failure = sender.exception()
                if isinstance(failure, TooLargeError) and not exchange.answered:
                    raise failure
                if isinstance(failure, OSError):  # an answer may be on its way all the same
                    await asyncio.wait((answer,))
            if answer.done():
                answer.result()
        finally:
            for task in (sender, answer):
                task.cancel()
            await asyncio.gather(sender, answer, return_exceptions=True)

    async def _send(self, exchange: Exchange, request: h11.Request, receive: Receive) -> None:
        """Pass the request on, then wait until the client leaves."""
        await exchange.send(request)
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if size > self._limits.body:
                raise TooLargeError
            if message.get("body"):
                await exchange.send(h11.Data(data=message["body"]))
            more = message.get("more_body", False)
        await exchange.send(h11.EndOfMessage())
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _answer(self, exchange: Exchange, send: Send) -> None:
        try:
            head = await exchange.head()
        except TimeoutError as error:
            raise ProxyError(504, f"the dashboard took longer than {self._limits.timeout_s:g} s") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise ProxyError(502, f"the dashboard broke off: {type(error).__name__}") from error
        headers = end_to_end(head.headers, frozenset((b"date", b"server")))
        exchange.answered = True
        await send({"type": "http.response.start", "status": head.status_code, "headers": headers})
        with contextlib.suppress(OSError, h11.RemoteProtocolError):
            async for block in exchange.body():
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        # Cut off: the answer is left without its end, and so the client's connection is closed.
        log.warning("the dashboard broke off in its answer")
