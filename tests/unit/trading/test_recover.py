"""The recovery, against a gateway that lists orders and can be told how to answer a cancellation."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from pst_trading import ibapi, recover
from pst_trading.settings import GatewaySettings

ACCOUNT = "DU1000001"


@dataclass
class Broker:
    """Orders by (client id, order id), with what a cancellation of each does."""

    orders: dict[tuple[int, int], str] = field(default_factory=dict)
    filled: dict[tuple[int, int], float] = field(default_factory=dict)
    busy: dict[int, int] = field(default_factory=dict)  # client id -> how often it is still in use
    started: list[int] = field(default_factory=list)
    cancels: list[tuple[int, int]] = field(default_factory=list)
    accounts: str = ACCOUNT


class Handler(socketserver.StreamRequestHandler):
    """One session."""

    server: Server

    def _send(self, *fields: object) -> None:
        self.wfile.write(ibapi.frame(*fields))

    def _receive(self) -> list[str]:
        head = self.rfile.read(4)
        if len(head) < 4:
            raise EOFError
        return self.rfile.read(struct.unpack(">I", head)[0]).decode().split("\0")[:-1]

    def handle(self) -> None:
        try:
            self._serve(self.server.broker)
        except (EOFError, ConnectionError):
            return

    def _serve(self, broker: Broker) -> None:
        assert self.rfile.read(4) == b"API\0"
        self._receive()
        self._send(176, "20261122 12:00:00 EST")
        self.client_id = int(self._receive()[2])
        broker.started.append(self.client_id)
        if broker.busy.get(self.client_id, 0):
            broker.busy[self.client_id] -= 1
            self._send(4, 2, -1, 326, "client id is already in use", "")
            return
        self._send(15, 1, broker.accounts)
        self._send(9, 1, 1)
        self._send(4, 2, -1, 2104, "farm OK", "")
        while True:
            fields = self._receive()
            if fields[0] == "16":
                self._list(broker)
            elif fields[0] == "4":
                self._cancel(broker, int(fields[2]))

    def _list(self, broker: Broker) -> None:
        for client_id, order_id in broker.orders:
            contract = ("1", "ES", "FUT", "20261218", "0", "", "50", "CME", "USD", "ESZ6", "ES")
            terms = (
                "BUY",
                2,
                "LMT",
                4000,
                "",
                "DAY",
                "",
                ACCOUNT,
                "",
                0,
                f"pst:7:{order_id}",
                client_id,
                900 + order_id,
            )
            self._send(5, order_id, *contract, *terms, "0", "0")
            self._status(broker, (client_id, order_id), "Submitted")
        self._send(53, 1)

    def _status(self, broker: Broker, key: tuple[int, int], status: str) -> None:
        filled = broker.filled.get(key, 0)
        self._send(3, key[1], status, filled, 2 - filled, 0, 900 + key[1], 0, 0, key[0], "", 0)

    def _cancel(self, broker: Broker, order_id: int) -> None:
        key = self.client_id, order_id
        broker.cancels.append(key)
        how = broker.orders.get(key)
        if how == "silent":
            return
        if how == "refused":
            self._send(4, 2, order_id, 321, "Read-only: app2/blue holds the lease", "")
            return
        if how == "late":
            broker.orders[key] = "cancelled"
            self._send(4, 2, order_id, 10148, "state: PendingCancel", "")
            return
        broker.orders.pop(key, None)
        if how == "cancelled":
            self._status(broker, key, "Cancelled")
            self._send(4, 2, order_id, 202, "Order Canceled - reason:", "")
        elif how == "filled":
            broker.filled[key] = 2
            self._status(broker, key, "Filled")
        elif how == "partly":
            broker.filled[key] = 1
            self._status(broker, key, "Cancelled")
        else:
            self._send(4, 2, order_id, 135, "Can't find order", "")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.broker = Broker()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


class Run:
    """A recovery, with what it logs."""

    def __init__(self, server: Server) -> None:
        self.events: list[dict[str, object]] = []
        self.settings = SimpleNamespace(
            gateway=GatewaySettings("127.0.0.1", server.server_address[1], 100, 900, 1998, ACCOUNT)
        )

    def __call__(self, settle_s: float = 5.0) -> recover.RecoveryReport:
        return recover.recover(self.settings, lambda line: self.events.append(json.loads(line)), settle_s)


@pytest.fixture
def run(server: Server) -> Run:
    return Run(server)


def keys(orders: list[ibapi.OpenOrder]) -> list[tuple[int, int]]:
    return [order.key for order in orders]


def test_nothing_open_is_nothing_done(server, run):
    assert run() == recover.RecoveryReport()
    assert (server.broker.started, server.broker.cancels, run.events) == ([1998], [], [])


def test_every_order_of_our_clients_is_taken_back_by_its_own_client_and_no_other(server, run):
    server.broker.orders = dict.fromkeys([(101, 1), (101, 2), (999, 3), (99, 4), (1000, 5), (0, 6)], "cancelled")
    report = run()
    assert keys(report.cancelled) == [(101, 1), (101, 2), (999, 3)]
    assert (report.filled, report.gone, report.foreign) == ([], [], 3)
    assert server.broker.started == [1998, 101, 999]
    assert sorted(server.broker.orders) == [(0, 6), (99, 4), (1000, 5)]
    assert [(event["event"], event["order_id"]) for event in run.events] == [
        *(("order found open", order_id) for order_id in (1, 2, 3)),
        *(("order cancelled", order_id) for order_id in (1, 2, 3)),
    ]
    assert run.events[0]["reference"] == "pst:7:1"
    assert run.events[0]["symbol"] == "ESZ6"


@pytest.mark.parametrize(
    ("how", "where", "filled"), [("filled", "filled", 2), ("partly", "filled", 1), ("unknown", "gone", 0)]
)
def test_what_filled_or_went_meanwhile_is_told(server, run, how, where, filled):
    server.broker.orders = {(101, 1): how}
    report = run()
    assert {name: keys(getattr(report, name)) for name in ("cancelled", "filled", "gone")} == {
        "cancelled": [],
        "filled": [],
        "gone": [],
        where: [(101, 1)],
    }
    assert (run.events[-1]["event"], run.events[-1]["filled"]) == (f"order {where}", filled)


def test_an_order_that_takes_its_time_is_waited_for(server, run):
    server.broker.orders = {(101, 1): "late"}
    assert keys(run().cancelled) == [(101, 1)]
    assert server.broker.cancels == [(101, 1), (101, 1)]


def test_a_client_id_that_is_still_in_use_is_waited_for(server, run):
    server.broker.orders = {(101, 1): "cancelled"}
    server.broker.busy = {101: 1, 1998: 1}
    assert keys(run().cancelled) == [(101, 1)]
    assert server.broker.started == [1998, 1998, 101, 101]


def test_a_client_id_that_stays_in_use_is_told_with_the_orders(server, run):
    server.broker.orders = {(101, 1): "cancelled"}
    server.broker.busy = {101: 1000}
    with pytest.raises(recover.RecoveryError, match=r"101 is in use; open: BUY 2 ESZ6 \(client 101, order 1\)"):
        run(1.2)


def test_an_order_that_cannot_be_taken_back_in_time_is_told(server, run):
    server.broker.orders = {(101, 1): "silent", (102, 2): "cancelled"}
    with pytest.raises(recover.RecoveryError, match=r"client 101, order 1\); BUY 2 ESZ6 \(client 102, order 2\)"):
        run(1.0)


def test_a_refused_cancellation_says_who_refuses(server, run):
    server.broker.orders = {(101, 1): "refused"}
    with pytest.raises(recover.RecoveryError, match="order 1 may not be taken back: Read-only: app2/blue holds"):
        run()


def test_another_account_is_not_touched(server, run):
    server.broker.accounts = "U7654321"
    server.broker.orders = {(101, 1): "cancelled"}
    with pytest.raises(recover.RecoveryError, match="accounts U7654321; wanted: DU1000001"):
        run()
    assert server.broker.cancels == []


def test_a_gateway_that_is_away_is_an_error(server, run):
    server.shutdown()
    server.server_close()
    with pytest.raises(recover.RecoveryError, match=r"127\.0\.0\.1:"):
        run(1.0)
