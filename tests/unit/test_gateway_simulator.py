"""The simulator, over real sockets, with a client of the standard library."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_simulator import market, oracle
from tests.gateway_simulator.__main__ import initial_mode, inside, read_settings
from tests.gateway_simulator.broker import Action, Broker, Filling, may_displace
from tests.gateway_simulator.client import Client
from tests.gateway_simulator.protocol import ErrorCode, Reply, Request
from tests.gateway_simulator.server import Gateway, Identity, Mode, dial
from tests.gateway_simulator.state import Contract, Event, Order, Position, make_record


class Loop:
    """An event loop in a thread of its own."""

    def __enter__(self) -> Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def __exit__(self, *_: object) -> None:
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Running:
    """A gateway, with a broker inside unless it is given one."""

    def __init__(self, loop: Loop, log: Path, identity: Identity | None = None, broker_port: int = 0) -> None:
        self.log, self.loop, self._broker = log, loop, None
        loop.run(self._start(identity, broker_port))

    async def _start(self, identity: Identity | None, broker_port: int) -> None:
        if not broker_port:
            self._broker = Broker("DU1", self.log, Filling(delay=0.02))
            self._broker.start()
        connect = inside(self._broker) if self._broker else partial(dial, "127.0.0.1", broker_port)
        self.gateway = Gateway(connect, identity)
        self._login = asyncio.create_task(self.gateway.stay_connected())
        self.port = await self.gateway.listen("127.0.0.1", 0)
        self._commands = await asyncio.start_server(self.gateway.command, "127.0.0.1", 0)
        self.command_port = self._commands.sockets[0].getsockname()[1]

    def client(self, client_id: int | None = None, timeout: float = 5.0) -> Client:
        return Client("127.0.0.1", self.port, client_id, timeout)

    def command(self, line: str) -> str:
        with socket.create_connection(("127.0.0.1", self.command_port), 10) as connection:
            connection.sendall(f"{line}\n".encode())
            with connection.makefile() as stream:
                return stream.readline().strip()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def _stop(self) -> None:
        self._commands.close()
        self.gateway.close()
        self._login.cancel()
        await asyncio.gather(self._login, return_exceptions=True)
        if self._broker:
            self._broker.close()

    def stop(self) -> None:
        self.loop.run(self._stop())


@contextmanager
def running(log: Path) -> Iterator[Running]:
    with Loop() as loop:
        simulator = Running(loop, log)
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


def until_status(client: Client, status: str) -> list[list[str]]:
    """Read until the next order reaches a status."""
    messages: list[list[str]] = []
    while status not in statuses(messages):
        messages.append(client.receive())
    return messages


def error_of(client: Client, request_id: int) -> str:
    """Return the code of the next error that belongs to a request."""
    while True:
        *_, message = client.until(Reply.ERROR)
        if message[2] == str(request_id):
            return message[3]


def wait_for(condition: Callable[[], bool]) -> None:
    """Ask again and again; the test's own time-out ends it."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    pytest.fail("not reached within 10 s")


# --- orders


def test_session_names_the_account_and_the_next_order(simulator: Running) -> None:
    with simulator.client(1) as client:
        messages = list(client.until(Reply.NEXT_VALID_ID))
    assert client.server_version == 176
    assert messages == [["15", "1", "DU1"], ["9", "1", "1"]]


def test_market_order_is_submitted_then_filled_and_logged(simulator: Running) -> None:
    with simulator.client(7) as client:
        client.place(client.next_order_id(), "IBM", 100, reference="pst:3:17")
        messages = list(client.until(Reply.COMMISSION))
    assert statuses(messages) == ["Submitted", "Filled"]
    client_ids = {message[9] for message in messages if int(message[0]) == Reply.ORDER_STATUS}
    assert client_ids == {"7"}, "clients drop the status of another client's order"
    assert [(event["event"], event["client_id"], event["quantity"]) for event in simulator.events()] == [
        ("placed", 7, 100.0),
        ("filled", 7, 100.0),
    ]
    placed = simulator.events()[0]
    assert (placed["reference"], placed["epoch"], placed["gateway"]) == ("pst:3:17", 3, "gateway")
    assert placed["contract"]["symbol"] == "IBM"


def test_limit_order_rests_until_it_is_cancelled(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", -10, "LMT", "123.5")
        assert statuses(list(client.until(Reply.ORDER_STATUS))) == ["Submitted"]
        client.send(Request.OPEN_ORDERS, 1)
        assert statuses(list(client.until(Reply.OPEN_ORDER_END))) == ["Submitted"]
        client.cancel(order_id)
        messages = list(client.until(Reply.ERROR))
        assert (statuses(messages), messages[-1][3]) == (["Cancelled"], str(ErrorCode.ORDER_CANCELLED.value))
        client.send(Request.OPEN_ORDERS, 1)
        assert statuses(list(client.until(Reply.OPEN_ORDER_END))) == []
        client.cancel(order_id)
        assert error_of(client, order_id) == str(ErrorCode.ORDER_NOT_CANCELLABLE.value)
        client.cancel(99)
        assert error_of(client, 99) == str(ErrorCode.ORDER_NOT_FOUND.value)


def test_marketable_limit_order_fills(simulator: Running) -> None:
    with simulator.client(1) as client:
        client.place(client.next_order_id(), "IBM", 10, "LMT", "123.5")
        assert statuses(list(client.until(Reply.COMMISSION))) == ["Submitted", "Filled"]


def test_order_is_changed_under_its_id_and_then_fills(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 10, "LMT", "1.0")
        until_status(client, "Submitted")
        client.place(order_id, "MSFT", 10, "LMT", "1.0")
        assert error_of(client, order_id) == str(ErrorCode.ORDER_DOES_NOT_MATCH.value)
        client.place(order_id, "IBM", 12, "LMT", "500.0")
        until_status(client, "Filled")
    assert [(event["event"], event["quantity"]) for event in simulator.events()] == [
        ("placed", 10.0),
        ("modified", 12.0),
        ("filled", 12.0),
    ]
    assert len({event["perm_id"] for event in simulator.events()}) == 1


def test_slow_order_fills_in_parts_and_what_is_left_can_be_cancelled(simulator: Running) -> None:
    assert simulator.command("FILL 0.05 3") == "OK fills after 0.05 s in 3, rejects 0"
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 10)
        messages = list(client.until(Reply.COMMISSION))
        filled, remaining = messages[-2][3:5]
        assert (statuses(messages)[-1], filled, remaining) == ("Submitted", "4.0", "6.0")
        client.cancel(order_id)
        assert statuses(until_status(client, "Cancelled"))[-1] == "Cancelled"
        client.place(order_id + 1, "IBM", 5)
        until_status(client, "Filled")
    shares = [event.get("shares") for event in simulator.events()]
    assert shares == [None, 4.0, None, None, 2.0, 2.0, 1.0]


def test_global_cancel_takes_everybodys_orders(simulator: Running) -> None:
    with simulator.client(1) as first, simulator.client(2) as second:
        for client in (first, second):
            client.place(client.next_order_id(), "IBM", 1, "LMT", "1.0")
            until_status(client, "Submitted")
        second.send(Request.OPEN_ORDERS, 1)
        assert len(statuses(list(second.until(Reply.OPEN_ORDER_END)))) == 1
        second.send(Request.ALL_OPEN_ORDERS, 1)
        assert len(statuses(list(second.until(Reply.OPEN_ORDER_END)))) == 2
        second.send(Request.GLOBAL_CANCEL, 1)
        until_status(first, "Cancelled")
        until_status(second, "Cancelled")
        second.send(Request.COMPLETED_ORDERS, 0)
        completed = [m for m in second.until(Reply.COMPLETED_ORDERS_END) if int(m[0]) == Reply.COMPLETED_ORDER]
    assert [order[-6] for order in completed] == ["Cancelled", "Cancelled"]


@pytest.mark.parametrize(
    ("quantity", "symbol", "sec_type", "code"),
    [(0, "IBM", "STK", 201), (1, "??", "STK", 200), (1, "MES", "FUT", 200), (1, "IBM", "BAG", 201)],
)
def test_order_that_must_not_trade_is_refused(
    simulator: Running, quantity: float, symbol: str, sec_type: str, code: int
) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, symbol, quantity, sec_type=sec_type)
        assert error_of(client, order_id) == str(code)
    assert simulator.events() == []


def test_what_if_order_tells_the_margin_and_is_no_order(simulator: Running) -> None:
    with simulator.client(1) as client:
        client.place(client.next_order_id(), "IBM", 5, what_if=True)
        *_, message = client.until(Reply.OPEN_ORDER)
    assert "PreSubmitted" in message
    assert "5000.0" in message
    assert simulator.events() == []


def test_rejected_orders_are_counted_down(simulator: Running) -> None:
    simulator.command("REJECT 1")
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 1)
        assert error_of(client, order_id) == str(ErrorCode.ORDER_REJECTED.value)
        client.place(order_id + 1, "IBM", 1)
        until_status(client, "Filled")
    assert [event["event"] for event in simulator.events()] == ["rejected", "placed", "filled"]


def test_order_id_is_taken_once(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 1)
        until_status(client, "Filled")
        client.place(order_id, "IBM", 1)
        assert error_of(client, order_id) == str(ErrorCode.DUPLICATE_ORDER_ID.value)
    assert [event["event"] for event in simulator.events()] == ["placed", "filled"]


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


def test_order_that_a_stop_interrupted_fills_after_the_start(tmp_path: Path) -> None:
    log = tmp_path / "orders.jsonl"
    with running(log) as first, first.client(1) as client:
        first.command("FILL 60 1")
        client.place(client.next_order_id(), "IBM", 1)
        until_status(client, "Submitted")
    with running(log) as second:
        wait_for(lambda: second.events()[-1]["event"] == "filled")


# --- account, market


def test_account_is_answered_three_ways(simulator: Running) -> None:
    with simulator.client(1) as client:
        client.send(Request.ACCOUNT_UPDATES, 2, 1, "DU1")
        values = {m[2] for m in client.until(Reply.ACCOUNT_DOWNLOAD_END) if int(m[0]) == Reply.ACCOUNT_VALUE}
        client.send(Request.ACCOUNT_UPDATES_MULTI, 1, 8, "DU1", "", 1)
        multi = {m[5] for m in client.until(Reply.ACCOUNT_UPDATE_MULTI_END) if int(m[0]) == Reply.ACCOUNT_UPDATE_MULTI}
        client.send(Request.ACCOUNT_SUMMARY, 1, 9, "All", "NetLiquidation")
        summary = {m[4] for m in client.until(Reply.ACCOUNT_SUMMARY_END) if int(m[0]) == Reply.ACCOUNT_SUMMARY}
        client.send(Request.CURRENT_TIME, 1)
        *_, now = client.until(Reply.CURRENT_TIME)
    assert "NetLiquidation" in values
    assert values == multi == summary
    assert int(now[2]) > 1_700_000_000


def test_position_follows_a_fill(simulator: Running) -> None:
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.send(Request.POSITIONS, 1)
        list(client.until(Reply.POSITION_END))
        client.place(order_id, "IBM", -3)
        *_, position = client.until(Reply.POSITION)
    assert position[-2] == "-3.0"


def test_expiries_are_third_fridays_to_come() -> None:
    asked = Contract("0", "MES", "FUT", "", "0", "", "", "CME", "", "USD", "", "")
    chain = [contract.expiry for contract in market.find_contracts(asked, {})]
    assert chain == sorted(chain)
    assert len(chain) == 6
    [december] = market.find_contracts(Contract(**{**vars(asked), "expiry": "202612"}), {})
    assert december.expiry == "20261218"
    again = market.find_contracts(Contract(**{**vars(asked), "symbol": "", "con_id": "5"}), {"5": december})
    assert again == [december]


# --- clients


def test_client_id_in_use_is_refused_and_free_again_after(simulator: Running) -> None:
    with simulator.client(1) as first:
        first.next_order_id()
        with simulator.client(1) as second:
            assert second.receive()[3] == str(ErrorCode.CLIENT_ID_IN_USE.value)
            with pytest.raises(EOFError):
                second.receive()
    wait_for(lambda: simulator.command("STATE") == "OK normal clients=[]")
    with simulator.client(1) as third:
        assert third.next_order_id() == 1


def test_nothing_of_a_dead_client_arrives_after_its_id_is_free_again(simulator: Running) -> None:
    """A trader that takes over the client id of a dead one relies on it: what it sees then is all there will be."""
    with simulator.client(1) as first:
        order_id = first.next_order_id()
        for number in range(50):
            first.place(order_id + number, "IBM", 1, "LMT", "1.0")
    seen = None
    while seen is None:
        with simulator.client(1) as second:
            if int(second.receive()[0]) == Reply.MANAGED_ACCOUNTS:
                second.send(Request.OPEN_ORDERS, 1)
                seen = len(statuses(list(second.until(Reply.OPEN_ORDER_END))))
                second.place(order_id + 50, "IBM", 1)
                until_status(second, "Filled")
    assert [event["event"] for event in simulator.events()].count("placed") == seen + 1


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"API\0\0\0\0\x09v200..226", b"API\0\xff\xff\xff\xff"])
def test_stranger_is_cut(simulator: Running, greeting: bytes) -> None:
    with socket.create_connection(("127.0.0.1", simulator.port), 5) as connection:
        connection.sendall(greeting)
        assert connection.recv(1) == b""


# --- faults


def test_frozen_gateway_accepts_and_is_silent_until_it_thaws(simulator: Running) -> None:
    with simulator.client(3) as old:
        order_id = old.next_order_id()
        old.place(order_id, "IBM", 1, "LMT", "1.0")
        until_status(old, "Submitted")
        assert simulator.command("MODE frozen") == "OK frozen"
        with pytest.raises(TimeoutError):
            simulator.client(timeout=0.3)
        old.place(order_id + 1, "IBM", 1)
        assert simulator.command("MODE normal") == "OK normal"
        until_status(old, "Filled")
    with simulator.client() as client:
        assert client.server_version == 176


@pytest.mark.parametrize("mode", ["not_logged_in", "second_factor_pending"])
def test_gateway_without_login_answers_the_handshake_only(simulator: Running, mode: str) -> None:
    assert simulator.command(f"MODE {mode}") == f"OK {mode}"
    assert simulator.command("STATE") == f"OK {mode} clients=[] broker=away"
    with simulator.client(1, timeout=0.3) as client:
        assert client.server_version == 176
        with pytest.raises(TimeoutError):
            client.receive()
    assert simulator.command("MODE normal") == "OK normal"
    with simulator.client(1) as client:
        assert client.next_order_id() == 1


def test_lost_connectivity_is_told_and_what_was_filled_meanwhile_comes_after(simulator: Running) -> None:
    simulator.command("FILL 0.3 1")
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 1)
        until_status(client, "Submitted")
        simulator.command("MODE disconnected")
        assert error_of(client, -1) == "1100"
        client.place(order_id + 1, "IBM", 1)
        assert error_of(client, order_id + 1) == str(ErrorCode.ORDER_REJECTED.value)
        wait_for(lambda: simulator.events()[-1]["event"] == "filled")
        simulator.command("MODE normal")
        messages = list(client.until(Reply.ERROR))
    assert statuses(messages) == ["Filled"]
    assert messages[-1][3] == "1102"
    assert [event["order_id"] for event in simulator.events()] == [order_id, order_id]


def test_new_client_is_told_that_the_broker_is_away(simulator: Running) -> None:
    with simulator.client(1) as client:
        client.next_order_id()
    simulator.command("MODE disconnected")
    with simulator.client(2) as client:
        assert [error_of(client, -1) for _ in range(3)] == ["2104", "2158", "1100"]


def test_read_only_gateway_takes_no_order_and_keeps_the_connection(simulator: Running) -> None:
    simulator.command("MODE read_only")
    with simulator.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 1)
        assert error_of(client, order_id) == str(ErrorCode.READ_ONLY.value)
        client.send(Request.GLOBAL_CANCEL, 1)
        assert error_of(client, -1) == str(ErrorCode.READ_ONLY.value)
    assert simulator.events() == []


def test_nightly_restart_cuts_all_and_refuses_for_a_while(simulator: Running) -> None:
    with simulator.client(3) as client:
        client.next_order_id()
        assert simulator.command("STATE") == "OK normal clients=[3]"
        assert simulator.command("RESTART 0.5") == "OK Restarting, back in 0.5 s"
        with pytest.raises(EOFError):
            list(client.until(Reply.COMMISSION))
        with pytest.raises(ConnectionRefusedError):
            simulator.client()

    def answers() -> bool:
        try:
            simulator.client().close()
        except ConnectionRefusedError:
            return False
        return True

    wait_for(answers)


def test_login_elsewhere_cuts_all_until_it_is_over(simulator: Running) -> None:
    with simulator.client(3) as client:
        client.next_order_id()
        assert simulator.command("KICK") == "OK Logged in elsewhere"
        with pytest.raises(EOFError):
            list(client.until(Reply.COMMISSION))
    assert simulator.command("STATE") == "OK not_logged_in clients=[] broker=away"


def test_commands(simulator: Running) -> None:
    assert simulator.command("restart") == "OK Restarting"
    with simulator.client() as client:
        assert client.server_version == 176
    for line in ("MODE sideways", "FILL 1 0", "FILL x 1", "REJECT", ""):
        assert simulator.command(line) == f"ERROR Invalid command: {line}".rstrip()


# --- two gateways of one user


@pytest.fixture
def broker_port(tmp_path: Path) -> Iterator[tuple[Loop, int]]:
    async def start() -> tuple[asyncio.Server, int, Broker]:
        broker = Broker("DU1", tmp_path / "orders.jsonl", Filling(delay=0.02))
        server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1], broker

    async def stop() -> None:
        server.close()
        broker.close()

    with Loop() as loop:
        server, port, broker = loop.run(start())
        yield loop, port
        loop.run(stop())


def test_hand_over_keeps_orders_and_positions(tmp_path: Path, broker_port: tuple[Loop, int]) -> None:
    loop, port = broker_port
    log = tmp_path / "orders.jsonl"
    first = Running(loop, log, Identity("user", "ib1", Action.PRIMARY), port)
    with first.client(1) as client:
        order_id = client.next_order_id()
        client.place(order_id, "IBM", 5)
        until_status(client, "Filled")
        client.place(order_id + 1, "IBM", 5, "LMT", "1.0")
        until_status(client, "Submitted")
    first.stop()
    second = Running(loop, log, Identity("user", "ib2", Action.PRIMARY), port)
    with second.client(1) as client:
        assert client.next_order_id() == order_id + 2
        client.send(Request.OPEN_ORDERS, 1)
        assert statuses(list(client.until(Reply.OPEN_ORDER_END))) == ["Submitted"]
        client.cancel(order_id + 1)
        until_status(client, "Cancelled")
        client.send(Request.POSITIONS, 1)
        [position] = [m for m in client.until(Reply.POSITION_END) if int(m[0]) == Reply.POSITION]
    second.stop()
    assert position[-2] == "5.0"
    assert [event["gateway"] for event in first.events() if event["event"] in {"placed", "cancelled"}] == [
        "ib1",
        "ib1",
        "ib2",
    ]


@pytest.mark.parametrize(
    ("new", "existing", "displaces"),
    [
        ("primary", "primary", False),
        ("primaryoverride", "primary", False),
        ("secondary", "secondary", False),
        ("manual", "secondary", False),
        ("primary", "secondary", True),
        ("primary", "primaryoverride", True),
        ("primaryoverride", "primaryoverride", True),
    ],
)
def test_existing_session(
    tmp_path: Path, broker_port: tuple[Loop, int], new: str, existing: str, *, displaces: bool
) -> None:
    assert may_displace(Action(new), Action(existing)) is displaces
    loop, port = broker_port
    first = Running(loop, tmp_path / "orders.jsonl", Identity("user", "ib1", Action(existing)), port)
    wait_for(lambda: first.gateway.connected)
    second = Running(loop, tmp_path / "orders.jsonl", Identity("user", "ib2", Action(new)), port)
    winner, loser = (second, first) if displaces else (first, second)
    wait_for(loser.gateway.stopped.is_set)
    assert "user" in loser.gateway.refused
    wait_for(lambda: winner.gateway.connected)
    assert not winner.gateway.stopped.is_set()
    first.stop()
    second.stop()


def test_other_user_has_a_session_of_its_own(tmp_path: Path, broker_port: tuple[Loop, int]) -> None:
    loop, port = broker_port
    gateways = [
        Running(loop, tmp_path / "orders.jsonl", Identity(user, user, Action.PRIMARY), port) for user in ("a", "b")
    ]
    for gateway in gateways:
        wait_for(lambda gateway=gateway: gateway.gateway.connected)
        gateway.stop()


# --- the oracle


def order(reference: str, number: int = 1, action: str = "BUY") -> Order:
    contract = Contract("1", "MES", "FUT", "20261218", "0", "", "5", "CME", "", "USD", "", "")
    return Order("DU1", 100, number, contract, action, 2.0, "MKT", "", "", "DAY", reference)


def placed(*references: str) -> list[Any]:
    return [make_record(Event.PLACED, order(reference, number), "ib1") for number, reference in enumerate(references)]


def test_oracle_finds_nothing_in_a_clean_run() -> None:
    records = placed("pst:1:1:7", "pst:1:2:8", "pst:4:3:9")
    records.append(make_record(Event.FILLED, order("pst:1:2:8", 1, "SELL"), "", shares=2.0, price=1.0))
    verdict = oracle.judge(records, {"1": 0, "2": -2, "3": 0})
    assert verdict == oracle.Verdict(3, 2, [], [], [])
    assert verdict.ok


@pytest.mark.parametrize(
    ("references", "field", "wrong"),
    [
        (["pst:1:1:7", "pst:2:1:7"], "duplicate_orders", ["pst:1:1:7", "pst:2:1:7"]),
        (["pst:1:1:7", "pst:2:2:7"], "duplicate_orders", ["pst:1:1:7", "pst:2:2:7"]),
        (["pst:1:1", "pst:2:1"], "duplicate_orders", ["pst:1:1", "pst:2:1"]),
        (["pst:2:1:7", "pst:1:2:8"], "orders_without_lease", ["pst:1:2:8"]),
        (["by hand"], "orders_without_lease", ["by hand"]),
    ],
)
def test_oracle_finds(references: list[str], field: str, wrong: list[str]) -> None:
    verdict = oracle.judge(placed(*references))
    assert getattr(verdict, field) == wrong
    assert not verdict.ok


@pytest.mark.parametrize("books", [{}, {"1": 1.0}, {"1": 0.0, "2": 1.0}])
def test_oracle_compares_the_books(books: dict[str, float]) -> None:
    assert oracle.judge(placed("pst:1:1:7"), {"1": 0.0}).ok
    assert len(oracle.judge(placed("pst:1:1:7"), books).unmatched_orders) == 1


def test_oracle_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "orders.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in placed("pst:1:1:7", "pst:1:2:7")) + '{"torn')
    with pytest.raises(SystemExit):
        oracle.main([str(log)])
    assert json.loads(capsys.readouterr().out)["duplicate_orders"] == ["pst:1:1:7", "pst:1:2:7"]


# --- the rest


def test_position_average() -> None:
    position = Position()
    for quantity, price in [(10, 100.0), (10, 110.0), (-5, 120.0), (-20, 90.0)]:
        position.add(quantity, price)
    assert (position.quantity, position.average_cost) == (-5, 90.0)


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        ("# IbPassword=no\nIbLoginId=user\nIbPassword=\n", Mode.NOT_LOGGED_IN),
        ("IbLoginId=user\nIbPassword=a=b\nReadOnlyApi=no\n", Mode.NORMAL),
        ("IbLoginId=user\nIbPassword=a=b\nReadOnlyApi=yes\n", Mode.READ_ONLY),
    ],
)
def test_login(tmp_path: Path, lines: str, mode: Mode) -> None:
    settings = tmp_path / "config.ini"
    settings.write_text(lines)
    assert initial_mode(read_settings(settings)) is mode
