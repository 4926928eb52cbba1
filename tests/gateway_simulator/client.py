"""The smallest client of the API: blocking, one answer at a time. For tests, and for drills from a bare host.

``python3 -m gateway_simulator.client 10.78.0.51:4001 buy IBM 100`` prints the messages that came back, one a line.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType

from .protocol import SERVER_VERSION, Field, Reply, Request, encode

_AFTER_REFERENCE = 56  # what placeOrder has between the order's reference and its algorithm


class Client:
    """A connection that has done the handshake; with a client id, one that has started the API as well."""

    def __init__(self, host: str, port: int, client_id: int | None = None, timeout: float = 5.0) -> None:
        self._socket = socket.create_connection((host, port), timeout)
        self._stream = self._socket.makefile("rb")
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        if client_id is not None:
            self.send(Request.START_API, 2, client_id, "")

    def _greet(self) -> None:
        offer = f"v100..{SERVER_VERSION}".encode()
        self._socket.sendall(b"API\0" + struct.pack(">I", len(offer)) + offer)
        self.server_version = int(self.receive()[0])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def send(self, *fields: Field) -> None:
        """Send one message."""
        self._socket.sendall(encode(fields))

    def receive(self) -> list[str]:
        """Return the next message; EOFError when the gateway has hung up."""
        head = self._stream.read(4)
        if len(head) < 4:
            raise EOFError("the gateway closed the connection")
        (length,) = struct.unpack(">I", head)
        return self._stream.read(length).decode().split("\0")[:-1]

    def until(self, last: Reply) -> Iterator[list[str]]:
        """Yield messages up to and with the first one of a kind."""
        while True:
            message = self.receive()
            yield message
            if int(message[0]) == last:
                return

    def next_order_id(self) -> int:
        """Return the order id that startApi was answered with."""
        *_, message = self.until(Reply.NEXT_VALID_ID)
        return int(message[2])

    def place(self, order_id: int, symbol: str, quantity: float, order_type: str = "MKT", limit: str = "") -> None:
        """Send a stock order; a negative quantity sells."""
        contract = ("0", symbol, "STK", "", "0.0", "", "", "SMART", "", "USD", "", "")
        order = ("BUY" if quantity > 0 else "SELL", abs(quantity), order_type, limit, "", "DAY", "", "", "", 0, "test")
        self.send(Request.PLACE_ORDER, order_id, *contract, "", "", *order, *[""] * _AFTER_REFERENCE, "", 0, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask a gateway from the command line."""
    parser = argparse.ArgumentParser(prog="gateway_simulator.client", description=__doc__)
    parser.add_argument("address", help="host:port")
    parser.add_argument("--client-id", type=int, default=900)
    parser.add_argument("verb", choices=["version", "buy", "executions"])
    parser.add_argument("symbol", nargs="?", default="IBM")
    parser.add_argument("quantity", nargs="?", type=float, default=1.0)
    options = parser.parse_args(arguments)
    host, _, port = options.address.rpartition(":")
    with Client(host, int(port), None if options.verb == "version" else options.client_id) as client:
        if options.verb == "version":
            print(client.server_version)
            return
        order_id = client.next_order_id()
        if options.verb == "buy":
            client.place(order_id, options.symbol, options.quantity)
            messages = client.until(Reply.COMMISSION)
        else:
            client.send(Request.EXECUTIONS, 3, 1, *[""] * 7)
            messages = client.until(Reply.EXECUTION_END)
        for message in messages:
            print(json.dumps(message))


if __name__ == "__main__":
    main()
