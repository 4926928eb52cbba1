"""The link of an app node: forwards the IB API from loopback to the gateway host that takes connections.

A standby refuses, so what accepts is the active one, and a hand-over needs no new settings on app nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .settings import BAD_CONFIGURATION, PATH, SettingsError, load
from .streams import Endpoint, keep_alive, on_stop, tell_systemd

LOG = logging.getLogger("pst.link")

ACCEPT_S = 1.0  # for a gateway host to take a connection, before the next one is tried
CHUNK = 1 << 16


class Link:
    """Forwards each connection to the first gateway that accepts it; begins with the one that did last."""

    def __init__(self, gateways: Sequence[Endpoint], accept_s: float = ACCEPT_S) -> None:
        self._gateways = list(gateways)
        self._accept_s = accept_s
        self._last: Endpoint | None = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            found = await self._connect()
            if found is None:
                return
            replies, gateway = found
            keep_alive(gateway)
            try:
                await asyncio.gather(_forward(reader, gateway), _forward(replies, writer))
            finally:
                gateway.transport.abort()
        except OSError as error:
            LOG.info("a connection ended: %s", error)
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        seen = []
        for gateway in sorted(self._gateways, key=lambda one: one != self._last):
            try:
                async with asyncio.timeout(self._accept_s):
                    streams = await asyncio.open_connection(gateway.host, gateway.port)
            except OSError as error:
                seen.append(f"{gateway}: {error.strerror or 'no answer in time'}")
                continue
            if gateway != self._last:
                LOG.info("the gateway is %s", gateway)
                self._last = gateway
            return streams
        LOG.warning("no gateway takes connections: %s", "; ".join(seen))
        return None


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass bytes on, no faster than they are taken, and the end of them as well."""
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    with contextlib.suppress(OSError):  # the other direction has ended already
        sink.write_eof()
        await sink.drain()


async def run(listen: Endpoint, gateways: Sequence[Endpoint]) -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    on_stop(stopped.set)
    server = await asyncio.start_server(Link(gateways).accept, listen.host, listen.port)
    LOG.info("%s to the first of %s", listen, ", ".join(map(str, gateways)))
    tell_systemd("READY=1")
    await stopped.wait()
    server.close()


def main(path: Path = PATH) -> int:
    """Run the link with the settings in trading.json; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = load(path).link
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_CONFIGURATION
    asyncio.run(run(Endpoint.parse(settings.listen), [Endpoint.parse(one) for one in settings.gateways]))
    return 0
