#!/usr/bin/env python3
"""Stand-in for balancers, agent and MongoDB, as the probe sees them: `stand_in.py PORT PAIR POSTS [EVERY]`.

TLS with the certificate and key of the file PAIR. Posts are kept in the file POSTS, so that they outlive the process.

GET /version              200
POST /api/v1/probe        201, and a line in POSTS; two lines for every EVERY-th key (it is carried out twice)
GET /api/v1/probe/<run>   how many posts there are, as the agent tells it
"""

import json
import ssl
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, PAIR, POSTS = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
EVERY = int(sys.argv[4]) if len(sys.argv) > 4 else 0


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
            case ["version"]:
                self.answer(200, {"release": "stand-in"})
            case ["api", "v1", "probe", run] if self.headers.get("Authorization", "").startswith("Bearer "):
                times = Counter(key for key in POSTS.read_text().split() if key.startswith(f"{run}-"))
                twice = sorted(key for key, count in times.items() if count > 1)
                self.answer(200, {"posts": times.total(), "distinct": len(times), "duplicates": twice[:20]})
            case _:
                self.answer(404, {})

    def do_POST(self) -> None:
        key = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["key"]
        twice = EVERY and int(key.partition("-")[2]) % EVERY == 0
        with POSTS.open("a") as posts:
            posts.write(f"{key}\n" * (2 if twice else 1))
        self.answer(201, {"key": key})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Shakes hands in the connection's thread, so that a slow client delays nobody."""

    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone: nothing to do."""


def main() -> None:
    POSTS.parent.mkdir(parents=True, exist_ok=True)
    POSTS.touch()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PAIR)
    server = Server(("", PORT), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
