"""The gate, over real sockets: a gateway that notes what reaches it, clients with addresses of their own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pst_trading import gate as gate_module
from pst_trading import ibapi
from pst_trading.gate import Gate
from pst_trading.gate_settings import GateSettings, MongoSettings, TradingWindow, WatchSettings, load, main
from pst_trading.settings import SettingsError
from pst_trading.watch import NO_LEASE, Lease, LeaseReadError, Watch, lease_of

APP1, APP2, READER, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
MONGODB = MongoSettings(("m:27017",), "rs", "gate", "/etc/hostname", "pst", "")
WINDOW = TradingWindow("00:01", "19:45", ("Mon", "Fri"))
WATCH = WatchSettings(WINDOW, "127.0.0.1:1", 997, "paper", "/e", "/s", 15, 5, 180, 0)
TTL = 15.0
NOW = ibapi.frame(49, 1)


def held(
    host: str | None, epoch: int = 7, remaining: float = TTL, *, renewals: int = 1, revoked: bool = False
) -> Lease:
    return Lease(epoch, renewals, host, "blue" if host else "", remaining, TTL, revoked)


def order(order_id: int, symbol: str = "IBM", reference: str = "") -> bytes:
    contract = ("0", symbol, "STK", "", "0.0", "", "", "SMART", "", "USD", "", "", "", "")
    marked = reference or f"pst:7:{order_id}"
    return ibapi.frame(3, order_id, *contract, "BUY", 1, "MKT", "", "", "DAY", "", "", "", 0, marked)


class Leases:
    """The lease as MongoDB would tell it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.failure = ""
        self.reads = 0

    def read(self) -> Lease:
        self.reads += 1
        if self.failure:
            raise LeaseReadError(self.failure)
        return self.lease


class Gateway:
    """Answers the handshake and the time, and keeps every byte that it has read."""

    def __init__(self) -> None:
        self.offers: list[bytes] = []
        self.frames: list[bytes] = []
        self.ended = 0
        self.awake = asyncio.Event()
        self.awake.set()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            assert await reader.readexactly(4) == b"API\0"
            self.offers.append(await self._body(reader))
            writer.write(ibapi.frame(176, "20261122 12:00:00 EST"))
            while True:
                body = await self._body(reader)
                await self.awake.wait()
                self.frames.append(ibapi.raw_frame(body))
                if self.frames[-1] == NOW:
                    writer.write(ibapi.frame(49, 1, 1_700_000_000))
        self.ended += 1
        writer.close()

    async def _body(self, reader: asyncio.StreamReader) -> bytes:
        await self.awake.wait()
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

    @property
    def orders(self) -> list[bytes]:
        return [one for one in self.frames if ibapi.order_message(one[4:])]


class Client:
    """A connection to the gate, from an address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> list[str]:
        async with asyncio.timeout(5):
            head = await self.reader.readexactly(4)
            return ibapi.fields_of(await self.reader.readexactly(int.from_bytes(head, "big")))

    async def alive(self) -> bool:
        await self.send(NOW)
        return (await self.receive())[0] == "49"

    async def hung_up_on(self) -> bool:
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                assert await self.reader.read() == b""
        return True


class World:
    """A gate between a gateway and its clients."""

    def __init__(self, folder: Path) -> None:
        self.shift = 0.0
        self.leases = Leases(held("app1"))
        self.watch = Watch(self.leases, self.clock)
        self.closed = folder / "closed"
        self.log = folder / "orders.jsonl"
        self.gateway = Gateway()
        self.clients: list[Client] = []

    def clock(self) -> float:
        return time.monotonic() + self.shift

    async def start(self, nodes: dict[str, str] | None = None) -> None:
        self._upstream = await asyncio.start_server(self.gateway.serve, "127.0.0.1", 0)
        self.upstream_port = self._upstream.sockets[0].getsockname()[1]
        gate_settings = GateSettings(
            app_nodes={"app1": APP1, "app2": APP2},
            mongodb=MONGODB,
            watch=WATCH,
            listen="127.0.0.1:1",
            upstream=f"127.0.0.1:{self.upstream_port}",
            placement="trading",
            readers=(READER,),
            poll_s=1,
            max_version=178,
            order_log=str(self.log),
        )
        self.gate = Gate(gate_settings, self.watch, self.closed, self.clock)
        self._server = await asyncio.start_server(self.gate.accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.gateway.awake.set()
        for client in self.clients:
            client.writer.transport.abort()
        self._server.close()
        self._upstream.close()
        self.gate.close()
        for writer in self.gateway.writers:
            writer.transport.abort()
        self.watch.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)

    async def raw(self, address: str) -> Client:
        streams = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        self.clients.append(Client(*streams))
        return self.clients[-1]

    async def client(self, address: str, offer: bytes = b"v157..178") -> Client:
        client = await self.raw(address)
        await client.send(ibapi.GREETING + ibapi.raw_frame(offer))
        assert (await client.receive())[0] == "176"
        return client

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  what is waited for happens elsewhere
                await asyncio.sleep(0.002)


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario in a world of its own."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            world = World(tmp_path)
            await world.start()
            try:
                async with asyncio.timeout(20):
                    await scenario(world)
            finally:
                await world.stop()

        asyncio.run(main())

    return run


# Who may order --------------------------------------------------------------------------------------------------------


def test_the_holders_messages_pass_byte_by_byte_and_only_the_version_is_capped(play):
    async def scenario(world):
        client = await world.client(APP1, b"v100..226")
        sent = [ibapi.start_api(105), order(1), ibapi.cancel_order(176, 1), ibapi.frame(58, 1), b"\0\0\0\x0417\0\xff"]
        await client.send(b"".join(sent))
        assert await client.alive()
        assert world.gateway.offers == [b"v145..178"]
        assert world.gateway.frames == [*sent, NOW]
        assert [(line["message"], line["verdict"]) for line in world.lines()] == [
            ("placeOrder", "passed"),
            ("cancelOrder", "passed"),
            ("reqGlobalCancel", "passed"),
        ]
        first = world.lines()[0]
        assert first.pop("time").endswith("+00:00")
        assert first == {
            "address": APP1,
            "host": "app1",
            "client_id": 105,
            "order_id": 1,
            "message": "placeOrder",
            "reference": "pst:7:1",
            "epoch": 7,
            "verdict": "passed",
            "reason": "",
        }

    play(scenario)


def test_another_host_is_refused_by_id_and_keeps_its_connection(play):
    async def scenario(world):
        client = await world.client(APP2)
        for message, request_id in ((order(41), "41"), (ibapi.frame(58, 1), "-1")):
            await client.send(message)
            kind, _, seen, code, text, *_ = await client.receive()
            assert (kind, seen, code) == ("4", request_id, "321")
            assert "app1/blue holds the lease of trading (epoch 7), this is app2" in text
        assert await client.alive()
        assert world.gateway.frames == [NOW]
        assert {line["verdict"] for line in world.lines()} == {"refused"}
        assert len(world.lines()) == 2

    play(scenario)


def test_a_refused_cancellation_cuts_since_the_client_would_take_the_error_for_the_end_of_its_order(play):
    async def scenario(world):
        client = await world.client(APP2)
        await client.send(ibapi.cancel_order(176, 42))
        assert await client.hung_up_on()
        assert [line["verdict"] for line in world.lines()] == ["refused"]
        assert world.gateway.frames == []

    play(scenario)


def test_a_reader_reads_while_the_lease_cannot_be_read_and_never_orders(play):
    async def scenario(world):
        world.leases.failure = "no primary"
        client = await world.client(READER)
        assert await client.alive()
        await client.send(order(1))
        assert f"{READER} may not order" in (await client.receive())[4]
        assert world.leases.reads == 0

    play(scenario)


def test_a_stranger_is_not_let_in(play):
    async def scenario(world):
        client = await world.raw(STRANGER)
        assert await client.hung_up_on()
        assert world.gateway.writers == []

    play(scenario)


@pytest.mark.parametrize(
    ("lease", "reason"),
    [
        (held(None), "nobody holds the lease of trading"),
        (held("app1", revoked=True), "trading is revoked"),
        (held("app1", remaining=0.0), "has not been seen renewed in time"),
        (held("app3"), "app3/blue holds the lease of trading (epoch 7), this is app1"),
        (NO_LEASE, "nobody holds the lease of trading"),
    ],
)
def test_nobody_orders_without_the_lease(play, lease, reason):
    async def scenario(world):
        world.leases.lease = lease
        client = await world.client(APP1)
        await client.send(order(1))
        assert reason in (await client.receive())[4]
        assert world.gateway.orders == []

    play(scenario)


def test_the_kill_switch_stops_the_holder_at_once(play):
    async def scenario(world):
        client = await world.client(APP1)
        await client.send(order(1))
        assert await client.alive()
        world.closed.touch()
        await client.send(order(2))
        assert "the gate is closed" in (await client.receive())[4]
        world.closed.unlink()
        await client.send(order(3))
        assert await client.alive()
        assert world.gateway.orders == [order(1), order(3)]

    play(scenario)


def test_a_change_that_is_refused_cuts_since_the_order_lives_on_at_the_broker(play):
    async def scenario(world):
        client = await world.client(APP1)
        await client.send(order(1))
        assert await client.alive()
        world.closed.touch()
        await client.send(order(1))
        assert await client.hung_up_on()
        assert world.gateway.orders == [order(1)]

    play(scenario)


# The lease moves ------------------------------------------------------------------------------------------------------


def test_a_new_holder_need_not_wait_for_the_poll_and_the_old_one_is_cut(play):
    async def scenario(world):
        old, new = await world.client(APP1), await world.client(APP2)
        await old.send(order(1))
        assert await old.alive()
        world.leases.lease = held("app2", 8)
        newer = await world.client(APP2)
        await newer.send(order(2))
        assert await newer.alive()
        assert await old.hung_up_on()
        assert await new.alive(), "a connection that never ordered is left alone"
        assert world.gateway.orders == [order(1), order(2)]
        assert world.gateway.ended == 1

    play(scenario)


def test_the_poll_cuts_the_old_holder_without_anybody_ordering(play):
    async def scenario(world):
        ordered, silent = await world.client(APP1), await world.client(APP1)
        await ordered.send(order(1))
        assert await ordered.alive()
        world.leases.lease = held(None)
        await world.gate.refresh()
        assert await ordered.hung_up_on()
        assert await silent.alive()

    play(scenario)


def test_an_order_of_a_frozen_trader_that_thaws_is_not_forwarded(play):
    async def scenario(world):
        trader = await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        world.leases.lease = held("app2", 8)
        world.shift += TTL
        await trader.send(order(2))
        assert await trader.hung_up_on()
        await world.until(lambda: len(world.lines()) == 2)
        assert world.lines()[1]["verdict"] == "refused"
        assert world.gateway.orders == [order(1)]

    play(scenario)


def test_an_order_that_waited_in_the_gate_is_judged_when_it_is_forwarded(play):
    async def scenario(world):
        trader = await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        write = world.gate.orders.write

        def slow_disk(record):
            write(record)
            world.shift += TTL

        world.gate.orders.write = slow_disk
        await trader.send(order(2))
        assert "has not been seen renewed in time" in (await trader.receive())[4]
        assert [line["verdict"] for line in world.lines()] == ["passed", "passed", "refused"]
        assert world.gateway.orders == [order(1)]

    play(scenario)


def test_orders_stop_within_the_ttl_when_the_lease_cannot_be_read_and_go_on_afterwards(play):
    async def scenario(world):
        trader = await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        world.leases.failure = "no primary"
        await world.gate.refresh()
        world.shift += TTL - 5
        await trader.send(order(2))
        assert await trader.alive()
        world.shift += 5
        await trader.send(order(3))
        assert "the lease cannot be read: no primary" in (await trader.receive())[4]
        world.leases.failure = ""
        world.leases.lease = held("app1", renewals=9)
        await trader.send(order(4))
        assert await trader.alive()
        assert world.gateway.orders == [order(1), order(2), order(4)]

    play(scenario)


def test_the_first_order_of_a_connection_asks_afresh(play):
    async def scenario(world):
        trader, second = await world.client(APP1), await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        reads = world.leases.reads
        await trader.send(order(2))
        assert await trader.alive()
        assert world.leases.reads == reads, "while the view is good, orders do not wait for MongoDB"
        world.leases.failure = "no primary"
        await second.send(order(3))
        assert "the lease cannot be read" in (await second.receive())[4]

    play(scenario)


def test_an_app_node_is_not_let_in_while_nobody_knows_who_holds_the_lease(play):
    async def scenario(world):
        world.leases.failure = "no primary"
        client = await world.raw(APP1)
        assert await client.hung_up_on()
        assert world.gateway.writers == []

    play(scenario)


def test_a_connection_from_before_the_grant_does_not_order_in_it(play):
    """The host lost its lease, and got it back: what was connected in between is of no process of the new epoch."""

    async def scenario(world):
        before = await world.client(APP1)
        world.leases.lease = held("app2", 8)
        await world.gate.refresh()
        world.leases.lease = held("app1", 9)
        after = await world.client(APP1)
        await before.send(order(1))
        assert "older than epoch 9 of the lease; wanted: a new connection" in (await before.receive())[4]
        await after.send(order(2))
        assert await after.alive()
        assert world.gateway.orders == [order(2)]

    play(scenario)


def test_what_a_hanging_gateway_has_not_read_yet_is_read_before_anybody_new_is_let_in(play):
    async def scenario(world):
        trader = await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        world.gateway.awake.clear()
        await trader.send(order(2))
        await world.until(lambda: len(world.lines()) == 2)
        world.leases.lease = held("app2", 8)
        await world.gate.refresh()
        assert await trader.hung_up_on()
        arriving = asyncio.create_task(world.client(APP2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(arriving), 0.3)
        assert len(world.gateway.writers) == 1
        world.gateway.awake.set()
        successor = await arriving
        assert world.gateway.orders == [order(1), order(2)], "read before the successor could ask for open orders"
        assert await successor.alive()

    play(scenario)


def test_a_gateway_that_never_hangs_up_lets_nobody_in(play, monkeypatch):
    monkeypatch.setattr(gate_module, "SETTLE_S", 0.2)

    async def scenario(world):
        trader = await world.client(APP1)
        await trader.send(order(1))
        assert await trader.alive()
        world.gateway.awake.clear()
        await trader.send(order(2))
        await world.until(lambda: len(world.lines()) == 2)
        trader.writer.transport.abort()
        await world.until(lambda: any(one.ended for one in world.gate._open))
        client = await world.raw(APP1)
        assert await client.hung_up_on()
        assert await (await world.raw(STRANGER)).hung_up_on()

    play(scenario)


# Anything, in any order -----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.sampled_from(["app1", "app2", None])),
        st.tuples(st.just("order"), st.sampled_from(["app1", "app2"])),
        st.tuples(st.just("connect"), st.sampled_from(["app1", "app2"])),
        st.tuples(st.just("mongodb"), st.booleans()),
        st.tuples(st.just("gateway"), st.booleans()),
        st.tuples(st.sampled_from(["poll", "pause", "hang up"]), st.none()),
    ),
    min_size=5,
    max_size=25,
)


class Story:
    """Plays steps, and remembers who held which epoch."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.holders: dict[int, str | None] = {7: "app1"}
        self.clients: dict[str, Client] = {}
        self.sent = 0

    async def step(self, verb: str, what: Any) -> None:
        world = self.world
        if verb == "lease":
            epoch = max(self.holders) + 1
            self.holders[epoch] = what
            world.leases.lease = held(what, epoch)
        elif verb == "order" and what in self.clients:
            self.sent += 1
            before = len(world.lines())
            with suppress(ConnectionError):
                await self.clients[what].send(order(self.sent))
            with suppress(TimeoutError):  # cut off, or waiting behind another one
                async with asyncio.timeout(0.1):
                    while len(world.lines()) == before:  # noqa: ASYNC110  the log is the gate's
                        await asyncio.sleep(0.002)
        elif verb == "connect":
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(0.3):
                    self.clients[what] = await world.client({"app1": APP1, "app2": APP2}[what])
        elif verb == "mongodb":
            world.leases.failure = "" if what else "no primary"
        elif verb == "gateway":
            world.gateway.awake.set() if what else world.gateway.awake.clear()
        elif verb == "pause":
            world.shift += TTL / 3
        elif verb == "hang up" and self.clients:
            self.clients.popitem()[1].writer.transport.abort()
        elif verb == "poll":
            await world.gate.refresh()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_whatever_happens_orders_arrive_in_the_order_of_the_epochs_and_from_their_holders(play, monkeypatch, steps):
    """The gateway never reads an order of an older epoch after one of a newer, nor one of a host that did not hold."""
    monkeypatch.setattr(gate_module, "SETTLE_S", 0.05)

    async def scenario(world):
        world.log.unlink(missing_ok=True)
        story = Story(world)
        await story.step("connect", "app1")
        for verb, what in steps:
            await story.step(verb, what)
        world.gateway.awake.set()
        passed = {line["order_id"]: line for line in world.lines() if line["verdict"] == "passed"}
        await world.until(lambda: len(world.gateway.orders) == len(passed))
        arrived = [passed[ibapi.order_message(one[4:]).request_id] for one in world.gateway.orders]
        assert [line["epoch"] for line in arrived] == sorted(line["epoch"] for line in arrived)
        assert all(story.holders[line["epoch"]] == line["host"] for line in arrived)

    play(scenario)


# The stream -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"API\0\0\0\0\x09v201..226",
        b"GET / HTTP/1.1\r\n\r\n",
        b"63\0",
        b"API\0\0\0\0\x09v157..178" + b"\0\x20\0\0",
        b"API\0\0\0\0\x09v157..178" + ibapi.raw_frame(b"03\x007\x00"),
        b"API\0\0\0\0\x09v157..178" + ibapi.raw_frame(b"203\x007\x00"),
        b"API\0\0\0\0\x09v157..178" + ibapi.raw_frame(b""),
    ],
)
def test_what_is_not_the_api_is_cut(play, sent):
    async def scenario(world):
        client = await world.raw(APP1)
        await client.send(sent)
        if len(sent) == 3:
            client.writer.write_eof()
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                await client.reader.read()
        assert world.gateway.frames == []

    play(scenario)


def test_a_client_that_says_nothing_is_not_kept(play, monkeypatch):
    monkeypatch.setattr(gate_module, "CONNECT_S", 0.1)

    async def scenario(world):
        client = await world.raw(READER)
        assert await client.hung_up_on()
        await world.until(lambda: world.gateway.ended == 1)

    play(scenario)


def test_a_refusal_does_not_land_inside_another_message(play):
    async def scenario(world):
        client = await world.client(APP2)
        big = ibapi.frame(17, "x" * 300_000)
        writer = world.gateway.writers[0]
        writer.write(big[:100_000])
        await asyncio.sleep(0.05)
        await client.send(order(1))
        await world.until(lambda: len(world.lines()) == 1)
        writer.write(big[100_000:])
        assert len((await client.receive())[1]) == 300_000
        assert (await client.receive())[3] == "321"

    play(scenario)


def test_a_slow_peer_holds_the_other_back(play):
    """What waits is in the kernel's buffers and one frame of ours; unbounded, all 64 MiB would be taken."""

    async def scenario(world):
        client = await world.client(READER)
        world.gateway.awake.clear()
        message = ibapi.frame(9, "x" * 500_000)
        taken = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                for _ in range(128):
                    await client.send(message)
                    taken += len(message)
        assert taken < 32 << 20
        writer, given = world.gateway.writers[0], 0
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                for _ in range(128):
                    writer.write(message)
                    await writer.drain()
                    given += len(message)
        assert given < 32 << 20

    play(scenario)


def test_a_client_that_has_finished_still_gets_its_answers(play):
    async def scenario(world):
        client = await world.client(READER)
        world.gateway.awake.clear()
        await client.send(NOW)
        client.writer.write_eof()
        await asyncio.sleep(0.05)
        world.gateway.awake.set()
        assert (await client.receive())[0] == "49"
        assert await client.hung_up_on()

    play(scenario)


def test_a_gateway_that_hangs_up_hangs_up_on_the_client(play):
    async def scenario(world):
        client = await world.client(APP1)
        await client.send(order(1))
        assert await client.alive()
        world.gateway.writers[0].close()
        assert await client.hung_up_on()
        again = await world.client(APP1)
        assert await again.alive()

    play(scenario)


def test_a_gateway_that_is_away_hangs_up_at_once(play):
    async def scenario(world):
        world._upstream.close()
        client = await world.raw(APP1)
        assert await client.hung_up_on()

    play(scenario)


def test_an_order_log_that_cannot_be_written_stops_no_order(play, caplog):
    async def scenario(world):
        world.log.mkdir()
        client = await world.client(APP1)
        await client.send(order(1))
        assert await client.alive()
        assert world.gateway.orders == [order(1)]
        assert '"verdict": "passed"' in caplog.text
        world.log.rmdir()

    play(scenario)


def test_what_an_order_meets_at_the_gate_is_in_its_trace(play, capsys):
    async def scenario(world):
        client = await world.client(APP1)
        await client.send(ibapi.start_api(105) + order(3, reference="pst:7:3:12") + order(4, reference="mine"))
        await client.send(ibapi.cancel_order(176, 3))
        assert await client.alive()
        stranger = await world.client(APP2)
        await stranger.send(order(9, reference="pst:6:9:13"))
        assert (await stranger.receive())[0] == "4"

    play(scenario)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["order_id"], line["span"], line["sender"]) for line in said] == [
        ("12", "gate: placeOrder", "app1"),
        ("105/4", "gate: placeOrder", "app1"),
        ("12", "gate: cancelOrder", "app1"),
        ("13", "gate: placeOrder", "app2"),
    ]
    assert ["error" in line for line in said] == [False, False, False, True]


# The view -------------------------------------------------------------------------------------------------------------


def test_connections_that_ask_at_once_share_a_read_that_began_after_they_asked():
    async def main():
        leases = Leases(held("app1"))
        watch = Watch(leases)
        views = await asyncio.gather(*(watch.fresh() for _ in range(20)))
        assert leases.reads <= 2
        assert {view.lease.host for view in views} == {"app1"}
        leases.lease = held("app2", 8)
        assert (await watch.fresh()).lease.host == "app2"
        watch.close()

    asyncio.run(main())


def test_a_read_that_began_before_the_question_is_no_answer():
    async def main():
        leases = Leases(held("app1"))
        watch = Watch(leases)
        started, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        plain = leases.read

        def slow():
            seen = plain()
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(5)
            return seen

        leases.read = slow
        early = asyncio.create_task(watch.fresh())
        await started.wait()
        leases.read, leases.lease = plain, held("app2", 8)
        late = asyncio.create_task(watch.fresh())
        await asyncio.sleep(0)
        go_on.set()
        assert (await early).lease.host == "app1"
        assert (await late).lease.host == "app2"
        watch.close()

    asyncio.run(main())


def test_a_cancelled_read_is_not_taken_for_one():
    async def main():
        leases = Leases(held("app1"))
        watch = Watch(leases)
        await watch.fresh()
        loop, started = asyncio.get_running_loop(), asyncio.Event()
        plain = leases.read

        def read():
            loop.call_soon_threadsafe(started.set)
            return plain()

        leases.read, leases.lease = read, held("app2", 8)
        first = asyncio.create_task(watch.fresh())
        await asyncio.sleep(0)
        second = asyncio.create_task(watch.fresh())
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).lease.host == "app2"
        watch.close()

    asyncio.run(main())


def test_the_validity_counts_from_before_the_read():
    async def main():
        now = 100.0
        leases = Leases(held("app1", remaining=10))
        plain = leases.read

        def slow():
            nonlocal now
            now += 3
            return plain()

        leases.read = slow
        watch = Watch(leases, lambda: now)
        view = await watch.fresh()
        assert view.valid_until == 110.0
        assert not view.objection("app1", 0, 109.9)
        assert view.objection("app1", 0, 110.0)
        watch.close()

    asyncio.run(main())


def test_a_server_clock_that_was_set_back_makes_no_lease_long():
    async def main():
        now = 100.0
        leases = Leases(held("app1", remaining=75))
        watch = Watch(leases, lambda: now)
        await watch.fresh()
        now += 14.9
        view = await watch.fresh()
        assert not view.objection("app1", 0, now)
        now += 0.1
        view = await watch.fresh()
        assert "has not been seen renewed in time" in view.objection("app1", 0, now)
        leases.lease = held("app1", remaining=75, renewals=2)
        assert not (await watch.fresh()).objection("app1", 0, now)
        watch.close()

    asyncio.run(main())


DOCUMENT = {
    "epoch": 7,
    "renewals": 1,
    "holder": {"host": "app1", "colour": "blue", "instance": "i", "address": APP1},
    "ttl_ms": 15000,
    "remaining_ms": 4000,
    "revoked": None,
}


def test_the_document_of_the_lease():
    assert lease_of(DOCUMENT) == held("app1", remaining=4.0)
    assert lease_of({**DOCUMENT, "holder": None, "remaining_ms": None}) == held(None, remaining=0.0)
    assert lease_of({**DOCUMENT, "revoked": {"by": "me", "reason": "r", "at": 0}}).revoked


@pytest.mark.parametrize("change", [{"epoch": None}, {"holder": {"host": "app1"}}, {"ttl_ms": "?"}, {"holder": "app1"}])
def test_a_document_that_is_no_lease_is_no_view(change):
    with pytest.raises(LeaseReadError):
        lease_of({**DOCUMENT, **change})


# Settings -------------------------------------------------------------------------------------------------------------


def document(**changes: Any) -> dict[str, Any]:
    return {
        "listen": "10.78.0.51:4001",
        "upstream": "127.0.0.1:4101",
        "placement": "trading",
        "app_nodes": {"lab-app1": "10.78.0.21"},
        "readers": ["10.78.0.51"],
        "mongodb": {
            "hosts": ["lab-mongo1:27017"],
            "replica_set": "rs",
            "username": "gate",
            "password_file": "/etc/pst/trading/gate.password",
            "database": "pst",
            "tls_ca": "/etc/pst/pki/ca.crt",
        },
        "watch": {
            "trading_window": {"start": "00:01", "stop": "19:45", "days": ["Mon"]},
            "api": "127.0.0.1:4101",
            "client_id": 997,
            "trading_mode": "paper",
            "events": "/var/lib/ib-gateway/events.jsonl",
            "state_file": "/run/pst/gateway/state.json",
            "interval_s": 15,
            "timeout_s": 5,
            "start_timeout_s": 180,
            "restart_frozen_after_s": 0,
        },
        "poll_s": 1,
        "max_version": 178,
        "order_log": "/var/log/pst/gate-orders.jsonl",
        **changes,
    }


def test_settings_are_read(tmp_path):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(document()))
    assert load(path).app_nodes == {"lab-app1": "10.78.0.21"}
    assert main([str(path)]) == 0


def test_all_that_is_wrong_with_the_settings_is_told_at_once(tmp_path, capsys):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(document(listen="4001", max_version=201, poll=1, app_nodes={}, mongodb={})))
    with pytest.raises(SettingsError) as caught:
        load(path)
    text = str(caught.value)
    for word in ("listen: seen", "max_version: seen 201, wanted", "poll: is not a setting", "app_nodes", "mongodb"):
        assert word in text
    assert gate_module.main(path) == main([str(path)]) == 78
    assert "max_version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"app_nodes": {"a": "10.0.0.1", "b": "10.0.0.1"}}, "10.0.0.1 is there more than once"),
        ({"readers": ["10.78.0.21"]}, "10.78.0.21 is in app_nodes as well"),
    ],
)
def test_an_address_has_one_meaning(tmp_path, changes, problem):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(document(**changes)))
    with pytest.raises(SettingsError, match=problem):
        load(path)
