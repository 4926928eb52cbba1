"""The watch of a gateway host, against a gateway that misbehaves in every way that it tells apart."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from pst_trading import gateway_watch, ibapi
from pst_trading.gate_settings import TradingWindow, WatchSettings
from pst_trading.gateway_watch import Seen, State, Watch, look

FRIDAY = datetime(2026, 11, 20, 12, 0)  # noqa: DTZ001  the window is in the host's local time


class Gateway(socketserver.StreamRequestHandler):
    """Does what its server's script says."""

    def handle(self) -> None:
        script: Callable[[Gateway], None] = self.server.script
        try:
            script(self)
        except (ConnectionError, EOFError):
            return

    def send(self, *fields: object) -> None:
        self.wfile.write(ibapi.frame(*fields))

    def receive(self) -> None:
        head = self.rfile.read(4)
        if len(head) < 4:
            raise EOFError
        self.rfile.read(struct.unpack(">I", head)[0])

    def handshake(self) -> None:
        self.rfile.read(4)
        self.receive()
        self.send(176, "20261122 12:00:00 EST")
        self.receive()

    def session(self, accounts: str = "DU1000001", error: int = 2104) -> None:
        self.handshake()
        self.send(4, 2, -1, error, "farm", "")
        self.send(15, 1, accounts)
        self.send(9, 1, 1)
        self.rfile.read()

    def silent(self) -> None:
        self.rfile.read()

    def not_logged_in(self) -> None:
        self.handshake()
        self.rfile.read()

    def busy(self) -> None:
        self.handshake()
        self.send(4, 2, -1, 326, "in use", "")

    def other(self) -> None:
        self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    script: Callable[[Gateway], None]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


@pytest.fixture
def settings(server: Server, tmp_path: Path) -> WatchSettings:
    return WatchSettings(
        trading_window=TradingWindow("00:01", "19:45", ("Fri",)),
        api=f"127.0.0.1:{server.server_address[1]}",
        client_id=997,
        trading_mode="paper",
        events=str(tmp_path / "events.jsonl"),
        state_file=str(tmp_path / "state.json"),
        interval_s=15,
        timeout_s=1.5,  # a busy machine has to answer within it, and what is silent is waited for
        start_timeout_s=180,
        restart_frozen_after_s=0,
        accounts=("DU1000001",),
    )


@pytest.mark.parametrize(
    ("script", "state", "detail"),
    [
        (Gateway.session, State.READY, "version 176, DU1000001"),
        (Gateway.busy, State.READY, "client id 997 is in use"),
        (Gateway.silent, State.FROZEN, "no answer within 1.5 s"),
        (Gateway.not_logged_in, State.NOT_LOGGED_IN, "no answer within 1.5 s"),
        (lambda one: one.session(error=1100), State.BROKER_LOST, "error 1100: farm"),
        (lambda one: one.session("U1"), State.WRONG_ACCOUNT, "accounts seen U1, wanted paper accounts"),
        (lambda one: one.session("DU2"), State.WRONG_ACCOUNT, "accounts seen DU2, wanted also DU1000001"),
        (Gateway.other, State.DOWN, "a frame of"),
    ],
)
def test_what_a_session_shows(server, settings, script, state, detail):
    server.script = script
    seen = look(settings, False)
    assert (seen.state, detail in seen.detail) == (state, True), seen


def test_a_closed_port_is_a_start_or_a_failure(server, settings):
    server.shutdown()
    server.server_close()
    assert look(settings, True).state is State.STARTING
    assert look(settings, False).state is State.DOWN


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (["LOGIN_STARTED", "TWO_FA_REQUIRED"], State.SECOND_FACTOR_PENDING),
        (["TWO_FA_REQUIRED", "RULE_APPLIED"], State.SECOND_FACTOR_PENDING),
        (["TWO_FA_REQUIRED", "LOGIN_STARTED"], State.NOT_LOGGED_IN),
        (["LOGIN_FAILED"], State.LOGIN_FAILED),
        (["UNKNOWN_WINDOW"], State.UNKNOWN_WINDOW),
        (["TWO_FA_REQUIRED", "LOGGED_IN"], State.NOT_LOGGED_IN),
        ([], State.NOT_LOGGED_IN),
    ],
)
def test_ibcs_events_tell_why_there_is_no_session(server, settings, events, state):
    server.script = Gateway.not_logged_in
    lines = [json.dumps({"time": "t", "type": event, "detail": f"about {event}"}) for event in events]
    Path(settings.events).write_text("\n".join([*lines, '{"torn']))
    assert look(settings, False).state is state


def test_events_tell_nothing_where_the_session_works(server, settings):
    server.script = Gateway.session
    Path(settings.events).write_text(json.dumps({"type": "TWO_FA_REQUIRED"}) + "\n")
    assert look(settings, False).state is State.READY


class Life:
    """A watch with a clock and a script."""

    def __init__(self, settings: WatchSettings, moment: datetime = FRIDAY) -> None:
        self.now = 1000.0
        self.restarts = 0
        self.starting: list[bool] = []
        self.watch = Watch(settings, self._restart, lambda: self.now, lambda: moment)

    def _restart(self) -> None:
        self.restarts += 1

    def step(self, state: State, after: float = 15.0) -> None:
        self.now += after

        def look(_: WatchSettings, starting: bool) -> Seen:
            self.starting.append(starting)
            return Seen(state, "why")

        self.watch.step(look)


def state_file(settings: WatchSettings) -> dict[str, object]:
    return json.loads(Path(settings.state_file).read_text())


def test_changes_are_told_once_and_what_needs_somebody_again(settings, capsys):
    life = Life(settings)
    for state in (State.STARTING, State.STARTING, State.SECOND_FACTOR_PENDING, State.SECOND_FACTOR_PENDING):
        life.step(state)
    assert capsys.readouterr().out.splitlines() == ["<5>gateway starting: why", "<4>gateway second_factor_pending: why"]
    life.step(State.SECOND_FACTOR_PENDING, 600)
    life.step(State.READY)
    life.step(State.READY, 10_000)
    assert capsys.readouterr().out.splitlines() == ["<4>gateway second_factor_pending: why", "<5>gateway ready: why"]


def test_the_state_file_says_since_when(settings):
    life = Life(settings)
    life.step(State.FROZEN)
    life.step(State.FROZEN, 40)
    record = state_file(settings)
    assert (record["state"], record["detail"], record["for_seconds"]) == ("frozen", "why", 40)
    assert datetime.fromisoformat(str(record["at"])).tzinfo is not None


def figures(path: Path) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_state_is_told_to_prometheus(settings, tmp_path):
    life = Life(settings)
    life.watch = Watch(settings, life._restart, lambda: life.now, lambda: FRIDAY, tmp_path / "gateway.prom")
    life.step(State.SECOND_FACTOR_PENDING)
    told = figures(tmp_path / "gateway.prom")
    assert {name for name, value in told.items() if name.startswith("pst_gateway_state{") and value} == {
        'pst_gateway_state{state="second_factor_pending"}'
    }
    assert (told["pst_gateway_connected"], told["pst_gateway_second_factor_pending"]) == (0, 1)
    assert "pst_gateway_handshake_seconds" not in told
    life.step(State.READY)
    life.step(State.READY, 40)
    told = figures(tmp_path / "gateway.prom")
    assert (told["pst_gateway_connected"], told["pst_gateway_session_age_seconds"]) == (1, 40)
    assert len([name for name in told if name.startswith("pst_gateway_state{")]) == len(State)


def test_the_time_of_a_handshake_is_measured(server, settings):
    def slow(gateway: Gateway) -> None:
        time.sleep(0.2)
        gateway.session()

    server.script = slow
    seen = look(replace(settings, timeout_s=5), False)
    assert seen.state is State.READY
    assert seen.handshake_s is not None
    assert 0.2 <= seen.handshake_s < 4


def test_a_start_takes_its_time_once(settings):
    life = Life(settings)
    life.step(State.STARTING, 170)
    life.step(State.READY, 1)
    life.step(State.DOWN, 1)
    life.step(State.DOWN, 200)
    assert life.starting == [True, True, False, False]


def test_a_frozen_gateway_is_only_told_of_by_default(settings):
    life = Life(settings, FRIDAY.replace(hour=22))
    for _ in range(100):
        life.step(State.FROZEN, 60)
    assert life.restarts == 0


def test_a_frozen_gateway_is_restarted_where_wanted_outside_the_trading_window(settings):
    wanted = replace(settings, restart_frozen_after_s=60)
    life = Life(wanted, FRIDAY.replace(hour=22))
    life.step(State.FROZEN)
    life.step(State.FROZEN, 59)
    assert life.restarts == 0
    life.step(State.FROZEN, 1)
    assert life.restarts == 1
    life.step(State.STARTING)
    assert life.starting[-1]
    within = Life(wanted, FRIDAY)
    within.step(State.FROZEN)
    within.step(State.FROZEN, 1000)
    assert within.restarts == 0


@pytest.mark.parametrize(
    ("moment", "covered"),
    [
        (FRIDAY, True),
        (FRIDAY.replace(hour=0, minute=0), False),
        (FRIDAY.replace(hour=0, minute=1), True),
        (FRIDAY.replace(hour=19, minute=44), True),
        (FRIDAY.replace(hour=19, minute=45), False),
        (FRIDAY.replace(day=21), False),
    ],
)
def test_the_trading_window(settings, moment, covered):
    assert settings.trading_window.covers(moment) is covered


def test_a_frozen_gateway_is_found_within_its_bound(server, settings):
    server.script = Gateway.silent
    began = time.monotonic()
    look(settings, False)
    assert time.monotonic() - began < 1.5 + 2


def test_settings_that_cannot_be_used_end_it_for_good(tmp_path, capsys):
    path = tmp_path / "gate.json"
    path.write_text("{}")
    assert gateway_watch.main(path) == 78
    assert "watch" in capsys.readouterr().err
