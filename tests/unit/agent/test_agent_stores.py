"""The probes of Redis and the gateway, against servers of this process that speak their protocols."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import hiredis
import pytest
from pst_agent import config as agent_config
from pst_agent.stores import GatewayProbe, RedisError, RedisProbe
from servers import localhost_pair, serving
from test_agent import SETTINGS

Answer = Callable[[list[str]], bytes | None]
OK = b"+OK\r\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no silent Sentinel."""
    monkeypatch.setattr(RedisProbe, "SENTINEL_TIMEOUT_S", 10)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localhost_pair(tmp_path_factory.mktemp("tls"))


class Redis:
    """A Redis or a Sentinel: takes one login, answers as told, None for never; keeps the commands."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.commands, self.port, self.connections = answer, list[list[str]](), 0, 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader(encoding="utf-8")
        while data := await reader.read(4096):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.commands.append(command)
                if command[0] == "AUTH":
                    said: bytes | None = OK if command[1:] == ["app", "secret"] else b"-WRONGPASS\r\n"
                else:
                    said = self.answer(command)
                if said is not None:
                    writer.write(said)

    @asynccontextmanager
    async def listening(self, pair: Path) -> AsyncIterator[Redis]:
        async with serving(self._serve, pair=pair) as self.port:
            yield self

    @property
    def names(self) -> list[str]:
        return [command[0] for command in self.commands]


def names(master: Redis) -> Answer:
    """A Sentinel that knows the master."""
    return lambda _: b"*2\r\n$9\r\nlocalhost\r\n$%d\r\n%d\r\n" % (len(str(master.port)), master.port)


def probe(pair: Path, *sentinels: Redis | int, password: str = "secret") -> RedisProbe:
    ports = [entry if isinstance(entry, int) else entry.port for entry in sentinels]
    settings = SETTINGS | {
        "tls": SETTINGS["tls"] | {"ca": str(pair)},
        "redis": SETTINGS["redis"] | {"sentinels": [f"localhost:{port}" for port in ports]},
    }
    path = pair.with_name("app.json")
    path.write_text(json.dumps(settings))
    secrets = agent_config.Secrets("t", "m", password)
    return RedisProbe(agent_config.load(path)[0], secrets, ssl.create_default_context(cafile=pair))


def run(scenario: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))  # type: ignore[arg-type]


def test_the_master_is_found_once_and_written_on_one_connection(tls: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            master = await stack.enter_async_context(Redis(lambda _: OK).listening(tls))
            sentinel = await stack.enter_async_context(Redis(names(master)).listening(tls))
            asked = probe(tls, sentinel)
            for _ in range(3):
                await asked()
            asked.close()
            assert sentinel.commands == [["AUTH", "app", "secret"], ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pst"]]
            assert master.names == ["AUTH", "SET", "SET", "SET"]
            assert master.connections == 1
            assert master.commands[1][1] == "app:heartbeat:app1/blue"
            assert master.commands[1][3:] == ["EX", "60"]

    run(scenario())


def test_a_sentinel_that_is_away_silent_or_ignorant_is_passed_over(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisProbe, "SENTINEL_TIMEOUT_S", 3)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            master = await stack.enter_async_context(Redis(lambda _: OK).listening(tls))
            silent = await stack.enter_async_context(Redis(lambda _: None).listening(tls))
            ignorant = await stack.enter_async_context(Redis(lambda _: b"*-1\r\n").listening(tls))
            knows = await stack.enter_async_context(Redis(names(master)).listening(tls))
            asked = probe(tls, 1, silent, ignorant, knows)
            await asked()
            asked.close()
            assert master.names == ["AUTH", "SET"]

    run(scenario())


def test_nobody_who_knows_the_master_is_told_for_each(tls: Path) -> None:
    async def scenario() -> None:
        async with Redis(lambda _: b"*-1\r\n").listening(tls) as ignorant:
            with pytest.raises(RedisError, match=r"ConnectionRefusedError.*; localhost: knows no master 'pst'"):
                await probe(tls, 1, ignorant)()

    run(scenario())


def test_a_master_that_was_demoted_is_an_error_and_the_sentinels_are_asked_again(tls: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            said = iter([OK, b"-READONLY You can't write against a read only replica.\r\n"])
            old = await stack.enter_async_context(Redis(lambda _: next(said)).listening(tls))
            new = await stack.enter_async_context(Redis(lambda _: OK).listening(tls))
            current = [old]
            sentinel = await stack.enter_async_context(Redis(lambda words: names(current[0])(words)).listening(tls))
            asked = probe(tls, sentinel)
            await asked()
            with pytest.raises(RedisError, match="SET: READONLY"):
                await asked()
            current[0] = new
            await asked()
            asked.close()
            assert new.names == ["AUTH", "SET"]

    run(scenario())


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_commands(tls: Path) -> None:
    """A time-out leaves the connection with an answer to come: it is not used again."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            said = iter([None, OK])
            was_asked = asyncio.Event()

            def answer(_: list[str]) -> bytes | None:
                was_asked.set()
                return next(said)

            master = await stack.enter_async_context(Redis(answer).listening(tls))
            sentinel = await stack.enter_async_context(Redis(names(master)).listening(tls))
            asked = probe(tls, sentinel)
            first = asyncio.create_task(asked())
            await was_asked.wait()
            first.cancel()  # what a time-out does
            with pytest.raises(asyncio.CancelledError):
                await first
            await asked()
            asked.close()
            assert master.connections == 2

    run(scenario())


def test_a_wrong_password_is_told_without_it(tls: Path) -> None:
    async def scenario() -> None:
        async with Redis(lambda _: OK).listening(tls) as sentinel:
            with pytest.raises(RedisError, match="AUTH: WRONGPASS") as caught:
                await probe(tls, sentinel, password="hidden")()
            assert "hidden" not in str(caught.value)

    run(scenario())


# --- the gateway


def asked(answer: bytes | None) -> bytes:
    """Shake hands with a gateway that gives this answer, or none; return what it was sent."""
    got = b""

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        got = await reader.readexactly(4)
        got += await reader.readexactly(4)
        got += await reader.readexactly(struct.unpack(">I", got[4:])[0])
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)

    async def scenario() -> None:
        async with serving(gateway) as port, asyncio.timeout(0.5 if answer is None else 10):
            await GatewayProbe(f"127.0.0.1:{port}")()

    asyncio.run(scenario())
    return got


def frame(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def test_a_gateway_that_answers_the_handshake_is_up() -> None:
    assert asked(frame(b"176\x0020261120 12:00:00 EST\0")) == b"API\0" + frame(b"v100..176")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, TimeoutError),  # frozen: the port is open
        (b"", asyncio.IncompleteReadError),
        (frame(b"not a number\0"), ConnectionError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConnectionError),
    ],
    ids=["frozen", "closed", "no version", "another protocol"],
)
def test_an_open_port_is_not_a_gateway(answer: bytes | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        asked(answer)
