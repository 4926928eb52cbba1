"""A session with the gateway as a client of its API: blocking, with a deadline. For the recovery and the watch."""

from __future__ import annotations

import socket
import time

from . import ibapi

# The gateway answers its clients, and has lost the broker's servers or the farms behind them.
BROKER_LOST = frozenset({"1100", "2103", "2105", "2110"})


class SessionError(Exception):
    """The gateway did not say what it should."""


class ClientIdBusyError(SessionError):
    """Somebody else is connected as this client."""


class Session:
    """A connection that has done the handshake; after ``start`` one of a client."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.client_id = -1
        self.version = 0
        self.accounts: list[str] = []
        self.broker_lost = ""
        self._deadline = deadline
        self._socket = connection
        self._stream = connection.makefile("rb")

    @classmethod
    def connect(cls, host: str, port: int, deadline: float) -> Session:
        """Connect and do the handshake."""
        session = cls(socket.create_connection((host, port), _left(deadline)), deadline)
        try:
            offer = f"v{ibapi.OLDEST}..{ibapi.NEWEST}".encode()
            session.send(ibapi.GREETING + ibapi.raw_frame(offer))
            session.version = int(session.receive()[0])
        except BaseException:
            session.close()
            raise
        return session

    def start(self, client_id: int) -> None:
        """Start the API as a client, and wait until the gateway has named the accounts and the next order id."""
        self.client_id = client_id
        self.send(ibapi.start_api(client_id))
        ready = False
        while not (self.accounts and ready):
            message = self.receive()
            if message[0] == str(ibapi.Reply.MANAGED_ACCOUNTS.value):
                self.accounts = [account for account in message[2].split(",") if account]
            elif message[0] == str(ibapi.Reply.NEXT_VALID_ID.value):
                ready = True
            elif message[0] == str(ibapi.Reply.ERROR.value) and message[3] in BROKER_LOST:
                self.broker_lost = f"error {message[3]}: {message[4]}"

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send one message."""
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(message)

    def receive(self) -> list[str]:
        """Return the next message."""
        length = ibapi.length_of(self._read(4))
        fields = ibapi.fields_of(self._read(length))
        if not fields:
            raise SessionError("the gateway sent an empty message")
        if fields[0] == str(ibapi.Reply.ERROR.value) and fields[3] == str(ibapi.Code.CLIENT_ID_IN_USE.value):
            raise ClientIdBusyError(f"client id {self.client_id} is in use")
        return fields

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            self._socket.settimeout(_left(self._deadline))
            chunk = self._stream.read1(count - len(data))
            if not chunk:
                raise SessionError("the gateway hung up")
            data += chunk
        return data


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
