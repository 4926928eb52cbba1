#!/usr/bin/env python3
"""Stand-in for the application behind the balancer: mutual TLS, a health check, and a log of the orders it carried out.

GET /ready        the status in /run/stand-in/<slot>.ready, 200 without that file
GET /slow/SECONDS answers after so long
GET /error        500
GET /…            what arrived, as JSON
POST /orders      carries an order out (a line in /var/lib/stand-in/orders), answers 40 ms later
"""

import json
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORTS = {"blue": 8080, "green": 8081}
SLOT = sys.argv[1]
READY = Path(f"/run/stand-in/{SLOT}.ready")
ORDERS = Path("/var/lib/stand-in/orders")
PKI = Path("/etc/pst/pki")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        match self.path.split("/")[1:]:
            case ["ready"]:
                self.answer(int(READY.read_text()) if READY.exists() else 200)
            case ["slow", seconds]:
                time.sleep(float(seconds))
                self.answer(200)
            case ["error"]:
                self.answer(500)
            case _:
                self.answer(200)

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with ORDERS.open("a") as orders:
            orders.write(order["key"] + "\n")
        time.sleep(0.04)
        self.answer(201)

    def answer(self, status: int) -> None:
        body = json.dumps({"slot": SLOT, "host": socket.gethostname(), "headers": dict(self.headers)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Say nothing: the balancer logs."""


class Server(ThreadingHTTPServer):
    """Shakes hands in the connection's thread, so that a slow client delays nobody."""

    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client without a certificate, or gone: nothing to do."""


def main() -> None:
    for path in (READY, ORDERS):
        path.parent.mkdir(parents=True, exist_ok=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(PKI / "ca.crt"))
    context.load_cert_chain(PKI / "app" / "app.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(("", PORTS[SLOT]), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
