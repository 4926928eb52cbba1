# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A probe of IB Gateway that talks its API.

An open port proves nothing: a frozen gateway and a forwarder without a gateway both accept connections. The handshake
proves that the gateway answers, and takes no client slot; the session proves that it is logged in, and to which
accounts.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# From 201 on a gateway may switch to another encoding, so the offer ends below.
OFFER = b"v100..176"
START_API, MANAGED_ACCOUNTS, NEXT_VALID_ID, ERROR = "71", "15", "9", "4"
CLIENT_ID_IN_USE = "326"
# The gateway answers the API but has lost the broker's servers, or the farms behind them.
CONNECTIVITY_LOST = {"1100", "2103", "2105", "2110"}
MAX_FRAME = 1 << 20
READY, SECOND_FACTOR_PENDING = "ready", "second_factor_pending"
# The watch of the gateway writes its state at least this often; an older one says nothing.
STATE_GOOD_FOR = 120.0


class ProbeError(Exception):
    """The gateway is not healthy; the message says what was seen."""


@dataclass(frozen=True)
class Health:
    """What a healthy gateway said."""

    server_version: int
    connection_time: str
    accounts: tuple[str, ...] = ()
    next_order_id: int | None = None
    state: str = READY


@dataclass(frozen=True)
class Target:
    """What to ask, and what to expect. Without a client id the probe ends with the handshake."""

    host: str
    port: int
    client_id: int | None = None
    trading_mode: str | None = None
    accounts: tuple[str, ...] = ()

    def problem_of(self, seen: Sequence[str]) -> str | None:
        """Say what is wrong with the accounts of a session: paper accounts start with D, live ones do not."""
        missing = sorted(set(self.accounts) - set(seen))
        if missing:
            return f"accounts seen {', '.join(seen)}, wanted also {', '.join(missing)}"
        if self.trading_mode and any(account.startswith("D") != (self.trading_mode == "paper") for account in seen):
            return f"accounts seen {', '.join(seen)}, wanted {self.trading_mode} accounts"
        return None


class _Connection:
    """A connection on which every wait ends at one deadline, however slowly the bytes drip."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._socket = socket.create_connection((host, port), timeout)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._arm()
        self._socket.sendall(data)

    def receive(self) -> list[str]:
        """Return the fields of one frame."""
        (length,) = struct.unpack(">I", self._read(4))
        if length > MAX_FRAME:
            raise ProbeError(f"answered with a frame of {length} bytes: not the API")
        return self._read(length).decode(errors="replace").split("\0")[:-1]

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            self._arm()
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ProbeError("closed the connection without an answer")
            data += chunk
        return data

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def frame(data: bytes) -> bytes:
    """Return the data with its length before it."""
    return struct.pack(">I", len(data)) + data


def probe(target: Target, timeout: float) -> Health:
    """Ask once, within ``timeout`` seconds, or raise ProbeError."""
    stage = "connection"
    try:
        with _Connection(target.host, target.port, timeout) as connection:
            stage = "handshake"
            connection.send(b"API\0" + frame(OFFER))
            health = _hello(connection.receive())
            if target.client_id is None:
                return health
            stage = "session"
            return _session(connection, target, target.client_id, health)
    except TimeoutError:
        raise ProbeError(f"{target.host}:{target.port}: no answer to the {stage} within {timeout:g} s") from None
    except OSError as error:
        raise ProbeError(f"{target.host}:{target.port}: {stage}: {error.strerror or error}") from error
    except ProbeError as error:
        raise ProbeError(f"{target.host}:{target.port}: {stage}: {error}") from None


def _hello(answer: Sequence[str]) -> Health:
    if len(answer) != 2 or not answer[0].isdigit():
        raise ProbeError(f"answered with {answer!r}: not the API")
    return Health(int(answer[0]), answer[1])


def _session(connection: _Connection, target: Target, client_id: int, health: Health) -> Health:
    connection.send(frame("\0".join((START_API, "2", str(client_id), "", "")).encode()))
    accounts: tuple[str, ...] | None = None
    next_order_id: int | None = None
    while accounts is None or next_order_id is None:
        message = connection.receive()
        kind = message[0] if message else ""
        if kind == MANAGED_ACCOUNTS:
            accounts = tuple(account for account in message[2].split(",") if account)
        elif kind == NEXT_VALID_ID:
            next_order_id = int(message[2])
        elif kind == ERROR and message[3] in CONNECTIVITY_LOST | {CLIENT_ID_IN_USE}:
            raise ProbeError(f"error {message[3]}: {message[4]}")
    problem = target.problem_of(accounts)
    if problem:
        raise ProbeError(problem)
    return Health(health.server_version, health.connection_time, accounts, next_order_id)


def wait_healthy(
    target: Target,
    timeout: float,
    wait: float,
    pause: float = 1.0,
    pending: Callable[[], bool] = lambda: False,
    pending_wait: float = 0,
) -> Health:
    """Ask until the gateway is healthy, for ``wait`` seconds at most; at least once.

    While the second factor is pending, for ``pending_wait`` seconds instead: a person is not as quick as a program.
    """
    began = time.monotonic()
    while True:
        try:
            return probe(target, timeout)
        except ProbeError:
            bound = pending_wait if pending() else wait
            if time.monotonic() + pause >= began + bound:
                raise
        time.sleep(pause)


def second_factor_pending(state_file: str | None, now: datetime | None = None) -> bool:
    """Whether the host's own watch of the gateway has seen of late that somebody has to give the second factor."""
    if state_file is None:
        return False
    try:
        record = json.loads(Path(state_file).read_text())
        age = ((now or datetime.now(UTC)) - datetime.fromisoformat(record["at"])).total_seconds()
        return bool(record["state"] == SECOND_FACTOR_PENDING and age < STATE_GOOD_FOR)
    except (OSError, ValueError, KeyError, TypeError):
        return False
