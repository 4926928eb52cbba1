"""The link, over real sockets: two gateway hosts, one of which takes connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from pst_trading import link as link_module
from pst_trading.link import Link
from pst_trading.streams import Endpoint

ACCEPT_S = 2  # more than a busy machine makes a connection take


class Host:
    """A gateway host that answers each line with its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken = 0
        self.endpoint = Endpoint("127.0.0.1", 0)

    async def up(self) -> Host:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.endpoint.port)
        self.endpoint = Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    def down(self) -> None:
        self._server.close()

    async def _serve(self, reader, writer):
        self.taken += 1
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(f"{self.name} {line.decode()}".encode())
                await writer.drain()
        writer.close()


class Client:
    """A client of the link."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self) -> str:
        self.writer.write(b"?\n")
        async with asyncio.timeout(20):
            return (await self.reader.readline()).decode()[:3].strip()


class World:
    """A link, and who uses it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]


@asynccontextmanager
async def linked(*gateways: Endpoint) -> AsyncIterator[World]:
    link = Link(gateways, accept_s=ACCEPT_S)
    server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
    world = World(server.sockets[0].getsockname()[1])
    try:
        yield world
    finally:
        server.close()
        for one in world.clients:
            one.writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)


def test_the_one_that_takes_connections_is_used_and_remembered():
    async def main():
        first, second = await Host("1st").up(), await Host("2nd").up()
        async with linked(first.endpoint, second.endpoint) as world:
            assert await (await world.client()).ask() == "1st"
            first.down()
            assert await (await world.client()).ask() == "2nd"
            await first.up()
            assert await (await world.client()).ask() == "2nd", (
                "the one that took the last connection is the active one"
            )
            second.down()
            assert await (await world.client()).ask() == "1st"
            assert first.taken == 2
            first.down()

    asyncio.run(main())


def test_a_host_that_does_not_answer_costs_its_time_once():
    """A host without power takes no connection and refuses none; here: a listener whose queue is full."""

    async def main():
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            fill = [socket.socket() for _ in range(4)]
            for one in fill:
                one.setblocking(False)
                with suppress(BlockingIOError):
                    one.connect(silent.getsockname())
            dead, live = Host("xxx"), await Host("2nd").up()
            dead.endpoint = Endpoint(*silent.getsockname())
            loop = asyncio.get_running_loop()
            async with linked(dead.endpoint, live.endpoint) as world:
                began = loop.time()
                assert await (await world.client()).ask() == "2nd"
                assert loop.time() - began >= ACCEPT_S
                began = loop.time()
                assert await (await world.client()).ask() == "2nd"
                assert loop.time() - began < ACCEPT_S
                live.down()
            for one in fill:
                one.close()

    asyncio.run(main())


def test_no_gateway_hangs_up_and_says_so(caplog):
    async def main():
        host = await Host("1st").up()
        host.down()
        async with linked(host.endpoint) as world:
            lost = await world.client()
            async with asyncio.timeout(5):
                with suppress(ConnectionError):
                    assert await lost.reader.read() == b""

    asyncio.run(main())
    assert "no gateway takes connections" in caplog.text


def test_a_gateway_that_hangs_up_hangs_up_on_the_client_and_the_other_way_round():
    async def main():
        closed = asyncio.Event()

        async def serve(reader, writer):
            writer.write(b"all\n")
            writer.write_eof()
            await reader.read()
            closed.set()
            writer.close()

        upstream = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with linked(Endpoint("127.0.0.1", upstream.sockets[0].getsockname()[1])) as world:
            one = await world.client()
            async with asyncio.timeout(5):
                assert await one.reader.read() == b"all\n"
                one.writer.close()
                await closed.wait()
            upstream.close()

    asyncio.run(main())


def test_settings_that_cannot_be_used_end_it_for_good(tmp_path, capsys):
    path = tmp_path / "trading.json"
    path.write_text(json.dumps({"link": {"listen": "x"}}))
    assert link_module.main(path) == 78
    assert "link.listen" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["4001", "host:", ":4001", "host:0", "host:65536", "host:x"])
def test_an_endpoint_has_both(text):
    with pytest.raises(ValueError, match="wanted: address:port"):
        Endpoint.parse(text)
