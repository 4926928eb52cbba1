"""The simulator, over real sockets, with a client of the standard library."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gateway_simulator.__main__ import has_login
from tests.gateway_simulator.client import Client
from tests.gateway_simulator.protocol import ErrorCode, Reply, Request
from tests.gateway_simulator.server import Gateway, Mode
from tests.gateway_simulator.state import Book, OrderLog, Position


class Running:
    """A gateway in a thread of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    async def _run(self) -> None:
        with Book("DU1", OrderLog(self.log)) as book:
            self.gateway, self._loop = Gateway(book), asyncio.get_running_loop()
            api = await asyncio.start_server(self.gateway.serve, "127.0.0.1", 0)
            command = await asyncio.start_server(self.gateway.command, "127.0.0.1", 0)
            self.port, self.command_port = (server.sockets[0].getsockname()[1] for server in (api, command))
            self._ready.set()
            await self.gateway.stopped.wait()
            api.close()
            command.close()
            self.gateway.drop_sessions()

    def client(self, client_id: int | None = None, timeout: float = 5.0) -> Client:
        return Client("127.0.0.1", self.port, client_id, timeout)

    def command(self, line: str) -> str:
        with socket.create_connection(("127.0.0.1", self.command_port), 5) as connection:
            connection.sendall(f"{line}\n".encode())
            return connection.makefile().readline().strip()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.gateway.stopped.set)
        self._thread.join(5)


@contextmanager
def running(log: Path) -> Iterator[Running]:
    simulator = Running(log)
    try:
        yield simulator
    finally:
        simulator.stop()


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "orders.jsonl") as started:
        yield started


def statuses(messages: list[list[str]]) -> list[str]:
    return [message[2] for message in messages if int(message[0]) == Reply.ORDER_STATUS]


def test_session_names_the_account_and_the_next_order(simulator: Running) -> None:
    with simulator.client(1) as client:
        messages = list(client.until(Reply.NEXT_VALID_ID))
    assert client.server_version == 176
    assert messages == [["15", "1", "DU1"], ["9", "1", "1"]]


def test_market_order_is_submitted_then_filled_and_logged(simulator: Running) -> None:
    with simulator.client(7) as client:
        client.place(client.next_order_id(), "IBM", 100)
        messages = list(client.until(Reply.COMMISSION))
    assert statuses(messages) == ["Submitted", "Filled"]
    client_ids = {message[9] for message in messages if int(message[0]) == Reply.ORDER_STATUS}
    assert client_ids == {"7"}, "clients drop the status of another client's order"
    events = [json.loads(line) for line in simulator.log.read_text().splitlines()]
    assert [(event["event"], event["client_id"], event["quantity"]) for event in events] == [
        ("placed", 7, 100.0),
        ("filled", 7, 100.0),
    ]


def test_limit_order_rests_until_it_is_cancelled(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", -10, "LMT", "123.5")
        assert statuses(list(client.until(Reply.ORDER_STATUS))) == ["Submitted"]
        client.send(Request.OPEN_ORDERS, 1)
        assert statuses(list(client.until(Reply.OPEN_ORDER_END))) == ["Submitted"]
        client.send(Request.CANCEL_ORDER, 1, order_id, "")
        messages = list(client.until(Reply.ERROR))
        assert (statuses(messages), messages[-1][3]) == (["Cancelled"], str(ErrorCode.ORDER_CANCELLED.value))
        client.send(Request.OPEN_ORDERS, 1)
        assert statuses(list(client.until(Reply.OPEN_ORDER_END))) == []


@pytest.mark.parametrize(("quantity", "what_if"), [(0, False), (5, True)])
def test_order_that_must_not_trade_is_refused(simulator: Running, quantity: float, what_if: bool) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        if what_if:
            contract = ("0", "IBM", "STK", "", "0", "", "", "SMART", "", "USD", "", "")
            order = ("BUY", quantity, "MKT", "", "", "DAY", "", "", "", 0, "")
            algorithm = ("Adaptive", 1, "adaptivePriority", "Normal")
            client.send(3, order_id, *contract, "", "", *order, *[""] * 56, *algorithm, "", 1, "")
        else:
            client.place(order_id, "IBM", quantity)
        refusals = [m for m in client.until(Reply.ERROR) if m[2] == str(order_id)]
        while not refusals:
            refusals = [m for m in client.until(Reply.ERROR) if m[2] == str(order_id)]
    assert refusals[0][3] == str(ErrorCode.ORDER_REJECTED.value)
    assert simulator.log.read_text() == ""


def test_order_id_is_taken_once(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        for _ in range(2):
            client.place(order_id, "IBM", 1)
        codes = [message[3] for message in client.until(Reply.COMMISSION) if int(message[0]) == Reply.ERROR]
        codes += [client.receive()[3]]
    assert str(ErrorCode.DUPLICATE_ORDER_ID.value) in codes
    assert simulator.log.read_text().count('"filled"') == 1


def test_fills_outlive_the_process_and_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "orders.jsonl"
    with running(log) as first, first.client(1) as client:
        client.place(client.next_order_id(), "IBM", 100)
        list(client.until(Reply.COMMISSION))
    with log.open("a") as file:
        file.write('{"event": "pla')
    with running(log) as second, second.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 50)
        list(client.until(Reply.COMMISSION))
        client.send(Request.POSITIONS, 1)
        positions = [m for m in client.until(Reply.POSITION_END) if int(m[0]) == Reply.POSITION]
        client.send(Request.EXECUTIONS, 3, 4, *[""] * 7)
        fills = [m for m in client.until(Reply.EXECUTION_END) if int(m[0]) == Reply.EXECUTION]
    assert order_id == 2
    assert [position[-2] for position in positions] == ["150.0"]
    assert len({fill[14] for fill in fills}) == len(fills) == 2
    with running(log) as third:
        assert len(third.gateway.book.fills) == 2


def test_account_is_answered_both_ways(simulator: Running) -> None:
    with simulator.client(1) as client:
        client.send(Request.ACCOUNT_UPDATES, 2, 1, "DU1")
        values = {m[2] for m in client.until(Reply.ACCOUNT_DOWNLOAD_END) if int(m[0]) == Reply.ACCOUNT_VALUE}
        client.send(Request.ACCOUNT_UPDATES_MULTI, 1, 8, "DU1", "", 1)
        multi = {m[5] for m in client.until(Reply.ACCOUNT_UPDATE_MULTI_END) if int(m[0]) == Reply.ACCOUNT_UPDATE_MULTI}
        client.send(Request.CURRENT_TIME, 1)
        *_, now = client.until(Reply.CURRENT_TIME)
    assert "NetLiquidation" in values
    assert values == multi
    assert int(now[2]) > 1_700_000_000


def test_client_id_in_use_is_refused_and_free_again_after(simulator: Running) -> None:
    with simulator.client(1) as first:
        first.next_order_id()
        with simulator.client(1) as second:
            assert second.receive()[3] == str(ErrorCode.CLIENT_ID_IN_USE.value)
            with pytest.raises(EOFError):
                second.receive()
    while simulator.command("STATE") != "OK normal clients=[]":
        pass
    with simulator.client(1) as third:
        assert third.next_order_id() == 1


def test_frozen_gateway_accepts_and_is_silent_until_it_thaws(simulator: Running) -> None:
    assert simulator.command("MODE frozen") == "OK frozen"
    with pytest.raises(TimeoutError):
        simulator.client(timeout=0.3)
    assert simulator.command("MODE normal") == "OK normal"
    with simulator.client() as client:
        assert client.server_version == 176


def test_gateway_without_login_answers_the_handshake_only(simulator: Running) -> None:
    simulator.command("MODE not_logged_in")
    with simulator.client(1, timeout=0.3) as client:
        assert client.server_version == 176
        with pytest.raises(TimeoutError):
            client.receive()


def test_commands(simulator: Running) -> None:
    with simulator.client(3) as client:
        client.next_order_id()
        assert simulator.command("STATE") == "OK normal clients=[3]"
        assert simulator.command("restart") == "OK Restarting"
        with pytest.raises(EOFError):
            list(client.until(Reply.COMMISSION))
    assert simulator.command("MODE sideways") == "ERROR Invalid command: MODE sideways"
    assert simulator.command("") == "ERROR Invalid command:"


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"API\0\0\0\0\x09v200..226", b"API\0\xff\xff\xff\xff"])
def test_stranger_is_cut(simulator: Running, greeting: bytes) -> None:
    with socket.create_connection(("127.0.0.1", simulator.port), 5) as connection:
        connection.sendall(greeting)
        assert connection.recv(1) == b""


def test_position_average() -> None:
    position = Position()
    for quantity, price in [(10, 100.0), (10, 110.0), (-5, 120.0), (-20, 90.0)]:
        position.add(quantity, price)
    assert (position.quantity, position.average_cost) == (-5, 90.0)


def test_login(tmp_path: Path) -> None:
    settings = tmp_path / "config.ini"
    settings.write_text("# IbPassword=no\nIbLoginId=user\nIbPassword=\n")
    assert not has_login(settings)
    settings.write_text("IbLoginId=user\nIbPassword=a=b\n")
    assert has_login(settings)


def test_mode_names_are_what_the_command_takes() -> None:
    assert [mode.value for mode in Mode] == ["normal", "frozen", "not_logged_in"]
