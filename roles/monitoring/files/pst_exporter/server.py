"""The exporter's HTTPS: mutual TLS, and only for those whose certificate is of the wanted kind."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .settings import Tls
from .text import CONTENT_TYPE

TIMEOUT_S = 15

Query = Mapping[str, str]
Route = Callable[[Query], str]


class BadRequestError(Exception):
    """What was asked for makes no sense; the message says what would."""


class Certificates:
    """The server's side of TLS. Files that were renewed are read again at the next connection."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._read: tuple[float, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        files = (self._tls.certificate, self._tls.key, self._tls.ca)
        times = tuple(Path(path).stat().st_mtime for path in files)
        if self._context is None or times != self._read:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self._tls.certificate, self._tls.key)
            context.load_verify_locations(self._tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
            self._context, self._read = context, times
        return self._context

    def admits(self, subject: object) -> bool:
        """Tell whether the subject of a verified certificate is of a kind that may ask."""
        if not isinstance(subject, tuple):
            return False
        units = {value for names in subject for key, value in names if key == "organizationalUnitName"}
        return bool(units & set(self._tls.clients))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, listen: str, certificates: Certificates, routes: Mapping[str, Route]) -> None:
        host, _, port = listen.rpartition(":")
        self.certificates, self.routes = certificates, routes
        super().__init__((host, int(port)), Handler)

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Shake hands in the connection's own thread: one that says nothing keeps nobody waiting."""
        if not isinstance(request, socket.socket):
            return
        request.settimeout(TIMEOUT_S)
        try:
            secured = self.certificates.context().wrap_socket(request, server_side=True)
        except OSError:
            return  # no certificate, or none of the site's
        with secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - as the base has it
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            sys.stderr.write(f"<3>{client_address}: {type(error).__name__}: {error}\n")


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answer one of the routes."""
        connection = self.connection
        peer = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
        if not self.server.certificates.admits((peer or {}).get("subject")):
            self._send(403, "this certificate may not ask\n")
            return
        parts = urlsplit(self.path)
        route = self.server.routes.get(parts.path)
        if route is None:
            self._send(404, f"wanted: {', '.join(sorted(self.server.routes))}\n")
            return
        try:
            self._send(200, route({key: values[0] for key, values in parse_qs(parts.query).items()}), CONTENT_TYPE)
        except BadRequestError as error:
            self._send(400, f"{error}\n")

    def _send(self, code: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base has it
        """Say nothing: a scrape every few seconds is no news."""
