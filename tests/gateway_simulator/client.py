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

    def until(self, last: Reply, failed_id: int | None = None) -> Iterator[list[str]]:
        """Yield messages up to and with the first one of a kind, or an error of one request."""
        while True:
            message = self.receive()
            yield message
            kind = int(message[0])
            if kind == last or (kind == Reply.ERROR and failed_id is not None and message[2] == str(failed_id)):
                return

    def next_order_id(self) -> int:
        """Return the order id that startApi was answered with."""
        *_, message = self.until(Reply.NEXT_VALID_ID)
        return int(message[2])

    def place(
        self,
        order_id: int,
        symbol: str,
        quantity: float,
        order_type: str = "MKT",
        limit: str = "",
        *,
        reference: str = "test",
        sec_type: str = "STK",
        expiry: str = "",
        what_if: bool = False,
    ) -> None:
        """Send an order; a negative quantity sells."""
        contract = ("0", symbol, sec_type, expiry, "0.0", "", "", "SMART", "", "USD", "", "")
        side = "BUY" if quantity > 0 else "SELL"
        order = (side, abs(quantity), order_type, limit, "", "DAY", "", "", "", 0, reference)
        self.send(Request.PLACE_ORDER, order_id, *contract, "", "", *order, *[""] * _AFTER_REFERENCE, "", "", what_if)

    def cancel(self, order_id: int) -> None:
        """Ask for the cancellation of an order of this client."""
        self.send(Request.CANCEL_ORDER, 1, order_id, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask a gateway from the command line."""
    parser = argparse.ArgumentParser(prog="gateway_simulator.client", description=__doc__)
    parser.add_argument("address", help="host:port")
    parser.add_argument("--client-id", type=int, default=900)
    parser.add_argument("--reference", default="test", help="the order's own mark, such as pst:7:1")
    parser.add_argument("--limit", default="", help="makes it a limit order, which is not waited for")
    parser.add_argument("verb", choices=["version", "buy", "sell", "executions", "open"])
    parser.add_argument("symbol", nargs="?", default="IBM")
    parser.add_argument("quantity", nargs="?", type=float, default=1.0)
    options = parser.parse_args(arguments)
    host, _, port = options.address.rpartition(":")
    with Client(host, int(port), None if options.verb == "version" else options.client_id) as client:
        if options.verb == "version":
            print(client.server_version)
            return
        for message in _ask(client, options):
            print(json.dumps(message))


def _ask(client: Client, options: argparse.Namespace) -> Iterator[list[str]]:
    order_id = client.next_order_id()
    if options.verb == "executions":
        client.send(Request.EXECUTIONS, 3, 1, *[""] * 7)
        return client.until(Reply.EXECUTION_END)
    if options.verb == "open":
        client.send(Request.ALL_OPEN_ORDERS, 1)
        return client.until(Reply.OPEN_ORDER_END)
    quantity = options.quantity if options.verb == "buy" else -options.quantity
    kind = "LMT" if options.limit else "MKT"
    client.place(order_id, options.symbol, quantity, kind, options.limit, reference=options.reference)
    return client.until(Reply.ORDER_STATUS if options.limit else Reply.COMMISSION, failed_id=order_id)


if __name__ == "__main__":
    main()
