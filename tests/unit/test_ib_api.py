"""The probe, against sockets that behave as good and bad gateways do."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ansible_collections.pst.platform.plugins.module_utils.ib_api import (
    ProbeError,
    Target,
    probe,
    second_factor_pending,
    wait_healthy,
)

Script = Callable[[socket.socket], None]


def message(*fields: object) -> bytes:
    body = "".join(f"{field}\0" for field in fields).encode()
    return struct.pack(">I", len(body)) + body


HELLO = message(176, "20261122 12:00:00 UTC")
ACCOUNTS = message(15, 1, "DU1,DU2")
NEXT_ID = message(9, 1, 5)
BUSY = 10.0  # what a busy machine may add to a bound (seconds)
FARM_OK = message(4, 2, -1, 2104, "Market data farm connection is OK", "")


@pytest.fixture
def gateway() -> Iterator[Callable[[Script], int]]:
    """Serve connections one after another with a script; return the port."""
    done = threading.Event()

    def start(script: Script) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.1)

        def serve() -> None:
            with listener:
                while not done.is_set():
                    try:
                        connection, _ = listener.accept()
                    except TimeoutError:
                        continue
                    with connection:
                        try:
                            script(connection)
                            done.wait(60)
                        except OSError:
                            pass

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    done.set()


def answering(*answers: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        assert connection.recv(4 + 4 + 9) == b"API\0\0\0\0\x09v100..176"
        connection.sendall(b"".join(answers))

    return script


def failure(target: Target, timeout: float = 5) -> str:
    with pytest.raises(ProbeError) as caught:
        probe(target, timeout)
    return str(caught.value)


def test_handshake(gateway: Callable[[Script], int]) -> None:
    health = probe(Target("127.0.0.1", gateway(answering(HELLO))), 10)
    assert (health.server_version, health.accounts, health.next_order_id) == (176, (), None)


def test_session(gateway: Callable[[Script], int]) -> None:
    port = gateway(answering(HELLO, FARM_OK, ACCOUNTS, NEXT_ID))
    health = probe(Target("127.0.0.1", port, client_id=999, trading_mode="paper", accounts=("DU2",)), 10)
    assert (health.accounts, health.next_order_id) == (("DU1", "DU2"), 5)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({"accounts": ("U7",)}, "accounts seen DU1, DU2, wanted also U7"),
        ({"trading_mode": "live"}, "accounts seen DU1, DU2, wanted live accounts"),
    ],
)
def test_session_of_the_wrong_account(gateway: Callable[[Script], int], expected: dict[str, object], text: str) -> None:
    port = gateway(answering(HELLO, ACCOUNTS, NEXT_ID))
    assert text in failure(Target("127.0.0.1", port, client_id=999, **expected))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [326, 1100, 2110])
def test_error_that_means_unhealthy(gateway: Callable[[Script], int], code: int) -> None:
    port = gateway(answering(HELLO, message(4, 2, -1, code, "words", "")))
    assert f"session: error {code}: words" in failure(Target("127.0.0.1", port, client_id=1))


def test_frozen_gateway_is_unhealthy_within_the_bound(gateway: Callable[[Script], int]) -> None:
    port = gateway(lambda connection: None)
    start = time.monotonic()
    assert "no answer to the handshake within 0.5 s" in failure(Target("127.0.0.1", port), 0.5)
    assert time.monotonic() - start < 0.5 + BUSY


def test_gateway_that_drips_is_bound_as_well(gateway: Callable[[Script], int]) -> None:
    def drip(connection: socket.socket) -> None:
        for byte in message("x" * 600):
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    start = time.monotonic()
    assert "no answer to the handshake" in failure(Target("127.0.0.1", gateway(drip)), 0.5)
    assert time.monotonic() - start < 0.5 + BUSY


def test_gateway_without_login_is_unhealthy_for_a_session_only(gateway: Callable[[Script], int]) -> None:
    port = gateway(answering(HELLO))
    assert probe(Target("127.0.0.1", port), 10).server_version == 176
    silent = Target("127.0.0.1", gateway(answering(HELLO)), client_id=1)
    assert "no answer to the session within" in failure(silent, 3)  # the handshake has to come in this time


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the API"),
        (message("no"), "not the API"),
        (message("x", "y"), "not the API"),
    ],
)
def test_stranger(gateway: Callable[[Script], int], answer: bytes, text: str) -> None:
    assert text in failure(Target("127.0.0.1", gateway(answering(answer))))


def test_forwarder_without_a_gateway(gateway: Callable[[Script], int]) -> None:
    port = gateway(lambda connection: connection.shutdown(socket.SHUT_RDWR))
    assert "handshake" in failure(Target("127.0.0.1", port))


def test_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    assert "connection: Connection refused" in failure(Target("127.0.0.1", port))


def test_wait_asks_again_until_healthy(gateway: Callable[[Script], int]) -> None:
    calls: list[int] = []

    def second_time(connection: socket.socket) -> None:
        calls.append(1)
        if len(calls) > 1:
            answering(HELLO)(connection)
        else:
            connection.shutdown(socket.SHUT_RDWR)
            raise OSError

    assert wait_healthy(Target("127.0.0.1", gateway(second_time)), 10, wait=30, pause=0.05).server_version == 176


def test_wait_ends(gateway: Callable[[Script], int]) -> None:
    def hang_up(connection: socket.socket) -> None:
        raise OSError

    start = time.monotonic()
    with pytest.raises(ProbeError):
        wait_healthy(Target("127.0.0.1", gateway(hang_up)), 0.2, wait=0.5, pause=0.05)
    assert time.monotonic() - start < 0.5 + BUSY


def test_a_person_is_given_more_time_than_the_program(gateway: Callable[[Script], int]) -> None:
    def hang_up(connection: socket.socket) -> None:
        raise OSError

    target = Target("127.0.0.1", gateway(hang_up))
    for pending, wait, pending_wait, least in (
        (True, 60, 0.4, 0.3),
        (False, 0.0, 60, 0),
        (True, 60, 0, 0),
    ):
        start = time.monotonic()
        with pytest.raises(ProbeError):
            wait_healthy(target, 0.2, wait, 0.05, lambda value=pending: value, pending_wait)
        assert least <= time.monotonic() - start < 0.5 + BUSY


@pytest.mark.parametrize(
    ("state", "age", "pending"),
    [("second_factor_pending", 5, True), ("second_factor_pending", 300, False), ("frozen", 5, False)],
)
def test_what_the_watch_says_counts_while_it_is_new(tmp_path: Path, state: str, age: int, pending: bool) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"state": state, "at": (datetime.now(UTC) - timedelta(seconds=age)).isoformat()}))
    assert second_factor_pending(str(path)) is pending


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"state": "second_factor_pending", "at": "yesterday"}'])
def test_a_state_file_that_says_nothing_is_no_excuse(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    assert not second_factor_pending(None)
    assert not second_factor_pending(str(path))
    path.write_text(text)
    assert not second_factor_pending(str(path))
